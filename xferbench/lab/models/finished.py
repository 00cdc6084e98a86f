"""A checkpoint of the user as a trained model: its tensors with its own head, and those that it was trained from.

Reads files, imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from xferbench.core.errors import UserError
from xferbench.lab.models import backbones, checkpoint_reader, checkpoints, finished_heads, heads, transformers_text
from xferbench.lab.models.batchnorm import BATCH_COUNTER
from xferbench.lab.training.network import TrainedModel

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from xferbench.core.finished_head import FinishedHead
    from xferbench.core.pipeline import Checkpoint
    from xferbench.lab.data.datasets import Dataset
    from xferbench.lab.training.network import Architecture, Tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSummary:
    """What the files of a checkpoint say, before anything is computed.

    Attributes:
        head: the head of the file ``after``.
        body_unchanged: whether all parameters below the head equal those of ``before``.
        notes: what is assumed of the file ``after``, and what is not used.
    """

    head: finished_heads.CheckpointHead
    body_unchanged: bool = False
    notes: tuple[str, ...] = ()


def inspect_checkpoint(
    module: nn.Module, head: str, checkpoint: Checkpoint, before: Mapping[str, Tensor], classes: int, arch: str = "ARCH"
) -> CheckpointSummary:
    """Check that both files of a checkpoint match the network, and find the head.

    Args:
        module: the network.
        head: the name of its head.
        checkpoint: the files that the suite names.
        before: the tensors of the file ``before``; not used if the suite names none.
        classes: the number of classes of the data.
        arch: the name of the network, for advice.

    Raises:
        UserError: if a file does not match the network, ``after`` has no head that can be read, both files contain the same
            weights, or the files appear to be exchanged. The message names the suite key.
    """
    after, reading_note = checkpoint_reader.read_with_note(Path(checkpoint.after.path))
    below_head, place = {}, finished_heads.find_place(module, head, after)
    for key, state in {"after": after, "before": before if checkpoint.before else {}}.items():
        try:
            below_head[key] = checkpoints.match_tensors(module, state, place)[0] if state else {}
        except UserError as error:
            raise error.at(f"[checkpoint] {key}: {error.what}") from error
    found = finished_heads.find_head(module, head, after, classes, arch)
    unused_note = finished_heads.unused_note(module, found, after)
    summary = CheckpointSummary(head=found, notes=tuple(note for note in (reading_note, unused_note, found.note) if note))
    if not checkpoint.before:
        return summary
    _check_distinct(before, after)
    if (found.outputs, classes) != (1, 2):  # one output is a head for two classes
        _check_order(checkpoints.head_tensors(module, before, head).get(f"{head}.weight"), found.outputs, classes)
    shared_parameters = [
        name for name in below_head["after"] if name in below_head["before"] and not name.endswith(BATCH_COUNTER)
    ]
    unchanged = all(torch.equal(below_head["before"][name], below_head["after"][name]) for name in shared_parameters)
    return replace(summary, body_unchanged=unchanged)


def _check_distinct(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
    if before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in after):
        raise UserError(
            "[checkpoint] before equals after",
            found="the same weights in both files",
            expected="two networks",
            do="give the pretrained weights as before, or leave before out",
        )


def _check_order(before_head: Tensor | None, outputs: int, classes: int) -> None:
    if before_head is not None and len(before_head) == classes != outputs:
        raise UserError(
            "[checkpoint] before and after appear to be exchanged",
            found=f"after has {outputs} outputs, before {len(before_head)}, the data {classes} classes",
            expected="after with a head for the data",
            do="exchange them",
        )


def head_outputs(module: nn.Module, head: str, state: Mapping[str, Tensor]) -> int:
    """Return the number of outputs of a checkpoint whose head is that of the architecture."""
    return len(checkpoints.head_tensors(module, state, head)[f"{head}.weight"])


def checkpoint_tensors(network: Architecture, state: Mapping[str, Tensor], head: FinishedHead | None = None) -> Tensors:
    """Return the tensors of a checkpoint under the names of a network, on the CPU.

    Head tensors are left out if their shape differs from the network, and layers that a classifier of transformers adds if the
    checkpoint is one of the network without them. A head with one output of a network with two becomes one
    with two, whose first output is 0: the softmax of both is the sigmoid of the one.

    Args:
        network: the network, with the head of the checkpoint.
        state: the tensors of the checkpoint.
        head: the head of the checkpoint, if it differs from that of the architecture.

    Raises:
        UserError: if the checkpoint does not match the network below its head.
    """
    module, place = network.module, network.layout.head
    body, _ = checkpoints.match_tensors(module, state, place)
    defaults = {name: tensor.detach() for name, tensor in (*module.named_parameters(), *module.named_buffers())}
    found = head_tensors(head, state) if head else checkpoints.head_tensors(module, state, place)
    kept = {
        name: tensor
        for name, tensor in _with_zero_output(found, network).items()
        if name in defaults and tensor.shape == defaults[name].shape
    }
    file_tensors = body | kept
    outside = (place, *transformers_text.added_layers(module))
    # Counters and constant tables may be missing in the file. They keep the values of the network.
    return {
        name: _copy(file_tensors.get(name, default).to(default.dtype))
        for name, default in defaults.items()
        if name in file_tensors or _is_counter_of(name, kept) or not backbones.is_within(name, outside)
    }


def _is_counter_of(name: str, tensors: Mapping[str, Tensor]) -> bool:
    """Return whether a tensor is the counter of a BatchNorm layer that has its statistics among some tensors."""
    return name.endswith(BATCH_COUNTER) and name.removesuffix(BATCH_COUNTER) + "running_mean" in tensors


def head_tensors(head: FinishedHead, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a head under the names of the network; those that a file lacks are left out."""
    return {new: state[name] for name, new in finished_heads.head_tensor_names(head).items() if name in state}


