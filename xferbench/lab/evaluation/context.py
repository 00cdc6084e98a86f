"""The inputs of an evaluation and of a plugin's measure. Imports torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from xferbench.core.pipeline import Recipe

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np
    from torch import Tensor, nn

    from xferbench.core.interventions import ServingMode
    from xferbench.core.pipeline import InputTransform
    from xferbench.core.trial import TrainingSpec
    from xferbench.lab.data.datasets import Dataset
    from xferbench.lab.training.network import Architecture, Tensors, TrainedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A trained network with everything that its evaluation needs.

    Attributes:
        spec: the specification of the training.
        trained: the tensors before and after training.
        network: the structure of the network.
        dataset: the dataset in the geometry of the training.
        source_head: the tensors of the pretrained head; empty if the checkpoint has none.
        cache: the cache folder of the store.
        injected_duplicates: [k], the test-set indices of the images that replace training images on purpose, or None.
    """

    spec: TrainingSpec
    trained: TrainedModel
    network: Architecture
    dataset: Dataset
    source_head: Tensors
    cache: Path
    injected_duplicates: np.ndarray | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EditContext:
    """What an edit of an installed package may use besides the tensors. It has no test images, so no edit is fitted to them.

    Attributes:
        before: the tensors before training.
        network: the structure of the network.
        train_images: the training images, uint8 [n, …], in a random order; none for a checkpoint without training images.
        train_labels: their labels [n].
        train_preprocessing: the preprocessing of the training.
    """

    before: Tensors
    network: Architecture
    train_images: Tensor
    train_labels: Tensor
    train_preprocessing: InputTransform


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureContext:
    """The argument of a plugin's measure.

    Attributes:
        before: the tensors before training; those of the checkpoint if the expected training starts from it.
        after: the tensors after training, with all edits.
        network: the structure of the network.
        train_images: training images, uint8 [n, …].
        train_labels: their labels [n].
        train_preprocessing: the preprocessing of the training.
        test_images: the first test images, uint8 [m, …].
        test_labels: their labels [m].
        preprocessing: the preprocessing of the evaluation.
        mode: the mode of the evaluation, as in :class:`~xferbench.core.trial.EvaluationSpec`.
        expected_training: the recipe that the training is expected to have followed.
        spec: the specification of the training; None, as all of the following, if a measure is called by hand.
        view: the specification of the evaluation.
        dataset: the dataset in the geometry of the training.
        injected_duplicates: [k], the test-set indices of the images that replace training images on purpose.
        cache: the cache folder of the store.
        build_random: builds the network with random weights.
        source_head: the tensors of the pretrained head; empty if the checkpoint has none.
    """

    before: Tensors
    after: Tensors
    network: Architecture
    train_images: Tensor
    train_labels: Tensor
    train_preprocessing: InputTransform
    test_images: Tensor
    test_labels: Tensor
    preprocessing: InputTransform
    mode: ServingMode
    expected_training: Recipe = field(default_factory=Recipe)
    spec: Any = None
    view: Any = None
    dataset: Any = None
    injected_duplicates: Any = None
    cache: Any = None
    build_random: Callable[[], nn.Module] | None = None
    source_head: Any = None
