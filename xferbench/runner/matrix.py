"""Carries out a matrix: each task is a study of its own over one store, and all tasks make one run. Trains and stores."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

from xferbench.core.errors import UserError
from xferbench.data import inputs
from xferbench.runner import build_run, execute, input_digests, preregistration, store
from xferbench.runner.execute import StudyResult, WorkCounter
from xferbench.study import schedule
from xferbench.study.matrix_arms import ARM, PLUGIN_PREFIX, recipe_study
from xferbench.study.matrix_result import TaskResult, build_matrix_run
from xferbench.study.schedule import records_by_term

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from xferbench.core.progress import Progress
    from xferbench.core.record import Record
    from xferbench.core.run import Run
    from xferbench.core.suite import Matrix, Suite
    from xferbench.study.forecast import Forecast
    from xferbench.study.schedule import Schedule
    from xferbench.study.study import Study


def carry_out_matrix(
    suite: Suite,
    *,
    path: Path,
    device: str = "auto",
    workers: int | None = None,
    show: Callable[[Progress], None] = lambda _: None,
    finished: Callable[[Suite, Run], None] = lambda *_: None,
    command: str = "",
) -> Run:
    """Carry out all tasks of a matrix.

    Args:
        suite: a suite with a matrix. path: of the store. device, workers, show: as in :func:`xferbench.runner.execute.execute`.
        finished: called with each task and the run of its plugins, as soon as the task is done.
        command: the command line as the user typed it.

    Raises:
        UserError: for input that cannot be used.
    """
    matrix = matrix_of(suite)
    tasks = [task_suite(task, suite) for task in matrix.tasks]
    for task in tasks:
        inputs.check_inputs(task)  # of all tasks before the first one is trained
    results = []
    for number, task in enumerate(tasks, start=1):
        stage = f"{task.name} ({number} of {len(tasks)})"
        results.append(_carry_out_task(task, matrix, path, device, workers, partial(_show_stage, show, stage)))
        finished(task, results[-1].run)
    return build_matrix_run(suite, matrix, results, command)


def matrix_of(suite: Suite) -> Matrix:
    """The matrix of a suite.

    Raises:
        UserError: if the suite has none.
    """
    if suite.matrix is None:
        raise UserError(f"{suite.path}: no [matrix]", found="a suite of one task", do="carry it out by run")
    return suite.matrix


def refuse_matrix(suite: Suite, option: str) -> None:
    """Refuse an option that works on a suite of one task only.

    Raises:
        UserError: if the suite has a matrix.
    """
    if suite.matrix is not None:
        do = "give its tasks suites of their own"
        raise UserError(f"{option} of a suite with [matrix]", expected="a suite of one task", do=do)


def task_suite(task: Suite, suite: Suite) -> Suite:
    """A task with the settings of the whole suite that came from the command line."""
    return replace(task, allow_code=suite.allow_code, seed=suite.seed, budget=suite.budget, overrides=suite.overrides)


def _show_stage(show: Callable[[Progress], None], stage: str, progress: Progress) -> None:
    show(replace(progress, stage=f"{stage}: {progress.stage}"))


def _carry_out_task(
    task: Suite, matrix: Matrix, path: Path, device: str, workers: int | None, show: Callable[[Progress], None]
) -> TaskResult:
    """Carry out the plugins of a task, which have a budget of their own, and then its recipes."""
    begun, counted = monotonic(), WorkCounter()
    records: dict[str, Record] = {}
    with execute.open_study(task, path, device, workers, show) as (study, db, engine):
        ask = partial(execute.submit_group, engine, store.cache_folder(path))
        plugin_step = (
            execute.run_to_completion(study, records, db, ask, counted, show) if study.plugins else schedule.Schedule()
        )
        plugins = _executed(study, plugin_step, records, counted, workers or execute.default_workers(device), begun)
        recipes, skipped = recipe_study(matrix, study)
        recipe_step = execute.run_to_completion(recipes, records, db, ask, counted, show)
        store.trim_cache(store.cache_folder(path))
    both = replace(plugin_step, asked=(*plugin_step.asked, *recipe_step.asked))
    cases = {case.plugin.id.removeprefix(PLUGIN_PREFIX): case for case in recipe_step.cases}
    digests, _ = input_digests.verify_inputs(task, path, None)
    return TaskResult(
        task=task,
        run=replace(build_run.build_run(plugins), notes=build_run.build_notes(replace(plugins, step=both))),
        cases=cases,
        records={
            (name, view, seed): record
            for name, case in cases.items()
            for (arm, view, seed), record in records_by_term(recipe_step.asked, case.plugin.id, records).items()
            if arm == ARM
        },
        seeds=tuple(range(task.seed, task.seed + task.looks[0])),
        skipped=skipped,
        cost=build_run.cost_summary(_executed(study, both, records, counted, plugins.workers, begun)),
        train_images=min(task.train_size or study.facts.train, study.facts.train),
        parameters=study.facts.parameters,
        inputs=tuple({"task": task.name} | preregistration.input_to_json(digest, listed=False) for digest in digests),
    )


def _executed(
    study: Study, step: Schedule, records: dict[str, Record], counted: WorkCounter, workers: int, begun: float
) -> StudyResult:
    return StudyResult(
        study=study,
        step=step,
        answers=dict(records),
        trials_run=len(counted.trials),
        fits_run=counted.fits,
        workers=workers,
        seconds=monotonic() - begun,
    )


def forecast_matrix(suite: Suite, *, path: Path, device: str = "auto", workers: int | None = None) -> dict[str, Forecast]:
    """The forecast of each task, its recipes included."""
    matrix = matrix_of(suite)

    def with_recipes(study: Study) -> Study:
        recipes, _ = recipe_study(matrix, study)
        subject = study.subject if study.plugins else recipes.subject
        return replace(study, plugins=(*study.plugins, *recipes.plugins), subject=subject)

    return {
        task.name: execute.forecast(task_suite(task, suite), path=path, device=device, workers=workers, more=with_recipes)
        for task in matrix.tasks
    }
