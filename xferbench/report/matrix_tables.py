"""The tables of a matrix, which every format renders: recipes over all tasks, the 2×2 of size and similarity, claims. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from itertools import product
from math import isnan
from typing import TYPE_CHECKING, Any

import numpy as np

from xferbench.analysis import aggregate, metrics, rules_of_thumb
from xferbench.analysis.regret import greatest_regret, mean_regret, regret_grid, tied_with_best
from xferbench.analysis.scores import scores_by_cell, scores_from_frame
from xferbench.core.errors import UserError
from xferbench.core.run import Finding
from xferbench.report import format
from xferbench.study.claims import CLAIM_OUTCOMES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from xferbench.analysis.regret import TaskRegret
    from xferbench.analysis.scores import Scores
    from xferbench.core.matrix_result import MatrixResult
    from xferbench.core.run import Run

SIZES, SIMILARITIES = ("few", "many"), ("similar", "different")
TEXTBOOK, BY_SIZE = "the 2×2's advice", "the size rule's advice"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeSummary:
    """A recipe over all tasks, or a rule that names a recipe for each task: numbers with 95 % intervals, as text."""

    recipe: str
    gain: str
    rank: str
    regret: str
    greatest: str
    better: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Quadrant:
    """One quadrant of the 2×2: its tasks, the textbook's advice and the cost of it, the best recipe, and the equals of that."""

    name: str
    tasks: str
    advised: str
    regret: str
    best: str
    tied: str


def matrix_of(run: Run) -> MatrixResult:
    """The matrix of a run that has one."""
    assert run.matrix is not None, "only the run of a suite with [matrix] has these tables"
    return run.matrix


def format_outcome(run: Run) -> str:
    """The result in one line."""
    matrix, recipes, tasks = matrix_of(run), len(run.suite["recipes"]), len(run.suite["tasks"])
    sentences = [f"{recipes} recipe{'s' * (recipes != 1)} on {tasks} task{'s' * (tasks != 1)}."]
    if matrix.claims:
        counts = Counter(str(claim["outcome"]) for claim in matrix.claims)
        several = {"agrees": "agree", "disagrees": "disagree"}
        words = [
            f"{counts[word]} {word if counts[word] == 1 else several.get(word, word)}"
            for word in CLAIM_OUTCOMES
            if counts[word]
        ]
        sentences.append(f"Of {len(matrix.claims)} claim{'s' * (len(matrix.claims) != 1)}: {', '.join(words)}.")
    if matrix.crashes:
        sentences.append(f"{len(matrix.crashes)} crashed.")
    return " ".join(sentences)


def mean_scores(run: Run) -> dict[tuple[str, str], dict[str, float | None]]:
    """The mean over seeds of every numeric column, by recipe and task; None if no seed has a number."""
    means: dict[tuple[str, str], dict[str, float | None]] = {}
    for (recipe, task), rows in run.to_frame().groupby(["recipe", "task"], sort=False):
        columns = rows.mean(numeric_only=True)
        means[str(recipe), str(task)] = {str(name): None if isnan(value) else float(value) for name, value in columns.items()}
    return means


def comparable_scores(run: Run) -> tuple[Scores | None, list[str]]:
    """The scores of the recipes that have one everywhere, or None; and who takes no part."""
    if len(run.suite["tasks"]) < 2 or len(run.suite["recipes"]) < 2:
        return None, []
    try:
        scores = scores_from_frame(run.to_frame(), matrix_of(run).skipped, str(run.suite["metric"]))
    except UserError as problem:
        return None, [str(problem)]
    left = [f"{name} takes no part over all tasks: {reason}" for name, reason in scores.left_out.items()]
    return scores, [*left, *scores.notes]


def advised_recipes(run: Run) -> dict[str, dict[str, str]]:
    """The recipe that each rule advises, by task; a rule without advice for every task is left out."""
    sizes = {str(row["task"]): row["train_size"] for row in matrix_of(run).rows}
    similar: Mapping[str, bool] = run.suite.get("similar") or {}
    tasks = [str(task) for task in run.suite["tasks"] if sizes.get(str(task))]
    if len(tasks) < len(run.suite["tasks"]):
        return {}
    advised = {BY_SIZE: {task: rules_of_thumb.size_rule_strategy(sizes[task]) for task in tasks}}
    if all(task in similar for task in tasks):
        advised[TEXTBOOK] = {task: rules_of_thumb.textbook_strategy(sizes[task], similar[task]) for task in tasks}
    return advised


