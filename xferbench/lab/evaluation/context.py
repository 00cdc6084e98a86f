"""What an evaluation and a measure are given. Imports torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from xferbench.core.pipeline import Recipe

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np
    from torch import Tensor, nn

    from xferbench.core.pipeline import InputTransform
    from xferbench.core.trial import TrainingSpec
    from xferbench.lab.data.datasets import Dataset
    from xferbench.lab.training.network import Architecture, Tensors, TrainedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A trained network with all that is needed to look at it: its fit, its structure, its data, the checkpoint's head.

    ``injected_duplicates`` are the places in the test set of those images that were put into training on purpose.
    """

    fit: TrainingSpec
    fitted: TrainedModel
    network: Architecture
    dataset: Dataset
    source_head: Tensors
    cache: Path
    injected_duplicates: np.ndarray | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureContext:
    """What a plugin's own measure is given.

    Attributes:
        before, after: the network's tensors before training and after it; before, those of the checkpoint where that is
            believed to have been loaded. network: its structure.
        images, labels: some of its training subset, [n, …] 8-bit and [n]. prepared: how it was trained on them.
        served, served_labels: the first test images likewise.
        ready, mode: how they are served. expected_training: what the training is taken to have been.
        fit, view, dataset, cache: what was asked, and the data in the geometry of training. injected_duplicates: the places in
        the test set
            of those images that were put into training on purpose, [k]. fresh: builds the network anew, with random weights.
            source_head: the pretrained head's tensors, none where the checkpoint has no head.
            These are None where a measure is called by hand.
    """

    before: Tensors
    after: Tensors
    network: Architecture
    images: Tensor
    labels: Tensor
    prepared: InputTransform
    served: Tensor
    served_labels: Tensor
    ready: InputTransform
    mode: str
    expected_training: Recipe = field(default_factory=Recipe)
    fit: Any = None
    view: Any = None
    dataset: Any = None
    injected_duplicates: Any = None
    cache: Any = None
    fresh: Callable[[], nn.Module] | None = None
    source_head: Any = None
