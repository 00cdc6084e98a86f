"""A head of two layers in the place of a network's plain one, under its name, so that all below it stays what it was."""

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


def build_with_head(arch: str, anatomy: LayerLayout, head: Head, code: UserCode | None = None) -> nn.Module:
    """A network with random weights, as :func:`xferbench.lab.models.backbones.build`, with a recipe's head."""
    return replace_head(backbones.build(arch, anatomy.classes, code), anatomy, head)


def replace_head(model: nn.Module, anatomy: LayerLayout, head: Head) -> nn.Module:
    """Put a recipe's head in the place of a network's plain one, drawn as torch draws layers.

    Raises:
        UserError: where the network's own head is no linear layer.
    """
    if not isinstance(head, MLPHead):
        return model
    plain = model.get_submodule(anatomy.head)
    if not isinstance(plain, nn.Linear) or not anatomy.head:
        found = f"{anatomy.head or 'the network itself'}, a {type(plain).__name__}"
        raise UserError(f"head {head} needs a linear head to replace", found=found, expected="Linear", do="leave head out")
    dropout = nn.Dropout(head.dropout)
    layers = nn.Linear(plain.in_features, head.units), nn.ReLU(), dropout, nn.Linear(head.units, anatomy.classes)
    return _replaced(model, anatomy.head, nn.Sequential(*layers).train(plain.training))


def with_linear_head(model: nn.Module, anatomy: LayerLayout) -> nn.Module:
    """The network with one linear layer for a head: itself, or a copy where it has two."""
    if not isinstance(model.get_submodule(anatomy.head), nn.Sequential):
        return model
    return _replaced(deepcopy(model), anatomy.head, nn.Linear(anatomy.features, anatomy.classes))


def first_layer(model: nn.Module, head: str) -> str:
    """The name of the layer that a head's inputs enter."""
    return f"{head}.0" if isinstance(model.get_submodule(head), nn.Sequential) else head


def last_layer(model: nn.Module, head: str) -> str:
    """The name of the layer from which a head's outputs come."""
    layer = model.get_submodule(head)
    return f"{head}.{len(layer) - 1}" if isinstance(layer, nn.Sequential) else head


def _replaced(model: nn.Module, name: str, layer: nn.Module) -> nn.Module:
    above, _, own = name.rpartition(".")
    setattr(model.get_submodule(above), own, layer)
    return model
