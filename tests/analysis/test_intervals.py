from __future__ import annotations

from itertools import pairwise
from math import inf, isnan, nan, sqrt

import numpy as np
import pytest
from benchmarks.worlds import ALPHA, ORDINARY, batches, probit
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from xferbench.analysis import intervals
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


def test_one_seed_is_a_t_interval_over_the_examples_and_the_pseudo_example():
    estimate = crossed([[0, 0, 1]])
    assert estimate.harm == pytest.approx(1 / 3)
    assert estimate.high == pytest.approx(1 / 2 + 2.3533634 * sqrt(1 / 12))  # 0 0 1 and +1: mean 1/2, variance 1/3; t(.95, 3)
    assert estimate.low == pytest.approx(-2.3533634 * sqrt(1 / 6))  # 0 0 1 and −1: mean 0, variance 2/3
    assert (estimate.se, estimate.df) == pytest.approx((sqrt(1 / 6), 3))
    assert (estimate.seeds, estimate.examples) == (1, 3)


def test_the_upper_bound_equals_an_analysis_of_variance_with_a_column_of_ones():
    from scipy.stats import t

    D = np.random.default_rng(0).integers(-1, 2, size=(4, 30)).astype(float)
    table = np.hstack([D, np.ones((4, 1))])
    (S, N), grand = table.shape, table.mean()
    rows, columns = table.mean(axis=1), table.mean(axis=0)
    ms_s = N * sum((row - grand) ** 2 for row in rows) / (S - 1)
    ms_i = S * sum((column - grand) ** 2 for column in columns) / (N - 1)
    ms_e = sum((table[s, i] - rows[s] - columns[i] + grand) ** 2 for s in range(S) for i in range(N)) / ((S - 1) * (N - 1))
    df = (ms_s + ms_i - ms_e) ** 2 / (ms_s**2 / (S - 1) + ms_i**2 / (N - 1) + ms_e**2 / ((S - 1) * (N - 1)))
    se = sqrt((ms_s + ms_i - ms_e) / (S * N))
    assert crossed(D).high == pytest.approx(grand + t.ppf(0.95, df) * se)
    assert crossed(D, margin=0.4).p_pass == pytest.approx(t.cdf((grand - 0.4) / se, df))


def test_the_variance_of_the_interaction_replaces_a_negative_variance():
    interaction = np.array([[1.0, -1.0, 1.0, -1.0], [-1.0, 1.0, -1.0, 1.0]])  # every seed's and every example's mean is 0
    _, *squares = intervals.mean_squares(interaction)
    assert [float(value) for value in squares] == [0, 0, 8 / 3]
    assert [float(value) for value in intervals.standard_error_and_df(squares, 2, 4)] == pytest.approx([sqrt(1 / 3), 1])


def test_a_rare_harm_is_bounded_by_a_score_interval_with_continuity_correction():
    difference = np.repeat([1.0, 0.0], [5, 495])[None]
    share, z = 5.5 / 500, 1.6448536
    wilson = (share + z**2 / 1000 + z * sqrt(share * (1 - share) / 500 + z**2 / 1000**2)) / (1 + z**2 / 500)
    assert crossed(difference).high == pytest.approx(wilson) == pytest.approx(0.0217, abs=1e-4)
    assert crossed(-difference, margin=-0.02).low == pytest.approx(-wilson)
    assert crossed(difference).p_pass == pytest.approx(0.0753, abs=1e-4)  # the normal tail of (5.5 − 10) / √9.8
    assert crossed(difference, margin=-0.5).p_pass == pytest.approx(1.0)  # at another margin, rare examples do not matter


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
    assert intervals.decide(*bounds(crossed(np.zeros((5, 50))))[2:], 0.05) == "INCONCLUSIVE"
    assert intervals.decide(*bounds(crossed(np.zeros((5, 500))))[2:], 0.05) == "PASS"


def test_an_effect_on_every_example_of_every_seed_fails():
    assert intervals.decide(*bounds(crossed(np.ones((3, 50))))[2:], 0.05) == "FAIL"


def test_a_larger_span_widens_the_interval():
    D = np.random.default_rng(2).normal(0.1, 1, size=(4, 100))
    near, far = crossed(D, span=1.0), crossed(D, span=16.0)
    assert far.low < near.low < near.high < far.high


@property_settings
@given(HARMS, MARGINS, st.sampled_from([0.125, 2.0, 16.0]))
def test_the_unit_of_the_metric_does_not_matter(D, margin, unit):
    low, high, p_fail, p_pass = bounds(crossed(D, margin))
    scaled = bounds(crossed(unit * D, unit * margin, span=unit))
    assert scaled == pytest.approx((unit * low, unit * high, p_fail, p_pass), abs=1e-9)


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


