"""Run a matrix: each task is a study of its own, all share a store, and together they form a run. Trains; writes the store."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

from xferbench.core.errors import Interrupted, UserError
from xferbench.core.reason import Code, because
from xferbench.core.suite import replace_invocation, replace_rules
from xferbench.data import inputs
from xferbench.report.messages import write_matrix, write_sentence
from xferbench.runner import build_run, execute, input_digests, preregistration, store
from xferbench.runner.engines import choice
from xferbench.runner.execute import StudyResult, WorkCounter
from xferbench.study import schedule
from xferbench.study.matrix_arms import PLUGIN_PREFIX, RECIPE_ARM, recipe_study
from xferbench.study.matrix_result import TaskResult, build_matrix_run
from xferbench.study.schedule import records_by_term

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor
    from pathlib import Path

    from xferbench.core.progress import Progress
    from xferbench.core.record import Record
    from xferbench.core.run import Run
    from xferbench.core.suite import Matrix, Suite
    from xferbench.study.forecast import Forecast
    from xferbench.study.schedule import Schedule
    from xferbench.study.study import Study


def run_matrix(
    suite: Suite,
    *,
    path: Path,
    device: str = "auto",
    workers: int | None = None,
    engine: str | Executor = choice.LOCAL,
    on_progress: Callable[[Progress], None] = lambda _: None,
    on_task: Callable[[Suite, Run], None] = lambda *_: None,
    command: str = "",
) -> Run:
    """Run all tasks of a matrix.

    Args:
        suite: a suite with a matrix.
        path: the file of the store.
        device, workers, engine, on_progress: as in :func:`xferbench.runner.execute.execute`.
        on_task: called with each task and the run of its plugins, as soon as the task is done.
        command: the command line as the user typed it.

    Raises:
        UserError: if the input cannot be used.
    """
    matrix = require_matrix(suite)
    tasks = [task_suite(task, suite) for task in matrix.tasks]
    for task in tasks:
        inputs.check_inputs(task)  # for all tasks, before the first one is trained
    results = []
    for number, task in enumerate(tasks, start=1):
        stage = f"{task.name} ({number} of {len(tasks)})"
        try:
            report = partial(_report_stage, on_progress, stage)
            results.append(_run_task(task, matrix, path, device, workers, engine, report))
        except Interrupted as interrupt:
            earlier = sum(result.cost["trials"]["unique"] for result in results)
            raise Interrupted(kept=earlier + interrupt.kept) from interrupt
        on_task(task, results[-1].run)
    return write_matrix(build_matrix_run(suite, matrix, results, command))


def require_matrix(suite: Suite) -> Matrix:
    """Return the matrix of a suite.

    Raises:
        UserError: if the suite has no matrix.
    """
    if suite.matrix is None:
        raise UserError(f"{suite.invocation.path}: no [matrix]", found="a suite of one task", do="use xferbench.run for it")
    return suite.matrix


def refuse_matrix(suite: Suite, option: str) -> None:
    """Refuse an option that applies only to a suite of one task.

    Raises:
        UserError: if the suite has a matrix.
    """
    if suite.matrix is not None:
        do = "write a suite for each of its tasks"
        raise UserError(f"{option} cannot be combined with [matrix]", expected="a suite of one task", do=do)


def task_suite(task: Suite, suite: Suite) -> Suite:
    """Return a task with the settings of the whole suite that come from the command line."""
    invocation, rules = suite.invocation, suite.rules
    task = replace_invocation(task, allow_code=invocation.allow_code, overrides=invocation.overrides)
    return replace_rules(task, seed=rules.seed, budget=rules.budget)


def _report_stage(on_progress: Callable[[Progress], None], stage: str, progress: Progress) -> None:
    on_progress(replace(progress, stage=f"{stage}: {progress.stage}"))


def _run_task(
    task: Suite,
    matrix: Matrix,
    path: Path,
    device: str,
    workers: int | None,
    engine: str | Executor,
    on_progress: Callable[[Progress], None],
) -> TaskResult:
    """Run the plugins of a task, which have a budget of their own, and then its recipes."""
    start, counter = monotonic(), WorkCounter()
    records: dict[str, Record] = {}
    with execute.open_study(task, path, device, workers, on_progress, engine) as (study, db, call):
        submit = partial(execute.submit_group, call, store.cache_folder(path))
        plugin_step = (
            execute.run_to_completion(study, records, db, submit, counter, on_progress)
            if study.plugins
            else schedule.Schedule()
        )
        plugins = _study_result(study, plugin_step, records, counter, workers or execute.default_workers(device), start)
        recipes, skipped = recipe_study(matrix, study)
        recipe_step = execute.run_to_completion(recipes, records, db, submit, counter, on_progress)
        store.trim_cache(store.cache_folder(path))
    both = replace(plugin_step, requests=(*plugin_step.requests, *recipe_step.requests))
    states = {state.plugin.id.removeprefix(PLUGIN_PREFIX): state for state in recipe_step.states}
    edges = [
        write_sentence(because(Code.AT_EDGE, plugins=(), arm=name, edge=state.arms[RECIPE_ARM].at_edge))
        for name, state in states.items()
        if RECIPE_ARM in state.arms and state.arms[RECIPE_ARM].at_edge
    ]
    digests, _ = input_digests.verify_inputs(task, path, None)
    return TaskResult(
        task=task,
        run=replace(build_run.build_run(plugins), notes=(*build_run.build_notes(replace(plugins, step=both)), *edges)),
        cases=states,
        records={
            (name, view, seed): record
            for name, state in states.items()
            for (arm, view, seed), record in records_by_term(recipe_step.requests, state.plugin.id, records).items()
            if arm == RECIPE_ARM
        },
        seeds=tuple(range(task.rules.seed, task.rules.seed + task.rules.looks[0])),
        skipped={name: write_sentence(reason) for name, reason in skipped.items()},
        cost=build_run.cost_summary(_study_result(study, both, records, counter, plugins.workers, start)),
        train_images=min(task.data.train_size or study.profile.data.train, study.profile.data.train),
        parameters=study.profile.model.parameters,
        inputs=tuple({"task": task.name} | preregistration.input_to_json(digest, listed=False) for digest in digests),
    )


def _study_result(
    study: Study, step: Schedule, records: dict[str, Record], counter: WorkCounter, workers: int, start: float
) -> StudyResult:
    return StudyResult(
        study=study,
        step=step,
        records=dict(records),
        trials_run=len(counter.trials),
        fits_run=counter.fits,
        workers=workers,
        seconds=monotonic() - start,
    )


def forecast_matrix(suite: Suite, *, path: Path, device: str = "auto", workers: int | None = None) -> dict[str, Forecast]:
    """Return the forecast of each task, including its recipes."""
    matrix = require_matrix(suite)

    def with_recipes(study: Study) -> Study:
        recipes, _ = recipe_study(matrix, study)
        subject = study.subject if study.plugins else recipes.subject
        return replace(study, plugins=(*study.plugins, *recipes.plugins), subject=subject)

    return {
        task.name: execute.forecast(task_suite(task, suite), path=path, device=device, workers=workers, extend=with_recipes)
        for task in matrix.tasks
    }
