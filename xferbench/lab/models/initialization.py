"""The tensors that a fit starts from: a checkpoint's, or drawn anew, and a head for the target's classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from xferbench.core.errors import UserError
from xferbench.core.interventions import ZERO_HEAD, Head
from xferbench.lab.models import backbones, checkpoints, heads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from xferbench.core.pipeline import UserCode
    from xferbench.lab.models.backbones import LayerLayout

INIT_KINDS = ("pretrained", "random", "matched", "permuted")


def initial_tensors(
    arch: str,
    anatomy: LayerLayout,
    state: Mapping[str, Tensor] | None,
    *,
    init: str,
    head: Head,
    seeds: tuple[int, int],
    code: UserCode | None = None,
    transferred: str = "all",
) -> dict[str, Tensor]:
    """Parameters and buffers by name, on the CPU; no global random stream is touched.

    A random head or body is drawn as the network's author draws it, a head of two layers as torch draws layers. ``matched``
    tensors are normal with the mean and variance of the pretrained ones, and BatchNorm's statistics are fresh ones (Raghu et
    al. 2019, arXiv:1902.07208); ``permuted`` ones are the pretrained values shuffled within each tensor. BatchNorm layers then
    stay whole: with scale and variance of a channel parted, the features of a ResNet-20 in eval mode grew from 0.8 to 10⁹; with
    both kept, they had 0.8 again.

    Args:
        arch: what to build. anatomy: of that network.
        state: a checkpoint's tensors; None only where ``init`` is ``random``.
        init, head: as in :class:`xferbench.core.pipeline.Recipe`.
        seeds: of the body and of the head.
        code: what builds it, where that is the user's own.
        transferred: as in :class:`xferbench.core.pipeline.Recipe`.

    Raises:
        UserError: for a word that is not known, or weights that are missing or do not fit.
    """
    if init not in INIT_KINDS:
        raise UserError("unknown initialisation", found=f"init {init}", expected=f"init {', '.join(INIT_KINDS)}")
    model = _fresh(arch, anatomy, head, seeds[1], code)
    fresh = {name: tensor.clone() for name, tensor in _named(model).items()}
    own_head = {name: tensor for name, tensor in fresh.items() if backbones.is_within(name, [anatomy.head])}
    if head == ZERO_HEAD:
        own_head = {name: torch.zeros_like(tensor) for name, tensor in own_head.items()}
    if init == "random":
        return _named(_fresh(arch, anatomy, head, seeds[0], code)) | own_head
    if transferred != "all":
        whole = initial_tensors(arch, anatomy, state, init=init, head=head, seeds=seeds, code=code)
        kept = (*_lowest(transferred, anatomy), anatomy.head)
        drawn = _named(_fresh(arch, anatomy, head, seeds[0], code))
        return {name: tensor if backbones.is_within(name, kept) else drawn[name] for name, tensor in whole.items()}
    if state is None:
        raise UserError(
            "no pretrained weights", found=f"init {init}", expected="a checkpoint", do="set weights under [backbone]"
        )
    checkpoints.load_backbone(model, state, anatomy.head)
    loaded, generator = _named(model), torch.Generator().manual_seed(seeds[0])
    learnt = {name for name, _ in model.named_parameters()} - own_head.keys()
    if init == "matched":
        return fresh | _each(loaded, learnt, lambda tensor: _normal_like(tensor, generator)) | own_head
    if init == "permuted":
        parted = {name for name in learnt if not backbones.is_within(name, anatomy.batchnorm)}
        return loaded | _each(loaded, parted, lambda tensor: _permuted(tensor, generator)) | own_head
    return loaded | own_head


def _lowest(word: str, anatomy: LayerLayout) -> list[str]:
    """Name prefixes of the groups that are transferred."""
    kind, _, count = word.partition(":")
    if kind == "low" and count.isdecimal() and 1 <= int(count) <= len(anatomy.groups):
        return [prefix for group in anatomy.groups[: int(count)] for prefix in group.prefixes]
    groups = ", ".join(group.name for group in anatomy.groups)
    expected = f"all, or low:N with N from 1 to {len(anatomy.groups)} (groups from the input up: {groups})"
    raise UserError("[recipe] transferred", found=word, expected=expected)


def _fresh(arch: str, anatomy: LayerLayout, head: Head, seed: int, code: UserCode | None) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach the accelerators' streams too
        return heads.build_with_head(arch, anatomy, head, code)


def _named(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in (*model.named_parameters(), *model.named_buffers())}


def _each(values: Mapping[str, Tensor], names: Iterable[str], draw: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    return {name: draw(values[name]) for name in sorted(names)}


def _normal_like(tensor: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(tensor.shape, generator=generator) * tensor.std(correction=0) + tensor.mean()


def _permuted(tensor: Tensor, generator: torch.Generator) -> Tensor:
    return tensor.flatten()[torch.randperm(tensor.numel(), generator=generator)].view(tensor.shape)
