"""Tables of a matrix for every output format: recipes over all tasks, the table of size × similarity, and claims. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from itertools import product
from math import isnan
from typing import TYPE_CHECKING, Any

import numpy as np

from xferbench.analysis import aggregate, metrics, rules_of_thumb
from xferbench.analysis.regret import largest_regret, mean_regret, regret_grid, tied_with_best
from xferbench.analysis.scores import scores_by_cell, scores_from_frame
from xferbench.core.errors import UserError
from xferbench.core.run import Finding, HarmEstimate
from xferbench.report import format
from xferbench.study.claims import CLAIM_OUTCOMES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from xferbench.analysis.regret import TaskRegret
    from xferbench.analysis.scores import Scores
    from xferbench.core.matrix_result import MatrixResult
    from xferbench.core.run import Run

SIZES, SIMILARITIES = ("few", "many"), ("similar", "different")
TEXTBOOK, BY_SIZE = "the 2×2's advice", "the size rule's advice"  # names of the rules in the tables


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeSummary:
    """A recipe over all tasks, or a rule that advises a recipe for each task: values with 95 % intervals, as text."""

    recipe: str
    gain: str
    rank: str
    regret: str
    greatest: str
    better: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Quadrant:
    """One quadrant of size × similarity as text.

    Attributes:
        name: size and similarity.
        tasks: its tasks.
        advised: the recipe that the textbook advises.
        regret: regret of the advised recipe, or why it is missing.
        best: the best recipe.
        tied: other recipes that are not shown to be worse.
    """

    name: str
    tasks: str
    advised: str
    regret: str
    best: str
    tied: str


def matrix_of(run: Run) -> MatrixResult:
    """Return the matrix of a run, which must have one."""
    assert run.matrix is not None, "only the run of a suite with [matrix] has these tables"
    return run.matrix


def format_outcome(run: Run) -> str:
    """Return the result of a matrix in one line."""
    matrix, recipes, tasks = matrix_of(run), len(run.suite["recipes"]), len(run.suite["tasks"])
    sentences = [f"{recipes} recipe{'s' * (recipes != 1)} on {tasks} task{'s' * (tasks != 1)}."]
    if matrix.claims:
        counts = Counter(str(claim["outcome"]) for claim in matrix.claims)
        plural = {"agrees": "agree", "disagrees": "disagree"}
        parts = [
            f"{counts[outcome]} {outcome if counts[outcome] == 1 else plural.get(outcome, outcome)}"
            for outcome in CLAIM_OUTCOMES
            if counts[outcome]
        ]
        sentences.append(f"Of {len(matrix.claims)} claim{'s' * (len(matrix.claims) != 1)}: {', '.join(parts)}.")
    if matrix.crashes:
        sentences.append(f"{len(matrix.crashes)} crashed.")
    return " ".join(sentences)


def mean_scores(run: Run) -> dict[tuple[str, str], dict[str, float | None]]:
    """Return the mean over seeds of every numeric column, by recipe and task; None if no seed has a number."""
    means: dict[tuple[str, str], dict[str, float | None]] = {}
    for (recipe, task), rows in run.to_frame().groupby(["recipe", "task"], sort=False):
        columns = rows.mean(numeric_only=True)
        means[str(recipe), str(task)] = {str(name): None if isnan(value) else float(value) for name, value in columns.items()}
    return means


def comparable_scores(run: Run) -> tuple[Scores | None, list[str]]:
    """Return the scores of the recipes that have all tasks, and notes about excluded recipes; None if nothing is comparable."""
    if len(run.suite["tasks"]) < 2 or len(run.suite["recipes"]) < 2:
        return None, []
    try:
        scores = scores_from_frame(run.to_frame(), matrix_of(run).skipped, str(run.suite["metric"]))
    except UserError as error:
        return None, [str(error)]
    excluded = [f"{name} is not part of the table over all tasks: {reason}" for name, reason in scores.left_out.items()]
    return scores, [*excluded, *scores.notes]


def advised_recipes(run: Run) -> dict[str, dict[str, str]]:
    """Return the recipe that each rule advises, by task; a rule without advice for every task is left out."""
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
    """Return a summary of every recipe and rule, the smallest mean regret first, and notes about excluded recipes."""
    scores, notes = comparable_scores(run)
    if scores is None:
        return [], notes
    rules = [
        (rule, advised)
        for rule, advised in advised_recipes(run).items()
        if {advised[task] for task in scores.tasks} <= {*scores.recipes}
    ]
    both = _with_rules(scores, rules)
    against = both.recipes.index(run.suite["against"]) if run.suite["against"] in both.recipes else None
    # The interquartile mean must cut off unusual runs, and not a whole task that is easy or hard for all recipes.
    reference = scores.table.mean((0, 2), keepdims=True) if against is None else both.table[against].mean(-1)[None, :, None]
    gain, wins = aggregate.iqm(replace(both, table=both.table - reference)), aggregate.probability_of_improvement(both)
    rank, mean, greatest = aggregate.mean_rank(scores), mean_regret(both), largest_regret(both)
    metric = metrics.get_metric(str(run.suite["metric"]))
    order = sorted(range(len(both.recipes)), key=lambda index: float(np.nan_to_num(mean.value[index], nan=np.inf)))
    return [
        RecipeSummary(
            recipe=both.recipes[index],
            gain=format.format_interval(gain[index], metric.unit, signed=True),
            rank=format.format_interval(rank[index], digits=1) if index < len(scores.recipes) else "",
            regret=format.format_interval(mean[index], metric.unit, maximum=metric.span),
            greatest=format.format_interval(greatest[index], metric.unit, maximum=metric.span),
            better="" if against in {None, index} else format.format_interval(wins[index, against], "accuracy"),
        )
        for index in order
    ], notes


def _with_rules(scores: Scores, rules: Sequence[tuple[str, Mapping[str, str]]]) -> Scores:
    """Return scores with a row for each rule, copied from the recipes that it advises.

    Such a row changes no best score of a task. It would change ranks, so ranks are computed without it.
    """
    if not rules:
        return scores
    copies = [
        [scores.table[scores.recipes.index(advised[task]), column] for column, task in enumerate(scores.tasks)]
        for _, advised in rules
    ]
    recipes = (*scores.recipes, *(name for name, _ in rules))
    return replace(scores, table=np.concatenate([scores.table, np.array(copies)]), recipes=recipes)


def summary_columns(run: Run) -> list[str]:
    """Return the headings of the columns of :func:`summary_cells`."""
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
    """Return the cells of one row."""
    return [format.one_line(summary.recipe), summary.gain, summary.rank, summary.regret, summary.greatest, summary.better]


def measure_quadrants(run: Run) -> dict[tuple[str, ...], TaskRegret]:
    """Return the best recipe, its ties and the regret of the advised recipe, by (size, similarity)."""
    advised = advised_recipes(run).get(TEXTBOOK)
    if advised is None or len(run.suite["recipes"]) < 2:
        return {}
    scores = {quadrant: table for quadrant, table in _scores_by_quadrant(run).items() if not table.empty}
    return regret_grid(scores, {quadrant: advised[table.tasks[0]] for quadrant, table in scores.items()})


def describe_quadrants(run: Run) -> list[Quadrant]:
    """Return the quadrants of :func:`measure_quadrants` as text; empty if the suite does not state the similarity of tasks."""
    cells = measure_quadrants(run)
    quadrant_of, unit = quadrants_by_task(run) if cells else {}, metrics.get_metric(str(run.suite["metric"])).unit
    return [
        Quadrant(
            name=f"{size} images, {similarity}",
            tasks=", ".join(task for task, quadrant in quadrant_of.items() if quadrant == (size, similarity)),
            advised=cell.advised,
            regret=cell.why if cell.regret is None else format.format_interval(cell.regret, unit),
            best=cell.best,
            tied=", ".join(name for name in cell.tied if name != cell.best) or "none",
        )
        for (size, similarity), cell in cells.items()
    ]


def _scores_by_quadrant(run: Run) -> dict[tuple[str, ...], Scores]:
    """Return the scores of each quadrant; a recipe that is missing in one quadrant is still compared in the others."""
    quadrant_of = quadrants_by_task(run)
    tasks = {
        quadrant: [task for task, other in quadrant_of.items() if other == quadrant]
        for quadrant in dict.fromkeys(quadrant_of.values())
    }
    return scores_by_cell(run.to_frame(), tasks, matrix_of(run).skipped, str(run.suite["metric"]))


def tied_recipes(run: Run) -> set[tuple[str, str]]:
    """Return the (recipe, task) pairs that are not shown to be worse than the best of the task; none for a single recipe."""
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
    """Return the quadrant of each task, in the order in which quadrants are drawn."""
    sizes = {str(row["task"]): row["train_size"] for row in matrix_of(run).rows}
    similar = run.suite["similar"]
    quadrants: dict[str, tuple[str, ...]] = {
        task: (SIZES[sizes[task] >= rules_of_thumb.FEW_EXAMPLES], SIMILARITIES[not similar[task]]) for task in sizes
    }
    order: list[tuple[str, ...]] = [(size, similarity) for size in SIZES for similarity in SIMILARITIES]
    return dict(sorted(quadrants.items(), key=lambda item: order.index(item[1])))


def quadrant_means(run: Run) -> dict[tuple[str, ...], dict[str, float]]:
    """Return the mean over tasks and seeds by quadrant and recipe; the mean of a loss is negated."""
    if not measure_quadrants(run):
        return {}
    return {
        quadrant: dict(zip(scores.recipes, map(float, scores.table.mean((1, 2))), strict=True))
        for quadrant, scores in _scores_by_quadrant(run).items()
        if not scores.empty
    }


def format_claim(claim: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return the measured effect of a claim, its claimed bounds and its published value, as text."""
    unit, absolute = str(claim["unit"]), bool(claim["measure"])
    bounds = {
        name: format_size(claim[name], unit, absolute=absolute) for name in ("at_least", "at_most") if claim[name] is not None
    }
    claimed = " and ".join(f"{name.replace('_', ' ')} {value}" for name, value in bounds.items())
    published = "direction only" if claim["published"] is None else format_size(claim["published"], unit, absolute=absolute)
    if claim["ours"] is None or isnan(claim["ours"]):
        return format.MISSING, claimed, published
    low, high = (format_size(claim[name], unit, absolute=absolute, with_unit=False) for name in ("low", "high"))
    return f"{format_size(claim['ours'], unit, absolute=absolute)} [{low}, {high}]", claimed, published


