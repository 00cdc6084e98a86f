"""The result files of a run: written from a :class:`~xferbench.core.run.Run` and read back as one. Reads and writes files."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import sys
from dataclasses import asdict, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from xferbench.core import files
from xferbench.core.array_file import READ_ERRORS
from xferbench.core.canonical import digest
from xferbench.core.comparison import Comparison, Outcome
from xferbench.core.errors import UserError
from xferbench.core.guarded_output import unguarded
from xferbench.core.json_shape import read_json
from xferbench.core.matrix_result import COLUMNS, matrix_from_json
from xferbench.core.record import Record, json_values
from xferbench.core.results_shape import check_run
from xferbench.core.run import (
    RESULTS_SCHEMA,
    Duplicate,
    Provenance,
    Run,
    TrialRow,
    finding_from_json,
    replace_provenance,
    row_values,
    run_to_json,
    without_file_lists,
)
from xferbench.core.sections import from_flat
from xferbench.report import github, html, junit, markdown, matrix_tables, predictions, provenance, sample_images

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from xferbench.core.matrix_result import MatrixResult
    from xferbench.core.plugin import Plugin
    from xferbench.core.run import SampleImages

T = TypeVar("T")
RESULTS, PREDICTIONS, SAMPLES, DUPLICATES = "results.json", "predictions.npz", "samples.npz", "duplicates.csv"
TASKS_FOLDER = "tasks"  # folder of the reports of a matrix's tasks
NO_PLUGINS: Mapping[str, Plugin | None] = MappingProxyType({})
# a row without values; its columns are the columns that every row has
BLANK_ROW = TrialRow(plugin="", arm="", variant="", view="", seed=0, record=Record(key=""), recipe="")
RERUN_ADVICE = "run the suite again: trials in the store are not computed twice"
CONTENT_ERRORS = (KeyError, TypeError, ValueError, AttributeError, RecursionError)  # JSON without the content of a run


def write_run(run: Run, directory: Path, plugins: Mapping[str, Plugin | None] = NO_PLUGINS, cache: Path | None = None) -> None:
    """Write all files of a run, and ``results.json`` last.

    On GitHub Actions, also write the job summary and annotations. Everything is rendered and written under temporary names
    before anything is replaced, so that a crash or a full disk leaves the existing files unchanged. The files that belong
    together have the digest of ``results.json``, so that a reader never takes files of two runs for one.

    Args:
        run: the run.
        directory: folder of the report; it is created if it does not exist.
        plugins: plugins by id, for their questions and plots.
        cache: folder of cached figures; None disables the cache.

    Raises:
        UserError: if the folder is not writable, or the disk is full.
    """
    results = run_to_json(run)
    summary = markdown.render(run)
    binary = {
        PREDICTIONS: predictions.pack_predictions(run.cells, digest(results)),
        SAMPLES: sample_images.pack_samples(run.samples, digest(results)),
    }
    content = {
        "records.csv": _encode(matrix_csv(run.matrix) if run.matrix else records_csv(run.cells)),
        **({} if run.matrix else binary),
        **({DUPLICATES: _encode(duplicates_csv(run.duplicates))} if run.duplicates else {}),
        "report.html": _encode(html.render(run, plugins, cache)),
        "junit.xml": _encode(junit.render(matrix_tables.with_recipe_findings(run, plugins=True))),
        "summary.md": _encode(summary),
    }
    last = {RESULTS: _encode(json.dumps(results, allow_nan=False, indent=1) + "\n")}
    evidence = provenance.render_evidence(run, digest(results), content | last)
    files.require_writable(directory)
    files.write_files({directory / name: data for name, data in (content | evidence | last).items()})
    optional = {provenance.EVIDENCE_FILE, provenance.CHECKSUMS_FILE, DUPLICATES, *binary}
    for name in optional - {*evidence, *content}:  # an earlier run in the same folder may have written them
        (directory / name).unlink(missing_ok=True)
    if run.matrix:
        remove_task_reports(directory / TASKS_FOLDER, run.suite["tasks"] if run.suite["plugins"] else ())
    _publish(run, summary)


def _publish(run: Run, summary: str) -> None:
    announced = matrix_tables.with_recipe_findings(run, plugins=False)  # the reports of the tasks announced their plugins
    try:
        github.publish(announced, summary, environ=os.environ, stream=unguarded(sys.stderr))
    except OSError as error:
        raise UserError("the job summary cannot be written", found=str(error), do="unset GITHUB_STEP_SUMMARY") from error


def remove_task_reports(folder: Path, tasks: Sequence[str]) -> None:
    """Delete the reports of all tasks except these, which an earlier matrix in the same folder wrote."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name not in tasks and (path / RESULTS).is_file():
            shutil.rmtree(path)


