"""Values that consist of sections, and their flat form in keys and results. Pure."""

from __future__ import annotations

from dataclasses import Field, field, fields
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

T = TypeVar("T")


def section_field(kind: type, **default: Any) -> Any:
    """Return a dataclass field for a section, a dataclass of type ``kind``. The flat form has its fields in its place."""
    return field(**default, metadata={"section": kind})


def flat_fields(value: Any) -> Iterator[tuple[Field[Any], Any]]:
    """Return each field of a dataclass and its value, with the fields of a section in place of the section."""
    for field_ in fields(value):
        item = getattr(value, field_.name)
        if "section" in field_.metadata:
            yield from flat_fields(item)
        else:
            yield field_, item


def flat_name(field_: Field[Any]) -> str:
    """Return the name of a field in keys and results, which may be older than the field's name."""
    name: str = field_.metadata.get("key", field_.name)
    return name


def flat_values(value: Any) -> dict[str, Any]:
    """Return the flat form of a dataclass: the value of each field by its name in keys and results."""
    return {flat_name(field_): item for field_, item in flat_fields(value)}


def replace_flat(value: T, **changes: Any) -> T:
    """Return a copy of a dataclass with other values of fields, by their names in keys and results."""
    return from_flat(type(value), flat_values(value) | changes)


def from_flat(kind: type[T], values: Mapping[str, Any]) -> T:
    """Return the value of a dataclass from its flat form; a field without a value has its default.

    Raises:
        TypeError: if a field without a default has no value, or a name is unknown.
    """
    if unknown := values.keys() - flat_defaults(kind).keys():
        raise TypeError(f"{kind.__name__} has no {', '.join(sorted(unknown))}")
    return _from_flat(kind, values)


def _from_flat(kind: type[T], values: Mapping[str, Any]) -> T:
    arguments = {}
    for field_ in fields(kind):  # type: ignore[arg-type] # a dataclass
        if "section" in field_.metadata:
            arguments[field_.name] = _from_flat(field_.metadata["section"], values)
        elif flat_name(field_) in values:
            arguments[field_.name] = values[flat_name(field_)]
    return kind(**arguments)


def flat_defaults(kind: type) -> dict[str, Any]:
    """Return the default of each field by its name in keys and results, ``dataclasses.MISSING`` if there is none."""
    defaults: dict[str, Any] = {}
    for field_ in fields(kind):
        is_section = "section" in field_.metadata
        defaults |= flat_defaults(field_.metadata["section"]) if is_section else {flat_name(field_): field_.default}
    return defaults
