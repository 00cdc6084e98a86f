"""Label noise: replace a share of the training labels by another class, drawn uniformly. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from xferbench.core.interventions import LabelNoise
    from xferbench.lab.data.datasets import Split


def corrupt_labels(split: Split, noise: LabelNoise, rng: np.random.Generator, classes: int) -> Split:
    """Return the examples with a share ``noise.rate`` of the labels wrong.

    With one random stream, the wrong labels of a lower rate are a subset of those of a higher rate.
    """
    labels = np.array(split.labels)
    order = rng.permutation(len(labels))
    offsets = rng.integers(1, classes, size=len(labels))
    corrupted = order[: round(noise.rate * len(labels))]
    labels[corrupted] = (labels[corrupted] + offsets[corrupted]) % classes
    return replace(split, labels=labels)
