"""A matrix carried out: each task is a study of its own over one store, and all their records make one table."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

from xferbench import discover, execute, finish, frozen, given, looks, plan, recipes, store, suite, tabled
from xferbench.core import files
from xferbench.execute import Executed, Progress
from xferbench.lab import inputs
from xferbench.looks import by_question
from xferbench.problem import Problem
from xferbench.tabled import Done

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from xferbench.design import Matrix, Suite
    from xferbench.looks import Step
    from xferbench.record import Record
    from xferbench.table import Table

TASKS = "tasks"  # the folder of the tasks' own reports


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

    matrix = asked.matrix
    if matrix is None:
        raise Problem(f"{asked.path}: no [matrix]", found="a suite of one task", do="carry it out by run")
    if output is not None:
        files.require_writable(output)  # before an hour is spent
    tasks = [of_whole(task, asked) for task in matrix.tasks]
    for task in tasks:
        inputs.check(task)  # of the last task, too, before the first is trained
    done = []
    for number, task in enumerate(tasks, start=1):
        where = f"{task.name} ({number} of {len(tasks)})"
        done.append(_task(task, matrix, path, device, workers, partial(_placed, show, where)))
        if output is not None and task.plugins:
            plugins = {plugin.id: plugin for plugin in discover.known(done[-1].run)}
            write.write(done[-1].run, output / TASKS / task.name, plugins, store.cache(path) / "figures")
    table = tabled.joined(asked, matrix, done, command)
    if output is not None:
        crossed_files.forget(output / TASKS, [task.name for task in tasks if task.plugins])
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


def _placed(show: Callable[[Progress], None], where: str, at: Progress) -> None:
    show(replace(at, stage=f"{where}: {at.stage}"))


def _task(task: Suite, matrix: Matrix, path: Path, device: str, workers: int | None, show: Callable[[Progress], None]) -> Done:
    """Carry a task out: first its plugins, whose budget is their own, then the recipes."""
    begun, ran = monotonic(), execute.Counted()
    answers: dict[str, Record] = {}
    with execute.laid_out(task, path, device, workers, show) as (study, db, engine):
        ask = partial(execute.asked, engine, store.cache(path))
        listed = execute.answered(study, answers, db, ask, ran, show) if study.plugins else looks.Step()
        executed = _executed(study, listed, answers, ran, workers or execute.side_by_side(device), begun)
        own, skipped = recipes.study(matrix, study)
        step = execute.answered(own, answers, db, ask, ran, show)
        store.trim(store.cache(path))
    both = replace(listed, asked=(*listed.asked, *step.asked))
    cases = {case.plugin.id.removeprefix(recipes.PREFIX): case for case in step.cases}
    told = {
        (name, view, seed): record
        for name, case in cases.items()
        for (arm, view, seed), record in by_question(step.asked, case.plugin.id, answers).items()
        if arm == recipes.IT
    }
    return Done(
        task=task,
        run=replace(finish.finished(executed), notes=finish.notes(replace(executed, step=both))),
        cases=cases,
        answers=told,
        seeds=tuple(range(task.seed, task.seed + task.looks[0])),
        skipped=skipped,
        cost=finish.cost(_executed(study, both, answers, ran, executed.workers, begun)),
        train=min(task.train_size or study.facts.train, study.facts.train),
        parameters=study.facts.parameters,
        inputs=tuple({"task": task.name} | frozen.told(one, listed=False) for one in given.checked(task, path, None)[0]),
    )


def _executed(
    study: plan.Study, step: Step, answers: dict[str, Record], ran: execute.Counted, workers: int, begun: float
) -> Executed:
    return Executed(
        study=study,
        step=step,
        answers=dict(answers),
        trials_run=len(ran.trials),
        fits_run=ran.fits,
        workers=workers,
        seconds=monotonic() - begun,
    )


def forecast(asked: Suite, *, path: Path, device: str = "auto", workers: int | None = None) -> dict[str, dict[str, float]]:
    """By task what it asks at most: unique fits and trials, how many are there already, the seconds of computing the others."""
    matrix = asked.matrix
    assert matrix is not None, "only a suite with a matrix is foretold so"

    def more(one: plan.Study) -> plan.Study:
        own, _ = recipes.study(matrix, one)
        return replace(one, plugins=(*one.plugins, *own.plugins), subject=one.subject if one.plugins else own.subject)

    found = {}
    for task in matrix.tasks:
        told = execute.forecast(of_whole(task, asked), path=path, device=device, workers=workers, more=more)
        found[task.name] = {**told.last, "seconds": told.seconds[1]}
    return found


def of_whole(task: Suite, asked: Suite) -> Suite:
    """A task with what was said of the whole on the command line."""
    return replace(task, allow_code=asked.allow_code, seed=asked.seed, budget=asked.budget, overrides=asked.overrides)
