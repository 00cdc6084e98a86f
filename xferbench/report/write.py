"""A finished run becomes the files of the contract, and those files a run again."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
import zipfile
import zlib
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from xferbench.core import files
from xferbench.core.comparison import Comparison, Outcome
from xferbench.design import digest
from xferbench.problem import Problem
from xferbench.record import SCHEMA, Cell, Record, Run, finding_from_json, plain, row, to_json, unlisted
from xferbench.report import evidence, github, html, junit, markdown, predictions, samples

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from xferbench.design import Plugin
    from xferbench.record import Samples

T = TypeVar("T")
RESULTS, PREDICTIONS, SAMPLES = "results.json", "predictions.npz", "samples.npz"
NONE: Mapping[str, Plugin | None] = MappingProxyType({})
BLANK = Cell(plugin="", arm="", variant="", view="", seed=0, record=Record(key=""), recipe="")  # for the columns that all have
NEEDED = frozenset({"name", "arch", "target", "metric", "margin", "alpha", "looks"})  # of a suite, whatever wrote it
AGAIN = "run the suite again: what the store holds is not computed twice"


def write(run: Run, directory: Path, plugins: Mapping[str, Plugin | None] = NONE, cache: Path | None = None) -> None:
    """Write all files of a run, each at once, ``results.json`` last; on GitHub Actions the job's summary and annotations too.

    Everything is rendered before anything is written, so a crash leaves what was there. ``plugins``, by id, give questions
    and pictures; ``cache`` is a folder of figures that were drawn before.

    Raises:
        Problem: where the folder cannot be written to, or the disk is full.
    """
    told = to_json(run)
    summary = markdown.render(run)
    content = {
        "records.csv": _encoded(records(run.cells)),
        PREDICTIONS: predictions.pack(run.cells, digest(told)),
        SAMPLES: samples.pack(run.samples, digest(told)),
        "report.html": _encoded(html.render(run, plugins, cache)),
        "junit.xml": _encoded(junit.render(run)),
        "summary.md": _encoded(summary),
    }
    last = {RESULTS: _encoded(json.dumps(told, allow_nan=False, indent=1) + "\n")}
    witness = evidence.render(run, digest(told), content | last)
    files.require_writable(directory)
    for name, data in (content | witness | last).items():
        files.write_file(directory / name, data)
    for name in {evidence.EVIDENCE, evidence.SUMS} - witness.keys():  # of what lay here before
        (directory / name).unlink(missing_ok=True)
    try:
        github.publish(run, summary, environ=os.environ, stream=sys.stderr)
    except OSError as error:
        raise Problem(
            "the summary of the job could not be written", found=str(error), do="unset GITHUB_STEP_SUMMARY"
        ) from error


def results(path: Path) -> Path:
    """The ``results.json`` of a finished run, which is named by its folder or by any file in it.

    Raises:
        Problem: for a file that no finished run has.
    """
    if not path.is_file():
        return path if path.suffix == ".json" else path / RESULTS
    found = path if path.suffix == ".json" else path.with_name(RESULTS)
    if not found.is_file():
        what = f"{path} belongs to no finished run"
        raise Problem(what, found=f"no {RESULTS} beside it", expected="the folder that `run --output` named, or a file in it")
    return found


def read(path: Path) -> Run:
    """Read a finished run back from its folder, or from a file in it.

    Raises:
        Problem: where a file is missing, broken, of a newer schema, or of another run than its neighbour.
    """
    found = results(path)
    told = _told(found)
    of_cells, cells = _beside(found.with_name(PREDICTIONS), predictions.unpack)
    pictured = found.with_name(SAMPLES)
    of_shown, shown = _beside(pictured, samples.unpack) if pictured.exists() else (of_cells, ())  # older versions wrote none
    witness = found.with_name(evidence.EVIDENCE)
    of_seen, seen = _beside(witness, evidence.read) if witness.exists() else (of_cells, ())
    try:
        of_told, run = digest(told), replace(made(told, cells, shown), evidence=dict(*seen or [told.get("evidence") or {}]))
        of_seen = of_seen if plain(unlisted(run.evidence)) == (told.get("evidence") or {}) else ""
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise Problem(f"{found} is not a finished run", found=_shown(error), expected=f"schema {SCHEMA}", do=AGAIN) from error
    for name, of_run in ((PREDICTIONS, of_cells), (SAMPLES, of_shown), (evidence.EVIDENCE, of_seen)):
        if of_run != of_told:
            what = f"{found} and {name} beside it are not of the same run"
            raise Problem(what, expected="both as one run wrote them", do=AGAIN)
    return run


def _beside(path: Path, unpack: Callable[[BinaryIO], tuple[str, tuple[T, ...]]]) -> tuple[str, tuple[T, ...]]:
    """What a file beside the results holds, and the digest of the results that it belongs to."""
    try:
        with path.open("rb") as file:
            return unpack(file)
    except FileNotFoundError as error:
        raise Problem(f"{path} is missing", expected=f"it beside {RESULTS}", do="copy both, or " + AGAIN) from error
    except (OSError, EOFError, KeyError, ValueError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise Problem(
            f"{path} cannot be read", found=_shown(error), expected="the file as xferbench wrote it", do=AGAIN
        ) from error


def records(cells: Sequence[Cell]) -> str:
    """``records.csv``: one row a cell; an empty field is a number that is not there, or not finite."""
    rows = [plain(row(cell)) for cell in cells]
    columns = dict.fromkeys([*row(BLANK), *(name for one in rows for name in one)])
    return "".join(map(_line, ([*columns], *([one.get(name) for name in columns] for one in rows))))


def _line(values: Sequence[Any]) -> str:
    """One line of CSV; written with both ends of a line, so that a field with either of them is quoted."""
    file = io.StringIO()
    csv.writer(file, lineterminator="\r\n").writerow(values)
    return file.getvalue().removesuffix("\r\n") + "\n"


def _told(path: Path) -> Mapping[str, Any]:
    """Read ``results.json``, of a schema that is known."""
    try:
        told: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise Problem(
            f"{path} is missing", expected="the folder of a finished run", do="give the folder that `run --output` named"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise Problem(
            f"{path} cannot be read", found=_shown(error), expected="JSON, as xferbench wrote it", do=AGAIN
        ) from error
    known(told, path)
    if "matrix" in told:
        do = "runs of its tasks lie in the folder tasks beside it, where the suite lists plugins"
        raise Problem(f"{path} is that of a suite with [matrix]", expected="a run of one task", do=do)
    return told  # type: ignore[no-any-return]


def known(told: Any, path: Path) -> None:
    """Refuse what is no content of a ``results.json``, or of one that this version cannot read.

    Raises:
        Problem: with the schema that was found.
    """
    if not isinstance(told, dict) or not isinstance(schema := told.get("schema"), int):
        raise Problem(f"{path} is not a finished run", found="no schema", expected=f"schema {SCHEMA}", do=AGAIN)
    if schema > SCHEMA:
        by = told.get("xferbench", "a newer version")
        raise Problem(
            f"{path} is newer than this xferbench",
            found=f"schema {schema}, by {by}",
            expected=f"schema {SCHEMA}",
            do="upgrade xferbench",
        )
    if not isinstance(told.get("suite"), dict) or not told["suite"].keys() >= NEEDED:
        lacking = sorted(NEEDED - set(told.get("suite") or ()))
        raise Problem(f"{path} is not a finished run", found=f"a suite without {', '.join(lacking)}", do=AGAIN)


def made(told: Mapping[str, Any], cells: tuple[Cell, ...], shown: tuple[Samples, ...] = ()) -> Run:
    """A run of what ``results.json`` holds and the cells beside it.

    Raises:
        KeyError, TypeError, ValueError: for what is no such content.
    """
    return Run(
        suite=dict(told["suite"]),
        environment=dict(told["environment"]),
        findings=tuple(finding_from_json(entry, told.get("plugins") or ()) for entry in told["findings"]),
        cells=cells,
        cost=dict(told["cost"]),
        arms=dict(told["arms"]),
        notes=tuple(told["notes"]),
        expected_false_alarms=float(told["expected_false_alarms"]),
        plan=told["plan"],
        samples=shown,
        frozen=dict(told.get("frozen") or {}),
        evidence=dict(told.get("evidence") or {}),
        plugins=dict(told.get("plugins") or {}),
        gate=_gate(told.get("gate")),
    )


def _gate(told: Mapping[str, Any] | None) -> Comparison | None:
    if told is None:
        return None
    outcomes = tuple(Outcome(**one) for one in told["outcomes"])
    return Comparison(accepted=dict(told["accepted"]), outcomes=outcomes, notes=tuple(told["notes"]))


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "replace")


def _shown(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]
