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

    from xferbench.core.pipeline import InputTransform
    from xferbench.lab.data.datasets import Split
    from xferbench.lab.models.backbones import LayerLayout


Tensors = dict[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A module for its structure alone (its own tensors are never read), what is known of it, and where it computes."""

    module: nn.Module
    anatomy: LayerLayout
    device: torch.device
    cache: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedModel:
    """A trained network: its tensors before, after the last step and at the best one on validation.

    ``prior`` is [classes], the training subset's class frequencies, which a diverged fit predicts. ``curve`` has rows of
    step, mean training loss since the row before, and validation accuracy. ``seconds`` are its own, ``taught`` those of its
    teacher. ``begun`` is the network as its last phase began, where somebody asks for it.
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
    """What a phase runs: the whole network on 8-bit images, or the part above a cut on activations computed once."""

    module: nn.Module
    ready: InputTransform | None

    @property
    def names(self) -> list[str]:
        """The tensors that it uses."""
        return [name for name, _ in (*self.module.named_parameters(), *self.module.named_buffers())]

    def __call__(self, tensors: Tensors, x: Tensor) -> Tensor:
        """Logits [batch, classes] of one member's tensors on one batch."""
        x = x if self.ready is None else preprocessing.to_tensor(x, self.ready)
        logits: Tensor = functional_call(self.module, tensors, (x,))
        return logits


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingTensors:
    """One member's examples in the form that a body takes: [n, …] and labels [n], to train on and to validate on."""

    x: Tensor
    y: Tensor
    x_validation: Tensor
    y_validation: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class AuxiliaryInputs:
    """What is left of the source beside the weights: the checkpoint's head, and some images where a fit is given any.

    ``teachers`` are each member's, where they have one; ``plain`` is the structure with a plain head, where theirs is another.
    ``unlabelled`` are images of another domain, where a fit is given any.
    """

    head: Tensors
    memory: Split | None = None
    teachers: tuple[TrainedModel, ...] = ()
    plain: Architecture | None = None
    unlabelled: Split | None = None
