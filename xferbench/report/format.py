"""Format numbers and names the same way in every output format. Pure."""

from __future__ import annotations

from math import isnan
from typing import TYPE_CHECKING, Any

from xferbench.core import printable

if TYPE_CHECKING:
    from xferbench.core.run import Estimate

MISSING = "–"
PERCENT_UNITS = {
    "accuracy",
    "balanced accuracy",
    "sensitivity",
    "specificity",
}  # units whose numbers are printed in percentage points
SHARE_UNITS = {"runs"}  # units of shares, which are printed in percent


one_line, printable_block = printable.one_line, printable.printable_block


def shorten(text: object, most: int) -> str:
    """Return a text as one line of at most ``most`` characters."""
    line = one_line(text)
    return line if len(line) <= most else line[: most - 1] + "…"


def hide_folders(spec: object) -> str:
    """Return a dataset or a file without its parent folders: ``folder:ants``."""
    kind, colon, rest = one_line(spec).rpartition(":")
    return f"{kind}{colon}{rest.rstrip('/').rpartition('/')[2]}"


def unit_scale(unit: str) -> tuple[float, int]:
    """Return the factor and the number of decimals with which a unit is printed."""
    return (100.0, 1) if unit in PERCENT_UNITS | SHARE_UNITS else (1.0, 3)


def unit_name(unit: str) -> str:
    """Return the name of the unit of printed numbers, for a heading: ``points of accuracy``, ``% of runs``."""
    if unit in SHARE_UNITS:
        return f"% of {unit}"
    return f"points of {unit}" if unit in PERCENT_UNITS else one_line(unit)


def format_harm(value: float | None, unit: str) -> str:
    """Format a harm: ``+5.5``."""
    if value is None:
        return MISSING
    factor, digits = unit_scale(unit)
    return f"{round(factor * value, digits) + 0.0:+.{digits}f}"


def format_bounds(harm: tuple[float | None, float | None, float | None], unit: str) -> str:
    """Format a harm with its one-sided bounds: ``+5.5 [+3.4, +7.6]``."""
    value, low, high = harm
    return MISSING if value is None else f"{format_harm(value, unit)} [{format_harm(low, unit)}, {format_harm(high, unit)}]"


def format_percent(value: float | None, digits: int = 1) -> str:
    """Format a share or an accuracy: ``81.2 %``."""
    return MISSING if value is None else f"{round(100 * value, digits) + 0.0:.{digits}f} %"


def format_score(value: float | None, unit: str) -> str:
    """Format the value of a metric: ``81.2 %`` for an accuracy, ``0.512`` for a loss."""
    if value is None or unit in PERCENT_UNITS:
        return format_percent(value)
    return f"{value:.3f}"


def format_number(value: Any, digits: int = 4) -> str:
    """Format a number with ``digits`` significant digits; a value that is not a number becomes a dash."""
    return f"{value:.{digits}g}" if isinstance(value, int | float) else MISSING


def format_confidence(alpha: float, space: str = " ") -> str:
    """Format the confidence level of a one-sided bound: ``95 %``."""
    return f"{100 * (1 - alpha):g}{space}%"


def format_p_value(value: float) -> str:
    """Format a p-value with its comparison sign: ``= 0.031``, ``< 0.0001``."""
    return "< 0.0001" if value < 0.0001 else f"= {value:.2g}"


def format_seconds(value: float) -> str:
    """Format a duration in seconds, minutes or hours: ``0.4 s``, ``85 s``, ``21 min``, ``3.5 h``."""
    if value < 120:
        return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"


def format_points(value: float, unit: str, *, signed: bool = True) -> str:
    """Format a number with its unit for a sentence; an accuracy is in percentage ``points``."""
    sign = "+" if signed else ""
    factor, digits = unit_scale(unit)
    return f"{factor * value:{sign}.{digits}f} {'points' if unit == 'accuracy' else unit_name(unit)}"


def format_harm_interval(estimate: Estimate, unit: str) -> str:
    """Format a harm with its one-sided bounds for a sentence: ``+5.5 points [+3.4, +7.6]``."""
    factor, digits = unit_scale(unit)
    return f"{format_points(estimate.harm, unit)} [{factor * estimate.low:+.{digits}f}, {factor * estimate.high:+.{digits}f}]"


def format_score_number(value: float | None, unit: str) -> str:
    """Return a score in its unit, without the name of the unit."""
    if value is None or isnan(value):
        return MISSING
    factor, digits = unit_scale(unit)
    return f"{factor * value:.{digits}f}"


def format_interval(
    interval: Any, unit: str = "", *, digits: int | None = None, maximum: float = float("inf"), signed: bool = False
) -> str:
    """Return a value in its unit with its interval, if it has one; both are clipped at ``maximum``."""
    factor, unit_digits = unit_scale(unit)
    value, low, high = (min(float(number), maximum) * factor for number in (interval.value, interval.low, interval.high))
    if isnan(value):
        return MISSING
    spec = f"{'+' if signed else ''}.{unit_digits if digits is None else digits}f"
    bounds = "" if isnan(low) or isnan(high) else f" [{low:{spec}}, {high:{spec}}]"
    return f"{value:{spec}}{bounds}"
