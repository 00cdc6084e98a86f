"""From the records of all tasks of a matrix to one run: rows, comparisons, claims. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from xferbench.analysis import estimates, metrics, verdict
from xferbench.config.render import describe_recipe
from xferbench.core.interventions import as_dict
from xferbench.core.matrix_result import MatrixResult
from xferbench.core.run import Run
from xferbench.study import claims, selection
from xferbench.study.matrix_arms import ARM

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from xferbench.core.record import Record
    from xferbench.core.suite import Claim, Matrix, Suite
    from xferbench.study.schedule import PluginState

TASK_FIELDS = (  # of a suite, which may differ from task to task
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
COLUMN_VIEWS = ("test", "shifted", "source", "source-before", "cost")  # the views that the columns of a row come from


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskResult:
    """One task of a matrix, carried out.

    Attributes:
        run: of the plugins that the suite lists. cases: the state of each recipe. records: by recipe, view and seed.
        seeds: at which each recipe was measured. skipped: the reason for each recipe that does not fit.
        cost: of plugins and recipes together. train_images: how many images a recipe trains on.
        parameters: of the backbone. inputs: data and weights, with digests.
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
    """The results of all tasks as one run; the id of a finding begins with its task."""
    return Run(
        suite=_suite_values(suite, matrix, results),
        environment=results[0].run.environment,
        findings=tuple(
            replace(finding, id=f"{result.task.name}:{finding.id}") for result in results for finding in result.run.findings
        ),
        cells=(),
        cost=_sum_costs([result.cost for result in results]),
        arms={},
        notes=merge_notes(results),
        expected_false_alarms=sum(result.run.expected_false_alarms for result in results),
        matrix=MatrixResult(
            rows=tuple(row for result in results for row in build_rows(result)),
            skipped={(result.task.name, name): reason for result in results for name, reason in result.skipped.items()},
            comparisons=tuple(entry for result in results for entry in compare_recipes(result, matrix.against)),
            claims=tuple(check_claim(effect, results) for effect in matrix.effects),
            inputs=tuple(entry for result in results for entry in result.inputs),
            command=command,
        ),
    )


def _suite_values(suite: Suite, matrix: Matrix, results: Sequence[TaskResult]) -> dict[str, Any]:
    """The suite as plain values, with the names of its ``tasks``, its ``recipes`` in words and the reference ``against``."""
    common = {name: value for name, value in as_dict(replace(suite, matrix=None)).items() if name not in TASK_FIELDS}
    first = {"arch": matrix.tasks[0].arch, "target": matrix.tasks[0].target}
    own = {
        "tasks": [task.name for task in matrix.tasks],
        "recipes": {compared.name: [describe_recipe(recipe) for recipe in compared.recipes] for compared in matrix.compared},
        "against": matrix.against,
        "similar": matrix.similar,
    }
    of_task = {
        result.task.name: {name: getattr(result.task, name) for name in ("target", "arch", "shifted", "source")}
        | ({"interventions": list(map(str, result.task.interventions))} if result.task.interventions else {})
        for result in results
    }
    return common | first | own | {"of_task": of_task}


def merge_notes(results: Sequence[TaskResult]) -> tuple[str, ...]:
    """The notes of all tasks, each once, with the names of its tasks unless it holds for all of them."""
    tasks_by_note: dict[str, list[str]] = {}
    for result in results:
        edges = [
            f"{name} chose the {case.arms[ARM].at_edge}: a better rate may lie beyond it"
            for name, case in result.cases.items()
            if ARM in case.arms and case.arms[ARM].at_edge
        ]
        for note in (*result.run.notes, *edges):
            tasks_by_note.setdefault(note, []).append(result.task.name)
    return tuple(note if len(names) == len(results) else f"{', '.join(names)}: {note}" for note, names in tasks_by_note.items())


def build_rows(result: TaskResult) -> list[dict[str, Any]]:
    """A row for each recipe and seed of a task, with the columns of :data:`xferbench.core.matrix_result.COLUMNS`."""
    return [_build_row(result, name, case, seed) for name, case in result.cases.items() for seed in result.seeds]


