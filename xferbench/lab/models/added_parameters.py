"""What a recipe adds to a network: bottleneck adapters, a prompt or a prefix. No checkpoint contains it. Imports torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xferbench.core.errors import UserError
from xferbench.core.interventions import ADDED_KINDS, Adapters, PrefixTokens, PromptTokens
from xferbench.lab.models import bottleneck_adapters, prefix_tuning, prompt_tuning

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from torch import Tensor, nn

    from xferbench.core.interventions import Trainable
    from xferbench.core.pipeline import Phase
    from xferbench.lab.data.batch import Shape
    from xferbench.lab.models.backbones import LayerLayout


def kinds(phases: Iterable[Phase]) -> tuple[Trainable, ...]:
    """Return what some phases add to their network, each value once.

    Raises:
        UserError: if the phases need several sizes of one kind. A network has one adapter after each group, and one prompt.
    """
    added = tuple(dict.fromkeys(phase.trainable for phase in phases if isinstance(phase.trainable, ADDED_KINDS)))
    for kind in ADDED_KINDS:
        sizes = [value for value in added if isinstance(value, kind)]
        if len(sizes) > 1:
            expected = f"the same number in each {kind.spelling}"
            raise UserError(
                f"{kind.spelling} of several sizes in one training", found=", ".join(map(str, sizes)), expected=expected
            )
    return added


def insert(module: nn.Module, layout: LayerLayout, shape: Shape, added: Iterable[Trainable]) -> None:
    """Add parameters to a network in place.

    Args:
        module: the network.
        layout: its layer groups, without what is added.
        shape: the shape of one input.
        added: values of :data:`~xferbench.core.interventions.ADDED_KINDS`.

    Raises:
        UserError: if the network has no place for a kind.
    """
    for value in added:
        if isinstance(value, Adapters):
            bottleneck_adapters.insert_adapters(module, layout, shape, value.channels)
        elif isinstance(value, PromptTokens):
            prompt_tuning.insert_prompt(module, value.tokens)
        elif isinstance(value, PrefixTokens):
            prefix_tuning.insert_prefix(module, value.tokens)


def places(module: nn.Module, layout: LayerLayout, shape: Shape) -> dict[str, Collection[str]]:
    """Return the layers of a network, which runs, that can take each kind; none for a kind that it cannot take."""
    return {
        "adapter": bottleneck_adapters.adapter_places(module, layout, shape),
        "prompt": prompt_tuning.prompt_place(module),
        "prefix": prefix_tuning.prefix_places(module),
    }


def initial_tensors(module: nn.Module, tensors: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Return the initial tensors of everything that was added to a network, by name.

    Args:
        module: the network with what was added.
        tensors: its other tensors at the start of the training, on the CPU.
        seed: the seed of the training.
    """
    return {
        **bottleneck_adapters.initial_adapters(module, seed),
        **prompt_tuning.initial_prompt(module, tensors, seed),
        **prefix_tuning.initial_prefix(module, tensors, seed),
    }
