"""How many more images training from scratch would need.

Symptom
    None: this is a measurement. A transferred model looks like a result, whatever it saves.

Cause
    What the source taught need not be learnt from the target's images: much where they are few, less as they grow.

Remedy
    Where the multiplier is near 1, transfer saves nothing; where it is high, label no more than the curve asks for.

How it is measured
    M(n): the images that scratch needs for the accuracy that the subject's recipe has at n, over n, at six sizes up to the
    training set, evenly spaced in log n; of one seed the smaller sets lie within the larger and have the classes' shares.
    Scratch is tuned at each size. Its mean error is fitted by a · n^−b + c and read off between the least size and twice the
    largest, never beyond: what lies there is "more than" so much, or "at most". Where it is flat, or off by over 3 points, as
    near chance, the sizes are joined instead, and read off up to the largest. Intervals (5 to 95 %) are a bootstrap of whole
    curves by seed. All is in accuracy, whatever the suite's metric. ``gain`` is subject − scratch on all images.

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
    requires_pretrained,
    strategies,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

SIZES, SPAN = 6, 32


def sizes(pipeline: Pipeline, facts: Profile) -> list[int]:
    """Six sizes up to the training set, from a thirty-second of it, but two images a class or more."""
    whole = min(pipeline.train_size or facts.train, facts.train)  # fewer than asked for where some are held out
    least = max(2 * len(facts.classes), whole / SPAN)
    return [round(least * (whole / least) ** (rank / (SIZES - 1))) for rank in range(SIZES)]


def applies(pipeline: Pipeline, facts: Profile) -> str:
    if reason := requires_pretrained(pipeline, facts):
        return reason
    if facts.test_groups is not None:
        return "images in groups cannot be parted into sets of any size"
    enough = sizes(pipeline, facts)[-1] >= 8 * len(facts.classes)
    return "" if enough else "fewer than eight training images a class make no curve"


def beside(pipeline: Pipeline, facts: Profile) -> Mapping[str, Arm]:
    *fewer, whole = sizes(pipeline, facts)
    found = {size: replace(pipeline, train_size=size) for size in fewer} | {whole: pipeline}
    grid = replace(pipeline.baseline, weight_decay=pipeline.baseline.weight_decay[:1])
    tuned = {f"scratch-{size}": strategies.scratch_baseline(one, grid) for size, one in found.items()}
    return {f"transfer-{size}": one for size, one in found.items()} | tuned


def curves(answers: records.RecordsByTerm) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sizes [K], and errors [S, K] of subject and scratch at each seed that has both at every size."""
    told = {(arm, seed): 1 - records.accuracy(one) for (arm, _, seed), one in answers.items() if arm.startswith("beside:")}
    n, seeds = sorted({int(arm.rpartition("-")[2]) for arm, _ in told}), sorted({seed for _, seed in told})
    errors = np.full((2, len(seeds), len(n)), np.nan)  # by seed, for each arm may have crashed at another one
    for (arm, seed), error in told.items():
        errors[int(arm.startswith("beside:scratch")), seeds.index(seed), n.index(int(arm.rpartition("-")[2]))] = error
    own, baseline = errors[:, np.isfinite(errors).all((0, 2))]
    return np.array(n), own, baseline


def by_size(answers: records.RecordsByTerm, _: records.Seeds) -> dict[str, float]:
    """Mean errors of both by size, and M with its bounds, as far as they were reached."""
    n, own, baseline = curves(answers)
    if not len(own):
        return {}
    rows = zip(("M", "M, low,", "M, high,"), scaling_law.estimate_multipliers(n, own, baseline), strict=True)
    errors = zip(("error", "scratch error"), (own.mean(0), baseline.mean(0)), strict=True)
    return {f"{name} at n = {size}": float(one) for name, row in (*rows, *errors) for size, one in zip(n, row, strict=True)}


def told(_: str, answers: records.RecordsByTerm, _subject: Pipeline, _cured: Pipeline) -> str:
    """M at each size, with its interval."""
    n, own, baseline = curves(answers)
    if not len(own):
        return ""
    most = scaling_law.extrapolation_limit(n, baseline.mean(0))
    found = [scaling_law.format_multipliers(n, row, most) for row in scaling_law.estimate_multipliers(n, own, baseline)]
    each = (
        f"{value} at n = {size}" if len(own) == 1 or value == low == high else f"{value} [{low}, {high}] at n = {size}"
        for size, value, low, high in zip(n, *found, strict=True)
    )
    how = "" if most > 1 else " (its curve is flat or no power law, and read off between its points)"
    return f"scratch needs so many times the images{how}: {', '.join(each)}"


def picture(axes: Any, run: Run) -> None:
    """Test error against n, a thin line a seed, with scratch's fitted curve, and M(n) below the subject's points."""
    n, own, baseline = curves(records.plugin_records(run, plugin.id))
    if not len(own):
        axes.set(xlabel="no seed has both curves whole")
        return
    most = scaling_law.extrapolation_limit(n, baseline.mean(0))
    points = {arm: [list(zip(n, row, strict=True)) for row in rows] for arm, rows in (("subject", own), ("scratch", baseline))}
    plotting.draw_lines(axes, points, linestyle="none", marker="o")
    if most > 1:
        a, b, c = scaling_law.fit_power_law(n / n[-1], baseline.mean(0))
        far = np.geomspace(n[0], most * n[-1])
        axes.plot(far, a * (far / n[-1]) ** -b + c, color=plotting.MUTED, linestyle="--", label="scratch, fitted")
    words = scaling_law.format_multipliers(n, scaling_law.data_multipliers(n, own.mean(0), baseline.mean(0), most), most)
    for size, error, word in zip(n, own.mean(0), words, strict=True):
        axes.annotate(f"× {word}", (size, error), (0, -12), textcoords="offset points", ha="center", fontsize=7)
    axes.set(xlabel="training images n", ylabel="test error", ylim=(0, None), xscale="log", xticks=n, xticklabels=n)
    axes.minorticks_off()
    axes.legend()


plugin = Plugin(
    id="data-efficiency",
    version=1,
    question="How many times the images would training from scratch need?",
    doc=__doc__,
    applies=applies,
    cure=leave_unchanged,
    induce=lambda *_: {},
    extra_arms=beside,
    contrasts=(info("gain", ("subject", "test"), ("scratch", "test"), "subject − scratch in accuracy", "accuracy"),),
    derived_metrics=by_size,
    explain=told,
    remedy="label more images where the curve still falls; where the multiplier is near 1, training from scratch does as well",
    plot=picture,
)
