"""Trials cut into groups that are computed together. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from xferbench.core.interventions import OWN_HEAD
from xferbench.study.trials import training_cost

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from xferbench.core.suite import Suite
    from xferbench.core.trial import ComputeContext, TrainingSpec, Trial
    from xferbench.study.study import TrialRequest


def unique_trials(questions: Sequence[TrialRequest]) -> dict[str, Trial]:
    """The unique trials of some questions, by key, in a fixed order."""
    return {one.trial.key: one.trial for one in questions}


def group_trials(asked: Mapping[str, Trial], size: int, suite: Suite) -> Iterator[tuple[Trial, ...]]:
    """Trials whose fits differ only in their seed and came with the same look, cut into groups of at most ``size`` fits.

    They are cut from all that is asked, and not from what is missing, so that a resumed run forms the same groups. What
    costs most goes first, so that no worker is left alone with it at the end.
    """
    shapes: dict[tuple[TrainingSpec, ComputeContext, int], dict[TrainingSpec, list[Trial]]] = {}
    alone = []
    for one in asked.values():
        fitted = one.model.base
        if fitted.head == OWN_HEAD:  # nothing is trained together: each view may have a worker of its own
            alone.append((one,))
            continue
        look = sum(fitted.seed - suite.seed >= seeds for seeds in suite.looks)
        shapes.setdefault((_group_shape(fitted), one.place, look), {}).setdefault(fitted, []).append(one)
    for fits in sorted(shapes.values(), key=lambda fits: -training_cost(next(iter(fits)))):
        members = list(fits)
        for start in range(0, len(members), size):
            yield tuple(one for member in members[start : start + size] for one in fits[member])
    yield from alone


def _group_shape(one: TrainingSpec) -> TrainingSpec:
    """What fits that are trained together have in common: all but the seed, their own and their teachers'."""
    return replace(one, seed=0, teacher=replace(one.teacher, seed=0) if one.teacher else None)
