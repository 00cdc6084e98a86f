"""A finished matrix becomes its files: the flat table, the page, the summary; and those files a table again."""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING

from xferbench.problem import Problem
from xferbench.record import plain
from xferbench.report import crossed, crossed_page, write
from xferbench.table import COLUMNS, of_json, to_json

if TYPE_CHECKING:
    from pathlib import Path

    from xferbench.table import Table


def write_all(table: Table, directory: Path) -> None:
    """Write ``records.csv``, ``summary.md``, ``report.html``, and last ``results.json``.

    Raises:
        Problem: where the folder cannot be written to, or the disk is full.
    """
    content = {
        "records.csv": records(table),
        "summary.md": crossed.summary(table),
        "report.html": crossed_page.render(table),
        write.RESULTS: json.dumps(to_json(table), allow_nan=False, indent=1) + "\n",
    }
    write.writable(directory)
    for name, told in content.items():
        write.replaced(directory / name, told.encode("utf-8", "replace"))


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