def rank_recipes(run: Run) -> tuple[list[RecipeSummary], list[str]]:
    """Every recipe over all tasks and each rule, the least mean regret first; and who takes no part."""
    scores, notes = comparable_scores(run)
    if scores is None:
        return [], notes
    rules = [
        (rule, advised)
        for rule, advised in advised_recipes(run).items()
        if {advised[task] for task in scores.tasks} <= {*scores.recipes}
    ]
    followed = [
        [scores.table[scores.recipes.index(advised[task]), at] for at, task in enumerate(scores.tasks)] for _, advised in rules
    ]
    # The row of a rule consists of rows of recipes and so moves no best score; it would move ranks, and has none.
    both = replace(scores, table=np.concatenate([scores.table, np.array(followed).reshape(-1, *scores.table.shape[1:])]))
    both = replace(both, recipes=(*scores.recipes, *(name for name, _ in rules)))
    against = both.recipes.index(run.suite["against"]) if run.suite["against"] in both.recipes else None
    # The interquartile mean must cut off unusual runs, and not whole tasks because they are easy or hard.
    usual = scores.table.mean((0, 2), keepdims=True) if against is None else both.table[against].mean(-1)[None, :, None]
    gain, wins = aggregate.iqm(replace(both, table=both.table - usual)), aggregate.probability_of_improvement(both)
    rank, mean, greatest = aggregate.mean_rank(scores), mean_regret(both), greatest_regret(both)
    metric = metrics.get_metric(str(run.suite["metric"]))
    order = sorted(range(len(both.recipes)), key=lambda at: float(np.nan_to_num(mean.value[at], nan=np.inf)))
    return [
        RecipeSummary(
            recipe=both.recipes[at],
            gain=format_interval(gain[at], metric.unit, signed=True),
            rank=format_interval(rank[at], digits=1) if at < len(scores.recipes) else "",
            regret=format_interval(mean[at], metric.unit, most=metric.span),
            greatest=format_interval(greatest[at], metric.unit, most=metric.span),
            better="" if against in {None, at} else format_interval(wins[at, against], "accuracy"),
        )
        for at in order
    ], notes


def summary_columns(run: Run) -> list[str]:
    """The columns of :func:`summary_cells`."""
    against = format.one_line(run.suite["against"])
    return [
        "recipe",
        f"gain over {against}, IQM",
        "mean rank",
        "mean regret",
        "greatest regret",
        f"P(better than {against}), %",
    ]


def summary_cells(summary: RecipeSummary) -> list[str]:
    """The cells of one row."""
    return [format.one_line(summary.recipe), summary.gain, summary.rank, summary.regret, summary.greatest, summary.better]


def measure_quadrants(run: Run) -> dict[tuple[str, ...], TaskRegret]:
    """The measured 2×2: by (size, similarity) the best recipe, those not shown to be worse, and the regret of the advice."""
    advised = advised_recipes(run).get(TEXTBOOK)
    if advised is None or len(run.suite["recipes"]) < 2:
        return {}
    scores = {quadrant: own for quadrant, own in _scores_by_quadrant(run).items() if not own.empty}
    return regret_grid(scores, {quadrant: advised[own.tasks[0]] for quadrant, own in scores.items()})


def describe_quadrants(run: Run) -> list[Quadrant]:
    """The measured 2×2 as text; empty if nothing is known about similarity."""
    cells = measure_quadrants(run)
    quadrant_of, unit = quadrants_by_task(run) if cells else {}, metrics.get_metric(str(run.suite["metric"])).unit
    return [
        Quadrant(
            name=f"{size} images, {similarity}",
            tasks=", ".join(task for task, quadrant in quadrant_of.items() if quadrant == (size, similarity)),
            advised=cell.advised,
            regret=cell.why if cell.regret is None else format_interval(cell.regret, unit),
            best=cell.best,
            tied=", ".join(name for name in cell.tied if name != cell.best) or "none",
        )
        for (size, similarity), cell in cells.items()
    ]


def _scores_by_quadrant(run: Run) -> dict[tuple[str, ...], Scores]:
    """The scores of each quadrant by itself: a recipe that does not fit one quadrant is compared in the others."""
    quadrant_of = quadrants_by_task(run)
    tasks = {
        quadrant: [task for task, own in quadrant_of.items() if own == quadrant]
        for quadrant in dict.fromkeys(quadrant_of.values())
    }
    return scores_by_cell(run.to_frame(), tasks, matrix_of(run).skipped, str(run.suite["metric"]))


def tied_recipes(run: Run) -> set[tuple[str, str]]:
    """The (recipe, task) pairs that are not shown to be worse than the best of the task; none of a task with one recipe."""
    frame, metric = run.to_frame(), str(run.suite["metric"])
    by_task = scores_by_cell(frame, {(task,): [task] for task in run.suite["tasks"]}, matrix_of(run).skipped, metric)
    return {
        (name, task)
        for (task,), scores in by_task.items()
        if not scores.empty and len(scores.recipes) > 1
        for name, is_tied in zip(scores.recipes, tied_with_best(scores)[:, 0], strict=True)
        if is_tied
    }


def quadrants_by_task(run: Run) -> dict[str, tuple[str, ...]]:
    """The quadrant of each task, in the order in which quadrants are drawn."""
    sizes = {str(row["task"]): row["train_size"] for row in matrix_of(run).rows}
    similar = run.suite["similar"]
    quadrants: dict[str, tuple[str, ...]] = {
        task: (SIZES[sizes[task] >= rules_of_thumb.FEW_EXAMPLES], SIMILARITIES[not similar[task]]) for task in sizes
    }
    order: list[tuple[str, ...]] = [(size, similarity) for size in SIZES for similarity in SIMILARITIES]
    return dict(sorted(quadrants.items(), key=lambda item: order.index(item[1])))


