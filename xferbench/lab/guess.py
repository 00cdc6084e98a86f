"""Which architecture a checkpoint was made with, by the names and shapes of its tensors."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch

from xferbench.lab import backbones, checkpoints, likeness, reading

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

ALIKE = {"resnet": ("resnet", "wide_resnet", "resnext"), "swin": ("swin", "maxvit")}  # families whose tensors are named alike
UNSIGNED = "MNASNet"  # the family whose names are like nothing else


def arch(path: Path) -> str:
    """The architecture whose tensors have the file's names and shapes, but for the last layer's; "" where none does.

    Raises:
        Problem: where the file cannot be read as weights.
    """
    state = {likeness.renamed(name): tensor for name, tensor in reading.read(path).items()}
    return next((name for name in _candidates(state) if _fits(name, state)), "")


def _candidates(state: Mapping[str, Tensor]) -> list[str]:
    """Architectures of the family that the names look like, the likeliest first; the small ones are tried always."""
    like = likeness.family(state) or UNSIGNED
    words = [word.lower() for word in re.findall(r"\w{3,}", like)]
    family = [start for word in words for start in ALIKE.get(word.rstrip("0123456789"), (word,))]
    names = [name.removeprefix("torchvision:") for name in backbones.known() if name.startswith("torchvision:")]
    near = [name for name in names if any(name.replace("_", "").startswith(start.replace("_", "")) for start in family)]
    small = [name for name in backbones.known() if ":" not in name]
    return [*small, *(f"torchvision:{name}" for name in sorted(near, key=lambda name: (name != like, name)))]


def _fits(name: str, state: Mapping[str, Tensor]) -> bool:
    """Whether a network has just these tensors, but for how many classes the last layer has."""
    try:
        with torch.device("meta"):
            wanted = backbones.build(name, 10).state_dict()
    except NotImplementedError:  # a RegNet works its widths out with tensors
        return False
    given = {key: one for key, one in state.items() if not backbones.within(key, checkpoints.AUXILIARY)}
    counters = {key for key in wanted if key.endswith("num_batches_tracked")}
    if not set(wanted) - counters <= set(given) <= set(wanted):
        return False
    last = list(wanted)[-1].rpartition(".")[0]
    return all(tuple(one.shape) == tuple(wanted[key].shape) for key, one in given.items() if not backbones.within(key, [last]))
