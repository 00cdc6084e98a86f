"""Rules for the training loss and the gradient norms in a log. Pure."""

from __future__ import annotations

from itertools import takewhile
from math import isfinite, log
from statistics import median
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from xferbench.analysis import log_statistics
from xferbench.analysis.log_statistics import MIN_LOSSES, usable
from xferbench.core import loss_alarms
from xferbench.core.training_log import FAULT, NOTE, LogEvent, Missing, Series

if TYPE_CHECKING:
    from xferbench.core.training_log import TrainingLog

    Result: TypeAlias = tuple[LogEvent, ...] | Missing

MIN_BROKEN_NORMS = 3  # consecutive gradient norms; a loss scaler skips fewer in a sound training
MAX_SKIPPED_SHARE = 0.1  # of the gradients
MIN_ABRUPT_LOSS = 0.05  # loss from which a healthy one does not reach exactly 0 at once
MIN_PROGRESS = 0.5  # of the planned steps, before which a warm-up may keep the loss where it is
MIN_FALL = 0.005  # of the loss
CHANCE_SHARE, DOUBTFUL_CHANCE_SHARE = 0.95, 0.9  # of the loss of a guess, alone and if the accuracy does not rise either
MAX_START_SHARE = 1.3  # of the loss of a guess, for a first loss that is a mean over examples
MIN_GRADIENT_RATIO = 10.0
MIN_RISE_LOSSES = loss_alarms.MIN_LOGGED_BEFORE + loss_alarms.MIN_LOGGED_AFTER
MIN_SLOPE_LOSSES = 24  # for a slope over the last third
MIN_STEEP_SHARE = 0.2  # of the whole fall of the loss that falls within the last third
SUM_TOLERANCE = 0.15  # of the number of batches whose losses seem to be added


def find_non_finite(training_log: TrainingLog) -> tuple[LogEvent, ...]:
    """Find the first loss, gradient norm or evaluation loss that is not finite. Exact.

    The Trainer logs 0.0 for a loss that is not finite, unless ``logging_nan_inf_filter`` is off. A loss of 0.0 therefore counts
    as not finite if its gradient norm is not. In logs without gradient norms it counts if all losses from it on, two or more,
    are 0.0, and none is before them or the one before is above 0.05.

    Gradient norms that are not finite count if the last three are, or if a loss at or after them is not finite: a loss scaler
    (fp16) skips single steps whose gradients overflow.
    """
    losses, norms = training_log.losses, training_log.gradient_norms
    tail = len([*takewhile(lambda norm: not isfinite(norm), reversed(norms.values))])
    broken_norm = norms.steps[-tail] if tail else None
    filtered = _first_filtered(losses, broken_norm) if norms else _first_abrupt_zero(losses)
    loss_steps = [step for step in (filtered, losses.first_non_finite()) if step is not None]
    if tail < MIN_BROKEN_NORMS and not (broken_norm is not None and any(step >= broken_norm for step in loss_steps)):
        broken_norm = None
    first = {
        "loss": min(loss_steps, default=None),
        "grad_norm": broken_norm,
        **{
            f"eval_{name}": series.first_non_finite()
            for name, series in training_log.evaluations.series.items()
            if name.endswith("loss")
        },
    }
    found = {name: step for name, step in first.items() if step is not None}
    if not found:
        return ()
    quantity = min(found, key=lambda name: found[name])  # of equal steps, that of the loss
    step = found[quantity]
    good = [logged for series in (losses, norms) for logged in series.before(step).steps]
    numbers = {"filtered": float(quantity == "loss" and step == filtered), "logged_before": float(len(good))}
    return (
        LogEvent(kind="non-finite", level=FAULT, quantity=quantity, step=step, since=max(good, default=0), numbers=numbers),
    )


def _first_filtered(losses: Series, broken_norm: int | None) -> int | None:
    """Return the first step with a loss of 0.0 whose gradient norm is not finite, or None."""
    pairs = zip(losses.steps, losses.values, strict=True)
    return next((step for step, loss in pairs if loss == 0 and broken_norm is not None and step >= broken_norm), None)