def results_path(path: Path) -> Path:
    """Return the path of ``results.json`` of a finished run, which is named by its folder or by any file in it.

    Raises:
        UserError: if the file does not belong to a finished run.
    """
    if not path.is_file():
        return path if path.suffix == ".json" else path / RESULTS
    results = path if path.suffix == ".json" else path.with_name(RESULTS)
    if not results.is_file():
        raise UserError(
            f"{path} does not belong to a finished run",
            found=f"no {RESULTS} next to it",
            expected="the folder that `run --output` named, or a file in it",
        )
    return results


def read_run(path: Path) -> Run:
    """Read a finished run from its folder, or from a file in it.

    Raises:
        UserError: if a file is missing, damaged, of another schema or of another run than the files next to it.
    """
    path = results_path(path)
    results = _load_results(path)
    if results.get("matrix") is not None:
        return _build_run(results, path)
    digests: dict[str, str] = {}
    samples: tuple[SampleImages, ...] = ()
    evidence: dict[str, Any] | None = None
    digests[PREDICTIONS], rows = _read_companion(path.with_name(PREDICTIONS), predictions.unpack_predictions)
    if (file := path.with_name(SAMPLES)).exists():  # older versions wrote no samples
        digests[SAMPLES], samples = _read_companion(file, sample_images.unpack_samples)
    if (file := path.with_name(provenance.EVIDENCE_FILE)).exists():
        digests[provenance.EVIDENCE_FILE], (evidence,) = _read_companion(file, provenance.read_evidence)
    run = _build_run(results, path, rows, samples)
    try:
        expected = digest(results)
        if evidence is not None:
            run = replace_provenance(run, evidence=evidence)
            if json_values(without_file_lists(evidence)) != (results.get("evidence") or {}):
                digests[provenance.EVIDENCE_FILE] = ""
    except CONTENT_ERRORS as error:
        raise _not_a_run(path, error) from error
    for name, actual in digests.items():
        if actual != expected:
            raise UserError(
                f"{path} and {name} next to it do not belong to the same run",
                expected="both files as one run wrote them",
                do=RERUN_ADVICE,
            )
    return run


def _read_companion(path: Path, unpack: Callable[[BinaryIO], tuple[str, tuple[T, ...]]]) -> tuple[str, tuple[T, ...]]:
    """Return the digest of the results that a file next to them belongs to, and the content of that file."""
    try:
        return unpack(io.BytesIO(files.read_file(path)))
    except FileNotFoundError as error:
        advice = "copy both files, or " + RERUN_ADVICE
        raise UserError(f"{path} is missing", expected=f"the file next to {RESULTS}", do=advice) from error
    except READ_ERRORS as error:
        expected = "the file as xferbench wrote it"
        raise UserError(f"{path} cannot be read", found=_describe_error(error), expected=expected, do=RERUN_ADVICE) from error


def read_single_task(path: Path) -> Run:
    """Read a finished run of one task.

    Raises:
        UserError: as :func:`read_run`, and if the run is that of a suite with [matrix].
    """
    run = read_run(path)
    if run.matrix is not None:
        raise UserError(
            f"{results_path(path)} is the result of a suite with [matrix]",
            expected="a run of one task",
            do=f"name a run in the folder {TASKS_FOLDER} next to it; that folder exists if the suite lists plugins",
        )
    return run


def _build_run(
    results: Mapping[str, Any], path: Path, cells: tuple[TrialRow, ...] = (), samples: tuple[SampleImages, ...] = ()
) -> Run:
    try:
        return run_from_json(results, cells, samples)
    except CONTENT_ERRORS as error:
        raise _not_a_run(path, error) from error


def _not_a_run(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path} is not a finished run",
        found=_describe_error(error),
        expected=f"schema {RESULTS_SCHEMA}",
        do=RERUN_ADVICE,
    )


def records_csv(cells: Sequence[TrialRow]) -> str:
    """Return ``records.csv`` with one row for each cell; a missing or non-finite number is an empty field."""
    rows = [json_values(row_values(cell)) for cell in cells]
    return _format_csv(rows, [*dict.fromkeys([*row_values(BLANK_ROW), *(name for row in rows for name in row)])])


