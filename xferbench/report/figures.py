"""Drawing: tables of :mod:`~xferbench.report.frames` become inline SVG, in colours that colour-blind readers can tell apart.

Every colour is one of the page's, so that the page can give it another value on a dark ground; text is text, in the page's
font. Figures are 440 CSS pixels wide, so that they can still be read on a phone, and labels stand above what they name.
"""

from __future__ import annotations

import base64
import io
import re
import warnings
from html import escape
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from xferbench.report import frames, text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from xferbench.design import Plugin
    from xferbench.record import Run

    Figure: TypeAlias = Any
    Axes: TypeAlias = Any

INK, MUTED, GRID, CARD = "#010101", "#767676", "#dedede", "#fefefe"
BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY = "#0072b2", "#d55e00", "#009e73", "#e69f00", "#cc79a7", "#56b4e9"  # Okabe & Ito 2008
# the page's names of these colours; on a dark ground it gives them lighter values
VARIABLES = {
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
}
VERDICT = {"FAIL": VERMILION, "PASS": GREEN, "INCONCLUSIVE": ORANGE, "ERROR": PURPLE}
ARM = {"subject": BLUE, "cured": GREEN, "scratch": MUTED}
INDUCED = (VERMILION, ORANGE, PURPLE, SKY)
WIDTH, LEFT, RIGHT = 4.6, 0.12, 0.12  # inches; 1 inch is 96 CSS pixels
LARGEST = 200_000  # characters of SVG; a plugin's picture of more points than that becomes an image
STYLE: Mapping[str, Any] = {
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


def forest(groups: Sequence[frames.Group]) -> str:
    """Harm of every verdict with its bounds against the margin, and the harm of its positive controls; empty without any."""
    shown = [group for group in groups if group[0].harm is not None]
    if not shown:
        return ""
    unit = shown[0][0].unit
    factor, _ = text.scale(unit)

    def draw(figure: Figure) -> None:
        axes = _rows(figure, len(shown), 0.5)
        _margin(axes, [group[0].margin for group in shown], factor)
        for place, group in enumerate(shown):
            first, colour = group[0], VERDICT.get(group[0].verdict, MUTED)
            _label(axes, place, f"{text.short(first.plugin, 26)}  {first.verdict}", text.bounded(first.harm, first.low, first.high, unit))
            _interval(axes, place + 0.5, (first.harm, first.low, first.high), factor, color=colour, marker="o", linewidth=2.2)
            for number, one in enumerate(group):
                mean = (one.control_harm, one.control_low, one.control_high)
                _interval(axes, place + 0.64 + 0.24 * number / len(group), mean, factor, color=MUTED, marker="D", hollow=True)
        axes.set_xlabel(f"harm in {text.in_words(unit)}")

    told = "; ".join(f"{text.line(one.plugin)} {one.verdict} {text.bounded(one.harm, one.low, one.high, unit)}" for one, *_ in shown)
    return svg(draw, f"Harm by check with its bounds, in {text.in_words(unit)}: {told}", height=0.5 * len(shown) + 0.62)


def retained(groups: Sequence[frames.Group]) -> str:
    """Share of pretraining's benefit that each failure has left; empty where none could be had."""
    shown = [group for group in groups if group[0].benefit_retained is not None]
    if not shown:
        return ""
    least, most = -0.5, 1.25  # beyond it a value is drawn at the edge, and said in words

    def draw(figure: Figure) -> None:
        axes = _rows(figure, len(shown), 0.42)
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.axvline(1, color=GREEN, linewidth=1.2, linestyle="--")
        for place, group in enumerate(shown):
            value, colour = group[0].benefit_retained or 0.0, VERDICT.get(group[0].verdict, MUTED)
            end = min(max(value, least), most)
            _label(axes, place, f"{text.short(group[0].plugin, 26)}  {group[0].verdict}", text.percent(value, 0))
            axes.plot([0, end], [place + 0.55] * 2, color=colour, linewidth=7, alpha=0.35, solid_capstyle="butt")
            axes.plot([end], [place + 0.55], color=colour, marker="o" if end == value else "<" if value < least else ">", markersize=6)
        axes.set(xlim=(least - 0.05, most + 0.05), xticks=[-0.5, 0, 0.5, 1], xticklabels=["−50 %", "0", "50 %", "100 %"])
        axes.set_xlabel("benefit of pretraining that is retained")

    told = "; ".join(f"{text.line(one.plugin)} {text.percent(one.benefit_retained, 0)}" for one, *_ in shown)
    return svg(draw, f"Benefit retained by check: {told}", height=0.42 * len(shown) + 0.62)


def paired(rows: Sequence[tuple[str, Mapping[int, float], tuple[float | None, ...]]], margin: float | None, unit: str) -> str:
    """Harm of each seed, the mean and its bounds, for the judged arm and below it for each induced one; empty without any."""
    shown = [row for row in rows if row[1]]
    if not shown:
        return ""
    factor, _ = text.scale(unit)

    def draw(figure: Figure) -> None:
        axes = _rows(figure, len(shown), 0.62)
        _margin(axes, [margin], factor)
        for place, (name, by_seed, bounds) in enumerate(shown):
            colour = _colour(name.replace(": ", ":"), place - 1)
            _label(axes, place, text.short(name, 38), text.bounded(*bounds, unit))
            harms = factor * np.array(list(by_seed.values()))
            spread = np.linspace(-0.12, 0.12, len(harms)) if len(harms) > 1 else np.zeros(1)
            axes.plot(harms, place + 0.5 + spread, color=colour, linestyle="none", marker="o", markersize=4, alpha=0.55, markeredgewidth=0)
            _interval(axes, place + 0.78, bounds, factor, color=colour, marker="D", linewidth=2.2)
        axes.set_xlabel(f"harm in {text.in_words(unit)}, one dot a seed")

    told = "; ".join(f"{name} {text.bounded(*bounds, unit)} over {len(by_seed)} seeds" for name, by_seed, bounds in shown)
    return svg(draw, f"Harm by seed, in {text.in_words(unit)}: {told}", height=0.62 * len(shown) + 0.62)


def learning(curves: Mapping[str, frames.Curve]) -> str:
    """Training loss and validation accuracy by step: the mean over seeds, in a band from the least to the greatest."""
    if not curves:
        return ""
    names = list(curves)
    induced = [name for name in names if name.startswith("induced")]

    def draw(figure: Figure) -> None:
        sides = figure.subplots(1, 2)
        lines = -(-len(names) // 2)
        height = figure.get_figheight()
        figure.subplots_adjust(left=0.095, right=0.985, bottom=0.45 / height, top=1 - (0.38 + 0.16 * lines) / height, wspace=0.26)
        for axes, column, title in zip(sides, ("loss", "accuracy"), ("training loss", "validation accuracy"), strict=True):
            for name, curve in curves.items():
                mean, least, greatest = getattr(curve, column).T
                colour = _colour(name, induced.index(name) if name in induced else 0)
                axes.fill_between(curve.steps, least, greatest, color=colour, alpha=0.15, linewidth=0)
                dashes = "--" if name == "scratch" else "-"
                axes.plot(curve.steps, mean, color=colour, linestyle=dashes, marker="o" if len(mean) == 1 else "", label=text.short(name.replace(":", ": "), 28))
            axes.set(xlabel="step")
            axes.set_title(title, fontsize=9)
        handles, labels = sides[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="upper left", ncols=2, borderaxespad=0.2)

    ends = "; ".join(f"{text.line(name)} ends at {text.percent(_last(curve.accuracy[:, 0]))}" for name, curve in curves.items())
    return svg(draw, f"Learning curves, mean over seeds: {ends}", height=2.6 + 0.16 * -(-len(names) // 2))


def picture(plugin: Plugin, run: Run) -> str:
    """The plugin's own picture; one that crashes says so in its place, since the verdicts do not depend on it."""
    drawing = plugin.picture
    if drawing is None:
        return ""

    def draw(figure: Figure) -> None:
        figure.set_layout_engine("constrained")
        drawing(figure.add_subplot(), run)

    label = f"The picture of {text.line(plugin.id)}: {text.line(plugin.question)}"
    try:
        drawn = svg(draw, label, height=3.2)
        return drawn if len(drawn) <= LARGEST else image(draw, label, height=3.2)
    except Exception as error:  # noqa: BLE001 - a third party's drawing must not cost the report
        return f"<p>This plugin's picture could not be drawn: {escape(text.line(f'{type(error).__name__}: {error}'))}</p>"


def svg(draw: Callable[[Figure], None], label: str, *, height: float) -> str:
    """Draw into a figure and give it as inline SVG with a text alternative; the same input gives the same characters."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    found = io.StringIO()
    _save(draw, FigureCanvasSVG, found, label, height, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    body = found.getvalue()
    inner = body[body.index(">", body.index("<svg")) + 1 :]
    inner = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", inner, flags=re.DOTALL)
    inner = re.sub(r' id="[a-z0-9A-Z]+_\d+"', "", inner)  # unique in one figure only, and never referred to
    inner = re.sub(r"(fill|stroke): (#[0-9a-f]{6})", lambda one: f"{one[1]}: {VARIABLES.get(one[2], one[2])}", inner)
    inner = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", inner)
    inner = re.sub(r"\n\s*", "\n", inner).strip()
    box = f'viewBox="0 0 {WIDTH * 72:g} {height * 72:g}"'
    return f'<svg {box} role="img" aria-label="{escape(label)}" xmlns:xlink="http://www.w3.org/1999/xlink">{inner}'


def image(draw: Callable[[Figure], None], label: str, *, height: float) -> str:
    """Draw into a figure and give it as an inline PNG on a white ground."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    found = io.BytesIO()
    _save(draw, FigureCanvasAgg, found, label, height, format="png", dpi=144, facecolor="white", metadata={"Software": None})
    return f'<img alt="{escape(label)}" src="data:image/png;base64,{base64.b64encode(found.getvalue()).decode()}">'


def _save(draw: Callable[[Figure], None], canvas: Callable[[Figure], Any], file: Any, label: str, height: float, **options: Any) -> None:
    import matplotlib as mpl
    from matplotlib.figure import Figure as Blank

    colours = mpl.cycler(color=[BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY])
    style = {**STYLE, "axes.prop_cycle": colours, "svg.hashsalt": label}  # ids that are referred to differ between figures
    with mpl.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning)  # a glyph that the measuring font lacks, a layout too tight
        figure = Blank(figsize=(WIDTH, height))
        canvas(figure)
        draw(figure)
        figure.savefig(file, **options)


def _rows(figure: Figure, rows: int, row: float) -> Axes:
    """Axes for rows of a fixed height in inches, counted from the top, each with its label above it."""
    height = figure.get_figheight()
    bottom = 0.48 / height
    axes = figure.add_axes((LEFT / WIDTH, bottom, 1 - (LEFT + RIGHT) / WIDTH, row * rows / height))
    axes.set(ylim=(rows, 0), yticks=[])
    axes.spines["left"].set_visible(False)
    return axes


def _label(axes: Axes, place: float, left: str, right: str) -> None:
    ground = {"facecolor": CARD, "edgecolor": "none", "pad": 1.5}  # lines of the axes do not run through words
    for side, words, align in ((0, left, "left"), (1, right, "right")):
        axes.text(side, place + 0.07, words, transform=axes.get_yaxis_transform(), va="top", ha=align, bbox=ground)


def _interval(
    axes: Axes,
    place: float,
    mean: tuple[float | None, ...],
    factor: float,
    *,
    color: str,
    marker: str,
    linewidth: float = 1.1,
    hollow: bool = False,
) -> None:
    value, low, high = (None if number is None else factor * number for number in mean)
    if low is not None and high is not None:
        axes.plot([low, high], [place, place], color=color, linewidth=linewidth, solid_capstyle="butt")
    if value is not None:
        axes.plot([value], [place], color=color, marker=marker, markersize=4.5 if hollow else 6, fillstyle="none" if hollow else "full")


def _margin(axes: Axes, margins: Sequence[float | None], factor: float) -> None:
    axes.axvline(0, color=INK, linewidth=0.8)
    for margin in dict.fromkeys(margins):
        if margin is not None:
            axes.axvline(factor * margin, color=VERMILION, linewidth=1.2, linestyle="--")


def _colour(name: str, number: int) -> str:
    return ARM.get(name) or INDUCED[number % len(INDUCED)]


def _last(values: np.ndarray) -> float | None:
    finite = values[np.isfinite(values)]
    return float(finite[-1]) if len(finite) else None
