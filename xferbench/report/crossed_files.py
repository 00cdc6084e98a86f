"""A finished matrix becomes its files: the flat table, the page, the summary; and those files a table again."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import sys
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

from xferbench.core import files
from xferbench.problem import Problem
from xferbench.record import Finding, Run, plain
from xferbench.report import crossed, crossed_page, github, junit, write
from xferbench.table import COLUMNS, of_json, to_json

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from xferbench.table import Table


def write_all(table: Table, directory: Path) -> None:
    """Write ``records.csv``, ``summary.md``, ``junit.xml``, ``report.html``, and last ``results.json``; tell GitHub Actions.

    Raises:
        Problem: where the folder cannot be written to, or the disk is full.
    """
    recipes, summary = measured(table), crossed.summary(table)
    by_task = [replace(one, plugin=f"{one.id.partition(':')[0]}: {one.plugin}") for one in table.findings]
    content = {
        "records.csv": records(table),
        "summary.md": summary,
        "junit.xml": junit.render(_as_run(table, [*by_task, *recipes])),
        "report.html": crossed_page.render(table),
        write.RESULTS: json.dumps(to_json(table), allow_nan=False, indent=1) + "\n",
    }
    files.require_writable(directory)
    for name, text in content.items():
        files.write_file(directory / name, text.encode("utf-8", "replace"))
    try:
        # The tasks' own reports have told of the plugins.
        github.publish(_as_run(table, recipes), summary, environ=os.environ, stream=sys.stderr)
    except OSError as error:
        do = "unset GITHUB_STEP_SUMMARY"
        raise Problem("the summary of the job could not be written", found=str(error), do=do) from error


def forget(folder: Path, kept: Sequence[str]) -> None:
    """Remove reports of tasks that an earlier run into the same folder had, and this one has not."""
    for one in folder.iterdir() if folder.is_dir() else ():
        if one.name not in kept and (one / write.RESULTS).is_file():
            shutil.rmtree(one)


def measured(table: Table) -> list[Finding]:
    """Each recipe of a task as a finding that is measured, left out, or a crash."""
    found = []
    means = crossed.means(table)
    crashed = {(row["task"], row["recipe"]): str(row["error"]) for row in table.rows if row["error"]}
    for task, recipe in product(table.suite["tasks"], table.suite["recipes"]):
        skipped, error = table.skipped.get((task, recipe), ""), crashed.get((task, recipe), "")
        blank = Finding(
            id=f"{task}:recipe/{recipe}",
            plugin=f"{task}: recipes",
            contrast=recipe,
            verdict="ERROR" if error else "SKIPPED" if skipped else "INFO",
            metric=str(table.suite["metric"]),
        )
        score = (means.get((recipe, task)) or {}).get("accuracy")
        said = "" if score is None else f"{table.suite['metric']} {score:.4f}"
        found.append(replace(blank, reason=error or skipped or said))
    return found


def _as_run(table: Table, findings: Sequence[Finding]) -> Run:
    """What the formats for machines are told."""
    return Run(
        suite=table.suite,
        environment=table.environment,
        findings=tuple(findings),
        cells=(),
        cost=table.cost,
        arms={},
        notes=table.notes,
    )


def is_one(path: Path) -> bool:
    """Whether a folder's, or file's, ``results.json`` is that of a matrix; False where there is none to read."""
    try:
        told = json.loads(write.results(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(told, dict) and "matrix" in told


def read(path: Path) -> Table:
    """Read a finished matrix back.

    Raises:
        Problem: where the file is missing, broken, or of a newer schema.
    """
    found = write.results(path)
    try:
        told = json.loads(found.read_text(encoding="utf-8"))
        write.known(told, found)
        return of_json(told)
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise Problem(f"{found} is no finished matrix", found=f"{type(error).__name__}: {error}", do=write.AGAIN) from error


def records(table: Table) -> str:
    """``records.csv``: a row for each task, recipe and seed; an empty field is a number that is not there."""
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: "" if value is None else value for name, value in plain(dict(row)).items()} for row in table.rows)
    return file.getvalue()
