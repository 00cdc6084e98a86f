"""A matrix carried out: each task is a study of its own over one store, and all their records make one table."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

from xferbench import discover, effects, execute, finish, fitting, frozen, given, judge, metrics, plan, store, suite
from xferbench.crossed import DEFAULT, SCRATCH
from xferbench.design import MADE_HERE, Choice, Contrast, Plugin
from xferbench.execute import Executed, Progress
from xferbench.looks import by_question
from xferbench.problem import Problem
from xferbench.strategies import choice, healthy, scratch
from xferbench.table import Table
from xferbench.wording import words

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from xferbench.design import Arm, Compared, Effect, Facts, Matrix, Pipeline, Suite
    from xferbench.looks import Case
    from xferbench.record import Record, Run

COST = "xferbench.lab.cost:measured@2"
IT = "beside:it"
PREFIX = "recipe:"  # what the plugins are called that stand for recipes


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A task carried out: its run, the recipes' cases, their records by recipe, view and seed, and what was left out."""

    task: Suite
    run: Run
    cases: Mapping[str, Case]
    answers: Mapping[tuple[str, str, int], Record]
    skipped: Mapping[str, str]
    parameters: int
    inputs: tuple[Mapping[str, Any], ...]


def run(
    asked: Suite,
    *,
    output: Path | None = None,
    path: Path,
    device: str = "auto",
    workers: int | None = None,
    show: Callable[[Progress], None] = lambda _: None,
    command: str = "",
) -> Table:
    """Carry a matrix out, and write its report, and one for each task that has plugins, into a folder.

    Args:
        asked: a suite with a matrix. output: that folder; None writes nothing. path: of the store.
        device, workers, show: as in :func:`xferbench.execute.execute`. command: as it was typed.

    Raises:
        Problem: for input that cannot be worked with, or a suite without a matrix.
    """
    from xferbench.report import crossed_files, write

    if asked.matrix is None:
        raise Problem(f"{asked.path}: no [matrix]", found="a suite of one task", do="carry it out by run")
    if output is not None:
        write.writable(output)  # before an hour is spent
    found, runs = carried_out(asked, path=path, device=device, workers=workers, show=show)
    table = replace(found, command=command)
    if output is not None:
        for task, one in runs.items():
            plugins = {plugin.id: plugin for plugin in discover.known(one)}
            write.write(one, output / "tasks" / task, plugins, store.cache(path) / "figures")
        crossed_files.write_all(table, output)
    return table


def cross(
    word: str | Path | Suite,
    *,
    output: str | Path | None,
    store: str | Path | None,
    device: str,
    workers: int | None,
    allow_code: bool,
) -> Table:
    """See :func:`xferbench.cross`."""
    from pathlib import Path

    asked = suite.load(suite.find(str(word))) if isinstance(word, str | Path) else word
    asked = replace(asked, allow_code=allow_code or asked.allow_code)
    path = execute.with_store(Path(store) if store else None)
    return run(asked, output=Path(output) if output else None, path=path, device=device, workers=workers)


def carried_out(
    asked: Suite,
    *,
    path: Path,
    device: str = "auto",
    workers: int | None = None,
    show: Callable[[Progress], None] = lambda _: None,
) -> tuple[Table, dict[str, Run]]:
    """Carry every task out, as far as the store does not hold it: its table, and the run of each task that has plugins.

    Raises:
        Problem: for input that cannot be worked with.
    """
    matrix = asked.matrix
    assert matrix is not None, "only a suite with a matrix is carried out so"
    done = []
    for number, task in enumerate(matrix.tasks, start=1):
        where = f"{task.name} ({number} of {len(matrix.tasks)})"
        done.append(_task(of_whole(task, asked), matrix, path, device, workers, partial(_placed, show, where)))
    return joined(asked, matrix, done), {one.task.name: one.run for one in done if one.task.plugins}


def _placed(show: Callable[[Progress], None], where: str, at: Progress) -> None:
    show(replace(at, stage=f"{where}: {at.stage}"))


def joined(asked: Suite, matrix: Matrix, done: Sequence[Done]) -> Table:
    """The tasks' results as one."""
    told = {one.name: [words(recipe) for recipe in one.recipes] for one in matrix.compared}
    names = [task.name for task in matrix.tasks]
    return Table(
        suite=asdict(replace(asked, matrix=None))
        | {"tasks": names, "recipes": told, "against": matrix.against, "similar": matrix.similar},
        environment=done[0].run.environment,
        rows=tuple(row for one in done for row in rows(one)),
        skipped={(one.task.name, name): why for one in done for name, why in one.skipped.items()},
        comparisons=tuple(found for one in done for found in comparisons(one, matrix.against)),
        claims=tuple(claim(effect, done) for effect in matrix.effects),
        findings=tuple(replace(own, id=f"{one.task.name}:{own.id}") for one in done for own in one.run.findings),
        cost=_cost([one.run.cost for one in done]),
        notes=_notes(done),
        inputs=tuple(told for one in done for told in one.inputs),
    )


