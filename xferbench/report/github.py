"""GitHub Actions: the job's summary, and one annotation for each verdict that asks for somebody."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from xferbench.report import frames, text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from xferbench.record import Run

LEVEL = {"FAIL": "error", "ERROR": "error", "INCONCLUSIVE": "warning"}


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
    """One workflow command for each FAIL, ERROR and INCONCLUSIVE, at the line of the suite file that its patch is about."""
    path = Path(str(run.suite.get("path") or run.suite.get("name") or "suite"))
    file = path.relative_to(workspace) if workspace and path.is_relative_to(workspace) else path
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    at = "" if run.suite.get("command") else f"file={_property(file)},"  # what was told by options stands in no file
    return [
        f"::{LEVEL[group[0].verdict]} {at}"
        + (f"line={_line(lines, group)}," if at else "")
        + f"title={_property(f'{group[0].verdict}: {frames.section(group[0])}')}::{_data(_message(group))}"
        for group in frames.groups(run)
        if group[0].verdict in LEVEL
    ]


def _message(group: frames.Group) -> str:
    first = group[0]
    size = f"harm {frames.harm(first)} {text.in_words(first.unit)}" if first.harm is not None else ""
    return "; ".join(part for part in (size, frames.reason(group), frames.action(group)) if part)


def _line(lines: list[str], group: frames.Group) -> int:
    """Where the suite sets what the patch sets, or else names the plugin, or plugins at all; 1 where it cannot be told."""
    keys = [
        key[1] for one in frames.patch(group).splitlines() if "# was" in one and (key := re.match(r"\s*([a-z_]+)\s*=", one))
    ]
    wanted = [*(rf"\s*{key}\s*=" for key in keys), rf".*[\"']{re.escape(group[0].plugin)}[\"']", r"\s*plugins\s*="]
    return next((number for one in wanted for number, found in enumerate(lines, start=1) if re.match(one, found)), 1)


def _data(value: object) -> str:
    return str(value).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(value: object) -> str:
    return _data(value).replace(":", "%3A").replace(",", "%2C")
