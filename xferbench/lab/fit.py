"""The one training loop: a group of fits that differ only in their seed, trained in lock-step.

Their tensors are stacked along a first axis and go through ``torch.func.vmap``; a group of one skips it. Elementwise
optimizers (SGD, Adam) then train every member as if it were alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, vmap
from torch.nn import functional as F

from xferbench.core.interventions import HEAD_ONLY, LoRA, TopGroups
from xferbench.lab import adversary, augment, backbones, batchnorm, features, lowrank, preprocess, regularize, seeds
from xferbench.lab.schedule import factor, rates
from xferbench.lab.training.examples import training_subset

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from torch import nn

    from xferbench.design import Fit, Phase, Ready
    from xferbench.lab.backbones import Anatomy
    from xferbench.lab.data import Dataset, Split
    from xferbench.lab.training.examples import TrainingSubset

CHECKS = 5  # times that a fit looks at its validation examples
Tensors = dict[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A module for its structure alone (its own tensors are never read), what is known of it, and where it computes."""

    module: nn.Module
    anatomy: Anatomy
    device: torch.device
    cache: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """A trained network: its tensors before, after the last step and at the best one on validation.

    ``prior`` is [classes], the training subset's class frequencies, which a diverged fit predicts. ``curve`` has rows of
    step, mean training loss since the row before, and validation accuracy. ``seconds`` are its own, ``taught`` those of its
    teacher. ``begun`` is the network as its last phase began, where somebody asks for it.
    """

    before: Tensors
    last: Tensors
    best: Tensors
    curve: tuple[tuple[int, float, float], ...]
    diverged: bool
    prior: tuple[float, ...]
    seconds: float
    taught: float = 0.0
    begun: Fitted | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """What a phase runs: the whole network on 8-bit images, or the part above a cut on activations computed once."""

    module: nn.Module
    ready: Ready | None

    @property
    def names(self) -> list[str]:
        """The tensors that it uses."""
        return [name for name, _ in (*self.module.named_parameters(), *self.module.named_buffers())]

    def __call__(self, tensors: Tensors, x: Tensor) -> Tensor:
        """Logits [batch, classes] of one member's tensors on one batch."""
        x = x if self.ready is None else preprocess.tensor(x, self.ready)
        logits: Tensor = functional_call(self.module, tensors, (x,))
        return logits


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """One member's examples in the form that a body takes: [n, …] and labels [n], to train on and to validate on."""

    x: Tensor
    y: Tensor
    x_validation: Tensor
    y_validation: Tensor


def cut(phase: Phase, anatomy: Anatomy) -> int:
    """How many of the lowest layer groups compute the same at every step of a phase, and so may be computed once."""
    frozen = 0
    if phase.trainable == HEAD_ONLY:
        frozen = len(anatomy.groups)
    elif isinstance(phase.trainable, TopGroups):
        frozen = len(anatomy.groups) - phase.trainable.groups
    moving = phase.batchnorm not in {"eval", "train-above"} and any(
        backbones.within(name, below(anatomy, frozen)) for name in anatomy.batchnorm
    )
    return 0 if moving else frozen


def below(anatomy: Anatomy, groups: int) -> list[str]:
    """Name prefixes of the lowest layer groups."""
    return [prefix for group in anatomy.groups[:groups] for prefix in group.prefixes]


