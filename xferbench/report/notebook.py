"""A run as a table of HTML for notebooks: it needs no file and follows the colors of the page."""

from __future__ import annotations

import sys
from html import escape
from typing import TYPE_CHECKING

from xferbench.core.run import Run
from xferbench.report import comparison_text, format, tables

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xferbench.core.run import Finding

BADGES = {  # worst first; white letters are legible on each, and each on a light and on a dark page
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
    """The verdicts as a table, each contrast once, and the notes folded below it; the mean scores of a matrix."""
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
    notes = "".join(f"<li>{_said(note)}</li>" for note in run.notes)
    return (
        f"<div><p><strong>xferbench: {_said(run.suite.get('name', ''))}</strong></p>"
        + (f"<p>{_said(comparison_text.headline(run.gate))}</p>" if run.gate else "")
        + f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        + (f"<details><summary>{len(run.notes)} note(s)</summary><ul>{notes}</ul></details>" if notes else "")
        + "</div>"
    )


def register_display() -> None:
    """Show runs as this table in the running IPython, if there is one; a run itself knows no format."""
    if "IPython" not in sys.modules:
        return
    from IPython import get_ipython

    if (shell := get_ipython()) is not None:
        shell.display_formatter.formatters["text/html"].for_type(Run, notebook_table)


def _row(group: Sequence[Finding]) -> str:
    first = group[0]
    unit = "" if first.harm is None else f" {format.unit_name(first.unit)}"
    controls = [f"{one.variant} {one.control}".strip() for one in group if one.control != "none"]
    cells = (
        _said(tables.group_name(first)),
        f'<span style="{BADGE.format(BADGES[first.verdict])}">{first.verdict}</span>',
        _said(format.format_bounds((first.harm, first.low, first.high), first.unit) + unit),
        "<br>".join(map(_said, controls)) or format.MISSING,
        _said(first.reason),
    )
    return "".join(f'<td style="{LEFT}">{cell}</td>' for cell in cells)


def _said(value: object) -> str:
    return escape(format.one_line(value))
