"""The values that the training loop works on. Imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.func import functional_call

from xferbench.lab.data import preprocessing

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from xferbench.core.transforms import InputTransform
    from xferbench.lab.data.datasets import Split
    from xferbench.lab.models.backbones import LayerLayout


Tensors = dict[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """The structure of a network and where it is computed.

    Attributes:
        module: the structure; its own tensors are never read.
        layout: its layer groups and head.
        device: the device that computes.
        cache: the cache folder.
    """

    module: nn.Module
    layout: LayerLayout
    device: torch.device
    cache: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedModel:
    """The result of one training.

    Attributes:
        before: the tensors before training.
        last: the tensors after the last step.
        best: the tensors at the step with the best validation accuracy.
        curve: rows of step, mean training loss since the previous row, and validation accuracy.
        diverged: whether a tensor or a loss is not finite.
        prior: [classes], the class frequencies of the training subset. A diverged network predicts them.
        seconds: the training time.
        taught: the training time of the teacher, in seconds.
        begun: the network at the start of its last phase, if a measurement needs it.
    """

    before: Tensors
    last: Tensors
    best: Tensors
    curve: tuple[tuple[int, float, float], ...]
    diverged: bool
    prior: tuple[float, ...]
    seconds: float
    taught: float = 0.0
    begun: TrainedModel | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseModel:
    """The module that a phase runs at each step.

    This is either the whole network, which takes stored images, or the part above a cut, which takes precomputed activations.

    Attributes:
        module: the structure.
        transform: the preprocessing of stored images; None if the inputs are activations.
    """

    module: nn.Module
    transform: InputTransform | None

    @property
    def names(self) -> list[str]:
        """The names of the parameters and buffers of the module."""
        return [name for name, _ in (*self.module.named_parameters(), *self.module.named_buffers())]

    def __call__(self, tensors: Tensors, x: Tensor) -> Tensor:
        """Compute the logits [batch, classes] of one batch with the tensors of one member."""
        x = x if self.transform is None else preprocessing.to_tensor(x, self.transform)
        logits: Tensor = functional_call(self.module, tensors, (x,))
        return logits


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingTensors:
    """The training and validation examples [n, …] of one member with their labels [n], in the form that the phase takes."""

    x: Tensor
    y: Tensor
    x_validation: Tensor
    y_validation: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class AuxiliaryInputs:
    """The inputs of regularizers, in addition to the pretrained weights.

    Attributes:
        head: the head of the checkpoint.
        memory: source images, if a regularizer needs them.
        teachers: the teacher of each member, if there are teachers.
        plain: the structure with a linear head, which teachers and the checkpoint have.
        unlabelled: images of another domain, if a regularizer needs them.
    """

    head: Tensors
    memory: Split | None = None
    teachers: tuple[TrainedModel, ...] = ()
    plain: Architecture | None = None
    unlabelled: Split | None = None
