"""Input that cannot be worked with, told in one message: what was found, what was expected, what to do."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


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


def nearest(name: str, known: Iterable[str]) -> str:
    """'did you mean X? known: A, B, C', for a name that is not among the known ones."""
    known = sorted(known)
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    return (f"did you mean {close[0]!r}? " if close else "") + "known: " + ", ".join(known)
