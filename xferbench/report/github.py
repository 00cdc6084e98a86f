"""GitHub Actions: the job's summary, and one annotation for each verdict that asks for somebody."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from xferbench.report import frames, held, text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from xferbench.core.comparison import Comparison, Outcome
    from xferbench.record import Run

GATE = {"worse": "error", "crashed": "error", "cannot tell": "warning"}
LEVEL = {"FAIL": "error", "ERROR": "error", "INCONCLUSIVE": "warning"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """One annotation; ``wanted`` are patterns of the line at which it stands, the likeliest first."""

    level: str
    title: str
    message: str
    wanted: tuple[str, ...]


def publish(run: Run, summary: str, *, environ: Mapping[str, str], stream: TextIO) -> None:
    """Append the summary to the job's, and write the annotations to a stream; does nothing outside GitHub Actions.

    Raises:
        OSError: where the job's summary cannot be written.
    """
    if environ.get("GITHUB_STEP_SUMMARY"):
        with Path(environ["GITHUB_STEP_SUMMARY"]).open("a", encoding="utf-8", errors="replace") as file:
            file.write(summary + "\n")
    if environ.get("GITHUB_ACTIONS") == "true":
        stream.write("".join(f"{one}\n" for one in commands(run, environ.get("GITHUB_WORKSPACE", ""))))


def commands(run: Run, workspace: str = "") -> list[str]:
    """One workflow command for each FAIL, ERROR and INCONCLUSIVE, at the line of the suite file that its patch is about.

    Of a gate one for each outcome that is worse, crashed, open, or a known FAIL.
    """
    path = Path(str(run.suite.get("path") or run.suite.get("name") or "suite"))
    file = path.relative_to(workspace) if workspace and path.is_relative_to(workspace) else path
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    at = "" if run.suite.get("command") else f"file={_property(file)},"  # what was told by options stands in no file
    return [
        f"::{one.level} {at}"
        + (f"line={_line(lines, one.wanted)}," if at else "")
        + f"title={_property(one.title)}::{_data(one.message)}"
        for one in (_verdicts(run) if run.gate is None else _outcomes(run, run.gate))
    ]


def _verdicts(run: Run) -> list[Note]:
    return [
        Note(
            level=LEVEL[group[0].verdict],
            title=f"{group[0].verdict}: {group[0].plugin}",
            message=_message(group),
            wanted=_wanted(group[0].plugin, frames.patch(group)),
        )
        for group in frames.groups(run)
        if group[0].verdict in LEVEL
    ]


def _outcomes(run: Run, gate: Comparison) -> list[Note]:
    return [_outcome(one, frames.of(run, one)) for one in held.ordered(gate) if held.asks(one) or held.known(one)]


def _outcome(one: Outcome, group: frames.Group) -> Note:
    size = f"change {held.change(one)} {text.in_words(one.unit)}" if one.change is not None else ""
    needed = group and one.decision in {"worse", "crashed"}
    return Note(
        level=GATE.get(one.decision, "notice"),
        title=f"{one.decision}: {held.what(one)}" if held.asks(one) else f"known: {held.what(one)}",
        message="; ".join(
            part
            for part in (held.of(one), held.turn(one), size, held.reason(one), frames.action(group) if needed else "")
            if part
        ),
        wanted=(r"\s*\[recipe\]",) if held.is_subject(one) else _wanted(one.plugin, frames.patch(group) if group else ""),
    )


def _message(group: frames.Group) -> str:
    first = group[0]
    size = f"harm {frames.harm(first)} {text.in_words(first.unit)}" if first.harm is not None else ""
    return "; ".join(part for part in (size, frames.reason(group), frames.action(group)) if part)


def _wanted(plugin: str, patch: str) -> tuple[str, ...]:
    """Where the suite sets what the patch sets, or else names the plugin, or plugins at all."""
    keys = [key[1] for one in patch.splitlines() if "# was" in one and (key := re.match(r"\s*([a-z_]+)\s*=", one))]
    return (*(rf"\s*{key}\s*=" for key in keys), rf".*[\"']{re.escape(plugin)}[\"']", r"\s*plugins\s*=")


def _line(lines: list[str], wanted: tuple[str, ...]) -> int:
    """The first line that one of the patterns is found at; 1 where there is none."""
    return next((number for one in wanted for number, found in enumerate(lines, start=1) if re.match(one, found)), 1)


def _data(value: object) -> str:
    return str(value).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(value: object) -> str:
    return _data(value).replace(":", "%3A").replace(",", "%2C")
