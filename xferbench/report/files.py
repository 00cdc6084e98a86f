"""A finished run becomes the files of the contract, and those files a run again."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import sys
import zipfile
import zlib
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from xferbench.core import files
from xferbench.core.canonical import digest
from xferbench.core.comparison import Comparison, Outcome
from xferbench.core.errors import UserError
from xferbench.core.matrix_result import COLUMNS, matrix_from_json
from xferbench.core.record import Record, json_values
from xferbench.core.run import RESULTS_SCHEMA, Run, TrialRow, finding_from_json, row_values, run_to_json, without_file_lists
from xferbench.report import github, html, junit, markdown, matrix_tables, predictions, provenance, sample_images

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from xferbench.core.matrix_result import MatrixResult
    from xferbench.core.plugin import Plugin
    from xferbench.core.run import SampleImages

T = TypeVar("T")
RESULTS, PREDICTIONS, SAMPLES = "results.json", "predictions.npz", "samples.npz"
TASKS_FOLDER = "tasks"  # the folder of the reports of a matrix's tasks
NO_PLUGINS: Mapping[str, Plugin | None] = MappingProxyType({})
BLANK_ROW = TrialRow(
    plugin="", arm="", variant="", view="", seed=0, record=Record(key=""), recipe=""
)  # for the columns that all have
REQUIRED_SUITE_KEYS = frozenset(
    {"name", "arch", "target", "metric", "margin", "alpha", "looks"}
)  # of a suite, whatever wrote it
RERUN_ADVICE = "run the suite again: what the store holds is not computed twice"


def write_run(run: Run, directory: Path, plugins: Mapping[str, Plugin | None] = NO_PLUGINS, cache: Path | None = None) -> None:
    """Write all files of a run, each at once, ``results.json`` last; on GitHub Actions the job's summary and annotations too.

    Everything is rendered before anything is written, so a crash leaves what was there. ``plugins``, by id, give questions
    and pictures; ``cache`` is a folder of figures that were drawn before.

    Raises:
        UserError: where the folder cannot be written to, or the disk is full.
    """
    told = run_to_json(run)
    summary = markdown.render(run)
    binary = {
        PREDICTIONS: predictions.pack_predictions(run.cells, digest(told)),
        SAMPLES: sample_images.pack_samples(run.samples, digest(told)),
    }
    content = {
        "records.csv": _encoded(matrix_csv(run.matrix) if run.matrix else records_csv(run.cells)),
        **({} if run.matrix else binary),
        "report.html": _encoded(html.render(run, plugins, cache)),
        "junit.xml": _encoded(junit.render(matrix_tables.with_recipe_findings(run, plugins=True))),
        "summary.md": _encoded(summary),
    }
    last = {RESULTS: _encoded(json.dumps(told, allow_nan=False, indent=1) + "\n")}
    witness = provenance.render_evidence(run, digest(told), content | last)
    files.require_writable(directory)
    for name, data in (content | witness | last).items():
        files.write_file(directory / name, data)
    for name in {provenance.EVIDENCE_FILE, provenance.CHECKSUMS_FILE, *binary} - {
        *witness,
        *content,
    }:  # of what lay here before
        (directory / name).unlink(missing_ok=True)
    if run.matrix:
        remove_task_reports(directory / TASKS_FOLDER, run.suite["tasks"] if run.suite["plugins"] else ())
    try:
        announced = matrix_tables.with_recipe_findings(run, plugins=False)  # the reports of the tasks announced their plugins
        github.publish(announced, summary, environ=os.environ, stream=sys.stderr)
    except OSError as error:
        raise UserError(
            "the summary of the job could not be written", found=str(error), do="unset GITHUB_STEP_SUMMARY"
        ) from error


def remove_task_reports(folder: Path, kept: Sequence[str]) -> None:
    """Remove the reports of tasks that an earlier matrix in the same folder had and this one lacks."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name not in kept and (path / RESULTS).is_file():
            shutil.rmtree(path)


def results_path(path: Path) -> Path:
    """The ``results.json`` of a finished run, which is named by its folder or by any file in it.

    Raises:
        UserError: for a file that no finished run has.
    """
    if not path.is_file():
        return path if path.suffix == ".json" else path / RESULTS
    found = path if path.suffix == ".json" else path.with_name(RESULTS)
    if not found.is_file():
        what = f"{path} belongs to no finished run"
        raise UserError(what, found=f"no {RESULTS} beside it", expected="the folder that `run --output` named, or a file in it")
    return found


