"""Heuristics for a jump of the loss and for head shock, which prefer a missed fault to a false alarm. Pure.

The live watch and the reader of training logs share them.
"""

from __future__ import annotations

from math import inf, isfinite, log
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

LOSSES_BEFORE, MIN_LOSSES_BEFORE = 40, 20  # losses before an unfreezing: how many are used, and how many are needed
LOSSES_AFTER = 20  # losses after an unfreezing that are used
LOGGED_BEFORE, MIN_LOGGED_BEFORE = 12, 8  # values before a rise that lasts until the end of a log: used, and needed
MIN_LOGGED_AFTER = 8  # values after it
RUN_LENGTH = 5  # consecutive losses whose median must rise
MIN_SPREADS, MIN_RISE_RATIO = 6.0, 1.2  # minimum rise of the loss: in spreads, and as a ratio to the median before
FIRST_STEPS = 3  # steps whose losses show an untrained head
SHOCK_CHECK_STEP = 10  # step at which the distance of the backbone is measured
CHANCE_LOSS_SHARE = 0.8  # minimum loss of an untrained head, as a share of the loss of a random guess
MIN_BODY_DISTANCE = 0.1  # minimum distance of the backbone from its start, relative to its norm


def detect_jump(before: Sequence[float], after: Sequence[float]) -> tuple[float, float] | None:
    """Return the medians of the losses before and after an unfreezing if the loss jumped, else None.

    The loss jumped if 5 consecutive losses among the 20 after the unfreezing have a median that exceeds three bounds: all of
    the last 40 losses before (at least 20 are needed); their median by six spreads (1.4826 × the median absolute deviation,
    which is the standard deviation of a normal distribution); and their median by a fifth.
    """
    recent = [loss for loss in before[-LOSSES_BEFORE:] if isfinite(loss)]
    if len(recent) < MIN_LOSSES_BEFORE:
        return None
    middle, bound = jump_bound(recent)
    return next(((middle, run_median) for run_median in run_medians(after[:LOSSES_AFTER]) if run_median > bound), None)


def find_lasting_rise(losses: Sequence[float], min_ratio: float = MIN_RISE_RATIO) -> int | None:
    """Return the index from which a series stays risen until its end, or None. The series must be finite.

    It has risen if there are at least 8 values from the index on, and the first of them and the median of every 5 consecutive
    ones are above the bound of :func:`detect_jump` for the values before the index. At least 8 of these are needed, and the
    last 12 are used, because a loss falls. The index is the first of this kind.

    By simulation, 16 to 200 values of one distribution rise in at most 2 of 1000 cases if they are normal, exponential or
    log-normal (σ = 1).

    Args:
        losses: the series, such as the logged losses of a whole training.
        min_ratio: minimum rise, as a ratio to the median before.
    """
    index = None
    lowest = min(run_medians(losses[-MIN_LOGGED_AFTER:]), default=inf)  # median of a run that begins at the index or later
    for start in range(len(losses) - MIN_LOGGED_AFTER, MIN_LOGGED_BEFORE - 1, -1):
        lowest = min(lowest, median(losses[start : start + RUN_LENGTH]))
        recent = losses[max(start - LOGGED_BEFORE, 0) : start]
        if max(recent) < lowest and jump_bound(recent, min_ratio)[1] < min(lowest, losses[start]):
            index = start
    return index


def jump_bound(recent: Sequence[float], min_ratio: float = MIN_RISE_RATIO) -> tuple[float, float]:
    """Return the median of earlier values, and the bound that later values must exceed to have jumped."""
    middle = median(recent)
    spread = 1.4826 * median(abs(loss - middle) for loss in recent)
    return middle, max(*recent, middle + MIN_SPREADS * spread, middle + (min_ratio - 1) * abs(middle))


def run_medians(losses: Sequence[float]) -> list[float]:
    """Return the median of each 5 consecutive losses."""
    return [median(losses[start : start + RUN_LENGTH]) for start in range(len(losses) - RUN_LENGTH + 1)]


def has_head_shock(losses: Sequence[float], classes: int, distance: float) -> bool:
    """Check whether a backbone moved by a tenth of its norm in 10 steps, while the loss was near that of a random guess.

    The head-shock plugin measures the ratio R: the gradient norm under a random head over the gradient norm under a head that
    was fitted to the same images (Kumar et al. 2022, arXiv:2202.10054). A user's loop has no fitted head, and its own later
    steps cannot replace one. On synthetic:near, the ratio of first to later norm was 1 to 2 in loops that lost 13 points of
    accuracy to head shock, and 4 to 7 in sound loops, whose loss fell further. The distance that the optimizer moves the
    backbone separates the two: 3 % (AdamW at 1e-3, 13 points lost) or 26 % (at 1e-2, 14 points), against 0.4 % and less where
    nothing was lost. ResNet-18 moves 1 % at 1e-4 and 11 % at 1e-3. This heuristic therefore misses milder shocks, and does not
    know whether accuracy was lost.

    Args:
        losses: the cross-entropy of the first steps. Without it, the result is False.
        classes: the number of outputs of the head.
        distance: how far the backbone moved in the first 10 steps, relative to its norm.
    """
    first = [loss for loss in losses[:FIRST_STEPS] if isfinite(loss)]
    return (
        classes > 1
        and len(first) == FIRST_STEPS
        and median(first) >= CHANCE_LOSS_SHARE * log(classes)
        and distance >= MIN_BODY_DISTANCE
    )
