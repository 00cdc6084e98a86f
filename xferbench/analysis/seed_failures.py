"""Which runs of an arm failed, judged by the other runs; and the share of runs that fail as an estimate. Pure.

A run failed if its training diverged; or if it learned nothing, or less than half of what the median run learned; or if it is
in a second, lower mode. Runs whose accuracy merely varies are none of these: the second part needs a significant difference
from a run that learned, and the third one a gap that no distribution with one mode explains.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from xferbench.analysis import estimates, intervals
from xferbench.analysis.power import MAX_SEEDS
from xferbench.core.reason import Code, because
from xferbench.core.run import Estimate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xferbench.analysis.estimates import ContrastEstimate, RecordsByTerm
    from xferbench.core.plugin import Contrast
    from xferbench.core.reason import Reason
    from xferbench.core.record import Predictions

LEAST_GAP = 0.05  # accuracy that a run must learn, and that separates two modes; a smaller gap is no failure, however clear
FAILURE_METRIC, FAILURE_UNIT = "failed_runs", "runs"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFailures:
    """How the runs of an arm failed, each [runs] bool; a run is in at most one of the four.

    Attributes:
        diverged: the training was not finite.
        unlearned: the run learned nothing, or less than half of what the median run learned.
        lower_mode: the run is in a second, lower mode.
        doubtful: the run may have failed: it learned as little, or there is such a gap, but the tests do not show it. Such a
            run counts against a share that is small, and not for one that is large.
        has_reference: whether any run learned, so that a run without learning is a failure of the run and not of the task.
    """

    diverged: np.ndarray
    unlearned: np.ndarray
    lower_mode: np.ndarray
    doubtful: np.ndarray
    has_reference: bool

    @property
    def failed(self) -> np.ndarray:
        """Whether the run failed, [runs]."""
        failed: np.ndarray = self.diverged | self.unlearned | self.lower_mode
        return failed


def classify_runs(
    runs: Sequence[Predictions], diverged: np.ndarray, reference: Sequence[Predictions], alpha: float
) -> RunFailures:
    """Return how the runs of an arm failed.

    A run is compared with one that learned, that is, whose accuracy is significantly above the share of the most frequent class
    (exact binomial test). It is the median run of this arm or of ``reference``, whichever is more accurate. If neither learned,
    it is the best run of both, with ``alpha`` divided by the number of runs. What a run learned is its accuracy above that
    share.

    A run *learned nothing or too little* if it is significantly less accurate than that run (McNemar's exact test, with
    ``alpha`` divided by the number of runs), and if it learned less than half of what the median run of its own arm did. If
    most runs of the arm fail, that median says nothing; a run that learned less than :data:`LEAST_GAP`, and less than half of
    what that run did, is therefore one too. The definition of Mosbach et al. (2021) is a run that learned nothing at all.

    The runs in a *lower mode* are the less accurate part of the runs, be they few or most, if the gap above them is larger than
    :data:`LEAST_GAP` and than any distribution with one mode explains (:func:`gap_p`).

    A run is *doubtful* if it learned as little as a failed one without a significant difference, or if it is below a gap that
    is significant at ``alpha`` without a correction for the number of gaps.

    Args:
        runs: the runs of the arm, on the same examples.
        diverged: whether the training of each run diverged, [runs].
        reference: the runs of an arm that is supposed to be stable, on the same examples; may be empty.
        alpha: level of the tests.
    """
    label = runs[0].label
    majority = int(np.bincount(label).max())
    correct, stable = (np.array([run.predicted == label for run in arm]) for arm in (runs, reference))
    finite, none = correct[~diverged], np.zeros(len(runs), dtype=bool)
    best = _learned_run([arm for arm in (finite, stable) if len(arm)], majority, alpha)
    if best is None:
        return RunFailures(diverged=diverged, unlearned=none, lower_mode=none, doubtful=none, has_reference=False)
    accuracy, learned = correct.mean(1), (correct.sum(1) - majority) / len(label)
    own = float(np.median(learned[~diverged])) if len(finite) else 0.0
    least = max(own / 2, min(LEAST_GAP, (int(best.sum()) - majority) / len(label) / 2))
    is_below = np.array([less_accurate_p(run, best) < alpha / len(runs) for run in correct], dtype=bool)
    unlearned = ~diverged & is_below & (learned < least)
    threshold, doubtful_threshold = lower_mode_thresholds(np.sort(accuracy[~diverged]), len(label), alpha)
    lower = ~diverged & ~unlearned & (accuracy <= threshold)
    doubtful = ~(diverged | unlearned | lower) & ((learned < least) | (accuracy <= doubtful_threshold))
    return RunFailures(diverged=diverged, unlearned=unlearned, lower_mode=lower, doubtful=doubtful, has_reference=True)


def _learned_run(arms: Sequence[np.ndarray], majority: int, alpha: float) -> np.ndarray | None:
    """Return a run [examples] that learned, of arms [runs, examples]: the best of the median runs, or the best of all runs."""
    if not arms:
        return None
    medians = [arm[np.argsort(arm.sum(1), kind="stable")[len(arm) // 2]] for arm in arms]
    runs = np.concatenate(arms)
    for candidates, level in ((np.array(medians), alpha), (runs, alpha / len(runs))):
        best: np.ndarray = candidates[np.argmax(candidates.sum(1))]
        if above_share_p(int(best.sum()), len(best), majority / len(best)) < level:
            return best
    return None


def above_share_p(correct: int, examples: int, share: float) -> float:
    """Return the exact p-value of ``accuracy ≤ share`` for a number of correct examples."""
    from scipy.special import betainc

    return float(betainc(correct, examples - correct + 1, share)) if correct else 1.0


def less_accurate_p(correct: np.ndarray, reference: np.ndarray) -> float:
    """Return McNemar's exact one-sided p-value of "no less accurate than the reference", for two [examples]."""
    worse, better = int((reference & ~correct).sum()), int((correct & ~reference).sum())
    return above_share_p(worse, worse + better, 0.5)