def body(network: Network, frozen: int, ready: Ready) -> tuple[nn.Module | None, Body]:
    """The part below a cut (None where nothing is cut off, or the graph cannot be parted) and the rest."""
    parts = backbones.split(network.module, network.anatomy, frozen) if frozen else None
    return (None, Body(module=network.module, ready=ready)) if parts is None else (parts[0], Body(module=parts[1], ready=None))


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What is left of the source beside the weights: the checkpoint's head, and some images where a fit is given any.

    ``teachers`` are each member's, where they have one; ``plain`` is the structure with a plain head, where theirs is another.
    ``unlabelled`` are images of another domain, where a fit is given any.
    """

    head: Tensors
    memory: Split | None = None
    teachers: tuple[Fitted, ...] = ()
    plain: Network | None = None
    unlabelled: Split | None = None


def train(
    fits: Sequence[Fit], network: Network, starts: Sequence[Tensors], dataset: Dataset, source: Source | None = None
) -> list[Fitted]:
    """Train fits of equal shape in lock-step.

    Args:
        fits: equal but for their seeds.
        network: their structure.
        starts: each one's tensors before training.
        dataset: in the geometry of the fits' preprocessing.
        source: for their regularizer; None where they have none.

    Raises:
        RuntimeError: where a tensor moved that was to be frozen. Problem: where what is no image is to be augmented.
    """
    begun = perf_counter()
    chosen = [training_subset(dataset, fit) for fit in fits]
    stacked = {name: torch.stack([start[name] for start in starts]).to(network.device) for name in starts[0]}
    curve: list[tuple[int, list[float], list[float]]] = []
    best, top = list(starts), [-1.0] * len(fits)
    total = sum(phase.steps for phase in fits[0].phases)
    marks = [round(total * (check + 1) / CHECKS) for check in range(CHECKS)]
    held = rival = None
    if source is not None:
        images = [torch.from_numpy(np.array(subset.split.images[subset.index])) for subset in chosen]
        asked = source.plain or network, tuple(one.last for one in source.teachers)
        held = regularize.hold(fits, network, starts[0], source.head, source.memory, images, *asked)
        rival = adversary.rival(fits, network, source.unlabelled, dataset.train.images.shape[1:])
    done = 0
    for number, phase in enumerate(fits[0].phases):
        if not phase.steps:
            continue
        lower, rest = body(network, 0 if fits[0].augment else cut(phase, network.anatomy), fits[0].preprocessing)
        members = [member(stacked, g) for g in range(len(fits))]
        material = [_material(lower, members[g], dataset, chosen[g], fit, network) for g, fit in enumerate(fits)]
        term = regularize.term(held, lower, members, phase, number, fits, network) if held else None
        bout = adversary.bout(rival, lower, members, phase, number, fits, network) if rival else None
        left = [mark - done for mark in marks]
        for step, loss in _phase(phase, number, fits, rest, network, stacked, material, term, bout, marks=left):
            scores = [_accuracy(rest, member(stacked, g), material[g], network.device) for g in range(len(fits))]
            curve.append((done + step, loss, scores))
            for g, score in enumerate(scores):
                if score > top[g]:
                    best[g], top[g] = _taken(stacked, g), score
        done += phase.steps
    seconds = (perf_counter() - begun) / len(fits)
    fitted = []
    for g in range(len(fits)):
        last, own = _taken(stacked, g), tuple((step, loss[g], score[g]) for step, loss, score in curve)
        labels = chosen[g].labels
        fitted.append(
            Fitted(
                before=starts[g],
                last=last,
                best=best[g],
                curve=own,
                diverged=not (_finite(last) and all(np.isfinite(loss) for _, loss, _ in own)),
                prior=tuple((np.bincount(labels, minlength=len(dataset.classes)) / len(labels)).tolist()),
                seconds=seconds,
                taught=source.teachers[g].seconds if source and source.teachers else 0.0,
            )
        )
    return fitted


def member(stacked: Tensors, g: int) -> Tensors:
    """One member's tensors, as views of the stacked ones."""
    return {name: tensor[g] for name, tensor in stacked.items()}


def sole(stacked: Tensors) -> Tensors:
    """The only member's tensors; unlike an index, a squeeze needs no copy on the way back."""
    return {name: tensor.squeeze(0) for name, tensor in stacked.items()}


def _taken(stacked: Tensors, g: int) -> Tensors:
    return {name: tensor.detach().cpu().clone() for name, tensor in member(stacked, g).items()}


def _finite(tensors: Tensors) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values() if tensor.is_floating_point())


def _material(
    lower: nn.Module | None,
    tensors: Tensors,
    dataset: Dataset,
    subset: TrainingSubset,
    fit: Fit,
    network: Network,
) -> Material:
    own = dataset.validation
    held_out = (dataset.train, subset.validation) if own is None else (own, np.arange(len(own.labels)))
    found = []
    for split, index in ((subset.split, subset.index), held_out):
        x = torch.from_numpy(np.array(split.images[index]))
        if lower is not None:
            x = features.compute(lower, tensors, x, fit.preprocessing, network.device, network.cache)
        found += [x.to(network.device), torch.from_numpy(split.labels[index]).to(network.device)]
    return Material(x=found[0], y=found[1], x_validation=found[2], y_validation=found[3])