def test_groups_are_averaged_and_replace_the_examples():
    D = np.array([[1, 1, 0, 0, -1], [0, 1, 1, 0, 0]])
    means = [[2 / 3, -1 / 2], [2 / 3, 0]]
    assert bounds(crossed(D, groups=np.array([7, 7, 7, 3, 3]))) == pytest.approx(bounds(crossed(np.array(means))))
    assert crossed(D, groups=np.array([7, 7, 7, 3, 3])).examples == 2
    assert crossed(D, groups=np.empty(0)) == crossed(D)


def test_one_group_stays_undecided():
    assert crossed(np.ones((5, 500)), groups=np.zeros(500)).p_fail == 1.0


def test_groups_of_another_length_are_an_error():
    with pytest.raises(UserError, match="groups do not match"):
        crossed(np.ones((2, 5)), groups=np.zeros(4))


# looks, several contrasts, decisions


def test_looks_share_alpha_by_their_new_seeds():
    assert intervals.alpha_spending((5, 10, 20), 0.05) == pytest.approx((0.0125, 0.0125, 0.025))
    assert intervals.alpha_spending((7,), 0.05) == (0.05,)


@pytest.mark.parametrize("looks", [(), (0, 5), (5, 5), (10, 5)])
def test_looks_that_do_not_grow_are_an_error(looks):
    with pytest.raises(UserError, match="looks"):
        intervals.alpha_spending(looks, 0.05)


def test_a_sequential_p_value_is_the_smallest_over_all_looks():
    assert intervals.sequential_p([0.01], (5, 10, 20), 0.05) == pytest.approx(0.04)
    assert intervals.sequential_p([0.01, 0.5, 0.001], (5, 10, 20), 0.05) == pytest.approx(0.002)
    assert intervals.sequential_p([0.9, nan], (5, 10, 20), 0.05) == 1.0
    assert intervals.sequential_p([], (5, 10, 20), 0.05) == 1.0


@given(st.lists(st.floats(0, 1), min_size=3, max_size=3))
def test_a_sequential_p_value_is_below_alpha_exactly_if_a_look_is_below_its_level(p):
    levels = intervals.alpha_spending((5, 10, 20), 0.05)
    near = any(abs(value - level) < 1e-9 for value, level in zip(p, levels, strict=True))
    assert near or (intervals.sequential_p(p, (5, 10, 20), 0.05) < 0.05) == any(np.less(p, levels))


