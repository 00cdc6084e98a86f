"""Fine-tuning that fits the target and loses what held beyond it.

Symptom
    Accuracy on the target's own test set rises with fine-tuning, and falls on the same classes under a shift (other light,
    another camera, another hospital), where a linear probe would have held.

Cause
    Training moves the features in the directions that the target's images show and leaves the others where they were, so
    that the head no longer fits them together. The farther the features go, the more it costs.

Remedy
    A linear probe first, then fine-tuning at a rate of at most 0.0003 (SGD: 0.003) with BatchNorm in evaluation mode (LP-FT):
    the head is near its place before the features may move. It needs good features, and a shift that pretraining has seen.

How it is judged
    Harm is metric(LP-FT) − metric(subject) on the shifted set, which nothing is chosen by. Without a [shifted] set whose
    classes are the target's it is SKIPPED.

How it is induced
    ``high-rate``: everything is fine-tuned from a random head at a rate of 0.003, or three times the recipe's own if that is
    more.

Measured beside it
    ``in-distribution``: the same difference on the target's own test set. ``distortion``: mean over training images of
    ‖φ after − φ before‖² / ‖φ before‖², φ being the features that enter the head (to be compared between arms of one BatchNorm
    mode only).

References
    Kumar, Raghunathan, Jones, Ma, Liang. Fine-tuning can distort pretrained features and underperform out-of-distribution.
    ICLR 2022 (arXiv:2202.10054): fine-tuning 85.1 in and 59.3 out of distribution, a linear probe 82.9 and 66.2, LP-FT 85.7
    and 68.9.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from xferbench.design import Contrast, Facts, Phase, Pipeline, Plugin
from xferbench.strategies import begins_with_probe, beside, lp_ft, moving

if TYPE_CHECKING:
    from collections.abc import Mapping

    from xferbench.lab.viewed import Seen

HIGH = 3e-3
LOW = {
    "adamw": 3e-4,
    "sgd": 3e-3,
}  # rates at which LP-FT was seen to keep what holds beyond the target; SGD's are ten times Adam's


def applies(pipeline: Pipeline, facts: Facts) -> str:
    if pipeline.recipe.init != "pretrained":
        return "nothing pretrained is adapted"
    if sum(phase.steps for phase in pipeline.recipe.phases) < 2:
        return "a single step leaves none for the head alone"
    return "" if facts.shifted else "the suite has no [shifted] set"


def _whole(pipeline: Pipeline) -> Phase:
    return replace(moving(pipeline.recipe), trainable="all", warmup=0, head_lr=None, layer_decay=1.0)


def cure(pipeline: Pipeline, _: Facts) -> Pipeline:
    """LP-FT at a low rate; frozen features are not distorted, and what is such LP-FT already stays as it is."""
    recipe, whole = pipeline.recipe, _whole(pipeline)
    still = all(phase.batchnorm == "eval" for phase in recipe.phases)
    frozen = all(phase.trainable == "head" for phase in recipe.phases)
    low = LOW[whole.optimizer]
    if still and (frozen or (begins_with_probe(recipe) and max(phase.lr for phase in recipe.phases[1:]) <= low)):
        return pipeline
    made = beside(lp_ft(replace(whole, lr=min(whole.lr, low), batchnorm="eval")), recipe)
    return replace(pipeline, recipe=replace(made, stop=recipe.stop, regularizer=recipe.regularizer, finish=recipe.finish))


def induce(pipeline: Pipeline, _: Facts) -> Mapping[str, Pipeline]:
    whole = _whole(pipeline)
    phase = replace(whole, lr=max(HIGH, 3 * whole.lr))
    return {"high-rate": replace(pipeline, recipe=replace(pipeline.recipe, phases=(phase,), name="high rate, random head"))}


def distortion(seen: Seen) -> dict[str, float]:
    """How far the features of training images went, relative to how long they were."""
    from xferbench.lab import penultimate

    before, after = (
        penultimate.head_inputs(
            seen.network,
            {name: tensor.to(seen.network.device) for name, tensor in tensors.items()},
            seen.images,
            seen.prepared,
        )
        for tensors in (seen.before, seen.after)
    )
    moved = (after - before).square().sum(1) / before.square().sum(1).clamp_min(1e-12)
    return {"distortion": float(moved.mean())}


plugin = Plugin(
    id="feature-distortion",
    version=1,
    question="Does fine-tuning cost accuracy under a shift?",
    page=__doc__,
    applies=applies,
    cure=cure,
    induce=induce,
    contrasts=(
        Contrast(
            name="harm",
            weights={("cured", "shifted"): 1.0, ("subject", "shifted"): -1.0},
            meaning="cured − subject on the shifted set",
        ),
        Contrast(
            name="in-distribution",
            kind="info",
            weights={("cured", "test"): 1.0, ("subject", "test"): -1.0},
            meaning="cured − subject on the target's own test set",
        ),
    ),
    measures={"distortion": "xferbench.plugins.feature_distortion:distortion@2"},
    remedy="train the head alone first, then everything at a low rate, BatchNorm in eval mode",
)
