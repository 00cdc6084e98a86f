"""The base of every intervention: the range of a number, the spelling of a value, and what stands for it in keys.

Pure, except that :func:`module_source_digest` reads the source of a kind that is not built in.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from functools import cache
from importlib.util import find_spec
from math import inf, isfinite
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from xferbench.core.sections import flat_fields, flat_name

__all__ = [
    "REQUIREMENTS",
    "SPELLING",
    "Intervention",
    "K",
    "Range",
    "as_dict",
    "field_value",
    "find_interventions",
    "find_kind",
    "format_kinds",
    "format_spelling",
    "intervention_key",
    "kind_source",
    "module_source_digest",
    "number",
    "parse",
    "ranges",
    "require_group",
    "spelling_pattern",
]

PACKAGE = __name__.partition(".")[0]
NUMBER = r"(\d+\.?\d*|\.\d+)(e[+-]?\d+)?"
SPELLING = r"[a-z0-9]+([-:+@][a-z0-9]+)*"  # of a kind, without its numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """The numbers that a field may have, from ``low`` to ``high``; an open bound is excluded.

    ``whole`` restricts them to whole numbers.
    """

    low: float = -inf
    high: float = inf
    low_open: bool = False
    high_open: bool = False
    whole: bool = False

    def __contains__(self, number: object) -> bool:
        if isinstance(number, bool) or not isinstance(number, int if self.whole else (int, float)):
            return False
        if isinstance(number, float) and not isfinite(number):  # a whole number may be beyond the range of floats
            return False
        above = number > self.low if self.low_open else number >= self.low
        return above and (number < self.high if self.high_open else number <= self.high)

    def __str__(self) -> str:
        bounds = [f"above {self.low:g}" if self.low_open else f"at least {self.low:g}"] if self.low > -inf else []
        bounds += [f"below {self.high:g}" if self.high_open else f"at most {self.high:g}"] if self.high < inf else []
        return ("a whole number " if self.whole else "a number ") + " and ".join(bounds)

    @property
    def pattern(self) -> str:
        """Regular expression that matches every number in the range, and some numbers outside it."""
        if self.whole:
            return r"([2-9]|[1-9]\d+)" if self.low >= 2 else r"[1-9]\d*" if self.low >= 1 else r"\d+"
        if (self.low, self.high) == (0, 1):
            ends = [end for limit, end in ((0, r"0(\.0*)?|\.0+"), (1, r"1(\.0*)?")) if limit in self]
            return "(" + "|".join([r"0?\.\d*[1-9]\d*", r"\d*\.?\d+e[+-]?\d+", *ends]) + ")"
        return r"(?=[^e:]*[1-9])" + NUMBER if self.low == 0 and self.low_open else NUMBER

    def parse(self, text: str) -> float:
        """Return the number that a text spells. The intervention checks the bounds, this method does not.

        Raises:
            ValueError: if the text is not a number of this kind.
        """
        if not re.fullmatch(r"0|[1-9]\d*" if self.whole else NUMBER, text):
            raise ValueError(str(self))
        return int(text) if self.whole else float(text)


def number(**bounds: Any) -> Any:
    """Return a dataclass field for a number within a :class:`Range`; the arguments may include a default."""
    default = {"default": bounds.pop("default")} if "default" in bounds else {}
    return field(**default, metadata={"range": Range(**bounds)})


class Intervention:
    """Base class of every kind of intervention. A kind is a frozen dataclass whose fields are numbers with a range.

    Attributes:
        spelling: the word in suites and keys, before the fields: ``label-noise`` in ``label-noise:0.2``.
        words: the value in a sentence, as a format string over its fields; "" for its spelling.
        requires: what a training run with it needs, as keys of :data:`REQUIREMENTS`.
        implementation: ``module:function`` that the lab imports and calls, with the arguments that the group documents; "" for
            a built-in kind that the lab finds by its type.
    """

    __slots__ = ()
    spelling: ClassVar[str]
    words: ClassVar[str] = ""
    requires: ClassVar[tuple[str, ...]] = ()
    implementation: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for name, limits in ranges(type(self)).items():
            if getattr(self, name) not in limits:
                raise ValueError(f"{self.spelling}: {name} is {getattr(self, name)!r}; expected {limits}")

    def __str__(self) -> str:
        return ":".join([self.spelling, *(_format_number(getattr(self, name)) for name in _spelled_fields(self))])

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the built-in value of this kind, or of this group, that a text spells.

        Raises:
            ValueError: for any other text, with the expected spelling.
        """
        is_kind = "spelling" in vars(cls)
        kinds: Any = (cls,) if is_kind else [kind for kind in cls.built_in() if issubclass(kind, cls)]
        value: Self = parse(text, kinds)
        return value

    @classmethod
    def built_in(cls) -> tuple[type[Intervention], ...]:
        """Return the built-in kinds of a group; each group names its own."""
        raise NotImplementedError(f"{cls.__name__} is no group of interventions")

    def describe(self) -> str:
        """Return the value in words, for reports."""
        return self.words.format(**{name: getattr(self, name) for name in ranges(type(self))}) if self.words else str(self)


