"""Learning rates over steps and over depth. Pure."""

from __future__ import annotations

from math import cos, pi
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from xferbench.core.pipeline import Phase

WARMUP_SHARE = 0.3  # share of the steps of a one-cycle schedule in which the rate rises (Smith & Topin 2018)
START_FACTOR = 1 / 25  # share of the peak rate at the start of a one-cycle schedule


def lr_factor(phase: Phase, step: int) -> float:
    """Return the learning rate at a step, counted from 0, as a share of the peak rate.

    Raises:
        ValueError: If the schedule is unknown.
    """
    if phase.schedule not in {"constant", "cosine", "linear", "one-cycle"}:
        raise ValueError(f"unknown schedule: {phase.schedule}")
    if step < phase.warmup:
        return (step + 1) / (phase.warmup + 1)
    progress = (step - phase.warmup) / max(1, phase.steps - phase.warmup)
    if phase.schedule == "constant":
        return 1.0
    if phase.schedule == "linear":
        return 1 - progress
    if phase.schedule == "one-cycle" and progress < WARMUP_SHARE:
        return START_FACTOR + (1 - START_FACTOR) * (1 - cos(pi * progress / WARMUP_SHARE)) / 2
    if phase.schedule == "one-cycle":
        progress = (progress - WARMUP_SHARE) / (1 - WARMUP_SHARE)
    return (1 + cos(pi * progress)) / 2


def parameter_groups(phase: Phase, parameters: Mapping[str, Tensor], depth: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return parameter groups for an optimizer, one per distance from the head and per weight decay.

    The head has its own rate. Below it, the rate decays with the distance. Parameters of one axis have no weight decay if
    ``decay_norms`` is false.

    Args:
        phase: the phase.
        parameters: the parameters by name, each with a first axis of members.
        depth: for each parameter, how many layer groups it lies below the head.
    """
    head = phase.lr if phase.head_lr is None else phase.head_lr

    def group_of(name: str) -> tuple[int, float]:
        decays = phase.decay_norms or parameters[name].dim() > 2
        return depth[name], phase.weight_decay if decays else 0.0

    return [
        {
            "params": [parameters[name] for name in parameters if group_of(name) == (level, decay)],
            "lr": head if level == 0 else phase.lr * phase.layer_decay ** (level - 1),
            "weight_decay": decay,
        }
        for level, decay in sorted({group_of(name) for name in parameters})
    ]
