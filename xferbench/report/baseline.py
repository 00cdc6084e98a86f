"""An accepted run as one file for version control: verdicts that a diff shows, and packed predictions. Reads files.

The file contains only what a comparison needs: the records of paired contrasts and, of each prediction, the values that their
metrics use. Paths below the folder of the suite file are relative to it, and host names are left out.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xferbench.core.array_file import READ_ERRORS
from xferbench.core.errors import UserError
from xferbench.core.files import read_file
from xferbench.core.json_shape import read_json
from xferbench.core.results_shape import ACCEPTED_RESULTS, check_run
from xferbench.core.run import Run, run_to_json
from xferbench.core.suite import LOCATION_KEYS
from xferbench.core.version import __version__
from xferbench.report import files, predictions

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from xferbench.core.run import TrialRow

BASELINE_SCHEMA = 2  # schema of this file and of the results in it; results.json has its own number
# values that a metric uses in addition to the label and the predicted class
STORED_FIELDS = {"nll": ("p_true",), "brier": ("p_true", "sum_p2"), "auroc": ("probabilities",)}
SUBJECT_VIEWS = ("whole", "test")  # views in which the metric of the subject is compared
ACCEPT_ADVICE = "create one: xferbench gate SUITE --accept FILE"


def pack_baseline(run: Run) -> bytes:
    """Return the content of the file: JSON in UTF-8."""
    contrasts = [(name, contrast) for name, entry in run.provenance.plugins.items() for contrast in entry["contrasts"]]
    terms = {(name, arm, view) for name, contrast in contrasts for arm, view, _ in contrast["weights"]}
    metrics = {str(run.suite["metric"]), *(contrast["metric"] for _, contrast in contrasts)}
    cells = tuple(
        _narrow_cell(cell, metrics)
        for cell in run.cells
        if not cell.variant
        and ((cell.plugin, cell.arm, cell.view) in terms or (cell.arm == "subject" and cell.view in SUBJECT_VIEWS))
    )
    environment = {name: value for name, value in run.provenance.environment.items() if name not in {"platform", "workers"}}
    provenance = replace(run.provenance, environment=environment, preregistration={}, evidence=_evidence(run))
    bare = replace(run, provenance=provenance, arms={}, notes=(), cost={}, gate=None)
    results = run_to_json(replace(bare, suite=_with_relative_paths(run.suite)))
    results = {name: value for name, value in results.items() if name != "matrix"} | {"schema": BASELINE_SCHEMA}
    packed = base64.b64encode(predictions.pack_predictions(cells, "")).decode()
    content = {
        "accepted": BASELINE_SCHEMA,
        "xferbench": __version__,
        "verdicts": _verdicts(results["findings"]),
        "sha256": _sha256(results, packed),
        "results": results,
        "predictions": packed,
    }
    return (json.dumps(content, allow_nan=False, indent=1) + "\n").encode()


def _verdicts(findings: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return the verdicts by id for the reader of a diff.

    A comparison uses the findings, which are under the checksum. A file whose verdicts say anything else is refused.
    """
    return {finding["id"]: finding["verdict"] for finding in findings if finding["verdict"] != "INFO"}


def _evidence(run: Run) -> dict[str, Any]:
    names = ("begun", "ended", "hash", "intervention_sources")
    evidence = run.provenance.evidence
    inputs = [{key: entry[key] for key in ("key", "digest")} for entry in evidence.get("inputs") or ()]
    return {name: evidence[name] for name in names if name in evidence} | {"inputs": inputs}