def matrix_csv(matrix: MatrixResult) -> str:
    """Return ``records.csv`` of a matrix with one row for each task, recipe and seed; a missing number is an empty field."""
    return _format_csv([json_values(dict(row)) for row in matrix.rows], COLUMNS)


def duplicates_csv(duplicates: Sequence[Duplicate]) -> str:
    """Return ``duplicates.csv`` with one row for each test example and each set in which it has a copy."""
    return _format_csv([asdict(duplicate) for duplicate in duplicates], [field.name for field in fields(Duplicate)])


def _format_csv(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    return "".join(map(_csv_line, (columns, *([row.get(name) for name in columns] for row in rows))))


def _csv_line(values: Sequence[Any]) -> str:
    """Return one line of CSV. It is written with a carriage return first, so that a field that contains one is quoted."""
    file = io.StringIO()
    csv.writer(file, lineterminator="\r\n").writerow(values)
    return file.getvalue().removesuffix("\r\n") + "\n"


def _load_results(path: Path) -> Mapping[str, Any]:
    """Return the content of ``results.json`` after :func:`check_results`."""
    try:
        results: Any = read_json(files.read_file(path), object)
    except FileNotFoundError as error:
        raise UserError(
            f"{path} is missing",
            expected="the folder of a finished run",
            do="pass the folder that `run --output` named",
        ) from error
    except (OSError, ValueError) as error:
        expected = "JSON as xferbench wrote it"
        raise UserError(f"{path} cannot be read", found=_describe_error(error), expected=expected, do=RERUN_ADVICE) from error
    check_results(results, path)
    return results  # type: ignore[no-any-return]


def check_results(results: Any, path: Path) -> None:
    """Check that a value is the content of a ``results.json`` that this version can read.

    Raises:
        UserError: if it is not; the message names the schema.
    """
    if not isinstance(results, dict) or not isinstance(schema := results.get("schema"), int):
        raise UserError(
            f"{path} is not a finished run", found="no schema", expected=f"schema {RESULTS_SCHEMA}", do=RERUN_ADVICE
        )
    if schema != RESULTS_SCHEMA:
        newer = schema > RESULTS_SCHEMA
        raise UserError(
            f"{path} is {'newer' if newer else 'older'} than this xferbench",
            found=f"schema {schema}, by {results.get('xferbench', 'an unknown version')}",
            expected=f"schema {RESULTS_SCHEMA}",
            do="upgrade xferbench" if newer else "run the suite again: records in the store are reused",
        )
    try:
        check_run(results)
    except ValueError as error:
        raise _not_a_run(path, error) from error


def run_from_json(results: Mapping[str, Any], cells: tuple[TrialRow, ...], samples: tuple[SampleImages, ...] = ()) -> Run:
    """Return a run from the content of ``results.json``, and from the cells and samples of the files next to it.

    Raises:
        KeyError, TypeError, ValueError: if the content is not that of a run.
    """
    matrix = results.get("matrix")  # the results in an accepted run have no such key
    return Run(
        suite=dict(results["suite"]),
        findings=tuple(finding_from_json(entry, results.get("plugins") or ()) for entry in results["findings"]),
        cells=cells,
        cost=dict(results["cost"]),
        arms=dict(results["arms"]),
        notes=tuple(results["notes"]),
        duplicates=tuple(Duplicate(**entry) for entry in results.get("duplicates", ())),
        expected_false_alarms=float(results["expected_false_alarms"]),
        samples=samples,
        provenance=Provenance(
            environment=dict(results["environment"]),
            plan=results["plan"],
            preregistration=dict(results.get("frozen") or {}),
            evidence=dict(results.get("evidence") or {}),
            plugins=dict(results.get("plugins") or {}),
        ),
        gate=_comparison_from_json(results.get("gate")),
        matrix=None if matrix is None else matrix_from_json(matrix),
    )


def _comparison_from_json(entry: Mapping[str, Any] | None) -> Comparison | None:
    if entry is None:
        return None
    outcomes = tuple(from_flat(Outcome, outcome) for outcome in entry["outcomes"])
    return Comparison(
        accepted=dict(entry["accepted"]),
        outcomes=outcomes,
        notes=tuple(entry["notes"]),
        has_too_few_seeds=bool(entry.get("has_too_few_seeds")),
    )


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "replace")


def _describe_error(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]
