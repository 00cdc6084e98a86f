"""Activations of a frozen part, computed once and kept by content: the part's tensors, the images and their preprocessing."""

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
LIMIT = 512 * 2**20  # bytes of activations of one set of images above which they are not written to disk


def precision(device: torch.device) -> torch.autocast:
    """The context that networks compute in: bfloat16 where that is fast, float32 elsewhere."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


@contextmanager
def inference(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Evaluation mode without gradients, in the precision of the device; each layer's own mode is put back afterwards."""
    with batchnorm.kept(module), torch.no_grad(), precision(device):
        module.eval()
        yield


def compute(
    part: nn.Module, tensors: dict[str, Tensor], images: Tensor, ready: Ready, device: torch.device, cache: Path
) -> Tensor:
    """Activations [n, …] float32 of images [n, 3, H, W] uint8, on the CPU; from the cache where they are there."""
    own = {name: tensors[name] for name, _ in (*part.named_parameters(), *part.named_buffers())}
    path = cache / "features" / f"{_key(part, own, images, ready, device)}.npy"
    if path.is_file():
        os.utime(path)
        return torch.from_numpy(np.load(path))
    with inference(part, device):
        parts = [
            functional_call(part, own, (preprocess.tensor(batch.to(device), ready),)).float().cpu()
            for batch in images.split(BATCH)
        ]
    found = torch.cat(parts)
    if found.nbytes <= LIMIT:
        _save(found.numpy(), path)
    return found


def _key(part: nn.Module, tensors: dict[str, Tensor], images: Tensor, ready: Ready, device: torch.device) -> str:
    """A digest of all that activations depend on: the part's outline and tensors, the images, and what computes them."""
    content = hashlib.sha256(f"{VERSION} {torch.__version__} {device.type} {digest(ready)} {part}".encode())
    for name, tensor in (*sorted(tensors.items()), ("", images)):
        content.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        content.update(tensor.detach().cpu().flatten().numpy())
    return content.hexdigest()[:32]


def _save(array: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replace_atomically(path) as part, part.open("wb") as file:
        np.save(file, array)
