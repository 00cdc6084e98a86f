"""What holds a network to what it knew while it is fine-tuned: values had before the first step, and a term of the loss.

The source's answers are had by the target's own forward pass: the pretrained head's outputs stand below the new head's, and
images of the source, where some are rehearsed, behind those of the target. So BatchNorm sees one batch, and nothing runs twice.

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

from xferbench.core.interventions import DANN, EWC, L2SP, REQUIREMENTS, Distillation, LwF, Replay
from xferbench.core.strategies import is_mlp_head
from xferbench.lab.data import preprocessing
from xferbench.lab.models import backbones
from xferbench.lab.training import feature_cache, seeds

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import nn

    from xferbench.core.interventions import Regularizer
    from xferbench.core.pipeline import InputTransform, Phase
    from xferbench.core.trial import TrainingSpec
    from xferbench.lab.data.datasets import Split
    from xferbench.lab.training.network import Architecture

TEMPERATURE = 2.0  # of the softened answers that are kept (Li & Hoiem 2016)
DISTILLATION_TEMPERATURE = 4.0  # of a teacher's; Hinton et al. had 2.5 to 4 for small students
FISHER_IMAGES = 256  # source images on which the Fisher information is taken
FISHER_CHUNK = 16  # of them at once: each has a gradient of its own

Tensors = dict[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class RegularizerState:
    """A fit's regularizer, and what it holds on to.

    ``anchor`` are the backbone's parameters at the start, ``importance`` their Fisher information (EWC); ``head`` the
    pretrained head; ``answers`` [members][n, outputs] what it (LwF) or a teacher said of the training images, or where these
    are augmented, and no two alike, ``tell`` [members] what gives it; ``memory`` source images.
    """

    regularizer: Regularizer
    anchor: Tensors
    importance: Tensors
    head: Tensors
    answers: tuple[Tensor, ...]
    memory: Split | None
    tell: tuple[Callable[[Tensor], Tensor], ...] = ()

    @property
    def rest(self) -> float:
        """The share that is left of the labels' own loss."""
        return 1.0 - self.regularizer.weight if isinstance(self.regularizer, Distillation) else 1.0

    @property
    def outputs(self) -> bool:
        """Whether the pretrained head's answers are in the loss."""
        return isinstance(self.regularizer, Replay | LwF)


def build_regularizer(
    fits: Sequence[TrainingSpec],
    network: Architecture,
    start: Tensors,
    head: Tensors,
    memory: Split | None,
    images: Sequence[Tensor],
    plain: Architecture | None = None,
    teachers: Sequence[Tensors] = (),
) -> RegularizerState | None:
    """What the fits' regularizer needs, or None where they have none.

    Args:
        fits: equal but for their seeds; all start from the same pretrained body, those that have a teacher from any.
        network: their structure. start: that body. head: of the checkpoint.
        memory: images of the source with the head's outputs as labels, where the regularizer needs any.
        images: [members][n, …] 8-bit, each one's training images.
        plain: the structure with a plain head, where theirs is another. teachers: each one's, of that structure.

    Raises:
        ValueError: for a word that is not known, or where what it needs is missing.
    """
    regularizer = fits[0].regularizer
    if regularizer is None or isinstance(regularizer, DANN):  # which holds on to nothing: see xferbench.lab.training.dann
        return None
    there = {
        "pretrained": fits[0].init == "pretrained",
        "head": bool(head),
        "source": memory is not None,
        "teacher": len(teachers) == len(fits),
    }
    if missing := [REQUIREMENTS[need] for need in regularizer.requires if not there.get(need, True)]:
        raise ValueError(f"regularizer {regularizer}: without {', '.join(missing)}")
    if "plain-head" in regularizer.requires and is_mlp_head(fits[0].head):
        raise ValueError(f"regularizer {regularizer}: the pretrained head cannot stand below head {fits[0].head}")
    own = {name: tensor.to(network.device) for name, tensor in start.items()}
    body = {name for name, _ in network.module.named_parameters() if not backbones.is_within(name, [network.anatomy.head])}
    old = {name: tensor.to(network.device) for name, tensor in head.items()}
    ready, asked = fits[0].preprocessing, plain or network
    whole = {name: tensor for name, tensor in own.items() if not backbones.is_within(name, [network.anatomy.head])} | old
    told = [whole] * len(fits) if isinstance(regularizer, LwF) else teachers if isinstance(regularizer, Distillation) else []
    here = [{name: tensor.to(network.device) for name, tensor in one.items()} for one in told]
    tell = tuple(partial(_answers, asked, one, ready) for one in here)
    return RegularizerState(
        regularizer=regularizer,
        anchor={name: own[name] for name in sorted(body)} if isinstance(regularizer, L2SP | EWC) else {},
        importance=_fisher(asked, whole, sorted(body), memory, ready) if isinstance(regularizer, EWC) and memory else {},
        head=old,
        answers=() if fits[0].augment else tuple(one(own) for one, own in zip(tell, images, strict=False)),
        memory=memory if isinstance(regularizer, Replay) else None,
        tell=tell,
    )