def lower_mode_thresholds(accuracy: np.ndarray, examples: int, alpha: float) -> tuple[float, float]:
    """Return the highest accuracy in a lower mode, and that in a possible one without correction; −∞ if there is no such mode.

    Args:
        accuracy: [runs], in increasing order.
        examples: number of test examples.
        alpha: level, which is divided among the tests of a gap. A gap is compared with the range of the larger part.
    """
    runs, p_values = len(accuracy), np.ones(max(len(accuracy) - 1, 0))
    for size in range(1, runs):
        if accuracy[size] - accuracy[size - 1] > LEAST_GAP:
            below = gap_p(accuracy, size, examples) if 2 * size <= runs else 1.0
            above = gap_p(-accuracy[::-1], runs - size, examples) if 2 * size >= runs else 1.0
            p_values[size - 1] = min(below, above)
    levels = (alpha / max(runs, 1), alpha)  # runs − 1 gaps; the one in the middle may be tested from both sides
    corrected, uncorrected = (float(max(accuracy[:-1][p_values < level], default=-np.inf)) for level in levels)
    return corrected, uncorrected


def gap_p(accuracy: np.ndarray, size: int, examples: int) -> float:
    """Return the p-value of the gap above the lowest runs, for runs from a distribution with one mode.

    The distribution function is assumed to be log-concave, as those of normal, uniform, logistic, exponential and beta
    distributions are. The tail that makes gaps widest is then the exponential one, in which the spacings of n sorted values
    are independent and exponential with the rates 1, …, n − 1 from below (Rényi 1953). If the gap above the lowest m values is
    k times the range of the others, its p-value is Π j / (j + k m) over j = m + 1, …, n − 1. Accuracies are multiples of one
    over the number of examples; the gap is therefore shortened, and the range widened, by one example.

    Args:
        accuracy: [runs], in increasing order; for the gap below the highest runs, their negatives in increasing order.
        size: number of lowest runs.
        examples: number of test examples.
    """
    gap = max(float(accuracy[size] - accuracy[size - 1]) - 1 / examples, 0.0)
    ratio = gap / (float(accuracy[-1] - accuracy[size]) + 1 / examples)
    rates = np.arange(size + 1, len(accuracy))
    return float(np.prod(rates / (rates + ratio * size)))


