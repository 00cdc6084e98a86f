"""The difference between predicted confidence and accuracy. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from xferbench.core.record import Predictions

BINS = 15  # bins with equal numbers of images


def confidence_bins(predictions: Predictions) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return mean confidence, accuracy and size of bins of equal size by increasing confidence, each [bins]."""
    order = np.argsort(predictions.p_max, kind="stable")
    parts = [part for part in np.array_split(order, BINS) if len(part)]
    is_correct = predictions.predicted == predictions.label
    confidence, accuracy = (
        np.array([float(values[part].mean()) for part in parts]) for values in (predictions.p_max, is_correct)
    )
    return confidence, accuracy, np.array([len(part) for part in parts])


def squared_calibration_error(predictions: Predictions) -> float:
    """Return the unbiased squared calibration error, which may be negative (Kumar et al. 2019, definition 5.2)."""
    confidence, accuracy, sizes = confidence_bins(predictions)
    return float(np.average((confidence - accuracy) ** 2 - accuracy * (1 - accuracy) / (sizes - 1), weights=sizes))


def reliability_diagram(predictions: Predictions) -> np.ndarray:
    """Return mean confidence and accuracy of each bin, [bins, 2]."""
    return np.transpose(confidence_bins(predictions)[:2])
