"""A source skill that is lost while the network learns the target.

Symptom
    The adapted model solves the new task and no longer the old one: with its old head it confuses classes that it knew.

Cause
    Nothing in the target's loss preserves the source. A higher rate, more trained layers and more steps move the weights
    farther; the update of BatchNorm statistics alone can be enough.

Remedy
    The recipe that preserves most of the source among those that keep the target's accuracy (within the margin, on
    validation): a lower rate, fewer steps, the best step, gradual unfreezing, discriminative rates, more weight decay, a
    frozen backbone, L2-SP, EWC, rehearsal of source examples (one for every eight) or learning without forgetting.

How it is judged
    Only if the suite says ``[source] keep = true``: nearly every fine-tuning forgets, which harms only those who need the
    source. Otherwise the same number is in an INFO finding, and nothing is cured or induced. Harm is metric(before) −
    metric(after) on the source's test examples, both with the original pretrained head and with the preprocessing recorded for
    the weights; "before" is the network at step 0. The recipe is selected by its accuracy on source examples that no training
    uses.

How it is induced
    ``high-rate``: all layers are trained at a rate of 0.01, or three times the recipe's rate if that is higher, for twice as
    many steps.

Also measured
    ``probe-forgetting``: the same with a linear head that is fitted again on source examples, before and after. It shows what
    is lost for good, not only what the old head cannot reach (usually far milder: Davari et al. 2022). ``restored``: what
    restoring the old BatchNorm statistics returns.

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

    from xferbench.core.suite import Suite

HIGH_LR = 1e-2
# At these strengths each regularizer worked in our tests.
REGULARIZERS = (interventions.L2SP(strength=1), interventions.EWC(strength=1000))
SOURCE_HEAD_REGULARIZERS = (interventions.LwF(strength=1),)  # these need a head of one layer


def _candidates(pipeline: Pipeline, groups: int) -> Iterator[Recipe]:
    recipe = pipeline.recipe
    phase = replace(strategies.finetune_phase(recipe), order="shuffled")

    def changed(name: str, **values: Any) -> Recipe:
        return Recipe(name=name, phases=(replace(phase, **values),))

    yield changed("a tenth of the rate", lr=phase.lr / 10)
    yield changed("a third of the rate", lr=phase.lr / 3)
    yield changed("a third of the steps", steps=max(1, phase.steps // 3), warmup=0)
    yield changed("weight decay 0.1", weight_decay=0.1)
    yield replace(recipe, name="the best step", stop="best")
    yield strategies.linear_probe(replace(phase, lr=strategies.HEAD_LR))
    yield strategies.discriminative(phase)
    # Its stages are short, and a warm-up must be shorter than its phase.
    yield strategies.gradual_unfreezing(replace(phase, warmup=0), groups=min(4, groups))
    base = strategies.discriminative(replace(phase, lr=min(phase.lr, 1e-3)))
    regularizers: tuple[interventions.Regularizer, ...] = REGULARIZERS
    if not strategies.is_mlp_head(recipe.head):
        replay = interventions.Replay(images=max(1, phase.batch_size // 8))
        regularizers = (*REGULARIZERS, *SOURCE_HEAD_REGULARIZERS, replay)
    for regularizer in regularizers:
        yield replace(base, name=f"{base.name}, {regularizer}", regularizer=regularizer)


def judges(suite: Suite) -> bool:
    """Return whether the suite says that the network must keep its skill on the source."""
    return suite.rules.keep_source


def cure(pipeline: Pipeline, profile: Profile) -> Selection:
    arms = (
        replace(pipeline, recipe=strategies.inherit_settings(recipe, pipeline.recipe))
        for recipe in _candidates(pipeline, len(profile.model.groups))
    )
    return Selection(candidates=tuple(dict.fromkeys(arms)), by="source-held-out", keeping="validation")


def induce(pipeline: Pipeline, _: Profile) -> dict[str, Pipeline]:
    phase = replace(
        strategies.finetune_phase(pipeline.recipe),
        trainable=interventions.ALL_LAYERS,
        order="shuffled",
        head_lr=None,
        layer_decay=1.0,
    )
    high = replace(phase, batchnorm=interventions.BATCHNORM_TRAIN, lr=max(HIGH_LR, 3 * phase.lr), steps=2 * phase.steps)
    recipe = Recipe(name="high rate, all layers, many steps", phases=(high,))
    return {"high-rate": replace(pipeline, recipe=strategies.inherit_settings(recipe, pipeline.recipe))}


def plot(axes: Any, run: Run) -> None:
    """Draw target accuracy against source accuracy: a point for each arm, and a faint one for each seed."""
    plugin_records = records.plugin_records(run, plugin.id)
    plotting.draw_points(axes, records.accuracies(plugin_records, "test", "source"))  # scratch has no source skill to keep
    before = records.values_by_arm(plugin_records, records.accuracy, "source-before")
    before_mean = records.mean_or_nan([accuracy for accuracies in before.values() for accuracy in accuracies])
    axes.axhline(before_mean, linestyle="--", linewidth=1, color=plotting.MUTED, label="source before")
    axes.set(xlabel="target accuracy", ylabel="source accuracy, old head", xlim=(0, 1.02), ylim=(0, 1.02))
    axes.legend()


def _subject_views(view: str, minus: str) -> tuple[tuple[str, str], tuple[str, str]]:
    return ("subject", view), ("subject", minus)


FORGETTING = harm("harm", *_subject_views("source-before", "source"), "source before − after, with the pretrained head")
MEASUREMENTS = (
    info(
        "probe-forgetting",
        *_subject_views("source-probe-before", "source-probe"),
        "source before − after, with a head fitted anew",
    ),
    info("restored", *_subject_views("source-restored", "source"), "what putting the old BatchNorm statistics back returns"),
)

plugin = Plugin(
    id="catastrophic-forgetting",
    version=1,
    question="How much of the source skill does adaptation destroy?",
    doc=__doc__,
    applies=requires_source,
    cure=cure,
    induce=induce,
    contrasts=(FORGETTING, *MEASUREMENTS),
    judges=judges,
    remedy="adapt with the recipe that kept most of the source among those that keep the target's accuracy",
    plot=plot,
)


AUDIT_DOC = """The source skill that a finished network has lost.

