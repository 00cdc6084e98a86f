"""Activations of the frozen part of a network, computed once and cached on disk. Imports torch; writes to the cache.

The cache key is a digest of the part's tensors, the images and their preprocessing.
"""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from xferbench.core import cached_files, files
from xferbench.core.canonical import digest
from xferbench.core.version import LAB_VERSION
from xferbench.lab.data import preprocessing
from xferbench.lab.models import batchnorm

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from torch import nn

    from xferbench.core.transforms import InputTransform

INFERENCE_BATCH = 64
MAX_CACHED_BYTES = 512 * 2**20  # bytes: larger activations of one set of images are not written to disk


def autocast(device: torch.device) -> torch.autocast:
    """Return the autocast context of a device: bfloat16 on CUDA, where it is fast, and float32 elsewhere."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


@contextmanager
def evaluation_mode(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Run a module in evaluation mode, without gradients, in the precision of the device. Restore each layer's mode on exit."""
    with batchnorm.preserve_modes(module), torch.no_grad(), autocast(device):
        module.eval()
        yield


def compute_activations(
    part: nn.Module, tensors: dict[str, Tensor], images: Tensor, transform: InputTransform, device: torch.device, cache: Path
) -> Tensor:
    """Compute the activations of a part of a network, or read them from the cache.

    Args:
        part: the structure of the part.
        tensors: parameters and buffers by name, at least those of the part.
        images: [n, 3, H, W] uint8.
        transform: the preprocessing.
        device: where to compute.
        cache: the cache folder.

    Returns:
        [n, …] float32, on the CPU.
    """
    part_tensors = {name: tensors[name] for name, _ in (*part.named_parameters(), *part.named_buffers())}
    path = cache / "features" / f"{_cache_key(part, part_tensors, images, transform, device)}.npy"
    cached = cached_files.read_or_discard(path, np.load)
    if cached is not None:
        cached_files.mark_used(path)
        return torch.from_numpy(cached)
    with evaluation_mode(part, device):
        batches = [
            functional_call(part, part_tensors, (preprocessing.to_tensor(batch.to(device), transform),)).float().cpu()
            for batch in images.split(INFERENCE_BATCH)
        ]
    activations = torch.cat(batches)
    if activations.nbytes <= MAX_CACHED_BYTES:
        _save(activations.numpy(), path)
    return activations


def member_inputs(
    lower: nn.Module | None,
    members: Sequence[dict[str, Tensor]],
    images: Tensor,
    transform: InputTransform,
    device: torch.device,
    cache: Path,
) -> tuple[Tensor, ...]:
    """Return images [n, 3, H, W] in the form that a phase takes, on the device, for each member.

    This is the images themselves, or their activations above ``lower``, the part below the cut. Members may differ in its
    tensors.
    """
    if lower is None:
        return (images.to(device),) * len(members)
    return tuple(compute_activations(lower, tensors, images, transform, device, cache).to(device) for tensors in members)


def _cache_key(
    part: nn.Module, tensors: dict[str, Tensor], images: Tensor, transform: InputTransform, device: torch.device
) -> str:
    """Compute a digest of everything that determines the activations: structure, tensors, images and software."""
    content = hashlib.sha256(f"{LAB_VERSION} {torch.__version__} {device.type} {digest(transform)} {part}".encode())
    for name, tensor in (*sorted(tensors.items()), ("", images)):
        content.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        content.update(tensor.detach().cpu().flatten().numpy())
    return content.hexdigest()[:32]


def _save(array: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replace_atomically(path) as part, part.open("wb") as file:
        np.save(file, array)
