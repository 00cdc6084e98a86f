"""Draw plain numbers onto matplotlib axes for the plots of plugins; an arm has the same color in all plots. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from xferbench.report.svg import BLUE, GREEN, MUTED, ORANGE, PURPLE, SKY, VERMILION

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = [
    "ARM_COLORS",
    "BLUE",
    "INDUCED_COLORS",
    "MUTED",
    "VERMILION",
    "arm_colors",
    "arm_label",
    "draw_lines",
    "draw_mark",
    "draw_mesh",
    "draw_points",
]

ARM_COLORS = {"subject": BLUE, "cured": GREEN, "scratch": MUTED}
INDUCED_COLORS = (VERMILION, ORANGE, PURPLE, SKY)


def arm_colors(arms: Iterable[str]) -> dict[str, str]:
    """Return the color of each arm: fixed for subject, cured and scratch, and a cycle of colors for all others."""
    arms = list(arms)
    others = [arm for arm in arms if arm not in ARM_COLORS]
    return {arm: ARM_COLORS.get(arm) or INDUCED_COLORS[others.index(arm) % len(INDUCED_COLORS)] for arm in arms}


def draw_lines(axes: Any, curves: Mapping[str, Sequence[Any]], **style: Any) -> None:
    """Draw a thin line for each curve, and the mean of each arm's curves.

    Args:
        axes: matplotlib axes.
        curves: curves by arm, one for each seed, each of K points (x, y), shape [K, 2]. The mean leaves out curves that are
            shorter than the longest curve of the arm.
        style: matplotlib properties of the means.
    """
    for arm, color in arm_colors(curves).items():
        seeds = [np.array(curve, float) for curve in curves[arm] if len(curve)]
        complete = [curve for curve in seeds if len(curve) == max(map(len, seeds))]
        for curve in seeds:
            axes.plot(*curve.T, color=color, linewidth=0.8, alpha=0.3)
        if complete:
            means = np.ma.masked_invalid(complete).mean(axis=0).T
            axes.plot(*means, **{"color": color, "marker": ".", "label": arm_label(arm)} | style)


def draw_points(axes: Any, pairs: Mapping[str, Sequence[Sequence[float]]]) -> None:
    """Draw a faint point for each pair, and a point at the mean of each arm's pairs, shape [seeds, 2]."""
    for arm, color in arm_colors(pairs).items():
        points = np.ma.masked_invalid(np.array(pairs[arm], float))
        mean = points.mean(axis=0)[:, None]
        axes.plot(*points.T, linestyle="none", marker=".", color=color, alpha=0.3)
        axes.plot(*mean, linestyle="none", marker="o", markersize=9, color=color, label=arm_label(arm))


def draw_mesh(axes: Any, values: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str], label: str) -> None:
    """Draw values [rows, columns] as a heat map, with the first row at the bottom.

    A cell has the side 1 and its center at (column + 0.5, row + 0.5).
    """
    mesh = axes.pcolormesh(values, cmap="cividis", rasterized=True)
    axes.figure.colorbar(mesh, ax=axes, label=label)
    axes.set_xticks(np.arange(len(columns)) + 0.5, columns)
    axes.set_yticks(np.arange(len(rows)) + 0.5, rows)


def draw_mark(axes: Any, x: float, y: float, marker: str = "o", color: str = VERMILION) -> None:
    """Highlight a point with a ring around it, or with another matplotlib marker."""
    axes.plot([x], [y], linestyle="none", marker=marker, markersize=12, markeredgewidth=2, color=color, fillstyle="none")


def arm_label(arm: str) -> str:
    """Return the label of an arm in a legend; the label of a variant is its own name."""
    return arm.partition(":")[2] or arm
