"""LoRA: train A and B of W + ALPHA / R · B A for each weight W, and keep the sum. Imports torch.

The modules of the network do not change. A weight is the matrix [out, in] that is stored; a kernel is flattened to
[out, in · height · width], with the ``in`` of one group in a grouped convolution.

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

# A constant, so that a learning rate that suits one rank roughly suits others (Hu et al. 2021, section 4.1).
ALPHA = 16.0
A, B = ":A", ":B"  # suffixes of the names of the factors; no module name contains a colon


def phase_parameters(
    phase: Phase, start: Mapping[str, Tensor], lora_names: set[str], rngs: Sequence[np.random.Generator]
) -> dict[str, Tensor]:
    """Return the parameters of a phase by name: the tensors themselves, or the factors A and B of a weight.

    Args:
        phase: the phase; it trains ``lora:R`` if ``lora_names`` is not empty.
        start: the tensors [members, …] that the phase trains, at its start. Those without factors become leaf tensors in place.
        lora_names: the names of the weights with factors.
        rngs: the random stream of each member for A, which is uniform within ±1/√in, as torch initializes linear layers. B is
            0.
    """
    parameters = {}
    for name, tensor in start.items():
        if name not in lora_names:
            parameters[name] = tensor.requires_grad_()
            continue
        assert isinstance(phase.trainable, LoRA), "only LoRA factors a weight"
        rank, (features_out, features_in) = phase.trainable.rank, tensor[0].flatten(1).shape
        a = np.stack([rng.uniform(-1, 1, (rank, features_in)) for rng in rngs]) / sqrt(features_in)
        parameters[f"{name}{A}"] = torch.from_numpy(a).to(tensor).requires_grad_()
        parameters[f"{name}{B}"] = tensor.new_zeros(len(tensor), features_out, rank).requires_grad_()
    return parameters


def merge_weights(start: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors [members, …] that the network uses, under their own names."""
    return {
        name: parameters[name] if name in parameters else _merge_weight(tensor, name, parameters)
        for name, tensor in start.items()
    }


def _merge_weight(weight: Tensor, name: str, parameters: Mapping[str, Tensor]) -> Tensor:
    a, b = parameters[f"{name}{A}"], parameters[f"{name}{B}"]
    return weight + ALPHA / a.shape[1] * (b @ a).view_as(weight)


def weight_depths(parameters: Mapping[str, Tensor], depth: Mapping[str, int]) -> dict[str, int]:
    """Return the depth of each parameter. The factors have the depth of their weight."""
    return {name: depth[name.removesuffix(A).removesuffix(B)] for name in parameters}
