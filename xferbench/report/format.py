"""Numbers and names as every output format says them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xferbench.core.run import Estimate

MISSING = "–"
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]+")
PERCENT_UNITS = {"accuracy", "sensitivity", "specificity"}  # told in points of a hundred


def one_line(text: object) -> str:
    """Make a text one printable line: control characters, line breaks and changes of direction become a space."""
    return UNPRINTABLE.sub(" ", str(text)).strip()


def printable_block(text: object) -> str:
    """Keep a text's line breaks, and nothing else that cannot be printed."""
    return "\n".join(UNPRINTABLE.sub(" ", one).rstrip() for one in str(text).splitlines())


def shorten(text: object, most: int) -> str:
    """One line of at most so many characters."""
    whole = one_line(text)
    return whole if len(whole) <= most else whole[: most - 1] + "…"


def hide_folders(spec: object) -> str:
    """Name a dataset or a file without the folders of the machine that it lay on: ``folder:ants``."""
    kind, colon, rest = one_line(spec).rpartition(":")
    return f"{kind}{colon}{rest.rstrip('/').rpartition('/')[2]}"


def unit_scale(unit: str) -> tuple[float, int]:
    """Factor and decimals in which a unit is told."""
    return (100.0, 1) if unit in PERCENT_UNITS else (1.0, 3)


def unit_name(unit: str) -> str:
    """Name the unit of a told number, as a heading has it."""
    return f"points of {unit}" if unit in PERCENT_UNITS else one_line(unit)


def format_harm(value: float | None, unit: str) -> str:
    """Tell a harm: ``+5.5``."""
    if value is None:
        return MISSING
    factor, digits = unit_scale(unit)
    return f"{round(factor * value, digits) + 0.0:+.{digits}f}"


def format_bounds(harm: tuple[float | None, float | None, float | None], unit: str) -> str:
    """Tell a harm with its one-sided bounds: ``+5.5 [+3.4, +7.6]``."""
    value, low, high = harm
    return MISSING if value is None else f"{format_harm(value, unit)} [{format_harm(low, unit)}, {format_harm(high, unit)}]"


def format_percent(value: float | None, digits: int = 1) -> str:
    """Tell a share or an accuracy: ``81.2 %``."""
    return MISSING if value is None else f"{round(100 * value, digits) + 0.0:.{digits}f} %"


def format_score(value: float | None, unit: str) -> str:
    """A metric's value: ``81.2 %`` for an accuracy, ``0.512`` for a loss."""
    if value is None or unit in PERCENT_UNITS:
        return format_percent(value)
    return f"{value:.3f}"


def format_number(value: Any, digits: int = 4) -> str:
    """A number to so many significant digits; what is no number is a dash."""
    return f"{value:.{digits}g}" if isinstance(value, int | float) else MISSING


def format_confidence(alpha: float, space: str = " ") -> str:
    """The confidence level of a one-sided bound: ``95 %``."""
    return f"{100 * (1 - alpha):g}{space}%"


def format_p_value(value: float) -> str:
    """Tell a P-value with its sign of comparison: ``= 0.031``, ``< 0.0001``."""
    return "< 0.0001" if value < 0.0001 else f"= {value:.2g}"


def format_seconds(value: float) -> str:
    """Tell a duration in the unit that fits: ``0.4 s``, ``85 s``, ``21 min``, ``3.5 h``."""
    if value < 120:
        return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"


def format_points(value: float, unit: str, *, signed: bool = True) -> str:
    """A number with its unit, as a sentence has it: accuracies in ``points`` of a hundred."""
    sign = "+" if signed else ""
    return f"{100 * value:{sign}.1f} points" if unit == "accuracy" else f"{value:{sign}.3f} {unit}"


def format_harm_interval(estimate: Estimate, unit: str) -> str:
    """A harm with its one-sided bounds, as a sentence has it: ``+5.5 points [+3.4, +7.6]``."""
    factor, digits = (100, 1) if unit == "accuracy" else (1, 3)
    return f"{format_points(estimate.harm, unit)} [{factor * estimate.low:+.{digits}f}, {factor * estimate.high:+.{digits}f}]"
