"""Rules for training logs: each finds its fault, and all are quiet on sound logs."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from trainer_state import STEPS, make_curve, make_state, write_state

from xferbench.analysis import log_rules
from xferbench.analysis.log_evaluation_rules import MIN_EVALUATIONS
from xferbench.core.training_log import FAULT, NOTE
from xferbench.data.training_log import read_log


@pytest.fixture
def examine(tmp_path):
    """Return a function from the arguments of a state to the report of its log."""

    def run(losses=None, *, classes=None, majority=None, **options):
        log = read_log(write_state(tmp_path, make_state(losses, **options)))
        return log_rules.examine(replace(log, classes=classes), majority)

    return run


def kinds(report):
    return [(event.kind, event.level) for event in report.events]


def only_event(report):
    (event,) = report.events
    return event


def evaluate(losses, accuracies=None, **more):
    """Return evaluations on 500 examples."""
    speeds = {"runtime": 1.0, "samples_per_second": 500.0}
    accuracies = [None] * len(losses) if accuracies is None else accuracies
    return [
        {"loss": loss, **speeds, **more} | ({} if accuracy is None else {"accuracy": accuracy})
        for loss, accuracy in zip(losses, accuracies, strict=True)
    ]


LEARNING = evaluate([1.5, 0.9, 0.6, 0.5], [0.5, 0.7, 0.8, 0.85])
SOUND = {
    "linear": {},
    "constant": {"rates": [1e-3] * 60},
    "warm-up": {"rates": [0.0, 5e-4, *[1e-3] * 58]},
    "decay to zero": {"rates": [*[1e-3 * (1 - index / 59) for index in range(60)]]},
    "evaluated": {"evaluations": LEARNING, "classes": 6, "majority": 0.2},
    "few losses": {"losses": make_curve(8)},
    "one loss": {"losses": [1.2]},
    "noisy": {"losses": make_curve(200, noise=0.3)},
    "of large values": {"losses": make_curve(start=5000.0, end=900.0, noise=60.0)},
    "a spike": {"losses": [*make_curve(30), 4.0, 5.0, 3.0, *make_curve(30, start=0.6)]},
    "large gradients": {"norms": [20.0] * 60},
    "a skipped step": {"norms": [math.inf, *[1.0] * 40, math.inf, *[1.0] * 17, math.inf]},
    "memorized": {"losses": [*make_curve(30, noise=0), *[0.0] * 30], "norms": [*[1.0] * 30, *[1e-4] * 30]},
    "memorized, without norms": {"losses": [*make_curve(40, end=0.0, decay=6, noise=0), *[0.0] * 10], "norms": None},
    "slightly overfitted": {"evaluations": evaluate([1.5, 0.9, 0.8, 0.85, 0.9], [0.5, 0.7, 0.8, 0.82, 0.82])},
    "overfitted at the last evaluation": {"evaluations": evaluate([1.5, 0.9, 0.8, 1.2])},
    "saturated": {"evaluations": evaluate([0.05, 0.04, 0.04, 0.04], [0.99] * 4), "losses": make_curve(end=0.01, noise=0.003)},
    "hard": {
        "losses": make_curve(start=0.693, end=0.62, noise=0.005),
        "evaluations": evaluate([0.68, 0.65, 0.64], [0.5, 0.6, 0.66]),
        "classes": 2,
    },
    "without gradient norms": {"norms": None},
}


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_log_has_no_events(examine, name):
    assert kinds(examine(**SOUND[name])) == []


@pytest.mark.parametrize("noise", [0.003, 0.03, 0.3])
@pytest.mark.parametrize("decay", [5, 12])
def test_random_sound_logs_have_no_faults(examine, noise, decay):
    rng = random.Random(0)
    reports = [
        examine(
            make_curve(count, decay=decay * count / 60, noise=noise, seed=rng.random()),
            evaluations=LEARNING,
            classes=6,
        )
        for count in (16, 24, 60, 200)
        for _ in range(10)
    ]
    assert [report.faults for report in reports] == [()] * 40
    assert sum(bool(report.events) for report in reports) <= 1


def test_an_empty_log_is_not_checked(examine):
    report = examine([])
    assert (report.events, report.quiet) == ((), ())
    assert report.unchecked.keys() == {"non-finite", *log_rules.RULES, "constant-prediction"}


# Values that are not finite.


@pytest.mark.parametrize("count", [0, 1, 30])
def test_a_loss_that_is_not_finite(examine, count):
    event = only_event(examine([*make_curve(count), *[math.nan] * 12], norms=[*[1.0] * count, *[math.nan] * 12]))
    assert (event.kind, event.level, event.quantity, event.step) == ("non-finite", FAULT, "loss", STEPS * (count + 1))
    assert event.since == STEPS * count
    assert event.numbers["filtered"] == 0
    assert bool(event.numbers["logged_before"]) == bool(count)


def test_a_loss_that_the_trainer_logs_as_zero(examine):
    """transformers#24116: a loss of 0.0 with a gradient norm of NaN."""
    event = only_event(examine([*make_curve(30), *[0.0] * 30], norms=[*[1.0] * 29, *[math.nan] * 31]))
    assert (event.quantity, event.step) == ("grad_norm", 300), "the loss is a mean over steps, and fails later"
    event = only_event(examine([*make_curve(30), *[0.0] * 30], norms=[*[1.0] * 30, *[math.nan] * 30]))
    assert (event.quantity, event.step, event.numbers["filtered"]) == ("loss", 310, 1)


