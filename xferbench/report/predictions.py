"""``predictions.npz``: every trial row of a run with its record, without pickle. Pure.

``index`` is JSON in UTF-8 with ``run`` (the digest of the ``results.json`` next to it), ``cells`` and ``records``. Records
with the same examples form a set k. ``k/key`` contains their keys. ``k/example``, ``k/label`` and ``k/group`` are stored
once. ``k/predicted``, ``k/p_true``, ``k/p_max``, ``k/sum_p2`` and ``k/probabilities`` have one row for each record.
"""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from xferbench.core.array_file import read_arrays
from xferbench.core.json_shape import read_json
from xferbench.core.record import Predictions, Record, json_values
from xferbench.core.results_shape import INDEX
from xferbench.core.run import TrialRow

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

SHARED_ARRAYS = ("example", "label", "group")
ROW_ARRAYS = ("predicted", "p_true", "p_max", "sum_p2", "probabilities")
# kinds of types of the arrays: text, unsigned and signed integers, floating point
ARRAY_KINDS = {"key": "U", "example": "u", "label": "i", "group": "i", "predicted": "i", "probabilities": "f"}
ARRAY_KINDS |= dict.fromkeys(("p_true", "p_max", "sum_p2"), "f")
ROW_FIELDS = ("plugin", "arm", "variant", "view", "seed", "recipe")
RECORD_FIELDS = ("fit", "scalars", "curve", "seconds", "fit_seconds", "place", "error")


def pack_predictions(cells: Iterable[TrialRow], run: str) -> bytes:
    """Return the content of the file; a record that several cells share is stored once.

    Args:
        cells: rows of the run with their records.
        run: digest of the results of the run.
    """
    cells = tuple(cells)
    records = {cell.record.key: cell.record for cell in cells}
    index = {
        "run": run,
        "cells": [{name: getattr(cell, name) for name in ROW_FIELDS} | {"key": cell.record.key} for cell in cells],
        "records": {key: {name: getattr(record, name) for name in RECORD_FIELDS} for key, record in records.items()},
    }
    text = json.dumps(json_values(index), allow_nan=False, separators=(",", ":"))
    arrays = {"index": np.frombuffer(text.encode(), dtype=np.uint8), **_pack_sets(records)}
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **arrays)
    return file.getvalue()


def _pack_sets(records: Mapping[str, Record]) -> dict[str, np.ndarray]:
    sets: dict[tuple[object, ...], dict[str, Predictions]] = {}
    for key, record in records.items():
        predictions = record.predictions
        if predictions is not None:
            common = (*(getattr(predictions, name).tobytes() for name in SHARED_ARRAYS), predictions.probabilities.shape[1])
            sets.setdefault(common, {})[key] = predictions
    arrays: dict[str, np.ndarray] = {}
    for number, members in enumerate(sets.values()):
        first = next(iter(members.values()))
        arrays[f"{number}/key"] = np.array(list(members), dtype=np.str_)
        arrays |= {f"{number}/{name}": _narrow(getattr(first, name)) for name in SHARED_ARRAYS}
        arrays |= {
            f"{number}/{name}": _narrow(np.stack([getattr(member, name) for member in members.values()])) for name in ROW_ARRAYS
        }
    return arrays


def _narrow(values: np.ndarray) -> np.ndarray:
    """Return signed integers in the smallest type that holds them; other values are unchanged."""
    if values.dtype.kind != "i" or not values.size:
        return values
    minimum, maximum = int(values.min()), int(values.max())
    types = (np.int8, np.int16, np.int32, np.int64)
    return values.astype(next(dtype for dtype in types if np.iinfo(dtype).min <= minimum and maximum <= np.iinfo(dtype).max))


def unpack_predictions(file: BinaryIO) -> tuple[str, tuple[TrialRow, ...]]:
    """Return the digest of the results that the file belongs to, and the cells.

    Raises:
        xferbench.core.array_file.READ_ERRORS: if the file is not valid.
    """
    arrays = read_arrays(file)
    index = read_json(arrays["index"].tobytes(), INDEX)
    predictions: dict[str, Predictions] = {}
    for number in range(sum(name.endswith("/key") for name in arrays)):
        predictions |= _unpack_set({name: arrays[f"{number}/{name}"] for name in ("key", *SHARED_ARRAYS, *ROW_ARRAYS)})
    records = {key: _record_from_entry(key, entry, predictions.get(key)) for key, entry in index["records"].items()}
    cells = tuple(
        TrialRow(**{name: entry[name] for name in ROW_FIELDS}, record=records[entry["key"]]) for entry in index["cells"]
    )
    return index["run"], cells


def _unpack_set(arrays: Mapping[str, np.ndarray]) -> dict[str, Predictions]:
    _check_set(arrays)
    common = {name: _widen(arrays[name]) for name in SHARED_ARRAYS}
    return {
        str(key): Predictions(**common, **{name: _widen(arrays[name][rank]) for name in ROW_ARRAYS})
        for rank, key in enumerate(arrays["key"])
    }


def _check_set(arrays: Mapping[str, np.ndarray]) -> None:
    """Check that the arrays of a set have the types and shapes of predictions of the same examples.

    Raises:
        ValueError: if they do not.
    """
    rows, examples, classes = len(arrays["key"]), len(arrays["example"]), arrays["probabilities"].shape[-1:]
    shapes = {"key": (rows,), **dict.fromkeys(SHARED_ARRAYS, (examples,)), **dict.fromkeys(ROW_ARRAYS, (rows, examples))}
    shapes["probabilities"] += classes
    shapes["group"] = shapes["group"] if len(arrays["group"]) else (0,)
    for name, shape in shapes.items():
        if arrays[name].dtype.kind != ARRAY_KINDS[name] or arrays[name].shape != shape:
            raise ValueError(f"{name}: an array of {arrays[name].dtype} {arrays[name].shape}")
    if min(arrays["label"].min(initial=0), arrays["predicted"].min(initial=0)) < 0:
        raise ValueError("negative classes")


def _widen(values: np.ndarray) -> np.ndarray:
    return values.astype(np.int64) if values.dtype.kind == "i" else values


def _record_from_entry(key: str, entry: Mapping[str, Any], predictions: Predictions | None) -> Record:
    return Record(
        key=key,
        predictions=predictions,
        scalars={name: _float_or_nan(value) for name, value in entry["scalars"].items()},
        curve=tuple((int(step), _float_or_nan(loss), _float_or_nan(accuracy)) for step, loss, accuracy in entry["curve"]),
        **{name: entry[name] for name in ("fit", "seconds", "fit_seconds", "place", "error")},
    )


def _float_or_nan(value: float | None) -> float:
    return float("nan") if value is None else float(value)