def _build_row(result: TaskResult, name: str, case: PluginState, seed: int) -> dict[str, Any]:
    task, arm = result.task, case.arms.get(ARM)
    views = {view: record for (recipe, view, at), record in result.records.items() if (recipe, at) == (name, seed)}
    test, shifted, source, before, costs = (views.get(view) for view in COLUMN_VIEWS)
    error = case.error or next((record.error for record in views.values() if record.error), "")
    cost = costs.scalars if costs else {}
    source_metric = selection.metric_for_views(task.metric, ["source"])
    return {
        "task": task.name,
        "target": task.target,
        "backbone": task.arch,
        "train_size": result.train_images,
        "recipe": name,
        "chosen": describe_recipe(arm.pipeline.recipe) if arm and arm.pipeline else "",
        "seed": seed,
        "accuracy": _value(test, task.metric),
        "shifted": _value(shifted, task.metric),
        "source": _value(source, source_metric),
        "source_before": _value(before, source_metric),
        "trainable": cost.get("trainable"),
        "stored": cost.get("stored"),
        "multiply_adds": cost.get("multiply_adds"),
        "seconds": test.fit_seconds if test and not test.error else None,
        "diverged": test.scalars.get("diverged", 0.0) if test else None,
        "error": error or ("" if test else "not measured"),
    }


def _value(record: Record | None, metric: str) -> float | None:
    return None if record is None or record.predictions is None else metrics.metric_value(record.predictions, metric)


def compare_recipes(result: TaskResult, against: str) -> list[dict[str, Any]]:
    """Each recipe against the reference recipe, paired by seed and test example.

    ``better`` and ``worse`` mean by more than the margin, ``equal`` within the margin, and ``open`` everything else. The
    bounds are one-sided and not adjusted: among many comparisons some are wrong.
    """
    entries = []
    for name in result.cases:
        if name == against:
            continue
        difference = estimates.estimate_contrast(
            claims.recipe_contrast(name, against), result.records, result.seeds, result.task
        )
        low, high = difference.estimate.low, difference.estimate.high
        said = verdict.decide_difference(low, high, result.task.margin, difference.error)
        names = {"task": result.task.name, "recipe": name, "against": against}
        numbers = {"difference": difference.estimate.harm, "low": low, "high": high}
        entries.append(names | numbers | {"said": said, "error": difference.error})
    return entries


def check_claim(effect: Claim, results: Sequence[TaskResult]) -> dict[str, Any]:
    """A claim with its estimate, the interval, the published number, and whether they agree."""
    result = next(result for result in results if result.task.name == effect.task)
    recipes = [name for name in (effect.recipe, effect.against) if name]
    missing = [f"{name}: {result.cases[name].error}" for name in recipes if name in result.cases and result.cases[name].error]
    missing += [f"{name}: {result.skipped[name]}" for name in recipes if name in result.skipped]
    estimate = claims.ClaimEstimate(why=missing[0]) if missing else _estimate(effect, result)
    return asdict(effect) | asdict(estimate) | {"outcome": claims.claim_outcome(effect, estimate)}


def _estimate(effect: Claim, result: TaskResult) -> claims.ClaimEstimate:
    if effect.contrast:
        return claims.estimate_contrast(effect, result.run.findings)
    if effect.measure == "speed-up":
        pipelines = {name: case.arms[ARM].pipeline for name, case in result.cases.items() if ARM in case.arms}
        return claims.estimate_speed_up(effect, result.records, pipelines, result.seeds, result.task)
    if effect.measure:
        return claims.estimate_measure(effect, build_rows(result), result.parameters, result.task)
    return claims.estimate_difference(effect, result.records, result.seeds, result.task)


def _sum_costs(costs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    kinds = {name: costs[0][name] for name in ("fits", "trials", "seconds")}
    return {name: {key: sum(cost[name].get(key, 0) for cost in costs) for key in counts} for name, counts in kinds.items()}
