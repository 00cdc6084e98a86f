"""Override keys of a suite from the command line, such as ``recipe.lr=1e-3``. Pure."""

from __future__ import annotations

import copy
import tomllib
from typing import TYPE_CHECKING, Any

from xferbench.config import validation
from xferbench.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

EXPECTED_OVERRIDE = "KEY=VALUE, such as recipe.lr=1e-3"


def apply_overrides(table: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return a suite's table with some keys overridden, in order; the input table is not changed.

    Keys are dotted as in TOML. A number, from 0, selects an element of an array of tables. Missing tables on the way are
    created.

    Raises:
        UserError: for an argument that is not ``KEY=VALUE``, or a key whose path leads through a value that is not a table.
    """
    changed = copy.deepcopy(dict(table))
    for override in overrides:
        *path, last = key_parts(override)
        node: Any = changed
        for name in path:
            node = node.setdefault(name, {}) if isinstance(node, dict) else node[_index(node, name, override)]
        node[last if isinstance(node, dict) else _index(node, last, override)] = toml_value(override)
    return changed


def key_parts(override: str) -> tuple[str, ...]:
    """Return the parts of the key of an override.

    Raises:
        UserError: if there is no key.
    """
    dotted, equals, _ = override.partition("=")
    parts = []
    try:
        node: Any = tomllib.loads(f"{dotted} = 0") if equals else {}
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"--set {override}", found=f"the key {dotted!r}: {error}", expected=EXPECTED_OVERRIDE) from error
    while isinstance(node, dict) and len(node) == 1:
        ((part, node),) = node.items()
        parts.append(part)
    if not parts or node != 0:
        raise UserError(f"--set {override}", found="no key and value", expected=EXPECTED_OVERRIDE)
    return tuple(parts)


def toml_value(override: str) -> Any:
    """Return the value of an override as TOML reads it; text that is not TOML is returned as it is."""
    text = override.partition("=")[2]
    try:
        table = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError):
        return text
    return table["value"] if len(table) == 1 else text


def locate_error(dotted: str, path: object, overrides: Sequence[str]) -> str:
    """Return where a key with an error comes from: the file, or the overrides that affect this key, or else all overrides."""
    if not overrides:
        return f"{path}: {validation.toml_location(dotted)}"
    key_path = dotted.partition(":")[0].split(".")
    matching = [
        override for override in overrides if all(a == b for a, b in zip(key_parts(override), key_path, strict=False))
    ] or overrides
    return f"{path} with {' '.join(f'--set {override}' for override in matching)}: {validation.toml_location(dotted)}"


def _index(node: Any, name: str, override: str) -> int:
    """Return an index into a list."""
    if not isinstance(node, list):
        raise UserError(f"--set {override}", found=f"{validation.format_value(node)} above {name!r}", expected="a table")
    if not (name.isascii() and name.isdecimal() and int(name) < len(node)):
        raise UserError(f"--set {override}", found=f"{name!r} in a list of {len(node)}", expected="an index, counted from 0")
    return int(name)
