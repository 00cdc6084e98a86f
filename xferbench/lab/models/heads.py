"""Replace the linear head of a network by an MLP of two layers, under the same name. Imports torch."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING

from torch import nn

from xferbench.core.errors import UserError
from xferbench.core.interventions import Head, MLPHead
from xferbench.lab.models import backbones

if TYPE_CHECKING:
    from xferbench.core.pipeline import UserCode
    from xferbench.lab.models.backbones import LayerLayout


def build_with_head(arch: str, layout: LayerLayout, head: Head, code: UserCode | None = None) -> nn.Module:
    """Build a network with random weights like :func:`xferbench.lab.models.backbones.build`, with the head of a recipe."""
    return replace_head(backbones.build(arch, layout.classes, code), layout, head)


def replace_head(model: nn.Module, layout: LayerLayout, head: Head) -> nn.Module:
    """Replace the linear head of a network by the head of a recipe, with the initialization of torch.

    The network is changed in place and returned.

    Raises:
        UserError: if the head of the network is not a linear layer.
    """
    if not isinstance(head, MLPHead):
        return model
    linear = model.get_submodule(layout.head)
    if not isinstance(linear, nn.Linear) or not layout.head:
        found = f"{layout.head or 'the network itself'}, a {type(linear).__name__}"
        raise UserError(f"head {head} needs a linear head to replace", found=found, expected="Linear", do="leave head out")
    dropout = nn.Dropout(head.dropout)
    layers = nn.Linear(linear.in_features, head.units), nn.ReLU(), dropout, nn.Linear(head.units, layout.classes)
    return _set_layer(model, layout.head, nn.Sequential(*layers).train(linear.training))


def with_linear_head(model: nn.Module, layout: LayerLayout) -> nn.Module:
    """Return a network with a linear head: the network itself, or a copy if its head is an MLP."""
    if not isinstance(model.get_submodule(layout.head), nn.Sequential):
        return model
    return _set_layer(deepcopy(model), layout.head, nn.Linear(layout.features, layout.classes))


def first_layer(model: nn.Module, head: str) -> str:
    """Return the name of the layer that takes the inputs of a head."""
    return f"{head}.0" if isinstance(model.get_submodule(head), nn.Sequential) else head


def last_layer(model: nn.Module, head: str) -> str:
    """Return the name of the layer that computes the outputs of a head."""
    layer = model.get_submodule(head)
    return f"{head}.{len(layer) - 1}" if isinstance(layer, nn.Sequential) else head


def _set_layer(model: nn.Module, name: str, layer: nn.Module) -> nn.Module:
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, layer)
    return model
