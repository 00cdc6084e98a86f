"""Class imbalance: one fit's training examples with a long tail over the classes, in the dataset's class order. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from xferbench.lab.data import datasets

if TYPE_CHECKING:
    from xferbench.core.interventions import ClassImbalance
    from xferbench.lab.data.datasets import Split


def thin_classes(split: Split, imbalance: ClassImbalance, stream: np.random.Generator, classes: int) -> Split:
    """Return the examples that a long tail leaves; those that a higher ratio leaves are among them."""
    counts = np.bincount(split.labels, minlength=classes)
    wanted = counts.max() * imbalance.ratio ** (-np.arange(classes) / max(classes - 1, 1))
    left = np.clip(np.rint(wanted).astype(int), 1, None)
    order = stream.permutation(len(split.labels))
    kept = [order[split.labels[order] == label][: left[label]] for label in range(classes)]
    return datasets.take(split, np.sort(np.concatenate(kept)))
