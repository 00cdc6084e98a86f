"""Builds the monitor of a user's model and optimizers, wrapped or not. Imports torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from xferbench.lab import beliefs
from xferbench.lab.watch import Watch
from xferbench.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xferbench.design import Phase
    from xferbench.lab.batch import Shape


def made(
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    *,
    phases: Sequence[Phase],
    batchnorm: bool,
    pretrained: bool | None,
    head: str,
    shape: Shape | int | None,
    every: int,
    on_event: str,
) -> Watch:
    """Build the monitor of a model and its optimizers. Without phases, ``requires_grad`` decides what trains.

    Raises:
        Problem: if the model is not a module, an optimizer is not one, the head does not exist, or a ``trainable`` setting
            does not apply to this model.
    """
    if not isinstance(model, nn.Module):
        raise Problem("watch: model", found=f"a {type(model).__name__}", expected="a torch.nn.Module")
    inner_optimizers = tuple(_unwrap_optimizer(optimizer) for optimizer in optimizers)
    network = beliefs.bare(model)
    head_name = beliefs.head(network, head)
    layer = beliefs.modules(network).get(head_name)
    return Watch(
        network,
        inner_optimizers,
        beliefs.beliefs(network, phases, head_name, shape, batchnorm=batchnorm),
        head=head_name,
        classes=int(getattr(layer, "out_features", getattr(layer, "out_channels", 0))),
        pretrained=beliefs.trained(network, head_name) if pretrained is None else pretrained,
        every=every,
        on_event=on_event,
    )


def _unwrap_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """Return the optimizer inside the wrappers of accelerate or Lightning."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = inner
    if not isinstance(optimizer, torch.optim.Optimizer):
        expected = "a torch.optim.Optimizer, or several"
        raise Problem("watch: optimizer", found=f"a {type(optimizer).__name__}", expected=expected)
    return optimizer
