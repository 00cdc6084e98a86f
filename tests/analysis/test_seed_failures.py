"""Which runs of an arm failed, how often healthy runs are called failed, and the share of runs that fail."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from factory import make_record
from scipy import stats

from xferbench.analysis import intervals, seed_failures
from xferbench.core.contrasts import failed_share
from xferbench.core.reason import Code
from xferbench.core.record import Record

ALPHA = 0.05
SHARE = failed_share("failed-runs", "share of runs that fail")
HEALTHY = [0.80, 0.82, 0.84, 0.81, 0.83]
VARYING = [0.78 + 0.005 * (seed % 9) for seed in range(19)]


def make_runs(accuracies, *, classes=10, examples=1000, seed=0):
    """Return runs with exact accuracies; half of the difficulty of an example is the same for all runs."""
    rng = np.random.default_rng(seed)
    label, difficulty = np.arange(examples) % classes, rng.random(examples)
    ranks = [np.argsort(np.argsort(difficulty + rng.random(examples))) for _ in accuracies]
    return [
        SimpleNamespace(label=label, predicted=np.where(rank < round(accuracy * examples), label, -1))
        for rank, accuracy in zip(ranks, accuracies, strict=True)
    ]


def classify(accuracies, cured=(), *, diverged=(), **shape):
    flags = np.isin(np.arange(len(accuracies)), diverged)
    runs, reference = make_runs(accuracies, **shape), make_runs(cured, seed=1, **shape)
    return seed_failures.classify_runs(runs, flags, reference, ALPHA)


@pytest.mark.parametrize(
    ("accuracies", "cured", "diverged", "failed"),
    [
        (HEALTHY, HEALTHY, (), []),
        ([0.60, 0.70, 0.80, 0.90, 0.95], HEALTHY, (), []),
        ([0.10, 0.82, 0.84, 0.81, 0.83], HEALTHY, (), [0]),
        ([0.35, 0.60, 0.70, 0.85, 0.90], HEALTHY, (), [0]),
        ([0.80, 0.82, 0.84, 0.81, 0.10], HEALTHY, (4,), [4]),
        ([0.10, 0.11, 0.14, 0.09, 0.83], HEALTHY, (), [0, 1, 2, 3]),
        ([0.10, 0.11, 0.14, 0.09, 0.10], HEALTHY, (), [0, 1, 2, 3, 4]),
        ([0.30, 0.31, 0.32, 0.33, 0.34], HEALTHY, (), []),
        ([0.65, 0.82, 0.83, 0.83, 0.83], HEALTHY, (), [0]),
        ([0.70, 0.82, 0.83, 0.83, 0.83], HEALTHY, (), [0]),
        ([0.79, 0.83, 0.83, 0.83, 0.83], HEALTHY, (), []),
        ([0.65, 0.65, 0.65, 0.83, 0.83], HEALTHY, (), [0, 1, 2]),
    ],
    ids=[
        "healthy",
        "a wide spread",
        "one learned nothing",
        "one learned less than half",
        "one diverged",
        "most learned nothing",
        "all learned nothing, and the cure learned",
        "all learned little: a worse recipe, and a stable one",
        "a lower mode",
        "a lower mode that is near",
        "a gap below five points",
        "the lower mode has most runs",
    ],
)
def test_a_run_failed_if_it_diverged_learned_too_little_or_is_in_a_lower_mode(accuracies, cured, diverged, failed):
    result = classify(accuracies, cured, diverged=diverged)
    assert np.flatnonzero(result.failed).tolist() == failed
    assert result.has_reference
    assert (result.diverged.astype(int) + result.unlearned + result.lower_mode).max() <= 1


def test_where_no_run_learned_only_diverged_runs_failed():
    result = classify([0.10, 0.09, 0.11, 0.10, 0.10], [0.10, 0.11], diverged=(2,))
    assert not result.has_reference and np.flatnonzero(result.failed).tolist() == [2]
    everything_diverged = classify([0.1] * 3, diverged=(0, 1, 2))
    assert not everything_diverged.has_reference and everything_diverged.failed.all()


def test_a_small_test_set_calls_no_run_failed_that_noise_explains():
    """The run learned nothing, and the median run 10 points; with 30 images these are three images."""
    accuracies = [0.50, 0.60, 0.60]
    assert not classify(accuracies, classes=2, examples=30).failed.any()
    assert classify(accuracies, classes=2, examples=3000).failed.tolist() == [True, False, False]


def test_a_run_that_may_have_failed_is_doubtful():
    """Sixty images say little about a run, and the gap is significant only without a correction."""
    few = classify([0.52, 0.66, 0.66], classes=2, examples=60)
    assert few.doubtful.tolist() == [True, False, False]
    assert not few.failed.any()
    gap = classify([0.68, *VARYING], HEALTHY)
    assert np.flatnonzero(gap.doubtful).tolist() == [0] and not gap.failed.any()
    assert not classify(HEALTHY, HEALTHY).doubtful.any()


def test_a_doubtful_run_prevents_a_pass_and_causes_no_fail():
    clear, doubtful = (estimate(make_records([low, *VARYING]), 20) for low in (0.74, 0.68))
    assert (clear.estimate.p_pass, clear.estimate.harm) == (pytest.approx(stats.binom.cdf(0, 20, 0.2)), 0.0)
    assert doubtful.estimate.p_pass == pytest.approx(stats.binom.cdf(1, 20, 0.2))
    assert (doubtful.estimate.harm, doubtful.estimate.p_fail) == (0.0, 1.0)


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("runs", [5, 10])
def test_the_p_value_of_a_gap_is_exact_for_an_exponential_tail_and_conservative_for_others(size, runs):
    rng, draws = np.random.default_rng(runs + size), 4000
    kinds = {
        "exponential": -rng.exponential(size=(draws, runs)),
        "normal": rng.normal(size=(draws, runs)),
        "uniform": rng.random((draws, runs)),
        "beta": rng.beta(2, 2, (draws, runs)),
    }
    rates = {}
    for kind, deviations in kinds.items():
        p = [seed_failures.gap_p(row, size, 10**9) for row in np.sort(deviations, axis=1)]
        rates[kind] = float(np.mean(np.array(p) < ALPHA))
    assert rates["exponential"] == pytest.approx(ALPHA, abs=0.012)
    assert all(rate < ALPHA + 0.005 for kind, rate in rates.items() if kind != "exponential")


def draw_accuracies(rng, kind, runs, mean, sd):
    deviations = {
        "beta": lambda: 6 * (rng.beta(4, 4, runs) - 0.5),
        "heavy tails": lambda: rng.standard_t(3, runs) / np.sqrt(3),
        "skewed": lambda: (4 - rng.gamma(4, 1, runs)) / 2,
    }[kind]()
    return np.clip(mean + sd * deviations, 0, 1)


@pytest.mark.parametrize("kind", ["beta", "heavy tails", "skewed"])
@pytest.mark.parametrize("examples", [150, 2000])
@pytest.mark.parametrize("runs", [3, 5, 10, 20])
def test_runs_that_merely_vary_rarely_fail(kind, examples, runs):
    rng, label = np.random.default_rng([runs, examples]), np.arange(examples) % 2
    counts = []
    for _ in range(60):
        accuracies = draw_accuracies(rng, kind, runs, 0.8, 0.03)
        predicted = [np.where(rng.random(examples) < accuracy, label, -1) for accuracy in accuracies]
        parts = [SimpleNamespace(label=label, predicted=values) for values in predicted]
        counts.append(seed_failures.classify_runs(parts, np.zeros(runs, dtype=bool), [], ALPHA).failed.sum())
    assert np.mean(np.array(counts) > 0) <= 0.1, "the limit is twice the largest rate of the benchmark"
    assert max(intervals.proportion_lower_bound(int(count), runs, ALPHA) for count in counts) < 0.2, "and never a FAIL"


@pytest.mark.parametrize("examples", [150, 2000])
def test_runs_at_the_most_frequent_class_are_found(examples):
    rng, label = np.random.default_rng(examples), np.arange(examples) % 2
    found, planted = 0, 0
    for _ in range(100):
        failed = rng.random(15) < 0.2
        accuracies = np.where(failed, 0.5, draw_accuracies(rng, "beta", 15, 0.8, 0.03))
        predicted = [np.where(rng.random(examples) < accuracy, label, -1) for accuracy in accuracies]
        parts = [SimpleNamespace(label=label, predicted=values) for values in predicted]
        result = seed_failures.classify_runs(parts, np.zeros(15, dtype=bool), [], ALPHA).failed
        found, planted = found + int(result[failed].sum()), planted + int(failed.sum())
    assert found >= 0.98 * planted


def make_records(accuracies, cured=(0.9,) * 5, diverged=()):
    return {
        (arm, "test", seed): make_record(arm, accuracy, seed=seed, examples=1000, scalars={"diverged": float(seed in hit)})
        for arm, values, hit in (("subject", accuracies, diverged), ("cured", cured, ()))
        for seed, accuracy in enumerate(values)
    }


def estimate(records, seeds, allowed=0.2):
    return seed_failures.estimate_failed_share(SHARE, records, range(seeds), allowed=allowed, alpha=ALPHA)


@pytest.mark.parametrize("seeds", [3, 5, 14, 20])
@pytest.mark.parametrize("failed", [0, 1, 2, 3])
def test_the_bounds_and_p_values_of_a_share_are_those_of_the_binomial_distribution(seeds, failed):
    result = estimate(make_records([0.1] * failed + [0.9] * (seeds - failed)), seeds)
    interval = stats.binomtest(failed, seeds).proportion_ci(1 - 2 * ALPHA, "exact")
    assert (result.estimate.low, result.estimate.high) == pytest.approx((interval.low, interval.high))
    assert result.estimate.harm == pytest.approx(failed / seeds) and result.difference.sum() == failed
    assert result.estimate.p_fail == pytest.approx(stats.binom.sf(failed - 1, seeds, 0.2))
    assert result.estimate.p_pass == pytest.approx(stats.binom.cdf(failed, seeds, 0.2))
    assert (result.estimate.low > 0.2) == (result.estimate.p_fail < ALPHA)
    assert (result.estimate.high < 0.2) == (result.estimate.p_pass < ALPHA)


def test_no_failed_run_of_five_leaves_45_percent_open_and_fourteen_show_less_than_20():
    five, fourteen = (estimate(make_records([0.9] * seeds), seeds).estimate for seeds in (5, 14))
    assert five.high == pytest.approx(0.451, abs=0.001)
    assert fourteen.high < 0.2 and fourteen.p_pass < ALPHA
    assert [seed_failures.seeds_to_pass(allowed, ALPHA) for allowed in (0.2, 0.1, 0.05)] == [14, 29, 59]


def break_records(records, way):
    record = records["subject", "test", 3]
    if way == "missing":
        return {key: value for key, value in records.items() if key != ("subject", "test", 3)}
    if way == "no cure":
        return {key: value for key, value in records.items() if key[0] != "cured"}
    if way == "other examples":
        predictions = replace(record.predictions, example=record.predictions.example[::-1])
        return records | {("subject", "test", 3): replace(record, predictions=predictions)}
    if way == "a crash of the cure":
        return records | {("cured", "test", 0): Record(key="x", error="Boom")}
    broken = Record(key="x", error="Boom") if way == "crashed" else replace(record, predictions=None)
    return records | {("subject", "test", 3): broken}


@pytest.mark.parametrize("way", ["missing", "crashed", "no predictions", "no cure", "other examples", "a crash of the cure"])
def test_what_is_missing_decides_nothing(way):
    result = estimate(break_records(make_records([0.9] * 20), way), 20)
    assert result.error and (result.estimate.p_fail, result.estimate.p_pass) == (1.0, 1.0)
    assert not result.estimate.high < 1


def test_a_share_without_seeds_is_an_error():
    assert estimate({}, 0).error.code == Code.NOT_MEASURED_AT_ANY_SEED


def test_where_no_arm_learned_no_share_is_below_the_allowed_one():
    result = estimate(make_records([0.1] * 20, cured=[0.1] * 5), 20)
    assert (result.estimate.harm, result.estimate.high, result.estimate.p_pass, result.estimate.p_fail) == (0, 1, 1, 1)
    diverged = estimate(make_records([0.1] * 20, cured=[0.1] * 5, diverged=range(20)), 20)
    assert diverged.estimate.p_fail < 1e-6, "a diverged run failed, whatever the others learned"


def test_the_cure_is_compared_at_the_same_seeds():
    failed, cured = np.array([True, True, True, True, False, False]), np.array([False, False, False, False, True, False])
    expected = stats.binomtest(4, 5, alternative="greater").pvalue
    assert seed_failures.fewer_failures_p(failed, cured) == pytest.approx(expected)
    assert seed_failures.fewer_failures_p(cured, cured) == 1.0


@pytest.mark.parametrize(("count", "seeds", "needed"), [(0, 5, 14), (1, 5, 22), (2, 14, 30), (3, 5, 7), (5, 5, 5)])
def test_the_seeds_that_would_decide_have_no_further_failure_or_as_many_as_now(count, seeds, needed):
    levels = {"alpha_pass": ALPHA, "alpha_fail": ALPHA}
    assert seed_failures.required_seeds(count, seeds, allowed=0.2, **levels) == needed
    if count <= 0.2 * seeds:
        assert stats.binom.cdf(count, needed, 0.2) < ALPHA <= stats.binom.cdf(count, needed - 1, 0.2)


def test_a_share_that_no_affordable_number_of_seeds_decides_says_so():
    assert seed_failures.required_seeds(0, 5, allowed=0.001, alpha_pass=ALPHA, alpha_fail=ALPHA) is None