def quadrant_means(run: Run) -> dict[tuple[str, ...], dict[str, float]]:
    """The mean over tasks and seeds by quadrant and recipe, for the figure; the negative of a loss."""
    if not measure_quadrants(run):
        return {}
    return {
        quadrant: dict(zip(scores.recipes, map(float, scores.table.mean((1, 2))), strict=True))
        for quadrant, scores in _scores_by_quadrant(run).items()
        if not scores.empty
    }


def format_claim(claim: Mapping[str, Any]) -> tuple[str, str, str]:
    """The measured size of a claim, the size that it names, and the published one, as text."""
    unit, absolute = str(claim["unit"]), bool(claim["measure"])
    bounds = {
        name: format_size(claim[name], unit, absolute=absolute) for name in ("at_least", "at_most") if claim[name] is not None
    }
    named = " and ".join(f"{name.replace('_', ' ')} {value}" for name, value in bounds.items())
    published = "direction only" if claim["published"] is None else format_size(claim["published"], unit, absolute=absolute)
    if claim["ours"] is None or isnan(claim["ours"]):
        return format.MISSING, named, published
    low, high = (format_size(claim[name], unit, absolute=absolute, named=False) for name in ("low", "high"))
    return f"{format_size(claim['ours'], unit, absolute=absolute)} [{low}, {high}]", named, published


def format_size(value: float | None, unit: str, *, absolute: bool = False, named: bool = True) -> str:
    """A number in its unit: a difference in points of accuracy, an accuracy or a share in per cent, seconds."""
    if value is None or isnan(value):
        return format.MISSING
    if (unit in format.PERCENT_UNITS or not unit) and not absolute:
        return format.format_harm(value, "accuracy")
    if unit in format.PERCENT_UNITS or unit.startswith("of the"):
        return f"{100 * value:.3g}" + (" %" if named else "")
    return f"{value:.3g}" + (f" {format.one_line(unit)}" if named else "")


def format_score(value: float | None, unit: str) -> str:
    """A score in its unit."""
    if value is None or isnan(value):
        return format.MISSING
    factor, digits = format.unit_scale(unit)
    return f"{factor * value:.{digits}f}"


def format_interval(
    interval: Any, unit: str = "", *, digits: int | None = None, most: float = float("inf"), signed: bool = False
) -> str:
    """A number in its unit with its interval, if it has one, both cut off at ``most``."""
    factor, usual = format.unit_scale(unit)
    value, low, high = (min(float(part), most) * factor for part in (interval.value, interval.low, interval.high))
    if isnan(value):
        return format.MISSING
    form = f"{'+' if signed else ''}.{usual if digits is None else digits}f"
    bounds = "" if isnan(low) or isnan(high) else f" [{low:{form}}, {high:{form}}]"
    return f"{value:{form}}{bounds}"


def describe_skipped(run: Run) -> list[str]:
    """The recipes that were left out, with tasks and reason; one line for each recipe and reason."""
    tasks_by_reason: dict[tuple[str, str], list[str]] = {}
    for (task, recipe), reason in matrix_of(run).skipped.items():
        tasks_by_reason.setdefault((recipe, reason), []).append(task)
    return [f"{recipe} is left out of {', '.join(tasks)}: {reason}" for (recipe, reason), tasks in tasks_by_reason.items()]


def with_recipe_findings(run: Run, *, plugins: bool) -> Run:
    """A run with a finding for each recipe of a task: measured, left out or crashed. A run without a matrix stays as it is.

    ``plugins`` says whether the findings of the plugins stay, each with its task in the name of the plugin.
    """
    if run.matrix is None:
        return run
    by_task = [replace(finding, plugin=f"{finding.id.partition(':')[0]}: {finding.plugin}") for finding in run.findings]
    return replace(run, findings=(*(by_task if plugins else ()), *recipe_findings(run)))


def recipe_findings(run: Run) -> list[Finding]:
    """Each recipe of a task as a finding that is measured, left out or a crash."""
    matrix, means = matrix_of(run), mean_scores(run)
    errors = {(row["task"], row["recipe"]): str(row["error"]) for row in matrix.rows if row["error"]}
    findings = []
    for task, recipe in product(run.suite["tasks"], run.suite["recipes"]):
        skipped, error = matrix.skipped.get((task, recipe), ""), errors.get((task, recipe), "")
        score = (means.get((recipe, task)) or {}).get("accuracy")
        measured = "" if score is None else f"{run.suite['metric']} {score:.4f}"
        findings.append(
            Finding(
                id=f"{task}:recipe/{recipe}",
                plugin=f"{task}: recipes",
                contrast=recipe,
                verdict="ERROR" if error else "SKIPPED" if skipped else "INFO",
                metric=str(run.suite["metric"]),
                reason=error or skipped or measured,
            )
        )
    return findings