def _notes(done: Sequence[Done]) -> tuple[str, ...]:
    """What the runs of the tasks say beside their verdicts, each once, with its tasks where it is not all of them."""
    told: dict[str, list[str]] = {}
    for one in done:
        for note in one.run.notes:
            told.setdefault(note, []).append(one.task.name)
    return tuple(note if len(names) == len(done) else f"{', '.join(names)}: {note}" for note, names in told.items())


def _task(task: Suite, matrix: Matrix, path: Path, device: str, workers: int | None, show: Callable[[Progress], None]) -> Done:
    begun, ran = monotonic(), execute.Counted()
    answers: dict[str, Record] = {}
    with execute.laid_out(task, path, device, workers, show) as (study, db, engine):
        whole, skipped = with_recipes(matrix, study)
        step = execute.answered(
            whole,
            answers,
            db,
            partial(execute.asked, engine, store.cache(path)),
            ran,
            show,
        )
        store.trim(store.cache(path))
    cases = {case.plugin.id.removeprefix(PREFIX): case for case in step.cases if case.plugin.id.startswith(PREFIX)}
    listed = tuple(case for case in step.cases if not case.plugin.id.startswith(PREFIX))
    executed = Executed(
        study=study,
        step=replace(step, cases=listed),
        answers=answers,
        trials_run=len(ran.trials),
        fits_run=ran.fits,
        workers=workers or execute.side_by_side(device),
        seconds=monotonic() - begun,
    )
    told = {
        (name, view, seed): record
        for name, case in cases.items()
        for (of, view, seed), record in by_question(step.asked, case.plugin.id, answers).items()
        if of == IT
    }
    return Done(
        task=task,
        run=finish.finished(executed),
        cases=cases,
        answers=told,
        skipped=skipped,
        parameters=study.facts.parameters,
        inputs=tuple({"task": task.name} | frozen.told(one, listed=False) for one in given.checked(task, path, None)[0]),
    )


def with_recipes(matrix: Matrix, study: plan.Study) -> tuple[plan.Study, dict[str, str]]:
    """A task's study with the recipes in it, and why others are not."""
    pipeline = study.subject.candidates[0] if isinstance(study.subject, Choice) else study.subject
    arms = {one.name: arm(one, pipeline) for one in matrix.compared}
    skipped = {name: why for name, one in arms.items() if (why := lacking(one, study.facts))}
    views = {effect.view for effect in matrix.effects if effect.recipe and effect.task == study.suite.name}
    own = [recipe_plugin(name, one, study.facts, views) for name, one in arms.items() if name not in skipped]
    subject = study.subject if study.plugins else pipeline  # which nobody asks about, and need not be chosen
    return replace(study, plugins=(*study.plugins, *own), subject=subject), skipped


def forecast(asked: Suite, *, path: Path, device: str = "auto", workers: int | None = None) -> dict[str, dict[str, float]]:
    """By task: unique fits and trials, how many of the trials are there already, and the seconds of computing the others."""
    matrix = asked.matrix
    assert matrix is not None, "only a suite with a matrix is foretold so"
    found = {}
    for task in matrix.tasks:
        own = of_whole(task, asked)
        told = execute.forecast(own, path=path, device=device, workers=workers, more=lambda one: with_recipes(matrix, one)[0])
        found[task.name] = {**told.first, "seconds": told.seconds[0]}
    return found


def of_whole(task: Suite, asked: Suite) -> Suite:
    """A task with what was said of the whole on the command line."""
    return replace(task, allow_code=asked.allow_code, seed=asked.seed, budget=asked.budget)


def arm(one: Compared, pipeline: Pipeline) -> Arm:
    """A recipe's arm: the best on validation of its rates, all else as in the pipeline."""
    plain = replace(pipeline, recipe=replace(pipeline.recipe, head="random", augment=""))
    if one.name == DEFAULT:
        return healthy(plain)
    if one.name == SCRATCH and not one.recipes:
        found = scratch(plain, plain.baseline)
        return replace(found, candidates=found.candidates[1:])  # the grid; S1 belongs to a subject
    return choice(plain, one.recipes)


def lacking(one: Arm, facts: Facts) -> str:
    """Why a recipe cannot be carried out here, or ""."""
    reasons = [fitting.unfit(pipeline.recipe, facts) for pipeline in (one.candidates if isinstance(one, Choice) else (one,))]
    return reasons[0] if all(reasons) else ""


