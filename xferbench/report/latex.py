"""LaTeX tables for a paper: the findings of a run, or the scores and costs of the recipes of a matrix. Pure.

A matrix table shows the mean of all rows that exist, but its aggregates and bold print cover only recipes with all rows. Notes
below the table name the recipes that are missing.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from xferbench.analysis import aggregate, metrics, regret, scores
from xferbench.report import comparison_text, format
from xferbench.report.latex_table import PAGE_CHARACTERS, REQUIRED_PACKAGES, escape, escape_number, latex_table
from xferbench.report.tables import Group, finding_groups, group_name, harm_text, headline, suite_unit

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pandas as pd

    from xferbench.analysis.scores import Scores, Skipped
    from xferbench.core.comparison import Comparison, Outcome
    from xferbench.core.run import Run

ARMS = ("subject", "cured", "scratch")
MAX_NOTES = 12  # notes about missing recipes below one table
MISSING = "--"
RATE_SELECTION = "The learning rate of each recipe was selected on validation data, never on test examples."


def render(run: Run) -> str:
    """Return the tables of a run. The table of a gate comes first; a matrix has a table of scores and one of costs."""
    if run.matrix:
        frame, metric = run.to_frame(), str(run.suite["metric"])
        return f"{score_table(frame, run.matrix.skipped, metric)}\n{cost_table(frame, metric)}"
    sections = [_gate_table(run, run.gate)] if run.gate and run.gate.outcomes else []
    if groups := finding_groups(run):
        sections.append(_findings_table(run, groups))
    return REQUIRED_PACKAGES + ("\n".join(sections) or f"% {escape(headline(run))}\n")


def _findings_table(run: Run, groups: tuple[Group, ...]) -> str:
    return latex_table(
        ["Check", "Verdict", "Harm", "Margin", "Detected", *map(str.capitalize, ARMS), "Seeds"],
        [_finding_cells(group, suite_unit(run)) for group in groups],
        columns="llrrrrrrr",
        caption=_findings_caption(run, groups),
        label=f"tab:xferbench-{run.suite.get('name', '')}",
        notes=run.notes,
    )


def _finding_cells(group: Group, unit: str) -> list[str]:
    first, estimate = group[0], group[0].estimate
    controls = [finding.control.outcome for finding in group if finding.control.outcome != "none"]
    return [
        escape(group_name(first)),
        first.verdict,
        escape_number(harm_text(first, unit)),
        MISSING if estimate.margin is None else format.format_score_number(estimate.margin, estimate.unit),
        f"{controls.count('detected')}/{len(controls)}" if controls else MISSING,
        *(_percentage(first.accuracy.get(arm)) for arm in ARMS),
        str(estimate.seeds) if estimate.seeds else MISSING,
    ]


def _percentage(value: float | None) -> str:
    return MISSING if value is None else f"{100 * value:.1f}"


def _findings_caption(run: Run, groups: tuple[Group, ...]) -> str:
    """Return the caption: what the numbers mean, and which data they come from."""
    suite = run.suite
    units = dict.fromkeys(group[0].estimate.unit for group in groups if group[0].estimate.harm is not None)
    unit = " or ".join(map(format.unit_name, units)) or "the unit of each check"
    examples = sorted({group[0].estimate.examples for group in groups if group[0].estimate.examples})
    size = f", {suite['train_size']} training examples" if suite.get("train_size") else ""
    level = format.format_confidence(float(suite["alpha"]), "")
    tested = " ".join([" or ".join(map(str, examples)), "test examples"]).strip()
    sample = f"the {tested} of one finished network" if suite.get("after") else f"seeds crossed with {tested}, both random"
    sentences = [
        f"Findings of the suite {suite.get('name', '')}: {suite['arch']} on {format.hide_folders(suite['target'])}{size}.",
        f"Harm (in {unit}; above 0, the pipeline is worse than its cure or its reference) has one-sided",
        f"{level} bounds in brackets, over {sample}.",
        "The bounds are unadjusted; the verdicts are corrected for looks and for the number of hypotheses.",
        "Detected: positive controls (failures injected on purpose) that were detected.",
        "Subject, cured and scratch: mean accuracy in % on the test examples.",
    ]
    if not suite.get("after"):
        sentences.append("Candidates were selected on examples that no verdict uses, with separate tuning seeds.")
    return escape(" ".join(sentences))


def _gate_table(run: Run, gate: Comparison) -> str:
    level = format.format_confidence(float(run.suite["alpha"]), "")
    caption = [
        comparison_text.headline(gate),
        f"{comparison_text.baseline_line(gate)}.",
        "Changes are differences on the same seeds and test examples,",
        f"with one-sided {level} bounds in brackets; above 0 is worse.",
    ]
    return latex_table(
        ["Compared", "Decision", "Accepted $\\to$ now", "Change", "Margin", "Seeds"],
        [_outcome_cells(outcome) for outcome in comparison_text.in_reading_order(gate)],
        columns="lllrrr",
        caption=" ".join(map(escape, caption)),
        label=f"tab:xferbench-gate-{run.suite.get('name', '')}",
        notes=gate.notes,
    )


def _outcome_cells(outcome: Outcome) -> list[str]:
    return [
        escape(comparison_text.outcome_name(outcome)),
        outcome.decision,
        escape_number(comparison_text.both_sides_text(outcome)),
        escape_number(comparison_text.change_text(outcome)),
        escape_number(comparison_text.margin_text(outcome)) if outcome.estimate.change is not None else MISSING,
        str(outcome.estimate.seeds) if outcome.estimate.seeds else MISSING,
    ]


def score_table(frame: pd.DataFrame, skipped: Skipped | None = None, metric: str = "accuracy") -> str:
    """Return a table of recipes × tasks: mean ± half-width, then the interquartile mean, the mean rank and the mean regret.

    Args:
        frame: one row for each task, recipe and seed, as :meth:`xferbench.Run.to_frame` of a matrix returns it.
        skipped: the reason for each (task, recipe) that was left out.
        metric: metric in the column ``accuracy`` of the frame.

    Raises:
        UserError: if a (task, recipe, seed) occurs more than once.
    """
    tasks = list(dict.fromkeys(frame.task))
    recipes = list(dict.fromkeys([*frame.recipe, *(recipe for _, recipe in skipped or {})]))
    bold = {task: _tied_recipes(frame[frame.task == task], metric) for task in tasks}
    common = scores.common_scores(frame, skipped, metric)
    aggregates = {} if common.empty else _aggregate_cells(common, metric)
    rows = [
        [
            escape(recipe),
            *(_score_cell(_finite_scores(frame, task, recipe), metric, bold=recipe in bold[task]) for task in tasks),
            *aggregates.get(recipe, [MISSING] * 3),
        ]
        for recipe in recipes
    ]
    head = ["Recipe", *map(escape, tasks), "Gain, IQM", "Mean rank", "Mean regret"]
    return REQUIRED_PACKAGES + latex_table(
        head,
        rows,
        columns="l" + "r" * (len(head) - 1),
        caption=_score_caption(frame, metric),
        label="tab:recipes",
        notes=_exclusion_notes(common),
        max_characters=PAGE_CHARACTERS,
    )


def cost_table(frame: pd.DataFrame, metric: str = "accuracy") -> str:
    """Return a table of what each recipe trains, stores and computes, next to its target, source and shifted scores.

    Args:
        frame, metric: as in :func:`score_table`.
    """
    format_score = partial(format.format_score_number, unit=metrics.get_metric(metric).unit)
    frame = frame.assign(source_retained=100 * frame.source / frame.source_before)
    columns: dict[str, tuple[str, Callable[[float], str]]] = {
        "Trained": ("trainable", _format_count),
        "Stored": ("stored", _format_bytes),
        "Mult.-adds": ("multiply_adds", _format_count),
        "Training": ("seconds", format.format_seconds),
        _metric_name(metric).capitalize(): ("accuracy", format_score),
        "Source kept": ("source_retained", lambda value: f"{value:.1f} %"),
        "Shifted": ("shifted", format_score),
    }
    rows, notes = [], []
    for recipe, runs in frame.groupby("recipe", sort=False):
        by_task = runs.groupby("task", sort=False)[[column for column, _ in columns.values()]].mean()
        values = [(by_task[column].dropna(), format_value) for column, format_value in columns.values()]
        cells = [escape_number(form(float(means.mean()))) if len(means) else MISSING for means, form in values]
        rows.append([escape(recipe), str(len(by_task["accuracy"].dropna())), *cells])
        if runs.diverged.sum():
            notes.append(f"{recipe} diverged in {int(runs.diverged.sum())} of {len(runs)} runs")
    head = ["Recipe", "Tasks", *map(escape, columns)]
    return REQUIRED_PACKAGES + latex_table(
        head, rows, columns="l" + "r" * (len(head) - 1), caption=_cost_caption(frame, metric), label="tab:costs", notes=notes
    )


def _finite_scores(frame: pd.DataFrame, task: str, recipe: str) -> np.ndarray:
    """Return the finite scores of a recipe on a task, one for each seed."""
    values = frame.accuracy[(frame.task == task) & (frame.recipe == recipe)].to_numpy(np.float64)
    finite: np.ndarray = values[np.isfinite(values)]
    return finite


def _score_cell(values: np.ndarray, metric: str, *, bold: bool) -> str:
    """Return the mean ± the half-width of its interval, which needs two values."""
    from scipy.special import stdtrit

    if not len(values):
        return MISSING
    unit = metrics.get_metric(metric).unit
    mean = format.format_score_number(values.mean(), unit)
    cell = f"\\textbf{{{mean}}}" if bold else mean
    if len(values) < 2:
        return cell
    quantile = stdtrit(len(values) - 1, (1 + aggregate.CONFIDENCE) / 2)
    half_width = quantile * values.std(ddof=1) / np.sqrt(len(values))
    return f"{cell} $\\pm$ {format.format_score_number(half_width, unit)}"


def _tied_recipes(task_frame: pd.DataFrame, metric: str) -> set[str]:
    """Return the recipes of one task that are not shown to be worse than its best; empty if nothing can be compared."""
    common = scores.common_scores(task_frame, None, metric)
    if common.empty:
        return set()
    return {name for name, tied in zip(common.recipes, regret.tied_with_best(common)[:, 0], strict=True) if tied}


def _aggregate_cells(common: Scores, metric: str) -> dict[str, list[str]]:
    """Return the interquartile mean of the gain, the mean rank and the mean regret by recipe.

    A gain above 0 is better, also if the metric is a loss.
    """
    unit = metrics.get_metric(metric).unit
    # Without the mean of its task, a task that is easy or hard for all recipes would be cut off as a whole.
    gains = replace(common, table=common.table - common.table.mean((0, 2), keepdims=True))
    gain, rank, mean_regret = aggregate.iqm(gains), aggregate.mean_rank(common), regret.mean_regret(common)
    return {
        recipe: [
            escape_number(format.format_interval(gain[index], unit)),
            escape_number(format.format_interval(rank[index], digits=1)),
            escape_number(format.format_interval(mean_regret[index], unit)),
        ]
        for index, recipe in enumerate(common.recipes)
    }


def _exclusion_notes(common: Scores) -> list[str]:
    """Return which recipes are not part of the aggregates, and why; at most :data:`MAX_NOTES` notes and a count."""
    excluded = [f"{recipe} is not part of the aggregates: {reason}" for recipe, reason in common.left_out.items()]
    notes = [*common.notes, *excluded]
    return notes if len(notes) <= MAX_NOTES else [*notes[:MAX_NOTES], f"and {len(notes) - MAX_NOTES} more"]


def _score_caption(frame: pd.DataFrame, metric: str) -> str:
    unit = " in %" if metrics.get_metric(metric).unit in format.PERCENT_UNITS else ""
    sentences = [
        f"Mean {_metric_name(metric)} on the target's test examples{unit}, ± the half-width of its two-sided 95% interval",
        f"(Student's t over seeds; tasks and test examples are fixed). {_seed_sentence(frame)}",
        "Bold: among the recipes with all seeds, the best recipe of the task and each recipe whose regret has a lower bound",
        "of at most 0; the best recipe is selected on one half of the seeds and scored on the other half.",
        "The last columns cover the recipes with all tasks; their two-sided 95% intervals are from a bootstrap of seeds within",
        "tasks.",
        "Gain: interquartile mean, over all runs, of the improvement on the mean of these recipes on the same task.",
        "Mean rank: 1 is the best.",
        f"Mean regret: the best of these recipes on each task minus this recipe. {RATE_SELECTION}",
    ]
    return escape(" ".join(sentences))


def _cost_caption(frame: pd.DataFrame, metric: str) -> str:
    sentences = [
        "Cost and scores of each recipe, averaged over seeds and then over the tasks that have the recipe (Tasks).",
        "Rows with fewer tasks are averages over other tasks.",
        "Trained: number of trained parameters. Stored: disk space of one more task. Mult.-adds: of one image.",
        "Training: duration for one network. Source kept: source accuracy after training, as a share of that before training.",
        f"Shifted: {_metric_name(metric)} under the shift. {_seed_sentence(frame)} {RATE_SELECTION}",
    ]
    return escape(" ".join(sentences))


def _seed_sentence(frame: pd.DataFrame) -> str:
    """Return how many seeds the tasks and recipes have, from the smallest to the largest number."""
    finite = frame[np.isfinite(frame.accuracy)]
    counts: Sequence[int] = sorted(set(finite.groupby(["task", "recipe"]).seed.nunique())) or [0]
    seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"Seeds: {seeds} of each task and recipe."


def _metric_name(metric: str) -> str:
    return metric.replace("_", " ")


def _format_count(value: float) -> str:
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"


def _format_bytes(value: float) -> str:
    for size, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value:.0f} B"
