"""Read JSON that is not trusted, and check it against a shape. Pure.

A shape is plain data:

- a type: ``str``, ``int``, ``float`` (also an integer), ``bool``, or ``object`` for anything;
- ``None`` for null;
- a tuple of shapes, one of which must fit;
- a frozenset of the strings that are allowed;
- a list with one shape, that of every item;
- a dictionary of shapes by key. A question mark behind a key means that the key may be missing. The shape under the key
  ``str`` is that of all other keys; without it, other keys may have any value.
"""

from __future__ import annotations

import json
from math import isfinite
from typing import Any, TypeAlias

Shape: TypeAlias = Any
MAX_INTEGER = 2**63
OPTIONAL = "?"


def read_json(data: bytes, shape: Shape, *, allow_constants: bool = False) -> Any:
    """Return the value of JSON in UTF-8, after :func:`check_shape`.

    Args:
        data: the content of a file.
        shape: the shape, as this module describes it.
        allow_constants: whether the file may contain NaN and Infinity, as those of other programs do. They fit only the shape
            ``object``.

    Raises:
        ValueError: if it is not JSON, contains NaN, is nested too deeply, or has another shape.
    """
    try:
        value = json.loads(data, parse_constant=None if allow_constants else _refuse_constant)
    except RecursionError as error:
        raise ValueError("JSON that is nested too deeply") from error
    check_shape(value, shape)
    return value


def _refuse_constant(name: str) -> None:
    """Refuse NaN and Infinity: they are not JSON, xferbench never writes them, and a comparison with them is always false."""
    raise ValueError(f"{name}, which is no number of JSON")


def check_shape(value: Any, shape: Shape, where: str = "") -> None:
    """Check that a value has a shape.

    Args:
        value: a value from JSON.
        shape: the shape, as this module describes it.
        where: the name of the value in the error.

    Raises:
        ValueError: if it does not. The message names the first place that differs.
    """
    if isinstance(shape, tuple):
        if not any(_fits(value, alternative) for alternative in shape):
            # The last alternative is the richest one, so its error says most.
            check_shape(value, shape[-1], where)
    elif isinstance(shape, dict):
        _check_type(value, dict, where)
        _check_items(value, shape, where)
    elif isinstance(shape, list):
        _check_type(value, list, where)
        for number, item in enumerate(value):
            check_shape(item, shape[0], f"{where}[{number}]")
    elif isinstance(shape, frozenset):
        if not (isinstance(value, str) and value in shape):
            raise ValueError(f"{where}: {value!r:.40}, expected {', '.join(sorted(shape))}")
    else:
        _check_type(value, type(None) if shape is None else shape, where)


def _fits(value: Any, shape: Shape) -> bool:
    try:
        check_shape(value, shape)
    except ValueError:
        return False
    return True


def _check_items(value: dict[str, Any], shape: dict[Any, Shape], where: str) -> None:
    prefix = f"{where}." if where else ""
    named = {name.removesuffix(OPTIONAL): item for name, item in shape.items() if name is not str}
    missing = [name for name in shape if name is not str and not name.endswith(OPTIONAL) and name not in value]
    if missing:
        raise ValueError(f"{prefix}{missing[0]} is missing")
    for key, item in value.items():
        check_shape(item, named.get(key, shape.get(str, object)), f"{prefix}{key[:40]}")


def _check_type(value: Any, kind: type, where: str) -> None:
    if kind is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool) and _is_finite(value)
    elif kind is int:
        fits = isinstance(value, int) and not isinstance(value, bool) and abs(value) < MAX_INTEGER
    else:
        fits = isinstance(value, kind)
    if not fits:
        raise ValueError(f"{where}: {value!r:.40}, expected {'null' if kind is type(None) else kind.__name__}")


def _is_finite(number: float) -> bool:
    try:
        return isfinite(number)
    except OverflowError:  # an integer beyond the range of floats
        return False
