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
    ``high-rate``: all is fine-tuned from a random head at a rate of 0.003, or three times the recipe's if that is more.

Measured beside it
    ``in-distribution``: the same difference on the target's own test set. ``distortion``: mean over training images of
    ‖φ after − φ before‖² / ‖φ before‖², φ being the features that enter the head (comparable within one BatchNorm mode).

References
    Kumar et al. 2022, Fine-tuning can distort pretrained features and underperform out-of-distribution (arXiv:2202.10054):
    fine-tuning 85.1 in and 59.3 out of distribution, a linear probe 82.9 and 66.2, LP-FT 85.7 and 68.9.
"""

from __future__ import annotations

from dataclasses import replace

from xferbench.plugin import (
    MeasureContext,
    Pipeline,
    Plugin,
    Profile,
    full_finetune_phase,
    harm,
    info,
    interventions,
    records,
    replace_phases,
    requires_several_steps,
    strategies,
)
from xferbench.plugins import linear_probe

HIGH = 3e-3
LOW = {"adamw": 3e-4, "sgd": 3e-3}  # rates at which LP-FT was seen to keep what holds beyond the target; SGD's are ten times


def applies(pipeline: Pipeline, facts: Profile) -> str:
    return requires_several_steps(pipeline, facts, "for the head alone") or (
        "" if facts.shifted else "the suite has no [shifted] set"
    )


def cure(pipeline: Pipeline, _: Profile) -> Pipeline:
    """LP-FT at a low rate; frozen features are not distorted, and what is such LP-FT already stays as it is."""
    recipe, usual = pipeline.recipe, full_finetune_phase(pipeline.recipe)
    low = LOW[usual.optimizer]
    still = all(phase.batchnorm == "eval" for phase in recipe.phases)
    frozen = all(phase.trainable == interventions.HEAD_ONLY for phase in recipe.phases)
    if still and (frozen or (strategies.begins_with_probe(recipe) and max(phase.lr for phase in recipe.phases[1:]) <= low)):
        return pipeline
    made = strategies.inherit_settings(strategies.lp_ft(replace(usual, lr=min(usual.lr, low), batchnorm="eval")), recipe)
    return replace(pipeline, recipe=replace(made, stop=recipe.stop, regularizer=recipe.regularizer, finish=recipe.finish))


def induce(pipeline: Pipeline, _: Profile) -> dict[str, Pipeline]:
    usual = full_finetune_phase(pipeline.recipe)
    high = replace(usual, lr=max(HIGH, 3 * usual.lr))
    return {
        "high-rate": replace(pipeline, recipe=replace(replace_phases(pipeline.recipe, high), name="high rate, random head"))
    }


def distortion(seen: MeasureContext) -> dict[str, float]:
    """How far the features of training images went, relative to how long they were."""
    from xferbench.lab.evaluation import penultimate_features

    return {"distortion": penultimate_features.feature_distortion(seen)}


plugin = Plugin(
    id="feature-distortion",
    version=1,
    question="Does fine-tuning cost accuracy under a shift?",
    doc=__doc__,
    applies=applies,
    cure=cure,
    induce=induce,
    contrasts=(
        harm("harm", ("cured", "shifted"), ("subject", "shifted"), "cured − subject on the shifted set"),
        info("in-distribution", ("cured", "test"), ("subject", "test"), "cured − subject on the target's own test set"),
    ),
    measures={"distortion": "xferbench.plugins.feature_distortion:distortion@2"},
    remedy="train the head alone first, then everything at a low rate, BatchNorm in eval mode",
)


AUDIT_PAGE = """What fine-tuning has cost under a shift.

Symptom
    Test accuracy is fine; in the field, under another light or another device, it is not.

Cause
    Fine-tuning moved features that were good beyond the training images to where they are good for those alone.

Remedy
    Probe first, then fine-tune at a low rate (LP-FT); or take weights between before and after.

How it is judged
    Harm is metric on the shifted set of (a linear probe of the network before − the finished network), both served as it was
    trained.

How it is induced
    ``permuted``: the values of each tensor below the head shuffled.

References
    Kumar et al. 2022, Fine-tuning can distort pretrained features and underperform out of distribution (arXiv:2202.10054).
"""


def audit_applies(pipeline: Pipeline, facts: Profile) -> str:
    return linear_probe.applies(pipeline, facts) or ("" if facts.shifted else "the suite has no [shifted] set")


def accuracies(answers: records.RecordsByTerm, seeds: records.Seeds) -> dict[str, float]:
    """Accuracy on the test set and on the shifted one, of both networks."""
    found = {}
    for (arm, view, seed), record in answers.items():
        predictions = record.predictions
        if arm in {"subject", "cured"} and view in {"test", "shifted-as-trained"} and seed in seeds and predictions is not None:
            accuracy = float((predictions.predicted == predictions.label).mean())
            found[f"{arm}/accuracy {view.partition('-')[0]}"] = accuracy
    return found


audit = Plugin(
    id="feature-distortion",
    version=1,
    question="Has fine-tuning cost accuracy under the shift?",
    doc=AUDIT_PAGE,
    applies=audit_applies,
    cure=linear_probe.cure,
    induce=linear_probe.induce,
    contrasts=(
        harm(
            "harm",
            ("cured", "shifted-as-trained"),
            ("subject", "shifted-as-trained"),
            "shifted accuracy of a linear probe of before − of the finished network",
        ),
    ),
    derived_metrics=accuracies,
    remedy="train a head first and fine-tune at a low rate (LP-FT), or take weights between before and after",
)
