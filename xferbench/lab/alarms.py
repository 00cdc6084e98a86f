"""When losses jump and a fresh head shocks its backbone: two heuristics, on plain numbers, meant to be silent when in doubt."""

from __future__ import annotations

from math import isfinite, log
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

BEFORE, FEWEST, AFTER, RUN = 40, 20, 20, 5  # losses looked at before an unfreezing, and after; a run of them
SPREADS, RISE = 6.0, 1.2
FIRST, GONE_BY = 3, 10  # steps whose losses tell a fresh head; steps after which the backbone's way is measured
CHANCE, GONE = 0.8, 0.1


def jumped(before: Sequence[float], after: Sequence[float]) -> tuple[float, float] | None:
    """Medians of the losses before and after an unfreezing, where they jumped beyond what their recent spread explains.

    Some 5 consecutive losses among the 20 after it must have a median that is above all of the last 40 before (20 at least),
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


def shocked(losses: Sequence[float], classes: int, gone: float) -> bool:
    """Whether a backbone went far while its head knew nothing: a tenth of its length in 10 steps, the loss near guessing.

    The head-shock plugin's R is the gradient's norm under a random head over that under a head that was fitted to the same
    images (Kumar et al. 2022, arXiv:2202.10054). A loop has no fitted head, and its own later steps are no stand-in: on
    synthetic:near, first over later norm was 1 to 2 in loops that lost 13 points of accuracy to head shock, and 4 to 7 in sound
    ones, whose loss fell further. What the optimizer makes of the gradient told them apart: a way of 3 % (AdamW at 1e-3, 13
    points lost) or 26 % (at 1e-2, 14 points), against 0.4 % and less where nothing was lost. ResNet-18 goes 1 % at 1e-4 and
    11 % at 1e-3. So milder shocks are missed, and whether accuracy was lost is not known.

    Args:
        losses: of the first steps; cross-entropy, without which nothing is said.
        classes: outputs of the head.
        gone: how far the backbone went in the first 10 steps, relative to its length.
    """
    first = [loss for loss in losses[:FIRST] if isfinite(loss)]
    return classes > 1 and len(first) == FIRST and median(first) >= CHANCE * log(classes) and gone >= GONE