def estimate_failed_share(
    contrast: Contrast, records: RecordsByTerm, seeds: Sequence[int], *, allowed: float, alpha: float
) -> ContrastEstimate:
    """Estimate the share of runs that fail: exact one-sided bounds (Clopper & Pearson 1934) and binomial p-values.

    Doubtful runs count as failed in the upper bound and in the p-value of PASS, and as healthy in the lower bound and in that
    of FAIL. A crash, a missing record or other examples give an error. If no run learned, only diverged runs count as failed,
    and no p-value lets the share pass.

    Args:
        contrast: a contrast of kind ``share``; its only pair names the arm and the view.
        records: records by arm, view and seed. The runs of the cured arm are compared with those of the arm.
        seeds: the seeds of the arm.
        allowed: the allowed share.
        alpha: level of each bound, and of the tests that tell a failed run.
    """
    runs, error = run_failures(contrast, records, seeds, alpha)
    if runs is None:
        return estimates.undecided(error or because(Code.NOT_MEASURED_AT_ANY_SEED))
    count, S = int(runs.failed.sum()), len(seeds)
    healthy = S - count - int(runs.doubtful.sum())
    low = intervals.proportion_lower_bound(count, S, alpha)
    high = 1.0 - intervals.proportion_lower_bound(healthy, S, alpha) if runs.has_reference else 1.0
    estimate = Estimate(
        harm=count / S,
        low=low,
        high=high,
        p_fail=above_share_p(count, S, allowed),
        p_pass=above_share_p(healthy, S, 1 - allowed) if runs.has_reference else 1.0,
        se=float("nan"),
        df=float("nan"),
        seeds=S,
        examples=len(_first_predictions(contrast, records, seeds).label),
    )
    failed = runs.failed.astype(np.float64)[:, None]
    return estimates.ContrastEstimate(estimate=estimate, exposed=True, difference=failed, groups=np.empty(0))


def run_failures(
    contrast: Contrast, records: RecordsByTerm, seeds: Sequence[int], alpha: float
) -> tuple[RunFailures | None, Reason | None]:
    """Return how the runs of a contrast's arm failed, or why that is not known; see :func:`estimate_failed_share`."""
    ((arm, view),) = contrast.weights
    reference_seeds = sorted(seed for other, other_view, seed in records if (other, other_view) == ("cured", view))
    terms = {((arm, view), seed): records.get((arm, view, seed)) for seed in seeds}
    reference_terms = {(("cured", view), seed): records.get(("cured", view, seed)) for seed in reference_seeds or seeds}
    predictions, error = estimates.collect_predictions(terms | reference_terms)
    if error is not None:
        return None, error
    first = next(iter(predictions.values()))
    if any(not np.array_equal(part.example, first.example) for part in predictions.values()):
        return None, because(Code.OTHER_EXAMPLES)
    diverged = np.array([bool(record and record.scalars.get("diverged", 0.0) > 0) for record in terms.values()], dtype=bool)
    reference = [predictions[term] for term in reference_terms]
    return classify_runs([predictions[term] for term in terms], diverged, reference, alpha), None


def _first_predictions(contrast: Contrast, records: RecordsByTerm, seeds: Sequence[int]) -> Predictions:
    ((arm, view),) = contrast.weights
    record = records[arm, view, seeds[0]]
    assert record.predictions is not None, "the runs of an estimate have predictions"
    return record.predictions


def fewer_failures_p(failed: np.ndarray, cured_failed: np.ndarray) -> float:
    """Return McNemar's exact one-sided p-value of "the cured arm fails no less often", for two [seeds] paired by seed."""
    return less_accurate_p(~failed, ~cured_failed)


def seeds_to_pass(allowed: float, level: float) -> int:
    """Return the smallest number of seeds at which no failed run shows that the share is below the allowed one."""
    return int(np.log(level) // np.log1p(-allowed)) + 1


def required_seeds(count: int, seeds: int, *, allowed: float, alpha_pass: float, alpha_fail: float) -> int | None:
    """Return the number of seeds that would decide a share; None if no affordable number would.

    A share that is at most the allowed one is assumed to have no further failed run, and a larger one to stay as it is.

    Args:
        count: number of failed runs.
        seeds: number of runs.
        allowed: the allowed share.
        alpha_pass: level of a PASS.
        alpha_fail: level of a FAIL.
    """
    for S in range(seeds, MAX_SEEDS + 1):
        if count <= allowed * seeds:
            is_decided = above_share_p(S - count, S, 1 - allowed) < alpha_pass
        else:
            is_decided = above_share_p(int(count / seeds * S), S, allowed) < alpha_fail
        if is_decided:
            return S
    return None
