"""The exit status and the message of an error, of an interrupt, and of a pipe whose reader is gone.

Redirects standard output, and handles SIGTERM and SIGHUP.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from xferbench.analysis import exit_code
from xferbench.core.errors import MEMORY_ADVICE, Interrupted, UserError, is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Iterator

TERMINATIONS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


def exit_status(error: BaseException, command: str = "the same command") -> tuple[int, object]:
    """Return the exit code of an error that ended a command, and its message, which may name the command."""
    if isinstance(error, UserError):
        return exit_code.USAGE_ERROR, error
    if isinstance(error, KeyboardInterrupt):
        kept = f"{error.kept} finished results are kept" if isinstance(error, Interrupted) else "finished results are kept"
        number = next((number for number in TERMINATIONS if error.args == (number,)), signal.SIGINT)
        by = "" if number == signal.SIGINT else f" by {number.name}"
        return exit_code.SIGNALLED + number, UserError(f"interrupted{by}; {kept}", do=f"to continue, run {command}")
    if isinstance(error, OSError):
        do = "free some space, check the path and its permissions"
        return exit_code.USAGE_ERROR, UserError("a file could not be read or written", found=str(error), do=do)
    if isinstance(error, MemoryError) or is_out_of_memory(str(error)):
        last = (str(error).strip().splitlines() or [""])[-1]
        return exit_code.CRASHED, UserError("out of memory; finished results are kept", found=last, do=MEMORY_ADVICE)
    last = (str(error).strip().splitlines() or [""])[-1]  # the message of a worker process is its whole traceback
    do = "run it again with --debug and report the output; finished results are kept"
    return exit_code.CRASHED, UserError(": ".join(filter(None, ("crashed", type(error).__name__, last))), do=do)


@contextmanager
def interrupt_on_termination() -> Iterator[None]:
    """Treat SIGTERM, which job schedulers send before they kill, and SIGHUP as interrupts that carry their number.

    A signal that is ignored, as SIGHUP under ``nohup``, stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():  # other threads cannot handle signals
        yield
        return

    def interrupt(number: int, _: object) -> None:
        raise KeyboardInterrupt(number)

    previous = {number: signal.getsignal(number) for number in TERMINATIONS}
    handled = [number for number, handler in previous.items() if handler not in {signal.SIG_IGN, None}]
    for number in handled:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, previous[number])


@contextmanager
def tolerate_broken_pipe() -> Iterator[None]:
    """Ignore that the reader of standard output closes it early; the exit code stays the same."""
    try:
        yield
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit) as error:
        if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):  # rich exits on a broken pipe
            raise
        discard_output()


def discard_output() -> None:
    """Redirect standard output to the null device, so that the flush at exit cannot fail and change the exit code."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
