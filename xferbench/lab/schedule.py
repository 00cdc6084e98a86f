"""Learning rates: over steps, and over depth."""

from __future__ import annotations

from math import cos, pi
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from xferbench.design import Phase

RISE = 0.3  # share of a one-cycle schedule's steps on which the rate rises (Smith & Topin 2018)
START = 1 / 25  # of the peak, where a one-cycle schedule begins


def factor(phase: Phase, step: int) -> float:
    """The share of the peak rate at a step counted from 0.

    Raises:
        ValueError: for a schedule that is not known.
    """
    if phase.schedule not in {"constant", "cosine", "one-cycle"}:
        raise ValueError(f"no such schedule: {phase.schedule}")
    if step < phase.warmup:
        return (step + 1) / (phase.warmup + 1)
    at = (step - phase.warmup) / max(1, phase.steps - phase.warmup)
    if phase.schedule == "constant":
        return 1.0
    if phase.schedule == "one-cycle" and at < RISE:
        return START + (1 - START) * (1 - cos(pi * at / RISE)) / 2
    if phase.schedule == "one-cycle":
        at = (at - RISE) / (1 - RISE)
    return (1 + cos(pi * at)) / 2


def rates(phase: Phase, parameters: Mapping[str, Tensor], depth: Mapping[str, int]) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer, one for each distance from the head: the head at its own rate, then decaying."""
    levels = sorted({depth[name] for name in parameters})
    head = phase.lr if phase.head_lr is None else phase.head_lr
    return [
        {
            "params": [parameters[name] for name in parameters if depth[name] == level],
            "lr": head if level == 0 else phase.lr * phase.layer_decay ** (level - 1),
        }
        for level in levels
    ]
