"""The two guesses: when they sound, and that they are silent where nothing happened."""

from __future__ import annotations

import math
import random

import pytest

pytest.importorskip("torch")  # the package of the lab needs it
from xferbench.lab.monitor import loss_alarms
from xferbench.lab.monitor.loss_history import LossHistory


def test_a_jump_tells_the_medians_before_and_after():
    assert loss_alarms.detect_jump([1.0] * 20, [2.0] * 5) == (1.0, 2.0)
    assert loss_alarms.detect_jump([1.0] * 20, [1.0] * 8 + [2.0] * 3) is not None


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([1.0] * 19, [9.0] * 20),  # too few to know their spread
        ([1.0] * 20, [9.0] * 4),  # too few to tell a jump from a bad batch
        ([1.0] * 20, [1.0, 9.0, 1.0, 9.0, 1.0] * 4),  # two bad batches in five
        ([1.0] * 20, [1.15] * 20),  # a rise of less than a fifth
        ([1.0] * 20, [1.0] * 20 + [9.0] * 20),  # too late to be the unfreezing
        ([1.0] * 19 + [3.0], [2.5] * 20),  # seen before
        ([0.5, 1.5] * 10, [2.0] * 20),  # within six spreads
        ([math.nan] * 20, [9.0] * 20),
    ],
)
def test_what_is_no_jump(before, after):
    assert loss_alarms.detect_jump(before, after) is None


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng, at: rng.gauss(1.0, 0.2),
        lambda rng, at: rng.lognormvariate(-1, 1),  # heavy tails
        lambda rng, at: rng.expovariate(1.0),
        lambda rng, at: math.exp(-at / 30) + rng.gauss(0, 0.02),  # falling
        lambda rng, at: abs(rng.gauss(0, 1)) ** 3,
    ],
)
def test_losses_of_one_distribution_hardly_ever_seem_to_jump(draw):
    rng = random.Random(0)
    courses = [[draw(rng, at) for at in range(60)] for _ in range(2000)]
    assert sum(loss_alarms.detect_jump(losses[:40], losses[40:]) is not None for losses in courses) <= 20


def test_a_course_judges_each_unfreezing_by_itself_and_once():
    course = LossHistory(4)
    found = []
    for step in range(1, 101):
        if step in {30, 60}:
            course.record_unfreeze(step, (f"layer{step}",))
        jump = course.record_loss(step, 5.0 if 60 <= step < 80 else 1.0)
        found += [jump] if jump else []
    (jump,) = found
    assert (jump.unfrozen_at, jump.detected_at, jump.names, jump.loss_before, jump.loss_after) == (
        60,
        64,
        ("layer60",),
        1.0,
        5.0,
    )


GUESSING = [math.log(10)] * 3


@pytest.mark.parametrize(
    ("losses", "classes", "gone", "expected"),
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
def test_a_shock_takes_a_fresh_head_and_a_backbone_that_went_far(losses, classes, gone, expected):
    assert loss_alarms.has_head_shock(losses, classes, gone) is expected
