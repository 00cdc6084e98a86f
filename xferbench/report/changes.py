"""The forest plot of a comparison: how much worse each thing has become, against none and against the margin."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from xferbench.report import drawn, held, svg, text
from xferbench.report.figures import VERDICT, interval, limits
from xferbench.report.forest import COLUMN, HEAD, LEFT, RIGHT, ROW, WORD, beside, columns
from xferbench.report.svg import GRID, INK, MUTED

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from xferbench.core.comparison import Comparison, Outcome


def changes(comparison: Comparison, cache: Path | None = None) -> str:
    """The change of all that is told in the subject's unit, the subject first; empty where there is none."""
    shown = drawable(comparison)
    if not shown:
        return ""
    unit, height = shown[0].unit, (HEAD + ROW) * len(shown)
    factor, _ = text.scale(unit)

    def draw(figure: svg.Figure) -> None:
        axes = columns(figure, height)
        span = _span(shown, factor)
        axes.set_xlim(span)
        limits(axes, [one.margin for one in shown], factor)
        for number, one in enumerate(shown):
            top, look = number * (HEAD + ROW), held.LOOK[one.decision]
            beside(axes, top + HEAD / 2, text.short(held.what(one), 40), one.decision, weight="bold", color=WORD.get(look, INK))
            beside(axes, top + HEAD + ROW / 2, held.levels(one), held.change(one))
            bounds = (one.change, one.low, one.high)
            colour = VERDICT.get(look, MUTED)
            interval(axes, top + HEAD + ROW / 2, bounds, factor, color=colour, marker="o", linewidth=2.2, span=span)
            if number < len(shown) - 1:
                line = top + HEAD + ROW + 0.02
                axes.axhline(line, xmin=-LEFT / COLUMN, xmax=1 + RIGHT / COLUMN, color=GRID, linewidth=0.6, clip_on=False)
        axes.set_xlabel(f"change in {text.in_words(unit)}, worse to the right")

    told = "; ".join(f"{held.what(one)} {one.decision} {held.change(one)}" for one in shown)
    label = f"Change against what was accepted with its bounds, in {text.in_words(unit)}: {told}"
    return drawn.kept(cache, ("changes", shown), lambda: svg.inline(draw, label, height=height + 0.62))


def drawable(comparison: Comparison) -> tuple[Outcome, ...]:
    """Outcomes with a change in one unit, which is the subject's or else the commonest, the subject first."""
    told = [one for one in held.ordered(comparison) if one.change is not None]
    own = [one.unit for one in told if held.is_subject(one)]
    unit = next(iter(own or [unit for unit, _ in Counter(one.unit for one in told).most_common(1)]), "")
    return tuple(one for one in told if one.unit == unit)


def _span(shown: Sequence[Outcome], factor: float) -> tuple[float, float]:
    """The axis in told units: every change, and of bounds no more than leaves the margin visible."""
    margin = max((one.margin or 0.0 for one in shown), default=0.0)
    own = [one.change for one in shown if one.change is not None]
    bounds = [value for one in shown for value in (one.low, one.high) if value is not None]
    least, most = min([0.0, *own, *bounds]), max([margin, *own, *bounds])
    if margin:
        least, most = max(least, min([-15 * margin, *own])), min(most, max([15 * margin, *own]))
    room = 0.04 * (most - least) or 0.01
    return factor * (least - room), factor * (most + room)
