"""Recipes over many tasks as LaTeX tables: scores by task with their aggregates, and what each recipe costs.

A frame has a row for each task, recipe and seed, as :func:`xferbench.scored.read` takes it. Means of whatever is there
stand in the tables; aggregates and bold print are of recipes that have it all, and who is missing is said below.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from xferbench import aggregates, metrics, regret, scored
from xferbench.report import tex, text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pandas as pd

    from xferbench.aggregates import Interval
    from xferbench.scored import Scores, Skipped

MOST = 12  # sentences of what is missing
NOTHING = "--"
CHOSEN = "Each recipe's rate was chosen on validation, never on the test images."


def scores(frame: pd.DataFrame, skipped: Skipped | None = None, metric: str = "accuracy", label: str = "tab:recipes") -> str:
    """A table of recipes × tasks, mean ± half-width, with the interquartile mean, the mean rank and the mean regret.

    Args:
        frame: of records. skipped: why a recipe was not asked of a task, by (task, recipe).
        metric: what the frame's ``accuracy`` is. label: what LaTeX calls the table.
    """
    tasks, recipes = (list(dict.fromkeys(map(str, frame[name]))) for name in ("task", "recipe"))
    recipes += [name for name in dict.fromkeys(recipe for _, recipe in skipped or {}) if name not in recipes]
    bold = {task: _tied(frame[frame.task.astype(str) == task], metric) for task in tasks}
    whole = scored.gathered(frame, skipped, metric)
    every = {} if whole.empty else _aggregated(whole, metric)
    rows = [
        [
            tex.escaped(recipe),
            *(_cell(_runs(frame, task, recipe), metric, bold=recipe in bold[task]) for task in tasks),
            *every.get(recipe, [NOTHING] * 3),
        ]
        for recipe in recipes
    ]
    head = ["Recipe", *map(tex.escaped, tasks), "Gain, IQM", "Mean rank", "Mean regret"]
    caption = _caption(frame, metric)
    how = {"columns": "l" + "r" * (len(head) - 1), "label": label, "broad": tex.BROAD}
    return tex.NEEDS + tex.table(head, rows, caption=caption, notes=_missing(whole), **how)  # type: ignore[arg-type]


def costs(frame: pd.DataFrame, metric: str = "accuracy", label: str = "tab:costs") -> str:
    """A table of what each recipe trains, stores, computes and takes, beside what it reaches on target, source and shift."""
    recipes = list(dict.fromkeys(map(str, frame.recipe)))
    factor, digits = text.scale(metrics.named(metric).unit)
    kept = frame.assign(recipe=frame.recipe.astype(str), kept=100 * frame.source / frame.source_before)
    shown: dict[str, tuple[str, Callable[[float], str]]] = {
        "Trained": ("trainable", _thousands),
        "Stored": ("stored", _bytes),
        "Mult.-adds": ("multiply_adds", _thousands),
        "Training": ("seconds", text.seconds),
        _named(metric).capitalize(): ("accuracy", lambda value: f"{factor * value:.{digits}f}"),
        "Source kept": ("kept", lambda value: f"{value:.1f} %"),
        "Shifted": ("shifted", lambda value: f"{factor * value:.{digits}f}"),
    }
    rows = []
    for recipe in recipes:
        own = kept[kept.recipe == recipe]
        by_task = own.groupby("task", sort=False)[[column for column, _ in shown.values()]].mean()
        values = [(by_task[column].dropna(), say) for column, say in shown.values()]
        told = [tex.number(say(float(one.mean()))) if len(one) else NOTHING for one, say in values]
        rows.append([tex.escaped(recipe), str(len(by_task["accuracy"].dropna())), *told])
    diverged = {recipe: kept[kept.recipe == recipe].diverged for recipe in recipes}
    notes = [f"{recipe} diverged in {int(own.sum())} of {len(own)} runs" for recipe, own in diverged.items() if own.sum()]
    caption = [
        "What each recipe costs, and what it reaches, averaged over seeds and then over the tasks that have it (Tasks): rows",
        "with fewer tasks are averages over other tasks. Trained: numbers that training changes. Stored: what one more task",
        "adds to the disk. Mult.-adds: of one image. Training: of one network. Source kept: source accuracy after training, as",
        "a share of that before.",
        f"Shifted: {_named(metric)} under the shift. {_seeds(frame)} {CHOSEN}",
    ]
    head = ["Recipe", "Tasks", *map(tex.escaped, shown)]
    said = tex.escaped(" ".join(caption))
    return tex.NEEDS + tex.table(head, rows, columns="l" + "r" * (len(head) - 1), caption=said, label=label, notes=notes)


def _runs(frame: pd.DataFrame, task: str, recipe: str) -> np.ndarray:
    """The finite scores of a recipe on a task."""
    own = frame[(frame.task.astype(str) == task) & (frame.recipe.astype(str) == recipe)]
    values = own.accuracy.to_numpy(dtype=np.float64)
    finite: np.ndarray = values[np.isfinite(values)]
    return finite


def _cell(runs: np.ndarray, metric: str, *, bold: bool) -> str:
    from scipy.special import stdtrit

    if not len(runs):
        return NOTHING
    factor, digits = text.scale(metrics.named(metric).unit)
    mean = f"{factor * runs.mean():.{digits}f}"
    told = f"\\textbf{{{mean}}}" if bold else mean
    if len(runs) < 2:
        return told
    half = stdtrit(len(runs) - 1, (1 + aggregates.LEVEL) / 2) * runs.std(ddof=1) / np.sqrt(len(runs))
    return f"{told} $\\pm$ {factor * half:.{digits}f}"


def _tied(of_task: pd.DataFrame, metric: str) -> set[str]:
    """Recipes of one task that are not shown to be worse than its best; none where nothing can be compared."""
    own = scored.gathered(of_task, None, metric)
    return set() if own.empty else {name for name, good in zip(own.recipes, regret.tied(own)[:, 0], strict=True) if good}


def _aggregated(whole: Scores, metric: str) -> dict[str, list[str]]:
    """Interquartile mean of the gain, mean rank and mean regret by recipe; of a loss, too, a gain above 0 is better."""
    factor, digits = text.scale(metrics.named(metric).unit)
    # Over the task's mean, lest whole tasks be cut off because they are easy or hard.
    gains = replace(whole, table=whole.table - whole.table.mean((0, 2), keepdims=True))
    gain, rank, cost = aggregates.iqm(gains), aggregates.mean_rank(whole), regret.mean(whole)
    return {
        recipe: [_interval(gain[at], factor, digits), _interval(rank[at], 1.0, 1), _interval(cost[at], factor, digits)]
        for at, recipe in enumerate(whole.recipes)
    }


def _interval(one: Interval, factor: float, digits: int) -> str:
    value, *ends = (factor * float(number) for number in (one.value, one.low, one.high))
    bounds = f" [{min(ends):.{digits}f}, {max(ends):.{digits}f}]" if np.isfinite(ends).all() else ""
    return tex.number(f"{value:.{digits}f}{bounds}")


def _missing(whole: Scores) -> list[str]:
    """Who takes no part in the aggregates, and why."""
    said = [*whole.notes, *(f"{recipe} takes no part in the aggregates: {why}" for recipe, why in whole.left_out.items())]
    return said if len(said) <= MOST else [*said[:MOST], f"and {len(said) - MOST} more"]


def _caption(frame: pd.DataFrame, metric: str) -> str:
    unit = metrics.named(metric).unit
    said = [
        f"Mean {_named(metric)} on the target's test images{' in %' if unit in text.POINTS else ''}, ± the half-width of its",
        f"two-sided 95% interval (Student's t over seeds; tasks and test images are taken as given). {_seeds(frame)}",
        "Bold, of the recipes with every seed: the best of a task, and what is not shown to be worse by its regret's lower",
        "bound, the best chosen on one half of the seeds and scored on the other. Of the recipes with every task: gain, the",
        "interquartile mean over all runs of what they are better than the mean of these on their task; mean rank, 1 the",
        "best; mean regret, the best of these on each task",
        f"less this one; with two-sided 95% intervals, bootstrapped over seeds within tasks. {CHOSEN}",
    ]
    return tex.escaped(" ".join(said))


def _seeds(frame: pd.DataFrame) -> str:
    """How many seeds there are, from the fewest that a task and recipe have."""
    counts: Sequence[int] = sorted(set(frame[np.isfinite(frame.accuracy)].groupby(["task", "recipe"]).seed.nunique())) or [0]
    many = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"Seeds: {many} of each task and recipe."


def _named(metric: str) -> str:
    return metric.replace("_", " ")


def _thousands(value: float) -> str:
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"


def _bytes(value: float) -> str:
    for size, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value:.0f} B"
