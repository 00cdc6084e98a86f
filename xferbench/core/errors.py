"""Errors in the user's input, reported in one message: what was found, what was expected, what to do. Pure."""

from __future__ import annotations

import re
from difflib import SequenceMatcher
from itertools import takewhile
from typing import TYPE_CHECKING

from xferbench.core.printable import one_line, printable_block

if TYPE_CHECKING:
    from collections.abc import Iterable

SIMILARITY_CUTOFF = 0.5  # similarity from which a known name is suggested
MAX_NAME_LENGTH = 100  # characters of a name that are compared with known names
MAX_PART_LENGTH = 2000  # characters of a part of a message, which may quote a value or list all known names


class UserError(Exception):
    """A mistake in the user's input; the command line prints it without a traceback and exits with code 2.

    The message has a line for each part, whatever line breaks and control characters a name in it has; ``do`` may have several.

    Args:
        what: what is wrong, with its location (file and key).
        found: what was found.
        expected: what would have been correct.
        do: the next action.
    """

    def __init__(self, what: str, *, found: str = "", expected: str = "", do: str = "") -> None:
        self.what, self.found, self.expected, self.do = map(_shorten, (what, found, expected, do))
        super().__init__(self.what)

    def __str__(self) -> str:
        steps = "\n      ".join(printable_block(self.do).splitlines())
        parts = (("found", one_line(self.found)), ("expected", one_line(self.expected)), ("do", steps))
        return "\n".join([one_line(self.what), *(f"  {name}: {text}" for name, text in parts if text)])

    def at(self, what: str) -> UserError:
        """Return the same error with another location."""
        return UserError(what, found=self.found, expected=self.expected, do=self.do)


def _shorten(text: str) -> str:
    return text if len(text) <= MAX_PART_LENGTH else text[:MAX_PART_LENGTH] + "…"


class Interrupted(KeyboardInterrupt):
    """An interrupt of a run.

    Args:
        kept: number of results of the run that the store keeps.
        cause: the arguments of the interrupt: the number of its signal, or nothing for one from the keyboard.
    """

    def __init__(self, kept: int, *cause: object) -> None:
        self.kept = kept
        super().__init__(*cause)


MEMORY_ERRORS = re.compile(r"MemoryError|OutOfMemoryError|out of memory|can't allocate memory|exit status -9\b")
MEMORY_ADVICE = "use fewer workers (-j 1), a smaller batch_size or smaller images, or a machine with more memory"


def is_out_of_memory(text: str) -> bool:
    """Return whether the message of an error says that memory has run out, as Python, torch and the system say it."""
    return MEMORY_ERRORS.search(text) is not None


def suggest(name: str, known: Iterable[str]) -> str:
    """Return 'did you mean X? known: A, B, C' for a name that is not among the known names."""
    known = sorted(known)
    (score, _), best = max(((_similarity(name, candidate), candidate) for candidate in known), default=((0.0, 0), ""))
    suggestion = f"did you mean {best!r}? " if score >= SIMILARITY_CUTOFF else ""
    return suggestion + "known: " + ", ".join(known)


def _similarity(name: str, other: str) -> tuple[float, int]:
    """Return the similarity of two names, and the length of their common prefix, which decides between equals.

    The similarity is the share of common letters, or 1 if one name is the initials of the other (``lr`` and
    ``learning_rate``).
    """
    name, other = name[:MAX_NAME_LENGTH].casefold(), other[:MAX_NAME_LENGTH].casefold()
    is_initials = name == _initials(other) or other == _initials(name)
    prefix = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(name, other, strict=False))))
    return 1.0 if is_initials else SequenceMatcher(None, name, other).ratio(), prefix


def _initials(text: str) -> str:
    return "".join(re.findall(r"\b[a-z]", text.replace("_", " ")))
