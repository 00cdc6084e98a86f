"""The one training loop: a group of fits that differ only in their seed, trained in lock-step.

Their tensors are stacked along a first axis and go through ``torch.func.vmap``; a group of one skips it. Elementwise
optimizers (SGD, Adam) then train every member as if it were alone.
"""

from __future__ import annotations

from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap
from torch.nn import functional as F

from xferbench.core.interventions import HEAD_ONLY, LoRA, TopGroups
from xferbench.lab.data import augmentation
from xferbench.lab.models import backbones, batchnorm, lora
from xferbench.lab.training import dann, feature_cache, regularizers, seeds
from xferbench.lab.training.examples import training_subset
from xferbench.lab.training.network import Architecture, AuxiliaryInputs, PhaseModel, Tensors, TrainedModel, TrainingTensors
from xferbench.lab.training.schedules import lr_factor, parameter_groups

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import nn

    from xferbench.core.pipeline import InputTransform, Phase
    from xferbench.core.trial import TrainingSpec
    from xferbench.lab.data.datasets import Dataset
    from xferbench.lab.models.backbones import LayerLayout
    from xferbench.lab.training.examples import TrainingSubset

VALIDATION_CHECKS = 5  # times that a fit looks at its validation examples


def frozen_cut(phase: Phase, anatomy: LayerLayout) -> int:
    """How many of the lowest layer groups compute the same at every step of a phase, and so may be computed once."""
    frozen = 0
    if phase.trainable == HEAD_ONLY:
        frozen = len(anatomy.groups)
    elif isinstance(phase.trainable, TopGroups):
        frozen = len(anatomy.groups) - phase.trainable.groups
    moving = phase.batchnorm not in {"eval", "train-above"} and any(
        backbones.is_within(name, prefixes_below(anatomy, frozen)) for name in anatomy.batchnorm
    )
    return 0 if moving else frozen


def prefixes_below(anatomy: LayerLayout, groups: int) -> list[str]:
    """Name prefixes of the lowest layer groups."""
    return [prefix for group in anatomy.groups[:groups] for prefix in group.prefixes]


def split_phase_model(network: Architecture, frozen: int, ready: InputTransform) -> tuple[nn.Module | None, PhaseModel]:
    """The part below a cut (None where nothing is cut off, or the graph cannot be parted) and the rest."""
    parts = backbones.split_at(network.module, network.anatomy, frozen) if frozen else None
    return (
        (None, PhaseModel(module=network.module, ready=ready))
        if parts is None
        else (parts[0], PhaseModel(module=parts[1], ready=None))
    )


def train(
    fits: Sequence[TrainingSpec],
    network: Architecture,
    starts: Sequence[Tensors],
    dataset: Dataset,
    source: AuxiliaryInputs | None = None,
) -> list[TrainedModel]:
    """Train fits of equal shape in lock-step.

    Args:
        fits: equal but for their seeds.
        network: their structure.
        starts: each one's tensors before training.
        dataset: in the geometry of the fits' preprocessing.
        source: for their regularizer; None where they have none.

    Raises:
        RuntimeError: where a tensor moved that was to be frozen. UserError: where what is no image is to be augmented.
    """
    begun = perf_counter()
    chosen = [training_subset(dataset, fit) for fit in fits]
    stacked = {name: torch.stack([start[name] for start in starts]).to(network.device) for name in starts[0]}
    curve: list[tuple[int, list[float], list[float]]] = []
    best, top = list(starts), [-1.0] * len(fits)
    total = sum(phase.steps for phase in fits[0].phases)
    marks = [round(total * (check + 1) / VALIDATION_CHECKS) for check in range(VALIDATION_CHECKS)]
    held = rival = None
    if source is not None:
        images = [torch.from_numpy(np.array(subset.split.images[subset.index])) for subset in chosen]
        asked = source.plain or network, tuple(one.last for one in source.teachers)
        held = regularizers.build_regularizer(fits, network, starts[0], source.head, source.memory, images, *asked)
        rival = dann.discriminator(fits, network, source.unlabelled, dataset.train.images.shape[1:])
    done = 0
    for number, phase in enumerate(fits[0].phases):
        if not phase.steps:
            continue
        lower, rest = split_phase_model(
            network, 0 if fits[0].augment else frozen_cut(phase, network.anatomy), fits[0].preprocessing
        )
        members = [member_tensors(stacked, g) for g in range(len(fits))]
        material = [_material(lower, members[g], dataset, chosen[g], fit, network) for g, fit in enumerate(fits)]
        term = regularizers.penalty_term(held, lower, members, phase, number, fits, network) if held else None
        bout = dann.dann_batch(rival, lower, members, phase, number, fits, network) if rival else None
        left = [mark - done for mark in marks]
        for step, loss in _phase(phase, number, fits, rest, network, stacked, material, term, bout, marks=left):
            scores = [_accuracy(rest, member_tensors(stacked, g), material[g], network.device) for g in range(len(fits))]
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
            TrainedModel(
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


def member_tensors(stacked: Tensors, g: int) -> Tensors:
    """One member's tensors, as views of the stacked ones."""
    return {name: tensor[g] for name, tensor in stacked.items()}


def only_member(stacked: Tensors) -> Tensors:
    """The only member's tensors; unlike an index, a squeeze needs no copy on the way back."""
    return {name: tensor.squeeze(0) for name, tensor in stacked.items()}


def _taken(stacked: Tensors, g: int) -> Tensors:
    return {name: tensor.detach().cpu().clone() for name, tensor in member_tensors(stacked, g).items()}


def _finite(tensors: Tensors) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values() if tensor.is_floating_point())


