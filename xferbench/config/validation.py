"""Rules that validate the tables of a TOML file and describe themselves in JSON Schema. Pure.

A rule takes a value from TOML and returns the parsed value, or raises ValueError with the expected form. Its schema accepts
every value that the rule accepts, and possibly more.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, is_dataclass
from typing import Any, TypeAlias

from xferbench.core.errors import UserError, suggest
from xferbench.core.sections import flat_defaults

Rule: TypeAlias = Callable[[Any], Any]
TYPES = {str: "string", bool: "boolean", int: "integer", list: "array", dict: "object", (int, float): "number"}


@dataclass(frozen=True, slots=True)
class Validator:
    """A rule with a JSON Schema (draft 2020-12) of its values; a plain function is a rule without a schema."""

    rule: Rule
    schema: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, value: Any) -> Any:
        """Return the parsed value.

        Raises:
            ValueError: if the rule refuses the value, with the expected form.
        """
        return self.rule(value)


def rule_schema(rule: Rule) -> dict[str, Any]:
    """Return the JSON Schema of a rule; empty for a plain function."""
    return dict(rule.schema) if isinstance(rule, Validator) else {}


def validate_table(table: Any, rules: Mapping[str, Rule], required: Sequence[str] = ()) -> dict[str, Any]:
    """Parse every value of a table by the rule of its key.

    Raises:
        UserError: for an unknown or missing key, or a value that its rule refuses.
        ValueError: if ``table`` is not a mapping.
    """
    if not isinstance(table, Mapping):
        raise ValueError("a table of " + ", ".join(rules))  # noqa: TRY004 - rules raise ValueError
    for key in table:
        if key not in rules:
            raise UserError(f"{key}: unknown key", expected=suggest(key, rules))
    for key in required:
        if key not in table:
            raise UserError(f"{key}: missing", found=", ".join(table) or "no key at all", expected=", ".join(required))
    return {key: validate_value(key, value, rules[key]) for key, value in table.items()}


def validate_value(key: str, value: Any, rule: Rule) -> Any:
    """Parse a value by its rule.

    Within a file, ``what`` of the error is a dotted path of keys. Each table adds its own key in front.

    Raises:
        UserError: if the rule refuses the value, with the key in front.
    """
    try:
        return rule(value)
    except UserError as error:
        raise error.at(f"{key}.{error.what}") from error
    except ValueError as error:
        raise UserError(key, found=format_value(value), expected=str(error)) from error


def toml_location(dotted: str) -> str:
    """Return a dotted path as a TOML file writes it: ``recipe.lr: unknown key`` becomes ``[recipe] lr: unknown key``."""
    path, colon, what = dotted.partition(": ")
    tables, _, key = path.rpartition(".")
    return (f"[{tables}] " if tables else "") + f"{key}{colon}{what}"


def format_value(value: Any) -> str:
    """Return a value as JSON, shortened to 80 characters."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 80 else text[:79] + "…"


def typed(
    kind: type | tuple[type, ...],
    test: Callable[[Any], object],
    expected: str,
    convert: Callable[[Any], Any] = lambda v: v,
    **schema: Any,
) -> Rule:
    """Return a rule for values of a type that pass a test; true and false are not numbers.

    Args:
        kind: the type or types.
        test: a function that returns a true value for a valid value.
        expected: the expected form, for the error message and the schema.
        convert: a function that converts a valid value.
        **schema: the test as keywords of JSON Schema.
    """

    def parse(value: Any) -> Any:
        if (isinstance(value, bool) and kind is not bool) or not isinstance(value, kind) or not test(value):
            raise ValueError(expected)
        return convert(value)

    return Validator(parse, {"type": TYPES[kind], **schema, "description": expected})


def one_of(*choices: str) -> Rule:
    """Return a rule for one of several strings."""

    def parse(value: Any) -> Any:
        if value not in choices:
            raise ValueError(suggest(str(value), choices))
        return value

    return Validator(parse, {"enum": list(choices)})


def matching(pattern: str, expected: str) -> Rule:
    """Return a rule for strings that match a regular expression as a whole."""
    return typed(str, re.compile(pattern).fullmatch, expected, pattern=f"^({pattern})$")


def table(rules: Mapping[str, Rule], build: Callable[..., Any] = dict, required: Sequence[str] = ()) -> Rule:
    """Return a rule for a table.

    Args:
        rules: the rule of each key.
        build: a function of the parsed values, as keyword arguments. If it is a dataclass, the schema has its defaults.
        required: keys that must be present.
    """
    properties = {key: rule_schema(rule) | _default_schema(build, key) for key, rule in rules.items()}
    schema = {"type": "object", "properties": properties, "additionalProperties": False, "required": list(required)}
    return Validator(lambda value: build(**validate_table(value, rules, required)), schema)


def _default_schema(cls: object, key: str) -> dict[str, Any]:
    """Return the default of a field as a keyword of JSON Schema; empty if there is none."""
    defaults = flat_defaults(cls) if isinstance(cls, type) and is_dataclass(cls) else {}
    value = defaults.get(key, MISSING)
    if value is MISSING or value is None or is_dataclass(value):
        return {}
    if isinstance(value, tuple):  # an element that is not JSON is an intervention, or None for none
        return {"default": [item if isinstance(item, int | float | str) else str(item or "none") for item in value]}
    return {"default": value}


def list_of(rule: Rule, expected: str, test: Callable[[Any], object] = bool, **schema: Any) -> Rule:
    """Return a rule for a list whose elements all satisfy ``rule``; its value is a tuple.

    The list must not be empty unless ``test`` accepts an empty list.
    """

    def parse_elements(values: list[Any]) -> tuple[Any, ...]:
        try:
            return tuple(rule(value) for value in values)
        except ValueError as error:
            raise ValueError(expected) from error

    list_schema = {"items": rule_schema(rule), **({"minItems": 1} if test is bool else {}), **schema}
    return typed(list, test, expected, parse_elements, **list_schema)


def unchanged(rule: Rule) -> Rule:
    """Return a rule that checks a value by ``rule`` and returns it unparsed."""

    def check(value: Any) -> Any:
        rule(value)
        return value

    return Validator(check, rule_schema(rule))


NUMBER = (int, float)
POSITIVE = typed(NUMBER, lambda v: 0 < v < float("inf"), "a number above 0", float, exclusiveMinimum=0)
NATURAL = typed(NUMBER, lambda v: 0 <= v < float("inf"), "a number, 0 or above", float, minimum=0)
FINITE = typed(NUMBER, lambda v: abs(v) < float("inf"), "a number", float)
COUNT = typed(int, lambda v: v > 0, "a whole number above 0", minimum=1)
WHOLE = typed(int, lambda v: v >= 0, "a whole number, 0 or above", minimum=0)
TEXT = typed(str, bool, "a non-empty string", minLength=1)
FLAG = typed(bool, lambda _: True, "true or false")


def either_table(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema for tables with the keys of either of two schemas; a key of both has the schema of either."""
    properties = {**first["properties"], **second["properties"]}
    for key in first["properties"].keys() & second["properties"].keys():
        schemas = [schema["properties"][key] for schema in (first, second)]
        properties[key] = schemas[0] if schemas[0] == schemas[1] else {"anyOf": schemas}
    return {**first, "properties": properties}
