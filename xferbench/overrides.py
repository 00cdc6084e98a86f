"""Keys given on the command line in a suite file's place: ``recipe.lr=1e-3``."""

from __future__ import annotations

import copy
import tomllib
from typing import TYPE_CHECKING, Any

from xferbench import rules
from xferbench.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

EXAMPLE = "KEY=VALUE, such as recipe.lr=1e-3"


def applied(table: Mapping[str, Any], words: Sequence[str]) -> dict[str, Any]:
    """A suite's table with some keys set anew, in order; the table given stays as it is.

    A key is dotted as in TOML, with a number from 0 for a place in an array of tables; what is missing on the way is made.

    Raises:
        Problem: for a word that is no ``KEY=VALUE``, or a key that leads through something other than a table.
    """
    changed = copy.deepcopy(dict(table))
    for word in words:
        *way, last = key(word)
        here: Any = changed
        for name in way:
            here = here.setdefault(name, {}) if isinstance(here, dict) else here[_place(here, name, word)]
        here[last if isinstance(here, dict) else _place(here, last, word)] = value(word)
    return changed


def key(word: str) -> tuple[str, ...]:
    """The parts of a word's key.

    Raises:
        Problem: where it has none.
    """
    dotted, equals, _ = word.partition("=")
    parts = []
    try:
        here: Any = tomllib.loads(f"{dotted} = 0") if equals else {}
    except tomllib.TOMLDecodeError as error:
        raise Problem(f"--set {word}", found=f"the key {dotted!r}: {error}", expected=EXAMPLE) from error
    while isinstance(here, dict) and len(here) == 1:
        ((part, here),) = here.items()
        parts.append(part)
    if not parts or here != 0:
        raise Problem(f"--set {word}", found="no key and value", expected=EXAMPLE)
    return tuple(parts)


def value(word: str) -> Any:
    """A word's value as TOML has it; what is none is the text itself."""
    text = word.partition("=")[2]
    try:
        read = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError):
        return text
    return read["value"] if len(read) == 1 else text


def place(dotted: str, path: object, words: Sequence[str]) -> str:
    """Where a problem with a key lies: in the file, or in the words that bear on that key, or on none that can be told."""
    if not words:
        return f"{path}: {rules.place(dotted)}"
    wrong = dotted.partition(":")[0].split(".")
    near = [word for word in words if all(a == b for a, b in zip(key(word), wrong, strict=False))] or words
    return f"{path} with {' '.join(f'--set {word}' for word in near)}: {rules.place(dotted)}"


def _place(here: Any, name: str, word: str) -> int:
    """A number within a list."""
    if not isinstance(here, list):
        raise Problem(f"--set {word}", found=f"{rules.shown(here)} on the way to {name!r}", expected="a table there")
    if not (name.isascii() and name.isdecimal() and int(name) < len(here)):
        raise Problem(f"--set {word}", found=f"{name!r} in a list of {len(here)}", expected="a place in it, counted from 0")
    return int(name)
