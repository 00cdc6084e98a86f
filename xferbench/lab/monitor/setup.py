"""Builds the monitor of a user's model and optimizers, wrapped or not. Imports torch."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from xferbench.core.errors import UserError, suggest
from xferbench.lab.monitor import events, user_model
from xferbench.lab.monitor.watch import Watch
from xferbench.lab.training import expected_changes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xferbench.core.pipeline import Phase
    from xferbench.lab.data.batch import Shape


def make_watch(
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    *,
    phases: Sequence[Phase],
    batchnorm: bool,
    pretrained: bool | None,
    head: str,
    shape: Shape | int | None,
    max_length: int | None,
    every: int,
    on_event: str,
) -> Watch:
    """Build the monitor of a model and its optimizers. Without phases, ``requires_grad`` decides what trains.

    Raises:
        UserError: if an argument is not usable, the head does not exist, or a ``trainable`` setting does not fit the model.
    """
    if on_event not in events.EVENT_ACTIONS:
        raise UserError("watch: on_event", found=repr(on_event), expected=suggest(str(on_event), events.EVENT_ACTIONS))
    if type(every) is not int or every < 1:
        raise UserError("watch: every", found=repr(every), expected="a whole number of steps, 1 or more")
    if max_length is not None and (type(max_length) is not int or max_length < 1):
        raise UserError("watch: max_length", found=repr(max_length), expected="a whole number of tokens, 1 or more, or None")
    if not isinstance(model, nn.Module):
        raise UserError("watch: model", found=f"a {type(model).__name__}", expected="a torch.nn.Module")
    inner_optimizers = tuple(_unwrap_optimizer(optimizer) for optimizer in optimizers)
    network = user_model.unwrap(model)
    head_name = user_model.find_head(network, head)
    layer = user_model.named_modules(network).get(head_name)
    trainable_names = partial(user_model.trainable_names, network, head_name=head_name, shape=shape)
    return Watch(
        network,
        inner_optimizers,
        expected_changes.changes_by_phase(phases, trainable_names, states_batchnorm=batchnorm),
        head=head_name,
        classes=int(getattr(layer, "out_features", getattr(layer, "out_channels", 0))),
        pretrained=user_model.is_pretrained(network, head_name) if pretrained is None else pretrained,
        max_length=max_length,
        every=every,
        on_event=on_event,
    )


def _unwrap_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """Return the optimizer inside the wrappers of accelerate or Lightning."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = inner
    if not isinstance(optimizer, torch.optim.Optimizer):
        expected = "a torch.optim.Optimizer, or several"
        raise UserError("watch: optimizer", found=f"a {type(optimizer).__name__}", expected=expected)
    return optimizer
