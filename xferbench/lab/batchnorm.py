"""How BatchNorm layers run, and what may be done to their statistics afterwards."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

CHANGED = ("training", "momentum", "forward")  # what is changed of a layer while it trains


def layers(module: nn.Module) -> dict[str, BatchNorm]:
    """The BatchNorm layers that keep running statistics, by name."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, BatchNorm) and layer.track_running_stats}


def buffers(module: nn.Module) -> set[str]:
    """Names of the running statistics and their counters."""
    return {f"{name}.{buffer}" for name, layer in layers(module).items() for buffer, _ in layer.named_buffers()}


@contextmanager
def kept(module: nn.Module) -> Iterator[None]:
    """Put every layer's mode, momentum and way to run back as they were, whatever happens; may be nested."""
    before = [(part, {name: vars(part)[name] for name in CHANGED if name in vars(part)}) for part in module.modules()]
    try:
        yield
    finally:
        for part, own in before:
            vars(part).pop("forward", None)
            vars(part).update(own)


@contextmanager
def training(module: nn.Module, word: str, frozen: Sequence[str] = ()) -> Iterator[None]:
    """Put a module into training mode, its BatchNorm layers as :attr:`xferbench.design.Phase.batchnorm` says.

    What lies below a frozen cut (name prefixes) stays in evaluation mode, dropout too, so that a part that cannot be cut off
    and computed once trains as one that can.

    Ghost batches (Hoffer et al. 2017) are slices of one batch: each is normalised by its own statistics and moves the
    running ones, so that the size of the batch, and the number of examples seen, stay what they are.

    Raises:
        ValueError: for a word that is not known.
    """
    kind, _, value = word.partition(":")
    if kind not in {"eval", "train", "train-above", "ghost", "momentum"}:
        raise ValueError(f"no such way to run BatchNorm: {word}")
    with kept(module):
        module.train()
        for prefix in frozen:
            with suppress(AttributeError):  # what was cut off is not there, and a prefix may name a tensor
                module.get_submodule(prefix).eval()
        for layer in layers(module).values():
            if kind == "eval":
                layer.eval()
            elif kind == "momentum":
                layer.momentum = float(value)
            elif kind == "ghost":
                layer.forward = partial(_ghost, layer, int(value))
        yield


def _ghost(layer: BatchNorm, size: int, x: Tensor) -> Tensor:
    whole = type(layer).forward
    if not layer.training:
        return whole(layer, x)
    return torch.cat([whole(layer, part) for part in x.tensor_split(max(1, len(x) // size))])


def recalibrated(module: nn.Module, tensors: Mapping[str, Tensor], batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """Running statistics that are the mean over batches, by name (precise BatchNorm, Wu & Johnson 2021).

    Args:
        module: for its structure.
        tensors: its parameters and buffers, which stay as they are.
        batches: inputs of equal size.
    """
    fresh = {name: torch.zeros_like(tensors[name]) for name in buffers(module)}
    with kept(module), torch.no_grad():
        module.eval()
        for layer in layers(module).values():
            layer.train()
            layer.momentum = None  # a plain mean: the first batch replaces what was there
        for batch in batches:
            functional_call(module, {**tensors, **fresh}, (batch,))
    return fresh


def drift(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, float]:
    """How far each layer's running statistics went: mean of (μ − μ₀)² / σ₀² plus mean of |log σ² / σ₀²|, by layer."""
    found = {}
    for name in (name.removesuffix(".running_mean") for name in after if name.endswith(".running_mean")):
        mean, variance = (after[f"{name}.{part}"].cpu() for part in ("running_mean", "running_var"))
        mean_0, variance_0 = (before[f"{name}.{part}"] for part in ("running_mean", "running_var"))
        least = 1e-5  # BatchNorm's own epsilon: a dead channel has no variance to compare
        wider = ((variance + least) / (variance_0 + least)).log().abs().mean()
        found[name] = float(((mean - mean_0) ** 2 / (variance_0 + least)).mean() + wider)
    return found
