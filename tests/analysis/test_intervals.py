from __future__ import annotations

from math import inf, isnan, nan, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from xferbench.analysis import intervals, multiplicity
from xferbench.core.errors import UserError

SHAPES = st.tuples(st.integers(1, 5), st.integers(2, 8))
HARMS = st.one_of(
    arrays(np.float64, SHAPES, elements=st.sampled_from([-1.0, 0.0, 1.0])),
    arrays(np.float64, SHAPES, elements=st.floats(-1, 1, width=16)),
)
BROKEN = st.sampled_from([1e80, 1e308, inf, -inf, nan])
MARGINS = st.floats(-1, 1, width=16)
property_settings = settings(deadline=None, max_examples=60)


def crossed(difference, margin=0.02, alpha=0.05, **options):
    return intervals.crossed_interval(np.asarray(difference, dtype=float), margin=margin, alpha=alpha, **options)


def bounds(estimate):
    return estimate.low, estimate.high, estimate.p_fail, estimate.p_pass


# the interval


def test_mean_squares_of_two_seeds_and_three_examples_match_a_calculation_by_hand():
    mean, *squares = intervals.mean_squares(np.array([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]))
    assert (float(mean), *map(float, squares)) == pytest.approx((1 / 3, 2 / 3, 1 / 6, 1 / 6))
    se, df = intervals.standard_error_and_df(squares, 2, 3)
    assert (float(se), float(df)) == pytest.approx((1 / 3, 1.0))  # Satterthwaite's 16/17 is raised to 1


def test_one_seed_is_a_t_interval_over_the_examples():
    estimate = crossed([[0.4, 0.4, 0.6, 0.6]])
    assert estimate.harm == 0.5
    assert estimate.low == pytest.approx(0.5 - 2.3533634 * sqrt(0.01 / 3))  # variance .04 / 3; t(.95, 3)
    assert (estimate.se, estimate.df) == pytest.approx((sqrt(0.01 / 3), 3))
    assert (estimate.seeds, estimate.examples) == (1, 4)


def test_the_bounds_equal_an_analysis_of_variance():
    from scipy.stats import t

    half = np.random.default_rng(0).integers(-1, 2, size=(4, 15)).astype(float)
    D = np.hstack([half, -half]) + np.array([[0.2], [-0.2], [0.1], [-0.1]])  # examples have no skewness
    (S, N), grand = D.shape, D.mean()
    rows, columns = D.mean(axis=1), D.mean(axis=0)
    ms_s = N * sum((row - grand) ** 2 for row in rows) / (S - 1)
    ms_i = S * sum((column - grand) ** 2 for column in columns) / (N - 1)
    ms_e = sum((D[s, i] - rows[s] - columns[i] + grand) ** 2 for s in range(S) for i in range(N)) / ((S - 1) * (N - 1))
    df = (ms_s + ms_i - ms_e) ** 2 / (ms_s**2 / (S - 1) + ms_i**2 / (N - 1) + ms_e**2 / ((S - 1) * (N - 1)))
    se = sqrt((ms_s + ms_i - ms_e) / (S * N))
    assert crossed(D, margin=0.4).p_fail == pytest.approx(t.cdf((0.4 - grand) / se, df))
    raised = D + 0.5  # both bounds are above 0
    assert crossed(raised, margin=0.2).low == pytest.approx(0.5 - t.ppf(0.95, df) * se)


def test_the_variance_of_the_interaction_replaces_a_negative_variance():
    interaction = np.array([[1.0, -1.0, 1.0, -1.0], [-1.0, 1.0, -1.0, 1.0]])  # every seed's and every example's mean is 0
    _, *squares = intervals.mean_squares(interaction)
    assert [float(value) for value in squares] == [0, 0, 8 / 3]
    assert [float(value) for value in intervals.standard_error_and_df(squares, 2, 4)] == pytest.approx([sqrt(1 / 3), 1])


