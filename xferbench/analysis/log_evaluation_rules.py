"""Rules for the evaluations in a log. Pure."""

from __future__ import annotations

from itertools import takewhile
from math import log
from typing import TYPE_CHECKING, TypeAlias

from xferbench.analysis import log_statistics
from xferbench.analysis.log_statistics import MIN_LOSSES, usable
from xferbench.core.training_log import FAULT, NOTE, LogEvent, Missing, Series

if TYPE_CHECKING:
    from xferbench.core.training_log import TrainingLog

    Result: TypeAlias = tuple[LogEvent, ...] | Missing

MIN_EVALUATIONS = 3
MIN_LOSS_RISE = 0.2  # of the evaluation loss above its minimum, which counts as overfitting
MIN_SAME_SCORES = 4  # evaluations whose scores are the same number by chance only
SHARE_TOLERANCE, EXACT_TOLERANCE = 0.0005, 1e-6  # of a share that is given to three digits, and of 1 / classes
MIN_ENTROPY_SHARE = 0.95  # of the loss of the best constant prediction
CORRELATIONS = ("matthews_correlation", "mcc")
SCORES = ("accuracy", "balanced_accuracy", "f1", "f1_macro", "macro_f1", *CORRELATIONS)  # a higher one is better


def find_overfitting(training_log: TrainingLog) -> Result:
    """Find an evaluation loss that ends at least 20 % above its minimum while the training loss falls.

    At least two evaluations follow the minimum. If a score, such as the accuracy, is logged and not shown (at 1 %) to be lower
    at the end than at the minimum, the network becomes overconfident, which is a note. Otherwise it is overfitting: a fault, or
    a note if the Trainer has tracked the best checkpoint.
    """
    series = training_log.evaluations.series
    losses = {name: usable(values) for name, values in series.items() if name.endswith("loss")}
    most = max(map(len, losses.values()), default=0)
    if most < MIN_EVALUATIONS:
        return Missing(what="evaluations", found=most, needed=MIN_EVALUATIONS)
    return tuple(
        event for name, values in losses.items() if len(values) >= MIN_EVALUATIONS for event in _overfitting(training_log, name)
    )


def _overfitting(training_log: TrainingLog, name: str) -> tuple[LogEvent, ...]:
    evaluations = training_log.evaluations
    losses = usable(evaluations.series[name])
    best = min(range(len(losses)), key=lambda index: losses.values[index])
    best_loss, last_loss, best_step = losses.values[best], losses.values[-1], losses.steps[best]
    has_risen = best < len(losses) - 2 and last_loss - best_loss >= MIN_LOSS_RISE * abs(best_loss)
    if not (has_risen and log_statistics.falls_after(training_log.losses, best_step)):
        return ()
    numbers = {"best_step": float(best_step), "best_loss": best_loss, "last_loss": last_loss}
    scores = _scores_at(training_log, (best_step, losses.steps[-1]))
    if scores is not None:
        numbers |= {"best_score": scores[0], "last_score": scores[1]}
    is_costly = scores is None or log_statistics.is_lower(*scores, evaluations.examples)
    return (
        LogEvent(
            kind="overfitting" if is_costly else "overconfidence",
            level=FAULT if is_costly and not evaluations.best_checkpoint else NOTE,
            quantity=f"eval_{name}",
            step=losses.steps[-1],
            since=best_step,
            numbers=numbers,
        ),
    )


def _scores_at(training_log: TrainingLog, steps: tuple[int, int]) -> tuple[float, float] | None:
    """Return the first known score at two steps, or None."""
    series = training_log.evaluations.series
    for name in SCORES:
        values = dict(zip(series[name].steps, series[name].values, strict=True)) if name in series else {}
        if all(step in values for step in steps):
            return values[steps[0]], values[steps[1]]
    return None


def find_constant_prediction(training_log: TrainingLog, majority: float | None) -> Result:
    """Find evaluations of a network that predicts one class for all examples.

    These are exact: at the last three evaluations, or at both if there are two, a correlation of Matthews of exactly 0; or an
    accuracy that is the share of the most frequent class, or 1 / classes. Otherwise an accuracy that is the same number below
    1 at all of four or more evaluations is noted, if no loss falls below that of the best constant prediction.
    """
    series = training_log.evaluations.series
    correlation = next((series[name] for name in CORRELATIONS if name in series), Series())
    accuracy = series.get("accuracy", Series())
    most = max(len(correlation), len(accuracy))
    if most < 2:
        return Missing(what="accuracies", found=most, needed=2)
    candidates = [
        (correlation, "eval_matthews_correlation", 0.0, 0.0),
        *([(accuracy, "eval_accuracy", majority, SHARE_TOLERANCE)] if majority else []),
        *([(accuracy, "eval_accuracy", 1 / training_log.classes, EXACT_TOLERANCE)] if training_log.classes else []),
    ]
    for scores, quantity, expected, tolerance in candidates:
        matches = [abs(score - expected) <= tolerance for score in reversed(scores.values)]
        count = len([*takewhile(bool, matches)])
        if count >= max(min(MIN_EVALUATIONS, len(scores)), 2):
            return (_constant("constant-prediction", FAULT, quantity, scores, count),)
    if len(accuracy) >= MIN_SAME_SCORES and len({*accuracy.values}) == 1 and _stays_above_constant(training_log):
        return (_constant("same-score", NOTE, "eval_accuracy", accuracy, len(accuracy)),)
    return ()


def _constant(kind: str, level: str, quantity: str, scores: Series, count: int) -> LogEvent:
    since = scores.steps[-count - 1] if count < len(scores) else 0
    numbers = {"score": scores.values[-1], "evaluations": float(count)}
    return LogEvent(kind=kind, level=level, quantity=quantity, step=scores.steps[-1], since=since, numbers=numbers)


def _stays_above_constant(training_log: TrainingLog) -> bool:
    """Check that no loss is below that of a constant prediction whose most frequent class has the share of the last accuracy.

    The entropy of the classes is at least that of two classes with the shares ``accuracy`` and 1 − ``accuracy``.
    """
    series = training_log.evaluations.series
    accuracy, losses, evaluation = series["accuracy"].values[-1], usable(training_log.losses), series.get("loss", Series())
    if not 0 < accuracy < 1 or len(losses) < MIN_LOSSES or not evaluation:
        return False
    least = MIN_ENTROPY_SHARE * (-accuracy * log(accuracy) - (1 - accuracy) * log(1 - accuracy))
    return float(log_statistics.thirds(losses)[1].mean()) >= least and min(evaluation.values) >= least