K = TypeVar("K", bound=Intervention)
REQUIREMENTS: Mapping[str, str] = {
    "pretrained": "pretrained weights",
    "head": "the pretrained head",
    "plain-head": "a head of one layer, below which the pretrained head can stand",
    "source": "a source whose classes are known",
    "shifted": "images of another domain",
    "teacher": "a teacher",
    "batchnorm": "BatchNorm with running statistics",
    "norm": "trainable normalization layers",
    "dropout": "dropout layers below its head",
    "bias": "biases below its head",
    "lora": "linear or convolutional weights below its head",
    "adapter": "place for an adapter",
    "prompt": "input embeddings of tokens, or none that a prompt can precede",
    "prefix": "attention layers that take a prefix of keys and values",
}


def ranges(kind: type[Intervention]) -> dict[str, Range]:
    """Return the range of each field of a kind, in order."""
    return {field_.name: field_.metadata["range"] for field_ in fields(kind)}  # type: ignore[arg-type] # every kind is a dataclass


def _spelled_fields(value: Intervention) -> list[str]:
    """Return the names of the fields that a spelling contains: all except the last ones that have their defaults."""
    spelled = list(fields(value))  # type: ignore[arg-type] # every kind is a dataclass
    while spelled and getattr(value, spelled[-1].name) == spelled[-1].default:
        spelled.pop()
    return [field_.name for field_ in spelled]


def _format_number(number: float) -> str:
    """Return a number as suites spell it: 6 significant digits, no leading zero in an exponent."""
    if float(number).is_integer() and abs(number) < 1e15:
        return str(int(number))
    return re.sub(r"e([+-])0*", lambda match: "e" + match[1].strip("+"), f"{number:.6g}")


def parse(text: str, kinds: Iterable[type[K]]) -> K:
    """Return the value that a text spells: a kind's spelling, then its fields, separated by colons.

    Raises:
        ValueError: for any other text, with the expected spelling.
    """
    kinds = tuple(kinds)
    kind = find_kind(text, kinds)
    if kind is None:
        raise ValueError(format_kinds(kinds))
    numbers = text.removeprefix(kind.spelling).split(":")[1:]
    limits = ranges(kind)
    if numbers and not limits:
        raise ValueError(format_kinds(kinds))
    if not len(limits) - len(_defaults(kind)) <= len(numbers) <= len(limits):
        raise ValueError(format_spelling(kind))
    try:
        return kind(**{name: limits[name].parse(number) for name, number in zip(limits, numbers, strict=False)})
    except ValueError as error:
        raise ValueError(format_spelling(kind)) from error


def find_kind(text: str, kinds: Iterable[type[K]]) -> type[K] | None:
    """Return the kind with the longest spelling that a text begins with, or None."""
    matches = [kind for kind in kinds if text == kind.spelling or text.startswith(f"{kind.spelling}:")]
    return max(matches, key=lambda kind: len(kind.spelling), default=None)


def _defaults(kind: type[Intervention]) -> dict[str, Any]:
    return {field_.name: field_.default for field_ in fields(kind) if field_.default is not MISSING}  # type: ignore[arg-type]


