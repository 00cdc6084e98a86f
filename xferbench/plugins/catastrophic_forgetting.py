"""A source skill that is lost while the target is learnt.

Symptom
    The adapted model does the new task and no longer the old one: with its old head back it confuses classes that it knew.

Cause
    Nothing in the target's loss holds on to the source. The higher the rate, the more layers and the more steps, the farther
    the weights go; moving BatchNorm statistics alone can be enough.

Remedy
    What keeps most of the source among the recipes that keep the target's accuracy (within the margin, on validation): a
    lower rate, fewer steps, the best step, gradual unfreezing, discriminative rates, more weight decay, a frozen backbone,
    L2-SP, interventions.EWC, rehearsal of source images (one beside every eight) or learning without forgetting.

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
from typing import TYPE_CHECKING, Any

from xferbench.plugin import (
    Pipeline,
    Plugin,
    Profile,
    Recipe,
    Run,
    Selection,
    harm,
    info,
    interventions,
    plotting,
    records,
    requires_source,
    strategies,
)
from xferbench.plugins.linear_probe import induce as permute_backbone

if TYPE_CHECKING:
    from collections.abc import Iterator

HIGH = 1e-2
REGULARIZERS = (interventions.L2SP(strength=1), interventions.EWC(strength=1000))  # strengths at which each was seen to work
BELOW = (interventions.LwF(strength=1),)  # likewise, where the source's head can stand below the new one


def _candidates(pipeline: Pipeline, groups: int) -> Iterator[Recipe]:
    recipe = pipeline.recipe
    whole = replace(strategies.finetune_phase(recipe), order="shuffled")

    def changed(name: str, **values: Any) -> Recipe:
        return Recipe(name=name, phases=(replace(whole, **values),))

    yield changed("a tenth of the rate", lr=whole.lr / 10)
    yield changed("a third of the rate", lr=whole.lr / 3)
    yield changed("a third of the steps", steps=max(1, whole.steps // 3), warmup=0)
    yield changed("weight decay 0.1", weight_decay=0.1)
    yield replace(recipe, name="the best step", stop="best")
    yield strategies.linear_probe(replace(whole, lr=strategies.HEAD_LR))
    yield strategies.discriminative(whole)
    yield strategies.gradual_unfreezing(
        replace(whole, warmup=0), groups=min(4, groups)
    )  # its stages are shorter than a warm-up may be
    held = strategies.discriminative(replace(whole, lr=min(whole.lr, 1e-3)))
    held_by = (
        REGULARIZERS
        if strategies.is_mlp_head(recipe.head)
        else (*REGULARIZERS, *BELOW, interventions.Replay(images=max(1, whole.batch_size // 8)))
    )
    for regularizer in held_by:
        yield replace(held, name=f"{held.name}, {regularizer}", regularizer=regularizer)


def cure(pipeline: Pipeline, facts: Profile) -> Selection:
    arms = (
        replace(pipeline, recipe=strategies.inherit_settings(recipe, pipeline.recipe))
        for recipe in _candidates(pipeline, len(facts.groups))
    )
    return Selection(candidates=tuple(dict.fromkeys(arms)), by="source-held-out", keeping="validation")


def induce(pipeline: Pipeline, _: Profile) -> dict[str, Pipeline]:
    usual = replace(
        strategies.finetune_phase(pipeline.recipe),
        trainable=interventions.ALL_LAYERS,
        order="shuffled",
        head_lr=None,
        layer_decay=1.0,
    )
    high = replace(usual, batchnorm="train", lr=max(HIGH, 3 * usual.lr), steps=2 * usual.steps)
    recipe = Recipe(name="high rate, all layers, many steps", phases=(high,))
    return {"high-rate": replace(pipeline, recipe=strategies.inherit_settings(recipe, pipeline.recipe))}


def picture(axes: Any, run: Run) -> None:
    """Target accuracy against source accuracy, a point for each arm, and a faint one a seed."""
    told = records.plugin_records(run, plugin.id)
    plotting.draw_points(axes, records.accuracies(told, "test", "source"))  # scratch has no source skill to keep
    before = records.mean_or_nan(
        [one for own in records.values_by_arm(told, records.accuracy, "source-before").values() for one in own]
    )
    axes.axhline(before, linestyle="--", linewidth=1, color=plotting.MUTED, label="source before")
    axes.set(xlabel="target accuracy", ylabel="source accuracy, old head", xlim=(0, 1.02), ylim=(0, 1.02))
    axes.legend()


def _of(more: str, less: str) -> tuple[tuple[str, str], tuple[str, str]]:
    return ("subject", more), ("subject", less)


plugin = Plugin(
    id="catastrophic-forgetting",
    version=1,
    question="How much of the source skill does adaptation destroy?",
    doc=__doc__,
    applies=requires_source,
    cure=cure,
    induce=induce,
    contrasts=(
        harm("harm", *_of("source-before", "source"), "source before − after, with the pretrained head"),
        info("probe-forgetting", *_of("source-probe-before", "source-probe"), "source before − after, with a head fitted anew"),
        info("restored", *_of("source-restored", "source"), "what putting the old BatchNorm statistics back returns"),
    ),
    remedy="adapt with the recipe that kept most of the source among those that keep the target's accuracy",
    plot=picture,
)


AUDIT_PAGE = """The source skill that a finished network has lost.

Symptom
    The network is good at the new task, and nobody looked at the old one.

Cause
    A high rate, all layers, many steps, nothing that holds on to the source; or BatchNorm statistics of the target alone.

Remedy
    Freeze more, take a lower rate, or add what holds on to the source (L2-SP, EWC, replay, LwF): `xferbench run` tries them.

How it is judged
    Harm is accuracy on the source's test set, with the pretrained head, before − after. The cure is the better one of the old
    BatchNorm statistics and the weights between before and after, and only feeds the remedy.

How it is induced
    ``permuted``: the values of each tensor below the head shuffled.

Measured beside it
    ``probe-forgetting``: the same with a head fitted anew on the source. ``restored``: what the old BatchNorm statistics give
    back.

References
    Kirkpatrick et al. 2017 (arXiv:1612.00796); Davari et al. 2022 (arXiv:2203.13381): probe forgetting is far milder.
"""


def audit_applies(pipeline: Pipeline, facts: Profile) -> str:
    if not (pipeline.finished and pipeline.finished.before):
        return "the weights of before are not given"
    return "" if facts.source else facts.source_error or "the suite has no [source] whose classes are known"


def audit_cure(pipeline: Pipeline, facts: Profile) -> Selection:
    edits = ["batchnorm:restored"] * facts.has_batchnorm + ["interpolated:0.75", "interpolated:0.5"]
    arms = (replace(pipeline, edits=(*pipeline.edits, edit)) for edit in edits)
    return Selection(candidates=tuple(arms), by="source-held-out", keeping="validation")


audit = Plugin(
    id="catastrophic-forgetting",
    version=1,
    question="How much of the source skill has the finished network lost?",
    doc=AUDIT_PAGE,
    applies=audit_applies,
    cure=audit_cure,
    induce=permute_backbone,
    contrasts=plugin.contrasts,
    remedy="freeze more of the backbone or hold on to the source: `xferbench run` with this [source] says which way keeps most",
)
