"""Bottleneck adapters: add a narrow nonlinear map to the output of each layer group. Imports torch.

The parameters of an adapter are registered in the last called layer of its group, and a hook adds its output. So no module is
renamed or inserted, and checkpoints, layer groups and torch.fx work as before.

References:
    Houlsby et al. Parameter-efficient transfer learning for NLP. ICML 2019, arXiv:1902.00751.
    Rebuffi, Bilen, Vedaldi. Efficient parametrization of multi-domain deep neural networks. CVPR 2018, arXiv:1803.10082.
"""

from __future__ import annotations

from functools import partial
from math import sqrt
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xferbench.core.errors import UserError
from xferbench.lab.models import backbones
from xferbench.lab.models.backbones import ADDED_NAMES
from xferbench.lab.training import seeds

if TYPE_CHECKING:
    from xferbench.lab.data.batch import Shape
    from xferbench.lab.models.backbones import LayerLayout

DOWN, DOWN_BIAS, UP, UP_BIAS = ADDED_NAMES["adapter"]


def insert_adapters(model: nn.Module, layout: LayerLayout, shape: Shape, channels: int) -> None:
    """Add an adapter after each layer group of a network. The adapters are 0, so the network computes what it did before.

    Args:
        model: the network, which is changed in place.
        layout: its layer groups.
        shape: the shape of one input.
        channels: the number of channels of each adapter.

    Raises:
        UserError: if no group returns one tensor with channels.
    """
    places = adapter_places(model, layout, shape)
    if not places:
        expected = "a layer group whose last layer returns one tensor [batch, …] with channels"
        raise UserError("the backbone has no place for an adapter", found=f"{len(layout.groups)} groups", expected=expected)
    for name, (width, axis) in places.items():
        layer = model.get_submodule(name)
        shapes = {DOWN: (channels, width), DOWN_BIAS: (channels,), UP: (width, channels), UP_BIAS: (width,)}
        for parameter_name, parameter_shape in shapes.items():
            layer.register_parameter(parameter_name, nn.Parameter(torch.zeros(parameter_shape)))
        layer.register_forward_hook(partial(_add_adapter_output, axis=axis))


def adapter_places(model: nn.Module, layout: LayerLayout, shape: Shape) -> dict[str, tuple[int, int]]:
    """Return the layers that can have an adapter, with the number and the axis of their output channels.

    The layer of a group is the last one that is called. The channels of an image are on axis 1, and those of a token on the
    last axis. If an image has its channels last (Swin), the width of the last layer with parameters shows this.
    """
    outputs: dict[str, Tensor] = {}

    def record_output(_module: object, _inputs: object, output: object, *, name: str) -> None:
        outputs.pop(name, None)  # a module that is called again moves to the end
        if isinstance(output, Tensor) and output.ndim > 1:
            outputs[name] = output

    hooks = [layer.register_forward_hook(partial(record_output, name=name)) for name, layer in model.named_modules()]
    try:
        called, _ = backbones.trace_modules(model, shape)
    finally:
        for hook in hooks:
            hook.remove()
    places = {}
    for group in layout.groups:
        name = next((name for name in reversed(outputs) if name in group.prefixes), "")
        if name:
            output = outputs[name]
            width = _last_width(model, [inner for inner in called if backbones.is_within(inner, [name])], len(output[0]))
            has_channels_last = output.ndim < 4 or (output.shape[1] != width == output.shape[-1])
            axis = -1 if has_channels_last else 1
            places[name] = (output.shape[axis], axis)
    return places


def _last_width(model: nn.Module, called: list[str], default: int) -> int:
    """Return the number of outputs of the last called layer with parameters."""
    for name in reversed(called):
        for parameter in model.get_submodule(name).parameters(recurse=False):
            return len(parameter)
    return default


def initial_adapters(model: nn.Module, seed: int) -> dict[str, Tensor]:
    """Return the initial tensors of all adapters, by name.

    Down-projections have the distribution that torch uses for linear layers. All other tensors are 0.
    """
    rng, tensors = seeds.numpy_stream(seed, seeds.ADAPTER), {}
    for name, parameter in sorted(model.named_parameters()):
        if name.endswith(DOWN):
            values = rng.uniform(-1, 1, parameter.shape) / sqrt(parameter.shape[1])
            tensors[name] = torch.from_numpy(values).to(parameter.dtype)
        elif name.rpartition(".")[2] in ADDED_NAMES["adapter"]:
            tensors[name] = torch.zeros_like(parameter).detach()
    return tensors


def _add_adapter_output(layer: nn.Module, _inputs: object, output: Tensor, *, axis: int) -> Tensor:
    hidden = F.relu(F.linear(output.movedim(axis, -1), getattr(layer, DOWN), getattr(layer, DOWN_BIAS)))
    return output + F.linear(hidden, getattr(layer, UP), getattr(layer, UP_BIAS)).movedim(-1, axis)
