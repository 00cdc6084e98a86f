"""A network that somebody has trained already, as a fit: its tensors with its own head, and those that it was made from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from xferbench.core.errors import UserError
from xferbench.lab.models import backbones, checkpoint_reader, checkpoints
from xferbench.lab.training.network import TrainedModel

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from xferbench.core.pipeline import Checkpoint
    from xferbench.lab.data.datasets import Dataset
    from xferbench.lab.training.network import Architecture, Tensors


def head_sizes(
    module: nn.Module, head: str, network: Checkpoint, before: Mapping[str, Tensor], classes: int
) -> tuple[int, bool]:
    """How many outputs a finished network's own head has, and whether all below it is as it was; both checkpoints must fit.

    Raises:
        UserError: where one does not fit, the finished one has no head, both hold the same weights, or they look exchanged;
            with the suite's key.
    """
    after, below = checkpoint_reader.read_checkpoint(Path(network.after.path)), {}
    for key, state in {"after": after, "before": before if network.before else {}}.items():
        try:
            below[key] = checkpoints.match_tensors(module, state, head)[0] if state else {}
        except UserError as problem:
            raise problem.at(f"[checkpoint] {key}: {problem.what}") from problem
    found = head_outputs(module, head, after)
    if not network.before:
        return found, False
    if before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in after):
        do = "give the pretrained weights as before, or leave before out"
        raise UserError(
            "[checkpoint] before equals after", found="the same weights in both files", expected="two networks", do=do
        )
    other = checkpoints.head_tensors(module, before, head).get(f"{head}.weight")
    if other is not None and len(other) == classes != found:
        told = f"after has {found} outputs, before {len(other)}, the data {classes} classes"
        raise UserError(
            "[checkpoint] before and after look exchanged",
            found=told,
            expected="after with a head for the data",
            do="exchange them",
        )
    learnt = [name for name in below["after"] if not name.endswith(checkpoints.BATCH_COUNTER)]
    return found, all(torch.equal(below["before"][name], below["after"][name]) for name in learnt if name in below["before"])


def head_outputs(module: nn.Module, head: str, state: Mapping[str, Tensor]) -> int:
    """How many outputs a checkpoint's own head has.

    Raises:
        UserError: where it has none.
    """
    weight = checkpoints.head_tensors(module, state, head).get(f"{head}.weight")
    if weight is None:
        raise UserError(
            "[checkpoint] after: the finished network has no head",
            found=f"no tensor {head}.weight in the file",
            expected="the weights after fine-tuning, with the head that was trained",
            do="save the whole network's state_dict()",
        )
    return len(weight)


def checkpoint_tensors(network: Architecture, state: Mapping[str, Tensor]) -> Tensors:
    """A checkpoint's tensors by the network's names, on the CPU; those of a head that does not fit the network are left out.

    Raises:
        UserError: where it does not fit the network below its head.
    """
    module, head = network.module, network.anatomy.head
    given, _ = checkpoints.match_tensors(module, state, head)
    here = {name: tensor.detach() for name, tensor in (*module.named_parameters(), *module.named_buffers())}
    heads = {name: tensor for name, tensor in checkpoints.head_tensors(module, state, head).items() if name in here}
    fitting = {name: tensor for name, tensor in heads.items() if tensor.shape == here[name].shape}
    return {
        name: _laid((given | fitting).get(name, tensor).to(tensor.dtype))  # what no file has: counters, fixed tables
        for name, tensor in here.items()
        if name in fitting or not backbones.is_within(name, [head])
    }


def _laid(tensor: Tensor) -> Tensor:
    """A copy, a kernel's channels last: on a CPU a ResNet-18 then takes two thirds of the time, a SqueezeNet less than half."""
    return tensor.clone(memory_format=torch.channels_last if tensor.ndim == 4 else torch.contiguous_format)


def trained_model(
    network: Architecture, after: Mapping[str, Tensor], before: Mapping[str, Tensor] | None, dataset: Dataset
) -> TrainedModel:
    """A finished network as what training would have left; without ``before``, as one that never moved.

    ``before`` lacks the head's tensors where its own head was another.

    Raises:
        UserError: where a file does not fit the network.
    """
    last = checkpoint_tensors(network, after)
    lacking = [name for name, _ in network.module.named_parameters() if name not in last]
    if lacking:
        raise UserError(
            "the finished network's head does not fit", found=f"no {', '.join(lacking)}", expected="a whole network"
        )
    labels = dataset.train.labels if len(dataset.train.labels) else dataset.test.labels
    return TrainedModel(
        before=last if before is None else checkpoint_tensors(network, before),
        last=last,
        best=last,
        curve=(),
        diverged=not all(bool(torch.isfinite(one).all()) for one in last.values() if one.is_floating_point()),
        prior=tuple((np.bincount(labels, minlength=network.anatomy.classes) / len(labels)).tolist()),
        seconds=0.0,
    )
