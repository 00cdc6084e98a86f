"""One run from the records of all tasks of a matrix: rows, comparisons and claims. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from xferbench.analysis import estimates, metrics, verdict
from xferbench.config.render import describe_recipe
from xferbench.core.interventions import as_dict
from xferbench.core.matrix_result import MatrixResult
from xferbench.core.reason import Code, because
from xferbench.core.run import Provenance, Run
from xferbench.core.sections import flat_values
from xferbench.study import claims, selection
from xferbench.study.matrix_arms import RECIPE_ARM

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from xferbench.core.record import Record
    from xferbench.core.suite import Claim, Matrix, Suite
    from xferbench.study.plugin_state import PluginState

TASK_FIELDS = (  # fields of a suite that may differ between tasks
    "target",
    "train_size",
    "test_size",
    "arch",
    "weights",
    "preprocessing",
    "shifted",
    "source",
    "source_classes",
    "manifest",
    "interventions",
)
COLUMN_VIEWS = ("test", "shifted", "source", "source-before", "cost")  # views whose records give the columns of a row


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskResult:
    """The result of one task of a matrix.

    Attributes:
        task: the task as a suite.
        run: the run of the suite's plugins.
        cases: the state of each recipe.
        records: records by recipe, view and seed.
        seeds: the seeds of every recipe.
        skipped: the reason for each recipe that is not feasible.
        cost: the cost of plugins and recipes together.
        train_images: number of training images.
        parameters: number of parameters of the backbone.
        inputs: data and weights, with digests.
    """

    task: Suite
    run: Run
    cases: Mapping[str, PluginState]
    records: Mapping[tuple[str, str, int], Record]
    seeds: tuple[int, ...]
    skipped: Mapping[str, str]
    cost: Mapping[str, Any]
    train_images: int
    parameters: int
    inputs: tuple[Mapping[str, Any], ...]


def build_matrix_run(suite: Suite, matrix: Matrix, results: Sequence[TaskResult], command: str = "") -> Run:
    """Return the results of all tasks as one run. The id of a finding begins with its task.

    The comparisons and claims have reasons, for which :func:`xferbench.report.messages.write_matrix` writes sentences.
    """
    return Run(
        suite=_suite_values(suite, matrix, results),
        findings=tuple(
            replace(finding, id=f"{result.task.name}:{finding.id}") for result in results for finding in result.run.findings
        ),
        cells=(),
        cost=_sum_costs([result.cost for result in results]),
        arms={},
        notes=merge_notes(results),
        expected_false_alarms=sum(result.run.expected_false_alarms for result in results),
        provenance=Provenance(environment=results[0].run.provenance.environment),
        matrix=MatrixResult(
            rows=tuple(row for result in results for row in build_rows(result)),
            skipped={(result.task.name, name): reason for result in results for name, reason in result.skipped.items()},
            comparisons=tuple(entry for result in results for entry in compare_recipes(result, matrix.against)),
            claims=tuple(check_claim(claim, results) for claim in matrix.effects),
            inputs=tuple(entry for result in results for entry in result.inputs),
            command=command,
        ),
    )


def _suite_values(suite: Suite, matrix: Matrix, results: Sequence[TaskResult]) -> dict[str, Any]:
    """Return the suite as plain values, with its ``tasks`` by name, its ``recipes`` in words and the reference ``against``."""
    common = {name: value for name, value in as_dict(replace(suite, matrix=None)).items() if name not in TASK_FIELDS}
    first = {"arch": matrix.tasks[0].backbone.arch, "target": matrix.tasks[0].data.target}
    matrix_values = {
        "tasks": [task.name for task in matrix.tasks],
        "recipes": {grid.name: [describe_recipe(recipe) for recipe in grid.recipes] for grid in matrix.compared},
        "against": matrix.against,
        "similar": matrix.similar,
    }
    task_values = {
        result.task.name: {name: flat_values(result.task)[name] for name in ("target", "arch", "shifted", "source")}
        | ({"interventions": list(map(str, result.task.data.interventions))} if result.task.data.interventions else {})
        for result in results
    }
    return common | first | matrix_values | {"of_task": task_values}


def merge_notes(results: Sequence[TaskResult]) -> tuple[str, ...]:
    """Return the notes of all tasks, each once, with the names of its tasks unless it applies to all tasks."""
    tasks_by_note: dict[str, list[str]] = {}
    for result in results:
        for note in result.run.notes:
            tasks_by_note.setdefault(note, []).append(result.task.name)
    return tuple(note if len(names) == len(results) else f"{', '.join(names)}: {note}" for note, names in tasks_by_note.items())


def build_rows(result: TaskResult) -> list[dict[str, Any]]:
    """Return a row for each recipe and seed of a task, with the columns of :data:`xferbench.core.matrix_result.COLUMNS`."""
    return [_build_row(result, name, state, seed) for name, state in result.cases.items() for seed in result.seeds]


def _build_row(result: TaskResult, name: str, state: PluginState, seed: int) -> dict[str, Any]:
    task, arm = result.task, state.arms.get(RECIPE_ARM)
    views = {
        view: record for (recipe, view, record_seed), record in result.records.items() if (recipe, record_seed) == (name, seed)
    }
    test, shifted, source, before, costs = (views.get(view) for view in COLUMN_VIEWS)
    error = state.error or next((record.error for record in views.values() if record.error), "")
    cost = costs.scalars if costs else {}
    source_metric = selection.metric_for_views(task.rules.metric, ["source"])
    return {
        "task": task.name,
        "target": task.data.target,
        "backbone": task.backbone.arch,
        "train_size": result.train_images,
        "recipe": name,
        "chosen": describe_recipe(arm.pipeline.recipe) if arm and arm.pipeline else "",
        "seed": seed,
        "accuracy": _metric_value(test, task.rules.metric),
        "shifted": _metric_value(shifted, task.rules.metric),
        "source": _metric_value(source, source_metric),
        "source_before": _metric_value(before, source_metric),
        "trainable": cost.get("trainable"),
        "stored": cost.get("stored"),
        "multiply_adds": cost.get("multiply_adds"),
        "seconds": test.fit_seconds if test and not test.error else None,
        "diverged": test.scalars.get("diverged", 0.0) if test else None,
        "error": error or ("" if test else "not measured"),
    }


def _metric_value(record: Record | None, metric: str) -> float | None:
    return None if record is None or record.predictions is None else metrics.metric_value(record.predictions, metric)


def compare_recipes(result: TaskResult, against: str) -> list[dict[str, Any]]:
    """Compare each recipe with the reference recipe, paired by seed and test example.

    ``better`` and ``worse`` mean by more than the margin, ``equal`` within the margin, and ``open`` everything else. The
    bounds are one-sided and not adjusted, so that some of many comparisons are wrong.
    """
    entries = []
    for name in result.cases:
        if name == against:
            continue
        difference = estimates.estimate_contrast(
            claims.recipe_contrast(name, against), result.records, result.seeds, result.task.rules
        )
        low, high = difference.estimate.low, difference.estimate.high
        outcome = verdict.decide_difference(low, high, result.task.rules.margin, difference.error)
        names = {"task": result.task.name, "recipe": name, "against": against}
        numbers = {"difference": difference.estimate.harm, "low": low, "high": high}
        entries.append({**names, **numbers, "said": outcome, "error": difference.error})
    return entries


def check_claim(claim: Claim, results: Sequence[TaskResult]) -> dict[str, Any]:
    """Return a claim with its estimate, the interval, the published number, and the outcome."""
    result = next(result for result in results if result.task.name == claim.task)
    recipes = [name for name in (claim.recipe, claim.against) if name]
    errors = {name: result.cases[name].error for name in recipes if name in result.cases and result.cases[name].error}
    errors |= {name: result.skipped[name] for name in recipes if name in result.skipped}
    missing = [because(Code.RECIPE_ERROR, recipe=name, error=error) for name, error in errors.items()]
    estimate = claims.ClaimEstimate(why=missing[0]) if missing else _estimate_claim(claim, result)
    return asdict(claim) | flat_values(estimate) | {"outcome": claims.claim_outcome(claim, estimate)}


def _estimate_claim(claim: Claim, result: TaskResult) -> claims.ClaimEstimate:
    if claim.contrast:
        return claims.estimate_contrast(claim, result.run.findings)
    if claim.measure == "speed-up":
        pipelines = {name: state.arms[RECIPE_ARM].pipeline for name, state in result.cases.items() if RECIPE_ARM in state.arms}
        return claims.estimate_speed_up(claim, result.records, pipelines, result.seeds, result.task)
    if claim.measure:
        return claims.estimate_measure(claim, build_rows(result), result.parameters, result.task)
    return claims.estimate_difference(claim, result.records, result.seeds, result.task)


def _sum_costs(costs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    kinds = {name: costs[0][name] for name in ("fits", "trials", "seconds")}
    return {name: {key: sum(cost[name].get(key, 0) for cost in costs) for key in counts} for name, counts in kinds.items()}