def recipe_plugin(name: str, one: Arm, facts: Facts, views: set[str]) -> Plugin:
    """A recipe as something that is only measured: on target, shifted set and source, and what it costs."""
    first = one.candidates[0] if isinstance(one, Choice) else one
    pretrained = first.recipe.init not in {"random", "target", *MADE_HERE}
    there = {"test": True, "shifted": bool(facts.shifted), "source": bool(facts.source) and pretrained, "cost": True}
    there |= {"source-before": there["source"]}
    wanted = [view for view in ("test", "shifted", "source", "source-before", "cost") if there[view]]
    wanted += [view for view in sorted(views) if view not in there]
    return Plugin(
        id=f"{PREFIX}{name}",
        version=1,
        question="What does this recipe reach, and what does it cost?",
        page=__doc__,
        applies=lambda *_: "",
        cure=lambda pipeline, _: pipeline,
        induce=lambda *_: {},
        remedy="",
        beside=lambda *_: {"it": one},
        contrasts=tuple(Contrast(name=view, kind="info", weights={(IT, view): 1.0}) for view in wanted),
        measures={"cost": COST},
    )


def rows(done: Done) -> list[dict[str, Any]]:
    """A row for each recipe and seed of a task; a number that is not there is None.

    ``accuracy`` is the suite's metric on the target's test images, ``shifted`` likewise; ``source`` is the source head's after
    training and ``source_before`` before it; ``seconds`` are those of training, ``stored`` bytes per task, ``multiply_adds``
    those of one image.
    """
    task, found = done.task, []
    for name, case in done.cases.items():
        settled = case.arms.get(IT)
        chosen = words(settled.pipeline.recipe) if settled and settled.pipeline else ""
        seeds = sorted({seed for recipe, _, seed in done.answers if recipe == name})
        for seed in seeds or [task.seed]:
            told = {
                view: done.answers.get((name, view, seed)) for view in ("test", "shifted", "source", "source-before", "cost")
            }
            error = case.error or next((one.error for one in told.values() if one and one.error), "")
            cost = told["cost"].scalars if told["cost"] else {}
            test = told["test"]
            found.append(
                {
                    "task": task.name,
                    "target": task.target,
                    "backbone": task.arch,
                    "train_size": task.train_size,
                    "recipe": name,
                    "chosen": chosen,
                    "seed": seed,
                    "accuracy": _value(test, task.metric),
                    "shifted": _value(told["shifted"], task.metric),
                    "source": _value(told["source"], plan.scored(task.metric, ["source"])),
                    "source_before": _value(told["source-before"], plan.scored(task.metric, ["source"])),
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
    task, found = done.task, []
    for name in done.cases:
        if name == against or against not in done.cases:
            continue
        seeds = sorted({seed for recipe, view, seed in done.answers if (recipe, view) == (name, "test")})
        told = judge.judge(effects.difference(name, against), done.answers, seeds, task)
        low, high, margin = told.estimate.low, told.estimate.high, task.margin
        said = (
            "better" if low > margin else "worse" if high < -margin else "equal" if -margin < low and high < margin else "open"
        )
        one = {
            "task": task.name,
            "recipe": name,
            "against": against,
            "difference": told.estimate.harm,
            "low": low,
            "high": high,
        }
        found.append(one | {"said": "open" if told.error else said, "error": told.error})
    return found


def claim(effect: Effect, done: Sequence[Done]) -> dict[str, Any]:
    """What became of a claim: the number, its interval, the published one, and whether they agree."""
    one = next(one for one in done if one.task.name == effect.task)
    seeds = sorted({seed for recipe, view, seed in one.answers if (recipe, view) == (effect.recipe, "test")})
    if effect.contrast:
        number = effects.of_contrast(effect, one.run.findings)
    elif effect.recipe in one.skipped:
        number = effects.Number(why=f"{effect.recipe}: {one.skipped[effect.recipe]}")
    elif effect.measure == "speed-up":
        number = effects.speed_up(effect, one.answers, seeds, one.task.alpha)
    elif effect.measure:
        number = effects.of_measure(effect, rows(one), one.parameters, one.task.alpha)
    else:
        number = effects.of_recipes(effect, one.answers, seeds, one.task)
    return asdict(effect) | asdict(number) | {"outcome": effects.outcome(effect, number)}


def _cost(each: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    kinds = {name: each[0][name] for name in ("fits", "trials", "seconds")}
    return {name: {key: sum(one[name].get(key, 0) for one in each) for key in told} for name, told in kinds.items()}
