"""Input that cannot be worked with, told in one message: what was found, what was expected, what to do."""

from __future__ import annotations

import re
from difflib import SequenceMatcher
from itertools import takewhile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

CLOSE = 0.5  # likeness above which a known name may have been meant


class Problem(Exception):  # noqa: N818 - told to a user, who did nothing erroneous to the program
    """A mistake in what the user gave; the command line prints it without a traceback and exits with 2.

    Args:
        what: the thing that is wrong, with its place (file and key).
        found: what was there.
        expected: what would have been right.
        do: the next action.
    """

    def __init__(self, what: str, *, found: str = "", expected: str = "", do: str = "") -> None:
        self.what, self.found, self.expected, self.do = what, found, expected, do
        parts = (("found", found), ("expected", expected), ("do", do))
        super().__init__("\n".join([what, *(f"  {name}: {text}" for name, text in parts if text)]))

    def at(self, what: str) -> Problem:
        """The same, with its place told more fully."""
        return Problem(what, found=self.found, expected=self.expected, do=self.do)


def nearest(name: str, known: Iterable[str]) -> str:
    """'did you mean X? known: A, B, C', for a name that is not among the known ones."""
    known = sorted(known)
    close = max(((_likeness(name, one), one) for one in known), default=((0.0, 0), ""))
    meant = f"did you mean {close[1]!r}? " if close[0][0] >= CLOSE else ""
    return meant + "known: " + ", ".join(known)


def _likeness(name: str, one: str) -> tuple[float, int]:
    """Share of letters in common, 1 for the initials (``lr`` and ``learning_rate``); of equals a common beginning wins."""
    name, one = name.casefold(), one.casefold()
    initials = name == _initials(one) or one == _initials(name)
    beginning = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(name, one, strict=False))))
    return 1.0 if initials else SequenceMatcher(None, name, one).ratio(), beginning


def _initials(text: str) -> str:
    return "".join(re.findall(r"\b[a-z]", text.replace("_", " ")))
