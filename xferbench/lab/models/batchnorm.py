"""BatchNorm layers: how they run during training, and how their statistics are recomputed afterwards. Imports torch."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from xferbench.core.interventions import BATCHNORM_MODES, BatchNormEval, BatchNormMode, BatchNormMomentum, GhostBatchNorm

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

BATCH_COUNTER = "num_batches_tracked"
SAVED_ATTRIBUTES = ("training", "momentum", "forward")  # attributes of a layer that change while it trains


def batchnorm_layers(module: nn.Module) -> dict[str, BatchNorm]:
    """Return the BatchNorm layers that keep running statistics, by name."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, BatchNorm) and layer.track_running_stats}


def statistics_names(module: nn.Module) -> set[str]:
    """Return the names of the running statistics and of their batch counters."""
    return {f"{name}.{buffer}" for name, layer in batchnorm_layers(module).items() for buffer, _ in layer.named_buffers()}


@contextmanager
def preserve_modes(module: nn.Module) -> Iterator[None]:
    """Restore every layer's mode, momentum and ``forward`` on exit, also after an exception. Contexts may be nested."""
    before = [(part, {name: vars(part)[name] for name in SAVED_ATTRIBUTES if name in vars(part)}) for part in module.modules()]
    try:
        yield
    finally:
        for part, attributes in before:
            vars(part).pop("forward", None)
            vars(part).update(attributes)


@contextmanager
def set_training(module: nn.Module, mode: BatchNormMode, frozen: Sequence[str] = ()) -> Iterator[None]:
    """Set a module to training mode, with its BatchNorm layers in the given mode. Restore all modes on exit.

    The frozen part stays in evaluation mode, including its dropout. A part that cannot be cut off and computed once therefore
    trains like one that can.

    A ghost batch is a slice of one batch (Hoffer et al. 2017). Each slice is normalized by its own statistics and updates the
    running ones, so the batch size and the number of examples do not change.

    Args:
        module: the network, or the part of it that trains.
        mode: the mode of the BatchNorm layers.
        frozen: name prefixes of the frozen part.

    Raises:
        TypeError: if the mode is of an unknown kind.
    """
    if not isinstance(mode, BATCHNORM_MODES):
        raise TypeError(f"unknown BatchNorm mode: {mode}")
    with preserve_modes(module):
        module.train()
        for prefix in frozen:
            with suppress(AttributeError):  # the part may have been cut off, and a prefix may name a tensor
                module.get_submodule(prefix).eval()
        for layer in batchnorm_layers(module).values():
            if isinstance(mode, BatchNormEval):
                layer.eval()
            elif isinstance(mode, BatchNormMomentum):
                layer.momentum = mode.momentum
            elif isinstance(mode, GhostBatchNorm):
                layer.forward = partial(_forward_ghost_batches, layer, mode.examples)
        yield


def _forward_ghost_batches(layer: BatchNorm, size: int, x: Tensor) -> Tensor:
    forward = type(layer).forward
    if not layer.training:
        return forward(layer, x)
    return torch.cat([forward(layer, part) for part in x.tensor_split(max(1, len(x) // size))])


def recalibrate(module: nn.Module, tensors: Mapping[str, Tensor], batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """Compute running statistics as the mean over batches (precise BatchNorm, Wu & Johnson 2021).

    Args:
        module: the structure of the network.
        tensors: its parameters and buffers, which do not change.
        batches: inputs of equal size.

    Returns:
        The new statistics by name.
    """
    statistics = {name: torch.zeros_like(tensors[name]) for name in statistics_names(module)}
    with preserve_modes(module), torch.no_grad():
        module.eval()
        for layer in batchnorm_layers(module).values():
            layer.train()
            layer.momentum = None  # a cumulative mean: the first batch replaces the zeros
        for batch in batches:
            functional_call(module, {**tensors, **statistics}, (batch,))
    return statistics


def variances_for_epsilon(module: nn.Module, tensors: Mapping[str, Tensor], epsilon: float) -> dict[str, Tensor]:
    """Return running variances with which the layers compute what they would compute with another epsilon.

    Args:
        module: the structure of the network.
        tensors: its parameters and buffers.
        epsilon: the other epsilon.
    """
    layers = {f"{name}.running_var": layer.eps for name, layer in batchnorm_layers(module).items()}
    return {name: tensors[name] + (epsilon - own) for name, own in layers.items()}


def training_steps(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> float:
    """Return the largest number of steps that a layer ran in training mode between two sets of tensors; 0 if it is unknown."""
    counters = [name for name in after.keys() & before.keys() if name.endswith(BATCH_COUNTER)]
    return max((float(after[name].cpu() - before[name].cpu()) for name in counters), default=0.0)


def share_from_before(module: nn.Module, steps: float) -> float:
    """Return the largest share of a layer's running statistics that is still that from before ``steps`` steps in train mode.

    Each step multiplies the old statistics by 1 − momentum. A layer without a momentum averages all batches since its reset.
    """
    layers = batchnorm_layers(module).values()
    return max(((1 - layer.momentum) ** steps for layer in layers if layer.momentum is not None), default=0.0)


def statistics_drift(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, float]:
    """Compute how far the running statistics of each layer moved.

    Returns:
        The mean of (μ − μ₀)² / σ₀² plus the mean of |log σ² / σ₀²|, by layer.
    """
    distances = {}
    for name in (name.removesuffix(".running_mean") for name in after if name.endswith(".running_mean") and name in before):
        mean, variance = (after[f"{name}.{part}"].cpu() for part in ("running_mean", "running_var"))
        mean_0, variance_0 = (before[f"{name}.{part}"] for part in ("running_mean", "running_var"))
        epsilon = 1e-5  # that of BatchNorm itself: a dead channel has no variance to compare
        log_ratio = ((variance + epsilon) / (variance_0 + epsilon)).log().abs().mean()
        distances[name] = float(((mean - mean_0) ** 2 / (variance_0 + epsilon)).mean() + log_ratio)
    return distances
