"""Layers whose attributes contradict their weights, or whose momentum spoils their running statistics. Imports torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from xferbench.lab.monitor import diagnosis, user_model

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

# Exact types: a subclass may store its weight in another form, such as packed 4-bit values.
SIZE_ATTRIBUTES = {nn.Linear: "out_features", nn.Conv1d: "out_channels", nn.Conv2d: "out_channels", nn.Conv3d: "out_channels"}
MIN_LARGE_MOMENTUM = 0.9  # share of the last batch in the running statistics


def find_wrong_sizes(model: nn.Module) -> dict[str, diagnosis.Message]:
    """Return an explanation for each weight whose number of rows is not the size that its layer states, by tensor name.

    A weight that a library has flattened or emptied (FSDP, ZeRO) is left out.
    """
    messages = {}
    for name, layer in user_model.named_modules(model).items():
        attribute = SIZE_ATTRIBUTES.get(type(layer))
        if attribute is not None and layer.weight.ndim > 1 and len(layer.weight) != (stated := getattr(layer, attribute)):
            tensor_name = f"{name}.weight".removeprefix(".")
            messages[tensor_name] = diagnosis.explain_size(attribute, stated, len(layer.weight))
    return messages


def find_unusable_momenta(layers: Mapping[str, nn.Module], frozen: Collection[str]) -> dict[str, float]:
    """Return the momentum of each layer whose running statistics cannot follow the batches, by the name of ``running_mean``.

    Args:
        layers: the layers in training mode that keep running statistics, by name.
        frozen: the names of tensors that should not change. Frozen statistics need no momentum.
    """
    momenta = {f"{name}.running_mean".removeprefix("."): getattr(layer, "momentum", None) for name, layer in layers.items()}
    return {
        name: momentum
        for name, momentum in momenta.items()
        if name not in frozen and momentum is not None and not 0 < momentum < MIN_LARGE_MOMENTUM
    }