def read_run(path: Path) -> Run:
    """Read a finished run back from its folder, or from a file in it.

    Raises:
        UserError: where a file is missing, broken, of another schema, or of another run than its neighbour.
    """
    found = results_path(path)
    told = _told(found)
    if told.get("matrix") is not None:
        return _made(told, found)
    of_cells, cells = _beside(found.with_name(PREDICTIONS), predictions.unpack_predictions)
    pictured = found.with_name(SAMPLES)
    of_shown, shown = (
        _beside(pictured, sample_images.unpack_samples) if pictured.exists() else (of_cells, ())
    )  # older versions wrote none
    witness = found.with_name(provenance.EVIDENCE_FILE)
    of_seen, seen = _beside(witness, provenance.read_evidence) if witness.exists() else (of_cells, ())
    try:
        of_told, run = digest(told), _made(told, found, cells, shown)
        run = replace(run, evidence=dict(*seen or [run.evidence]))
        of_seen = of_seen if json_values(without_file_lists(run.evidence)) == (told.get("evidence") or {}) else ""
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise _unfinished(found, error) from error
    for name, of_run in ((PREDICTIONS, of_cells), (SAMPLES, of_shown), (provenance.EVIDENCE_FILE, of_seen)):
        if of_run != of_told:
            what = f"{found} and {name} beside it are not of the same run"
            raise UserError(what, expected="both as one run wrote them", do=RERUN_ADVICE)
    return run


def _beside(path: Path, unpack: Callable[[BinaryIO], tuple[str, tuple[T, ...]]]) -> tuple[str, tuple[T, ...]]:
    """What a file beside the results holds, and the digest of the results that it belongs to."""
    try:
        with path.open("rb") as file:
            return unpack(file)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing", expected=f"it beside {RESULTS}", do="copy both, or " + RERUN_ADVICE) from error
    except (OSError, EOFError, KeyError, ValueError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"{path} cannot be read", found=_shown(error), expected="the file as xferbench wrote it", do=RERUN_ADVICE
        ) from error


def read_single_task(path: Path) -> Run:
    """Read a finished run of one task.

    Raises:
        UserError: as :func:`read`; and for the run of a suite with [matrix].
    """
    run = read_run(path)
    if run.matrix is not None:
        do = "runs of its tasks lie in the folder tasks beside it, where the suite lists plugins"
        raise UserError(f"{results_path(path)} is that of a suite with [matrix]", expected="a run of one task", do=do)
    return run


def _made(told: Mapping[str, Any], path: Path, cells: tuple[TrialRow, ...] = (), shown: tuple[SampleImages, ...] = ()) -> Run:
    try:
        return run_from_json(told, cells, shown)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise _unfinished(path, error) from error


def _unfinished(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} is not a finished run", found=_shown(error), expected=f"schema {RESULTS_SCHEMA}", do=RERUN_ADVICE)


def records_csv(cells: Sequence[TrialRow]) -> str:
    """``records.csv``: one row a cell; an empty field is a number that is not there, or not finite."""
    rows = [json_values(row_values(cell)) for cell in cells]
    return _csv(rows, [*dict.fromkeys([*row_values(BLANK_ROW), *(name for one in rows for name in one)])])


def matrix_csv(matrix: MatrixResult) -> str:
    """``records.csv`` of a matrix: a row for each task, recipe and seed; an empty field is a missing number."""
    return _csv([json_values(dict(entry)) for entry in matrix.rows], COLUMNS)


def _csv(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    return "".join(map(_line, (columns, *([entry.get(name) for name in columns] for entry in rows))))


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
        raise UserError(
            f"{path} is missing", expected="the folder of a finished run", do="give the folder that `run --output` named"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read", found=_shown(error), expected="JSON, as xferbench wrote it", do=RERUN_ADVICE
        ) from error
    check_results(told, path)
    return told  # type: ignore[no-any-return]


def check_results(told: Any, path: Path) -> None:
    """Refuse what is no content of a ``results.json``, or of one that this version cannot read.

    Raises:
        UserError: with the schema that was found.
    """
    if not isinstance(told, dict) or not isinstance(schema := told.get("schema"), int):
        raise UserError(
            f"{path} is not a finished run", found="no schema", expected=f"schema {RESULTS_SCHEMA}", do=RERUN_ADVICE
        )
    if schema != RESULTS_SCHEMA:
        newer = schema > RESULTS_SCHEMA
        raise UserError(
            f"{path} is {'newer' if newer else 'older'} than this xferbench",
            found=f"schema {schema}, by {told.get('xferbench', 'an unknown version')}",
            expected=f"schema {RESULTS_SCHEMA}",
            do="upgrade xferbench"
            if newer
            else "run the suite again: the store still has its records, nothing is trained twice",
        )
    check_suite(told, path)


def check_suite(told: Mapping[str, Any], path: Path) -> None:
    """Refuse results whose suite lacks what every reader needs.

    Raises:
        UserError: naming the missing fields.
    """
    if not isinstance(told.get("suite"), dict) or not told["suite"].keys() >= REQUIRED_SUITE_KEYS:
        lacking = sorted(REQUIRED_SUITE_KEYS - set(told.get("suite") or ()))
        raise UserError(f"{path} is not a finished run", found=f"a suite without {', '.join(lacking)}", do=RERUN_ADVICE)


def run_from_json(told: Mapping[str, Any], cells: tuple[TrialRow, ...], shown: tuple[SampleImages, ...] = ()) -> Run:
    """A run of what ``results.json`` holds and the cells beside it.

    Raises:
        KeyError, TypeError, ValueError: for what is no such content.
    """
    matrix = told.get("matrix")  # an accepted run has none
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
        matrix=None if matrix is None else matrix_from_json(matrix),
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
