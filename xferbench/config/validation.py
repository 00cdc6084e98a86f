"""Rules for the tables of a TOML file: every key known, every value possible, or one message that says where.

A rule takes a value as TOML gave it and returns what is kept; it raises ValueError(what was expected). Within a file the
``what`` of a :class:`~xferbench.core.errors.UserError` is a dotted path of keys, to which each table adds its own in
front. A rule
also says in JSON Schema's words what it takes, as far as they reach: whatever it takes, its schema does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Any, TypeAlias

from xferbench.core.errors import UserError, suggest

Rule: TypeAlias = Callable[[Any], Any]
TYPES = {str: "string", bool: "boolean", int: "integer", list: "array", dict: "object", (int, float): "number"}


@dataclass(frozen=True, slots=True)
class Validator:
    """A rule that says what it takes; a bare function is a rule too, which says nothing."""

    rule: Rule
    schema: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, value: Any) -> Any:
        """What is kept of a value."""
        return self.rule(value)


def rule_schema(rule: Rule) -> dict[str, Any]:
    """What a rule says of itself, in JSON Schema's words (draft 2020-12)."""
    return dict(rule.schema) if isinstance(rule, Validator) else {}


def validate_table(table: Any, rules: Mapping[str, Rule], required: Sequence[str] = ()) -> dict[str, Any]:
    """Every key of a table through its rule.

    Raises:
        UserError: for an unknown key, a missing one, or a value that its rule refuses. ValueError: for what is no table.
    """
    if not isinstance(table, Mapping):
        raise ValueError("a table of " + ", ".join(rules))  # noqa: TRY004 - what a rule raises
    for key in table:
        if key not in rules:
            raise UserError(f"{key}: unknown key", expected=suggest(key, rules))
    for key in required:
        if key not in table:
            raise UserError(f"{key}: missing", found=", ".join(table) or "no key at all", expected=", ".join(required))
    return {key: validate_value(key, value, rules[key]) for key, value in table.items()}


def validate_value(key: str, value: Any, rule: Rule) -> Any:
    """A value through its rule.

    Raises:
        UserError: where the rule refuses it, with the key in front.
    """
    try:
        return rule(value)
    except UserError as problem:
        raise problem.at(f"{key}.{problem.what}") from problem
    except ValueError as error:
        raise UserError(key, found=format_value(value), expected=str(error)) from error


def toml_location(dotted: str) -> str:
    """A dotted path as a file has it: ``recipe.lr: unknown key`` becomes ``[recipe] lr: unknown key``."""
    path, colon, what = dotted.partition(": ")
    tables, _, key = path.rpartition(".")
    return (f"[{tables}] " if tables else "") + f"{key}{colon}{what}"


def format_value(value: Any) -> str:
    """A value as a file has it, shortened."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 80 else text[:79] + "…"


def typed(
    kind: type | tuple[type, ...],
    test: Callable[[Any], object],
    expected: str,
    make: Callable[[Any], Any] = lambda v: v,
    **words: Any,
) -> Rule:
    """Values of a type (true and false are no numbers) that pass a test, made into something; the test in a schema's words."""

    def rule(value: Any) -> Any:
        if (isinstance(value, bool) and kind is not bool) or not isinstance(value, kind) or not test(value):
            raise ValueError(expected)
        return make(value)

    return Validator(rule, {"type": TYPES[kind], **words, "description": expected})


def one_of(*words: str) -> Rule:
    """One of some words."""

    def rule(value: Any) -> Any:
        if value not in words:
            raise ValueError(suggest(str(value), words))
        return value

    return Validator(rule, {"enum": list(words)})


def matching(pattern: str, expected: str) -> Rule:
    """A text of a form."""
    return typed(str, re.compile(pattern).fullmatch, expected, pattern=f"^({pattern})$")


def table(rules: Mapping[str, Rule], make: Callable[..., Any] = dict, required: Sequence[str] = ()) -> Rule:
    """A table, made into something; what is made of an empty one gives its keys' defaults."""
    keys = {key: rule_schema(rule) | _default(make, key) for key, rule in rules.items()}
    words = {"type": "object", "properties": keys, "additionalProperties": False, "required": list(required)}
    return Validator(lambda value: make(**validate_table(value, rules, required)), words)


def _default(noun: object, key: str) -> dict[str, Any]:
    """A field's default as TOML has it, where it has one."""
    values = {f.name: f.default for f in fields(noun)} if is_dataclass(noun) else {}
    value = values.get(key, MISSING)
    if value is MISSING or value is None or is_dataclass(value):
        return {}
    return {"default": list(value) if isinstance(value, tuple) else value}


def list_of(rule: Rule, expected: str, test: Callable[[Any], object] = bool, **words: Any) -> Rule:
    """A list, not empty unless the test says otherwise, whose members all keep to a rule."""

    def made(values: list[Any]) -> tuple[Any, ...]:
        try:
            return tuple(rule(value) for value in values)
        except ValueError as error:
            raise ValueError(expected) from error

    return typed(
        list, test, expected, made, **{"items": rule_schema(rule), **({"minItems": 1} if test is bool else {}), **words}
    )


def unchanged(rule: Rule) -> Rule:
    """Values that keep to a rule, as TOML gave them."""

    def checked_value(value: Any) -> Any:
        rule(value)
        return value

    return Validator(checked_value, rule_schema(rule))


NUMBER = (int, float)
POSITIVE = typed(NUMBER, lambda v: 0 < v < float("inf"), "a number above 0", float, exclusiveMinimum=0)
NATURAL = typed(NUMBER, lambda v: 0 <= v < float("inf"), "a number, 0 or above", float, minimum=0)
FINITE = typed(NUMBER, lambda v: abs(v) < float("inf"), "a number", float)
COUNT = typed(int, lambda v: v > 0, "a whole number above 0", minimum=1)
WHOLE = typed(int, lambda v: v >= 0, "a whole number, 0 or above", minimum=0)
TEXT = typed(str, bool, "a text that is not empty", minLength=1)
FLAG = typed(bool, lambda _: True, "true or false")


def either_table(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a table that has the keys of one or of the other; a key of both is what either says."""
    keys = {**one["properties"], **other["properties"]}
    for key in one["properties"].keys() & other["properties"].keys():
        said = [table["properties"][key] for table in (one, other)]
        keys[key] = said[0] if said[0] == said[1] else {"anyOf": said}
    return {**one, "properties": keys}
