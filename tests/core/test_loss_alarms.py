"""The heuristics for loss jumps and head shock, with few false alarms."""

from __future__ import annotations

import math
import random

import pytest

from xferbench.core import loss_alarms


def test_a_jump_returns_the_medians_before_and_after():
    assert loss_alarms.detect_jump([1.0] * 20, [2.0] * 5) == (1.0, 2.0)
    assert loss_alarms.detect_jump([1.0] * 20, [1.0] * 8 + [2.0] * 3) is not None


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([1.0] * 19, [9.0] * 20),  # too few to estimate their spread
        ([1.0] * 20, [9.0] * 4),  # too few to distinguish a jump from a bad batch
        ([1.0] * 20, [1.0, 9.0, 1.0, 9.0, 1.0] * 4),  # two bad batches in five
        ([1.0] * 20, [1.15] * 20),  # a rise of less than a fifth
        ([1.0] * 20, [1.0] * 20 + [9.0] * 20),  # too late for the unfreezing to be the cause
        ([1.0] * 19 + [3.0], [2.5] * 20),  # as high as an earlier loss
        ([0.5, 1.5] * 10, [2.0] * 20),  # within six spreads
        ([math.nan] * 20, [9.0] * 20),
    ],
)
def test_other_losses_are_no_jump(before, after):
    assert loss_alarms.detect_jump(before, after) is None


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng, step: rng.gauss(1.0, 0.2),
        lambda rng, step: rng.lognormvariate(-1, 1),  # heavy tails
        lambda rng, step: rng.expovariate(1.0),
        lambda rng, step: math.exp(-step / 30) + rng.gauss(0, 0.02),  # falling
        lambda rng, step: abs(rng.gauss(0, 1)) ** 3,
    ],
)
def test_losses_of_one_distribution_rarely_count_as_a_jump(draw):
    rng = random.Random(0)
    runs = [[draw(rng, step) for step in range(60)] for _ in range(2000)]
    assert sum(loss_alarms.detect_jump(losses[:40], losses[40:]) is not None for losses in runs) <= 20


def test_a_rise_that_lasts_has_the_index_at_which_it_begins():
    falling = [math.exp(-index / 8) + 0.2 for index in range(30)]
    assert loss_alarms.find_lasting_rise([*falling, *[3.0] * 10]) == 30
    assert loss_alarms.find_lasting_rise([*falling, 3.0, 9.0, *[2.0, 2.5] * 5]) == 30


@pytest.mark.parametrize(
    "losses",
    [
        [],
        [1.0] * 7 + [9.0] * 8,  # too few before
        [1.0] * 8 + [9.0] * 7,  # too few after
        [1.0] * 20 + [9.0] * 20 + [1.1] * 8,  # it recovers
        [1.0] * 20 + [9.0, 1.0, 9.0, 1.0, 9.0, 1.0, 1.0, 9.0],
        [1.0] * 20 + [1.15] * 20,
        [0.5, 1.5] * 10 + [2.0] * 20,
        [3.0] * 20 + [1.0] * 20,
    ],
)
def test_other_series_have_no_lasting_rise(losses):
    assert loss_alarms.find_lasting_rise(losses) is None


def test_a_minimum_ratio_of_a_rise():
    losses = [1.0] * 20 + [5.0] * 10
    assert loss_alarms.find_lasting_rise(losses, min_ratio=4.0) == 20
    assert loss_alarms.find_lasting_rise(losses, min_ratio=6.0) is None


@pytest.mark.parametrize("count", [16, 60])
@pytest.mark.parametrize(
    "draw",
    [
        lambda rng, step: rng.gauss(1.0, 0.2),
        lambda rng, step: rng.lognormvariate(-1, 1),  # heavy tails
        lambda rng, step: rng.expovariate(1.0),
        lambda rng, step: math.exp(-step / 30) + rng.gauss(0, 0.02),  # falling
    ],
)
def test_losses_of_one_distribution_rarely_rise(draw, count):
    rng = random.Random(0)
    runs = [[draw(rng, step) for step in range(count)] for _ in range(1000)]
    assert sum(loss_alarms.find_lasting_rise(losses) is not None for losses in runs) <= 4


def test_the_history_tests_each_unfreezing_once():
    pytest.importorskip("torch")  # the package of the lab needs it
    from xferbench.lab.monitor.loss_history import LossHistory

    history = LossHistory(4)
    jumps = []
    for step in range(1, 101):
        if step in {30, 60}:
            history.record_unfreeze(step, (f"layer{step}",))
        jump = history.record_loss(step, 5.0 if 60 <= step < 80 else 1.0)
        jumps += [jump] if jump else []
    (jump,) = jumps
    assert (jump.unfrozen_at, jump.detected_at, jump.names, jump.loss_before, jump.loss_after) == (
        60,
        64,
        ("layer60",),
        1.0,
        5.0,
    )


GUESSING = [math.log(10)] * 3


@pytest.mark.parametrize(
    ("losses", "classes", "distance", "expected"),
    [
        (GUESSING, 10, 0.2, True),
        (GUESSING, 10, 0.05, False),
        (GUESSING, 10, math.nan, False),
        ([0.5] * 3, 10, 0.2, False),
        (GUESSING[:2], 10, 0.2, False),
        ([], 10, 0.2, False),
        (GUESSING, 1, 0.2, False),
        (GUESSING, 0, 0.2, False),
        ([math.nan] * 3, 10, 0.2, False),
    ],
)
def test_head_shock_requires_an_untrained_head_and_a_distant_backbone(losses, classes, distance, expected):
    assert loss_alarms.has_head_shock(losses, classes, distance) is expected
