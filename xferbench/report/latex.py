"""LaTeX tables for a paper: the findings of a run, or the scores and costs of the recipes of a matrix.

The tables of a matrix show means of all rows that exist. Aggregates and bold print are of recipes with every row; the notes
below a table say who is missing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from xferbench.analysis import aggregate, metrics, regret, scores
from xferbench.report import comparison_text, format, tex
from xferbench.report.tables import Group, finding_groups, group_name, harm_text, headline

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pandas as pd

    from xferbench.analysis.aggregate import Interval
    from xferbench.analysis.scores import Scores, Skipped
    from xferbench.core.comparison import Comparison, Outcome
    from xferbench.core.run import Run

ARMS = ("subject", "cured", "scratch")
MAX_NOTES = 12  # sentences about missing recipes below a table
NOTHING = "--"
CHOSEN = "Each recipe's rate was chosen on validation, never on the test images."


def render(run: Run) -> str:
    """Render the tables of a run; of a gate what was compared comes first."""
    if run.matrix:
        frame, metric = run.to_frame(), str(run.suite["metric"])
        return f"{score_table(frame, run.matrix.skipped, metric)}\n{cost_table(frame, metric)}"
    tables = [_gate(run, run.gate)] if run.gate and run.gate.outcomes else []
    if groups := finding_groups(run):
        tables.append(_findings(run, groups))
    return tex.NEEDS + ("\n".join(tables) or f"% {tex.escape(headline(run))}\n")


def _findings(run: Run, groups: tuple[Group, ...]) -> str:
    head = ["Check", "Verdict", "Harm", "Margin", "Detected", *map(str.capitalize, ARMS), "Seeds"]
    return tex.latex_table(
        head,
        [_row(group) for group in groups],
        columns="llrrrrrrr",
        caption=" ".join(_caption(run, groups)),
        label=f"tab:xferbench-{run.suite.get('name', '')}",
        notes=run.notes,
    )


def _row(group: Group) -> list[str]:
    first = group[0]
    factor, digits = format.unit_scale(first.unit)
    controls = [one.control for one in group if one.control != "none"]
    return [
        tex.escape(group_name(first)),
        first.verdict,
        tex.format_number(harm_text(first)),
        "--" if first.margin is None else f"{factor * first.margin:.{digits}f}",
        f"{controls.count('detected')}/{len(controls)}" if controls else "--",
        *(_percent(first.accuracy.get(arm)) for arm in ARMS),
        str(first.seeds) if first.seeds else "--",
    ]


def _percent(value: float | None) -> str:
    return "--" if value is None else f"{100 * value:.1f}"


def _caption(run: Run, groups: tuple[Group, ...]) -> list[str]:
    """What the numbers are, and what they rest on."""
    suite = run.suite
    units = dict.fromkeys(group[0].unit for group in groups if group[0].harm is not None)
    harm = " or ".join(map(format.unit_name, units)) or "the unit of each check"
    examples = sorted({group[0].examples for group in groups if group[0].examples})
    size = f", {suite['train_size']} training images" if suite.get("train_size") else ""
    level = format.format_confidence(float(suite["alpha"]), "")
    images = " ".join([" or ".join(map(str, examples)), "test images"]).strip()
    whole = f"the {images} of one finished network"
    over = whole if suite.get("after") else f"seeds crossed with {images}, both drawn at random"
    said = [
        f"Findings of the suite {suite.get('name', '')}: {suite['arch']} on {format.hide_folders(suite['target'])}{size}.",
        f"Harm (in {harm}; above 0 the pipeline is worse than its cure, or than what it is compared with) with one-sided",
        f"{level} bounds in brackets, over {over}.",
        "The bounds are of each by itself, the verdicts corrected for looks and for all that was judged.",
        "Detected: of the failures put in on purpose, as controls, those that were.",
        "Subject, cured and scratch: mean accuracy in % on the test images.",
    ]
    if not suite.get("after"):
        said.append(
            "What was chosen among several was chosen on images that no verdict is taken on, on tuning seeds of their own."
        )
    return [tex.escape(one) for one in said]


def _gate(run: Run, gate: Comparison) -> str:
    caption = [
        comparison_text.headline(gate),
        f"{comparison_text.baseline_line(gate)}.",
        "Changes are differences on the same seeds and test images,",
    ]
    caption += [
        f"with one-sided {format.format_confidence(float(run.suite['alpha']), '')} bounds in brackets; above 0 is worse."
    ]
    return tex.latex_table(
        ["Compared", "Decision", "Accepted $\\to$ now", "Change", "Margin", "Seeds"],
        [_outcome(one) for one in comparison_text.in_reading_order(gate)],
        columns="lllrrr",
        caption=" ".join(map(tex.escape, caption)),
        label=f"tab:xferbench-gate-{run.suite.get('name', '')}",
        notes=gate.notes,
    )


def _outcome(one: Outcome) -> list[str]:
    told = one.change is not None
    return [
        tex.escape(comparison_text.outcome_name(one)),
        one.decision,
        tex.format_number(comparison_text.turn_text(one)),
        tex.format_number(comparison_text.change_text(one)),
        tex.format_number(comparison_text.margin_text(one)) if told else "--",
        str(one.seeds) if one.seeds else "--",
    ]


def score_table(
    frame: pd.DataFrame, skipped: Skipped | None = None, metric: str = "accuracy", label: str = "tab:recipes"
) -> str:
    """A table of recipes × tasks, mean ± half-width, with the interquartile mean, the mean rank and the mean regret.

    Args:
        frame: of records. skipped: why a recipe was not asked of a task, by (task, recipe).
        metric: what the frame's ``accuracy`` is. label: what LaTeX calls the table.
    """
    tasks, recipes = (list(dict.fromkeys(map(str, frame[name]))) for name in ("task", "recipe"))
    recipes += [name for name in dict.fromkeys(recipe for _, recipe in skipped or {}) if name not in recipes]
    bold = {task: _tied_recipes(frame[frame.task.astype(str) == task], metric) for task in tasks}
    whole = scores.common_scores(frame, skipped, metric)
    every = {} if whole.empty else _aggregates(whole, metric)
    rows = [
        [
            tex.escape(recipe),
            *(_score_cell(_finite_scores(frame, task, recipe), metric, bold=recipe in bold[task]) for task in tasks),
            *every.get(recipe, [NOTHING] * 3),
        ]
        for recipe in recipes
    ]
    head = ["Recipe", *map(tex.escape, tasks), "Gain, IQM", "Mean rank", "Mean regret"]
    caption = _score_caption(frame, metric)
    how = {"columns": "l" + "r" * (len(head) - 1), "label": label, "broad": tex.BROAD}
    return tex.NEEDS + tex.latex_table(head, rows, caption=caption, notes=_missing_recipes(whole), **how)  # type: ignore[arg-type]


def cost_table(frame: pd.DataFrame, metric: str = "accuracy", label: str = "tab:costs") -> str:
    """A table of what each recipe trains, stores, computes and takes, beside what it reaches on target, source and shift."""
    recipes = list(dict.fromkeys(map(str, frame.recipe)))
    factor, digits = format.unit_scale(metrics.get_metric(metric).unit)
    kept = frame.assign(recipe=frame.recipe.astype(str), kept=100 * frame.source / frame.source_before)
    shown: dict[str, tuple[str, Callable[[float], str]]] = {
        "Trained": ("trainable", _format_count),
        "Stored": ("stored", _format_bytes),
        "Mult.-adds": ("multiply_adds", _format_count),
        "Training": ("seconds", format.format_seconds),
        _metric_name(metric).capitalize(): ("accuracy", lambda value: f"{factor * value:.{digits}f}"),
        "Source kept": ("kept", lambda value: f"{value:.1f} %"),
        "Shifted": ("shifted", lambda value: f"{factor * value:.{digits}f}"),
    }
    rows = []
    for recipe in recipes:
        own = kept[kept.recipe == recipe]
        by_task = own.groupby("task", sort=False)[[column for column, _ in shown.values()]].mean()
        values = [(by_task[column].dropna(), say) for column, say in shown.values()]
        told = [tex.format_number(say(float(one.mean()))) if len(one) else NOTHING for one, say in values]
        rows.append([tex.escape(recipe), str(len(by_task["accuracy"].dropna())), *told])
    diverged = {recipe: kept[kept.recipe == recipe].diverged for recipe in recipes}
    notes = [f"{recipe} diverged in {int(own.sum())} of {len(own)} runs" for recipe, own in diverged.items() if own.sum()]
    caption = [
        "What each recipe costs, and what it reaches, averaged over seeds and then over the tasks that have it (Tasks): rows",
        "with fewer tasks are averages over other tasks. Trained: numbers that training changes. Stored: what one more task",
        "adds to the disk. Mult.-adds: of one image. Training: of one network. Source kept: source accuracy after training, as",
        "a share of that before.",
        f"Shifted: {_metric_name(metric)} under the shift. {_format_seeds(frame)} {CHOSEN}",
    ]
    head = ["Recipe", "Tasks", *map(tex.escape, shown)]
    said = tex.escape(" ".join(caption))
    return tex.NEEDS + tex.latex_table(head, rows, columns="l" + "r" * (len(head) - 1), caption=said, label=label, notes=notes)


def _finite_scores(frame: pd.DataFrame, task: str, recipe: str) -> np.ndarray:
    """The finite scores of a recipe on a task."""
    own = frame[(frame.task.astype(str) == task) & (frame.recipe.astype(str) == recipe)]
    values = own.accuracy.to_numpy(dtype=np.float64)
    finite: np.ndarray = values[np.isfinite(values)]
    return finite


def _score_cell(runs: np.ndarray, metric: str, *, bold: bool) -> str:
    from scipy.special import stdtrit

    if not len(runs):
        return NOTHING
    factor, digits = format.unit_scale(metrics.get_metric(metric).unit)
    mean = f"{factor * runs.mean():.{digits}f}"
    told = f"\\textbf{{{mean}}}" if bold else mean
    if len(runs) < 2:
        return told
    half = stdtrit(len(runs) - 1, (1 + aggregate.CONFIDENCE) / 2) * runs.std(ddof=1) / np.sqrt(len(runs))
    return f"{told} $\\pm$ {factor * half:.{digits}f}"


def _tied_recipes(of_task: pd.DataFrame, metric: str) -> set[str]:
    """Recipes of one task that are not shown to be worse than its best; none where nothing can be compared."""
    own = scores.common_scores(of_task, None, metric)
    return (
        set() if own.empty else {name for name, good in zip(own.recipes, regret.tied_with_best(own)[:, 0], strict=True) if good}
    )


def _aggregates(whole: Scores, metric: str) -> dict[str, list[str]]:
    """Interquartile mean of the gain, mean rank and mean regret by recipe; of a loss, too, a gain above 0 is better."""
    factor, digits = format.unit_scale(metrics.get_metric(metric).unit)
    # Over the task's mean, lest whole tasks be cut off because they are easy or hard.
    gains = replace(whole, table=whole.table - whole.table.mean((0, 2), keepdims=True))
    gain, rank, cost = aggregate.iqm(gains), aggregate.mean_rank(whole), regret.mean_regret(whole)
    return {
        recipe: [
            _format_interval(gain[at], factor, digits),
            _format_interval(rank[at], 1.0, 1),
            _format_interval(cost[at], factor, digits),
        ]
        for at, recipe in enumerate(whole.recipes)
    }


def _format_interval(one: Interval, factor: float, digits: int) -> str:
    value, *ends = (factor * float(number) for number in (one.value, one.low, one.high))
    bounds = f" [{min(ends):.{digits}f}, {max(ends):.{digits}f}]" if np.isfinite(ends).all() else ""
    return tex.format_number(f"{value:.{digits}f}{bounds}")


def _missing_recipes(whole: Scores) -> list[str]:
    """Who takes no part in the aggregates, and why."""
    said = [*whole.notes, *(f"{recipe} takes no part in the aggregates: {why}" for recipe, why in whole.left_out.items())]
    return said if len(said) <= MAX_NOTES else [*said[:MAX_NOTES], f"and {len(said) - MAX_NOTES} more"]


def _score_caption(frame: pd.DataFrame, metric: str) -> str:
    unit = " in %" if metrics.get_metric(metric).unit in format.PERCENT_UNITS else ""
    said = [
        f"Mean {_metric_name(metric)} on the target's test images{unit}, ± the half-width of its",
        f"two-sided 95% interval (Student's t over seeds; tasks and test images are taken as given). {_format_seeds(frame)}",
        "Bold, of the recipes with every seed: the best of a task, and what is not shown to be worse by its regret's lower",
        "bound, the best chosen on one half of the seeds and scored on the other. Of the recipes with every task: gain, the",
        "interquartile mean over all runs of what they are better than the mean of these on their task; mean rank, 1 the",
        "best; mean regret, the best of these on each task",
        f"less this one; with two-sided 95% intervals, bootstrapped over seeds within tasks. {CHOSEN}",
    ]
    return tex.escape(" ".join(said))


def _format_seeds(frame: pd.DataFrame) -> str:
    """How many seeds there are, from the fewest that a task and recipe have."""
    counts: Sequence[int] = sorted(set(frame[np.isfinite(frame.accuracy)].groupby(["task", "recipe"]).seed.nunique())) or [0]
    many = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"Seeds: {many} of each task and recipe."


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
