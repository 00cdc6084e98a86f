"""Runs that fail: their share with an exact interval, and whether they leave a mean harm open. Pure.

An interval of a mean says little about failures that are rare: most samples of five seeds have none. The share of runs that
fail is therefore a question of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from xferbench.analysis import estimates, intervals
from xferbench.core.run import FailedRuns

if TYPE_CHECKING:
    from collections.abc import Sequence


def failed_seeds(
    terms: Sequence[tuple[str, str]], records: estimates.RecordsByTerm, seeds: Sequence[int], margin: float
) -> np.ndarray | None:
    """Return whether the run of an arm failed, [seeds]; None if a record is missing.

    A run failed if it diverged, or if its accuracy does not exceed the share of the most frequent class by ``margin`` although
    the median run does. If the median run does not either, the pipeline as a whole learned nothing.

    Args:
        terms: the arm with each view that its runs are seen in.
        records: records by arm, view and seed.
        seeds: the seeds.
        margin: required accuracy above the share of the most frequent class.
    """
    failed = np.zeros(len(seeds), dtype=bool)
    for arm, view in terms:
        by_seed = [record for seed in seeds if (record := records.get((arm, view, seed))) and record.predictions is not None]
        if len(by_seed) < len(seeds):
            return None
        learned = [estimates.majority_baseline_share(records, arm, [seed], margin, view) is None for seed in seeds]
        is_typical = 2 * sum(learned) > len(seeds)
        failed |= np.array(
            [
                record.scalars.get("diverged", 0.0) > 0 or (is_typical and not has_learned)
                for record, has_learned in zip(by_seed, learned, strict=True)
            ],
            dtype=bool,
        )
    return failed if terms else None


def failed_share(failed: np.ndarray, alpha: float) -> FailedRuns:
    """Return the number of failed runs of [seeds], and the bounds of the share of runs that fail."""
    low, high = intervals.proportion_interval(int(failed.sum()), len(failed), alpha)
    return FailedRuns(count=int(failed.sum()), low=low, high=high)


def leave_open(harms: np.ndarray, failed: np.ndarray, share: float, margin: float) -> bool:
    """Return whether the mean harm could reach the margin if a ``share`` of the runs failed.

    The mean over runs is then that of the runs that did not fail plus ``share`` times the excess harm of those that did.

    Args:
        harms: harm by seed, [seeds].
        failed: whether the run failed, [seeds].
        share: share of runs that fail, such as its upper bound.
        margin: the margin.
    """
    if not failed.any():
        return False
    if failed.all():
        return True
    others = harms[~failed].mean()
    return not others + share * (harms[failed].mean() - others) < margin  # NaN leaves it open
