"""Run a suite of one task or of many, and write the report of the run. Trains, and writes to the store and the report.

``xferbench run``, ``xferbench audit`` and the gate all run suites through this module.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xferbench.config import loader
from xferbench.core import files
from xferbench.core.canonical import digest
from xferbench.core.progress import Progress
from xferbench.core.run import replace_provenance
from xferbench.core.suite import Suite, replace_invocation
from xferbench.report.files import TASKS_FOLDER, write_run
from xferbench.runner import build_run, discovery, input_digests, preregistration, repair
from xferbench.runner.engines import choice
from xferbench.runner.execute import execute, store_path
from xferbench.runner.matrix import refuse_matrix, run_matrix
from xferbench.runner.store import cache_folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor

    from xferbench.core.run import Run


def run(
    suite: str | Path | Suite,
    *,
    output: str | Path | None = None,
    store: str | Path | None = None,
    allow_code: bool = False,
    on_progress: Callable[[Progress], None] = lambda _: None,
    **options: Any,
) -> Run:
    """Run a suite, and write its report into a folder; see :func:`xferbench.run`.

    Args:
        suite: the name of a shipped suite, the path of a suite file, or a suite.
        output: the folder for the report; None writes no report.
        store: the file of the store; None means the store in the user's cache folder.
        allow_code: whether the suite may run user code.
        on_progress: called with the progress.
        options: arguments of :func:`run_suite`.

    Raises:
        UserError: if the input cannot be used.
    """
    loaded, path = load_suite(suite, allow_code=allow_code), store_path(Path(store) if store else None)
    folder = Path(output) if output is not None else None
    if folder is not None:
        files.require_writable(folder)  # before an hour of training

    def save_task(task: Suite, result: Run) -> None:
        if folder is not None and task.plugins:
            save_report(result, folder / TASKS_FOLDER / task.name, path)

    result = run_suite(loaded, path=path, on_progress=on_progress, on_task=save_task, **options)
    if folder is not None:
        on_progress(_stage("writing the report"))
        save_report(result, folder, path)
    return result


def load_suite(suite: str | Path | Suite, *, allow_code: bool = False) -> Suite:
    """Return a suite from the name of a shipped suite, the path of a suite file, or a suite.

    Raises:
        UserError: if there is no such suite, or if its file is not valid.
    """
    loaded = suite if isinstance(suite, Suite) else loader.load_suite(loader.find_suite(str(suite)))
    return replace_invocation(loaded, allow_code=allow_code or loaded.invocation.allow_code)


def save_report(run: Run, folder: Path, path: Path) -> None:
    """Write all files of a run into a folder; figures are cached next to the store at ``path``."""
    write_run(run, folder, {plugin.id: plugin for plugin in discovery.run_plugins(run)}, cache_folder(path) / "figures")


def run_suite(
    suite: Suite,
    *,
    path: Path,
    device: str = "auto",
    workers: int | None = None,
    engine: str | Executor = choice.LOCAL,
    on_progress: Callable[[Progress], None] = lambda _: None,
    on_task: Callable[[Suite, Run], None] = lambda *_: None,
    plan: str | Path | None = None,
    repaired: Path | None = None,
    force: bool = False,
    command: str = "",
) -> Run:
    """Run a suite of one task or of many; trials that the store contains are not computed again.

    Args:
        suite: the suite.
        path: the file of the store.
        device, workers, engine, on_progress: as in :func:`xferbench.runner.execute.execute`.
        on_task: called with each task of a matrix and the run of its plugins.
        plan: the file of a frozen plan.
        repaired: the file for the network with repaired BatchNorm statistics; written only if the repair is confirmed.
        force: whether that file may be overwritten.
        command: the command line as the user typed it.

    Raises:
        UserError: if the input cannot be used, or if it differs from the plan.
    """
    if suite.matrix is not None:
        if plan is not None:
            refuse_matrix(suite, "--plan")
        return run_matrix(
            suite,
            path=path,
            device=device,
            workers=workers,
            engine=engine,
            on_progress=on_progress,
            on_task=on_task,
            command=command,
        )
    if repaired is not None:
        repair.require_repairable(suite, repaired, force=force)
    evidence: dict[str, Any] = {"command": command, "begun": utc_now()}
    on_progress(_stage("reading the data and the backbone"))
    inputs, frozen = input_digests.verify_inputs(suite, path, Path(plan) if plan else None)
    executed = execute(suite, path=path, device=device, workers=workers, engine=engine, on_progress=on_progress)
    if frozen:
        input_digests.assert_unchanged(suite, path, inputs)
    result = build_run.build_run(executed)
    evidence |= {"ended": utc_now(), "hash": digest(preregistration.plan_content(suite, inputs, executed.study.plugins))}
    evidence["plugin_sources"] = preregistration.plugin_sources(executed.study.plugins)
    arms = [state.arms for state in executed.step.states]  # a plugin's arm may use an intervention that the suite does not name
    evidence["intervention_sources"] = preregistration.intervention_sources(suite, arms)
    evidence["inputs"] = [preregistration.input_to_json(entry, listed=True) for entry in inputs]
    if repaired is not None:
        on_progress(_stage("repairing"))
        evidence["repair"] = repair.write_repair(executed, result.findings, repaired, cache_folder(path))
    return replace_provenance(result, preregistration=frozen, evidence=evidence)


def _stage(name: str) -> Progress:
    return Progress(stage=name, done=0, running=1, total=1, reused=0, left=None)


def utc_now() -> str:
    """Return the time in UTC in ISO format, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
