"""Detect the architecture of a checkpoint by the names and shapes of its tensors. Reads files, imports torch."""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch

from xferbench.data import weights_folder
from xferbench.lab.models import backbones, checkpoint_reader, finished_heads, state_dict_names, transformers_models

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

SIMILAR_FAMILIES = {
    "resnet": ("resnet", "wide_resnet", "resnext"),
    "swin": ("swin", "maxvit"),
}  # families with similar tensor names
ANY_CLASSES = 10  # the head does not count
UNRECOGNIZED_FAMILY = "MNASNet"  # the family without a recognizable name pattern


def detect_arch(path: Path) -> str:
    """Return the architecture with the names and shapes of the tensors in a file, or "" if there is none.

    The names may have a prefix, and any head counts, at its place or next to the network.

    Raises:
        UserError: If the file cannot be read as weights, or its network needs transformers and that is not installed.
    """
    if arch := transformers_models.find_arch(weights_folder.find_weights(path)):
        return arch
    state = {state_dict_names.current_name(name): tensor for name, tensor in checkpoint_reader.read_checkpoint(path).items()}
    return next((name for name in (*_candidates(state), *_timm_candidates(state)) if _is_match(name, state)), "")


def _candidates(state: Mapping[str, Tensor]) -> list[str]:
    """Return the small architectures, then those of the families that the names suggest, the most likely first."""
    names = [name for name in backbones.known_archs() if ":" not in name]
    for family_name in state_dict_names.detect_families(state) or [UNRECOGNIZED_FAMILY]:
        names += [name for name in _family_archs(family_name) if name not in names]
    return names


def _timm_candidates(state: Mapping[str, Tensor]) -> list[str]:
    """Return the architectures of timm that the names suggest; none if timm is not installed."""
    patterns = state_dict_names.timm_patterns({name: tuple(tensor.shape) for name, tensor in state.items()})
    if not patterns or find_spec("timm") is None:
        return []
    timm = backbones.import_timm()
    return [f"timm:{name}" for pattern in patterns for name in timm.list_models(pattern)]


def _family_archs(family_name: str) -> list[str]:
    """Return the architectures of torchvision that belong to a family, the one of this name first."""
    name_parts = [part.lower() for part in re.findall(r"\w{3,}", family_name)]
    prefixes = [prefix for part in name_parts for prefix in SIMILAR_FAMILIES.get(part.rstrip("0123456789"), (part,))]
    names = [name.removeprefix("torchvision:") for name in backbones.known_archs() if name.startswith("torchvision:")]
    family_archs = [
        name for name in names if any(name.replace("_", "").startswith(prefix.replace("_", "")) for prefix in prefixes)
    ]
    return [f"torchvision:{name}" for name in sorted(family_archs, key=lambda name: (name != family_name, name))]


def _is_match(name: str, state: Mapping[str, Tensor]) -> bool:
    """Return whether a checkpoint has exactly the tensors of a network below its head."""
    try:
        with torch.device("meta"):
            network = backbones.build(name, ANY_CLASSES)
    except NotImplementedError:  # RegNet computes its widths with tensors
        return False
    head = list(network.state_dict())[-1].rpartition(".")[0]
    return finished_heads.fits(network, head, state)