def test_a_rare_harm_has_the_bound_of_the_binomial_distribution():
    from scipy.stats import beta

    difference = np.repeat([1.0, 0.0], [5, 495])[None]
    clopper_pearson = beta.ppf(0.95, 6, 495)
    assert clopper_pearson < crossed(difference).high < 1.03 * clopper_pearson, "the correction for skewness widens it"
    assert crossed(-difference, margin=-0.02).low == -crossed(difference).high
    nothing = crossed(np.zeros((5, 153)), margin=0.05)
    assert nothing.p_pass == pytest.approx(0.95**153, rel=0.05)
    assert (-nothing.low, nothing.high) == pytest.approx((1 - 0.05 ** (1 / 153),) * 2, rel=0.01)


def test_a_harm_needs_no_agreement_with_benefits_that_no_example_shows():
    difference = np.repeat([1.0, 0.0], [15, 135])[None]
    assert crossed(difference, margin=0.05).low == pytest.approx(0.1 - 1.6551 * sqrt(0.1 * 0.9 / 149), abs=1e-4)
    assert crossed(-difference, margin=-0.05).high == -crossed(difference, margin=0.05).low


def test_skewness_makes_a_decision_only_harder():
    harm = np.repeat([0.3, -3.0], [95, 5])[None]  # rare, large benefits
    mean, *squares = intervals.mean_squares(harm)
    se, df = intervals.standard_error_and_df(squares, 1, 100)
    skewness = intervals.mean_skewness(harm, se)
    plain = float(intervals.tail_p(mean, se, df, np.zeros_like(skewness), 0.0))
    assert skewness < 0 and float(intervals.tail_p(mean, se, df, skewness, 0.0)) > plain
    assert float(intervals.tail_p(mean, se, df, -skewness, 0.0)) == plain


def test_no_bound_exceeds_what_is_possible():
    noisy = np.array([[1.0, 1.0, -1.0], [-1.0, -1.0, -1.0]])
    assert (crossed(noisy).low, crossed(noisy).high) == (-1.0, 1.0)
    assert crossed(noisy, span=2.0, limit=0.5).high == 0.5


@pytest.mark.parametrize("alpha", [0.05, 0.0125, 0.0125 / 5, 0.0125 / 20])
@pytest.mark.parametrize("margin", [0.01, 0.02, 0.05, 0.1])
def test_a_rare_harm_at_the_margin_passes_at_most_with_probability_alpha(margin, alpha):
    from scipy.stats import binom

    for N in (50, 100, 153, 200, 250, 300, 500, 1000, 2000):
        flipped = np.arange(int(2 * N * margin) + 3)  # examples on which D is 1, at every seed
        D = np.broadcast_to((np.arange(N) < flipped[:, None]).astype(float)[:, None], (len(flipped), 2, N))
        passed = intervals.p_values(D, margin)[1] < alpha
        assert binom.pmf(flipped, N, margin)[passed].sum() <= alpha


def test_a_batch_of_tables_equals_the_single_tables():
    generator = np.random.default_rng(1)
    D = generator.integers(-1, 2, size=(6, 3, 200)) * (generator.random((6, 1, 200)) < 0.02).astype(float)
    for margin in (0.02, -0.02):
        together = np.array(intervals.p_values(D, margin)).T
        apart = [(estimate.p_fail, estimate.p_pass) for estimate in (crossed(table, margin) for table in D)]
        assert together == pytest.approx(np.array(apart))


def test_zero_difference_passes_only_with_many_examples():
    assert multiplicity.decide(*bounds(crossed(np.zeros((5, 50))))[2:], 0.05) == "INCONCLUSIVE"
    assert multiplicity.decide(*bounds(crossed(np.zeros((5, 500))))[2:], 0.05) == "PASS"


def test_an_effect_on_every_example_of_every_seed_fails():
    assert multiplicity.decide(*bounds(crossed(np.ones((3, 50))))[2:], 0.05) == "FAIL"