def format_size(value: float | None, unit: str, *, absolute: bool = False, with_unit: bool = True) -> str:
    """Return a number in its unit: a difference in points, an accuracy or a share in percent, or any other unit."""
    if value is None or isnan(value):
        return format.MISSING
    if (unit in format.PERCENT_UNITS or not unit) and not absolute:
        return format.format_harm(value, "accuracy")
    if unit in format.PERCENT_UNITS or unit.startswith("of the"):
        return f"{100 * value:.3g}" + (" %" if with_unit else "")
    return f"{value:.3g}" + (f" {format.one_line(unit)}" if with_unit else "")


def describe_skipped(run: Run) -> list[str]:
    """Return one line for each recipe that was left out and each reason, with the tasks."""
    tasks_by_reason: dict[tuple[str, str], list[str]] = {}
    for (task, recipe), reason in matrix_of(run).skipped.items():
        tasks_by_reason.setdefault((recipe, reason), []).append(task)
    return [f"{recipe} is left out of {', '.join(tasks)}: {reason}" for (recipe, reason), tasks in tasks_by_reason.items()]


def with_recipe_findings(run: Run, *, plugins: bool) -> Run:
    """Return a run with a finding for each recipe of each task; a run without a matrix is returned unchanged.

    Args:
        run: the run.
        plugins: whether to keep the findings of plugins, each with its task before the name of the plugin.
    """
    if run.matrix is None:
        return run
    by_task = [replace(finding, plugin=f"{finding.id.partition(':')[0]}: {finding.plugin}") for finding in run.findings]
    return replace(run, findings=(*(by_task if plugins else ()), *recipe_findings(run)))


def recipe_findings(run: Run) -> list[Finding]:
    """Return a finding for each recipe of each task: measured, left out or crashed."""
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
                estimate=HarmEstimate(metric=str(run.suite["metric"])),
                reason=error or skipped or measured,
            )
        )
    return findings
