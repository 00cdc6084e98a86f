"""Interventions as frozen values: each kind states its spelling, its range, its words and where the lab implements it.

Pure, except that :func:`key` reads the source of a kind that is not built in. A new kind is a class here and a function in the
lab, which the class names; no import registers anything.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from functools import cache
from importlib.util import find_spec
from math import inf, isfinite
from pathlib import Path
from typing import Any, ClassVar, TypeVar

PACKAGE = __name__.partition(".")[0]
NUMBER = r"(\d+\.?\d*|\.\d+)(e[+-]?\d+)?"


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """The numbers that a field may hold, from ``low`` to ``high``; a bound that is ``open`` is not among them."""

    low: float = -inf
    high: float = inf
    low_open: bool = False
    high_open: bool = False
    whole: bool = False

    def __contains__(self, number: object) -> bool:
        if isinstance(number, bool) or not isinstance(number, int if self.whole else (int, float)) or not isfinite(number):
            return False
        above = number > self.low if self.low_open else number >= self.low
        return above and (number < self.high if self.high_open else number <= self.high)

    def __str__(self) -> str:
        bounds = [f"above {self.low:g}" if self.low_open else f"at least {self.low:g}"] if self.low > -inf else []
        bounds += [f"below {self.high:g}" if self.high_open else f"at most {self.high:g}"] if self.high < inf else []
        return ("a whole number " if self.whole else "a number ") + " and ".join(bounds)

    @property
    def pattern(self) -> str:
        """A regular expression that matches every number in the range, and some numbers beyond it."""
        if self.whole:
            return r"[1-9]\d*" if self.low >= 1 else r"\d+"
        return r"(?=[^e:]*[1-9])" + NUMBER if self.low == 0 and self.low_open else NUMBER

    def parse(self, text: str) -> float:
        """Return the number that a text stands for.

        Raises:
            ValueError: for a text that is no number of this kind; the range itself is checked by the value that holds it.
        """
        if not re.fullmatch(r"\d+" if self.whole else NUMBER, text):
            raise ValueError(str(self))
        return int(text) if self.whole else float(text)


def number(**bounds: Any) -> Any:
    """Return a dataclass field that holds a number within a :class:`Range`; a default may be among the arguments."""
    default = {"default": bounds.pop("default")} if "default" in bounds else {}
    return field(**default, metadata={"range": Range(**bounds)})


class Intervention:
    """The base of every kind; a kind is a frozen dataclass whose fields are numbers with a range.

    Attributes:
        spelling: the word in suites and keys, before the fields: ``label-noise`` in ``label-noise:0.2``.
        words: the value in a sentence, a format string over its fields.
        requires: what a pipeline must have, words of :data:`REQUIREMENTS`.
    """

    __slots__ = ()
    spelling: ClassVar[str]
    words: ClassVar[str]
    requires: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for name, limits in ranges(type(self)).items():
            if getattr(self, name) not in limits:
                raise ValueError(f"{self.spelling}: {name} is {getattr(self, name)!r}; expected {limits}")

    def __str__(self) -> str:
        return ":".join([self.spelling, *(_spell(getattr(self, name)) for name in _stated(self))])

    def describe(self) -> str:
        """Return the value in words, for a report."""
        return self.words.format(**{name: getattr(self, name) for name in ranges(type(self))})


class DataIntervention(Intervention):
    """A change of one fit's training examples; validation and test examples stay as they are.

    Attributes:
        implementation: ``module:function`` that the lab imports when it trains. The function takes the training examples, the
            value, a random generator and the number of classes, and returns the changed examples.
    """

    __slots__ = ()
    implementation: ClassVar[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelNoise(DataIntervention):
    """A share of the training labels is wrong: each is replaced by another class, drawn with equal chance."""

    spelling: ClassVar[str] = "label-noise"
    words: ClassVar[str] = "{rate:.0%} of the training labels wrong"
    implementation: ClassVar[str] = "xferbench.lab.training.label_noise:corrupt_labels"
    rate: float = number(low=0, low_open=True, high=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassImbalance(DataIntervention):
    """The training images have a long tail: the first class has ``ratio`` times as many as the last, which has at least one."""

    spelling: ClassVar[str] = "class-imbalance"
    words: ClassVar[str] = "training classes from most to fewest images {ratio:g} to 1"
    implementation: ClassVar[str] = "xferbench.lab.training.class_imbalance:thin_classes"
    ratio: float = number(low=1, low_open=True)


K = TypeVar("K", bound=Intervention)
REQUIREMENTS: Mapping[str, str] = {
    "source": "a [source]",
    "shifted": "a [shifted]",
}
BUILT_IN: Mapping[type[Intervention], tuple[type[Intervention], ...]] = {
    DataIntervention: (LabelNoise, ClassImbalance),
}


def ranges(kind: type[Intervention]) -> dict[str, Range]:
    """Return the range of each field of a kind, in order."""
    return {f.name: f.metadata["range"] for f in fields(kind)}  # type: ignore[arg-type] # every kind is a dataclass


def _stated(value: Intervention) -> list[str]:
    """The fields that a spelling states: all but the last ones that have their defaults."""
    stated = list(fields(value))  # type: ignore[arg-type] # every kind is a dataclass
    while stated and getattr(value, stated[-1].name) == stated[-1].default:
        stated.pop()
    return [f.name for f in stated]


def _spell(number: float) -> str:
    """A number as suites spell it: 6 significant digits, no leading zero in an exponent."""
    if float(number).is_integer() and abs(number) < 1e15:
        return str(int(number))
    return re.sub(r"e([+-])0*", lambda match: "e" + match[1].strip("+"), f"{number:.6g}")


def parse(text: str, kinds: Iterable[type[K]]) -> K:
    """Return the value that a text spells: a kind's spelling, then its fields, parted by colons.

    Raises:
        ValueError: for any other text, with what was expected.
    """
    kinds = tuple(kinds)
    kind = find_kind(text, kinds)
    if kind is None:
        raise ValueError(" or ".join(map(form, kinds)) or "no intervention of this group is known")
    amounts = text.removeprefix(kind.spelling).split(":")[1:]
    limits = ranges(kind)
    required = [f for f in fields(kind) if f.name not in _defaults(kind)]  # type: ignore[arg-type]
    if not len(required) <= len(amounts) <= len(limits):
        raise ValueError(form(kind))
    try:
        return kind(**{name: limits[name].parse(amount) for name, amount in zip(limits, amounts, strict=False)})
    except ValueError as error:
        raise ValueError(form(kind)) from error


def find_kind(text: str, kinds: Iterable[type[K]]) -> type[K] | None:
    """Return the kind with the longest spelling that a text begins with, or None."""
    fitting = [kind for kind in kinds if text == kind.spelling or text.startswith(f"{kind.spelling}:")]
    return max(fitting, key=lambda kind: len(kind.spelling), default=None)


def _defaults(kind: type[Intervention]) -> dict[str, Any]:
    return {f.name: f.default for f in fields(kind) if f.default is not MISSING}  # type: ignore[arg-type]


def form(kind: type[Intervention]) -> str:
    """Return how a kind is spelt: ``label-noise:RATE with RATE a number above 0 and below 1``."""
    limits, optional = ranges(kind), _defaults(kind)
    amounts = "".join(f"[:{name.upper()}]" if name in optional else f":{name.upper()}" for name in limits)
    stated = " and ".join(f"{name.upper()} {limit}" for name, limit in limits.items())
    return kind.spelling + amounts + (f" with {stated}" if stated else "")


def pattern(kinds: Iterable[type[Intervention]]) -> str:
    """Return a regular expression of all spellings of some kinds, for a JSON Schema."""
    found = []
    for kind in kinds:
        optional = _defaults(kind)
        parts = (f"(:{limit.pattern}" + (")?" if name in optional else ")") for name, limit in ranges(kind).items())
        found.append(re.escape(kind.spelling).replace(r"\-", "-") + "".join(parts))
    return "|".join(found)


def key(value: Intervention) -> str:
    """Return what stands for a value in keys: its spelling, and for a third party's kind the digest of its source."""
    if type(value).__module__.partition(".")[0] == PACKAGE:
        return str(value)
    module = type(value).__module__
    return f"{value} {source_digest(module, getattr(value, 'implementation', module).partition(':')[0])}"


@cache
def source_digest(*modules: str) -> str:
    """Return 12 hexadecimal digits of the SHA-256 of some modules' source files, each counted once."""
    digest = hashlib.sha256()
    for name in dict.fromkeys(modules):
        origin = getattr(sys.modules.get(name), "__file__", None) or getattr(find_spec(name), "origin", None)
        digest.update(Path(origin).read_bytes() if origin and Path(origin).is_file() else name.encode())
    return digest.hexdigest()[:12]


def as_dict(value: Any) -> Any:
    """Return a dataclass as nested dictionaries, as :func:`dataclasses.asdict` does, with interventions as their spelling."""
    if isinstance(value, Intervention):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: as_dict(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {name: as_dict(item) for name, item in value.items()}
    return type(value)(map(as_dict, value)) if isinstance(value, tuple | list) else value
