"""How far stated probabilities are from what comes true. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from xferbench.record import Predictions

BINS = 15  # of images with equal shares


def bins(told: Predictions) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean confidence, share that is right and size of bins of equally many images, by rising confidence: [bins] each."""
    order = np.argsort(told.p_max, kind="stable")
    parts = [part for part in np.array_split(order, BINS) if len(part)]
    right = told.predicted == told.label
    said, true = (np.array([float(values[part].mean()) for part in parts]) for values in (told.p_max, right))
    return said, true, np.array([len(part) for part in parts])


def square(told: Predictions) -> float:
    """The squared calibration error without bias, so that it may be below 0 (Kumar et al. 2019, definition 5.2)."""
    said, true, size = bins(told)
    return float(np.average((said - true) ** 2 - true * (1 - true) / (size - 1), weights=size))


def diagram(told: Predictions) -> np.ndarray:
    """Mean confidence and share that is right: [bins, 2]."""
    return np.transpose(bins(told)[:2])
