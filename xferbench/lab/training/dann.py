"""DANN: train a discriminator of two domains, and reverse its gradient in the network. Imports torch.

Both domains pass through the network in evaluation mode, in a pass apart from that of the labels. Therefore a strength of 0
gives plain training bit for bit: neither running statistics nor random streams change.

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

HIDDEN_UNITS = 64  # units between the two layers of a discriminator
# The minimum learning rate. At the low rate of fine-tuning, a discriminator falls behind the network and its gradient is noise.
DISCRIMINATOR_LR = 1e-2
RAMP_STEEPNESS = 10.0  # steepness of the ramp of the strength (Ganin et al. 2016)


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainDiscriminator:
    """The discriminators of all members. They are trained with the network, and discarded at the end.

    Attributes:
        strength: the weight of the reversed gradient.
        tensors: their parameters, stacked [members, …].
        images: [n, 3, H, W] uint8, images of the other domain.
        layer: the layer of the network whose inputs are the features.
    """

    strength: float
    tensors: Tensors
    images: Tensor
    layer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DannPhase:
    """The discriminators in one phase.

    Attributes:
        discriminator: the discriminators.
        x: [members][n, …], the images of the other domain in the form that the phase takes.
        index: [steps, members, batch size], the images of each batch.
        previous_steps: the number of steps before the phase.
        total_steps: the number of steps of all phases.
    """

    discriminator: DomainDiscriminator
    x: tuple[Tensor, ...]
    index: Tensor
    previous_steps: int
    total_steps: int


def build_discriminator(
    specs: Sequence[TrainingSpec], network: Architecture, unlabeled: Split | None, shape: tuple[int, ...]
) -> DomainDiscriminator | None:
    """Build the discriminators of a group of trainings, or return None if their regularizer is not DANN.

    Each member draws its initial weights from its own seed, with the distribution that torch uses for linear layers.

    Args:
        specs: the trainings, equal except for their seeds.
        network: their structure.
        unlabeled: images of the other domain.
        shape: the shape of an image of the target.

    Raises:
        UserError: if the images have another shape.
        ValueError: if there are no images.
    """
    dann = specs[0].procedure.regularizer
    if not isinstance(dann, DANN):
        return None
    if unlabeled is None:
        raise ValueError(f"regularizer {dann}: without images of another domain")
    if unlabeled.images.shape[1:] != shape:
        raise UserError(
            "[shifted] data: images of another shape than the target's",
            found=f"{unlabeled.images.shape[1:]}, but the target has {shape}",
            expected="the same shape",
        )
    features = network.layout.features
    shapes = {"1.weight": (HIDDEN_UNITS, features), "1.bias": (HIDDEN_UNITS,), "2.weight": (1, HIDDEN_UNITS), "2.bias": (1,)}
    rngs = [seeds.numpy_stream(spec.seed, seeds.DISCRIMINATOR) for spec in specs]
    uniform = {name: np.stack([rng.uniform(-1, 1, size) for rng in rngs]) for name, size in shapes.items()}
    bounds = {"1": features**-0.5, "2": HIDDEN_UNITS**-0.5}
    tensors = {name: torch.from_numpy(values * bounds[name[0]]).float().to(network.device) for name, values in uniform.items()}
    return DomainDiscriminator(
        strength=dann.strength,
        tensors={name: tensor.requires_grad_() for name, tensor in tensors.items()},
        images=torch.from_numpy(np.array(unlabeled.images)),
        layer=heads.first_layer(network.module, network.layout.head),
    )


def build_dann_phase(
    discriminator: DomainDiscriminator,
    lower: nn.Module | None,
    members: Sequence[Tensors],
    phase: Phase,
    phase_index: int,
    specs: Sequence[TrainingSpec],
    network: Architecture,
) -> DannPhase:
    """Draw the images of each batch of a phase, and compute their activations below the cut once."""
    size, count = (phase.steps, phase.batch_size), len(discriminator.images)
    indices = [seeds.numpy_stream(spec.seed, seeds.DISCRIMINATOR, phase_index).integers(count, size=size) for spec in specs]
    images, transform = discriminator.images, specs[0].data.preprocessing
    return DannPhase(
        discriminator=discriminator,
        x=feature_cache.member_inputs(lower, members, images, transform, network.device, network.cache),
        index=torch.from_numpy(np.stack(indices, axis=1)).to(network.device),
        previous_steps=sum(phase.steps for phase in specs[0].procedure.phases[:phase_index]),
        total_steps=sum(phase.steps for phase in specs[0].procedure.phases),
    )


def dann_loss(
    dann_phase: DannPhase,
    step: int,
    phase_model: PhaseModel,
    tensors: Tensors,
    batches: Sequence[Tensor],
    draws: augmentation.Draws | None,
) -> Tensor:
    """Compute the DANN terms of the members. The terms have the value 0 and a gradient.

    The value is 0 because the training curve reports the loss of the labels only.

    Args:
        dann_phase: the discriminators in this phase.
        step: the step of the phase, counted from 0.
        phase_model: the module that the phase runs.
        tensors: the tensors of the members, stacked.
        batches: [members][batch size, …], the augmented batches of the target.
        draws: the augmentation of the phase, which is applied to the other domain too.

    Returns:
        [members].
    """
    discriminator = dann_phase.discriminator
    other_batches = [
        x[index[: len(batch)]] for x, index, batch in zip(dann_phase.x, dann_phase.index[step], batches, strict=True)
    ]
    other_batches = augmentation.augment_batches(other_batches, draws, step)
    x = [torch.cat(domain_batches) for domain_batches in zip(batches, other_batches, strict=True)]
    compute_features = partial(_features, phase_model, discriminator.layer)
    with batchnorm.preserve_modes(phase_model.module), feature_cache.autocast(x[0].device):
        phase_model.module.eval()
        if len(x) == 1:
            features = compute_features({name: tensor.squeeze(0) for name, tensor in tensors.items()}, x[0])[None]
        else:
            features = vmap(compute_features, randomness="different")(tensors, torch.stack(x))
    strength = discriminator.strength * dann_ramp((dann_phase.previous_steps + step) / dann_phase.total_steps)
    logits = _discriminate(discriminator.tensors, _reverse_gradient(features.float(), strength))
    is_other_domain = torch.arange(logits.shape[1], device=logits.device) >= len(batches[0])
    domain = is_other_domain.float().expand_as(logits)
    loss = F.binary_cross_entropy_with_logits(logits, domain, reduction="none").mean(1)
    return loss - loss.detach()


def dann_ramp(progress: float) -> float:
    """Return the share of the strength, which rises from 0 to almost 1, at a share of all steps."""
    return 2 / (1 + exp(-RAMP_STEEPNESS * progress)) - 1


def _features(phase_model: PhaseModel, layer: str, tensors: Tensors, x: Tensor) -> Tensor:
    """Compute the inputs [batch, channels] of a layer. Feature maps are averaged over their positions."""
    layer_inputs: list[Tensor] = []

    def record_input(_module: object, inputs: tuple[Tensor, ...]) -> None:
        layer_inputs.append(inputs[0])

    hook = phase_model.module.get_submodule(layer).register_forward_pre_hook(record_input)
    try:
        phase_model(tensors, x)
    finally:
        hook.remove()
    return layer_inputs[0].flatten(2).mean(2) if layer_inputs[0].ndim > 2 else layer_inputs[0]


def _reverse_gradient(x: Tensor, strength: float) -> Tensor:
    """Return the same values, and multiply their gradient by −strength."""
    return x + (1 + strength) * (x.detach() - x)


def _discriminate(tensors: Tensors, x: Tensor) -> Tensor:
    """Map features [members, batch, channels] to logits [members, batch], which are positive for the other domain."""
    hidden = (x @ tensors["1.weight"].mT + tensors["1.bias"][:, None]).relu()
    return (hidden @ tensors["2.weight"].mT + tensors["2.bias"][:, None]).squeeze(2)