def _answers(network: Architecture, tensors: Tensors, ready: InputTransform, images: Tensor) -> Tensor:
    """Logits [n, outputs] of a network on images."""
    with feature_cache.evaluation_mode(network.module, network.device):
        found = [
            functional_call(network.module, tensors, (preprocessing.to_tensor(batch.to(network.device), ready),)).float()
            for batch in images.split(feature_cache.INFERENCE_BATCH)
        ]
    return torch.cat(found)


def _fisher(network: Architecture, tensors: Tensors, names: Sequence[str], memory: Split, ready: InputTransform) -> Tensors:
    """The empirical Fisher information: mean squared gradient of the true labels' log-likelihood, BatchNorm in eval mode."""
    count = min(FISHER_IMAGES, len(memory.labels))
    x = torch.from_numpy(np.array(memory.images[:count])).to(network.device)
    y = torch.from_numpy(memory.labels[:count]).to(network.device)
    module: nn.Module = network.module

    def loss(moving: Mapping[str, Tensor], one: Tensor, label: Tensor) -> Tensor:
        made = preprocessing.to_tensor(one[None], ready)
        return F.cross_entropy(functional_call(module, {**tensors, **moving}, (made,)).float(), label[None])

    moving = {name: tensors[name] for name in names}
    total = {name: torch.zeros_like(tensor) for name, tensor in moving.items()}
    one_by_one = grad(loss)
    together = vmap(one_by_one, in_dims=(None, 0, 0))

    def squares(images: Tensor, labels: Tensor) -> Tensors:
        try:
            return {name: found.square().sum(0) for name, found in together(moving, images, labels).items()}
        except RuntimeError:  # not every network of a user's own can be mapped over examples
            each = [one_by_one(moving, image, label) for image, label in zip(images, labels, strict=True)]
            return {name: torch.stack([found[name].square() for found in each]).sum(0) for name in moving}

    with feature_cache.evaluation_mode(module, network.device):
        for images, labels in zip(x.split(FISHER_CHUNK), y.split(FISHER_CHUNK), strict=True):
            for name, found in squares(images, labels).items():
                total[name] += found
    return {name: tensor / count for name, tensor in total.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class PenaltyTerm:
    """A regularizer in one phase: source images with labels ``y`` [n], and which of them go beside which batch.

    ``x`` is [members][n, …], for an earlier phase may have moved what lies below the cut, in each member otherwise. ``index``
    is [steps, members, images a batch]; all are empty where nothing is rehearsed.
    """

    held: RegularizerState
    x: tuple[Tensor, ...]
    y: Tensor
    index: Tensor


def penalty_term(
    held: RegularizerState,
    lower: nn.Module | None,
    members: Sequence[Tensors],
    phase: Phase,
    number: int,
    fits: Sequence[TrainingSpec],
    network: Architecture,
) -> PenaltyTerm:
    """A phase's term: rehearsed images are drawn for each seed, and taken through what is frozen once."""
    if held.memory is None or not isinstance(held.regularizer, Replay):
        none = torch.empty(0)
        return PenaltyTerm(held=held, x=(), y=none, index=none)
    images = torch.from_numpy(np.array(held.memory.images))
    if lower is None:
        x = (images.to(network.device),) * len(fits)
    else:
        ready, device, cache = fits[0].preprocessing, network.device, network.cache
        x = tuple(feature_cache.compute_activations(lower, own, images, ready, device, cache).to(device) for own in members)
    size, count = (phase.steps, held.regularizer.images), len(held.memory.labels)
    drawn = [seeds.numpy_stream(fit.seed, seeds.REPLAY, number).integers(count, size=size) for fit in fits]
    return PenaltyTerm(
        held=held,
        x=x,
        y=torch.from_numpy(held.memory.labels).to(network.device),
        index=torch.from_numpy(np.stack(drawn, axis=1)).to(network.device),
    )


def with_rehearsed(term: PenaltyTerm, step: int, batches: list[Tensor]) -> list[Tensor]:
    """The members' batches, those of the source behind them."""
    if term.held.memory is None:
        return batches
    return [torch.cat([own, x[index]]) for own, x, index in zip(batches, term.x, term.index[step], strict=True)]


def with_source_head(term: PenaltyTerm, stacked: Tensors) -> Tensors:
    """The members' tensors, the pretrained head's outputs below those of the new one; it stays as it was."""
    if not term.held.outputs:
        return stacked
    old = term.held.head
    return stacked | {
        name: torch.cat([stacked[name], old[name].expand(len(stacked[name]), *old[name].shape)], 1) for name in old
    }


def penalty_loss(
    term: PenaltyTerm, step: int, logits: Tensor, parameters: Tensors, seen: Tensor, classes: int, images: Sequence[Tensor] = ()
) -> Tensor:
    """The members' terms [members].

    Args:
        term: of the phase. step: counted from 0.
        logits: [members, batch and rehearsed, outputs of both heads]. parameters: [members, …], those that are trained.
        seen: [members, batch], which of its training images each member was given.
        classes: outputs of the new head.
        images: [members][batch, …], as they were given, which matters where they are augmented.
    """
    held, regularizer = term.held, term.held.regularizer
    if isinstance(regularizer, Replay):
        old = logits[:, seen.shape[1] :, classes:]
        y = torch.stack([term.y[index] for index in term.index[step]])
        each = F.cross_entropy(old.flatten(0, 1), y.flatten(), reduction="none").view(len(old), -1)
        return each.sum(1) / seen.shape[1]  # so that an image of the source weighs as one of the target
    if isinstance(regularizer, LwF | Distillation):
        known = zip(held.answers, seen, strict=True) if held.answers else ()
        was = [answers[index] for answers, index in known] or [tell(own) for tell, own in zip(held.tell, images, strict=True)]
        lwf = isinstance(regularizer, LwF)
        own, heat = (logits[:, :, classes:], TEMPERATURE) if lwf else (logits[:, :, :classes], DISTILLATION_TEMPERATURE)
        now, then = ((one / heat).log_softmax(-1) for one in (own, torch.stack(was)))
        apart = F.kl_div(now, then, reduction="none", log_target=True).sum(-1).mean(1)
        return (regularizer.strength if isinstance(regularizer, LwF) else regularizer.weight) * heat**2 * apart
    assert isinstance(regularizer, L2SP | EWC), "what is left holds on to the start"
    total = torch.zeros(len(logits), device=logits.device)
    for name in sorted(held.anchor.keys() & parameters.keys()):
        apart = (parameters[name] - held.anchor[name]).square()
        total = total + (apart * held.importance[name] if held.importance else apart).flatten(1).sum(1)
    return regularizer.strength / 2 * total
