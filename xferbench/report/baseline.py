"""An accepted run as one file that a repository can keep: its verdicts to be read in a diff, its predictions packed.

Only what a comparison needs is in it: the records of paired contrasts, and of each prediction what their metrics are made of.
Places below the suite file's folder are told relative to it, others as they are; hosts are not told.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import json
import zipfile
import zlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from xferbench.core.errors import UserError
from xferbench.core.run import Run, run_to_json
from xferbench.core.suite import LOCATION_KEYS
from xferbench.core.version import __version__
from xferbench.report import files, predictions

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from xferbench.core.run import TrialRow

BASELINE_SCHEMA = 2  # of this file and of the results in it; results.json has a number of its own
STORED_FIELDS = {"nll": ("p_true",), "brier": ("p_true", "sum_p2"), "auroc": ("probabilities",)}  # beside label and answer
SUBJECT_VIEWS = ("whole", "test")  # views of the subject that are compared by themselves
ACCEPT_ADVICE = "make one: xferbench gate SUITE --accept FILE"


def pack_baseline(run: Run) -> bytes:
    """Give the file's content."""
    terms = {
        (name, arm, view) for name, told in run.plugins.items() for one in told["contrasts"] for arm, view, _ in one["weights"]
    }
    metrics = {str(run.suite["metric"]), *(one["metric"] for told in run.plugins.values() for one in told["contrasts"])}
    cells = tuple(
        _narrow(cell, metrics)
        for cell in run.cells
        if not cell.variant
        and ((cell.plugin, cell.arm, cell.view) in terms or (cell.arm == "subject" and cell.view in SUBJECT_VIEWS))
    )
    environment = {name: value for name, value in run.environment.items() if name not in {"platform", "workers"}}
    bare = replace(run, environment=environment, arms={}, notes=(), cost={}, frozen={}, gate=None, evidence=_evidence(run))
    results = run_to_json(replace(bare, suite=_relative(run.suite)))
    results = {name: value for name, value in results.items() if name != "matrix"} | {"schema": BASELINE_SCHEMA}
    packed = base64.b64encode(predictions.pack_predictions(cells, "")).decode()
    told = {
        "accepted": BASELINE_SCHEMA,
        "xferbench": __version__,
        "verdicts": _verdicts(run),
        "sha256": _sha256(results, packed),
    }
    return (json.dumps(told | {"results": results, "predictions": packed}, allow_nan=False, indent=1) + "\n").encode()


def _verdicts(run: Run) -> dict[str, str]:
    """What is accepted, for those who read a diff; what counts are the findings."""
    return {one.id: one.verdict for one in run.findings if one.verdict != "INFO"}


def _evidence(run: Run) -> dict[str, Any]:
    kept = {name: run.evidence[name] for name in ("begun", "ended", "hash") if name in run.evidence}
    inputs = [{key: one[key] for key in ("key", "digest")} for one in run.evidence.get("inputs") or ()]
    return kept | {"inputs": inputs}


def _narrow(cell: TrialRow, metrics: set[str]) -> TrialRow:
    """A cell with no more of its record than is compared; a number that is not kept is NaN, which decides nothing."""
    told, kept = cell.record.predictions, {name for metric in metrics for name in STORED_FIELDS.get(metric, ())}
    if told is not None:
        unknown = np.full(len(told.label), np.nan, dtype=np.float32)
        narrow = {name: getattr(told, name) if name in kept else unknown for name in ("p_true", "p_max", "sum_p2")}
        probabilities = told.probabilities if "probabilities" in kept else np.empty((len(told.label), 0), dtype=np.float16)
        told = replace(told, **narrow, probabilities=probabilities)
    record = replace(cell.record, predictions=told, scalars={}, curve=(), place="")
    return replace(cell, record=record, recipe="")


def _relative(suite: Mapping[str, Any]) -> dict[str, Any]:
    """A suite whose places below its own folder are told from there; what was typed is not told."""
    from pathlib import Path

    own = Path(str(suite.get("path") or ""))

    def shorter(word: str) -> str:
        kind, colon, rest = word.rpartition(":")
        below = own.is_absolute() and Path(rest).is_relative_to(own.parent)
        return f"{kind}{colon}{Path(rest).relative_to(own.parent).as_posix()}" if below else word

    places = {name: shorter(suite[name]) for name in LOCATION_KEYS if suite.get(name)}
    return {**suite, **places, "path": own.name, "command": []}


def _sha256(results: Any, packed: str) -> str:
    text = json.dumps([results, packed], sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def read_baseline(path: Path) -> Run:
    """Read an accepted run: from its own file, or from a ``results.json`` with ``predictions.npz`` beside it.

    Raises:
        UserError: where it is missing, truncated, changed by hand, of a newer schema, or no run at all.
    """
    if path.is_dir() or not path.exists():
        return _beside(path)
    try:
        told: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _broken(path, f"{type(error).__name__}: {error}"[:200]) from error
    if not isinstance(told, dict) or "accepted" not in told:
        return _beside(path)
    _check_schema(told, told["accepted"], path)
    try:
        results, packed = told["results"], told["predictions"]
        if told["sha256"] != _sha256(results, packed):
            raise _broken(path, "another content than was written")
        _, cells = predictions.unpack_predictions(io.BytesIO(base64.b64decode(packed, validate=True)))
        _check_schema(told, results["schema"], path)
        files.check_suite(results, path)
        return files.run_from_json(results, cells)
    except (KeyError, TypeError, ValueError, AttributeError, EOFError, binascii.Error, zipfile.BadZipFile, zlib.error) as error:
        raise _broken(path, f"{type(error).__name__}: {error}"[:200]) from error


def _check_schema(told: Mapping[str, Any], schema: object, path: Path) -> None:
    if schema != BASELINE_SCHEMA:
        older = isinstance(schema, int) and schema < BASELINE_SCHEMA
        raise UserError(
            f"{path} is {'older' if older else 'newer'} than this xferbench",
            found=f"schema {schema}, by {told.get('xferbench', 'an unknown version')}",
            expected=f"schema {BASELINE_SCHEMA}",
            do=ACCEPT_ADVICE if older else f"upgrade xferbench, or {ACCEPT_ADVICE}",
        )


def is_baseline(path: Path) -> bool:
    """Whether a file begins as an accepted run does, though it may be truncated or damaged further on."""
    with path.open("rb") as file:
        return b'"accepted"' in file.read(64)


def _beside(path: Path) -> Run:
    found = files.results_path(path)
    if not found.is_file():
        what = f"no accepted run: {path} is missing"
        raise UserError(what, expected="a file of `gate --accept`, or the results.json of a finished run", do=ACCEPT_ADVICE)
    return files.read_single_task(found)


def _broken(path: Path, found: str) -> UserError:
    expected = "an accepted run as `gate --accept` wrote it, whole and unchanged"
    return UserError(
        f"{path} cannot be read", found=found, expected=expected, do="take it from version control, or " + ACCEPT_ADVICE
    )
