"""Rules for the learning rate in a log. Pure."""

from __future__ import annotations

from itertools import takewhile

from xferbench.analysis.log_statistics import has_fallen
from xferbench.core.training_log import FAULT, NOTE, LogEvent, Missing, TrainingLog

MIN_RATE_SHARE = 0.1  # of the highest learning rate, which is far from zero


def find_zero_rate(training_log: TrainingLog) -> tuple[LogEvent, ...] | Missing:
    """Find learning rates of exactly 0 at all logged steps, or at two and more up to the end. Exact.

    A rate of 0 at the first step of a warm-up, or at the last step of a decay, is no fault. It is none either if the loss falls
    meanwhile, because the log has only the rate of the first group of parameters.
    """
    rates = training_log.learning_rates
    if len(rates) < 2:
        return Missing(what="learning rates", found=len(rates), needed=2)
    count = sum(1 for _ in takewhile(lambda rate: rate == 0, reversed(rates.values)))
    if count < 2 or rates.steps[-count] == rates.steps[-1]:
        return ()
    is_whole = count == len(rates)
    first, since = rates.steps[-count], 0 if is_whole else rates.steps[-count - 1]
    if has_fallen(training_log.losses if is_whole else training_log.losses.after(first)):
        return ()
    lost = training_log.end.step - (0 if is_whole else first)
    numbers = {"steps": float(lost), "of": float(training_log.end.step)}
    return (LogEvent(kind="zero-rate", level=FAULT, quantity="learning_rate", step=first, since=since, numbers=numbers),)


def find_cut(training_log: TrainingLog) -> tuple[LogEvent, ...] | Missing:
    """Note a log that ends before the planned steps, while the learning rate falls and is still above a tenth of its maximum.

    A training that early stopping ended is not noted.
    """
    end, rates = training_log.end, training_log.learning_rates
    if end.max_steps is None:
        return Missing(what="planned steps")
    if not rates:
        return Missing(what="learning rates")
    highest, last = max(rates.values), rates.values[-1]
    if not end.is_cut or not MIN_RATE_SHARE * highest <= last < highest:
        return ()
    numbers = {"of": float(end.max_steps), "rate": last, "highest_rate": highest}
    return (
        LogEvent(kind="cut-short", level=NOTE, quantity="learning_rate", step=end.step, since=end.step - 1, numbers=numbers),
    )
