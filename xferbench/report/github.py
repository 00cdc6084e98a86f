"""GitHub Actions output: the job summary, and an annotation for each verdict that needs attention.

Appends to the summary file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from xferbench.report import comparison_text, format, tables

if TYPE_CHECKING:
    from collections.abc import Mapping

    from xferbench.core.comparison import Comparison, Outcome
    from xferbench.core.run import Run

GATE_LEVELS = {"worse": "error", "crashed": "error", "cannot tell": "warning"}
VERDICT_LEVELS = {"FAIL": "error", "ERROR": "error", "INCONCLUSIVE": "warning"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotation:
    """One annotation; ``patterns`` match the line to annotate, most likely first."""

    level: str
    title: str
    message: str
    patterns: tuple[str, ...]


def publish(run: Run, summary: str, *, environ: Mapping[str, str], stream: TextIO) -> None:
    """Append to the job summary and write the annotations to a stream; do nothing outside GitHub Actions.

    Raises:
        OSError: if the job summary cannot be written.
    """
    if environ.get("GITHUB_STEP_SUMMARY"):
        with Path(environ["GITHUB_STEP_SUMMARY"]).open("a", encoding="utf-8", errors="replace") as file:
            file.write(summary + "\n")
    if environ.get("GITHUB_ACTIONS") == "true":
        stream.write("".join(f"{command}\n" for command in workflow_commands(run, environ.get("GITHUB_WORKSPACE", ""))))


def workflow_commands(run: Run, workspace: str = "") -> list[str]:
    """Return a workflow command for each FAIL, ERROR and INCONCLUSIVE, at the line of the suite file that its patch changes.

    For a gate, there is a command for each outcome that is worse, crashed or undecided, and for each known FAIL.
    """
    path = Path(str(run.suite.get("path") or run.suite.get("name") or "suite"))
    file = path.relative_to(workspace) if workspace and path.is_relative_to(workspace) else path
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    location = "" if run.suite.get("command") else f"file={_escape_property(file)},"  # options are in no file
    return [
        f"::{note.level} {location}"
        + (f"line={_line_number(lines, note.patterns)}," if location else "")
        + f"title={_escape_property(note.title)}::{_escape_data(note.message)}"
        for note in (_verdict_notes(run) if run.gate is None else _outcome_notes(run, run.gate))
    ]


def _verdict_notes(run: Run) -> list[Annotation]:
    return [
        Annotation(
            level=VERDICT_LEVELS[group[0].verdict],
            title=f"{group[0].verdict}: {group[0].plugin}",
            message=_message(group),
            patterns=_line_patterns(group[0].plugin, tables.patch_lines(group)),
        )
        for group in tables.finding_groups(run)
        if group[0].verdict in VERDICT_LEVELS
    ]


def _outcome_notes(run: Run, gate: Comparison) -> list[Annotation]:
    outcomes = comparison_text.in_reading_order(gate)
    return [
        _outcome_note(outcome, tables.outcome_group(run, outcome))
        for outcome in outcomes
        if comparison_text.needs_attention(outcome) or comparison_text.is_known_failure(outcome)
    ]


def _outcome_note(outcome: Outcome, group: tables.Group) -> Annotation:
    has_change, unit = outcome.estimate.change is not None, format.unit_name(outcome.estimate.unit)
    size = f"change {comparison_text.change_text(outcome)} {unit}" if has_change else ""
    needed = group and outcome.decision in {"worse", "crashed"}
    return Annotation(
        level=GATE_LEVELS.get(outcome.decision, "notice"),
        title=f"{outcome.decision}: {comparison_text.outcome_name(outcome)}"
        if comparison_text.needs_attention(outcome)
        else f"known: {comparison_text.outcome_name(outcome)}",
        message="; ".join(
            part
            for part in (
                comparison_text.outcome_sentence_name(outcome),
                comparison_text.both_sides_text(outcome),
                size,
                comparison_text.reason_text(outcome),
                tables.next_action(group) if needed else "",
            )
            if part
        ),
        patterns=(r"\s*\[recipe\]",)
        if comparison_text.is_subject(outcome)
        else _line_patterns(outcome.plugin, tables.patch_lines(group) if group else ""),
    )


def _message(group: tables.Group) -> str:
    first, estimate = group[0], group[0].estimate
    size = "" if estimate.harm is None else f"harm {tables.harm_text(first)} {format.unit_name(estimate.unit)}"
    return "; ".join(part for part in (size, tables.group_reason(group), tables.next_action(group)) if part)


def _line_patterns(plugin: str, patch: str) -> tuple[str, ...]:
    """Return patterns of the line that sets what the patch sets, or else names the plugin, or else lists plugins."""
    keys = [key[1] for line in patch.splitlines() if "# was" in line and (key := re.match(r"\s*([a-z_]+)\s*=", line))]
    return (*(rf"\s*{key}\s*=" for key in keys), rf".*[\"']{re.escape(plugin)}[\"']", r"\s*plugins\s*=")


def _line_number(lines: list[str], patterns: tuple[str, ...]) -> int:
    """Return the number of the first line that matches a pattern, in the order of the patterns; 1 if none matches."""
    return next((number for pattern in patterns for number, line in enumerate(lines, start=1) if re.match(pattern, line)), 1)


def _escape_data(value: object) -> str:
    return format.printable_block(value).replace("%", "%25").replace("\n", "%0A")


def _escape_property(value: object) -> str:
    return _escape_data(format.one_line(value)).replace(":", "%3A").replace(",", "%2C")
