"""What each phase of a recipe may change."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")  # the package of the lab needs it

from xferbench.core.interventions import HEAD_ONLY, BatchNormMode, BatchNormTrainAbove, Trainable
from xferbench.core.pipeline import Phase
from xferbench.lab.training import expected_changes

NAMES = {
    "head": {"fc.weight", "fc.bias"},
    "top:1": {"fc.weight", "fc.bias", "upper.weight"},
    "all": {"fc.weight", "fc.bias", "upper.weight", "lower.weight"},
}
PARTS = [("fc",), ("lower",), ("upper", "pool")]


def changes(*phases, **options):
    return expected_changes.changes_by_phase(phases, lambda trainable: NAMES[str(trainable)], **options)


def test_phases_begin_after_the_steps_of_those_before():
    expected = changes(Phase(trainable=HEAD_ONLY, steps=30), Phase(steps=10), Phase(steps=5))
    assert [(phase.first_step, phase.trainable) for phase in expected] == [
        (1, NAMES["head"]),
        (31, NAMES["all"]),
        (41, NAMES["all"]),
    ]
    assert changes() == ()


@pytest.mark.parametrize(
    ("batchnorm", "statistics"),
    [("eval", ()), ("train", ("",)), ("ghost:4", ("",)), ("momentum:0.1", ("",)), ("train-above", ("fc", "upper", "pool"))],
)
def test_the_mode_of_batchnorm_says_which_statistics_may_move(batchnorm, statistics):
    phase = Phase(trainable=Trainable.parse("top:1"), batchnorm=BatchNormMode.parse(batchnorm))
    (expected,) = changes(phase, parts=PARTS)
    assert expected.statistics == statistics
    (unstated,) = changes(phase, parts=PARTS, states_batchnorm=False)
    assert unstated.statistics is None


def test_other_buffers_may_change_in_the_parts_that_train():
    assert [phase.buffers for phase in changes(Phase(trainable=HEAD_ONLY), Phase(), parts=PARTS)] == [
        ("fc",),
        ("fc", "lower", "upper", "pool"),
    ]


def test_a_network_without_known_parts_is_one_part():
    (expected,) = changes(Phase(trainable=HEAD_ONLY, batchnorm=BatchNormTrainAbove()))
    assert (expected.statistics, expected.buffers) == (("",), ("",))


def test_a_name_belongs_to_the_first_part_that_contains_it():
    (expected,) = changes(Phase(trainable=HEAD_ONLY), parts=[("fc",), ("",)])
    assert expected.buffers == ("fc",)
