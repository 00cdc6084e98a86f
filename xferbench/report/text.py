"""Numbers and names as every output format says them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xferbench.record import Estimate

NOTHING = "–"
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]+")
POINTS = {"accuracy", "sensitivity", "specificity"}  # told in points of a hundred


def line(text: object) -> str:
    """Make a text one printable line: control characters, line breaks and changes of direction become a space."""
    return UNPRINTABLE.sub(" ", str(text)).strip()


def block(text: object) -> str:
    """Keep a text's line breaks, and nothing else that cannot be printed."""
    return "\n".join(UNPRINTABLE.sub(" ", one).rstrip() for one in str(text).splitlines())


def short(text: object, most: int) -> str:
    """One line of at most so many characters."""
    whole = line(text)
    return whole if len(whole) <= most else whole[: most - 1] + "…"


def place(spec: object) -> str:
    """Name a dataset or a file without the folders of the machine that it lay on: ``folder:ants``."""
    kind, colon, rest = line(spec).rpartition(":")
    return f"{kind}{colon}{rest.rstrip('/').rpartition('/')[2]}"


def scale(unit: str) -> tuple[float, int]:
    """Factor and decimals in which a unit is told."""
    return (100.0, 1) if unit in POINTS else (1.0, 3)


def in_words(unit: str) -> str:
    """Name the unit of a told number, as a heading has it."""
    return f"points of {unit}" if unit in POINTS else line(unit)


def signed(value: float | None, unit: str) -> str:
    """Tell a harm: ``+5.5``."""
    if value is None:
        return NOTHING
    factor, digits = scale(unit)
    return f"{round(factor * value, digits) + 0.0:+.{digits}f}"


def bounded(harm: tuple[float | None, float | None, float | None], unit: str) -> str:
    """Tell a harm with its one-sided bounds: ``+5.5 [+3.4, +7.6]``."""
    value, low, high = harm
    return NOTHING if value is None else f"{signed(value, unit)} [{signed(low, unit)}, {signed(high, unit)}]"


def percent(value: float | None, digits: int = 1) -> str:
    """Tell a share or an accuracy: ``81.2 %``."""
    return NOTHING if value is None else f"{round(100 * value, digits) + 0.0:.{digits}f} %"


def score(value: float | None, unit: str) -> str:
    """A metric's value: ``81.2 %`` for an accuracy, ``0.512`` for a loss."""
    if value is None or unit in POINTS:
        return percent(value)
    return f"{value:.3f}"


def number(value: Any, digits: int = 4) -> str:
    """A number to so many significant digits; what is no number is a dash."""
    return f"{value:.{digits}g}" if isinstance(value, int | float) else NOTHING


def level(alpha: float, space: str = " ") -> str:
    """The confidence level of a one-sided bound: ``95 %``."""
    return f"{100 * (1 - alpha):g}{space}%"


def p_value(value: float) -> str:
    """Tell a P-value with its sign of comparison: ``= 0.031``, ``< 0.0001``."""
    return "< 0.0001" if value < 0.0001 else f"= {value:.2g}"


def seconds(value: float) -> str:
    """Tell a duration in the unit that fits: ``0.4 s``, ``85 s``, ``21 min``, ``3.5 h``."""
    if value < 120:
        return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"


def points(value: float, unit: str, *, signed: bool = True) -> str:
    """A number with its unit, as a sentence has it: accuracies in ``points`` of a hundred."""
    sign = "+" if signed else ""
    return f"{100 * value:{sign}.1f} points" if unit == "accuracy" else f"{value:{sign}.3f} {unit}"


def interval(estimate: Estimate, unit: str) -> str:
    """A harm with its one-sided bounds, as a sentence has it: ``+5.5 points [+3.4, +7.6]``."""
    factor, digits = (100, 1) if unit == "accuracy" else (1, 3)
    return f"{points(estimate.harm, unit)} [{factor * estimate.low:+.{digits}f}, {factor * estimate.high:+.{digits}f}]"
