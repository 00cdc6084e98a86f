"""The nouns that are answered: a record of one trial, an estimate of one contrast, a finding, a whole run; and their JSON.

History of the schema of ``results.json``:
    1  first form.
    2  one form for runs of one task and of many: ``matrix`` is null or what only the latter have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import numpy as np

MAX_CLASSES_WITH_PROBABILITIES = 20  # up to here all probabilities are kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """What a model said of N examples, enough for every metric.

    Attributes:
        example: [N] uint64, digests of the examples' content, for pairing.
        label, predicted: [N] integers. group: [N] integers (patient, scene), or empty where there are none.
        p_true, p_max, sum_p2: [N] float32, the probability of the true class, the highest one, the sum of squares.
        probabilities: [N, classes] float16 where there are at most 20 classes, else [N, 0].
    """

    example: np.ndarray
    label: np.ndarray
    predicted: np.ndarray
    group: np.ndarray
    p_true: np.ndarray
    p_max: np.ndarray
    sum_p2: np.ndarray
    probabilities: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The answer to one trial.

    Attributes:
        scalars: measured numbers by name (``diverged`` is 1 where loss or weights were not finite).
        curves: rows of a fit's learning curve: step, training loss, validation accuracy.
        seconds: what it cost to compute, the fit included where this trial was the one that ran it.
        fit_seconds: of the fit's training, its teacher's, and of what was trained anew to interpolate from.
        fit: digest of the fit that was looked at. place: host and processor, for the reader only.
        error: the crash's last line, or "".
    """

    key: str
    fit: str = ""
    predictions: Predictions | None = None
    scalars: Mapping[str, float] = field(default_factory=dict)
    curve: tuple[tuple[int, float, float], ...] = ()
    seconds: float = 0.0
    fit_seconds: float = 0.0
    place: str = ""
    error: str = ""


def json_values(value: Any) -> Any:
    """A value as JSON's types, with null for what is not a finite number."""
    if isinstance(value, float | np.floating):
        return float(value) if isfinite(value) else None
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, Mapping):
        return {str(key): json_values(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [json_values(item) for item in value]
    return value
