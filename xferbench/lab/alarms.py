"""When losses jump and a fresh head shocks its backbone: two heuristics, on plain numbers, meant to be silent when in doubt."""

from __future__ import annotations

from math import isfinite, log
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

BEFORE, FEWEST, AFTER, RUN = 20, 10, 20, 5  # losses looked at before an unfreezing, and after; a run of them
SPREADS, RISE = 6.0, 1.2
FIRST, LATER, CHECKS = 3, 50, 3  # steps at the start; a step, and the checks after it, at which the head has learnt
RATIO, GONE, CHANCE = 5.0, 0.05, 0.8


def jumped(before: Sequence[float], after: Sequence[float]) -> tuple[float, float] | None:
    """Medians of the losses before and after an unfreezing, where they jumped beyond what their recent spread explains.

    Some 5 consecutive losses among the 20 after it must have a median that is above all of the last 20 before (10 at least),
    above their median by six spreads (1.4826 × the median absolute deviation, that of a normal distribution), and by a fifth.
    """
    old = [loss for loss in before[-BEFORE:] if isfinite(loss)]
    if len(old) < FEWEST:
        return None
    middle = median(old)
    spread = 1.4826 * median(abs(loss - middle) for loss in old)
    bound = max(*old, middle + SPREADS * spread, middle + (RISE - 1) * abs(middle))
    new = list(after[:AFTER])
    runs = [median(new[at : at + RUN]) for at in range(len(new) - RUN + 1)]
    return next(((middle, run) for run in runs if run > bound), None)


def fresh(losses: Sequence[float], classes: int) -> bool:
    """Whether a head knows nothing yet: its first losses are near those of guessing among classes, or unknown."""
    first = [loss for loss in losses[:FIRST] if isfinite(loss)]
    return classes < 2 or not first or median(first) >= CHANCE * log(classes)


def shocked(norms: Sequence[tuple[int, float]], gone: float) -> float | None:
    """The backbone's gradient at the start over that after step 50, where a fresh head's gradients moved it far.

    The head-shock plugin's R compares a random head with one that was fitted to the same images, on the same backbone. A loop
    has no fitted head; this proxy takes the same loop's own later steps for it. Whatever else lets the gradient fall (a loss
    that goes to zero, a rate that decays with clipping) counts too, so that the ratio must be 5 and the backbone must have
    gone 5 % of its length in the first 10 steps. Milder shocks are missed: R of 2 was seen to cost ten points of accuracy.

    Args:
        norms: step and norm of the backbone's gradient, at each check.
        gone: how far the backbone went in the first steps, relative to its length.
    """
    first = [norm for step, norm in norms if step <= FIRST]
    later = [norm for step, norm in norms if step >= LATER][:CHECKS]
    if not first or len(later) < CHECKS or not gone >= GONE:
        return None
    start, end = median(first), median(later)
    ratio = start / end if end else float("inf")
    return ratio if isfinite(start) and ratio >= RATIO else None
