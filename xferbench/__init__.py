"""Controlled experiments that say which of the known ways for transfer learning to fail has hit your pipeline.

    import xferbench
    run = xferbench.run("quick")          # a shipped suite's name, or a path to a suite file
    run.findings                          # verdicts, one a contrast and variant
    run.to_frame()                        # every record as a row

The command line says the same: ``xferbench --help``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from xferbench.design import Suite
    from xferbench.record import Finding, Run

__version__ = "0.1.0"
__all__ = ["Finding", "Run", "run"]


def run(
    suite: str | Path | Suite,
    *,
    output: str | Path | None = None,
    store: str | Path | None = None,
    device: str = "auto",
    workers: int | None = None,
    allow_code: bool = False,
    plan: str | Path | None = None,
) -> Run:
    """Carry out a suite, reusing whatever the store holds, and judge it.

    Args:
        suite: a shipped suite's name, a path to a suite file, or a suite.
        output: a folder for the report's files; None writes none.
        store: the file of records; None is the one in the user's cache directory.
        device: ``auto``, ``cuda``, ``mps`` or ``cpu``.
        workers: processes that compute side by side; None is one a core.
        allow_code: let the suite run code of its own (``python:module:callable``).
        plan: the file of a frozen plan (``xferbench validate --freeze``); what differs from it is refused.

    Raises:
        xferbench.problem.Problem: for input that cannot be worked with.
    """
    from xferbench import finish

    return finish.run(suite, output=output, store=store, device=device, workers=workers, allow_code=allow_code, plan=plan)


def __getattr__(name: str) -> object:
    """The public nouns, imported when they are first asked for."""
    if name in {"Finding", "Run"}:
        from xferbench import record

        return getattr(record, name)
    raise AttributeError(name)
