"""Activations of the frozen part of a network, computed once and cached on disk. Imports torch; writes to the cache.

The cache key is a digest of the part's tensors, the images and their preprocessing.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from xferbench.core import files
from xferbench.design import digest
from xferbench.lab import VERSION, batchnorm, preprocess

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import nn

    from xferbench.design import Ready

BATCH = 64
LIMIT = 512 * 2**20  # bytes: larger activations of one set of images are not written to disk


def precision(device: torch.device) -> torch.autocast:
    """Return the autocast context of a device: bfloat16 on CUDA, where it is fast, and float32 elsewhere."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


@contextmanager
def inference(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Run a module in evaluation mode, without gradients, in the precision of the device. Restore each layer's mode on exit."""
    with batchnorm.kept(module), torch.no_grad(), precision(device):
        module.eval()
        yield


def compute(
    part: nn.Module, tensors: dict[str, Tensor], images: Tensor, ready: Ready, device: torch.device, cache: Path
) -> Tensor:
    """Compute the activations of a part of a network, or read them from the cache.

    Args:
        part: the structure of the part.
        tensors: parameters and buffers by name, at least those of the part.
        images: [n, 3, H, W] uint8.
        ready: the preprocessing.
        device: where to compute.
        cache: the cache folder.

    Returns:
        [n, …] float32, on the CPU.
    """
    part_tensors = {name: tensors[name] for name, _ in (*part.named_parameters(), *part.named_buffers())}
    path = cache / "features" / f"{_cache_key(part, part_tensors, images, ready, device)}.npy"
    if path.is_file():
        os.utime(path)  # the cache removes the files that were used least recently
        return torch.from_numpy(np.load(path))
    with inference(part, device):
        batches = [
            functional_call(part, part_tensors, (preprocess.tensor(batch.to(device), ready),)).float().cpu()
            for batch in images.split(BATCH)
        ]
    activations = torch.cat(batches)
    if activations.nbytes <= LIMIT:
        _save(activations.numpy(), path)
    return activations


def _cache_key(part: nn.Module, tensors: dict[str, Tensor], images: Tensor, ready: Ready, device: torch.device) -> str:
    """Compute a digest of everything that determines the activations: structure, tensors, images and software."""
    content = hashlib.sha256(f"{VERSION} {torch.__version__} {device.type} {digest(ready)} {part}".encode())
    for name, tensor in (*sorted(tensors.items()), ("", images)):
        content.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        content.update(tensor.detach().cpu().flatten().numpy())
    return content.hexdigest()[:32]


def _save(array: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replace_atomically(path) as part, part.open("wb") as file:
        np.save(file, array)
