"""Runs that fail: their share with an exact interval, and whether they leave a mean harm open. Pure.

An interval of a mean says little about failures that are rare: most samples of five seeds have none. The share of runs that
fail is therefore a question of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from xferbench.analysis import intervals
from xferbench.core.run import FailedRuns

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xferbench.analysis.estimates import RecordsByTerm
    from xferbench.core.record import Predictions


def failed_seeds(
    terms: Sequence[tuple[str, str]], records: RecordsByTerm, seeds: Sequence[int], margin: float
) -> np.ndarray | None:
    """Return whether the run of an arm failed, [seeds]; None if a record is missing.

    A run failed if it diverged, or if it learned nothing although the median run learned something: its accuracy exceeds the
    share of the most frequent class by less than ``margin``, and by less than half of what the median run reaches.

    Args:
        terms: the arm with each view that its runs are seen in.
        records: records by arm, view and seed.
        seeds: the seeds.
        margin: accuracy above the share of the most frequent class from which a run has learned something.
    """
    failed = np.zeros(len(seeds), dtype=bool)
    for arm, view in terms:
        by_seed = [records.get((arm, view, seed)) for seed in seeds]
        parts = [record.predictions for record in by_seed if record is not None and record.predictions is not None]
        if len(parts) < len(seeds):
            return None
        gains = np.array([_gain(predictions) for predictions in parts])
        if len(gains) and np.median(gains) >= margin:
            failed |= gains < min(margin, float(np.median(gains)) / 2)
        failed |= np.array([bool(record and record.scalars.get("diverged", 0.0) > 0) for record in by_seed], dtype=bool)
    return failed if terms else None


def _gain(predictions: Predictions) -> float:
    """Return the accuracy above the share of the most frequent class."""
    most_frequent = np.bincount(predictions.label).max()
    return float((predictions.predicted == predictions.label).mean() - most_frequent / len(predictions.label))


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
