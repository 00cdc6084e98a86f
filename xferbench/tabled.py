"""From the records of tasks to one table: rows, comparisons, claims. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from xferbench import effects, judge, metrics, plan
from xferbench.analysis import verdict
from xferbench.recipes import IT
from xferbench.table import Table
from xferbench.wording import words

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from xferbench.design import Effect, Matrix, Suite
    from xferbench.looks import Case
    from xferbench.record import Record, Run

OF_TASK = (
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
)
SEEN = ("test", "shifted", "source", "source-before", "cost")  # what the columns are of


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A task carried out.

    Attributes:
        run: of the plugins that the suite lists. cases: of the recipes. answers: their records, by recipe, view and seed.
        seeds: at which each recipe was asked. skipped: why others were not. cost: of plugins and recipes together.
        train: images that were trained on. parameters: of the backbone. inputs: data and weights, with digests.
    """

    task: Suite
    run: Run
    cases: Mapping[str, Case]
    answers: Mapping[tuple[str, str, int], Record]
    seeds: tuple[int, ...]
    skipped: Mapping[str, str]
    cost: Mapping[str, Any]
    train: int
    parameters: int
    inputs: tuple[Mapping[str, Any], ...]


def joined(asked: Suite, matrix: Matrix, done: Sequence[Done], command: str = "") -> Table:
    """The tasks' results as one."""
    told = {one.name: [words(recipe) for recipe in one.recipes] for one in matrix.compared}
    common = {name: value for name, value in asdict(replace(asked, matrix=None)).items() if name not in OF_TASK}
    own = {"tasks": [task.name for task in matrix.tasks], "recipes": told, "against": matrix.against, "similar": matrix.similar}
    of_each = {
        one.task.name: {name: getattr(one.task, name) for name in ("target", "arch", "shifted", "source")} for one in done
    }
    return Table(
        suite=common | {"arch": matrix.tasks[0].arch, "target": matrix.tasks[0].target} | own | {"of_task": of_each},
        environment=done[0].run.environment,
        rows=tuple(row for one in done for row in rows(one)),
        skipped={(one.task.name, name): why for one in done for name, why in one.skipped.items()},
        comparisons=tuple(found for one in done for found in comparisons(one, matrix.against)),
        claims=tuple(claim(effect, done) for effect in matrix.effects),
        findings=tuple(replace(own, id=f"{one.task.name}:{own.id}") for one in done for own in one.run.findings),
        cost=_cost([one.cost for one in done]),
        notes=notes(done),
        inputs=tuple(told for one in done for told in one.inputs),
        command=command,
    )


def notes(done: Sequence[Done]) -> tuple[str, ...]:
    """What the tasks say beside their numbers, each once, with its tasks where it is not all of them."""
    told: dict[str, list[str]] = {}
    for one in done:
        edges = [
            f"{name} chose the {case.arms[IT].at_edge}: a better one may lie beyond"
            for name, case in one.cases.items()
            if at_edge(case)
        ]
        for note in (*one.run.notes, *edges):
            told.setdefault(note, []).append(one.task.name)
    return tuple(note if len(names) == len(done) else f"{', '.join(names)}: {note}" for note, names in told.items())


def at_edge(case: Case) -> bool:
    """Whether a recipe chose the lowest or the highest rate that it was tuned over."""
    return IT in case.arms and bool(case.arms[IT].at_edge)


def rows(done: Done) -> list[dict[str, Any]]:
    """A row for each recipe and seed of a task, with the columns of :data:`xferbench.table.COLUMNS`."""
    task = done.task
    found = []
    for name, case in done.cases.items():
        settled = case.arms.get(IT)
        chosen = words(settled.pipeline.recipe) if settled and settled.pipeline else ""
        for seed in done.seeds:
            own = {view: one for (recipe, view, at), one in done.answers.items() if (recipe, at) == (name, seed)}
            told, test = {view: own.get(view) for view in SEEN}, own.get("test")
            error = case.error or next((one.error for one in own.values() if one.error), "") or ("" if test else "not measured")
            cost = told["cost"].scalars if told["cost"] else {}
            of_source = plan.scored(task.metric, ["source"])
            found.append(
                {
                    "task": task.name,
                    "target": task.target,
                    "backbone": task.arch,
                    "train_size": done.train,
                    "recipe": name,
                    "chosen": chosen,
                    "seed": seed,
                    "accuracy": _value(test, task.metric),
                    "shifted": _value(told["shifted"], task.metric),
                    "source": _value(told["source"], of_source),
                    "source_before": _value(told["source-before"], of_source),
                    "trainable": cost.get("trainable"),
                    "stored": cost.get("stored"),
                    "multiply_adds": cost.get("multiply_adds"),
                    "seconds": test.fit_seconds if test and not test.error else None,
                    "diverged": test.scalars.get("diverged", 0.0) if test else None,
                    "error": error,
                }
            )
    return found


def _value(record: Record | None, metric: str) -> float | None:
    return None if record is None or record.predictions is None else metrics.value(record.predictions, metric)


def comparisons(done: Done, against: str) -> list[dict[str, Any]]:
    """Each recipe against one of them, paired by seed and test example.

    ``better`` or ``worse`` is by more than the margin, ``equal`` within it, the rest ``open``. Bounds are one-sided, and not
    adjusted: among many some are wrong.
    """
    found = []
    for name in done.cases:
        if name == against:
            continue
        told = judge.judge(effects.difference(name, against), done.answers, done.seeds, done.task)
        low, high = told.estimate.low, told.estimate.high
        said = verdict.difference(low, high, done.task.margin, told.error)
        one = {"task": done.task.name, "recipe": name, "against": against, "difference": told.estimate.harm}
        found.append(one | {"low": low, "high": high, "said": said, "error": told.error})
    return found


def claim(effect: Effect, done: Sequence[Done]) -> dict[str, Any]:
    """What became of a claim: the number, its interval, the published one, and whether they agree."""
    one = next(one for one in done if one.task.name == effect.task)
    away = next((name for name in (effect.recipe, effect.against) if name in one.skipped), "")
    crashed = next(
        (
            f"{name}: {one.cases[name].error}"
            for name in (effect.recipe, effect.against)
            if name in one.cases and one.cases[name].error
        ),
        "",
    )
    if away or crashed:
        number = effects.Number(why=crashed or f"{away}: {one.skipped[away]}")
    elif effect.contrast:
        number = effects.of_contrast(effect, one.run.findings)
    elif effect.measure == "speed-up":
        recipes = {name: case.arms[IT].pipeline for name, case in one.cases.items() if IT in case.arms}
        number = effects.speed_up(effect, one.answers, recipes, one.seeds, one.task)
    elif effect.measure:
        number = effects.of_measure(effect, rows(one), one.parameters, one.task)
    else:
        number = effects.of_recipes(effect, one.answers, one.seeds, one.task)
    return asdict(effect) | asdict(number) | {"outcome": effects.outcome(effect, number)}


def _cost(each: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    kinds = {name: each[0][name] for name in ("fits", "trials", "seconds")}
    return {name: {key: sum(one[name].get(key, 0) for one in each) for key in told} for name, told in kinds.items()}
