"""The training loop. It trains a group of networks that differ only in their seed, in lockstep. Imports torch.

The tensors of the members are stacked along a first axis and pass through :func:`torch.func.vmap`; a group of one skips it. SGD
and Adam work elementwise, so every member trains as if it were alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap
from torch.nn import functional as F

from xferbench.core.interventions import BATCHNORM_EVAL, HEAD_ONLY, BatchNormEval, BatchNormTrainAbove, LoRA, TopGroups
from xferbench.lab.data import augmentation
from xferbench.lab.models import backbones, batchnorm, dropout, graph_split, lora
from xferbench.lab.training import dann, feature_cache, regularizers, seeds
from xferbench.lab.training.examples import batch_indices, training_subset
from xferbench.lab.training.network import Architecture, AuxiliaryInputs, PhaseModel, Tensors, TrainedModel, TrainingTensors
from xferbench.lab.training.schedules import lr_factor, parameter_groups

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import nn

    from xferbench.core.pipeline import Phase
    from xferbench.core.transforms import InputTransform
    from xferbench.core.trial import TrainingSpec
    from xferbench.lab.data.datasets import Dataset
    from xferbench.lab.models.backbones import LayerLayout
    from xferbench.lab.training.dann import DannPhase, DomainDiscriminator
    from xferbench.lab.training.examples import TrainingSubset
    from xferbench.lab.training.regularizers import PenaltyTerm, RegularizerState

VALIDATION_CHECKS = 5  # number of validations during a training


@dataclass(frozen=True, slots=True, kw_only=True)
class _PhaseRun:
    """One phase of a group: the module that runs at each step, and its inputs.

    ``data`` has one element per member. ``penalty`` and ``dann`` are None without such a regularizer.
    """

    phase: Phase
    index: int
    specs: Sequence[TrainingSpec]
    network: Architecture
    model: PhaseModel
    data: Sequence[TrainingTensors]
    penalty: PenaltyTerm | None
    dann: DannPhase | None


def frozen_cut(phase: Phase, layout: LayerLayout) -> int:
    """Return how many of the lowest layer groups compute the same at every step of a phase, so that once is enough."""
    frozen = 0
    if phase.trainable == HEAD_ONLY:
        frozen = len(layout.groups)
    elif isinstance(phase.trainable, TopGroups):
        frozen = len(layout.groups) - phase.trainable.groups
    has_changing_statistics = not isinstance(phase.batchnorm, BatchNormEval | BatchNormTrainAbove) and any(
        backbones.is_within(name, prefixes_below(layout, frozen)) for name in layout.batchnorm
    )
    return 0 if has_changing_statistics else frozen


def prefixes_below(layout: LayerLayout, groups: int) -> list[str]:
    """Return the name prefixes of the lowest layer groups."""
    return [prefix for group in layout.groups[:groups] for prefix in group.prefixes]


def split_phase_model(network: Architecture, frozen: int, transform: InputTransform) -> tuple[nn.Module | None, PhaseModel]:
    """Split a network above its ``frozen`` lowest groups.

    Returns:
        The lower part, or None if there is no cut or the network cannot be split; and the model that the phase runs.
    """
    parts = graph_split.split_at(network.module, network.layout, frozen) if frozen else None
    if parts is None:
        return None, PhaseModel(module=network.module, transform=transform)
    lower, upper = parts
    return lower, PhaseModel(module=upper, transform=None)


def train(
    specs: Sequence[TrainingSpec],
    network: Architecture,
    starts: Sequence[Tensors],
    dataset: Dataset,
    source: AuxiliaryInputs | None = None,
) -> list[TrainedModel]:
    """Train a group of networks in lockstep.

    Args:
        specs: the trainings, equal except for their seeds.
        network: their structure.
        starts: the tensors of each member before training.
        dataset: the dataset, in the geometry of their preprocessing.
        source: the inputs of their regularizer, if they have one.

    Raises:
        RuntimeError: if a frozen tensor changes.
        UserError: if the examples are not images and the recipe augments them.
    """
    start_time = perf_counter()
    subsets = [training_subset(dataset, spec) for spec in specs]
    stacked = {name: torch.stack([start[name] for start in starts]).to(network.device) for name in starts[0]}
    regularizer, discriminator = _build_auxiliaries(specs, network, starts[0], dataset, subsets, source)
    curve: list[tuple[int, list[float], list[float]]] = []
    best, best_scores = list(starts), [-1.0] * len(specs)
    total_steps = sum(phase.steps for phase in specs[0].procedure.phases)
    check_steps = [round(total_steps * (check + 1) / VALIDATION_CHECKS) for check in range(VALIDATION_CHECKS)]
    previous_steps = 0
    for index, phase in enumerate(specs[0].procedure.phases):
        if not phase.steps:
            continue
        run = _prepare_phase(index, specs, network, stacked, dataset, subsets, regularizer, discriminator)
        for step, losses in _train_phase(run, stacked, check_steps=[check - previous_steps for check in check_steps]):
            members = [member_tensors(stacked, member) for member in range(len(specs))]
            scores = [
                _accuracy(run.model, tensors, data, network.device) for tensors, data in zip(members, run.data, strict=True)
            ]
            curve.append((previous_steps + step, losses, scores))
            for member, score in enumerate(scores):
                if score > best_scores[member]:
                    best[member], best_scores[member] = _copy_member(stacked, member), score
        previous_steps += phase.steps
    seconds = (perf_counter() - start_time) / len(specs)
    return [
        _trained_model(
            before=starts[member],
            last=_copy_member(stacked, member),
            best=best[member],
            curve=tuple((step, losses[member], scores[member]) for step, losses, scores in curve),
            labels=subsets[member].labels,
            classes=len(dataset.classes),
            seconds=seconds,
            teacher=source.teachers[member] if source and source.teachers else None,
        )
        for member in range(len(specs))
    ]


def member_tensors(stacked: Tensors, member: int) -> Tensors:
    """Return the tensors of one member, as views of the stacked ones."""
    return {name: tensor[member] for name, tensor in stacked.items()}


def only_member(stacked: Tensors) -> Tensors:
    """Return the tensors of the only member. In contrast to an index, a squeeze needs no copy in the backward pass."""
    return {name: tensor.squeeze(0) for name, tensor in stacked.items()}


def _build_auxiliaries(
    specs: Sequence[TrainingSpec],
    network: Architecture,
    start: Tensors,
    dataset: Dataset,
    subsets: Sequence[TrainingSubset],
    source: AuxiliaryInputs | None,
) -> tuple[RegularizerState | None, DomainDiscriminator | None]:
    """Build the regularizer and the domain discriminators that the trainings need."""
    if source is None:
        return None, None
    images = [torch.from_numpy(np.array(subset.split.images[subset.index])) for subset in subsets]
    teachers = tuple(teacher.last for teacher in source.teachers)
    regularizer = regularizers.build_regularizer(
        specs, network, start, source.head, source.memory, images, source.plain or network, teachers
    )
    return regularizer, dann.build_discriminator(specs, network, source.unlabelled, dataset.train.images.shape[1:])


def _prepare_phase(
    index: int,
    specs: Sequence[TrainingSpec],
    network: Architecture,
    stacked: Tensors,
    dataset: Dataset,
    subsets: Sequence[TrainingSubset],
    regularizer: RegularizerState | None,
    discriminator: DomainDiscriminator | None,
) -> _PhaseRun:
    """Split the network for a phase, and compute everything below the cut once."""
    spec, phase = specs[0], specs[0].procedure.phases[index]
    frozen = 0 if spec.procedure.augment else frozen_cut(phase, network.layout)
    lower, model = split_phase_model(network, frozen, spec.data.preprocessing)
    members = [member_tensors(stacked, member) for member in range(len(specs))]
    data = [
        _training_tensors(lower, tensors, dataset, subset, spec.data.preprocessing, network)
        for tensors, subset in zip(members, subsets, strict=True)
    ]
    penalty, dann_phase = None, None
    if regularizer is not None:
        penalty = regularizers.build_penalty_term(regularizer, lower, members, phase, index, specs, network)
    if discriminator is not None:
        dann_phase = dann.build_dann_phase(discriminator, lower, members, phase, index, specs, network)
    return _PhaseRun(
        phase=phase, index=index, specs=specs, network=network, model=model, data=data, penalty=penalty, dann=dann_phase
    )


def _training_tensors(
    lower: nn.Module | None,
    tensors: Tensors,
    dataset: Dataset,
    subset: TrainingSubset,
    transform: InputTransform,
    network: Architecture,
) -> TrainingTensors:
    """Return the examples of one member in the form that a phase takes."""
    validation = (dataset.train, subset.validation)
    if dataset.validation is not None:
        validation = (dataset.validation, np.arange(len(dataset.validation.labels)))
    (x, y), (x_validation, y_validation) = (
        (
            feature_cache.member_inputs(
                lower, [tensors], torch.from_numpy(np.array(split.images[index])), transform, network.device, network.cache
            )[0],
            torch.from_numpy(split.labels[index]).to(network.device),
        )
        for split, index in ((subset.split, subset.index), validation)
    )
    return TrainingTensors(x=x, y=y, x_validation=x_validation, y_validation=y_validation)


def _train_phase(run: _PhaseRun, stacked: Tensors, *, check_steps: Sequence[int]) -> Iterator[tuple[int, list[float]]]:
    """Train a phase, and change ``stacked`` in place.

    Yields:
        At each check, the step and the mean loss of each member since the previous check.
    """
    phase, network, specs = run.phase, run.network, run.specs
    trainable = backbones.trainable_names(network.layout, network.module, phase.trainable) & set(run.model.names)
    frozen = {name: tensor.clone() for name, tensor in stacked.items() if name not in trainable}
    start = {name: stacked[name].detach().clone() for name in sorted(trainable)}
    lora_names = backbones.names_by_kind(network.layout, network.module)["lora"] if isinstance(phase.trainable, LoRA) else set()
    lora_rngs = [seeds.numpy_stream(spec.seed, seeds.LOW_RANK, run.index) for spec in specs]
    parameters = lora.phase_parameters(phase, start, lora_names, lora_rngs)
    depth = lora.weight_depths(parameters, backbones.layer_depth(network.layout, network.module))
    optimizer = _build_optimizer(phase, parameters, depth, run.dann.discriminator.tensors if run.dann else {})
    peak_lrs = [group["lr"] for group in optimizer.param_groups]
    index = _stacked_batch_indices(run)
    draws = augmentation.draw_augmentations(specs, run.index, (index.shape[0], index.shape[2]), run.data[0].x.shape[-2:])
    torch.manual_seed(seeds.torch_seed(specs[0].seed, seeds.DROPOUT))
    fixed = {name: stacked[name] for name in run.model.names}
    losses, steps_since_check = torch.zeros(len(specs), device=network.device), 0
    frozen_prefixes = prefixes_below(network.layout, frozen_cut(phase, network.layout))
    with (
        batchnorm.set_training(run.model.module, phase.batchnorm, frozen_prefixes),
        dropout.set_probability(run.model.module, phase.dropout, network.layout.head),
    ):
        for step in range(phase.steps):
            for group, peak_lr in zip(optimizer.param_groups, peak_lrs, strict=True):
                group["lr"] = peak_lr * lr_factor(phase, step)
            loss = _member_losses(run, step, fixed, lora.merge_weights(start, parameters), index[step], draws)
            optimizer.zero_grad(set_to_none=True)
            loss.sum().backward()
            if phase.clip is not None:
                _clip_gradients(parameters, phase.clip)
            optimizer.step()
            losses, steps_since_check = losses + loss.detach(), steps_since_check + 1
            if step + 1 in check_steps or step + 1 == phase.steps:
                for name, tensor in lora.merge_weights(start, parameters).items():
                    stacked[name].copy_(tensor.detach())
            if step + 1 in check_steps:
                yield step + 1, (losses / steps_since_check).tolist()
                losses, steps_since_check = torch.zeros_like(losses), 0
    _check_frozen(run, frozen, stacked, frozen_prefixes)


def _stacked_batch_indices(run: _PhaseRun) -> Tensor:
    """Return the examples [steps, members, batch size] of each batch. The smallest member limits the batch size."""
    batch_size = min(run.phase.batch_size, *(len(data.y) for data in run.data))
    phase = replace(run.phase, batch_size=batch_size)
    indices = [
        batch_indices(phase, spec.seed, run.index, data.y.cpu().numpy()) for spec, data in zip(run.specs, run.data, strict=True)
    ]
    return torch.from_numpy(np.stack(indices, axis=1)).to(run.network.device)


def _member_losses(
    run: _PhaseRun, step: int, fixed: Tensors, parameters: Tensors, index: Tensor, draws: augmentation.Draws | None
) -> Tensor:
    """Compute the training loss [members] at one step.

    Args:
        run: the phase.
        step: the step of the phase, counted from 0.
        fixed: the stacked tensors at the start of the phase.
        parameters: the stacked tensors that the phase trains.
        index: [members, batch size], the examples of the batches.
        draws: the augmentation of the phase.
    """
    classes = run.network.layout.classes
    batches = [data.x[rows] for data, rows in zip(run.data, index, strict=True)]
    batches = augmentation.augment_batches(batches, draws, step)
    y = torch.stack([data.y[rows] for data, rows in zip(run.data, index, strict=True)])
    tensors = fixed | parameters
    if run.penalty is not None:
        batches = regularizers.append_source_images(run.penalty, step, batches)
        tensors = regularizers.append_source_head(run.penalty, tensors)
    with feature_cache.autocast(run.network.device):
        logits = _run_members(run.model, tensors, batches).float()
    target_logits = logits[:, : y.shape[1], :classes]
    losses = F.cross_entropy(
        target_logits.flatten(0, 1), y.flatten(), reduction="none", label_smoothing=run.phase.label_smoothing
    )
    loss = losses.view(len(run.specs), -1).mean(1)
    if run.penalty is not None:
        penalty = regularizers.penalty_loss(run.penalty, step, logits, parameters, index, classes, batches)
        loss = run.penalty.state.label_loss_weight * loss + penalty
    if run.dann is not None:
        loss = loss + dann.dann_loss(run.dann, step, run.model, tensors, batches, draws)
    return loss


def _run_members(model: PhaseModel, stacked: Tensors, batches: Sequence[Tensor]) -> Tensor:
    """Compute the logits [members, batch, outputs] of all members."""
    if len(batches) == 1:
        return model(only_member(stacked), batches[0])[None]
    logits: Tensor = vmap(model, randomness="different")(stacked, torch.stack(list(batches)))
    return logits


def _check_frozen(run: _PhaseRun, frozen: Mapping[str, Tensor], stacked: Tensors, frozen_prefixes: Sequence[str]) -> None:
    """Check that a phase changed only what it trains, and the running statistics above the frozen part.

    Raises:
        RuntimeError: if a frozen tensor changed.
    """
    statistics = {
        name
        for name in batchnorm.statistics_names(run.model.module)
        if run.phase.batchnorm != BATCHNORM_EVAL and not backbones.is_within(name, frozen_prefixes)
    }
    changed = [name for name, tensor in frozen.items() if name not in statistics and not _is_equal(tensor, stacked[name])]
    if changed:
        raise RuntimeError(f"frozen tensors moved in phase {run.index + 1}: {', '.join(changed[:5])}")


def _is_equal(tensor: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are equal. NaN equals NaN, because an earlier phase may have diverged."""
    return bool(torch.allclose(tensor, other, rtol=0, atol=0, equal_nan=True))


