"""Rules that find faults in the log of a training. Pure.

A rule is exact, or it states how often it is wrong. A rule that needs more than the log has is not applied, and that is never a
sign of health. After a value that is not finite, nothing else is examined, because the rest follows from it.
"""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from xferbench.analysis import log_evaluation_rules, log_loss_rules, log_rate_rules
from xferbench.core.training_log import FAULT, LogEvent, LogReport, Missing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from xferbench.core.training_log import TrainingLog

    Result: TypeAlias = tuple[LogEvent, ...] | Missing

RULES: Mapping[str, Callable[[TrainingLog], Result]] = {
    "zero-gradient": log_loss_rules.find_zero_gradient,
    "skipped-steps": log_loss_rules.find_skipped_steps,
    "gradient-rise": log_loss_rules.find_gradient_rise,
    "zero-rate": log_rate_rules.find_zero_rate,
    "cut-short": log_rate_rules.find_cut,
    "loss-flat": log_loss_rules.find_flat_loss,
    "at-chance": log_loss_rules.find_chance_level,
    "loss-rise": log_loss_rules.find_loss_rise,
    "still-falling": log_loss_rules.find_steep_end,
    "added-losses": log_loss_rules.find_added_losses,
    "overfitting": log_evaluation_rules.find_overfitting,
}
# What a fault explains is not reported next to it.
CONSEQUENCES = {
    "non-finite": {"cut-short", "still-falling", "overconfidence"},
    "zero-rate": {"loss-flat", "at-chance", "constant-prediction", "same-score"},
    "zero-gradient": {"loss-flat", "at-chance", "constant-prediction", "same-score"},
    "loss-rise": {"loss-flat", "at-chance", "still-falling", "overconfidence"},
    "loss-flat": {"at-chance"},
    "at-chance": {"still-falling", "overconfidence", "same-score"},
    "constant-prediction": {"at-chance"},
    "overfitting": {"still-falling"},
}


def examine(training_log: TrainingLog, majority: float | None = None) -> LogReport:
    """Apply every rule to a log.

    Args:
        training_log: the log.
        majority: the share of the most frequent class in the evaluation set, if it is known.
    """
    broken = log_loss_rules.find_non_finite(training_log)
    rest = _before(training_log, min((event.step for event in broken), default=inf))
    has_values = bool(training_log.losses or training_log.evaluations.series)
    with np.errstate(all="ignore"):  # a file may hold numbers of any size
        results: dict[str, Result] = {
            "non-finite": broken if has_values else Missing(what="losses"),
            **{kind: rule(rest) for kind, rule in RULES.items()},
            "constant-prediction": log_evaluation_rules.find_constant_prediction(rest, majority),
        }
    events = [event for result in results.values() if not isinstance(result, Missing) for event in result]
    return LogReport(
        log=training_log,
        events=tuple(sorted(_without_consequences(events), key=lambda event: (event.level != FAULT, event.step))),
        quiet=tuple(rule for rule, result in results.items() if result == ()),
        unchecked={kind: result for kind, result in results.items() if isinstance(result, Missing)},
    )


def _before(training_log: TrainingLog, step: float) -> TrainingLog:
    """Return the part of a log before a step."""
    return replace(
        training_log,
        losses=training_log.losses.before(step),
        gradient_norms=training_log.gradient_norms.before(step),
        learning_rates=training_log.learning_rates.before(step),
        evaluations=training_log.evaluations.before(step),
    )


def _without_consequences(events: Sequence[LogEvent]) -> list[LogEvent]:
    """Drop what follows from a fault that explains it."""
    faults = {event.kind for event in events if event.level == FAULT}
    explained = {kind for fault in faults for kind in CONSEQUENCES.get(fault, ())}
    return [event for event in events if event.kind not in explained]
