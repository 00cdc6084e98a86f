"""How BatchNorm layers run, and what may be done to their statistics afterwards."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def layers(module: nn.Module) -> dict[str, BatchNorm]:
    """The BatchNorm layers that keep running statistics, by name."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, BatchNorm) and layer.track_running_stats}


def buffers(module: nn.Module) -> set[str]:
    """Names of the running statistics and their counters."""
    return {f"{name}.{buffer}" for name, layer in layers(module).items() for buffer, _ in layer.named_buffers()}


@contextmanager
def training(module: nn.Module, word: str, frozen: Sequence[str] = ()) -> Iterator[None]:
    """Put a module into training mode, its BatchNorm layers as :attr:`xferbench.design.Phase.batchnorm` says.

    What lies below a frozen cut (name prefixes) stays in evaluation mode, dropout too, so that a part that cannot be cut off
    and computed once trains as one that can.

    Ghost batches (Hoffer et al. 2017) are slices of one batch: each is normalised by its own statistics and moves the
    running ones, so that the size of the batch, and the number of examples seen, stay what they are.
    """
    module.train()
    for prefix in frozen:
        with suppress(AttributeError):  # what was cut off is not there, and a prefix may name a tensor
            module.get_submodule(prefix).eval()
    found = layers(module).values()
    kept = [layer.momentum for layer in found]
    kind, _, value = word.partition(":")
    for layer in found:
        if kind == "eval":
            layer.eval()
        elif kind == "momentum":
            layer.momentum = float(value)
        elif kind == "ghost":
            layer.forward = partial(_ghost, layer, int(value))
    try:
        yield
    finally:
        for layer, momentum in zip(found, kept, strict=True):
            layer.momentum = momentum
            vars(layer).pop("forward", None)
        module.eval()


def _ghost(layer: BatchNorm, size: int, x: Tensor) -> Tensor:
    whole = type(layer).forward
    if not layer.training:
        return whole(layer, x)
    return torch.cat([whole(layer, part) for part in x.tensor_split(max(1, len(x) // size))])


def recalibrated(module: nn.Module, batches: Iterator[Tensor]) -> None:
    """Replace running statistics by the mean over batches (precise BatchNorm, Wu & Johnson 2021), in place."""
    found = layers(module).values()
    kept = [layer.momentum for layer in found]
    for layer in found:
        layer.reset_running_stats()
        layer.momentum = None
    module.eval()
    for layer in found:
        layer.train()
    with torch.no_grad():
        for batch in batches:
            module(batch)
    for layer, momentum in zip(found, kept, strict=True):
        layer.momentum = momentum
    module.eval()