def _first_abrupt_zero(losses: Series) -> int | None:
    """Return the first step from which all losses are exactly 0, if the loss did not come near 0 before, or None."""
    count = len([*takewhile(lambda loss: loss == 0, reversed(losses.values))])
    is_abrupt = count == len(losses) or losses.values[-count - 1] > MIN_ABRUPT_LOSS
    return losses.steps[-count] if count >= 2 and is_abrupt else None


def find_skipped_steps(training_log: TrainingLog) -> Result:
    """Note gradient norms that are not finite at more than a tenth of the logged steps, though the training went on."""
    norms = training_log.gradient_norms
    if len(norms) < MIN_LOSSES:
        return Missing(what="gradient norms", found=len(norms), needed=MIN_LOSSES)
    broken = [step for step, norm in zip(norms.steps, norms.values, strict=True) if not isfinite(norm)]
    if len(broken) <= MAX_SKIPPED_SHARE * len(norms):
        return ()
    numbers = {"skipped": float(len(broken)), "logged": float(len(norms))}
    return (_event("skipped-steps", NOTE, "grad_norm", broken[-1], numbers, since=broken[0] - 1),)


def find_zero_gradient(training_log: TrainingLog) -> Result:
    """Find a training whose logged gradient norms are all exactly 0, and whose loss is not shown to fall. Exact."""
    norms, losses = training_log.gradient_norms, training_log.losses
    if len(norms) < 2:
        return Missing(what="gradient norms", found=len(norms), needed=2)
    if any(norms.values) or log_statistics.has_fallen(losses):
        return ()
    numbers = {"logged": float(len(norms)), "has_loss": float(any(losses.values))}
    return (_event("zero-gradient", FAULT, "grad_norm", norms.steps[0], numbers),)


def find_flat_loss(training_log: TrainingLog) -> Result:
    """Find a loss that does not fall: its last third is shown not to be 0.5 % below its first third.

    The test is Welch's at 0.1 %. If logged losses are independent and normal, a training whose loss falls by 0.5 % is reported
    in at most 1 of 1000 cases. At least half of the planned steps must have passed.
    """
    if missing := log_statistics.missing_losses(training_log, MIN_LOSSES, MIN_PROGRESS):
        return missing
    losses = usable(training_log.losses)
    first, last = log_statistics.thirds(losses)
    start, end = float(first.mean()), float(last.mean())
    _, highest_fall = log_statistics.fall_bounds(first, last)
    if not highest_fall < MIN_FALL * abs(start):
        return ()
    numbers = {"first_third": start, "last_third": end, "highest_fall": highest_fall}
    return (_event("loss-flat", FAULT, "loss", losses.steps[-1], numbers),)


def find_chance_level(training_log: TrainingLog) -> Result:
    """Find a training that ends at the loss of a guess, which is ln(classes).

    The mean of the last third of the training losses is shown (at 0.1 %) to be at least 0.95 of it, and so is the last
    evaluation loss. The share 0.9 is enough if no accuracy exceeds that of the first evaluation by two standard errors. If
    there is no evaluation, the first loss must be below 1.3 of a guess, because the Trainer may log a sum over accumulated
    batches. At least half of the planned steps must have passed.
    """
    if training_log.classes is None:
        return Missing(what="classes")
    if missing := log_statistics.missing_losses(training_log, MIN_LOSSES, MIN_PROGRESS):
        return missing
    losses, evaluations = usable(training_log.losses), training_log.evaluations
    chance, evaluation = log(training_log.classes), usable(evaluations.series.get("loss", Series()))
    if not evaluation and losses.values[0] > MAX_START_SHARE * chance:
        return Missing(what="evaluations")
    _, last = log_statistics.thirds(losses)
    is_flat = log_statistics.is_score_flat(evaluations.series.get("accuracy", Series()), evaluations.examples)
    least = chance * (DOUBTFUL_CHANCE_SHARE if is_flat else CHANCE_SHARE)
    loss = evaluation.values[-1] if evaluation else float(last.mean())
    if not (log_statistics.lower_bound(last) >= least and loss >= least):
        return ()
    numbers = {"loss": loss, "chance": chance, "classes": float(training_log.classes)}
    return (_event("at-chance", FAULT, "eval_loss" if evaluation else "loss", losses.steps[-1], numbers),)