def _narrow_cell(cell: TrialRow, metrics: set[str]) -> TrialRow:
    """Return a cell with only the values that the metrics use; all others are NaN, which gives no decision."""
    stored = {name for metric in metrics for name in STORED_FIELDS.get(metric, ())}
    full = cell.record.predictions
    narrow = None
    if full is not None:
        missing = np.full(len(full.label), np.nan, dtype=np.float32)
        values = {name: getattr(full, name) if name in stored else missing for name in ("p_true", "p_max", "sum_p2")}
        no_probabilities = np.empty((len(full.label), 0), dtype=np.float16)
        probabilities = full.probabilities if "probabilities" in stored else no_probabilities
        narrow = replace(full, **values, probabilities=probabilities)
    record = replace(cell.record, predictions=narrow, scalars={}, curve=(), place="")
    return replace(cell, record=record, recipe="")


def _with_relative_paths(suite: Mapping[str, Any]) -> dict[str, Any]:
    """Return a suite whose paths below the folder of its file are relative to that folder, without the command line."""
    file = Path(str(suite.get("path") or ""))

    def relative(location: str) -> str:
        kind, colon, path = location.rpartition(":")
        if not file.is_absolute() or not Path(path).is_relative_to(file.parent):
            return location
        return f"{kind}{colon}{Path(path).relative_to(file.parent).as_posix()}"

    locations = {name: relative(suite[name]) for name in LOCATION_KEYS if suite.get(name)}
    return {**suite, **locations, "path": file.name, "command": []}


def _sha256(results: Any, packed: str) -> str:
    text = json.dumps([results, packed], sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def read_baseline(path: Path) -> Run:
    """Read an accepted run from its file, or from a ``results.json`` with ``predictions.npz`` next to it.

    Raises:
        UserError: if the file is missing, truncated, edited by hand, of another schema, or not a run.
    """
    if path.is_dir() or not path.exists():
        return _read_results(path)
    try:
        content: Any = read_json(read_file(path), object)
    except (OSError, ValueError) as error:
        raise _unreadable(path, f"{type(error).__name__}: {error}"[:200]) from error
    if not isinstance(content, dict) or "accepted" not in content:
        return _read_results(path)
    _check_schema(content, content["accepted"], path)
    try:
        results, packed = content["results"], content["predictions"]
        if content["sha256"] != _sha256(results, packed):
            raise _unreadable(path, "content that differs from the checksum in the file")
        _check_schema(content, results["schema"], path)
        check_run(results, ACCEPTED_RESULTS)
        if content["verdicts"] != _verdicts(results["findings"]):
            raise _unreadable(path, "verdicts that differ from those in its results")
        _, cells = predictions.unpack_predictions(io.BytesIO(base64.b64decode(packed, validate=True)))
        return files.run_from_json(results, cells)
    except READ_ERRORS as error:
        raise _unreadable(path, f"{type(error).__name__}: {error}"[:200]) from error


def _check_schema(content: Mapping[str, Any], schema: object, path: Path) -> None:
    if schema != BASELINE_SCHEMA:
        older = isinstance(schema, int) and schema < BASELINE_SCHEMA
        raise UserError(
            f"{path} is {'older' if older else 'newer'} than this xferbench",
            found=f"schema {schema}, by {content.get('xferbench', 'an unknown version')}",
            expected=f"schema {BASELINE_SCHEMA}",
            do=ACCEPT_ADVICE if older else f"upgrade xferbench, or {ACCEPT_ADVICE}",
        )


def is_baseline(path: Path) -> bool:
    """Return whether a file begins like an accepted run; the rest of it may be truncated or damaged."""
    with path.open("rb") as file:
        return b'"accepted"' in file.read(64)


def _read_results(path: Path) -> Run:
    results = files.results_path(path)
    if not results.is_file():
        raise UserError(
            f"no accepted run: {path} is missing",
            expected="a file of `gate --accept`, or the results.json of a finished run",
            do=ACCEPT_ADVICE,
        )
    return files.read_single_task(results)


def _unreadable(path: Path, found: str) -> UserError:
    return UserError(
        f"{path} cannot be read",
        found=found,
        expected="an accepted run as `gate --accept` wrote it, complete and unchanged",
        do="restore it from version control, or " + ACCEPT_ADVICE,
    )