def _with_zero_output(found: Mapping[str, Tensor], network: Architecture) -> Mapping[str, Tensor]:
    """Return the tensors of a head, after an output of 0 if they have one output and the network has two."""
    last = heads.last_layer(network.module, network.layout.head)
    outputs = {name: tensor for name, tensor in found.items() if backbones.is_within(name, [last])}
    if network.layout.classes != 2 or any(tensor.ndim < 1 or len(tensor) != 1 for tensor in outputs.values()):
        return found
    return {**found, **{name: torch.cat([torch.zeros_like(tensor), tensor]) for name, tensor in outputs.items()}}


def _copy(tensor: Tensor) -> Tensor:
    """Copy a tensor, with the channels of a kernel last.

    On a CPU, a ResNet-18 then needs two thirds of the time, and a SqueezeNet less than half.
    """
    return tensor.clone(memory_format=torch.channels_last if tensor.ndim == 4 else torch.contiguous_format)


def count_non_finite(tensors: Mapping[str, Tensor], module: nn.Module) -> dict[str, int]:
    """Return how many values are NaN or infinite, by tensor.

    An infinite value of a buffer that a new network has too is part of the architecture, such as a bound that clips nothing.
    """
    constants = dict(module.named_buffers())
    counts = {
        name: int((~tensor.isfinite()).sum())
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and not (name in constants and torch.equal(tensor.cpu(), constants[name].cpu()))
    }
    return {name: count for name, count in counts.items() if count}


def trained_model(
    network: Architecture,
    after: Mapping[str, Tensor],
    before: Mapping[str, Tensor] | None,
    dataset: Dataset,
    head: FinishedHead | None = None,
) -> TrainedModel:
    """Return a checkpoint in the form that training returns.

    ``head`` is as in :func:`checkpoint_tensors`. Without ``before``, the tensors before training equal those after it.
    ``before`` lacks the head if the head of the earlier checkpoint had another shape.

    Raises:
        UserError: if a file does not match the network.
    """
    last = checkpoint_tensors(network, after, head)
    missing = [name for name, _ in network.module.named_parameters() if name not in last]
    if missing:
        raise UserError(
            "the head of the checkpoint does not match the network",
            found=f"no {', '.join(missing)}",
            expected="all tensors of the network",
        )
    labels = dataset.train.labels if len(dataset.train.labels) else dataset.test.labels
    return TrainedModel(
        before=last if before is None else checkpoint_tensors(network, before, head),
        last=last,
        best=last,
        curve=(),
        diverged=bool(count_non_finite(last, network.module)),
        prior=tuple((np.bincount(labels, minlength=network.layout.classes) / len(labels)).tolist()),
        seconds=0.0,
    )
