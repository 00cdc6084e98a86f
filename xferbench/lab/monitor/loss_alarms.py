"""Heuristics for a jump of the loss and for head shock, which prefer a missed fault to a false alarm. Pure."""

from __future__ import annotations

from math import isfinite, log
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

LOSSES_BEFORE, MIN_LOSSES_BEFORE = 40, 20  # losses before an unfreezing: how many are used, and how many are needed
LOSSES_AFTER = 20  # losses after an unfreezing that are used
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
    middle = median(recent)
    spread = 1.4826 * median(abs(loss - middle) for loss in recent)
    bound = max(*recent, middle + MIN_SPREADS * spread, middle + (MIN_RISE_RATIO - 1) * abs(middle))
    new = list(after[:LOSSES_AFTER])
    run_medians = [median(new[start : start + RUN_LENGTH]) for start in range(len(new) - RUN_LENGTH + 1)]
    return next(((middle, run_median) for run_median in run_medians if run_median > bound), None)


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