def test_holm_adjusts_in_the_order_of_its_input():
    assert intervals.holm_adjusted([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert intervals.holm_adjusted([nan, 0.02]) == pytest.approx([1.0, 0.04])
    assert len(intervals.holm_adjusted([])) == 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_the_plain_and_the_bonferroni_p_value(p):
    adjusted = intervals.holm_adjusted(p)
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
    assert intervals.decide(p_fail, p_pass, 0.05) == verdict


def test_two_dependent_contrasts_reach_the_bound_on_false_alarms():
    alpha, u = 0.05, (np.arange(2000) + 0.5) / 2000
    falls = u < alpha  # if both fall, one is uniform below α/2 and the other above it, alternately; otherwise both are above α
    low = np.where(falls, u / 2, u)
    high = np.where(falls, alpha / 2 + u / 2, u)
    turn = np.arange(2000) % 2 == 0
    pairs = np.stack([np.where(turn, low, high), np.where(turn, high, low)])
    assert all((value <= x).mean() == pytest.approx(x, abs=2e-3) for value in pairs for x in (0.01, 0.02, 0.04, 0.5))
    false_alarms = np.mean([(intervals.holm_adjusted(pair) < alpha).sum() for pair in pairs.T])
    assert intervals.expected_false_alarms(2, alpha) == pytest.approx(0.1)
    assert false_alarms == pytest.approx(0.1, abs=2e-3)


def test_the_bound_on_false_alarms_grows_from_alpha_to_less_than_four_alpha():
    bound = [intervals.expected_false_alarms(n, 0.05) for n in range(60)]
    assert bound[:2] == [0.0, 0.05]
    assert all(value <= next_value < 0.2 for value, next_value in pairwise(bound))


# planning


def test_the_smallest_margin_has_the_power_that_it_promises():
    generator = np.random.default_rng(3)
    _, seeds, examples, rest = (
        part.mean() for part in intervals.mean_squares(probit(generator, (50, 20, 500), [0.0], **ORDINARY)[0])
    )
    persistent = (examples - rest) / 20
    for S, N in ((1, 153), (3, 153), (10, 50)):
        variances = {
            "disagree": persistent + rest,
            "persistent": persistent / (persistent + rest),
            "seed_sd": sqrt((seeds - rest) / 500),
        }
        margin = intervals.smallest_margin(N, S, **variances)
        p_pass = [
            intervals.p_values(probit(generator, (R, S, N), [0.0], **ORDINARY)[0], margin)[1] for R in batches(1000, S * N)
        ]
        assert 0.74 < (np.concatenate(p_pass) < ALPHA).mean() < 0.86


def test_more_examples_or_seeds_reduce_the_smallest_margin():
    by_examples = [intervals.smallest_margin(N, 10) for N in (10, 50, 200, 1000, 5000)]
    by_seeds = [intervals.smallest_margin(1000, S) for S in (2, 3, 5, 10, 20, 100)]
    assert by_examples == sorted(by_examples, reverse=True)
    assert by_seeds == sorted(by_seeds, reverse=True)


def test_five_hundred_examples_and_twenty_seeds_cannot_decide_two_points():
    assert intervals.smallest_margin(500, 20) > 0.02
    assert intervals.smallest_margin(4000, 20) < 0.02


def test_a_pass_needs_six_times_the_disagreement_over_the_squared_margin():
    margin = intervals.smallest_margin(100_000, 20, disagree=0.15, persistent=1.0, seed_sd=0.0)
    assert 6.2 * 0.15 / margin**2 == pytest.approx(100_000, rel=0.03)


def test_without_disagreement_zero_difference_decides_the_smallest_margin():
    margin = intervals.smallest_margin(300, 5, disagree=0.0, seed_sd=0.0)
    nothing = np.zeros((5, 300))
    assert crossed(nothing, 1.001 * margin).p_pass < 0.05
    assert crossed(nothing, 0.999 * margin).p_pass >= 0.05


@pytest.mark.parametrize(("examples", "seeds"), [(1, 5), (0, 5), (500, 0)])
def test_too_few_values_have_no_smallest_margin(examples, seeds):
    assert intervals.smallest_margin(examples, seeds) == inf


def test_only_examples_help_if_all_seeds_agree():
    row = np.repeat([1.0, -1.0, 0.0], [38, 38, 424])
    seeds, examples = intervals.required_sizes(np.tile(row, (5, 1)), margin=0.02, alpha=0.05)
    assert seeds is None
    assert examples == pytest.approx(6.2 * 0.152 / 0.02**2, rel=0.1)


def test_only_seeds_help_if_seeds_differ_as_a_whole():
    difference = np.array([0.3, -0.3, 0.2, -0.2, 0.0])[:, None] + np.zeros((5, 200))
    difference[:, ::2] += 0.01
    seeds, examples = intervals.required_sizes(difference, margin=0.05, alpha=0.05)
    assert seeds is not None
    assert 100 < seeds < 300
    assert examples is None


def test_required_sizes_agree_with_the_smallest_margin():
    generator = np.random.default_rng(4)
    D = probit(generator, (1, 5, 300), [0.0], **ORDINARY)[0][0]
    D -= D.mean()  # an observed harm of exactly 0
    _, examples = intervals.required_sizes(D, margin=0.05, alpha=0.05)
    variances = {"disagree": 0.155, "persistent": 0.2, "seed_sd": 0.017}
    assert intervals.smallest_margin(examples, 5, **variances) == pytest.approx(0.05, rel=0.3)


def test_a_fail_requires_the_sizes_of_its_mirrored_pass():
    D = np.tile(np.repeat([1.0, -1.0, 0.0], [28, 20, 152]), (5, 1))  # harm .04
    seeds, examples = intervals.required_sizes(D, margin=0.02, alpha=0.05)
    assert (seeds, examples) == intervals.required_sizes(-D, margin=-0.02, alpha=0.05)
    assert seeds is None
    assert examples == pytest.approx(6.2 * 0.24 / 0.02**2, rel=0.1)
    small = np.tile(np.repeat([1.0, 0.0], [10, 10]), (5, 1))  # harm .5: the pseudo-example lies 1.5 away, not .5
    assert intervals.required_sizes(small, margin=0.2, alpha=0.05) == intervals.required_sizes(-small, margin=-0.2, alpha=0.05)


def test_one_seed_cannot_tell_the_required_number_of_seeds():
    row = np.repeat([1.0, -1.0, 0.0], [10, 10, 180])
    seeds, examples = intervals.required_sizes(row[None], margin=0.02, alpha=0.05)
    assert seeds is None
    assert examples > 200
    assert intervals.required_sizes(row[None], margin=0.5, alpha=0.05) == (None, 200)


@pytest.mark.parametrize("D", [np.zeros((0, 10)), np.zeros((3, 1)), np.full((3, 10), nan), np.full((3, 10), 0.02)])
def test_no_size_suffices_without_data_or_at_the_margin(D):
    assert intervals.required_sizes(D, margin=0.02, alpha=0.05) == (None, None)


# beside the verdict


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
