"""How many more examples training from scratch would need.

Symptom
    None: this is a measurement. A transferred model looks like a success, however little it saves.

Cause
    The network need not learn from the target's examples what the source taught. The saving is large if these examples are few,
    and shrinks as they grow.

Remedy
    If the multiplier is near 1, transfer saves nothing. If it is high, label no more examples than the curve asks for.

How it is measured
    M(n) is the number of examples that scratch needs for the accuracy of the subject's recipe at n examples, over n, at six
    sizes up to the training set, evenly spaced in log n. Within a seed the sets are nested and keep the shares of the classes.
    Scratch is tuned at each size. Its mean error is fitted by a · n^−b + c and read off between the smallest size and twice the
    largest, never beyond: outside the range the report says "more than" or "at most". If the fit is flat, or off by over 3
    points, as near chance, the sizes are interpolated and read off up to the largest. Intervals (2.5 to 97.5 %) are those of
    Student's t over seeds; in simulations, 85 % or more of them hold. ``gain`` is subject − scratch in accuracy on them all.

References
    Howard & Ruder 2018, ULMFiT (arXiv:1801.06146): 10–20 times the data on text; Hestness et al. 2017 (arXiv:1712.00409):
    power laws of learning curves; Brigato & Iocchi 2020 (arXiv:2003.12843): tuned baselines for small data.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from xferbench.analysis import scaling_law
from xferbench.plugin import (
    Arm,
    Pipeline,
    Plugin,
    Profile,
    Run,
    info,
    leave_unchanged,
    plotting,
    records,
    replace_data,
    requires_pretrained,
    strategies,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

SIZE_COUNT = 6
SIZE_SPAN = 32  # the largest size over the smallest
MIN_IMAGES_PER_CLASS = 2


def sizes(pipeline: Pipeline, profile: Profile) -> list[int]:
    """Return six sizes up to the training set, from a thirty-second of it, with at least two examples per class."""
    largest = min(
        pipeline.data.train_size or profile.data.train, profile.data.train
    )  # fewer than requested if some images are left out
    smallest = max(MIN_IMAGES_PER_CLASS * len(profile.data.classes), largest / SIZE_SPAN)
    return [round(smallest * (largest / smallest) ** (rank / (SIZE_COUNT - 1))) for rank in range(SIZE_COUNT)]


def applies(pipeline: Pipeline, profile: Profile) -> str:
    if reason := requires_pretrained(pipeline, profile):
        return reason
    if profile.data.test_groups is not None:
        return "images in groups cannot be split into sets of any size"
    enough = sizes(pipeline, profile)[-1] >= 8 * len(profile.data.classes)
    return "" if enough else "fewer than eight training images per class give no curve"


def extra_arms(pipeline: Pipeline, profile: Profile) -> Mapping[str, Arm]:
    *smaller, largest = sizes(pipeline, profile)
    arms = {size: replace_data(pipeline, train_size=size) for size in smaller} | {largest: pipeline}
    grid = pipeline.baseline  # at every size only the rates are searched, with the last of the other settings
    axes = {name: getattr(grid, name)[-1:] for name in ("weight_decay", "label_smoothing", "augment")}
    grid = replace(grid, **axes, halvings=0)
    scratch_arms = {f"scratch-{size}": strategies.scratch_baseline(arm, grid) for size, arm in arms.items()}
    return {f"transfer-{size}": arm for size, arm in arms.items()} | scratch_arms


def curves(records_by_term: records.RecordsByTerm) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return sizes [K], and errors [S, K] of subject and scratch at each seed that has both at every size."""
    terms = [term for term in records_by_term if term[0].startswith("beside:")]
    error_of = {(arm, seed): 1 - records.accuracy(records_by_term[arm, view, seed]) for arm, view, seed in terms}
    n, seeds = sorted({int(arm.rpartition("-")[2]) for arm, _ in error_of}), sorted({seed for _, seed in error_of})
    errors = np.full((2, len(seeds), len(n)), np.nan)  # by seed, because arms may crash at different seeds
    for (arm, seed), error in error_of.items():
        errors[int(arm.startswith("beside:scratch")), seeds.index(seed), n.index(int(arm.rpartition("-")[2]))] = error
    subject, baseline = errors[:, np.isfinite(errors).all((0, 2))]
    return np.array(n), subject, baseline


