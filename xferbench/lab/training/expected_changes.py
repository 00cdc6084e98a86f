"""What the phases of a recipe may change in a network. Imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from xferbench.core.interventions import BatchNormEval, BatchNormTrainAbove
from xferbench.lab.models import backbones

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from xferbench.core.interventions import BatchNormMode, Trainable
    from xferbench.core.pipeline import Phase

EVERY_NAME = ("",)  # every name lies below ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedChanges:
    """What one phase may change.

    Buffers are given by prefixes of their names, because a user's loop may add layers.

    Attributes:
        first_step: the first step of the phase. The first step of the training is 1.
        trainable: names of the parameters that the optimizer may move.
        statistics: prefixes of the running statistics that may move. None allows those of a layer if it has a trainable
            parameter, or no parameter.
        buffers: prefixes of the other buffers that may change.
    """

    first_step: int
    trainable: frozenset[str]
    statistics: tuple[str, ...] | None
    buffers: tuple[str, ...]


def changes_by_phase(
    phases: Sequence[Phase],
    trainable_names: Callable[[Trainable], set[str]],
    parts: Sequence[tuple[str, ...]] = (),
    *,
    states_batchnorm: bool = True,
) -> tuple[ExpectedChanges, ...]:
    """Return what each phase may change.

    Args:
        phases: the phases in order.
        trainable_names: returns the names of the parameters that a setting selects.
        parts: the head and the layer groups, each as the prefixes of its names. A name that two
            parts contain counts for the first. If no parts are known, the network counts as one part that trains.
        states_batchnorm: whether the phases say how BatchNorm runs.
    """
    changes = []
    # Without phases there is a first step, but nothing that begins there.
    for phase, first_step in zip(phases, accumulate((phase.steps for phase in phases[:-1]), initial=1), strict=False):
        trainable = frozenset(trainable_names(phase.trainable))
        prefixes = _trained_prefixes(trainable, parts)
        statistics = _moving_statistics(phase.batchnorm, prefixes) if states_batchnorm else None
        changes.append(ExpectedChanges(first_step=first_step, trainable=trainable, statistics=statistics, buffers=prefixes))
    return tuple(changes)


def _trained_prefixes(trainable: frozenset[str], parts: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Return the prefixes of the parts that have a trainable parameter."""
    if not parts:
        return EVERY_NAME
    trained = {next(part for part in parts if backbones.is_within(name, part)) for name in trainable}
    return tuple(prefix for part in parts if part in trained for prefix in part)


def _moving_statistics(mode: BatchNormMode, trained_prefixes: tuple[str, ...]) -> tuple[str, ...]:
    if isinstance(mode, BatchNormEval):
        return ()
    return trained_prefixes if isinstance(mode, BatchNormTrainAbove) else EVERY_NAME
