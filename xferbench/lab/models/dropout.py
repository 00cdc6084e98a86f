"""Dropout layers, and their probability during training. Imports torch."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch.nn.modules.dropout import _DropoutNd as Dropout

from xferbench.lab.models.backbones import is_within

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn


def dropout_layers(module: nn.Module, head: str) -> dict[str, Dropout]:
    """Return the dropout layers below the head, by name."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, Dropout) and not is_within(name, [head])}


@contextmanager
def set_probability(module: nn.Module, probability: float | None, head: str) -> Iterator[None]:
    """Set the probability of all dropout layers below the head, unless it is None. Restore it on exit.

    Networks that keep the probability elsewhere than in a layer, as a number of their configuration, do not change.
    """
    if probability is None:
        yield
        return
    layers = dropout_layers(module, head)
    before = {name: layer.p for name, layer in layers.items()}
    try:
        for layer in layers.values():
            layer.p = probability
        yield
    finally:
        for name, layer in layers.items():
            layer.p = before[name]
