"""Carries out a suite of one task or of many, and writes the report of the run: the one path of ``run`` and of the gate."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xferbench import discover, finish, frozen, given, repair
from xferbench import suite as suites
from xferbench.core import files
from xferbench.design import Suite, digest
from xferbench.execute import Progress, execute, with_store
from xferbench.report import write
from xferbench.runner.matrix import carry_out_matrix, refuse_matrix
from xferbench.store import cache

if TYPE_CHECKING:
    from collections.abc import Callable

    from xferbench.record import Run


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
    suite, path = load(word, allow_code=allow_code), with_store(Path(store) if store else None)
    folder = Path(output) if output is not None else None
    if folder is not None:
        files.require_writable(folder)  # before an hour is spent

    def finished(task: Suite, result: Run) -> None:
        if folder is not None and task.plugins:
            save(result, folder / write.TASKS / task.name, path)

    result = carry_out(suite, path=path, show=show, finished=finished, **options)
    if folder is not None:
        show(_stage("writing the report"))
        save(result, folder, path)
    return result


def load(word: str | Path | Suite, *, allow_code: bool = False) -> Suite:
    """A suite by the name of a shipped one, by its file, or as it is."""
    suite = word if isinstance(word, Suite) else suites.load(suites.find(str(word)))
    return replace(suite, allow_code=allow_code or suite.allow_code)


def save(run: Run, folder: Path, path: Path) -> None:
    """Write all files of a run into a folder; figures are kept in the cache of the store at ``path``."""
    write.write(run, folder, {plugin.id: plugin for plugin in discover.known(run)}, cache(path) / "figures")


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
        device, workers, show: as in :func:`xferbench.execute.execute`.
        finished: called with each task of a matrix and the run of its plugins.
        plan: the file of a frozen plan.
        repaired: the file for the network with repaired BatchNorm statistics, written if the repair is shown to work.
        force: whether that file may be overwritten. command: the command line as the user typed it.

    Raises:
        Problem: for input that cannot be used.
    """
    if suite.matrix is not None:
        if plan is not None:
            refuse_matrix(suite, "--plan")
        return carry_out_matrix(suite, path=path, device=device, workers=workers, show=show, finished=finished, command=command)
    if repaired is not None:
        repair.writable(suite, repaired, force=force)
    evidence: dict[str, Any] = {"command": command, "begun": now()}
    show(_stage("reading the data and the backbone"))
    inputs, then = given.checked(suite, path, Path(plan) if plan else None)
    executed = execute(suite, path=path, device=device, workers=workers, show=show)
    if then:
        given.unchanged(suite, path, inputs)
    result = finish.finished(executed)
    evidence |= {"ended": now(), "hash": digest(frozen.plan(suite, inputs, executed.study.plugins))}
    evidence["plugin_sources"] = frozen.sources(executed.study.plugins)
    evidence["inputs"] = [frozen.told(entry, listed=True) for entry in inputs]
    if repaired is not None:
        show(_stage("repairing"))
        evidence["repair"] = repair.carried_out(executed, result.findings, repaired, cache(path))
    return replace(result, frozen=then, evidence=evidence)


def _stage(name: str) -> Progress:
    return Progress(stage=name, done=0, running=1, total=1, reused=0, left=None)


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
