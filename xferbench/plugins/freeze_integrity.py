"""Frozen tensors that moved, or trainable tensors that did not.

Symptom
    A "frozen" backbone gives different features after training than before; or fine-tuning does no better than a linear
    probe.

Cause
    ``module.requires_grad = False`` sets an attribute and freezes nothing; a name prefix that matches no name freezes nothing
    either. The optimizer was built before unfreezing, or still holds a frozen group. BatchNorm updates its statistics in train
    mode regardless of ``requires_grad``. ``load_state_dict(strict=False)`` with other names loads nothing.

Remedy
    Check ``requires_grad`` of every parameter, build the optimizer after (un)freezing, call ``.eval()`` on frozen BatchNorm
    after each ``model.train()``, and read what ``load_state_dict`` returns.

How it is judged
    An exact invariant: each tensor did what the recipe expects (``trainable``, ``batchnorm`` of [recipe]; or ``--believed``).
    Trainable tensors moved if a gradient reaches them; frozen tensors are the same, except for rounding to half precision.
    Layer groups that do not correlate with those from before were not loaded. The training loop of xferbench follows the
    recipe, so the invariant holds there by construction; the check is for your own training code and for finished networks.

How it is induced
    For a few steps the training differs from the expected one: ``optimizer-before-unfreezing`` (the head alone),
    ``frozen-group`` (one more layer group), ``requires-grad-on-module`` (everything), ``batchnorm-train``, ``decay``
    (everything shrinks by a thousandth), ``not-loaded`` (random weights of the same mean and variance). A finished network has
    no induced arms.

Also measured
    ``frozen/T`` and ``trained/T``: the relative change of each tensor, by its expectation (``moved/T``: without one).

References
    Lightning issue 15062, detectron2 issue 2893, sparseml issue 965, simple-HRNet issue 79; arXiv:1502.03167 (BatchNorm).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from xferbench.plugin import (
    MeasureContext,
    Phase,
    Pipeline,
    Plugin,
    Profile,
    Run,
    interventions,
    invariant,
    leave_unchanged,
    plotting,
    records,
    requires_pretrained,
)
from xferbench.plugins import freeze_report

DECAY_PHASE = Phase(
    trainable=interventions.ALL_LAYERS,
    batchnorm=interventions.BATCHNORM_EVAL,
    lr=1e-7,
    weight_decay=1e3,
    schedule="constant",
    steps=10,
)
INVARIANT = "frozen tensors stay, trainable tensors move"
INDUCED_STEPS = 20  # of each phase: a tensor that moves, moves at once


def applies(pipeline: Pipeline, profile: Profile) -> str:
    if pipeline.checkpoint:
        return "" if pipeline.checkpoint.before else "the weights from before training are not given (--before)"
    return requires_pretrained(pipeline, profile)


def trust(pipeline: Pipeline, _: Profile) -> str:
    missing = "the expected training is not given: --believed trainable=head,batchnorm=eval"
    return missing if pipeline.checkpoint and pipeline.expected_training is None else ""


def induce(pipeline: Pipeline, profile: Profile) -> dict[str, Pipeline]:
    if pipeline.checkpoint:
        return {}
    brief = tuple(replace(phase, steps=INDUCED_STEPS, warmup=0) for phase in pipeline.recipe.phases)
    recipe = pipeline.recipe if pipeline.training else replace(pipeline.recipe, phases=brief, stop="last")
    trainables = {phase.trainable for phase in recipe.phases}
    kinds = {type(trainable) for trainable in trainables}
    top = max((trainable.groups for trainable in trainables if isinstance(trainable, interventions.TopGroups)), default=0)
    has_frozen = interventions.AllLayers not in kinds and top < len(profile.model.groups)

    def change_phases(**changes: Any) -> dict[str, Any]:
        return {"phases": tuple(replace(phase, **changes) for phase in recipe.phases)}

    changes: dict[str, dict[str, Any]] = {"not-loaded": {"init": interventions.MatchedMoments(), "regularizer": None}}
    if not kinds.intersection(interventions.ADDED_KINDS):  # a network without added parameters has nothing to compare with them
        if kinds != {interventions.HeadOnly}:
            changes["optimizer-before-unfreezing"] = change_phases(trainable=interventions.HEAD_ONLY)
        if has_frozen:
            changes["requires-grad-on-module"] = change_phases(trainable=interventions.ALL_LAYERS)
    if has_frozen and kinds <= {interventions.HeadOnly, interventions.TopGroups}:
        changes["frozen-group"] = change_phases(trainable=interventions.TopGroups(groups=top + 1))
    if has_frozen:
        changes["decay"] = {"phases": (*recipe.phases, replace(DECAY_PHASE, batch_size=recipe.phases[-1].batch_size))}
    if profile.has_batchnorm and all(phase.batchnorm == interventions.BATCHNORM_EVAL for phase in recipe.phases):
        changes["batchnorm-train"] = change_phases(batchnorm=interventions.BATCHNORM_TRAIN)
    actual = {name: replace(recipe, **change) for name, change in changes.items()}
    return {name: replace(pipeline, recipe=trained, expected_training=recipe) for name, trained in actual.items()}


def integrity(context: MeasureContext) -> dict[str, float]:
    """Return the number of tensors that violate the expectation, with their names, likely causes and relative changes."""
    from xferbench.lab.evaluation import freeze_check

    scalars = freeze_check.check_freeze(context)
    return {"integrity": scalars.pop("violations")} | scalars


def explain(_contrast: str, records_by_term: records.RecordsByTerm, subject: Pipeline, _: Pipeline) -> str:
    """Return the tensors, the likely causes and other anomalies of the worst seed."""
    by_seed = [record.scalars for (arm, view, _), record in records_by_term.items() if (arm, view) == ("subject", "integrity")]
    worst = max(by_seed, key=lambda scalars: scalars.get("integrity", 0.0), default={})
    if not worst.get("integrity") and not subject.checkpoint and subject.training is None:
        return "the training loop of xferbench follows the recipe by construction"
    return freeze_report.format_freeze_check(worst)


def plot(axes: Any, run: Run) -> None:
    """Draw the subject's relative change by layer, colored by expectation; layers that did not move are at the bottom."""
    by_arm = records.values_by_arm(records.plugin_records(run, plugin.id), lambda record: record.scalars, "integrity")
    by_layer = freeze_report.change_by_layer(records.mean_scalars(by_arm.get("subject", [])))
    bottom = min((change for changes in by_layer.values() for change in changes.values() if change), default=1.0) / 10
    for side, label in freeze_report.EXPECTATION_LABELS.items():
        points = {x: max(changes[side], bottom) for x, changes in enumerate(by_layer.values()) if side in changes}
        if points:
            axes.plot(list(points), list(points.values()), linestyle="", marker="o", label=label)
    axes.set(xlabel="layer, from the input up", ylabel="relative change", yscale="log")
    stride = max(1, len(by_layer) // 12)
    axes.set_xticks(range(0, len(by_layer), stride), list(by_layer)[::stride], rotation=40, ha="right", fontsize=7)
    axes.axhline(bottom, linewidth=0.5, color=plotting.MUTED, label="did not move")
    axes.legend()


plugin = Plugin(
    id="freeze-integrity",
    version=1,
    question="Did frozen tensors stay, and did trainable ones move?",
    doc=__doc__,
    applies=applies,
    cure=leave_unchanged,
    induce=induce,
    contrasts=(invariant("harm", INVARIANT, measure="integrity"),),
    measures={"integrity": "xferbench.plugins.freeze_integrity:integrity@2"},
    trust=trust,
    explain=explain,
    remedy="freeze each parameter itself, then build the optimizer; keep frozen BatchNorm in eval mode; load with strict=True",
    plot=plot,
)

audit = plugin  # the check of a finished network needs no other arms
