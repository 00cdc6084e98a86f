"""Regularizers that keep a network close to its source: values computed before the first step, and a term of the loss.

Imports torch. The loop computes source outputs in the forward pass of the target: the pretrained head adds outputs after those
of the new head, and rehearsed source images follow the target images, so BatchNorm sees one batch and nothing is computed
twice.

References:
    Li, Grandvalet, Davoine. Explicit inductive bias for transfer learning (L2-SP). ICML 2018, arXiv:1802.01483.
    Kirkpatrick et al. Overcoming catastrophic forgetting (EWC). PNAS 2017, arXiv:1612.00796.
    Li, Hoiem. Learning without forgetting. ECCV 2016, arXiv:1606.09282.
    Rolnick et al. Experience replay for continual learning. NeurIPS 2019, arXiv:1811.11682.
    Hinton, Vinyals, Dean. Distilling the knowledge in a neural network. 2015, arXiv:1503.02531.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from xferbench.core.interventions import DANN, EWC, L2SP, PRETRAINED, REQUIREMENTS, Distillation, LwF, Replay
from xferbench.core.strategies import is_mlp_head
from xferbench.lab.data import preprocessing
from xferbench.lab.models import backbones
from xferbench.lab.training import feature_cache, seeds
from xferbench.lab.training.implementations import load_implementation

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import nn

    from xferbench.core.interventions import Regularizer
    from xferbench.core.pipeline import Phase
    from xferbench.core.transforms import InputTransform
    from xferbench.core.trial import TrainingSpec
    from xferbench.lab.data.datasets import Split
    from xferbench.lab.training.network import Architecture

LWF_TEMPERATURE = 2.0  # temperature of the softmax over the outputs of the pretrained head (Li & Hoiem 2016)
DISTILLATION_TEMPERATURE = 4.0  # temperature of the teacher; Hinton et al. used 2.5 to 4 for small students
FISHER_IMAGES = 256  # number of source images for the Fisher information
FISHER_BATCH = 16  # number of these images per pass, because each has a gradient of its own

Tensors = dict[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class RegularizerState:
    """The regularizer of a group of trainings, and the reference values that it needs.

    Attributes:
        regularizer: the regularizer.
        anchor: the parameters of the backbone at the start (L2-SP, EWC, and regularizers of installed packages).
        importance: their Fisher information (EWC).
        source_head: the tensors of the pretrained head.
        reference_logits: [members][n, outputs], the logits of the source model (LwF) or the teacher (distillation) on the
            training images. Empty with augmentation, because then no image occurs twice.
        reference_models: [members], functions that compute such logits for a batch.
        memory: source images (replay).
    """

    regularizer: Regularizer
    anchor: Tensors
    importance: Tensors
    source_head: Tensors
    reference_logits: tuple[Tensor, ...]
    memory: Split | None
    reference_models: tuple[Callable[[Tensor], Tensor], ...] = ()

    @property
    def label_loss_weight(self) -> float:
        """The weight of the cross-entropy with the labels."""
        return 1.0 - self.regularizer.weight if isinstance(self.regularizer, Distillation) else 1.0

    @property
    def uses_source_head(self) -> bool:
        """Whether the loss contains outputs of the pretrained head."""
        return isinstance(self.regularizer, Replay | LwF)


def build_regularizer(
    specs: Sequence[TrainingSpec],
    network: Architecture,
    start: Tensors,
    head: Tensors,
    memory: Split | None,
    images: Sequence[Tensor],
    linear_head_network: Architecture | None = None,
    teachers: Sequence[Tensors] = (),
) -> RegularizerState | None:
    """Compute the reference values of a regularizer. Return None if there is no regularizer of this kind.

    Args:
        specs: the trainings, equal except for their seeds. Without teachers, all start from the same pretrained body.
        network: their structure.
        start: the tensors at the start.
        head: the head of the checkpoint.
        memory: source images with outputs of the head as labels, if the regularizer needs them.
        images: [members][n, 3, H, W] uint8, the training images.
        linear_head_network: the structure with a linear head, if ``network`` has another head.
        teachers: the tensors of each member's teacher, which have that structure.

    Raises:
        ValueError: if a requirement of the regularizer is missing.
    """
    regularizer = specs[0].procedure.regularizer
    if regularizer is None or isinstance(regularizer, DANN):  # xferbench.lab.training.dann implements DANN
        return None
    _check_requirements(regularizer, specs, head=head, memory=memory, teachers=teachers)
    device, head_name, transform = network.device, network.layout.head, specs[0].data.preprocessing
    body = {name: tensor.to(device) for name, tensor in start.items() if not backbones.is_within(name, [head_name])}
    parameter_names = sorted(
        name for name, _ in network.module.named_parameters() if not backbones.is_within(name, [head_name])
    )
    source_head = {name: tensor.to(device) for name, tensor in head.items()}
    source_model = body | source_head
    reference_network = linear_head_network or network
    reference_tensors = _reference_tensors(regularizer, source_model, teachers, members=len(specs), device=device)
    reference_models = tuple(partial(_compute_logits, reference_network, tensors, transform) for tensors in reference_tensors)
    importance = {}
    if isinstance(regularizer, EWC) and memory:
        importance = _fisher_information(reference_network, source_model, parameter_names, memory, transform)
    needs_anchor = isinstance(regularizer, L2SP | EWC) or bool(regularizer.implementation)
    reference_logits: tuple[Tensor, ...] = ()
    if not specs[0].procedure.augment:
        reference_logits = tuple(model(batch) for model, batch in zip(reference_models, images, strict=False))
    return RegularizerState(
        regularizer=regularizer,
        anchor={name: body[name] for name in parameter_names} if needs_anchor else {},
        importance=importance,
        source_head=source_head,
        reference_logits=reference_logits,
        memory=memory if isinstance(regularizer, Replay) else None,
        reference_models=reference_models,
    )


def _reference_tensors(
    regularizer: Regularizer, source_model: Tensors, teachers: Sequence[Tensors], *, members: int, device: torch.device
) -> list[Tensors]:
    """Return the tensors of the model whose outputs each member imitates; an empty list if there is none."""
    if isinstance(regularizer, LwF):
        return [source_model] * members
    if isinstance(regularizer, Distillation):
        return [{name: tensor.to(device) for name, tensor in teacher.items()} for teacher in teachers]
    return []


def _check_requirements(
    regularizer: Regularizer,
    specs: Sequence[TrainingSpec],
    *,
    head: Tensors,
    memory: Split | None,
    teachers: Sequence[Tensors],
) -> None:
    available = {
        "pretrained": specs[0].network.init == PRETRAINED,
        "head": bool(head),
        "source": memory is not None,
        "teacher": len(teachers) == len(specs),
    }
    missing = [REQUIREMENTS[requirement] for requirement in regularizer.requires if not available.get(requirement, True)]
    if missing:
        raise ValueError(f"regularizer {regularizer}: without {', '.join(missing)}")
    if "plain-head" in regularizer.requires and is_mlp_head(specs[0].network.head):
        raise ValueError(f"regularizer {regularizer}: the pretrained head cannot be combined with head {specs[0].network.head}")


def _compute_logits(network: Architecture, tensors: Tensors, transform: InputTransform, images: Tensor) -> Tensor:
    """Compute the logits [n, outputs] of a network on images."""
    with feature_cache.evaluation_mode(network.module, network.device):
        batches = [
            functional_call(network.module, tensors, (preprocessing.to_tensor(batch.to(network.device), transform),)).float()
            for batch in images.split(feature_cache.INFERENCE_BATCH)
        ]
    return torch.cat(batches)


def _fisher_information(
    network: Architecture, tensors: Tensors, names: Sequence[str], memory: Split, transform: InputTransform
) -> Tensors:
    """Compute the empirical Fisher information: the mean squared gradient of the log-likelihood of the true labels.

    BatchNorm is in evaluation mode.
    """
    count = min(FISHER_IMAGES, len(memory.labels))
    x = torch.from_numpy(np.array(memory.images[:count])).to(network.device)
    y = torch.from_numpy(memory.labels[:count]).to(network.device)
    module: nn.Module = network.module

    def loss(parameters: Mapping[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        network_input = preprocessing.to_tensor(image[None], transform)
        logits = functional_call(module, {**tensors, **parameters}, (network_input,)).float()
        return F.cross_entropy(logits, label[None])

    parameters = {name: tensors[name] for name in names}
    total = {name: torch.zeros_like(tensor) for name, tensor in parameters.items()}
    example_gradient = grad(loss)
    batch_gradient = vmap(example_gradient, in_dims=(None, 0, 0))

    def squared_gradients(images: Tensor, labels: Tensor) -> Tensors:
        try:
            return {name: tensor.square().sum(0) for name, tensor in batch_gradient(parameters, images, labels).items()}
        except RuntimeError:  # vmap does not support every network of user code
            gradients = [example_gradient(parameters, image, label) for image, label in zip(images, labels, strict=True)]
            return {name: torch.stack([gradient[name].square() for gradient in gradients]).sum(0) for name in parameters}

    with feature_cache.evaluation_mode(module, network.device):
        for images, labels in zip(x.split(FISHER_BATCH), y.split(FISHER_BATCH), strict=True):
            for name, tensor in squared_gradients(images, labels).items():
                total[name] += tensor
    return {name: tensor / count for name, tensor in total.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class PenaltyTerm:
    """A regularizer in one phase. All tensors are empty without replay.

    Attributes:
        state: the regularizer.
        x: [members][n, …], the source images in the form that the phase takes. They differ between members if an earlier phase
            trained layers below the cut.
        y: [n], their labels.
        index: [steps, members, images per batch], the source images of each batch.
    """

    state: RegularizerState
    x: tuple[Tensor, ...]
    y: Tensor
    index: Tensor


def build_penalty_term(
    state: RegularizerState,
    lower: nn.Module | None,
    members: Sequence[Tensors],
    phase: Phase,
    phase_index: int,
    specs: Sequence[TrainingSpec],
    network: Architecture,
) -> PenaltyTerm:
    """Build the term of a phase: draw the source images of each batch, and compute their activations below the cut once."""
    if state.memory is None or not isinstance(state.regularizer, Replay):
        empty = torch.empty(0)
        return PenaltyTerm(state=state, x=(), y=empty, index=empty)
    images = torch.from_numpy(np.array(state.memory.images))
    size, count = (phase.steps, state.regularizer.images), len(state.memory.labels)
    indices = [seeds.numpy_stream(spec.seed, seeds.REPLAY, phase_index).integers(count, size=size) for spec in specs]
    return PenaltyTerm(
        state=state,
        x=feature_cache.member_inputs(lower, members, images, specs[0].data.preprocessing, network.device, network.cache),
        y=torch.from_numpy(state.memory.labels).to(network.device),
        index=torch.from_numpy(np.stack(indices, axis=1)).to(network.device),
    )


def append_source_images(term: PenaltyTerm, step: int, batches: list[Tensor]) -> list[Tensor]:
    """Append the source images of a step to the batches of the members."""
    if term.state.memory is None:
        return batches
    return [torch.cat([batch, x[index]]) for batch, x, index in zip(batches, term.x, term.index[step], strict=True)]


def append_source_head(term: PenaltyTerm, stacked: Tensors) -> Tensors:
    """Append the outputs of the pretrained head to those of the new head of each member. The pretrained head is not trained."""
    if not term.state.uses_source_head:
        return stacked
    source_head = term.state.source_head
    return stacked | {
        name: torch.cat([stacked[name], tensor.expand(len(stacked[name]), *tensor.shape)], 1)
        for name, tensor in source_head.items()
    }


def penalty_loss(
    term: PenaltyTerm,
    step: int,
    logits: Tensor,
    parameters: Tensors,
    index: Tensor,
    classes: int,
    images: Sequence[Tensor] = (),
) -> Tensor:
    """Compute the penalty of each member.

    Args:
        term: the regularizer in this phase.
        step: the step, counted from 0.
        logits: [members, batch size + source images, outputs of both heads].
        parameters: the trained parameters, [members, …] each.
        index: [members, batch size], the training images of each batch.
        classes: the number of outputs of the new head.
        images: [members][batch size, …], the augmented batches. Without augmentation they are not used.

    Returns:
        [members].
    """
    regularizer = term.state.regularizer
    if isinstance(regularizer, Replay):
        source_logits = logits[:, index.shape[1] :, classes:]
        y = torch.stack([term.y[source_index] for source_index in term.index[step]])
        losses = F.cross_entropy(source_logits.flatten(0, 1), y.flatten(), reduction="none").view(len(source_logits), -1)
        return losses.sum(1) / index.shape[1]  # a source image has the weight of a target image
    if isinstance(regularizer, LwF):
        divergence = _divergence(term.state, logits[:, :, classes:], LWF_TEMPERATURE, index, images)
        return regularizer.strength * LWF_TEMPERATURE**2 * divergence
    if isinstance(regularizer, Distillation):
        divergence = _divergence(term.state, logits[:, :, :classes], DISTILLATION_TEMPERATURE, index, images)
        return regularizer.weight * DISTILLATION_TEMPERATURE**2 * divergence
    if regularizer.implementation:
        return _installed_penalty(term.state, parameters, logits)
    assert isinstance(regularizer, L2SP | EWC), "the remaining regularizers penalize the distance from the start"
    return regularizer.strength / 2 * _squared_distance(term.state, parameters, logits)


def _divergence(state: RegularizerState, logits: Tensor, temperature: float, index: Tensor, images: Sequence[Tensor]) -> Tensor:
    """Compute the mean KL divergence [members] of the softened reference outputs from the softened outputs of the members."""
    if state.reference_logits:
        references = [member_logits[rows] for member_logits, rows in zip(state.reference_logits, index, strict=True)]
    else:
        references = [model(batch) for model, batch in zip(state.reference_models, images, strict=True)]
    log_probabilities, reference = ((x / temperature).log_softmax(-1) for x in (logits, torch.stack(references)))
    return F.kl_div(log_probabilities, reference, reduction="none", log_target=True).sum(-1).mean(1)


def _installed_penalty(state: RegularizerState, parameters: Tensors, logits: Tensor) -> Tensor:
    """Compute the penalty [members] of an installed package, called for each member; 0 if a phase trains only the head."""
    names = sorted(state.anchor.keys() & parameters.keys())
    if not names:
        return torch.zeros(len(logits), device=logits.device)
    penalty, start = load_implementation(state.regularizer), {name: state.anchor[name] for name in names}
    members = ({name: parameters[name][member] for name in names} for member in range(len(logits)))
    return torch.stack([penalty(tensors, state.regularizer, start) for tensors in members]).view(len(logits))


def _squared_distance(state: RegularizerState, parameters: Tensors, logits: Tensor) -> Tensor:
    """Compute the squared distance [members] of the parameters from the start, weighted by importance if it is known."""
    total = torch.zeros(len(logits), device=logits.device)
    for name in sorted(state.anchor.keys() & parameters.keys()):
        squares = (parameters[name] - state.anchor[name]).square()
        total = total + (squares * state.importance[name] if state.importance else squares).flatten(1).sum(1)
    return total
