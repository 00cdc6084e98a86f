"""Edits of a trained network's tensors that need no training: repairs, deliberate failures, and those of installed packages.

Imports torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from xferbench.core.interventions import AssignClasses, DivideLogits, FitTemperature, RotateClasses
from xferbench.lab.models import backbones
from xferbench.lab.training.implementations import load_implementation

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from xferbench.core.interventions import Edit
    from xferbench.lab.evaluation.context import EditContext
    from xferbench.lab.training.network import Architecture, Tensors

    LabeledLogits = Callable[[], tuple[np.ndarray, np.ndarray]]  # computes logits [n, outputs] and labels [n]

BIAS_PENALTY = 1e-6  # half of the squared bias counts this much against the mean log-likelihood
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0  # bounds of the search


def interpolate_checkpoints(before: Mapping[str, Tensor], after: Tensors, share: float, head: str) -> Tensors:
    """Interpolate all tensors below the head from before to after training (WiSE-FT, Wortsman et al. 2022).

    The head and tensors that are new keep their values. Integer tensors, which are counters, keep them too, unless ``share`` is
    0.

    Args:
        before: the tensors before training.
        after: the tensors after training.
        share: the position between them, from 0 (before) to 1 (after).
        head: the module name of the head.
    """
    tensors = {}
    for name, tensor in after.items():
        if backbones.is_within(name, [head]) or name not in before:
            tensors[name] = tensor
        elif share == 0:
            tensors[name] = before[name]
        else:
            tensors[name] = torch.lerp(before[name], tensor, share) if tensor.is_floating_point() else tensor
    return tensors


def interpolate_phase(start: Tensors, end: Tensors, share: float) -> Tensors:
    """Interpolate all tensors, including the head, between the start and the end of a phase (Wortsman et al. 2022).

    Integer tensors are those of the end. The result is bit-identical to ``start`` at 0 and to ``end`` at 1.
    """
    if share in {0, 1}:
        return end if share else start
    return {
        name: torch.lerp(start[name], tensor, share) if tensor.is_floating_point() else tensor for name, tensor in end.items()
    }


def initial_statistics(statistics: Mapping[str, Tensor]) -> Tensors:
    """Return BatchNorm's running statistics as a new network has them: mean 0 and variance 1."""
    initial_value = {True: torch.ones_like, False: torch.zeros_like}
    return {name: initial_value[name.endswith("running_var")](tensor) for name, tensor in statistics.items()}


def permute_weights(tensors: Tensors, network: Architecture) -> Tensors:
    """Shuffle the values of every parameter below the head, except those of BatchNorm.

    Shuffled parameters of BatchNorm would make the features explode.
    """
    generator = torch.Generator().manual_seed(0)
    excluded = (network.layout.head, *network.layout.batchnorm)
    names = sorted(name for name, _ in network.module.named_parameters() if not backbones.is_within(name, excluded))
    permuted = {
        name: tensors[name].flatten()[torch.randperm(tensors[name].numel(), generator=generator)].view_as(tensors[name])
        for name in names
    }
    return tensors | permuted


def apply_installed(edit: Edit, tensors: Tensors, rng: np.random.Generator, context: EditContext) -> Tensors:
    """Call the implementation of an edit of an installed package, on copies of the tensors.

    Raises:
        ValueError: if it returns tensors with other names or shapes.
    """
    copies = {name: tensor.clone() for name, tensor in tensors.items()}
    edited = {name: tensor.detach() for name, tensor in load_implementation(edit)(copies, edit, rng, context).items()}
    shapes, expected = ({name: tensor.shape for name, tensor in state.items()} for state in (edited, tensors))
    if shapes != expected:
        changed = sorted(name for name in shapes.keys() | expected.keys() if shapes.get(name) != expected.get(name))
        raise ValueError(f"{edit} must return tensors of the same names and shapes, but changed {', '.join(changed[:5])}")
    return edited


def edit_head(edit: Edit, tensors: Tensors, head: str, calibration: LabeledLogits) -> Tensors:
    """Reorder the outputs of the head, or divide its weights by a temperature.

    Args:
        edit: an edit of the class order or of the temperature.
        tensors: the tensors of the network.
        head: the module name of the layer that computes the outputs.
        calibration: computes the logits and labels that a repair is fitted to. It is called only if the edit needs it.

    Raises:
        TypeError: if the edit is of another kind.
    """
    head_tensors = {name: tensor for name, tensor in tensors.items() if backbones.is_within(name, [head])}
    outputs = len(next(iter(head_tensors.values())))
    if isinstance(edit, FitTemperature | DivideLogits):
        temperature = edit.temperature if isinstance(edit, DivideLogits) else fit_temperature(*calibration())
        return tensors | {name: tensor / temperature for name, tensor in head_tensors.items()}
    if isinstance(edit, RotateClasses):
        order = np.roll(np.arange(outputs), 1)
    elif isinstance(edit, AssignClasses):
        order = assign_classes(*calibration())
    else:
        raise TypeError(f"not an edit of the head: {edit}")
    index = torch.from_numpy(order)
    return tensors | {name: tensor[index.to(tensor.device)] for name, tensor in head_tensors.items()}


def assign_classes(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Assign an output to each class so that the most examples are correct (Kuhn 1955).

    Each output is used once. Ties go to the output with the index of the class.

    Args:
        logits: [n, outputs].
        labels: [n].

    Returns:
        The output of each class, then the outputs of no class: [outputs].
    """
    from scipy.optimize import linear_sum_assignment

    outputs = logits.shape[1]
    counts = np.zeros((int(labels.max()) + 1, outputs))
    np.add.at(counts, (labels, logits.argmax(1)), 1.0)
    counts += 0.5 * np.eye(*counts.shape)
    _, assigned = linear_sum_assignment(counts, maximize=True)
    unused = [output for output in range(outputs) if output not in set(assigned)]
    return np.array([*assigned, *unused])


def fit_class_bias(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Compute the bias [outputs] of each class that minimizes the negative log-likelihood.

    The mean probability of a class then equals its frequency. A small penalty keeps the bias of an absent class finite.

    Args:
        logits: [n, outputs], to which the bias is added.
        labels: [n].
    """
    from scipy.optimize import minimize
    from scipy.special import logsumexp

    frequencies = np.bincount(labels, minlength=logits.shape[1]) / len(labels)

    def loss(bias: np.ndarray) -> tuple[float, np.ndarray]:
        biased = logits + bias
        log_sums = logsumexp(biased, axis=1)
        mean_probabilities = np.exp(biased - log_sums[:, None]).mean(0)
        penalty = BIAS_PENALTY * bias
        return float(log_sums.mean() - frequencies @ bias + penalty @ bias / 2), mean_probabilities - frequencies + penalty

    bias: np.ndarray = minimize(loss, np.zeros(logits.shape[1]), jac=True, method="L-BFGS-B", tol=1e-12).x
    return bias


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Compute the temperature that minimizes the negative log-likelihood (Guo et al. 2017, arXiv:1706.04599).

    Args:
        logits: [n, outputs], which are divided by the temperature.
        labels: [n].
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import logsumexp

    true_logits = logits[np.arange(len(labels)), labels]

    def loss(log_temperature: float) -> float:
        scale = float(np.exp(-log_temperature))
        return float(np.mean(logsumexp(scale * logits, axis=1) - scale * true_logits))

    result = minimize_scalar(loss, bounds=(np.log(MIN_TEMPERATURE), np.log(MAX_TEMPERATURE)), method="bounded")
    return float(np.exp(result.x))
