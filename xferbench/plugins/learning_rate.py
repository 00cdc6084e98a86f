"""A learning rate that is too high, or too low, for this backbone and this target.

Symptom
    Too high: the loss jumps or is NaN, the result depends on the seed, fine-tuning ends below a linear probe. Too low: the
    curve still rises at the end of training.

Cause
    A rate copied from pretraining, or from another optimizer: for SGD the relevant quantity is rate / (1 − momentum), and Adam
    has a different scale. Small targets leave few steps to recover from a wrong rate.

Remedy
    The rate that validation selects from seven, half a decade apart around the recipe's own, each with all rates of the recipe
    scaled together; or the recipe's own rate with a warm-up over a tenth of the steps.

How it is judged
    Harm is metric(selected rate) − metric(the recipe's rate). Every candidate is trained separately, with its own seeds, so the
    search affects no training that is evaluated. A selection at the edge of the grid is reported.

How it is induced
    ``x30`` and ``x1-30``: thirty times the selected rate, and a thirtieth of it.

Also measured
    How often subject and induced arms diverged (``diverged``). The plot is the failure map: accuracy by rate and step.

References
    Smith 2017, Cyclical learning rates (arXiv:1506.01186); Li et al. 2020, Rethinking the hyperparameters for fine-tuning
    (arXiv:2002.11770); Howard & Ruder 2018, ULMFiT (arXiv:1801.06146): discriminative rates.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from xferbench.plugin import Pipeline, Plugin, Profile, Run, Selection, map_phases, plotting, records, requires_pretrained

FACTORS = tuple(10.0 ** (half / 2) for half in (-3, -2, -1, 1, 2, 3))  # of the recipe's rate
INDUCED_FACTOR = 30.0


def _scale_lr(pipeline: Pipeline, factor: float) -> Pipeline:
    """Return the pipeline with every rate of its recipe times a factor."""
    scaled = map_phases(pipeline, lambda phase: replace(phase, lr=phase.lr * factor), f"rate × {factor:.3g}")
    return map_phases(scaled, lambda phase: replace(phase, head_lr=phase.head_lr and phase.head_lr * factor))


def cure(pipeline: Pipeline, _: Profile) -> Selection:
    warm = map_phases(pipeline, lambda phase: replace(phase, warmup=max(phase.warmup, phase.steps // 10)), "warm-up")
    candidates = (pipeline, *(_scale_lr(pipeline, factor) for factor in FACTORS), warm)
    return Selection(candidates=tuple(dict.fromkeys(candidates)))


def induce(pipeline: Pipeline, _: Profile) -> dict[str, Pipeline]:
    return {"x30": _scale_lr(pipeline, INDUCED_FACTOR), "x1-30": _scale_lr(pipeline, 1 / INDUCED_FACTOR)}


def diverged(records_by_term: records.RecordsByTerm, seeds: records.Seeds) -> dict[str, float]:
    """Return the share of seeds at which the training of the subject, and of each induced arm, was not finite."""
    by_arm = records.values_by_arm(
        records_by_term, lambda record: record.scalars.get("diverged", 0.0) > 0, exclude={"cured", "scratch"}, seeds=seeds
    )
    return {f"{arm}/diverged": records.mean_or_nan(flags) for arm, flags in by_arm.items()}


def plot(axes: Any, run: Run) -> None:
    """Draw the failure map: validation accuracy by rate and step.

    A ring marks the recipe's own rate, a cross the selected one.
    """
    candidates = run.arms[plugin.id]["cured"]["weighed"]
    scaled = [row for row in candidates if row["curve"] and "warm-up:" not in row["recipe"]]
    rows = sorted(scaled, key=lambda row: row["rate"])
    steps = [f"{step}" for step, _ in rows[0]["curve"]]
    scores = [[score for _, score in row["curve"]] for row in rows]
    plotting.draw_mesh(axes, scores, [f"{row['rate']:.2g}" for row in rows], steps, "validation accuracy")
    for row, marker in ((scaled[0], "o"), *((row, "x") for row in rows if row["chosen"])):
        plotting.draw_mark(axes, len(steps) - 0.5, rows.index(row) + 0.5, marker)
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
    plot=plot,
)
