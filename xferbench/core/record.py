"""The record of one trial: predictions, scalars, learning curve and costs. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import numpy as np

MAX_CLASSES_WITH_PROBABILITIES = 20  # records of datasets with more classes have no probabilities


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """The predictions of a model for N examples; every metric can be computed from them.

    Attributes:
        example: [N] uint64, digests of the examples' content, for pairing.
        label, predicted: [N] integers, true and predicted class.
        group: [N] integers (patient, scene), or empty if there are no groups.
        p_true, p_max, sum_p2: [N] float32, the probability of the true class, the highest probability, the sum of the squared
            probabilities.
        probabilities: [N, classes] float16 for at most 20 classes, else [N, 0].
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
    """The result of one trial.

    Attributes:
        key: the key of the trial.
        fit: digest of the trained network that was evaluated.
        predictions: the predictions, or None.
        scalars: measured numbers by name; ``diverged`` is 1 if the loss or the weights were not finite.
        curve: rows of the learning curve: step, training loss, validation accuracy.
        seconds: computing time; it includes the training if this trial ran it.
        fit_seconds: time of the training, its teacher's training, and the retraining that an interpolation needs.
        place: host and processor, for the reader only.
        error: the last line of the crash, or "".
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
    """Return a value as JSON types, with None for a number that is not finite."""
    if isinstance(value, float | np.floating):
        return float(value) if isfinite(value) else None
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, Mapping):
        return {str(key): json_values(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [json_values(item) for item in value]
    return value
