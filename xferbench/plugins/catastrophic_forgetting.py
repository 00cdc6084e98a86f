"""A source skill that is lost while the target is learnt.

Symptom
    The adapted model does the new task and no longer the old one: with its old head back it confuses classes that it knew.

Cause
    Nothing in the target's loss holds on to the source. The higher the rate, the more layers and the more steps, the farther
    the weights go; moving BatchNorm statistics alone can be enough.

Remedy
    What keeps most of the source among the recipes that keep the target's accuracy (within the margin, on validation): a
    lower rate, fewer steps, the best step, gradual unfreezing, discriminative rates, more weight decay, a frozen backbone,
    L2-SP, EWC, rehearsal of source images (one beside every eight) or learning without forgetting.

How it is judged
    Harm is metric(before) − metric(after) on the source's test images, both with the pretrained head as it was and with the
    preprocessing recorded for the weights; "before" is the network at step 0. How well the source is kept is chosen by
    source images that no fit is given.

How it is induced
    ``high-rate``: everything is trained at a rate of 0.01, or three times the recipe's own if that is more, for twice as many
    steps.

Measured beside it
    ``probe-forgetting``: the same with a linear head fitted anew on source images, before and after: what is lost for good,
    not only out of the old head's reach (far milder as a rule: Davari et al. 2022). ``restored``: what putting the old
    BatchNorm statistics back returns.

References
    McCloskey & Cohen 1989; Kirkpatrick et al. 2017 (arXiv:1612.00796); Li & Hoiem 2016 (arXiv:1606.09282); Li et al. 2018,
    L2-SP (arXiv:1802.01483); Davari et al. 2022, Probing representation forgetting (arXiv:2203.13381).
"""

from __future__ import annotations

from dataclasses import replace
from math import isnan
from typing import TYPE_CHECKING, Any

from xferbench.design import Choice, Contrast, Facts, Pipeline, Plugin, Recipe
from xferbench.strategies import HEAD_LR, beside, deep, discriminative, gradual_unfreezing, linear_probe, moving

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from xferbench.record import Run

HIGH = 1e-2
REGULARIZERS = ("l2-sp:1", "ewc:1000")  # strengths at which each was seen to work
BELOW = ("lwf:1",)  # likewise, where the source's head can stand below the new one


def applies(pipeline: Pipeline, facts: Facts) -> str:
    if pipeline.recipe.init != "pretrained":
        return "nothing pretrained is adapted"
    return "" if facts.source else facts.no_source or "the suite has no [source] whose classes are known"


def _candidates(pipeline: Pipeline, groups: int) -> Iterator[Recipe]:
    recipe = pipeline.recipe
    whole = replace(moving(recipe), order="shuffled")

    def changed(name: str, **values: Any) -> Recipe:
        return Recipe(name=name, phases=(replace(whole, **values),))

    yield changed("a tenth of the rate", lr=whole.lr / 10)
    yield changed("a third of the rate", lr=whole.lr / 3)
    yield changed("a third of the steps", steps=max(1, whole.steps // 3), warmup=0)
    yield changed("weight decay 0.1", weight_decay=0.1)
    yield replace(recipe, name="the best step", stop="best")
    yield linear_probe(replace(whole, lr=HEAD_LR))
    yield discriminative(whole)
    yield gradual_unfreezing(replace(whole, warmup=0), groups=min(4, groups))  # its stages are shorter than a warm-up may be
    held = discriminative(replace(whole, lr=min(whole.lr, 1e-3)))
    held_by = REGULARIZERS if deep(recipe.head) else (*REGULARIZERS, *BELOW, f"replay:{max(1, whole.batch_size // 8)}")
    for word in held_by:
        yield replace(held, name=f"{held.name}, {word}", regularizer=word)


def cure(pipeline: Pipeline, facts: Facts) -> Choice:
    arms = (replace(pipeline, recipe=beside(recipe, pipeline.recipe)) for recipe in _candidates(pipeline, len(facts.groups)))
    return Choice(candidates=tuple(dict.fromkeys(arms)), by="source-held-out", keeping="validation")


def induce(pipeline: Pipeline, _: Facts) -> Mapping[str, Pipeline]:
    whole = replace(moving(pipeline.recipe), order="shuffled")
    high = replace(whole, trainable="all", batchnorm="train", lr=max(HIGH, 3 * whole.lr), steps=2 * whole.steps)
    recipe = Recipe(name="high rate, all layers, many steps", phases=(replace(high, head_lr=None, layer_decay=1.0),))
    return {"high-rate": replace(pipeline, recipe=beside(recipe, pipeline.recipe))}


def picture(axes: Any, run: Run) -> None:
    """Target accuracy against source accuracy, one point an arm (mean over seeds)."""
    frame = run.to_frame()
    frame = frame[frame["plugin"] == plugin.id]
    for (arm, variant), rows in frame.groupby(["arm", "variant"], sort=False):
        target, source = (rows[rows["view"] == view]["accuracy"].mean() for view in ("test", "source"))
        if not isnan(source):  # scratch has no source skill to keep
            axes.plot([target], [source], marker="o", markersize=9, linestyle="none", label=variant or arm)
    before = frame[frame["view"] == "source-before"]["accuracy"].mean()
    axes.axhline(before, linestyle="--", linewidth=1, color="#7f7f7f", label="source before")
    axes.set(xlabel="target accuracy", ylabel="source accuracy, old head", xlim=(0, 1.02), ylim=(0, 1.02))
    axes.legend()


plugin = Plugin(
    id="catastrophic-forgetting",
    version=1,
    question="How much of the source skill does adaptation destroy?",
    page=__doc__,
    applies=applies,
    cure=cure,
    induce=induce,
    contrasts=(
        Contrast(
            name="harm",
            weights={("subject", "source-before"): 1.0, ("subject", "source"): -1.0},
            meaning="source before − after, with the pretrained head",
        ),
        Contrast(
            name="probe-forgetting",
            kind="info",
            weights={("subject", "source-probe-before"): 1.0, ("subject", "source-probe"): -1.0},
            meaning="source before − after, with a head fitted anew",
        ),
        Contrast(
            name="restored",
            kind="info",
            weights={("subject", "source-restored"): 1.0, ("subject", "source"): -1.0},
            meaning="what putting the old BatchNorm statistics back returns",
        ),
    ),
    remedy="adapt with the recipe that kept most of the source among those that keep the target's accuracy",
    picture=picture,
)
