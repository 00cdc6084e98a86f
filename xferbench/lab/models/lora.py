"""Low-rank updates: of each weight W only A and B of W + ALPHA / R · B A are trained, and what is kept is the sum.

The network stays as it is, so that whatever looks at it sees a plain one. A weight is taken as the matrix that it is stored as,
[out, in]; a kernel is flattened to [out, in · height · width], where of a convolution with groups ``in`` is that of one group.

References:
    Hu et al. LoRA: low-rank adaptation of large language models. ICLR 2022, arXiv:2106.09685.
"""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from xferbench.core.interventions import LoRA

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from xferbench.core.pipeline import Phase

ALPHA = 16.0  # a constant, so that a rate that is right for one rank is about right for others (Hu et al. 2021, section 4.1)
A, B = ":A", ":B"  # end the names of what is trained; no module's name has a colon


def phase_parameters(
    phase: Phase, begun: Mapping[str, Tensor], low: set[str], streams: Sequence[np.random.Generator]
) -> dict[str, Tensor]:
    """What a phase trains, by name: the tensors themselves, or of a weight in ``low`` its A and its B.

    Args:
        phase: with ``lora:R`` where ``low`` names anything.
        begun: [members, …], what is trained as it is at the phase's start.
        low: names of weights.
        streams: each member's, from which A is drawn, uniform within ±1/√in as torch draws a linear layer; B is 0.
    """
    found = {}
    for name, tensor in begun.items():
        if name not in low:
            found[name] = tensor.requires_grad_()
            continue
        assert isinstance(phase.trainable, LoRA), "only LoRA factors a weight"
        rank, (out, into) = phase.trainable.rank, tensor[0].flatten(1).shape
        drawn = np.stack([rng.uniform(-1, 1, (rank, into)) for rng in streams]) / sqrt(into)
        found[f"{name}{A}"] = torch.from_numpy(drawn).to(tensor).requires_grad_()
        found[f"{name}{B}"] = tensor.new_zeros(len(tensor), out, rank).requires_grad_()
    return found


def merge_weights(begun: Mapping[str, Tensor], trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that the network uses, by their own names: [members, …]."""
    return {name: trained[name] if name in trained else _sum(tensor, name, trained) for name, tensor in begun.items()}


def _sum(weight: Tensor, name: str, trained: Mapping[str, Tensor]) -> Tensor:
    a, b = trained[f"{name}{A}"], trained[f"{name}{B}"]
    return weight + ALPHA / a.shape[1] * (b @ a).view_as(weight)


def weight_depths(trained: Mapping[str, Tensor], depth: Mapping[str, int]) -> dict[str, int]:
    """How deep what is trained lies: A and B as their weight."""
    return {name: depth[name.removesuffix(A).removesuffix(B)] for name in trained}
