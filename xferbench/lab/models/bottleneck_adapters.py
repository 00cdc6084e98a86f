"""Bottleneck adapters: to the output of each layer group is added what a narrow non-linear map makes of it.

An adapter's tensors are parameters of the last layer of its group to be called, beside those that it has, and a hook adds its
output: no module changes its name or gets a child, so that checkpoints load, groups keep their prefixes and torch.fx cuts as
before. The up-projection begins at 0, so that the network begins as what it was.

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
from xferbench.core.interventions import Adapters
from xferbench.lab.models import backbones
from xferbench.lab.models.backbones import ADAPTER_NAMES
from xferbench.lab.training import seeds

if TYPE_CHECKING:
    from collections.abc import Iterable

    from xferbench.core.pipeline import Phase
    from xferbench.lab.data.batch import Shape
    from xferbench.lab.models.backbones import LayerLayout

DOWN, DOWN_BIAS, UP, UP_BIAS = ADAPTER_NAMES


def adapter_channels(phases: Iterable[Phase]) -> int:
    """Channels of the adapters that some phases train, 0 where none trains any.

    Raises:
        UserError: where they ask for different ones: a network has one adapter after each group.
    """
    adapters = [phase.trainable for phase in phases if isinstance(phase.trainable, Adapters)]
    ranks = {adapter.channels for adapter in adapters}
    if len(ranks) > 1:
        raise UserError(
            "adapters of several sizes in one fit", found=", ".join(map(str, adapters)), expected="the same R in each adapter:R"
        )
    return next(iter(ranks), 0)


def insert_adapters(model: nn.Module, anatomy: LayerLayout, shape: Shape, rank: int) -> None:
    """Put an adapter of ``rank`` channels after each layer group of a network for inputs of a shape.

    Raises:
        UserError: where no group gives one tensor with channels.
    """
    found = adapter_places(model, anatomy, shape)
    if not found:
        expected = "a layer group whose last layer gives one tensor [batch, …] with channels"
        raise UserError("the backbone has no place for an adapter", found=f"{len(anatomy.groups)} groups", expected=expected)
    for name, (width, axis) in found.items():
        layer = model.get_submodule(name)
        shapes = {DOWN: (rank, width), DOWN_BIAS: (rank,), UP: (width, rank), UP_BIAS: (width,)}
        for own, sides in shapes.items():
            layer.register_parameter(own, nn.Parameter(torch.zeros(sides)))
        layer.register_forward_hook(partial(_added, axis=axis))


def adapter_places(model: nn.Module, anatomy: LayerLayout, shape: Shape) -> dict[str, tuple[int, int]]:
    """The layers that take an adapter, the last of each group to be called: how many channels they give, on which axis.

    Channels are the second axis of an image's features and the last of a token's; where images have them last (Swin), the last
    learnt layer, which is as wide, shows it.
    """
    outputs: dict[str, Tensor] = {}

    def note(_module: nn.Module, _inputs: object, output: object, *, name: str) -> None:
        outputs.pop(name, None)  # what is called again comes later
        if isinstance(output, Tensor) and output.ndim > 1:
            outputs[name] = output

    hooks = [layer.register_forward_hook(partial(note, name=name)) for name, layer in model.named_modules()]
    try:
        called, _ = backbones.trace_modules(model, shape)
    finally:
        for hook in hooks:
            hook.remove()
    found = {}
    for group in anatomy.groups:
        name = next((name for name in reversed(outputs) if name in group.prefixes), "")
        if name:
            x, learnt = outputs[name], [model.get_submodule(one) for one in called if backbones.is_within(one, [name])]
            last = next((own[0] for layer in reversed(learnt) if (own := list(layer.parameters(recurse=False)))), x[0])
            axis = -1 if x.ndim < 4 or (x.shape[1] != len(last) == x.shape[-1]) else 1
            found[name] = (x.shape[axis], axis)
    return found


def initial_adapters(model: nn.Module, seed: int) -> dict[str, Tensor]:
    """The adapters' tensors at the start, by name: down-projections as torch draws a linear layer's weights, all else 0."""
    rng, found = seeds.numpy_stream(seed, seeds.ADAPTER), {}
    for name, parameter in sorted(model.named_parameters()):
        if name.endswith(DOWN):
            found[name] = torch.from_numpy(rng.uniform(-1, 1, parameter.shape) / sqrt(parameter.shape[1])).to(parameter.dtype)
        elif backbones.is_adapter(name):
            found[name] = torch.zeros_like(parameter).detach()
    return found


def _added(layer: nn.Module, _inputs: object, output: Tensor, *, axis: int) -> Tensor:
    narrow = F.relu(F.linear(output.movedim(axis, -1), getattr(layer, DOWN), getattr(layer, DOWN_BIAS)))
    return output + F.linear(narrow, getattr(layer, UP), getattr(layer, UP_BIAS)).movedim(-1, axis)
