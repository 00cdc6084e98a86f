"""A small simulation of the interval; tests/benchmarks/simulation.py computes the full table."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest
from benchmarks.worlds import ALPHA, WORLDS, cell

from xferbench.analysis import intervals

NUMBERS = {scenario.name: number for number, scenario in enumerate(WORLDS)}


@pytest.mark.parametrize(
    ("scenario", "S", "N"),
    [
        ("ordinary", 3, 153),
        ("ordinary", 10, 500),
        ("noisy seeds", 3, 500),
        ("fixed disagreement", 5, 153),
        ("nearly all zero, fixed", 5, 50),
        ("nearly all zero, fixed", 5, 153),
        ("nearly all zero, fixed", 5, 500),
        ("groups of ten", 5, 500),
        ("unequal groups", 5, 500),
        ("twenty groups", 5, 2000),
    ],
)
def test_at_most_one_verdict_in_twenty_is_wrong_at_the_margin(scenario, S, N):
    rates = cell(NUMBERS[scenario], S, N, 1000, seed=1)
    noise = 2 * sqrt(0.065 * 0.935 / 1000)
    assert rates["wrong_fail"] < 0.065 + noise
    assert rates["wrong_pass"] < 0.065 + noise


def test_three_looks_keep_the_error_rate():
    rates = cell(NUMBERS["noisy seeds"], 20, 153, 1000, seed=1)
    assert rates["sequential_wrong_fail"] < 0.08
    assert rates["sequential_wrong_pass"] < 0.08


def test_enough_seeds_and_examples_have_power_for_both_verdicts():
    rates = cell(NUMBERS["ordinary, margin .10"], 10, 500, 300, seed=1)
    assert rates["power_pass"] > 0.8
    assert rates["power_fail"] > 0.8


def test_nearly_all_zero_passes_wrongly_without_the_test_of_the_bounded_mean():
    (D,) = WORLDS[NUMBERS["nearly all zero, fixed"]].draw(np.random.default_rng(5), (1000, 5, 50), [0.02])
    mean, *squares = intervals.mean_squares(D)
    se, df = intervals.standard_error_and_df(squares, 5, 50)
    p_pass = intervals.tail_p(-mean, se, df, intervals.mean_skewness(-D, se), -0.02)
    zero_width = (D == 0).all((1, 2))  # without any width, every margin above 0 would pass
    assert ((p_pass < ALPHA) | zero_width).mean() > 0.3
    assert (intervals.p_values(D, 0.02)[1] < ALPHA).mean() == 0


def test_averaging_groups_prevents_wrong_verdicts():
    without_groups = cell(NUMBERS["groups of ten, ignored"], 5, 500, 500, seed=1)
    with_groups = cell(NUMBERS["groups of ten"], 5, 500, 500, seed=1)
    assert min(without_groups["wrong_fail"], without_groups["wrong_pass"]) > 0.1
    assert max(with_groups["wrong_fail"], with_groups["wrong_pass"]) < 0.08