Symptom
    The network is good at the new task, and its accuracy on the old one was not measured.

Cause
    A high rate, all layers, many steps, nothing that preserves the source; or BatchNorm statistics of the target alone.

Remedy
    Freeze more, lower the rate, or preserve the source (L2-SP, EWC, replay, LwF): `xferbench run` tries these.

How it is judged
    Only with ``--keep-source`` (``[source] keep = true``), because nearly every fine-tuning forgets; else it is measured.
    Harm is accuracy on the source's test set, with the pretrained head, before − after. The cure is the best of the old
    BatchNorm statistics and the weights between before and after. It only informs the remedy.

How it is induced
    ``permuted``: the values of each tensor below the head are shuffled.

Also measured
    ``probe-forgetting``: with a head fitted again on the source. ``restored``: what the old BatchNorm statistics return.

References
    Kirkpatrick et al. 2017 (arXiv:1612.00796); Davari et al. 2022 (arXiv:2203.13381): probe forgetting is far milder.
"""


def audit_applies(pipeline: Pipeline, profile: Profile) -> str:
    if not (pipeline.checkpoint and pipeline.checkpoint.before):
        return "the weights from before training are not given"
    return "" if profile.data.source else profile.data.source_error or "the suite has no [source] whose classes are known"


def audit_cure(pipeline: Pipeline, profile: Profile) -> Selection:
    restore = [interventions.RestoreBatchNorm()] * profile.has_batchnorm
    interpolate = [interventions.InterpolateCheckpoints(share=share) for share in (0.75, 0.5)]
    arms = (replace(pipeline, edits=(*pipeline.edits, edit)) for edit in (*restore, *interpolate))
    return Selection(candidates=tuple(arms), by="source-held-out", keeping="validation")


audit = Plugin(
    id="catastrophic-forgetting",
    version=1,
    question="How much of the source skill has the finished network lost?",
    doc=AUDIT_DOC,
    applies=audit_applies,
    cure=audit_cure,
    induce=permute_backbone,
    contrasts=(FORGETTING, *MEASUREMENTS),
    judges=judges,
    remedy="freeze more of the backbone or preserve the source: `xferbench run` with this [source] shows what keeps most",
)
