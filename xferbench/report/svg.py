"""Render a drawing as inline SVG or as an inline image, in colors that color-blind readers can distinguish. Pure.

The page defines all colors, so that it can replace them on a dark background. Text stays text, in the page's font. Figures
are 440 CSS pixels wide, so that they are readable on a phone.
"""

from __future__ import annotations

import base64
import io
import re
import warnings
from html import escape
from typing import TYPE_CHECKING, Any, TypeAlias

from xferbench.report import format

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Figure: TypeAlias = Any

MAX_VECTOR_SHAPES = 400  # a collection with more shapes becomes an image in the figure
FIGURE_WIDTH_INCHES = 4.6  # 1 inch is 96 CSS pixels
INK, MUTED, GRID, CARD = "#010101", "#767676", "#dedede", "#fefefe"
COLOR_CYCLE = BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#e69f00",
    "#cc79a7",
    "#56b4e9",
)  # Okabe-Ito
FAIL, PASS, OPEN, ERROR = "#a84300", "#00694d", "#7d5500", "#8c3f6b"  # for text, which needs more contrast than marks
# the page's names of these colors; they are lighter on a dark background
CSS_VARIABLES = {
    INK: "currentColor",
    MUTED: "var(--muted)",
    GRID: "var(--line)",
    CARD: "var(--card)",
    BLUE: "var(--blue)",
    VERMILION: "var(--vermilion)",
    GREEN: "var(--green)",
    ORANGE: "var(--orange)",
    PURPLE: "var(--purple)",
    SKY: "var(--sky)",
    FAIL: "var(--fail)",
    PASS: "var(--pass)",
    OPEN: "var(--open)",
    ERROR: "var(--error)",
}
MATPLOTLIB_STYLE: Mapping[str, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "lines.linewidth": 1.5,
}


def inline_svg(draw: Callable[[Figure], None], label: str, *, height: float) -> str:
    """Return a figure as inline SVG; the output is deterministic.

    Args:
        draw: function that draws into a matplotlib figure.
        label: text alternative.
        height: height in inches.
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    stream = io.StringIO()
    _save(
        draw,
        FigureCanvasSVG,
        stream,
        label,
        height,
        format="svg",
        metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
    )
    body = stream.getvalue()
    inner = body[body.index(">", body.index("<svg")) + 1 :]
    inner = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", inner, flags=re.DOTALL)
    inner = re.sub(r' id="[\w.]+_\d+"', "", inner)  # unique in one figure only, and never referenced
    inner = re.sub(
        r"(fill|stroke): (#[0-9a-f]{6})", lambda match: f"{match[1]}: {CSS_VARIABLES.get(match[2], match[2])}", inner
    )
    inner = re.sub(r"(font-size: [\d.]+px; )font-family: [^;\"]*(?:; )?", r"\1", inner)
    inner = re.sub(r"font: (?:bold |700 )([\d.]+)px [^;\"]*", r"font-size: \1px; font-weight: bold", inner)
    inner = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", inner)
    inner = re.sub(r"\n\s*", "\n", format.printable_block(inner)).strip()
    box = f'viewBox="0 0 {FIGURE_WIDTH_INCHES * 72:g} {height * 72:g}"'
    return f'<svg {box} role="img" aria-label="{escape(label)}" xmlns:xlink="http://www.w3.org/1999/xlink">{inner}'


def inline_png(draw: Callable[[Figure], None], label: str, *, height: float) -> str:
    """Return a figure as an inline PNG on a white background; the arguments are those of :func:`inline_svg`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    stream = io.BytesIO()
    _save(draw, FigureCanvasAgg, stream, label, height, format="png", dpi=144, facecolor="white", metadata={"Software": None})
    return f'<img alt="{escape(label)}" src="data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}">'


def _save(
    draw: Callable[[Figure], None], canvas: Callable[[Figure], Any], file: Any, label: str, height: float, **options: Any
) -> None:
    from cycler import cycler
    from matplotlib import style as styles
    from matplotlib.figure import Figure as NewFigure
    from matplotlib.ticker import LogFormatter, NullFormatter

    # the salt makes the ids of different figures different, because they share one page
    style = {**MATPLOTLIB_STYLE, "axes.prop_cycle": cycler(color=COLOR_CYCLE), "svg.hashsalt": label}
    with styles.context(["default", style]), warnings.catch_warnings():  # independent of the user's settings
        warnings.filterwarnings("ignore", category=UserWarning)  # a missing glyph in the measuring font, or a tight layout
        figure = NewFigure(figsize=(FIGURE_WIDTH_INCHES, height))
        canvas(figure)
        draw(figure)
        for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
            if isinstance(axis.get_major_formatter(), LogFormatter):  # its labels are formulas, which the style disables
                axis.set_major_formatter(lambda value, _: f"{value:g}")
                axis.set_minor_formatter(NullFormatter())
        for collection in (collection for axes in figure.axes for collection in axes.collections):
            collection.set_rasterized(_shape_count(collection) > MAX_VECTOR_SHAPES)
        figure.savefig(file, **{"dpi": 144} | options)


def _shape_count(collection: Any) -> int:
    """Return the number of shapes in a collection: the cells of a heat map, or the points of a scatter plot."""
    values, offsets = collection.get_array(), collection.get_offsets()
    return max(0 if values is None else int(values.size), len(offsets))
