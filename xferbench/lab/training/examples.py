"""Select the training examples of one network, apply its data interventions to them, and order them into batches.

Imports torch through :mod:`xferbench.lab.data.datasets`. Without interventions, no image is copied.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from xferbench.lab.data import datasets
from xferbench.lab.training import seeds
from xferbench.lab.training.implementations import load_implementation

if TYPE_CHECKING:
    from xferbench.core.pipeline import Phase
    from xferbench.core.trial import TrainingSpec
    from xferbench.lab.data.datasets import Dataset, Split


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSubset:
    """The training and validation examples of one network.

    Attributes:
        split: the examples that ``index`` refers to.
        index: [n], the training examples in ``split``.
        validation: the validation examples, as indices into ``dataset.train``.
    """

    split: Split
    index: np.ndarray
    validation: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        """The training labels [n], after all interventions."""
        labels: np.ndarray = self.split.labels[self.index]
        return labels


def training_subset(dataset: Dataset, spec: TrainingSpec) -> TrainingSubset:
    """Return the examples on which a network is trained.

    Each intervention has a random stream of its own, so adding one does not change the draws of another.

    Raises:
        UserError: if the dataset has too few examples.
    """
    index, validation = datasets.train_validation_indices(dataset, spec.data.train_size, spec.seed)
    if not spec.data.interventions:
        return TrainingSubset(split=dataset.train, index=index, validation=validation)
    split = datasets.take(dataset.train, index)
    for intervention in spec.data.interventions:
        rng = seeds.numpy_stream(spec.seed, seeds.INTERVENTION, zlib.crc32(intervention.spelling.encode()))
        split = load_implementation(intervention)(split, intervention, rng, len(dataset.classes))
    return TrainingSubset(split=split, index=np.arange(len(split.labels)), validation=validation)


def batch_indices(phase: Phase, seed: int, phase_index: int, labels: np.ndarray) -> np.ndarray:
    """Return the examples [steps, batch size] of each batch of a phase. Each epoch uses every example once.

    In the order ``class``, each epoch is sorted by class, like a class folder that is read without shuffling.

    Raises:
        ValueError: if the order is unknown.
    """
    rng, size = seeds.numpy_stream(seed, seeds.ORDER, phase_index), min(phase.batch_size, len(labels))
    epochs = [rng.permutation(len(labels)) for _ in range(-(-phase.steps * size // len(labels)))]
    if phase.order == "class":
        epochs = [epoch[np.argsort(labels[epoch], kind="stable")] for epoch in epochs]
    elif phase.order != "shuffled":
        raise ValueError(f"unknown order: {phase.order}")
    return np.concatenate(epochs)[: phase.steps * size].reshape(phase.steps, size)
