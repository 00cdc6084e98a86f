from __future__ import annotations

import time

import numpy as np
import pytest
from scipy import stats

from xferbench.analysis import aggregate, regret
from xferbench.analysis.scores import Scores


def make_scores(values):
    """Return scores of shape [recipes, tasks, seeds]."""
    R, T, S = np.shape(values)
    names = (tuple("abcdefghijklmnopqrstuvwxyz"[:R]), tuple(f"task-{task}" for task in range(T)), tuple(range(S)))
    return Scores(table=np.asarray(values, float), recipes=names[0], tasks=names[1], seeds=names[2])


@pytest.fixture
def scores():
    return make_scores(np.random.default_rng(0).normal(size=(4, 3, 5)))


# Values


def test_the_iqm_is_the_mean_trimmed_by_a_quarter(scores):
    expected = stats.trim_mean(scores.table.reshape(4, -1), 0.25, axis=-1)
    assert aggregate.iqm(scores).value == pytest.approx(expected)


def test_the_iqm_ignores_outliers():
    assert aggregate.iqm(make_scores([[[0.0, 0.5, 0.5, 1e9]]])).value.tolist() == [0.5]


def test_ranks_order_means_and_ties_share_their_rank():
    two = make_scores([[[3, 3], [1, 1]], [[2, 2], [1, 1]], [[1, 1], [0, 0]]])
    assert aggregate.mean_rank(two).value.tolist() == [(1 + 1.5) / 2, (2 + 1.5) / 2, 3.0]
    assert aggregate.ranks(np.array([[3.0], [1.0], [1.0]])).ravel().tolist() == stats.rankdata([-3, -1, -1]).tolist()


def test_a_profile_is_the_share_of_runs_above():
    interval = aggregate.performance_profiles(make_scores([[[0.1, 0.5], [0.6, 0.9]]]), [0.0, 0.5, 0.55, 0.9])
    assert interval.value.tolist() == [[1.0, 0.5, 0.5, 0.0]]


def test_improvement_is_the_mann_whitney_statistic_averaged_over_tasks():
    tied_scores = make_scores(np.random.default_rng(1).integers(4, size=(3, 2, 5)))  # with ties
    u = [
        [[stats.mannwhitneyu(x, y).statistic / 25 for x, y in zip(a, b, strict=True)] for b in tied_scores.table]
        for a in tied_scores.table
    ]
    interval = aggregate.probability_of_improvement(tied_scores).value
    assert interval == pytest.approx(np.mean(u, axis=-1))
    assert np.diag(interval).tolist() == [0.5] * 3
    assert interval + interval.T == pytest.approx(1.0)


# Intervals


@pytest.mark.parametrize(
    "statistic",
    [
        aggregate.iqm,
        aggregate.mean_rank,
        aggregate.probability_of_improvement,
        lambda scores: aggregate.performance_profiles(scores, [-1, 0, 1]),
        regret.regret_by_task,
        regret.mean_regret,
        regret.largest_regret,
    ],
)
def test_intervals_contain_their_value_are_reproducible_and_need_two_seeds(scores, statistic):
    interval, repeated = statistic(scores), statistic(scores)
    assert (interval.low <= interval.value).all()
    assert (interval.value <= interval.high).all()
    assert interval.low.tolist() == repeated.low.tolist()
    single = statistic(make_scores(scores.table[..., :1]))
    assert np.isnan(single.low).all()
    assert np.isnan(single.high).all()


def test_five_wins_of_five_are_not_certain():
    interval = aggregate.probability_of_improvement(make_scores([[[2, 3, 4, 5, 6]], [[0, 0, 0, 0, 1]]]))
    assert (interval.value[0, 1], interval.high[0, 1]) == (1.0, 1.0)
    assert interval.low[0, 1] == pytest.approx(stats.binomtest(5, 5).proportion_ci(method="wilson").low)


def test_the_interval_of_a_mean_of_five_seeds_has_the_coverage_of_students_t():
    rng, covered = np.random.default_rng(0), []
    for _ in range(200):
        mean = np.sort(rng.normal(size=(1, 1, 5)))
        interval = aggregate.bootstrap_interval(
            mean.mean(-1), aggregate.resampled_means(make_scores(mean)), np.array(4.0), make_scores(mean)
        )
        covered.append(interval.low[0, 0] <= 0 <= interval.high[0, 0])
    assert 0.9 < np.mean(covered) <= 0.99


def test_intervals_of_iqms_of_twelve_tasks_cover_and_are_narrow():
    rng, level = np.random.default_rng(0), np.linspace(0, 1, 12)[:, None]
    truth = aggregate.trimmed_mean((level + 0.02 * rng.normal(size=(12, 20_000))).ravel())
    results = [aggregate.iqm(make_scores(level + 0.02 * rng.normal(size=(4, 12, 5)))) for _ in range(40)]
    covered = np.mean([(result.low <= truth) & (truth <= result.high) for result in results])
    assert 0.9 < covered <= 1.0
    assert max((result.high - result.low).max() for result in results) < 0.04


def test_degrees_of_freedom_lie_between_those_of_one_task_and_of_all():
    even, uneven = np.tile([[0.0, 1.0, 2.0]], (4, 1)), np.array([[0.0, 1.0, 2.0], *[[0.0, 0.0, 0.0]] * 3])
    assert aggregate.satterthwaite_df(even) == 8
    assert aggregate.satterthwaite_df(uneven) == 2
    assert aggregate.satterthwaite_df(np.zeros((4, 3))) == 2


def test_twenty_recipes_on_twelve_tasks_take_seconds():
    many_scores, start = make_scores(np.random.default_rng(0).random((20, 12, 5))), time.monotonic()
    (
        aggregate.iqm(many_scores),
        aggregate.mean_rank(many_scores),
        aggregate.probability_of_improvement(many_scores),
        regret.mean_regret(many_scores),
        regret.largest_regret(many_scores),
    )
    (
        aggregate.performance_profiles(many_scores, np.linspace(0, 1, 101)),
        regret.regret_by_task(many_scores),
        regret.tied_with_best(many_scores),
    )
    assert time.monotonic() - start < 15  # about one and a half