def _clip_gradients(parameters: Tensors, largest: float) -> None:
    """Scale the gradient of each member so that its norm over all parameters [members, ...] is at most ``largest``."""
    gradients = [tensor.grad for tensor in parameters.values() if tensor.grad is not None]
    squares = torch.stack([gradient.flatten(1).square().sum(1) for gradient in gradients])
    factor = (largest / (squares.sum(0).sqrt() + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factor.view(-1, *[1] * (gradient.dim() - 1)))


def _build_optimizer(phase: Phase, parameters: Tensors, depth: dict[str, int], discriminator: Tensors) -> torch.optim.Optimizer:
    groups: list[dict[str, Any]] = parameter_groups(phase, parameters, depth)
    if discriminator:
        groups.append({"params": [*discriminator.values()], "lr": max(dann.DISCRIMINATOR_LR, phase.lr)})
    if phase.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=0.9, weight_decay=phase.weight_decay)
    if phase.optimizer == "adamw":
        return torch.optim.AdamW(groups, weight_decay=phase.weight_decay, fused=True)
    raise ValueError(f"unknown optimizer: {phase.optimizer}")


def _accuracy(model: PhaseModel, tensors: Tensors, data: TrainingTensors, device: torch.device) -> float:
    """Compute the validation accuracy of one member in evaluation mode."""
    model_tensors = {name: tensors[name] for name in model.names}
    with feature_cache.evaluation_mode(model.module, device):
        is_correct = [
            (model(model_tensors, x).argmax(1) == y).float()
            for x, y in zip(
                data.x_validation.split(feature_cache.INFERENCE_BATCH),
                data.y_validation.split(feature_cache.INFERENCE_BATCH),
                strict=True,
            )
        ]
    return float(torch.cat(is_correct).mean())


def _trained_model(
    *,
    before: Tensors,
    last: Tensors,
    best: Tensors,
    curve: tuple[tuple[int, float, float], ...],
    labels: np.ndarray,
    classes: int,
    seconds: float,
    teacher: TrainedModel | None,
) -> TrainedModel:
    is_finite = all(bool(torch.isfinite(tensor).all()) for tensor in last.values() if tensor.is_floating_point())
    return TrainedModel(
        before=before,
        last=last,
        best=best,
        curve=curve,
        diverged=not (is_finite and all(np.isfinite(loss) for _, loss, _ in curve)),
        prior=tuple((np.bincount(labels, minlength=classes) / len(labels)).tolist()),
        seconds=seconds,
        taught=teacher.seconds if teacher else 0.0,
    )


def _copy_member(stacked: Tensors, member: int) -> Tensors:
    return {name: tensor.detach().cpu().clone() for name, tensor in member_tensors(stacked, member).items()}
