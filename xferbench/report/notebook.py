"""Show a run in a notebook as an HTML table. Pure; the table needs no file and uses the colors of the page."""

from __future__ import annotations

import sys
from html import escape
from typing import TYPE_CHECKING

from xferbench.core.run import Run
from xferbench.report import comparison_text, format, tables

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xferbench.core.run import Finding

BADGES = {  # worst first; white text is legible on each color, and each color on a light and a dark page
    "FAIL": "#b3261e",
    "ERROR": "#86339b",
    "INCONCLUSIVE": "#8a6100",
    "PASS": "#1a7f37",
    "SKIPPED": "#57606a",
    "INFO": "#57606a",
}
HEAD = ("Check", "Verdict", "Harm [bounds]", "Control", "Reason")
LEFT = "text-align:left;vertical-align:top;padding:.2em .8em .2em 0"
BADGE = "color:#fff;background:{};padding:.1em .5em;border-radius:.3em;font-weight:600"


def notebook_table(run: Run) -> str:
    """Return the verdicts as an HTML table with one row for each contrast and the notes folded below.

    The table of a matrix has the mean scores instead.
    """
    if run.matrix is not None:
        means = run.to_frame().pivot_table("accuracy", "recipe", "task", sort=False)
        return str(means.to_html(float_format="{:.4g}".format))
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in run.findings:
        groups.setdefault((finding.plugin, finding.contrast), []).append(finding)
    order = list(BADGES)
    rows = sorted(groups.values(), key=lambda group: order.index(group[0].verdict))
    head = "".join(f'<th style="{LEFT}">{name}</th>' for name in HEAD)
    body = "".join(f"<tr>{_row(group)}</tr>" for group in rows)
    notes = "".join(f"<li>{_escape(note)}</li>" for note in run.notes)
    return (
        f"<div><p><strong>xferbench: {_escape(run.suite.get('name', ''))}</strong></p>"
        + (f"<p>{_escape(comparison_text.headline(run.gate))}</p>" if run.gate else "")
        + f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        + (f"<details><summary>{len(run.notes)} note(s)</summary><ul>{notes}</ul></details>" if notes else "")
        + "</div>"
    )


def register_display() -> None:
    """Register the table as the display of a run in the running IPython, if there is one.

    It is registered here because a run does not know its output formats.
    """
    if "IPython" not in sys.modules:
        return
    from IPython import get_ipython

    if (shell := get_ipython()) is not None:
        shell.display_formatter.formatters["text/html"].for_type(Run, notebook_table)


def _row(group: Sequence[Finding]) -> str:
    first, estimate = group[0], group[0].estimate
    unit = "" if estimate.harm is None else f" {format.unit_name(estimate.unit)}"
    controls = [finding.control for finding in group if finding.control.outcome != "none"]
    cells = (
        _escape(tables.group_name(first)),
        f'<span style="{BADGE.format(BADGES[first.verdict])}">{first.verdict}</span>',
        _escape(format.format_bounds(estimate.bounds, estimate.unit) + unit),
        "<br>".join(_escape(f"{control.variant} {control.outcome}".strip()) for control in controls) or format.MISSING,
        _escape(first.reason),
    )
    return "".join(f'<td style="{LEFT}">{cell}</td>' for cell in cells)


def _escape(value: object) -> str:
    return escape(format.one_line(value))
