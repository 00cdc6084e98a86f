"""The inputs of an evaluation and of a plugin's measure. Imports torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from xferbench.core.pipeline import Recipe

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np
    from torch import Tensor, nn

    from xferbench.core.interventions import ServingMode
    from xferbench.core.transforms import InputTransform
    from xferbench.core.trial import EvaluationSpec, TrainingSpec
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
class Examples:
    """Some examples, and how they become inputs of the network.

    Attributes:
        images: uint8 [n, …].
        labels: their labels [n].
        preprocessing: their preprocessing.
    """

    images: Tensor
    labels: Tensor
    preprocessing: InputTransform


@dataclass(frozen=True, slots=True, kw_only=True)
class EditContext:
    """What an edit of an installed package may use besides the tensors. It has no test images, so no edit is fitted to them.

    Attributes:
        before: the tensors before training.
        network: the structure of the network.
        train: the training examples in a random order; none for a checkpoint without training images.
    """

    before: Tensors
    network: Architecture
    train: Examples


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialContext:
    """The trial that a measure belongs to, and its data.

    Attributes:
        spec: the specification of the training.
        view: the specification of the evaluation.
        dataset: the dataset in the geometry of the training.
        cache: the cache folder of the store.
        injected_duplicates: [k], the test-set indices of the images that replace training images on purpose, or None.
    """

    spec: TrainingSpec
    view: EvaluationSpec
    dataset: Dataset
    cache: Path
    injected_duplicates: np.ndarray | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureContext:
    """The argument of a plugin's measure.

    Attributes:
        before: the tensors before training; those of the checkpoint if the expected training starts from it.
        after: the tensors after training, with all edits.
        network: the structure of the network.
        train: training examples, with the preprocessing of the training.
        test: the first test examples, with the preprocessing of the evaluation.
        mode: the mode of the evaluation, as in :class:`~xferbench.core.trial.EvaluationSpec`.
        trial: the trial and its data.
        expected_training: the recipe that the training is expected to have followed.
        source_head: the tensors of the pretrained head; empty if the checkpoint has none.
        build_random: builds the network with random weights, or None if this is impossible.
    """

    before: Tensors
    after: Tensors
    network: Architecture
    train: Examples
    test: Examples
    mode: ServingMode
    trial: TrialContext
    expected_training: Recipe = field(default_factory=Recipe)
    source_head: Tensors = field(default_factory=dict)
    build_random: Callable[[], nn.Module] | None = None
