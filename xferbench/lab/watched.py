"""A watch over what the user has: a model and optimizers as they come, wrapped or bare."""

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
    """A watch over a model and its optimizers; of no phases, ``requires_grad`` says what is to train.

    Raises:
        Problem: for what is no model or optimizer, a head that is not there, or a word that means nothing for this model.
    """
    if not isinstance(model, nn.Module):
        raise Problem("watch: model", found=f"a {type(model).__name__}", expected="a torch.nn.Module")
    inner = tuple(_bare(optimizer) for optimizer in optimizers)
    bare = beliefs.bare(model)
    top = beliefs.head(bare, head)
    layer = beliefs.modules(bare).get(top)
    return Watch(
        bare,
        inner,
        beliefs.beliefs(bare, phases, top, shape, batchnorm=batchnorm),
        head=top,
        classes=int(getattr(layer, "out_features", getattr(layer, "out_channels", 0))),
        pretrained=beliefs.trained(bare, top) if pretrained is None else pretrained,
        every=every,
        on_event=on_event,
    )


def _bare(optimizer: Any) -> torch.optim.Optimizer:
    """The optimizer within what accelerate or Lightning wraps around it."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = inner
    if not isinstance(optimizer, torch.optim.Optimizer):
        expected = "a torch.optim.Optimizer, or several"
        raise Problem("watch: optimizer", found=f"a {type(optimizer).__name__}", expected=expected)
    return optimizer