def metrics_by_size(records_by_term: records.RecordsByTerm, _: records.Seeds) -> dict[str, float]:
    """Return the mean errors of both by size, and M with its bounds."""
    n, subject, baseline = curves(records_by_term)
    if not len(subject):
        return {}
    multipliers = zip(("M", "M, low,", "M, high,"), scaling_law.estimate_multipliers(n, subject, baseline), strict=True)
    errors = zip(("error", "scratch error"), (subject.mean(0), baseline.mean(0)), strict=True)
    rows = (*multipliers, *errors)
    return {f"{name} at n = {size}": float(value) for name, row in rows for size, value in zip(n, row, strict=True)}


def explain(_: str, records_by_term: records.RecordsByTerm, _subject: Pipeline, _cured: Pipeline) -> str:
    """Return M at each size, with its interval."""
    n, subject, baseline = curves(records_by_term)
    if not len(subject):
        return ""
    limit = scaling_law.extrapolation_limit(n, baseline.mean(0))
    estimates = scaling_law.estimate_multipliers(n, subject, baseline)
    texts = [scaling_law.format_multipliers(n, row, limit) for row in estimates]
    by_size = (
        f"{value} at n = {size}" if len(subject) == 1 or value == low == high else f"{value} [{low}, {high}] at n = {size}"
        for size, value, low, high in zip(n, *texts, strict=True)
    )
    how = "" if limit > 1 else " (its curve is flat or no power law; values are interpolated between its points)"
    return f"scratch needs this multiple of the images{how}: {', '.join(by_size)}"


def plot(axes: Any, run: Run) -> None:
    """Draw test error against n by seed, the fitted curve of scratch, and M(n) below the points of the subject."""
    n, subject, baseline = curves(records.plugin_records(run, plugin.id))
    if not len(subject):
        axes.set(xlabel="no seed has both curves complete")
        return
    limit = scaling_law.extrapolation_limit(n, baseline.mean(0))
    errors = {"subject": subject, "scratch": baseline}
    points = {arm: [list(zip(n, row, strict=True)) for row in rows] for arm, rows in errors.items()}
    plotting.draw_lines(axes, points, linestyle="none", marker="o")
    if limit > 1:
        a, b, c = scaling_law.fit_power_law(n / n[-1], baseline.mean(0))
        x = np.geomspace(n[0], limit * n[-1])
        axes.plot(x, a * (x / n[-1]) ** -b + c, color=plotting.MUTED, linestyle="--", label="scratch, fitted")
    multipliers = scaling_law.data_multipliers(n, subject.mean(0), baseline.mean(0), limit)
    for size, error, text in zip(n, subject.mean(0), scaling_law.format_multipliers(n, multipliers, limit), strict=True):
        axes.annotate(f"× {text}", (size, error), (0, -12), textcoords="offset points", ha="center", fontsize=7)
    axes.set(xlabel="training images n", ylabel="test error", ylim=(0, None), xscale="log", xticks=n, xticklabels=n)
    axes.minorticks_off()
    axes.legend()


plugin = Plugin(
    id="data-efficiency",
    version=1,
    question="How many times as many examples would training from scratch need?",
    doc=__doc__,
    applies=applies,
    cure=leave_unchanged,
    induce=lambda *_: {},
    extra_arms=extra_arms,
    contrasts=(info("gain", ("subject", "test"), ("scratch", "test"), "subject − scratch in accuracy", "accuracy"),),
    derived_metrics=metrics_by_size,
    explain=explain,
    remedy="label more examples if the curve still falls; if the multiplier is near 1, training from scratch does as well",
    plot=plot,
)
