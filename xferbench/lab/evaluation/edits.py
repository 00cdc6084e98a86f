"""What may be done to the tensors of a trained network without training it: repairs, and failures put in on purpose."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from xferbench.core.interventions import AssignClasses, DivideLogits, FitTemperature, RotateClasses
from xferbench.lab.models import backbones

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from xferbench.core.interventions import Edit
    from xferbench.lab.training.network import Architecture, Tensors

    Screened = Callable[[], tuple[np.ndarray, np.ndarray]]  # logits [n, outputs] and labels [n] that a repair is found on

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0  # temperatures that are looked at


def interpolate_checkpoints(before: Mapping[str, Tensor], after: Tensors, share: float, head: str) -> Tensors:
    """All below the head at a ``share`` of the way from before to after (Wortsman et al. 2022, WiSE-FT); the head stays.

    Whole numbers, which are counters, stay too, but at 0, which is what was before.
    """
    found = {}
    for name, tensor in after.items():
        if backbones.is_within(name, [head]) or name not in before:
            found[name] = tensor
        elif share == 0:
            found[name] = before[name]
        else:
            found[name] = torch.lerp(before[name], tensor, share) if tensor.is_floating_point() else tensor
    return found


def interpolate_phase(begun: Tensors, ended: Tensors, share: float) -> Tensors:
    """All weights, the head's too, at a ``share`` of the way (Wortsman et al. 2022); whole numbers are those of the end.

    At 0 it is the beginning and at 1 the end, bit for bit.
    """
    if share in {0, 1}:
        return ended if share else begun
    return {
        name: torch.lerp(begun[name], tensor, share) if tensor.is_floating_point() else tensor for name, tensor in ended.items()
    }


def initial_statistics(statistics: Mapping[str, Tensor]) -> Tensors:
    """BatchNorm's running statistics as a fresh network has them: mean 0, variance 1."""
    fresh = {True: torch.ones_like, False: torch.zeros_like}
    return {name: fresh[name.endswith("running_var")](tensor) for name, tensor in statistics.items()}


def permute_weights(tensors: Tensors, network: Architecture) -> Tensors:
    """Every learnt tensor below the head with its values shuffled, but BatchNorm's, which would blow features up."""
    generator = torch.Generator().manual_seed(0)
    kept = (network.anatomy.head, *network.anatomy.batchnorm)
    learnt = sorted(name for name, _ in network.module.named_parameters() if not backbones.is_within(name, kept))
    mixed = {
        name: tensors[name].flatten()[torch.randperm(tensors[name].numel(), generator=generator)].view_as(tensors[name])
        for name in learnt
    }
    return tensors | mixed


def edit_head(edit: Edit, tensors: Tensors, head: str, screened: Screened) -> Tensors:
    """The head with its outputs in another order, or with all its weights divided by a temperature.

    Args:
        edit: one of the order of classes, or of the temperature.
        head: the layer from which the outputs come.
        screened: what a repair is found on, computed when it is needed.

    Raises:
        TypeError: for an edit of something else.
    """
    own = {name: tensor for name, tensor in tensors.items() if backbones.is_within(name, [head])}
    outputs = len(next(iter(own.values())))
    if isinstance(edit, FitTemperature | DivideLogits):
        value = edit.temperature if isinstance(edit, DivideLogits) else fit_temperature(*screened())
        return tensors | {name: tensor / value for name, tensor in own.items()}
    if isinstance(edit, RotateClasses):
        order = np.roll(np.arange(outputs), 1)
    elif isinstance(edit, AssignClasses):
        order = assign_classes(*screened())
    else:
        raise TypeError(f"not an edit of the head: {edit}")
    index = torch.from_numpy(order)
    return tensors | {name: tensor[index.to(tensor.device)] for name, tensor in own.items()}


def assign_classes(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """For each class the output that says it most often, each output used once: [outputs]; those of no class follow.

    The assignment with the most examples right (Kuhn 1955); ties go to the output of the class's own number.
    """
    from scipy.optimize import linear_sum_assignment

    outputs = logits.shape[1]
    counts = np.zeros((int(labels.max()) + 1, outputs))
    np.add.at(counts, (labels, logits.argmax(1)), 1.0)
    counts += 0.5 * np.eye(*counts.shape)
    _, chosen = linear_sum_assignment(counts, maximize=True)
    rest = [output for output in range(outputs) if output not in set(chosen)]
    return np.array([*chosen, *rest])


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The number by which logits are divided for the least negative log-likelihood (Guo et al. 2017, arXiv:1706.04599)."""
    from scipy.optimize import minimize_scalar
    from scipy.special import logsumexp

    own = logits[np.arange(len(labels)), labels]

    def loss(log_t: float) -> float:
        scale = float(np.exp(-log_t))
        return float(np.mean(logsumexp(scale * logits, axis=1) - scale * own))

    found = minimize_scalar(loss, bounds=(np.log(MIN_TEMPERATURE), np.log(MAX_TEMPERATURE)), method="bounded")
    return float(np.exp(found.x))
