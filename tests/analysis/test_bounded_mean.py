from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from xferbench.analysis.bounded_mean import MAX_DISTINCT_VALUES, bounded_mean_p, weighted_sum_p


@pytest.mark.parametrize("successes", [0, 1, 3, 8, 15, 30, 80])
def test_two_valued_data_have_the_p_value_of_the_binomial_test(successes):
    values = np.repeat([1.0, 0.0], [successes, 150 - successes])
    expected = binom.sf(successes - 1, 150, 0.05)
    assert float(bounded_mean_p(values, 0.05, 0.0)) == pytest.approx(expected, rel=0.02, abs=1e-200)


def test_values_that_never_occur_count_at_their_bound():
    assert float(bounded_mean_p(np.zeros(153), -0.02, -1.0)) == pytest.approx(0.98**153, rel=0.03)


def test_the_saddlepoint_agrees_with_random_weights():
    generator = np.random.default_rng(0)
    terms = np.append(generator.normal(0.1, 1.0, size=40), -2.0)
    weights = generator.exponential(size=(400_000, 41))
    assert float(weighted_sum_p(terms, np.ones(41))) == pytest.approx((weights @ terms <= 0).mean(), rel=0.03)


def test_counted_values_equal_single_values():
    values = np.round(np.random.default_rng(1).normal(size=(3, 500)), 3)
    assert len(np.unique(values)) > MAX_DISTINCT_VALUES
    apart = [float(bounded_mean_p(np.round(row, 3), -0.05, -5.0)) for row in values]
    assert bounded_mean_p(values, -0.05, -5.0) == pytest.approx(apart)


@given(st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0]), min_size=2, max_size=60), st.floats(-0.9, 0.9))
def test_a_p_value_grows_with_the_margin(values, margin):
    p, above = (float(bounded_mean_p(np.asarray(values), limit, -1.0)) for limit in (margin, margin + 0.05))
    assert 0.0 <= p <= above + 1e-3 <= 1.001


@pytest.mark.parametrize(("values", "expected"), [([-0.5, -0.2], 1.0), ([0.0, 0.0], 1.0)])
def test_values_below_the_margin_are_no_evidence(values, expected):
    assert float(bounded_mean_p(np.asarray(values), 0.1, -1.0)) == expected
