from __future__ import annotations

from itertools import pairwise
from math import nan, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ndtr

from xferbench.analysis import multiplicity
from xferbench.core.errors import UserError


def test_looks_share_alpha_by_the_squared_share_of_their_seeds():
    assert multiplicity.alpha_spending((5, 10, 20), 0.05) == pytest.approx((0.003125, 0.009375, 0.0375))
    assert multiplicity.alpha_spending((7,), 0.05) == (0.05,)


@pytest.mark.parametrize("looks", [(5, 10), (5, 10, 20), (3, 6, 9, 30)])
@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_the_levels_of_the_looks_have_the_error_alpha_if_the_looks_share_only_seeds(looks, alpha):
    generator = np.random.default_rng(0)
    sums = np.cumsum([generator.normal(size=200_000) * sqrt(new) for new in np.diff((0, *looks))], axis=0)
    levels = multiplicity.look_levels(looks, alpha)
    rejected = np.any([ndtr(-total / sqrt(S)) < level for total, S, level in zip(sums, looks, levels, strict=True)], axis=0)
    assert rejected.mean() == pytest.approx(alpha, abs=4 * sqrt(alpha / 200_000))
    assert sum(levels) > alpha, "the levels are higher than without the joint distribution"


def test_the_level_of_a_single_look_is_alpha():
    assert multiplicity.look_levels((7,), 0.05) == pytest.approx((0.05,))


@pytest.mark.parametrize("looks", [(), (0, 5), (5, 5), (10, 5)])
def test_looks_that_do_not_grow_are_an_error(looks):
    with pytest.raises(UserError, match="looks"):
        multiplicity.alpha_spending(looks, 0.05)


def test_a_sequential_p_value_is_the_smallest_over_all_looks():
    assert multiplicity.sequential_p([0.01], (5, 10)) == pytest.approx(0.04)
    assert multiplicity.sequential_p([0.01, 1.0], (5, 10)) == pytest.approx(0.04)
    assert multiplicity.sequential_p([0.01, 0.001], (5, 10)) < 0.0015
    assert multiplicity.sequential_p([0.9, nan], (5, 10, 20)) == 1.0
    assert multiplicity.sequential_p([], (5, 10, 20)) == 1.0
    assert multiplicity.sequential_p([0.3], (5,)) == 0.3


@given(st.lists(st.floats(0, 1), min_size=3, max_size=3))
def test_a_sequential_p_value_is_below_alpha_exactly_if_a_look_is_below_its_level(p):
    levels = multiplicity.look_levels((5, 10, 20), 0.05)
    near = any(abs(value - level) < 1e-6 for value, level in zip(p, levels, strict=True))
    assert near or (multiplicity.sequential_p(p, (5, 10, 20)) < 0.05) == any(np.less(p, levels))


def test_holm_adjusts_in_the_order_of_its_input():
    assert multiplicity.holm_adjusted([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert multiplicity.holm_adjusted([nan, 0.02]) == pytest.approx([1.0, 0.04])
    assert len(multiplicity.holm_adjusted([])) == 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_the_plain_and_the_bonferroni_p_value(p):
    adjusted = multiplicity.holm_adjusted(p)
    assert (adjusted >= np.array(p)).all()
    assert (adjusted <= np.minimum(np.array(p) * len(p), 1)).all()


@pytest.mark.parametrize(
    ("p_fail", "p_pass", "verdict"),
    [
        (0.01, 0.99, "FAIL"),
        (0.99, 0.01, "PASS"),
        (0.3, 0.7, "INCONCLUSIVE"),
        (0.05, 0.99, "INCONCLUSIVE"),
        (0.01, 0.01, "INCONCLUSIVE"),
        (nan, nan, "INCONCLUSIVE"),
    ],
)
def test_a_verdict_needs_exactly_one_p_value_below_alpha(p_fail, p_pass, verdict):
    assert multiplicity.decide(p_fail, p_pass, 0.05) == verdict


def test_two_dependent_contrasts_reach_the_bound_on_false_alarms():
    alpha, u = 0.05, (np.arange(2000) + 0.5) / 2000
    falls = u < alpha  # if both fall, one is uniform below α/2 and the other above it, alternately; otherwise both are above α
    low = np.where(falls, u / 2, u)
    high = np.where(falls, alpha / 2 + u / 2, u)
    turn = np.arange(2000) % 2 == 0
    pairs = np.stack([np.where(turn, low, high), np.where(turn, high, low)])
    assert all((value <= x).mean() == pytest.approx(x, abs=2e-3) for value in pairs for x in (0.01, 0.02, 0.04, 0.5))
    false_alarms = np.mean([(multiplicity.holm_adjusted(pair) < alpha).sum() for pair in pairs.T])
    assert multiplicity.expected_false_alarms(2, alpha) == pytest.approx(0.1)
    assert false_alarms == pytest.approx(0.1, abs=2e-3)


def test_the_bound_on_false_alarms_grows_from_alpha_to_less_than_four_alpha():
    bound = [multiplicity.expected_false_alarms(n, 0.05) for n in range(60)]
    assert bound[:2] == [0.0, 0.05]
    assert all(value <= next_value < 0.2 for value, next_value in pairwise(bound))
