from __future__ import annotations

from math import inf, nan

import numpy as np
import pytest
from benchmarks.worlds import ALPHA, ORDINARY, batches, probit

from xferbench.analysis import intervals, power


def crossed(difference, margin):
    return intervals.crossed_interval(difference, margin=margin, alpha=0.05)


def test_the_smallest_margin_has_the_power_that_it_promises():
    generator = np.random.default_rng(3)
    _, seeds, examples, rest = (
        part.mean() for part in intervals.mean_squares(probit(generator, (50, 20, 500), [0.0], **ORDINARY)[0])
    )
    persistent = (examples - rest) / 20
    for S, N in ((1, 153), (3, 153), (10, 50)):
        variances = power.Variances(seed=(seeds - rest) / 500, example=persistent, residual=rest)
        margin = power.smallest_margin(N, S, variances=variances)
        p_pass = [
            intervals.p_values(probit(generator, (R, S, N), [0.0], **ORDINARY)[0], margin)[1] for R in batches(1000, S * N)
        ]
        assert 0.7 < (np.concatenate(p_pass) < ALPHA).mean() < 0.86


def test_more_examples_or_seeds_reduce_the_smallest_margin():
    by_examples = [power.smallest_margin(N, 10) for N in (10, 50, 200, 1000, 5000)]
    by_seeds = [power.smallest_margin(1000, S) for S in (2, 3, 5, 10, 20, 100)]
    assert by_examples == sorted(by_examples, reverse=True)
    assert by_seeds == sorted(by_seeds, reverse=True)


def test_five_hundred_examples_and_twenty_seeds_cannot_decide_two_points():
    assert power.smallest_margin(500, 20) > 0.02
    assert power.smallest_margin(4000, 20) < 0.02


def test_a_pass_needs_six_times_the_disagreement_over_the_squared_margin():
    margin = power.smallest_margin(100_000, 20, variances=power.Variances(seed=0.0, example=0.15, residual=0.0))
    assert 6.2 * 0.15 / margin**2 == pytest.approx(100_000, rel=0.03)


def test_without_disagreement_zero_difference_decides_the_smallest_margin():
    margin = power.smallest_margin(300, 5, variances=power.Variances(seed=0.0, example=0.0, residual=0.0))
    nothing = np.zeros((5, 300))
    assert crossed(nothing, 1.1 * margin).p_pass < 0.05
    assert crossed(nothing, 0.8 * margin).p_pass >= 0.05


@pytest.mark.parametrize(("examples", "seeds"), [(1, 5), (0, 5), (500, 0)])
def test_too_few_values_have_no_smallest_margin(examples, seeds):
    assert power.smallest_margin(examples, seeds) == inf


def test_only_examples_help_if_all_seeds_agree():
    row = np.repeat([1.0, -1.0, 0.0], [38, 38, 424])
    seeds, examples = power.required_sizes(np.tile(row, (5, 1)), margin=0.02, alpha_pass=0.05, alpha_fail=0.05)
    assert seeds is None
    assert examples == pytest.approx(6.2 * 0.152 / 0.02**2, rel=0.1)


def test_only_seeds_help_if_seeds_differ_as_a_whole():
    difference = np.array([0.3, -0.3, 0.2, -0.2, 0.0])[:, None] + np.zeros((5, 200))
    difference[:, ::2] += 0.01
    seeds, examples = power.required_sizes(difference, margin=0.05, alpha_pass=0.05, alpha_fail=0.05)
    assert seeds is not None
    assert 100 < seeds < 300
    assert examples is None


def test_required_sizes_agree_with_the_smallest_margin():
    generator = np.random.default_rng(4)
    D = probit(generator, (1, 5, 300), [0.0], **ORDINARY)[0][0]
    D -= D.mean()  # an observed harm of exactly 0
    _, examples = power.required_sizes(D, margin=0.05, alpha_pass=0.05, alpha_fail=0.05)
    variances = power.Variances(seed=0.017**2, example=0.031, residual=0.124)
    assert power.smallest_margin(examples, 5, variances=variances) == pytest.approx(0.05, rel=0.3)


def test_a_fail_needs_fewer_examples_than_a_pass_at_the_same_distance():
    D = np.tile(np.repeat([1.0, -1.0, 0.0], [28, 20, 152]), (5, 1))  # harm .04
    seeds, examples = power.required_sizes(D, margin=0.02, alpha_pass=0.05, alpha_fail=0.05)
    assert seeds is None
    assert examples == pytest.approx(6.2 * 0.24 / 0.02**2, rel=0.1)
    _, corrected = power.required_sizes(D, margin=0.02, alpha_pass=0.05, alpha_fail=0.05 / 15)
    _, passing = power.required_sizes(D, margin=0.06, alpha_pass=0.05, alpha_fail=0.05 / 15)
    assert examples <= passing < corrected


def test_one_seed_cannot_tell_the_required_number_of_seeds():
    row = np.repeat([1.0, -1.0, 0.0], [10, 10, 180])
    seeds, examples = power.required_sizes(row[None], margin=0.02, alpha_pass=0.05, alpha_fail=0.05)
    assert seeds is None
    assert examples > 200
    assert power.required_sizes(row[None], margin=0.5, alpha_pass=0.05, alpha_fail=0.05) == (None, 200)


@pytest.mark.parametrize("D", [np.zeros((0, 10)), np.zeros((3, 1)), np.full((3, 10), nan), np.full((3, 10), 0.02)])
def test_no_size_suffices_without_data_or_at_the_margin(D):
    assert power.required_sizes(D, margin=0.02, alpha_pass=0.05, alpha_fail=0.05) == (None, None)


def test_the_chances_of_a_decision_agree_with_the_smallest_margin():
    margin = power.smallest_margin(400, 5)
    passing, failing = power.decision_chances(400, 5, margin, alpha_pass=0.05, alpha_fail=0.05 / 15)
    assert passing == pytest.approx(power.POWER, abs=0.01) and 0.1 < failing < passing
    assert power.decision_chances(50, 5, 0.02, alpha_pass=0.05, alpha_fail=0.05) < (0.1, 0.1)
    assert power.decision_chances(1, 5, 0.02, alpha_pass=0.05, alpha_fail=0.05) == (0.0, 0.0)
