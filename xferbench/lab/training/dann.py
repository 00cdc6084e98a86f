"""Features that do not tell two domains apart: what learns to tell them is trained beside, its gradient reversed.

Both batches, the target's and as many unlabelled images, pass in evaluation mode, as they are served, and apart from the pass
that the labels teach: so neither a batch's own statistics nor dropout tell them apart, no running statistics and no random
stream are moved by them, and with a strength of 0 the network is trained as if there were none, bit for bit.

References:
    Ganin et al. Domain-adversarial training of neural networks. JMLR 2016, arXiv:1505.07818.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import exp
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap
from torch.nn import functional as F

from xferbench.core.errors import UserError
from xferbench.core.interventions import DANN
from xferbench.lab.data import augmentation
from xferbench.lab.models import batchnorm, heads
from xferbench.lab.training import feature_cache, seeds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from xferbench.core.pipeline import Phase
    from xferbench.core.trial import TrainingSpec
    from xferbench.lab.data.datasets import Split
    from xferbench.lab.training.network import Architecture, PhaseModel, Tensors

HIDDEN_UNITS = 64  # between a classifier's two layers
DISCRIMINATOR_LR = (
    1e-2  # at least: one that learns as slowly as a network that is fine-tuned is outrun by it, and what it teaches is noise
)
RAMP_STEEPNESS = 10.0  # of the ramp on which the strength rises (Ganin et al. 2016)


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainDiscriminator:
    """The members' classifiers of domains: stacked tensors [members, …] that are trained along, and dropped in the end.

    ``images`` [n, …] 8-bit are of the other domain; ``layer`` is the one that their features enter in the network.
    """

    strength: float
    tensors: Tensors
    images: Tensor
    layer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DannBatch:
    """A rival in one phase: ``x`` [members][n, …] in the form that the phase's body takes, ``index`` [steps, members, batch].

    ``begun`` of ``total`` steps lie before it.
    """

    rival: DomainDiscriminator
    x: tuple[Tensor, ...]
    index: Tensor
    begun: int
    total: int


def discriminator(
    fits: Sequence[TrainingSpec], network: Architecture, unlabelled: Split | None, shape: tuple[int, ...]
) -> DomainDiscriminator | None:
    """The classifiers that some fits ask for, drawn as torch draws layers from each one's seed; None where they ask for none.

    Args:
        fits: equal but for their seeds. network: their structure. unlabelled: images of the other domain.
        shape: of one of the target's images.

    Raises:
        UserError: where the images have another shape. ValueError: where there are none.
    """
    dann = fits[0].regularizer
    if not isinstance(dann, DANN):
        return None
    if unlabelled is None:
        raise ValueError(f"regularizer {dann}: without images of another domain")
    if unlabelled.images.shape[1:] != shape:
        found = f"{unlabelled.images.shape[1:]} beside {shape}"
        raise UserError("[shifted] data: images of another shape than the target's", found=found, expected="the same shape")
    wide = network.anatomy.features
    sizes = {"1.weight": (HIDDEN_UNITS, wide), "1.bias": (HIDDEN_UNITS,), "2.weight": (1, HIDDEN_UNITS), "2.bias": (1,)}
    rngs = [seeds.numpy_stream(fit.seed, seeds.DISCRIMINATOR) for fit in fits]
    drawn = {name: np.stack([rng.uniform(-1, 1, size) for rng in rngs]) for name, size in sizes.items()}
    inner = {"1": wide**-0.5, "2": HIDDEN_UNITS**-0.5}
    tensors = {name: torch.from_numpy(one * inner[name[0]]).float().to(network.device) for name, one in drawn.items()}
    return DomainDiscriminator(
        strength=dann.strength,
        tensors={name: tensor.requires_grad_() for name, tensor in tensors.items()},
        images=torch.from_numpy(np.array(unlabelled.images)),
        layer=heads.first_layer(network.module, network.anatomy.head),
    )


def dann_batch(
    rival: DomainDiscriminator,
    lower: nn.Module | None,
    members: Sequence[Tensors],
    phase: Phase,
    number: int,
    fits: Sequence[TrainingSpec],
    network: Architecture,
) -> DannBatch:
    """A rival in a phase: its images are drawn for each seed, and taken through what is frozen once."""
    if lower is None:
        x = (rival.images.to(network.device),) * len(fits)
    else:
        ready, device, cache = fits[0].preprocessing, network.device, network.cache
        x = tuple(
            feature_cache.compute_activations(lower, own, rival.images, ready, device, cache).to(device) for own in members
        )
    size, count = (phase.steps, phase.batch_size), len(rival.images)
    drawn = [seeds.numpy_stream(fit.seed, seeds.DISCRIMINATOR, number).integers(count, size=size) for fit in fits]
    return DannBatch(
        rival=rival,
        x=x,
        index=torch.from_numpy(np.stack(drawn, axis=1)).to(network.device),
        begun=sum(one.steps for one in fits[0].phases[:number]),
        total=sum(one.steps for one in fits[0].phases),
    )


def dann_loss(
    bout: DannBatch, step: int, rest: PhaseModel, tensors: Tensors, batches: Sequence[Tensor], draws: Tensor | None
) -> Tensor:
    """The members' terms [members]: each has the value 0, so that a curve tells of the labels alone, and the gradient of both.

    Args:
        bout: of the phase. step: of it, counted from 0. rest: what the phase runs. tensors: the members', stacked.
        batches: [members][batch, …] of the target, as they were given. draws: of augmentation, which other images share.
    """
    others = [x[index[: len(own)]] for x, index, own in zip(bout.x, bout.index[step], batches, strict=True)]
    x = [torch.cat(pair) for pair in zip(batches, augmentation.augment_batches(others, draws, step), strict=True)]
    entering = partial(_entering, rest, bout.rival.layer)
    with batchnorm.preserve_modes(rest.module), feature_cache.autocast(x[0].device):
        rest.module.eval()
        if len(x) == 1:
            found = entering({name: tensor.squeeze(0) for name, tensor in tensors.items()}, x[0])[None]
        else:
            found = vmap(entering, randomness="different")(tensors, torch.stack(x))
    strength = bout.rival.strength * dann_ramp((bout.begun + step) / bout.total)
    logits = _told(bout.rival.tensors, _reversed(found.float(), strength))
    domain = (torch.arange(logits.shape[1], device=logits.device) >= len(batches[0])).float().expand_as(logits)
    apart = F.binary_cross_entropy_with_logits(logits, domain, reduction="none").mean(1)
    return apart - apart.detach()


def dann_ramp(progress: float) -> float:
    """The share of the strength at a share of all steps: from 0 to almost 1."""
    return 2 / (1 + exp(-RAMP_STEEPNESS * progress)) - 1


def _entering(rest: PhaseModel, layer: str, tensors: Tensors, x: Tensor) -> Tensor:
    """Features [batch, channels] that enter a layer; maps are averaged over their places."""
    seen: list[Tensor] = []

    def caught(_module: object, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0])

    hook = rest.module.get_submodule(layer).register_forward_pre_hook(caught)
    try:
        rest(tensors, x)
    finally:
        hook.remove()
    return seen[0].flatten(2).mean(2) if seen[0].ndim > 2 else seen[0]


def _reversed(x: Tensor, strength: float) -> Tensor:
    """The same values, through which a gradient comes back times −strength."""
    return x + (1 + strength) * (x.detach() - x)


def _told(own: Tensors, x: Tensor) -> Tensor:
    """What the classifiers say of features [members, batch, channels]: [members, batch], above 0 for the other domain."""
    hidden = (x @ own["1.weight"].mT + own["1.bias"][:, None]).relu()
    return (hidden @ own["2.weight"].mT + own["2.bias"][:, None]).squeeze(2)
