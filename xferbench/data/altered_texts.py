"""Altered copies of texts, which measure how many copies the search for duplicates finds. Pure.

Near duplicates in datasets of text differ by a few words or characters, and one is often a part of the other: see Lee et al.
2022 (arXiv:2107.06499), sections 4 and 5.
"""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

import numpy as np

from xferbench.core.suite import TEXT_COPY_KINDS
from xferbench.data.raw import TextExample

if TYPE_CHECKING:
    from collections.abc import Callable

CHARACTERS_PER_ERROR = 60  # about ten English words
DROPPED_SHARE = 0.1  # of the words
KEPT_SHARE = 0.75  # of the words of the longer one of a text and its truncated or extended copy
MIN_WORDS = 4  # a text with fewer, or of a language without spaces, is altered by characters


def alter_text(example: TextExample, kind: str, rng: np.random.Generator, donor: TextExample) -> TextExample:
    """Return an altered copy of a text, or of both texts of a pair.

    Args:
        example: the text.
        kind: one of ``TEXT_COPY_KINDS``.
        rng: the random generator.
        donor: another text, whose words follow those of an extended copy.
    """
    if kind == "swapped" and example.pair:
        # A swapped pair has a digest, so only one that is altered in another way, too, tests the search.
        return TextExample(_shorten(example.pair, rng, ""), _shorten(example.text, rng, ""))
    alter = ALTERATIONS[kind]
    return TextExample(
        *(alter(text, rng, other or donor.text) if text else "" for text, other in zip(example, donor, strict=True))
    )


def _repunctuate(text: str, _: np.random.Generator, __: str) -> str:
    bare = "".join(" " if unicodedata.category(character).startswith("P") else character for character in text)
    return " ".join(bare.upper().split()) or text


def _misspell(text: str, rng: np.random.Generator, _: str) -> str:
    """Swap two neighboring letters here and there."""
    characters = np.array(list(text))
    is_letter = np.array([character.isalpha() for character in text])
    places = np.flatnonzero(is_letter[:-1] & is_letter[1:] & (characters[:-1] != characters[1:]))
    for place in rng.permutation(places)[: max(1, round(len(text) / CHARACTERS_PER_ERROR))]:
        characters[[place, place + 1]] = characters[[place + 1, place]]
    return "".join(characters.tolist())


def _shorten(text: str, rng: np.random.Generator, _: str) -> str:
    parts, separator = _parts(text)
    dropped = rng.permutation(len(parts))[: max(1, round(DROPPED_SHARE * len(parts)))]
    return separator.join(part for index, part in enumerate(parts) if index not in dropped) or text


def _truncate(text: str, _: np.random.Generator, __: str) -> str:
    parts, separator = _parts(text)
    return separator.join(parts[: max(1, round(KEPT_SHARE * len(parts)))])


def _extend(text: str, _: np.random.Generator, donor: str) -> str:
    parts, separator = _parts(text)
    others = donor.split() if separator else list(donor)
    added = max(1, round(len(parts) * (1 / KEPT_SHARE - 1)))
    return separator.join([*parts, *np.resize(np.array(others or parts), added).tolist()])


def _swap_halves(text: str, _: np.random.Generator, __: str) -> str:
    parts, separator = _parts(text)
    middle = len(parts) // 2
    return separator.join([*parts[middle:], *parts[:middle]])


def _parts(text: str) -> tuple[list[str], str]:
    """Return the words of a text and what separates them, or its characters."""
    words = text.split()
    return (words, " ") if len(words) >= MIN_WORDS else (list(text), "")


ALTERATIONS: dict[str, Callable[[str, np.random.Generator, str], str]] = dict(
    zip(TEXT_COPY_KINDS, (_repunctuate, _misspell, _shorten, _truncate, _extend, _swap_halves), strict=True)
)
