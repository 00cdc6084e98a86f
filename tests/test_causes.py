"""Each cause has its own words."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")  # the package of the lab needs it

from xferbench.events import Event, TransferWarning, report, told
from xferbench.lab import causes
from xferbench.lab.causes import Case


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (Case(requires_grad=False), "moved by other code"),
        (Case(requires_grad=True), "moved by other code"),
        (Case(requires_grad=False, in_optimizer=True, written_between_steps=True), "moved by other code"),
        (
            Case(requires_grad=True, in_optimizer=True, flagged_module="body", gradient_norm=1.0),
            "body.requires_grad = False sets an attribute",
        ),
        (Case(requires_grad=True, in_optimizer=True, gradient_norm=1.0), "requires_grad is still True"),
        (Case(requires_grad=False, in_optimizer=True, weight_decay=0.1, decay_factor=0.99), "weight decay of 0.1"),
        (Case(requires_grad=False, in_optimizer=True, gradient_norm=0.0), "gradient from before it was frozen"),
        (
            Case(requires_grad=False, in_optimizer=True, written_in_step=True, weight_decay=0.1),
            "the optimizer holds it, with weight decay of 0.1",
        ),
    ],
)
def test_why_a_frozen_tensor_moved(case, words):
    cause, do = causes.frozen(case)
    assert words in cause
    assert do


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (Case(requires_grad=False), "requires_grad is False"),
        (Case(requires_grad=True), "no gradient reaches it"),
        (Case(requires_grad=True, in_optimizer=True, gradient_norm=1.0, lr=0.0), "learning rate is 0"),
        (Case(requires_grad=True, in_optimizer=True, gradient_norm=0.0, lr=0.1), "gradient is zero"),
        (
            Case(requires_grad=True, in_optimizer=True, gradient_norm=1.0, lr=0.1, narrow_dtype="float16"),
            "lost in rounding to float16",
        ),
    ],
)
def test_why_a_tensor_never_moved(case, words):
    cause, do = causes.still(case)
    assert words in cause
    assert do


def test_a_gradient_of_rounding_noise_is_no_fault():
    assert causes.still(Case(requires_grad=True, in_optimizer=True, gradient_norm=1e-12, lr=0.1)) is None


def make_event(**change):
    return Event(**{"step": 7, "since": 6, "tensor": "a", "kind": "frozen-moved", "cause": "why", "do": "this", **change})


def test_an_event_is_told_in_two_lines():
    assert told(make_event()) == "frozen-moved at step 7: a: why\n  do: this"
    assert told(make_event(since=3, others=("b", "c"))) == "frozen-moved at steps 4 to 7: a and 2 more: why\n  do: this"


def test_a_warning_carries_its_event():
    warning = TransferWarning(make_event())
    assert (str(warning), warning.event) == (told(make_event()), make_event())


def test_a_report_counts_steps_and_events():
    assert report([], 1) == "1 step watched: nothing to report"
    assert report([make_event(), make_event()], 9).splitlines()[0] == "9 steps watched: 2 events"
