"""Power laws and data multipliers, which are exact on curves that follow a power law."""

from __future__ import annotations

import numpy as np
import pytest

from xferbench.analysis import scaling_law

N = np.array([25, 50, 100, 200, 400, 800])


def power_law(n, a=0.2, b=0.5, c=0.1):
    return a * (n / N[-1]) ** -b + c


def test_a_power_law_is_recovered():
    assert scaling_law.fit_power_law(N / N[-1], power_law(N)) == pytest.approx((0.2, 0.5, 0.1), rel=1e-3)


def test_a_learner_that_needs_a_quarter_of_the_images_has_a_multiplier_of_four():
    result = scaling_law.data_multipliers(N, power_law(4 * N), power_law(N))
    assert result[:4] == pytest.approx([4.0] * 4, rel=1e-2)
    assert np.isinf(result[4:]).all(), "scratch would need more than twice the largest size"
    assert scaling_law.format_multipliers(N, result) == ["4", "4", "4", "4", "more than 4", "more than 2"]


def test_multipliers_are_not_extrapolated_below_the_smallest_size():
    result = scaling_law.data_multipliers(N, power_law(N / 4), power_law(N))
    assert result == pytest.approx([1, 0.5, 0.25, 0.25, 0.25, 0.25], rel=1e-2)
    assert scaling_law.format_multipliers(N, result)[:2] == ["at most 1", "at most 0.5"]


def test_an_error_below_the_limit_of_the_baseline_is_never_reached():
    assert np.isinf(scaling_law.data_multipliers(N, np.full(6, 0.05), power_law(N))).all()


@pytest.mark.parametrize("flat", [0.0, 0.3, 1.0])
def test_a_flat_curve_has_multipliers(flat):
    result = scaling_law.data_multipliers(N, np.linspace(0.9, 0.1, 6), np.full(6, flat))
    assert not np.isnan(result).any()


def test_bounds_contain_the_estimate_and_widen_with_the_spread_of_seeds():
    rng = np.random.default_rng(0)
    narrow, wide = (
        scaling_law.estimate_multipliers(
            N, power_law(3 * N) + rng.normal(0, sd, (5, 6)), power_law(N) + rng.normal(0, sd, (5, 6))
        )
        for sd in (1e-3, 2e-2)
    )
    assert (narrow[1] <= narrow[0]).all() and (narrow[0] <= narrow[2]).all()
    assert wide[2, 0] - wide[1, 0] > narrow[2, 0] - narrow[1, 0]
    single = scaling_law.estimate_multipliers(N, power_law(3 * N)[None], power_law(N)[None])
    assert np.isnan(single[1:]).all(), "one seed has no spread"


LATE = np.array([0.85, 0.83, 0.8, 0.7, 0.5, 0.2])  # near chance at first, then a steep fall


def test_a_curve_without_a_power_law_is_interpolated_but_not_extrapolated():
    assert scaling_law.extrapolation_limit(N, power_law(N)) == 2 and scaling_law.extrapolation_limit(N, LATE) == 1
    assert scaling_law.extrapolation_limit(N, np.full(6, 0.9)) == 1, "a curve that has not begun to fall may fall at any size"
    learner = np.array([0.7, 0.5, 0.35, 0.3, 0.2, 0.1])
    result = scaling_law.data_multipliers(N, learner, LATE, 1.0)
    assert result == pytest.approx([8, 8, 4 * 2**0.5, 4 / 2 ** (1 / 3), 2, np.inf])
    assert scaling_law.format_multipliers(N, result, 1.0)[-1] == "more than 1"
    assert scaling_law.data_multipliers(N, np.full(6, 0.9), LATE, 1.0) == pytest.approx(N[0] / N)
    assert np.isinf(scaling_law.estimate_multipliers(N, np.full((3, 6), 0.1), np.tile(LATE, (3, 1)))[0]).all()


def test_a_point_worse_than_the_previous_one_is_skipped():
    rising = np.array([0.8, 0.6, 0.7, 0.5, 0.4, 0.3])
    result = scaling_law.data_multipliers(N, np.full(6, 0.55), rising, 1.0)
    assert 100 < result[0] * N[0] < 200


TYPICAL_LEARNER = np.array([0.7, 0.5, 0.35, 0.3, 0.25, 0.22])
NOISE = {"normal": lambda rng, shape: rng.normal(size=shape), "skewed": lambda rng, shape: rng.exponential(size=shape) - 1}


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize(
    ("kind", "learner_spread"), [("normal", 0.014), ("skewed", 0.014), ("skewed", 0.0)], ids=["normal", "skewed", "one skewed"]
)
def test_bounds_contain_the_true_multiplier_in_at_least_88_of_100_experiments(seeds, kind, learner_spread):
    """Seeds differ by a common shift of the whole curve and by errors of each size; the true curve is interpolated."""
    rng, draw = np.random.default_rng(seeds), NOISE[kind]

    def draw_curves(truth, spread):
        noise = draw(rng, (seeds, 1)) + draw(rng, (seeds, len(N)))
        return np.clip(truth + spread * noise + 1e-4 * rng.normal(size=noise.shape), 0, 1)

    truth, covered = scaling_law.data_multipliers(N, TYPICAL_LEARNER, LATE, 1.0), []
    for _ in range(150):
        errors, baseline = draw_curves(TYPICAL_LEARNER, learner_spread), draw_curves(LATE, 0.014)
        _, low, high = scaling_law.estimate_multipliers(N, errors, baseline)
        covered.append((low <= truth) & (truth <= high))
    assert np.mean(covered) >= 0.88


def test_the_bounds_of_a_number_are_those_of_students_t():
    from scipy import stats

    values = np.array([[0.3], [0.32], [0.37], [0.33]])
    means = scaling_law._draw_means(values, scaling_law._student_weights(4))
    expected = stats.t.interval(0.95, 3, values.mean(), stats.sem(values[:, 0]))
    assert np.quantile(means, (0.025, 0.975)) == pytest.approx(expected, abs=0.02)
    assert means.mean() == pytest.approx(values.mean())
