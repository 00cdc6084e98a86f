"""Detect the architecture of a checkpoint by the names and shapes of its tensors. Reads files, imports torch."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch

from xferbench.lab.models import backbones, checkpoint_reader, checkpoints, state_dict_names

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

SIMILAR_FAMILIES = {
    "resnet": ("resnet", "wide_resnet", "resnext"),
    "swin": ("swin", "maxvit"),
}  # families with similar tensor names
UNRECOGNIZED_FAMILY = "MNASNet"  # the family without a recognizable name pattern


def detect_arch(path: Path) -> str:
    """Return the architecture with the names and shapes of the tensors in a file, or "" if there is none.

    The shape of the last layer does not count.

    Raises:
        UserError: If the file cannot be read as weights.
    """
    state = {state_dict_names.current_name(name): tensor for name, tensor in checkpoint_reader.read_checkpoint(path).items()}
    return next((name for name in _candidates(state) if _is_match(name, state)), "")


def _candidates(state: Mapping[str, Tensor]) -> list[str]:
    """Return the small architectures, then those of the family that the names suggest, the most likely first."""
    family_name = state_dict_names.detect_family(state) or UNRECOGNIZED_FAMILY
    name_parts = [part.lower() for part in re.findall(r"\w{3,}", family_name)]
    prefixes = [prefix for part in name_parts for prefix in SIMILAR_FAMILIES.get(part.rstrip("0123456789"), (part,))]
    names = [name.removeprefix("torchvision:") for name in backbones.known_archs() if name.startswith("torchvision:")]
    family_archs = [
        name for name in names if any(name.replace("_", "").startswith(prefix.replace("_", "")) for prefix in prefixes)
    ]
    small_archs = [name for name in backbones.known_archs() if ":" not in name]
    return [
        *small_archs,
        *(f"torchvision:{name}" for name in sorted(family_archs, key=lambda name: (name != family_name, name))),
    ]


def _is_match(name: str, state: Mapping[str, Tensor]) -> bool:
    """Return whether a network has exactly these tensors, with any number of classes in the last layer."""
    try:
        with torch.device("meta"):
            network_tensors = backbones.build(name, 10).state_dict()
    except NotImplementedError:  # RegNet computes its widths with tensors
        return False
    file_tensors = {key: tensor for key, tensor in state.items() if not backbones.is_within(key, checkpoints.AUXILIARY_HEADS)}
    counters = {key for key in network_tensors if key.endswith("num_batches_tracked")}
    if not set(network_tensors) - counters <= set(file_tensors) <= set(network_tensors):
        return False
    head = list(network_tensors)[-1].rpartition(".")[0]
    return all(
        tuple(tensor.shape) == tuple(network_tensors[key].shape)
        for key, tensor in file_tensors.items()
        if not backbones.is_within(key, [head])
    )