@pytest.mark.parametrize(("before", "found"), [(30, True), (0, True)])
def test_a_loss_of_zero_in_a_log_without_gradient_norms(examine, before, found):
    event = only_event(examine([*make_curve(before), *[0.0] * 20], norms=None))
    assert (event.kind, event.step) == ("non-finite", STEPS * (before + 1))


def test_an_evaluation_loss_that_is_not_finite(examine):
    event = only_event(examine(evaluations=evaluate([1.0, math.nan, math.nan])))
    assert (event.quantity, event.step) == ("eval_loss", 400)


def test_after_a_value_that_is_not_finite_nothing_else_is_examined(examine):
    losses = [*make_curve(30), *[math.nan] * 30]
    report = examine(losses, norms=[*[1.0] * 30, *[math.nan] * 30], rates=[*[1e-3] * 30, *[0.0] * 30], max_steps=900)
    assert kinds(report) == [("non-finite", FAULT)]


def test_many_skipped_steps_are_noted(examine):
    norms = [math.inf if index % 3 == 0 else 1.0 for index in range(60)]
    event = only_event(examine(norms=norms))
    assert (event.kind, event.level, event.numbers) == ("skipped-steps", NOTE, {"skipped": 20.0, "logged": 60.0})


# Nothing is learned.


def test_gradients_of_zero(examine):
    event = only_event(examine([1.8] * 30, norms=[0.0] * 30, classes=6))
    assert (event.kind, event.level, event.numbers["has_loss"]) == ("zero-gradient", FAULT, 1.0)
    event = only_event(examine([0.0] * 30, norms=[0.0] * 30))
    assert (event.kind, event.numbers["has_loss"]) == ("zero-gradient", 0.0)
    assert kinds(examine(norms=[0.0] * 60)) == [], "some versions log a norm of 0 although the loss falls"


def test_a_learning_rate_of_zero(examine):
    noise = make_curve(start=1.79, end=1.79, noise=0.01)
    event = only_event(examine(noise, rates=[0.0] * 60, classes=6))
    assert (event.kind, event.level, event.numbers) == ("zero-rate", FAULT, {"steps": 600.0, "of": 600.0})
    assert kinds(examine(rates=[0.0] * 60)) == [], "other groups of parameters train"


def test_a_schedule_that_ends_too_early(examine):
    losses = [*make_curve(20), *make_curve(40, start=0.5, end=0.5)]
    event = only_event(examine(losses, rates=[*[1e-3] * 20, *[0.0] * 40]))
    assert (event.kind, event.step, event.since, event.numbers["steps"]) == ("zero-rate", 210, 200, 390.0)


def test_a_loss_that_does_not_fall(examine):
    event = only_event(examine(make_curve(start=1.79, end=1.79, noise=0.004)))
    assert (event.kind, event.level, event.step) == ("loss-flat", FAULT, 600)
    assert kinds(examine(make_curve(start=1.79, end=1.79, noise=0.2))) == [], "too much noise to exclude a fall"
    flat = make_curve(20, start=1.79, end=1.79, noise=0.004)
    report = examine(flat, max_steps=1000)
    assert "loss-flat" in report.unchecked and report.faults == (), "a warm-up may last so long"


def test_a_flat_loss_has_the_stated_error_rate(examine):
    """A fall of 0.5 % is reported in at most 1 of 1000 cases; of 400 such logs, two reports are more than chance."""
    logs = [
        [1.0 - (0.005 if index >= 30 else 0.0) + random.Random(f"{seed} {index}").gauss(0, 0.01) for index in range(60)]
        for seed in range(400)
    ]
    assert sum(bool(examine(losses).events) for losses in logs) <= 1


