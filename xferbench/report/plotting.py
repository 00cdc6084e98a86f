"""What the pictures of plugins are drawn with: plain numbers onto matplotlib axes, an arm in one colour throughout. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from xferbench.report.svg import BLUE, GREEN, MUTED, ORANGE, PURPLE, SKY, VERMILION

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = [
    "ARM_COLOURS",
    "BLUE",
    "INDUCED_COLOURS",
    "MUTED",
    "VERMILION",
    "arm_colours",
    "arm_label",
    "draw_lines",
    "draw_mark",
    "draw_mesh",
    "draw_points",
]

ARM_COLOURS = {"subject": BLUE, "cured": GREEN, "scratch": MUTED}
INDUCED_COLOURS = (VERMILION, ORANGE, PURPLE, SKY)


def arm_colours(arms: Iterable[str]) -> dict[str, str]:
    """The colour of each arm: subject, cured and scratch have their own everywhere, the others take theirs in turn."""
    arms = list(arms)
    others = [arm for arm in arms if arm not in ARM_COLOURS]
    return {arm: ARM_COLOURS.get(arm) or INDUCED_COLOURS[others.index(arm) % len(INDUCED_COLOURS)] for arm in arms}


def draw_lines(axes: Any, curves: Mapping[str, Sequence[Any]], **style: Any) -> None:
    """The mean of each arm's curves, and a thin line for each of them.

    Args:
        axes: what is drawn on.
        curves: of each arm [K, 2] points (x, y) a seed; of those shorter than others there is the thin line alone.
        style: of the means, beside the colour.
    """
    for arm, colour in arm_colours(curves).items():
        seeds = [np.array(curve, float) for curve in curves[arm] if len(curve)]
        whole = [curve for curve in seeds if len(curve) == max(map(len, seeds))]
        for curve in seeds:
            axes.plot(*curve.T, color=colour, linewidth=0.8, alpha=0.3)
        if whole:
            means = np.ma.masked_invalid(whole).mean(axis=0).T
            axes.plot(*means, **{"color": colour, "marker": ".", "label": arm_label(arm)} | style)


def draw_points(axes: Any, pairs: Mapping[str, Sequence[Sequence[float]]]) -> None:
    """A point for each arm where the means of its pairs [seeds, 2] lie, and a faint one for each of them."""
    for arm, colour in arm_colours(pairs).items():
        each = np.ma.masked_invalid(np.array(pairs[arm], float))
        axes.plot(*each.T, linestyle="none", marker=".", color=colour, alpha=0.3)
        axes.plot(*each.mean(axis=0)[:, None], linestyle="none", marker="o", markersize=9, color=colour, label=arm_label(arm))


def draw_mesh(axes: Any, values: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str], label: str) -> None:
    """Values [rows, columns] as a map, from the lowest row up; the middle of a cell is half a unit from its edges."""
    drawn = axes.pcolormesh(values, cmap="cividis", rasterized=True)
    axes.figure.colorbar(drawn, ax=axes, label=label)
    axes.set_xticks(np.arange(len(columns)) + 0.5, columns)
    axes.set_yticks(np.arange(len(rows)) + 0.5, rows)


def draw_mark(axes: Any, x: float, y: float, marker: str = "o", color: str = VERMILION) -> None:
    """Something of note: a ring around a point, or a cross on it."""
    axes.plot([x], [y], linestyle="none", marker=marker, markersize=12, markeredgewidth=2, color=color, fillstyle="none")


def arm_label(arm: str) -> str:
    """An arm as a legend has it: a variant by its own name."""
    return arm.partition(":")[2] or arm