def _material(
    lower: nn.Module | None,
    tensors: Tensors,
    dataset: Dataset,
    subset: TrainingSubset,
    fit: TrainingSpec,
    network: Architecture,
) -> TrainingTensors:
    own = dataset.validation
    held_out = (dataset.train, subset.validation) if own is None else (own, np.arange(len(own.labels)))
    found = []
    for split, index in ((subset.split, subset.index), held_out):
        x = torch.from_numpy(np.array(split.images[index]))
        if lower is not None:
            x = feature_cache.compute_activations(lower, tensors, x, fit.preprocessing, network.device, network.cache)
        found += [x.to(network.device), torch.from_numpy(split.labels[index]).to(network.device)]
    return TrainingTensors(x=found[0], y=found[1], x_validation=found[2], y_validation=found[3])


def batch_indices(phase: Phase, seed: int, number: int, labels: np.ndarray) -> np.ndarray:
    """Indices [steps, batch] of a phase's batches: epoch after epoch, each example once an epoch.

    In class order each epoch is sorted by class, as a class folder is read that nobody shuffled.
    """
    rng, size = seeds.numpy_stream(seed, seeds.ORDER, number), min(phase.batch_size, len(labels))
    epochs = [rng.permutation(len(labels)) for _ in range(-(-phase.steps * size // len(labels)))]
    if phase.order == "class":
        epochs = [epoch[np.argsort(labels[epoch], kind="stable")] for epoch in epochs]
    elif phase.order != "shuffled":
        raise ValueError(f"no such order: {phase.order}")
    return np.concatenate(epochs)[: phase.steps * size].reshape(phase.steps, size)


def _phase(
    phase: Phase,
    number: int,
    fits: Sequence[TrainingSpec],
    rest: PhaseModel,
    network: Architecture,
    stacked: Tensors,
    material: Sequence[TrainingTensors],
    term: regularizers.PenaltyTerm | None,
    bout: dann.DannBatch | None,
    *,
    marks: Sequence[int],
) -> Iterator[tuple[int, list[float]]]:
    """Train through one phase, changing ``stacked`` in place; at each mark, the step and the members' mean losses so far."""
    trained = backbones.trainable_names(network.anatomy, network.module, phase.trainable) & set(rest.names)
    before = {name: tensor.clone() for name, tensor in stacked.items() if name not in trained}
    begun = {name: stacked[name].detach().clone() for name in sorted(trained)}
    low = backbones.names_by_kind(network.anatomy, network.module)["lora"] if isinstance(phase.trainable, LoRA) else set()
    parameters = lora.phase_parameters(
        phase, begun, low, [seeds.numpy_stream(fit.seed, seeds.LOW_RANK, number) for fit in fits]
    )
    tensors = {name: stacked[name] for name in rest.names}
    distance = lora.weight_depths(parameters, backbones.layer_depth(network.anatomy, network.module))
    optimizer = _optimizer(phase, parameters, distance, bout.rival.tensors if bout else {})
    peaks = [group["lr"] for group in optimizer.param_groups]
    smallest = replace(phase, batch_size=min(phase.batch_size, *(len(part.y) for part in material)))  # batches are stacked
    orders = [batch_indices(smallest, fit.seed, number, part.y.cpu().numpy()) for fit, part in zip(fits, material, strict=True)]
    index = torch.from_numpy(np.stack(orders, axis=1)).to(network.device)  # [steps, members, batch]
    draws = augmentation.draw_augmentations(fits, number, orders[0].shape, material[0].x.shape[-2:])
    torch.manual_seed(seeds.torch_seed(fits[0].seed, seeds.DROPOUT))
    alone, together = len(fits) == 1, vmap(rest, randomness="different")
    losses = torch.zeros(len(fits), device=network.device)
    since = 0
    lowest = prefixes_below(network.anatomy, frozen_cut(phase, network.anatomy))
    with batchnorm.set_training(rest.module, phase.batchnorm, lowest):
        for step in range(phase.steps):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * lr_factor(phase, step)
            x = augmentation.augment_batches([part.x[index[step, g]] for g, part in enumerate(material)], draws, step)
            y = torch.stack([part.y[index[step, g]] for g, part in enumerate(material)])
            moving = lora.merge_weights(begun, parameters)
            used = tensors | moving
            if term is not None:
                x, used = regularizers.with_rehearsed(term, step, x), regularizers.with_source_head(term, used)
            with feature_cache.autocast(network.device):
                logits = (rest(only_member(used), x[0])[None] if alone else together(used, torch.stack(x))).float()
            own = logits[:, : y.shape[1], : network.anatomy.classes]
            loss = F.cross_entropy(own.flatten(0, 1), y.flatten(), reduction="none").view(len(fits), -1).mean(1)
            if term is not None:
                extra = regularizers.penalty_loss(term, step, logits, moving, index[step], network.anatomy.classes, x)
                loss = term.held.rest * loss + extra
            if bout is not None:
                loss = loss + dann.dann_loss(bout, step, rest, used, x, draws)
            optimizer.zero_grad(set_to_none=True)
            loss.sum().backward()
            optimizer.step()
            losses, since = losses + loss.detach(), since + 1
            if step + 1 in marks or step + 1 == phase.steps:
                for name, tensor in lora.merge_weights(begun, parameters).items():
                    stacked[name].copy_(tensor.detach())
            if step + 1 in marks:
                yield step + 1, (losses / since).tolist()
                losses, since = torch.zeros_like(losses), 0
    may_move = {
        name
        for name in batchnorm.statistics_names(rest.module)
        if phase.batchnorm != "eval" and not backbones.is_within(name, lowest)
    }
    moved = [name for name, tensor in before.items() if name not in may_move and not _equal(tensor, stacked[name])]
    if moved:
        raise RuntimeError(f"frozen tensors moved in phase {number + 1}: {', '.join(moved[:5])}")


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same; what an earlier phase left undefined has not moved where it still is."""
    return bool(torch.allclose(one, other, rtol=0, atol=0, equal_nan=True))


def _optimizer(phase: Phase, parameters: Tensors, depth: dict[str, int], rival: Tensors) -> torch.optim.Optimizer:
    groups: list[dict[str, Any]] = parameter_groups(phase, parameters, depth)
    groups += [{"params": [*rival.values()], "lr": max(dann.DISCRIMINATOR_LR, phase.lr)}] if rival else []
    if phase.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=0.9, weight_decay=phase.weight_decay)
    if phase.optimizer == "adamw":
        return torch.optim.AdamW(groups, weight_decay=phase.weight_decay, fused=True)
    raise ValueError(f"no such optimizer: {phase.optimizer}")


def _accuracy(rest: PhaseModel, tensors: Tensors, material: TrainingTensors, device: torch.device) -> float:
    """Share of the validation examples that are classified rightly, BatchNorm with its running statistics."""
    own = {name: tensors[name] for name in rest.names}
    with feature_cache.evaluation_mode(rest.module, device):
        right = [
            (rest(own, x).argmax(1) == y).float()
            for x, y in zip(
                material.x_validation.split(feature_cache.INFERENCE_BATCH),
                material.y_validation.split(feature_cache.INFERENCE_BATCH),
                strict=True,
            )
        ]
    return float(torch.cat(right).mean())
