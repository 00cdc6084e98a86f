"""The exit status and the message of an error, and of a pipe whose reader is gone. Redirects standard output."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from xferbench.analysis import exit_code
from xferbench.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator


def exit_status(error: BaseException) -> tuple[int, object]:
    """Return the exit code of an error that ended a command, and its message."""
    if isinstance(error, UserError):
        return exit_code.USAGE_ERROR, error
    if isinstance(error, KeyboardInterrupt):
        return exit_code.INTERRUPTED, "interrupted; finished results are kept, and the same command continues from there"
    if isinstance(error, OSError):
        do = "free some space, check the path and its permissions"
        return exit_code.USAGE_ERROR, UserError("a file could not be read or written", found=str(error), do=do)
    last = (str(error).strip().splitlines() or [""])[-1]  # the message of a worker process is its whole traceback
    do = "run it again with --debug and report the output; finished results are kept"
    return exit_code.CRASHED, UserError(f"crashed: {type(error).__name__}: {last}", do=do)


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
