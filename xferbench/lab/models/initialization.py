"""The tensors at the start of a training: pretrained or random, with a head for the classes of the target. Imports torch."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from xferbench.core.errors import UserError
from xferbench.core.interventions import (
    LAYER_TRANSFERS,
    TRANSFER_ALL,
    ZERO_HEAD,
    Head,
    Initialization,
    LayerTransfer,
    MatchedMoments,
    PermutedWeights,
    Pretrained,
    RandomWeights,
    TransferLowest,
)
from xferbench.lab.models import backbones, checkpoints, heads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from xferbench.core.pipeline import UserCode
    from xferbench.lab.models.backbones import LayerLayout


def initial_tensors(
    arch: str,
    layout: LayerLayout,
    state: Mapping[str, Tensor] | None,
    *,
    init: Initialization,
    head: Head,
    seeds: tuple[int, int],
    code: UserCode | None = None,
    pooling: str = "",
    transferred: LayerTransfer = TRANSFER_ALL,
) -> dict[str, Tensor]:
    """Return the parameters and buffers of a network by name, on the CPU. No global random stream changes.

    Random tensors have the initialization of the network's author, and an MLP head has that of torch.

    ``matched`` tensors are normal with the mean and variance of the pretrained ones, with fresh statistics of BatchNorm (Raghu
    et al. 2019, arXiv:1902.07208).

    ``permuted`` tensors are the pretrained values, shuffled within each tensor. BatchNorm layers are not shuffled: if the scale
    and variance of a channel were separated, the features of a ResNet-20 in evaluation mode grew from 0.8 to 10⁹; with both
    kept, they stayed at 0.8.

    Args:
        arch: the architecture.
        layout: its layer groups and head.
        state: the tensors of a checkpoint; None is valid only for random weights.
        init: as in :class:`xferbench.core.pipeline.Recipe`.
        head: as in :class:`xferbench.core.pipeline.Recipe`.
        seeds: the seeds of the body and of the head.
        code: user code that builds the network, if there is any.
        pooling: as in :class:`xferbench.core.pipeline.Backbone`.
        transferred: as in :class:`xferbench.core.pipeline.Recipe`.

    Raises:
        TypeError: if the lab must train the initial weights first, or if the initialization or the transfer is unknown.
        UserError: if the weights are missing or do not match the network, or if it has fewer layer groups than are transferred.
    """
    if not isinstance(init, Pretrained | RandomWeights | MatchedMoments | PermutedWeights):
        raise TypeError(f"not an initialization from a checkpoint: {init}")
    if not isinstance(transferred, LAYER_TRANSFERS):
        raise TypeError(f"unknown layer transfer: {transferred}")
    body_seed, head_seed = seeds
    build = partial(_build_random, arch, layout, head, code, pooling)
    model = build(head_seed)
    random_tensors = {name: tensor.clone() for name, tensor in _named_tensors(model).items()}
    head_tensors = {name: tensor for name, tensor in random_tensors.items() if backbones.is_within(name, [layout.head])}
    if head == ZERO_HEAD:
        head_tensors = {name: torch.zeros_like(tensor) for name, tensor in head_tensors.items()}
    if isinstance(init, RandomWeights):
        return _named_tensors(build(body_seed)) | head_tensors
    if isinstance(transferred, TransferLowest):
        tensors = initial_tensors(arch, layout, state, init=init, head=head, seeds=seeds, code=code, pooling=pooling)
        prefixes = (*_transferred_prefixes(transferred, layout), layout.head)
        random_body = _named_tensors(build(body_seed))
        return {name: tensor if backbones.is_within(name, prefixes) else random_body[name] for name, tensor in tensors.items()}
    if state is None:
        raise UserError(
            "no pretrained weights", found=f"init {init}", expected="a checkpoint", do="set weights under [backbone]"
        )
    checkpoints.load_backbone(model, state, layout.head)
    pretrained, generator = _named_tensors(model), torch.Generator().manual_seed(body_seed)
    body_names = {name for name, _ in model.named_parameters()} - head_tensors.keys()
    if isinstance(init, MatchedMoments):
        return random_tensors | _map_sorted(pretrained, body_names, lambda x: _normal_like(x, generator)) | head_tensors
    if isinstance(init, PermutedWeights):
        shuffled_names = {name for name in body_names if not backbones.is_within(name, layout.batchnorm)}
        return pretrained | _map_sorted(pretrained, shuffled_names, lambda x: _permute(x, generator)) | head_tensors
    return pretrained | head_tensors


def _transferred_prefixes(transferred: TransferLowest, layout: LayerLayout) -> list[str]:
    """Return the name prefixes of the layer groups that keep their pretrained tensors.

    Raises:
        UserError: if there are fewer groups.
    """
    if transferred.groups <= len(layout.groups):
        return [prefix for group in layout.groups[: transferred.groups] for prefix in group.prefixes]
    groups = ", ".join(group.name for group in layout.groups)
    expected = f"all, or low:N with N from 1 to {len(layout.groups)} (groups from the input up: {groups})"
    raise UserError("[recipe] transferred", found=str(transferred), expected=expected)


def _build_random(arch: str, layout: LayerLayout, head: Head, code: UserCode | None, pooling: str, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed the accelerators
        return heads.build_with_head(arch, layout, head, code, pooling)


def _named_tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in (*model.named_parameters(), *model.named_buffers())}


def _map_sorted(tensors: Mapping[str, Tensor], names: Iterable[str], function: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """Apply a function to some tensors in the order of their names, so that random draws are reproducible."""
    return {name: function(tensors[name]) for name in sorted(names)}


def _normal_like(tensor: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(tensor.shape, generator=generator) * tensor.std(correction=0) + tensor.mean()


def _permute(tensor: Tensor, generator: torch.Generator) -> Tensor:
    return tensor.flatten()[torch.randperm(tensor.numel(), generator=generator)].view(tensor.shape)