@pytest.mark.parametrize(
    ("losses", "evaluations", "found"),
    [
        (make_curve(start=1.79, end=1.75, noise=0.01), LEARNING[:0], True),
        (make_curve(start=1.79, end=1.75, noise=0.01), evaluate([1.75, 1.74, 1.74], [0.2, 0.3, 0.3]), True),
        (make_curve(start=3.0, end=1.65, noise=0.02), evaluate([1.7, 1.66, 1.66], [0.276, 0.188, 0.276]), True),
        (make_curve(start=1.79, end=1.65, noise=0.02), evaluate([1.7, 1.66, 1.66], [0.276, 0.3, 0.4]), False),
        (make_curve(start=3.0, end=1.75, noise=0.01), LEARNING[:0], False),  # it may be a sum over batches
        (make_curve(start=3.6, end=1.9, noise=0.02), evaluate([1.3, 1.0, 0.9], [0.5, 0.6, 0.7]), False),  # it is one
        (make_curve(start=1.79, end=1.5, noise=0.01), LEARNING[:0], False),
    ],
)
def test_a_loss_that_ends_at_that_of_a_guess(examine, losses, evaluations, found):
    report = examine(losses, evaluations=evaluations, classes=6)
    assert ("at-chance" in {event.kind for event in report.events}) is found
    assert "at-chance" in examine(losses, evaluations=evaluations).unchecked


# The course of the loss.


def test_a_loss_that_jumps_and_stays_risen(examine):
    event = only_event(examine([*make_curve(30), *make_curve(30, start=3.0, end=2.0)]))
    assert (event.kind, event.level) == ("loss-rise", FAULT)
    assert 290 <= event.step <= 310 and event.since == event.step - STEPS
    assert event.numbers["before"] < 0.6
    assert 2.0 <= event.numbers["after"] < 2.5


def test_gradients_that_rise_are_noted(examine):
    event = only_event(examine(norms=[*[1.0, 1.5] * 15, *[40.0, 60.0] * 15]))
    assert (event.kind, event.level, event.quantity) == ("gradient-rise", NOTE, "grad_norm")
    assert kinds(examine(norms=[1.02**index for index in range(60)])) == []


def test_a_loss_that_still_falls_at_the_end_is_noted(examine):
    losses = [1.8 - 0.01 * index + random.Random(index).gauss(0, 0.03) for index in range(60)]
    event = only_event(examine(losses, rates=[1e-3] * 60))
    assert (event.kind, event.level, event.since) == ("still-falling", NOTE, 410)
    assert event.numbers["share"] == pytest.approx(0.33, abs=0.12)
    assert event.numbers["slope"] == pytest.approx(-0.001, abs=0.0004)
    assert kinds(examine(losses, rates=[1e-3] * 60, evaluations=evaluate([1.5, 1.2, 1.25]))) == [], "more would not help"
    assert "still-falling" in examine(losses, max_steps=900).unchecked, "it is not the end"
    assert "still-falling" in examine(losses[:20]).unchecked


def test_a_log_that_ends_early_is_noted(examine):
    event = only_event(examine(max_steps=800))
    assert (event.kind, event.level, event.step, event.numbers["of"]) == ("cut-short", NOTE, 600, 800.0)
    assert event.numbers["rate"] / event.numbers["highest_rate"] == pytest.approx(0.25, abs=0.01)
    assert kinds(examine(max_steps=620)) == [], "the rate is near 0"
    assert kinds(examine(max_steps=800, rates=[1e-3] * 60)) == [], "the rate does not fall"
    stopped = {"args": {"early_stopping_patience": 3}, "attributes": {"early_stopping_patience_counter": 3}}
    assert kinds(examine(max_steps=800, stateful_callbacks={"EarlyStoppingCallback": stopped})) == []


def test_losses_that_are_sums_over_batches_are_noted(examine):
    speeds = [{"step": 600, "train_samples_per_second": 320.0, "train_steps_per_second": 10.0}]
    losses = [4 * loss for loss in make_curve(end=0.5)]
    evaluations = evaluate([0.9, 0.6, 0.5])
    for classes in (None, 6):
        event = only_event(examine(losses, evaluations=evaluations, more=speeds, classes=classes))
        assert (event.kind, event.level, event.numbers["batches"]) == ("added-losses", NOTE, 4.0)
    assert kinds(examine(make_curve(end=0.5), evaluations=evaluations, more=speeds)) == []
    assert kinds(examine(losses, evaluations=evaluations, more=speeds, classes=1000)) == []
    assert "added-losses" in examine(losses, evaluations=evaluations).unchecked


