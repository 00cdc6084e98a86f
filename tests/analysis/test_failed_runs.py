"""The share of runs that fail: which runs count, the coverage of its interval, and when it leaves a harm open."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from factory import make_binary_predictions, make_record
from hypothesis import given
from hypothesis import strategies as st

from xferbench.analysis import failed_runs

TERM = ("subject", "test")
ALPHA = 0.05
RUNS = st.integers(1, 30).flatmap(
    lambda count: st.tuples(
        st.lists(st.floats(-1, 1), min_size=count, max_size=count), st.lists(st.booleans(), min_size=count, max_size=count)
    )
)


def find_failed(accuracies, diverged=()):
    records = {
        (*TERM, seed): make_record("subject", accuracy, seed=seed, scalars={"diverged": float(seed in diverged)})
        for seed, accuracy in enumerate(accuracies)
    }
    return failed_runs.failed_seeds([TERM], records, range(len(accuracies)), 0.02)


@pytest.mark.parametrize(
    ("accuracies", "diverged", "failed"),
    [
        ([0.8, 0.9, 0.7], (), []),
        ([0.8, 0.1, 0.7], (), [1]),
        ([0.8, 0.9, 0.7], (2,), [2]),
        ([0.1, 0.1, 0.7], (), []),
        ([0.1, 0.1, 0.7], (0, 1), [0, 1]),
    ],
    ids=["none", "learned nothing", "diverged", "the median run learned nothing", "most diverged"],
)
def test_a_run_failed_if_it_diverged_or_alone_learned_nothing(accuracies, diverged, failed):
    assert np.flatnonzero(find_failed(accuracies, diverged)).tolist() == failed


@pytest.mark.parametrize(("correct", "failed"), [((64, 66, 67), []), ((61, 66, 67), [0]), ((61, 61, 63), [])])
def test_a_run_that_learned_little_failed_only_if_the_others_learned_twice_as_much(correct, failed):
    """The most frequent of two classes has 60 of 100 images, and a run learned something from five more on."""
    predictions = replace(make_binary_predictions(np.ones(100)), label=(np.arange(100) < 40).astype(int))
    records = {
        (*TERM, seed): replace(
            make_record("subject", 0.8),
            predictions=replace(
                predictions, predicted=np.where(np.arange(100) < count, predictions.label, 1 - predictions.label)
            ),
        )
        for seed, count in enumerate(correct)
    }
    assert np.flatnonzero(failed_runs.failed_seeds([TERM], records, range(3), 0.05)).tolist() == failed


def test_a_missing_record_leaves_the_failures_unknown():
    records = {(*TERM, 0): make_record("subject", 0.8), (*TERM, 1): replace(make_record("subject", 0.8), predictions=None)}
    assert failed_runs.failed_seeds([TERM], records, [0, 1], 0.02) is None
    assert failed_runs.failed_seeds([TERM], records, [0, 2], 0.02) is None
    assert failed_runs.failed_seeds([], records, [0], 0.02) is None
    assert not len(failed_runs.failed_seeds([TERM], {}, [], 0.02))


@pytest.mark.parametrize("seeds", [1, 3, 5, 10, 20])
def test_the_interval_of_the_share_covers_it_as_often_as_stated(seeds):
    rng = np.random.default_rng(seeds)
    for share in (0.01, 0.05, 0.1, 0.2, 0.5):
        counts = rng.binomial(seeds, share, 4000)
        bounds = {count: failed_runs.failed_share(np.arange(seeds) < count, ALPHA) for count in set(counts)}
        covered = np.mean([bounds[count].low <= share <= bounds[count].high for count in counts])
        assert covered >= 1 - ALPHA - 3 * np.sqrt(ALPHA * (1 - ALPHA) / len(counts)), share


def test_the_share_has_the_bounds_of_clopper_and_pearson():
    share = failed_runs.failed_share(np.array([True, False, False, False, False]), ALPHA)
    assert (share.count, share.low, share.high) == (1, pytest.approx(0.0051, abs=1e-4), pytest.approx(0.7164, abs=1e-4))


@given(runs=RUNS, share=st.floats(0, 1), margin=st.floats(0.001, 0.5))
def test_a_failed_run_leaves_open_a_harm_that_its_share_could_raise_above_the_margin(runs, share, margin):
    harms, failed = map(np.array, runs)
    leaves_open = failed_runs.leave_open(harms, failed, share, margin)
    if not failed.any():
        assert not leaves_open
    elif failed.all():
        assert leaves_open
    else:
        worst = (1 - share) * harms[~failed].mean() + share * harms[failed].mean()
        assert leaves_open or worst < margin + 1e-9
        assert not leaves_open or worst > margin - 1e-9


def test_a_harm_that_is_not_a_number_is_left_open():
    assert failed_runs.leave_open(np.array([0.0, np.nan]), np.array([False, True]), 0.5, 0.02)