@pytest.mark.parametrize(("units", "verdict"), [(2, "INCONCLUSIVE"), (3, "INCONCLUSIVE"), (10, "FAIL")])
def test_a_few_units_that_are_all_harmed_alike_are_no_fail(units, verdict):
    for estimate in (
        crossed(np.ones((3, units)), margin=0.05),
        crossed(np.ones((3, 10 * units)), margin=0.05, groups=np.repeat(np.arange(units), 10)),
    ):
        assert estimate.low < 1.0 and multiplicity.decide(estimate.p_fail, estimate.p_pass, 0.05) == verdict


def test_a_larger_span_widens_the_interval():
    D = np.random.default_rng(2).normal(0.1, 1, size=(4, 100))
    near, far = crossed(D, span=1.0), crossed(D, span=16.0)
    assert far.low < near.low < near.high < far.high


@property_settings
@given(HARMS, MARGINS, st.sampled_from([0.125, 2.0, 16.0]))
def test_the_unit_of_the_metric_does_not_matter(D, margin, unit):
    low, high, p_fail, p_pass = bounds(crossed(D, margin))
    scaled = bounds(crossed(unit * D, unit * margin, span=unit))
    assert scaled == pytest.approx((unit * low, unit * high, p_fail, p_pass), abs=1e-6)


def test_a_lower_limit_of_the_standard_error_widens_one_side():
    D = np.random.default_rng(2).integers(-1, 2, size=(4, 100)).astype(float)
    plain, low, high = crossed(D), crossed(D, least_se=(1.0, 0.0)), crossed(D, least_se=(0.0, 1.0))
    assert low.low < plain.low
    assert low.high == plain.high
    assert high.high > plain.high
    assert high.low == plain.low


@property_settings
@given(HARMS, MARGINS, st.sampled_from([0.001, 0.0125, 0.05, 0.2]))
def test_a_bound_is_beyond_the_margin_exactly_if_its_p_value_is_below_alpha(D, margin, alpha):
    estimate = crossed(D, margin, alpha)
    for bound in (margin, estimate.low, estimate.high):  # at the bound itself only rounding decides
        result = crossed(D, bound, alpha)
        assert (result.low > bound) == (result.p_fail < alpha)
        assert (result.high < bound) == (result.p_pass < alpha)


@property_settings
@given(HARMS, MARGINS, st.randoms(use_true_random=False))
def test_the_order_of_seeds_and_of_examples_does_not_matter(D, margin, random):
    rows, columns = list(range(D.shape[0])), list(range(D.shape[1]))
    random.shuffle(rows)
    random.shuffle(columns)
    assert bounds(crossed(D[rows][:, columns], margin)) == pytest.approx(bounds(crossed(D, margin)), abs=1e-6)


@property_settings
@given(HARMS, MARGINS)
def test_the_opposite_sign_mirrors_the_interval(D, margin):
    result, mirrored = crossed(D, margin), crossed(-D, -margin)
    assert bounds(mirrored) == (-result.high, -result.low, result.p_pass, result.p_fail)


@property_settings
@given(HARMS, MARGINS)
def test_harm_lies_within_its_interval_and_never_both_verdicts_hold(D, margin):
    estimate = crossed(D, margin)
    assert estimate.low <= estimate.harm + 1e-12
    assert estimate.harm <= estimate.high + 1e-12
    assert max(estimate.p_fail, estimate.p_pass) >= 0.05


@property_settings
@given(HARMS, BROKEN, st.integers(0, 1000), MARGINS)
def test_non_finite_values_stay_undecided(D, value, index, margin):
    D.flat[index % D.size] = value
    estimate = crossed(D, margin)
    assert (estimate.p_fail, estimate.p_pass) == (1.0, 1.0)
    assert all(isnan(number) for number in (estimate.harm, estimate.low, estimate.high))


@pytest.mark.parametrize("shape", [(0, 10), (3, 0), (3, 1), (1, 1), (0, 0)])
def test_too_few_seeds_or_examples_stay_undecided(shape):
    estimate = crossed(np.ones(shape))
    assert (estimate.p_fail, estimate.p_pass) == (1.0, 1.0)
    assert isnan(estimate.low)
    assert isnan(estimate.high)


def test_a_margin_of_nan_stays_undecided():
    assert bounds(crossed(np.ones((5, 500)), nan))[2:] == (1.0, 1.0)


