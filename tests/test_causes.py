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
        (Case(learnt=False), "moved by other code"),
        (Case(learnt=True), "moved by other code"),
        (Case(learnt=False, held=True, outside=True), "moved by other code"),
        (Case(learnt=True, held=True, marked="body", gradient=1.0), "body.requires_grad = False sets an attribute"),
        (Case(learnt=True, held=True, gradient=1.0), "requires_grad is still True"),
        (Case(learnt=False, held=True, decay=0.1, shrunk=0.99), "weight decay of 0.1"),
        (Case(learnt=False, held=True, gradient=0.0), "gradient from before it was frozen"),
        (Case(learnt=False, held=True, inside=True, decay=0.1), "the optimizer holds it, with weight decay of 0.1"),
    ],
)
def test_why_a_frozen_tensor_moved(case, words):
    cause, do = causes.frozen(case)
    assert words in cause
    assert do


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (Case(learnt=False), "requires_grad is False"),
        (Case(learnt=True), "no gradient reaches it"),
        (Case(learnt=True, held=True, gradient=1.0, lr=0.0), "learning rate is 0"),
        (Case(learnt=True, held=True, gradient=0.0, lr=0.1), "gradient is zero"),
        (Case(learnt=True, held=True, gradient=1.0, lr=0.1, narrow="float16"), "lost in rounding to float16"),
    ],
)
def test_why_a_tensor_never_moved(case, words):
    cause, do = causes.still(case)
    assert words in cause
    assert do


def test_a_gradient_of_rounding_noise_is_no_fault():
    assert causes.still(Case(learnt=True, held=True, gradient=1e-12, lr=0.1)) is None


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
