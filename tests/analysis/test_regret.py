from __future__ import annotations

import numpy as np
import pytest
from test_aggregate import make_scores

from xferbench.analysis import regret
from xferbench.analysis.scores import Scores

RUNS = 100


@pytest.fixture
def few_replicates(monkeypatch):
    """Reduce the number of bootstrap replicates for simulations."""
    monkeypatch.setattr("xferbench.analysis.aggregate.BOOTSTRAP_REPLICATES", 300)


def test_regret_is_the_best_mean_minus_the_mean_of_the_recipe():
    result = regret.regret_by_task(make_scores([[[0.9, 0.9, 0.9], [0.1, 0.1, 0.1]], [[0.5, 0.5, 0.5], [0.7, 0.7, 0.7]]]))
    assert result.plain == pytest.approx(np.array([[0.0, 0.6], [0.4, 0.0]]))
    assert result.value == pytest.approx(result.plain)
    assert regret.mean_regret(make_scores([[[0.9] * 3, [0.1] * 3], [[0.5] * 3, [0.7] * 3]])).value == pytest.approx([0.3, 0.2])
    assert regret.largest_regret(make_scores([[[0.9] * 3, [0.1] * 3], [[0.5] * 3, [0.7] * 3]])).value == pytest.approx(
        [0.6, 0.4]
    )


def test_the_best_recipe_is_chosen_and_scored_on_different_seeds():
    for S in (2, 3, 5, 8):
        parts = regret.seed_halvings(S)
        assert len(parts) == S
        assert all(sorted([*choosing, *scoring]) == list(range(S)) for choosing, scoring in parts)
        assert all(0 <= len(scoring) - len(choosing) <= 1 for choosing, scoring in parts)
    assert regret.seed_halvings(1) == []


def test_one_lucky_seed_gives_no_regret():
    scores = make_scores([[[0.5, 0.5, 0.5, 0.5, 0.5]], [[0.9, 0.5, 0.5, 0.5, 0.5]]])
    result = regret.regret_by_task(scores)[0, 0]
    assert result.plain == pytest.approx(0.08)
    assert result.value < 0.05
    assert result.low == 0


@pytest.mark.parametrize("S", [3, 5, 10])
def test_intervals_of_equal_recipes_cover_zero_regret(few_replicates, S):
    rng = np.random.default_rng(S)
    runs = [make_scores(rng.normal(size=(8, 6, S))) for _ in range(RUNS)]
    for statistic in (regret.regret_by_task, regret.mean_regret, regret.largest_regret):
        false_alarms = np.mean([statistic(scores).low > 0 for scores in runs])
        assert false_alarms <= 0.025, statistic
    assert np.mean([~regret.tied_with_best(scores) for scores in runs]) <= 0.025
    plain = np.mean([regret.regret_by_task(scores).plain for scores in runs])
    assert (
        np.mean([regret.regret_by_task(scores).value for scores in runs]) < plain / 2
    )  # the correction removes the share of luck


def test_intervals_cover_the_true_regret(few_replicates):
    rng, level = np.random.default_rng(0), np.linspace(0, 2, 5)[:, None, None]
    truth = 2 - level[:, 0, 0]
    runs = [make_scores(level + rng.normal(size=(5, 4, 5))) for _ in range(RUNS)]
    by_task = [regret.regret_by_task(result) for result in runs]
    coverage = np.mean([(result.low <= truth[:, None]) & (truth[:, None] <= result.high) for result in by_task])
    assert coverage >= 0.95
    for statistic in (regret.mean_regret, regret.largest_regret):
        results = [statistic(result) for result in runs]
        assert np.mean([(result.low <= truth) & (truth <= result.high) for result in results]) >= 0.95


def test_a_clearly_worse_recipe_is_distinguished_with_five_seeds():
    noise = 0.01 * np.random.default_rng(0).normal(size=(3, 2, 5))
    level = np.array([[0.9, 0.8], [0.9, 0.7], [0.8, 0.8]])[..., None]
    assert regret.tied_with_best(make_scores(level + noise)).tolist() == [[True, True], [True, False], [False, True]]
    assert (regret.mean_regret(make_scores(level + noise)).low > 0).tolist() == [False, True, True]


def test_two_seeds_distinguish_no_recipe():
    for S in (1, 2):
        assert regret.tied_with_best(make_scores(np.arange(4.0 * S).reshape(4, 1, S))).all()


def make_cell(values, recipes, left_out=()):
    scores = make_scores(values)
    return Scores(table=scores.table, recipes=recipes, tasks=scores.tasks, seeds=scores.seeds, left_out=dict(left_out))


def test_a_grid_has_the_best_and_tied_recipes_and_the_regret_of_advice():
    noise = np.array([-0.01, 0.0, 0.01, 0.005, -0.005])
    level = np.array([0.9, 0.9, 0.5])[:, None, None]
    scores = make_cell(np.repeat(level + noise, 2, axis=1), ("full", "partial", "linear-probe"))
    result = regret.regret_grid({("small", "similar"): scores}, {("small", "similar"): "linear-probe"})[("small", "similar")]
    assert (result.best, result.tied, result.tasks, result.seeds) == ("full", ("full", "partial"), 2, 5)
    assert result.regret.value == pytest.approx(0.4)
    assert result.regret.low > 0.39
    assert result.regret.high >= result.regret.plain == pytest.approx(0.4)


def test_advice_without_a_score_has_no_regret_and_a_reason():
    scores = make_cell([[[0.5, 0.6, 0.7]]], ("full",), {"partial": "x: it crashed"})
    result = regret.regret_grid({("a",): scores, ("b",): scores, ("c",): scores}, {("a",): "partial", ("b",): "lora"})
    assert [result[cell].regret for cell in result] == [None] * 3
    assert [result[cell].why for cell in result] == [
        "x: it crashed",
        "not among the recipes",
        "the rule says nothing here",
    ]
    assert result["a",].left_out == {"partial": "x: it crashed"}


def test_a_cell_without_scores_has_a_reason():
    empty = Scores(table=np.empty((0, 1, 5)), recipes=(), tasks=("x",), seeds=tuple(range(5)), left_out={"full": "x: no room"})
    result = regret.regret_grid({("a",): empty}, {("a",): "full"})["a",]
    assert (result.best, result.tied, result.regret, result.why) == ("", (), None, regret.NO_COMMON_RECIPE)