def format_spelling(kind: type[Intervention]) -> str:
    """Return the spelling of a kind, for messages: ``label-noise:RATE with RATE a number above 0 and at most 1``."""
    limits, optional = ranges(kind), _defaults(kind)
    suffix = "".join(f"[:{name.upper()}]" if name in optional else f":{name.upper()}" for name in limits)
    bounds = " and ".join(f"{name.upper()} {limit}" for name, limit in limits.items())
    return kind.spelling + suffix + (f" with {bounds}" if bounds else "")


def format_kinds(kinds: Iterable[type[Intervention]]) -> str:
    """Return the spellings of some kinds, for messages: ``head; top:GROUPS with GROUPS a whole number at least 1; or all``."""
    *others, last = map(format_spelling, kinds)
    separator = "; " if any(map(ranges, kinds)) else ", "
    return separator.join([*others, f"or {last}" if others else last])


def spelling_pattern(kinds: Iterable[type[Intervention]]) -> str:
    """Return a regular expression that matches the spellings of some kinds, for a JSON Schema."""
    patterns = []
    for kind in kinds:
        optional = _defaults(kind)
        parts = (f"(:{limit.pattern}" + (")?" if name in optional else ")") for name, limit in ranges(kind).items())
        patterns.append(re.escape(kind.spelling).replace(r"\-", "-") + "".join(parts))
    return "|".join(patterns)


def intervention_key(value: Intervention) -> str:
    """Return the text that represents a value in keys: its spelling, and for a third-party kind the digest of its source."""
    source = kind_source(type(value))
    return f"{value} {source}" if source else str(value)


def kind_source(kind: type[Intervention]) -> str:
    """Return a digest of the modules of a third-party kind and of its implementation; "" for a built-in kind."""
    module = kind.__module__
    if module.partition(".")[0] == PACKAGE:
        return ""
    return module_source_digest(module, (kind.implementation or module).partition(":")[0])


@cache
def module_source_digest(*modules: str) -> str:
    """Return the first 12 hexadecimal digits of the SHA-256 of the source files of modules, each included once."""
    digest = hashlib.sha256()
    for name in dict.fromkeys(modules):
        origin = getattr(sys.modules.get(name), "__file__", None) or getattr(find_spec(name), "origin", None)
        digest.update(Path(origin).read_bytes() if origin and Path(origin).is_file() else name.encode())
    return digest.hexdigest()[:12]


def require_group(value: object, group: type[Intervention], name: str) -> None:
    """Check that the value of the field ``name`` is an intervention of a group, and not its spelling.

    Raises:
        TypeError: if it is anything else.
    """
    if not isinstance(value, group) or not hasattr(value, "spelling"):  # a group itself has no spelling
        raise TypeError(f"{name} is {value!r}; expected a value of {group.__name__}, such as {group.__name__}.parse(...)")


def find_interventions(value: Any) -> Iterator[Intervention]:
    """Yield every intervention within a dataclass, a mapping, a tuple or a list, at any depth."""
    if isinstance(value, Intervention):
        yield value
        return
    items: Iterable[Any] = ()
    if is_dataclass(value) and not isinstance(value, type):
        items = (item for _, item in flat_fields(value))
    elif isinstance(value, Mapping | tuple | list):
        items = value.values() if isinstance(value, Mapping) else value
    for item in items:
        yield from find_interventions(item)


def field_value(field_: Field[Any], value: Any) -> Any:
    """Return a field's value, or the field's representation of None in keys and results."""
    return field_.metadata["absent"] if value is None and "absent" in field_.metadata else value


def as_dict(value: Any) -> Any:
    """Return a dataclass as nested dictionaries, as :func:`dataclasses.asdict` does, with interventions as their spellings."""
    if isinstance(value, Intervention):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {flat_name(field_): field_value(field_, as_dict(item)) for field_, item in flat_fields(value)}
    if isinstance(value, Mapping):
        return {name: as_dict(item) for name, item in value.items()}
    return type(value)(map(as_dict, value)) if isinstance(value, tuple | list) else value
