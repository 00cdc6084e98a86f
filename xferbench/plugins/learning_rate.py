"""A learning rate that is too high, or too low, for this backbone and this target.

Symptom
    Too high: the loss jumps or is NaN, the answer depends on the seed, fine-tuning ends below a linear probe. Too low: the
    curve still rises where training ends.

Cause
    A rate taken over from pretraining, or from another optimizer: what matters for SGD is rate / (1 − momentum), and for Adam
    another scale altogether. Small targets leave few steps in which a wrong rate could be made good.

Remedy
    The rate that validation chooses of seven, half a decade apart around the recipe's own, each with all its rates scaled
    together; or the recipe's own rate with a warm-up over a tenth of the steps.

How it is judged
    Harm is metric(chosen rate) − metric(the recipe's rate). Every candidate is a training of its own, with seeds of its own,
    so no state of the judged fits is touched by the search. A choice at the edge of the grid is reported.

How it is induced
    ``x30`` and ``x1-30``: thirty times the chosen rate, and a thirtieth of it.

Measured beside it
    How often subject and induced arms diverged (``diverged``). The picture is the failure map: accuracy by rate and step.

References
    Smith 2017, Cyclical learning rates (arXiv:1506.01186); Li et al. 2020, Rethinking the hyperparameters for fine-tuning
    (arXiv:2002.11770); Howard & Ruder 2018, ULMFiT (arXiv:1801.06146): discriminative rates.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from xferbench.plugin import Pipeline, Plugin, Profile, Run, Selection, map_phases, plotting, records, requires_pretrained

FACTORS = tuple(10.0 ** (half / 2) for half in (-3, -2, -1, 1, 2, 3))  # beside the recipe's own
FAR = 30.0


def _scaled(pipeline: Pipeline, factor: float) -> Pipeline:
    """Every rate of a recipe times a factor."""
    rates = map_phases(pipeline, lambda phase: replace(phase, lr=phase.lr * factor), f"rate × {factor:.3g}")
    return map_phases(rates, lambda phase: replace(phase, head_lr=phase.head_lr and phase.head_lr * factor))


def cure(pipeline: Pipeline, _: Profile) -> Selection:
    warm = map_phases(pipeline, lambda phase: replace(phase, warmup=max(phase.warmup, phase.steps // 10)), "warm-up")
    return Selection(candidates=tuple(dict.fromkeys((pipeline, *(_scaled(pipeline, factor) for factor in FACTORS), warm))))


def induce(pipeline: Pipeline, _: Profile) -> dict[str, Pipeline]:
    return {"x30": _scaled(pipeline, FAR), "x1-30": _scaled(pipeline, 1 / FAR)}


def diverged(answers: records.RecordsByTerm, seeds: records.Seeds) -> dict[str, float]:
    """Share of the seeds at which the subject's training, and each induced one, was not finite."""
    told = records.values_by_arm(
        answers, lambda one: one.scalars.get("diverged", 0.0) > 0, but={"cured", "scratch"}, seeds=seeds
    )
    return {f"{arm}/diverged": records.mean_or_nan(own) for arm, own in told.items()}


def picture(axes: Any, run: Run) -> None:
    """The failure map: validation accuracy by rate and step; a ring is the recipe's own rate, a cross the chosen one."""
    weighed = [one for one in run.arms[plugin.id]["cured"]["weighed"] if one["curve"] and "warm-up:" not in one["recipe"]]
    rows = sorted(weighed, key=lambda one: one["rate"])
    steps = [f"{step}" for step, _ in rows[0]["curve"]]
    scores = [[score for _, score in one["curve"]] for one in rows]
    plotting.draw_mesh(axes, scores, [f"{one['rate']:.2g}" for one in rows], steps, "validation accuracy")
    for one, marker in ((weighed[0], "o"), *((one, "x") for one in rows if one["chosen"])):
        plotting.draw_mark(axes, len(steps) - 0.5, rows.index(one) + 0.5, marker)
    axes.set(xlabel="training step", ylabel="rate of the last phase")


plugin = Plugin(
    id="learning-rate",
    version=1,
    question="Is the learning rate right for this backbone and this target?",
    doc=__doc__,
    applies=requires_pretrained,
    cure=cure,
    induce=induce,
    derived_metrics=diverged,
    remedy="train at the rate that validation chose",
    plot=picture,
)
