"""Label noise: a share of one fit's training labels is replaced by another class, drawn with equal chance. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from xferbench.core.interventions import LabelNoise
    from xferbench.lab.data.datasets import Split


def corrupt_labels(split: Split, noise: LabelNoise, stream: np.random.Generator, classes: int) -> Split:
    """Return the examples with ``noise.rate`` of the labels [n] wrong; the labels of a lower rate are among them."""
    labels = np.array(split.labels)
    order = stream.permutation(len(labels))
    steps = stream.integers(1, classes, size=len(labels))
    wrong = order[: round(noise.rate * len(labels))]
    labels[wrong] = (labels[wrong] + steps[wrong]) % classes
    return replace(split, labels=labels)