# The evaluations.

RISING = [1.5, 0.9, 0.8, 1.0, 1.2, 1.4]


@pytest.mark.parametrize(
    ("accuracies", "best", "expected"),
    [
        (None, None, ("overfitting", FAULT)),
        ([0.5, 0.7, 0.8, 0.75, 0.7, 0.68], None, ("overfitting", FAULT)),
        ([0.5, 0.7, 0.8, 0.75, 0.7, 0.68], "out/checkpoint-300", ("overfitting", NOTE)),
        ([0.5, 0.7, 0.8, 0.8, 0.8, 0.79], None, ("overconfidence", NOTE)),
        ([0.5, 0.7, 0.8, 0.81, 0.82, 0.83], None, ("overconfidence", NOTE)),
    ],
)
def test_an_evaluation_loss_that_rises(examine, accuracies, best, expected):
    report = examine(evaluations=evaluate(RISING, accuracies), best_model_checkpoint=best)
    event = only_event(report)
    assert ((event.kind, event.level), event.quantity, event.step, event.since) == (expected, "eval_loss", 600, 300)
    assert (event.numbers["best_loss"], event.numbers["last_loss"]) == (0.8, 1.4)


def test_few_evaluations_are_not_checked(examine):
    report = examine(evaluations=evaluate([0.8, 1.4]))
    assert (report.unchecked["overfitting"].found, report.unchecked["overfitting"].needed) == (2, MIN_EVALUATIONS)
    assert examine().unchecked["overfitting"].found == 0


def test_several_evaluation_sets_are_examined(examine):
    event = only_event(examine(evaluations=[{"near_loss": 0.5, "far_loss": loss} for loss in RISING]))
    assert (event.kind, event.quantity) == ("overfitting", "eval_far_loss")


@pytest.mark.parametrize(
    ("metrics", "options", "found"),
    [
        ([{"accuracy": 0.612, "loss": 0.66}] * 3, {"majority": 0.6118}, True),
        ([{"accuracy": 0.612, "loss": 0.66}] * 3, {"majority": 0.62}, False),
        ([{"accuracy": 0.25, "loss": 1.3}] * 2, {"classes": 4}, True),
        ([{"accuracy": value, "loss": 1.3} for value in (0.3, 0.25, 0.25, 0.25)], {"classes": 4}, True),
        ([{"accuracy": value, "loss": 1.3} for value in (0.3, 0.3, 0.25, 0.25)], {"classes": 4}, False),
        ([{"accuracy": 0.9, "matthews_correlation": 0.0}] * 2, {}, True),
        ([{"accuracy": 0.9, "matthews_correlation": value} for value in (0.0, 0.1)], {}, False),
    ],
)
def test_evaluations_of_a_constant_prediction(examine, metrics, options, found):
    report = examine(evaluations=metrics, **options)
    assert (("constant-prediction", FAULT) in kinds(report)) is found


def test_the_same_accuracy_at_all_evaluations_is_noted(examine):
    losses = make_curve(start=0.69, end=0.4, noise=0.02)
    event = only_event(examine(losses, evaluations=evaluate([0.5, 0.4, 0.38, 0.39], [0.9] * 4)))
    assert (event.kind, event.level, event.numbers) == ("same-score", NOTE, {"score": 0.9, "evaluations": 4.0})
    assert kinds(examine(losses, evaluations=evaluate([0.4, 0.3, 0.2, 0.2], [0.9] * 4))) == [], "a loss below a constant one's"


# Numbers of any size.


@pytest.mark.parametrize("value", [1e308, -1e308, 1e200, 5e-324, 0.0, -1.0, 1e69])
@pytest.mark.parametrize("place", ["losses", "norms", "rates", "evaluations"])
def test_extreme_numbers_give_a_report(examine, value, place):
    series = {"losses": make_curve(), "norms": [1.0] * 60, "rates": [1e-3] * 60}
    options = {"evaluations": LEARNING, "classes": 2, "majority": 0.5, **series}
    for values in ([value] * 60, [*[1.0] * 30, *[value] * 30], [1.0, value] * 30):
        changed = {"evaluations": evaluate(values[:4], values[4:8])} if place == "evaluations" else {place: values}
        report = examine(**options | changed)
        assert {event.level for event in report.events} <= {FAULT, NOTE}
