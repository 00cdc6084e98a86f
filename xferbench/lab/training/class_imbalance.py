"""Class imbalance: thin out the training examples to a long tail over the classes, in the class order of the dataset. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from xferbench.lab.data import datasets

if TYPE_CHECKING:
    from xferbench.core.interventions import ClassImbalance
    from xferbench.lab.data.datasets import Split


def thin_classes(split: Split, imbalance: ClassImbalance, rng: np.random.Generator, classes: int) -> Split:
    """Return the examples that remain in a long-tailed dataset.

    The sizes of the classes decrease exponentially, from that of the largest class to 1/ratio of it. Each class keeps at least
    one example. With one random stream, the examples of a higher ratio are a subset of those of a lower one.
    """
    class_sizes = np.bincount(split.labels, minlength=classes)
    target_sizes = class_sizes.max() * imbalance.ratio ** (-np.arange(classes) / max(classes - 1, 1))
    target_sizes = np.clip(np.rint(target_sizes).astype(int), 1, None)
    order = rng.permutation(len(split.labels))
    indices = [order[split.labels[order] == label][: target_sizes[label]] for label in range(classes)]
    return datasets.take(split, np.sort(np.concatenate(indices)))