def batches(phase: Phase, seed: int, number: int, labels: np.ndarray) -> np.ndarray:
    """Indices [steps, batch] of a phase's batches: epoch after epoch, each example once an epoch.

    In class order each epoch is sorted by class, as a class folder is read that nobody shuffled.
    """
    rng, size = seeds.stream(seed, seeds.ORDER, number), min(phase.batch_size, len(labels))
    epochs = [rng.permutation(len(labels)) for _ in range(-(-phase.steps * size // len(labels)))]
    if phase.order == "class":
        epochs = [epoch[np.argsort(labels[epoch], kind="stable")] for epoch in epochs]
    elif phase.order != "shuffled":
        raise ValueError(f"no such order: {phase.order}")
    return np.concatenate(epochs)[: phase.steps * size].reshape(phase.steps, size)


def _phase(
    phase: Phase,
    number: int,
    fits: Sequence[Fit],
    rest: Body,
    network: Network,
    stacked: Tensors,
    material: Sequence[Material],
    term: regularize.Term | None,
    bout: adversary.Bout | None,
    *,
    marks: Sequence[int],
) -> Iterator[tuple[int, list[float]]]:
    """Train through one phase, changing ``stacked`` in place; at each mark, the step and the members' mean losses so far."""
    trained = backbones.trainable(network.anatomy, network.module, phase.trainable) & set(rest.names)
    before = {name: tensor.clone() for name, tensor in stacked.items() if name not in trained}
    begun = {name: stacked[name].detach().clone() for name in sorted(trained)}
    low = backbones.kinds(network.anatomy, network.module)["lora"] if isinstance(phase.trainable, LoRA) else set()
    parameters = lowrank.parameters(phase, begun, low, [seeds.stream(fit.seed, seeds.LOW_RANK, number) for fit in fits])
    tensors = {name: stacked[name] for name in rest.names}
    distance = lowrank.of_weights(parameters, backbones.depth(network.anatomy, network.module))
    optimizer = _optimizer(phase, parameters, distance, bout.rival.tensors if bout else {})
    peaks = [group["lr"] for group in optimizer.param_groups]
    smallest = replace(phase, batch_size=min(phase.batch_size, *(len(part.y) for part in material)))  # batches are stacked
    orders = [batches(smallest, fit.seed, number, part.y.cpu().numpy()) for fit, part in zip(fits, material, strict=True)]
    index = torch.from_numpy(np.stack(orders, axis=1)).to(network.device)  # [steps, members, batch]
    draws = augment.drawn(fits, number, orders[0].shape, material[0].x.shape[-2:])
    torch.manual_seed(seeds.number(fits[0].seed, seeds.DROPOUT))
    alone, together = len(fits) == 1, vmap(rest, randomness="different")
    losses = torch.zeros(len(fits), device=network.device)
    since = 0
    lowest = below(network.anatomy, cut(phase, network.anatomy))
    with batchnorm.training(rest.module, phase.batchnorm, lowest):
        for step in range(phase.steps):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * factor(phase, step)
            x = augment.augmented([part.x[index[step, g]] for g, part in enumerate(material)], draws, step)
            y = torch.stack([part.y[index[step, g]] for g, part in enumerate(material)])
            moving = lowrank.merged(begun, parameters)
            used = tensors | moving
            if term is not None:
                x, used = regularize.with_rehearsed(term, step, x), regularize.with_source_head(term, used)
            with features.precision(network.device):
                logits = (rest(sole(used), x[0])[None] if alone else together(used, torch.stack(x))).float()
            own = logits[:, : y.shape[1], : network.anatomy.classes]
            loss = F.cross_entropy(own.flatten(0, 1), y.flatten(), reduction="none").view(len(fits), -1).mean(1)
            if term is not None:
                extra = regularize.loss(term, step, logits, moving, index[step], network.anatomy.classes, x)
                loss = term.held.rest * loss + extra
            if bout is not None:
                loss = loss + adversary.loss(bout, step, rest, used, x, draws)
            optimizer.zero_grad(set_to_none=True)
            loss.sum().backward()
            optimizer.step()
            losses, since = losses + loss.detach(), since + 1
            if step + 1 in marks or step + 1 == phase.steps:
                for name, tensor in lowrank.merged(begun, parameters).items():
                    stacked[name].copy_(tensor.detach())
            if step + 1 in marks:
                yield step + 1, (losses / since).tolist()
                losses, since = torch.zeros_like(losses), 0
    may_move = {
        name for name in batchnorm.buffers(rest.module) if phase.batchnorm != "eval" and not backbones.within(name, lowest)
    }
    moved = [name for name, tensor in before.items() if name not in may_move and not _equal(tensor, stacked[name])]
    if moved:
        raise RuntimeError(f"frozen tensors moved in phase {number + 1}: {', '.join(moved[:5])}")


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same; what an earlier phase left undefined has not moved where it still is."""
    return bool(torch.allclose(one, other, rtol=0, atol=0, equal_nan=True))


def _optimizer(phase: Phase, parameters: Tensors, depth: dict[str, int], rival: Tensors) -> torch.optim.Optimizer:
    groups: list[dict[str, Any]] = rates(phase, parameters, depth)
    groups += [{"params": [*rival.values()], "lr": max(adversary.RATE, phase.lr)}] if rival else []
    if phase.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=0.9, weight_decay=phase.weight_decay)
    if phase.optimizer == "adamw":
        return torch.optim.AdamW(groups, weight_decay=phase.weight_decay, fused=True)
    raise ValueError(f"no such optimizer: {phase.optimizer}")


def _accuracy(rest: Body, tensors: Tensors, material: Material, device: torch.device) -> float:
    """Share of the validation examples that are classified rightly, BatchNorm with its running statistics."""
    own = {name: tensors[name] for name in rest.names}
    with features.inference(rest.module, device):
        right = [
            (rest(own, x).argmax(1) == y).float()
            for x, y in zip(
                material.x_validation.split(features.BATCH), material.y_validation.split(features.BATCH), strict=True
            )
        ]
    return float(torch.cat(right).mean())