def test_groups_are_the_units_and_weigh_as_many_examples_as_they_have():
    D = np.array([[1, 1, 0, 0, -1], [0, 1, 1, 0, 0]])
    estimate = crossed(D, groups=np.array([7, 7, 7, 3, 3]))
    assert (estimate.harm, estimate.examples) == (pytest.approx(D.mean()), 2)
    assert crossed(D, groups=np.empty(0)) == crossed(D)


def test_equal_groups_are_estimated_like_examples_of_their_means():
    generator = np.random.default_rng(5)
    means = generator.normal(0.3, 0.1, size=(4, 30))
    D = np.repeat(means, 10, axis=1)
    grouped, plain = crossed(D, groups=np.repeat(np.arange(30), 10)), crossed(means)
    assert (grouped.low, grouped.p_fail) == pytest.approx((plain.low, plain.p_fail))
    assert crossed(D).high < grouped.high, "examples of a group are not independent"


def test_groups_of_unequal_sizes_have_fewer_degrees_of_freedom():
    generator = np.random.default_rng(6)
    D = generator.normal(0.3, 1.0, size=(1, 300))
    equal = crossed(D, groups=np.arange(300) // 30)
    unequal = crossed(D, groups=np.minimum(np.arange(300) // 5, 9))
    assert equal.df == pytest.approx(9)
    assert unequal.df < 2, "one group has most of the examples"


@pytest.mark.parametrize(("harmed", "share", "passes"), [(0, 0.0, True), (1, 0.3, True), (1, 1.0, False)])
def test_only_groups_that_are_harmed_as_a_whole_need_many_groups(harmed, share, passes):
    D = np.zeros((5, 20, 100))
    D[:, :harmed, : int(100 * share)] = 1.0
    estimate = crossed(D.reshape(5, -1), margin=0.15, groups=np.repeat(np.arange(20), 100))
    assert (estimate.p_pass < 0.05) == passes


def test_one_group_stays_undecided():
    assert crossed(np.ones((5, 500)), groups=np.zeros(500)).p_fail == 1.0


def test_groups_of_another_length_are_an_error():
    with pytest.raises(UserError, match="groups do not match"):
        crossed(np.ones((2, 5)), groups=np.zeros(4))


@pytest.mark.parametrize(("worse", "better"), [(0, 0), (5, 0), (3, 9), (12, 12), (40, 25)])
def test_mcnemar_is_the_binomial_test_of_the_discordant_examples(worse, better):
    from scipy.stats import binomtest

    row = np.repeat([1, -1, 0], [worse, better, 30])
    expected = binomtest(worse, worse + better).pvalue if worse + better else 1.0
    assert intervals.mcnemar_p(row) == pytest.approx(expected)


def test_mcnemar_of_a_missing_score_is_one():
    assert intervals.mcnemar_p(np.array([1.0, 1.0, nan])) == 1.0


def test_improvement_is_the_share_of_seeds_with_harm_and_ties_count_half():
    assert intervals.probability_of_improvement(np.array([[1, 0], [0, 0], [-1, 0], [1, 1]])) == pytest.approx(2.5 / 4)
    assert isnan(intervals.probability_of_improvement(np.array([[nan, 0.0]])))


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (0, 9), (20, 30), (30, 30)])
def test_the_bound_of_a_proportion_is_that_of_the_binomial_test(successes, trials):
    from scipy.stats import binomtest

    expected = binomtest(successes, trials, alternative="greater").proportion_ci(0.95).low if trials else 0.0
    assert intervals.proportion_lower_bound(successes, trials, 0.05) == pytest.approx(expected)


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (0, 5), (1, 5), (5, 5), (3, 40)])
def test_the_interval_of_a_proportion_is_that_of_the_binomial_test(successes, trials):
    from scipy.stats import binomtest

    expected = binomtest(successes, trials).proportion_ci(0.95) if trials else (0.0, 1.0)
    assert intervals.proportion_interval(successes, trials, 0.05) == pytest.approx(tuple(expected))
