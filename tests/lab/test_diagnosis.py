"""Explanations of faults, and events as text."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")  # the package of the lab needs it
from xferbench.lab.monitor import diagnosis
from xferbench.lab.monitor.diagnosis import ParameterState
from xferbench.lab.monitor.events import Event, TransferWarning, format_event, format_report


@pytest.mark.parametrize(
    ("state", "fragment"),
    [
        (ParameterState(requires_grad=False), "moved by other code"),
        (ParameterState(requires_grad=True), "moved by other code"),
        (ParameterState(requires_grad=False, in_optimizer=True, written_between_steps=True), "moved by other code"),
        (
            ParameterState(requires_grad=True, in_optimizer=True, flagged_module="body", gradient_norm=1.0),
            "body.requires_grad = False sets an attribute",
        ),
        (ParameterState(requires_grad=True, in_optimizer=True, gradient_norm=1.0), "requires_grad is still True"),
        (ParameterState(requires_grad=False, in_optimizer=True, weight_decay=0.1, decay_factor=0.99), "weight decay of 0.1"),
        (ParameterState(requires_grad=False, in_optimizer=True, gradient_norm=0.0), "gradient from before it was frozen"),
        (
            ParameterState(requires_grad=False, in_optimizer=True, written_in_step=True, weight_decay=0.1),
            "the optimizer holds it, with weight decay of 0.1",
        ),
    ],
)
def test_explain_frozen_names_the_cause(state, fragment):
    cause, do = diagnosis.explain_frozen(state)
    assert fragment in cause
    assert do


@pytest.mark.parametrize(
    ("state", "fragment"),
    [
        (ParameterState(requires_grad=False), "requires_grad is False"),
        (ParameterState(requires_grad=True), "no gradient reaches it"),
        (ParameterState(requires_grad=True, in_optimizer=True, gradient_norm=1.0, lr=0.0), "learning rate is 0"),
        (ParameterState(requires_grad=True, in_optimizer=True, gradient_norm=0.0, lr=0.1), "gradient is zero"),
        (
            ParameterState(requires_grad=True, in_optimizer=True, gradient_norm=1.0, lr=0.1, narrow_dtype="float16"),
            "lost in rounding to float16",
        ),
    ],
)
def test_explain_still_names_the_cause(state, fragment):
    cause, do = diagnosis.explain_still(state)
    assert fragment in cause
    assert do


def test_a_gradient_of_rounding_noise_is_no_fault():
    assert diagnosis.explain_still(ParameterState(requires_grad=True, in_optimizer=True, gradient_norm=1e-12, lr=0.1)) is None


def make_event(**change):
    return Event(**{"step": 7, "since": 6, "tensor": "a", "kind": "frozen-moved", "cause": "why", "do": "this", **change})


def test_an_event_has_two_lines():
    assert format_event(make_event()) == "frozen-moved at step 7: a: why\n  do: this"
    assert format_event(make_event(since=3, others=("b", "c"))) == "frozen-moved at steps 4 to 7: a and 2 more: why\n  do: this"


def test_a_warning_carries_its_event():
    warning = TransferWarning(make_event())
    assert (str(warning), warning.event) == (format_event(make_event()), make_event())


def test_a_report_counts_steps_and_events():
    assert format_report([], 1) == "1 step watched: nothing to report"
    assert format_report([make_event(), make_event()], 9).splitlines()[0] == "9 steps watched: 2 events"
