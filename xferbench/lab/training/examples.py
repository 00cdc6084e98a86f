"""The examples that one network is trained on: its subset of the dataset, changed by its data interventions.

Imports torch through the dataset's module. Where there is no intervention, no image is copied.
"""

from __future__ import annotations

import importlib
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from xferbench.lab.data import datasets
from xferbench.lab.training import seeds

if TYPE_CHECKING:
    from collections.abc import Callable

    from xferbench.core.interventions import DataIntervention
    from xferbench.core.trial import TrainingSpec
    from xferbench.lab.data.datasets import Dataset, Split

    Change = Callable[[Split, DataIntervention, np.random.Generator, int], Split]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSubset:
    """Training examples, ``split`` at ``index`` [n], and the indices of the validation examples in ``dataset.train``."""

    split: Split
    index: np.ndarray
    validation: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        """Labels [n], as the network is taught them."""
        labels: np.ndarray = self.split.labels[self.index]
        return labels


def training_subset(dataset: Dataset, fit: TrainingSpec) -> TrainingSubset:
    """Return the examples that a fit is trained on, in the geometry of a dataset.

    Each intervention draws from a stream of its own kind and the fit's seed, so that another one does not shift it.

    Raises:
        UserError: where the dataset has too few examples.
    """
    index, validation = datasets.train_validation_indices(dataset, fit.train_size, fit.seed)
    if not fit.interventions:
        return TrainingSubset(split=dataset.train, index=index, validation=validation)
    split = datasets.take(dataset.train, index)
    for intervention in fit.interventions:
        stream = seeds.numpy_stream(fit.seed, seeds.INTERVENTION, zlib.crc32(intervention.spelling.encode()))
        split = implementation(intervention)(split, intervention, stream, len(dataset.classes))
    return TrainingSubset(split=split, index=np.arange(len(split.labels)), validation=validation)


def implementation(intervention: DataIntervention) -> Change:
    """Return the function that carries an intervention out."""
    module, _, function = intervention.implementation.partition(":")
    change: Change = getattr(importlib.import_module(module), function)
    return change
