"""A run as a notebook shows it: one small table of HTML that needs nothing else and follows the page's own colours.

It stands below the record, whose run shows itself this way, and so knows nothing of the other formats' tables.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from xferbench.report import frames, held, text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xferbench.record import Finding, Run

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


def render(run: Run) -> str:
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
        + (f"<p>{_said(held.sentence(run.gate))}</p>" if run.gate else "")
        + f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        + (f"<details><summary>{len(run.notes)} note(s)</summary><ul>{notes}</ul></details>" if notes else "")
        + "</div>"
    )


def contents(run: Run) -> str:
    """What a run holds: ``1 FAIL, 2 PASS; 90 records``, or ``6 recipes on 4 tasks, 48 rows``."""
    if run.matrix is not None:
        recipes, tasks = len(run.suite["recipes"]), len(run.suite["tasks"])
        return f"{recipes} recipes on {tasks} tasks, {len(run.matrix.rows)} rows"
    return f"{counted(run)}; {len(run.cells)} records"


def counted(run: Run) -> str:
    """How many contrasts have which verdict, the worst first: ``1 FAIL, 2 PASS``."""
    verdicts = list({(one.plugin, one.contrast): one.verdict for one in run.findings}.values())
    return ", ".join(f"{verdicts.count(one)} {one}" for one in BADGES if one in verdicts) or "no finding"


def _row(group: Sequence[Finding]) -> str:
    first = group[0]
    unit = "" if first.harm is None else f" {text.in_words(first.unit)}"
    controls = [f"{one.variant} {one.control}".strip() for one in group if one.control != "none"]
    cells = (
        _said(frames.check(first)),
        f'<span style="{BADGE.format(BADGES[first.verdict])}">{first.verdict}</span>',
        _said(text.bounded((first.harm, first.low, first.high), first.unit) + unit),
        "<br>".join(map(_said, controls)) or text.NOTHING,
        _said(first.reason),
    )
    return "".join(f'<td style="{LEFT}">{cell}</td>' for cell in cells)


def _said(value: object) -> str:
    return escape(text.line(value))
