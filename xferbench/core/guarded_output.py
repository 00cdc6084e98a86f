"""Standard output and standard error that no printed name can control. Replaces sys.stdout and sys.stderr.

A name in a message may contain control characters, which a terminal obeys. A CI service obeys lines of a job's output: GitHub
Actions takes ``::error …`` at the beginning of a line, and ``##[error]…`` anywhere in it, for a command. A long line may be
wrapped right before such a name, so the text is guarded where it is written, and nowhere else.
"""

from __future__ import annotations

import os
import re
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO, cast

if TYPE_CHECKING:
    from collections.abc import Iterator

COLOR = r"\x1b\[[\d;]*m"
TERMINAL_CONTROL = rf"{COLOR}|\x1b\[\d*[AK]|\x1b\[\?25[hl]|\r"  # how rich colors text, moves the cursor and redraws a line
CONTROL = r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]"  # all but tabs and line feeds
COMMAND = re.compile(r"(?m)^(\s*:)(?=:)|(##)(?=\[)")


class GuardedOutput:
    """A text stream that replaces control characters by spaces and, on GitHub Actions, splits what a command begins with.

    All other attributes are those of the wrapped stream.
    """

    def __init__(self, stream: TextIO) -> None:
        allowed = TERMINAL_CONTROL if stream.isatty() else COLOR
        self.unguarded = stream
        self._control = re.compile(rf"({allowed})|{CONTROL}")
        self._has_commands = bool(os.environ.get("GITHUB_ACTIONS"))
        self._line = ""  # what the current line contains so far

    def write(self, text: str) -> int:
        """Write a text and return its length."""
        written = self._control.sub(lambda match: match[1] or " ", text)
        if self._has_commands:
            written = COMMAND.sub(lambda match: f"{match[0]} ", self._line + written)[len(self._line) :]
            self._line = (self._line + written).rpartition("\n")[2]
        self.unguarded.write(written)
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        """Write each text."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.unguarded, name)


@contextmanager
def guard_output() -> Iterator[None]:
    """Guard standard output and standard error; afterwards they are the streams of before."""
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast("TextIO", GuardedOutput(stream)) for stream in streams)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams


def unguarded(stream: TextIO) -> TextIO:
    """Return the stream itself, for commands that are meant."""
    return cast("TextIO", getattr(stream, "unguarded", stream))
