"""Replace the head of a network, under the same name: by an MLP, or by the layers of a finished network. Imports torch."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from xferbench.core.errors import UserError
from xferbench.core.interventions import Head, MLPHead
from xferbench.lab.models import backbones

if TYPE_CHECKING:
    from collections.abc import Callable

    from xferbench.core.finished_head import FinishedHead, HeadLayer
    from xferbench.core.pipeline import UserCode
    from xferbench.lab.models.backbones import LayerLayout


LAYERS: dict[str, Callable[[HeadLayer, int], nn.Module]] = {  # kind of a layer → how to build it, with its number of outputs
    "linear": lambda layer, outputs: nn.Linear(layer.inputs, outputs, bias="bias" in layer.parts),
    "batchnorm": lambda layer, _: nn.BatchNorm1d(layer.inputs, affine="weight" in layer.parts),
    "layernorm": lambda layer, _: nn.LayerNorm(layer.inputs),
    "prelu": lambda *_: nn.PReLU(),
    "relu": lambda *_: nn.ReLU(),
    "hardswish": lambda *_: nn.Hardswish(),
    "silu": lambda *_: nn.SiLU(),
    "gelu": lambda *_: nn.GELU(),
    "tanh": lambda *_: nn.Tanh(),
    "identity": lambda *_: nn.Identity(),
}


class FeatureHead(nn.Sequential):
    """Layers that take features [images, channels], or feature maps, which are averaged first."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [images, outputs]."""
        logits: Tensor = super().forward(x.flatten(2).mean(2) if x.ndim > 2 else x)
        return logits


class MaxAndAveragePool(nn.Module):
    """The maximum of each feature map, then the average of each."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the pooled maps [images, 2 × channels, 1, 1]."""
        return torch.cat([nn.functional.adaptive_max_pool2d(x, 1), nn.functional.adaptive_avg_pool2d(x, 1)], 1)


def build_with_head(
    arch: str,
    layout: LayerLayout,
    head: Head,
    code: UserCode | None = None,
    pooling: str = "",
    finished: FinishedHead | None = None,
) -> nn.Module:
    """Build a network with random weights like :func:`xferbench.lab.models.backbones.build`.

    It has the head of a recipe, or that of a finished network.
    """
    model = backbones.build(arch, layout.classes, code, pooling)
    return replace_head(model, layout, head) if finished is None else replace_by_finished(model, finished, layout.classes)


def replace_by_finished(model: nn.Module, head: FinishedHead, outputs: int) -> nn.Module:
    """Replace the head of a network by that of a finished network, with another number of outputs if necessary.

    The network is changed in place and returned.

    Raises:
        UserError: if the features are pooled twice, and the network has no pooling layer to replace.
    """
    last = len(head.layers) - 1
    layers = (LAYERS[layer.kind](layer, outputs if index == last else layer.outputs) for index, layer in enumerate(head.layers))
    if head.has_max_pooling:
        if not (pooling := pooling_layer(model)):
            raise UserError("the head needs the maximum and the average of each feature map", found="no pooling layer")
        _set_layer(model, pooling, MaxAndAveragePool())
    training = model.get_submodule(head.place).training
    return _set_layer(model, head.place, FeatureHead(*layers).train(training))


def pooling_layer(model: nn.Module) -> str:
    """Return the child of a network that averages each of the last feature maps, or ""."""
    pools = [name for name, layer in model.named_children() if isinstance(layer, nn.AdaptiveAvgPool2d)]
    return next((name for name in pools if model.get_submodule(name).output_size in (1, (1, 1))), "")


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


def head_width(model: nn.Module, head: str) -> int:
    """Return the number of features that a head takes, 0 for a head without tensors."""
    tensor = next(iter(model.get_submodule(head).state_dict().values()), torch.empty(0))
    return int(tensor.shape[1] if tensor.ndim > 1 else tensor.numel())


def _set_layer(model: nn.Module, name: str, layer: nn.Module) -> nn.Module:
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, layer)
    return model
