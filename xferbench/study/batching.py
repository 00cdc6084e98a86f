"""Groups of trials that are computed together. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from xferbench.core.interventions import OWN_HEAD
from xferbench.study.cost import training_cost

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from xferbench.core.suite import Suite
    from xferbench.core.trial import ComputeContext, TrainingSpec, Trial
    from xferbench.study.study import TrialRequest


def unique_trials(requests: Sequence[TrialRequest]) -> dict[str, Trial]:
    """Return the unique trials of requests by key, in a fixed order."""
    return {request.trial.key: request.trial for request in requests}


def group_trials(trials: Mapping[str, Trial], size: int, suite: Suite) -> Iterator[tuple[Trial, ...]]:
    """Yield groups of trials whose training specs differ only in their seed and belong to the same look.

    Groups are formed from all requested trials, and not from the missing ones, so that a resumed run forms the same groups.
    The most expensive groups come first, so that no worker is busy with one of them alone at the end.

    Args:
        trials: all requested trials by key.
        size: the largest number of training specs in a group.
        suite: the suite, for its looks and first seed.
    """
    groups: dict[tuple[TrainingSpec, ComputeContext, int], dict[TrainingSpec, list[Trial]]] = {}
    separate = []
    for trial in trials.values():
        spec = trial.model.base
        if spec.network.head == OWN_HEAD:  # nothing is trained, so that each evaluation may run on another worker
            separate.append((trial,))
            continue
        look = sum(spec.seed - suite.rules.seed >= seeds for seeds in suite.rules.looks)
        groups.setdefault((_without_seed(spec), trial.context, look), {}).setdefault(spec, []).append(trial)
    for trials_by_spec in sorted(groups.values(), key=lambda specs: -training_cost(next(iter(specs)))):
        specs = list(trials_by_spec)
        for start in range(0, len(specs), size):
            yield tuple(trial for spec in specs[start : start + size] for trial in trials_by_spec[spec])
    yield from separate


def _without_seed(spec: TrainingSpec) -> TrainingSpec:
    """Return what specs in a group have in common: everything except their seeds and those of their teachers."""
    teacher = spec.procedure.teacher
    return replace(spec, seed=0, procedure=replace(spec.procedure, teacher=replace(teacher, seed=0) if teacher else None))