def find_loss_rise(training_log: TrainingLog) -> Result:
    """Find a loss that jumps and stays risen until the end.

    The rule is :func:`xferbench.core.loss_alarms.find_lasting_rise`, which states how often it is wrong.
    """
    return _lasting_rise("loss-rise", FAULT, "loss", training_log.losses)


def find_gradient_rise(training_log: TrainingLog) -> Result:
    """Note gradient norms that rise tenfold and stay there until the end, by the rule of :func:`find_loss_rise`."""
    return _lasting_rise("gradient-rise", NOTE, "grad_norm", training_log.gradient_norms, MIN_GRADIENT_RATIO)


def _lasting_rise(
    kind: str, level: str, quantity: str, series: Series, min_ratio: float = loss_alarms.MIN_RISE_RATIO
) -> Result:
    finite = usable(series)
    if len(finite) < MIN_RISE_LOSSES:
        what = "losses" if quantity == "loss" else "gradient norms"
        return Missing(what=what, found=len(finite), needed=MIN_RISE_LOSSES)
    index = loss_alarms.find_lasting_rise(finite.values, min_ratio)
    if index is None:
        return ()
    earlier = finite.values[max(index - loss_alarms.LOGGED_BEFORE, 0) : index]
    numbers = {"before": median(earlier), "after": median(finite.values[-loss_alarms.RUN_LENGTH :])}
    return (_event(kind, level, quantity, finite.steps[index], numbers, since=finite.steps[index - 1]),)


def find_steep_end(training_log: TrainingLog) -> Result:
    """Note a loss that was still falling when the training ended.

    The slope of a line through the last third is negative (Student's t at 0.1 %), and the line falls by at least a fifth of the
    whole fall, which is that from the first fifth of the losses to the end of the line. The last evaluation loss must be the
    lowest, if there is one.
    """
    if missing := log_statistics.missing_losses(training_log, MIN_SLOPE_LOSSES, 1.0):
        return missing
    losses, evaluation = usable(training_log.losses), usable(training_log.evaluations.series.get("loss", Series()))
    if training_log.end.stopped_early or (evaluation and evaluation.values[-1] > min(evaluation.values)):
        return ()
    count = len(losses) // 3
    steps, values = np.array(losses.steps[-count:], float), np.array(losses.values[-count:])
    slope, error = log_statistics.fit_slope(steps, values)
    fall = -slope * float(steps[-1] - steps[0])
    whole = float(np.mean(losses.values[: len(losses) // 5]) - values.mean()) + fall / 2
    if not (log_statistics.is_negative(slope, error, count - 2) and fall >= MIN_STEEP_SHARE * whole > 0):
        return ()
    numbers = {"fall": fall, "share": fall / whole, "slope": slope, "slope_error": error, "losses": float(count)}
    return (_event("still-falling", NOTE, "loss", losses.steps[-1], numbers, since=losses.steps[-count]),)


def find_added_losses(training_log: TrainingLog) -> Result:
    """Note training losses that are sums over the batches of a step.

    A step has several batches, and the training loss exceeds the evaluation loss by that factor (within 15 %), in the median of
    the evaluations. If the number of classes is known, the first loss must exceed that of a guess by it too.
    """
    batches, losses = training_log.batches_per_step, usable(training_log.losses)
    evaluation = usable(training_log.evaluations.series.get("loss", Series()))
    if batches is None:
        return Missing(what="batches of a step")
    if not evaluation or not losses:
        return Missing(what="losses" if evaluation else "evaluations")
    pairs = [(losses.last_until(step), value) for step, value in zip(evaluation.steps, evaluation.values, strict=True)]
    ratios = [loss / value for loss, value in pairs if loss is not None and value > 0]
    if not ratios or batches < 2:
        return ()
    factors = [median(ratios), *([losses.values[0] / log(training_log.classes)] if training_log.classes else [])]
    if any(abs(factor / batches - 1) > SUM_TOLERANCE for factor in factors):
        return ()
    numbers = {"batches": float(batches), "ratio": factors[0]}
    return (_event("added-losses", NOTE, "loss", losses.steps[-1], numbers),)


def _event(kind: str, level: str, quantity: str, step: int, numbers: dict[str, float], since: int = 0) -> LogEvent:
    return LogEvent(kind=kind, level=level, quantity=quantity, step=step, since=since, numbers=numbers)
