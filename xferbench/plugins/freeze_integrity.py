"""Tensors that were to be frozen and moved, or were to train and did not.

Symptom
    A "frozen" backbone gives other features after training than before; or fine-tuning does no better than a linear probe.

Cause
    ``module.requires_grad = False`` sets an attribute and freezes nothing; a name prefix that no name has, likewise. The
    optimizer was built before unfreezing, or still holds a frozen group. BatchNorm moves its statistics in train mode whatever
    ``requires_grad`` says. ``load_state_dict(strict=False)`` with other names loads nothing.

Remedy
    Ask ``requires_grad`` of every parameter, build the optimizer after (un)freezing, call ``.eval()`` on frozen BatchNorm after
    each ``model.train()``, and read what ``load_state_dict`` returns.

How it is judged
    An exact invariant: each tensor did what was believed of it (``trainable``, ``batchnorm`` of [recipe]; or ``--believed``).
    What was to train has moved where a gradient reaches it; what was to stay is the same, but for rounding to half precision.
    Layer groups uncorrelated with those of before were not loaded. Our own loop trains what the recipe says, so that it holds
    there by construction; it is a question to code of your own, and to finished networks.

How it is induced
    For a few steps what trains is not what is believed: ``optimizer-before-unfreezing`` (the head alone), ``frozen-group`` (one
    more layer group), ``requires-grad-on-module`` (everything), ``batchnorm-train``, ``decay`` (everything pulled to zero by a
    thousandth), ``not-loaded`` (random weights of the same mean and variance). To a finished network nothing is done.

Measured beside it
    ``frozen/T`` and ``trained/T``: the relative change of each tensor, by what was believed (``moved/T``: by nobody).

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

PULL = Phase(trainable=interventions.ALL_LAYERS, batchnorm="eval", lr=1e-7, weight_decay=1e3, schedule="constant", steps=10)
HELD = "what is frozen stays, what trains moves"
ENOUGH = 20  # steps of a phase: what moves, moves at once


def applies(pipeline: Pipeline, facts: Profile) -> str:
    if pipeline.finished:
        return "" if pipeline.finished.before else "the weights of before are not given (--before)"
    return requires_pretrained(pipeline, facts)


def trust(pipeline: Pipeline, _: Profile) -> str:
    unsaid = "what was to be trained was not said: --believed trainable=head,batchnorm=eval"
    return unsaid if pipeline.finished and pipeline.expected_training is None else ""


def induce(pipeline: Pipeline, facts: Profile) -> dict[str, Pipeline]:
    if pipeline.finished:
        return {}
    brief = tuple(replace(phase, steps=ENOUGH, warmup=0) for phase in pipeline.recipe.phases)
    recipe = pipeline.recipe if pipeline.training else replace(pipeline.recipe, phases=brief, stop="last")
    trained = {phase.trainable for phase in recipe.phases}
    kinds = {type(trainable) for trainable in trained}
    most = max((trainable.groups for trainable in trained if isinstance(trainable, interventions.TopGroups)), default=0)
    frozen = interventions.AllLayers not in kinds and most < len(facts.groups)

    def each(**changes: Any) -> dict[str, Any]:
        return {"phases": tuple(replace(phase, **changes) for phase in recipe.phases)}

    found: dict[str, dict[str, Any]] = {"not-loaded": {"init": "matched", "regularizer": None}}
    if interventions.Adapters not in kinds:  # of a network that has none, nothing can be said of adapters
        found |= (
            {"optimizer-before-unfreezing": each(trainable=interventions.HEAD_ONLY)}
            if kinds != {interventions.HeadOnly}
            else {}
        )
        found |= {"requires-grad-on-module": each(trainable=interventions.ALL_LAYERS)} if frozen else {}
    if frozen and kinds <= {interventions.HeadOnly, interventions.TopGroups}:
        found["frozen-group"] = each(trainable=interventions.TopGroups(groups=most + 1))
    if frozen:
        found["decay"] = {"phases": (*recipe.phases, replace(PULL, batch_size=recipe.phases[-1].batch_size))}
    if facts.has_batchnorm and all(phase.batchnorm == "eval" for phase in recipe.phases):
        found["batchnorm-train"] = each(batchnorm="train")
    return {name: replace(pipeline, recipe=replace(recipe, **made), expected_training=recipe) for name, made in found.items()}


def integrity(seen: MeasureContext) -> dict[str, float]:
    """How many tensors did otherwise than was believed, with their names, the likeliest cause, and how far each went."""
    from xferbench.lab.evaluation import freeze_check

    found = freeze_check.check_freeze(seen)
    return {"integrity": found.pop("violations")} | found


def told(_contrast: str, answers: records.RecordsByTerm, subject: Pipeline, _: Pipeline) -> str:
    """Which tensors, the likeliest cause, and what else came to notice; of the worst seed."""
    measured = [one.scalars for (arm, view, _), one in answers.items() if (arm, view) == ("subject", "integrity")]
    found = max(measured, key=lambda scalars: scalars.get("integrity", 0.0), default={})
    if not found.get("integrity") and not subject.finished and subject.training is None:
        return "the lab's own loop trains what the recipe says"
    return freeze_report.format_freeze_check(found)


def picture(axes: Any, run: Run) -> None:
    """The subject's relative change by layer, in the colour of what was believed of it; what did not move lies at the foot."""
    told = records.values_by_arm(records.plugin_records(run, plugin.id), lambda one: one.scalars, "integrity")
    far = freeze_report.change_by_layer(records.mean_scalars(told.get("subject", [])))
    foot = min((value for one in far.values() for value in one.values() if value), default=1.0) / 10
    for side, word in freeze_report.EXPECTATION_LABELS.items():
        places = {at: max(one[side], foot) for at, one in enumerate(far.values()) if side in one}
        if places:
            axes.plot(list(places), list(places.values()), linestyle="", marker="o", label=word)
    axes.set(xlabel="layer, from the input up", ylabel="relative change", yscale="log")
    every = max(1, len(far) // 12)
    axes.set_xticks(range(0, len(far), every), list(far)[::every], rotation=40, ha="right", fontsize=7)
    axes.axhline(foot, linewidth=0.5, color=plotting.MUTED, label="did not move")
    axes.legend()


plugin = Plugin(
    id="freeze-integrity",
    version=1,
    question="Did what was frozen stay, and what was to train move?",
    doc=__doc__,
    applies=applies,
    cure=leave_unchanged,
    induce=induce,
    contrasts=(invariant("harm", HELD, measure="integrity"),),
    measures={"integrity": "xferbench.plugins.freeze_integrity:integrity@1"},
    trust=trust,
    explain=told,
    remedy="freeze each parameter itself, then build the optimizer; keep frozen BatchNorm in eval mode; load with strict=True",
    plot=picture,
)

audit = plugin  # what a finished network's weights show needs no other arms
