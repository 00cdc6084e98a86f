"""Carries out a suite of one task or of many, and writes the report of the run: the one path of ``run`` and of the gate."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xferbench.config import loader as suites
from xferbench.core import files
from xferbench.core.canonical import digest
from xferbench.core.progress import Progress
from xferbench.core.suite import Suite
from xferbench.report.files import TASKS_FOLDER, write_run
from xferbench.runner import build_run, discovery, input_digests, preregistration, repair
from xferbench.runner.execute import execute, store_path
from xferbench.runner.matrix import carry_out_matrix, refuse_matrix
from xferbench.runner.store import cache_folder

if TYPE_CHECKING:
    from collections.abc import Callable

    from xferbench.core.run import Run


def run(
    word: str | Path | Suite,
    *,
    output: str | Path | None = None,
    store: str | Path | None = None,
    allow_code: bool = False,
    show: Callable[[Progress], None] = lambda _: None,
    **options: Any,
) -> Run:
    """Carry out a suite, and write its report into a folder. See :func:`xferbench.run`.

    Args:
        word, output, store, allow_code: as there. show: called with the progress.
        options: of :func:`carry_out`.
    """
    suite, path = load(word, allow_code=allow_code), store_path(Path(store) if store else None)
    folder = Path(output) if output is not None else None
    if folder is not None:
        files.require_writable(folder)  # before an hour is spent

    def finished(task: Suite, result: Run) -> None:
        if folder is not None and task.plugins:
            save(result, folder / TASKS_FOLDER / task.name, path)

    result = carry_out(suite, path=path, show=show, finished=finished, **options)
    if folder is not None:
        show(_stage("writing the report"))
        save(result, folder, path)
    return result


def load(word: str | Path | Suite, *, allow_code: bool = False) -> Suite:
    """A suite by the name of a shipped one, by its file, or as it is."""
    suite = word if isinstance(word, Suite) else suites.load_suite(suites.find_suite(str(word)))
    return replace(suite, allow_code=allow_code or suite.allow_code)


def save(run: Run, folder: Path, path: Path) -> None:
    """Write all files of a run into a folder; figures are kept in the cache of the store at ``path``."""
    write_run(run, folder, {plugin.id: plugin for plugin in discovery.run_plugins(run)}, cache_folder(path) / "figures")


def carry_out(
    suite: Suite,
    *,
    path: Path,
    device: str = "auto",
    workers: int | None = None,
    show: Callable[[Progress], None] = lambda _: None,
    finished: Callable[[Suite, Run], None] = lambda *_: None,
    plan: str | Path | None = None,
    repaired: Path | None = None,
    force: bool = False,
    command: str = "",
) -> Run:
    """Carry out a suite of one task or of many, as far as the store does not hold its records already.

    Args:
        suite: what to carry out. path: of the store.
        device, workers, show: as in :func:`xferbench.runner.execute.execute`.
        finished: called with each task of a matrix and the run of its plugins.
        plan: the file of a frozen plan.
        repaired: the file for the network with repaired BatchNorm statistics, written if the repair is shown to work.
        force: whether that file may be overwritten. command: the command line as the user typed it.

    Raises:
        UserError: for input that cannot be used.
    """
    if suite.matrix is not None:
        if plan is not None:
            refuse_matrix(suite, "--plan")
        return carry_out_matrix(suite, path=path, device=device, workers=workers, show=show, finished=finished, command=command)
    if repaired is not None:
        repair.require_repairable(suite, repaired, force=force)
    evidence: dict[str, Any] = {"command": command, "begun": utc_now()}
    show(_stage("reading the data and the backbone"))
    inputs, then = input_digests.verify_inputs(suite, path, Path(plan) if plan else None)
    executed = execute(suite, path=path, device=device, workers=workers, show=show)
    if then:
        input_digests.assert_unchanged(suite, path, inputs)
    result = build_run.build_run(executed)
    evidence |= {"ended": utc_now(), "hash": digest(preregistration.plan_content(suite, inputs, executed.study.plugins))}
    evidence["plugin_sources"] = preregistration.plugin_sources(executed.study.plugins)
    evidence["inputs"] = [preregistration.input_to_json(entry, listed=True) for entry in inputs]
    if repaired is not None:
        show(_stage("repairing"))
        evidence["repair"] = repair.write_repair(executed, result.findings, repaired, cache_folder(path))
    return replace(result, frozen=then, evidence=evidence)


def _stage(name: str) -> Progress:
    return Progress(stage=name, done=0, running=1, total=1, reused=0, left=None)


def utc_now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
