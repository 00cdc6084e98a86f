"""Claims held against numbers: only a whole interval agrees or disagrees, and what was not measured does neither."""

from __future__ import annotations

from dataclasses import replace

import pytest
from factory import make_record

from xferbench.analysis import metrics
from xferbench.core.pipeline import Phase, Recipe
from xferbench.core.run import Finding
from xferbench.core.suite import BackboneSection, Claim, DataSection, Invocation, Rules, Suite
from xferbench.study import claims
from xferbench.testing.fake_lab import PIPELINE

NAN = float("nan")
SUITE = Suite(
    name="a",
    plugins=(),
    invocation=Invocation(path="a"),
    backbone=BackboneSection(arch="tiny-resnet"),
    data=DataSection(target="digits"),
    rules=Rules(margin=0.02, looks=(3,)),
)


def effect(**more):
    return Claim(name="one", claim="a claim", source="a paper", task="near", **more)


@pytest.mark.parametrize(
    ("low", "high", "least", "most"),
    [
        (0.03, 0.05, "agrees", "disagrees"),
        (-0.01, 0.01, "disagrees", "agrees"),
        (0.01, 0.03, "inconclusive", "inconclusive"),
        (0.02, 0.03, "inconclusive", "inconclusive"),
        (NAN, 0.03, "not measured", "not measured"),
    ],
)
def test_the_whole_interval_must_lie_on_one_side(low, high, least, most):
    number = claims.ClaimEstimate(ours=0.02, low=low, high=high)
    assert claims.claim_outcome(effect(contrast="a/b", at_least=0.02), number) == least
    assert claims.claim_outcome(effect(contrast="a/b", at_most=0.02), number) == most


def finding(id_, verdict="PASS", **more):
    plugin, contrast, *variant = id_.split("/")
    return Finding(id=id_, plugin=plugin, contrast=contrast, variant="".join(variant), verdict=verdict, **more)


def test_of_a_variant_the_size_is_what_it_costs_and_else_the_measurement():
    told = [
        finding("a/harm/bgr", harm=0.0, low=0.0, high=0.0, control_harm=0.2, control_low=0.1, control_high=0.3),
        finding("a/gap", "INFO", harm=0.4, low=0.3, high=0.5),
    ]
    assert claims.estimate_contrast(effect(contrast="a/harm/bgr", at_least=0.0), told).ours == 0.2
    assert claims.estimate_contrast(effect(contrast="a/gap", at_least=0.0), told).low == 0.3


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ([], "no such contrast"),
        ([finding("a/harm", "SKIPPED", reason="no BatchNorm")], "no BatchNorm"),
        ([finding("a/harm", "ERROR", reason="a crash")], "a crash"),
        ([finding("a/harm/bgr", "ERROR", reason="a crash", control_harm=0.2, control_low=0.1, control_high=0.3)], "a crash"),
        ([finding("a/harm/bgr", reason="not shown")], "not shown"),
    ],
)
def test_what_was_skipped_or_crashed_agrees_with_nothing(told, why):
    number = claims.estimate_contrast(effect(contrast="a/harm/bgr", at_least=-1.0), told)
    assert number.why.startswith(why)
    assert claims.claim_outcome(effect(contrast="a/harm/bgr", at_least=-1.0), number) == "not measured"


def test_two_recipes_are_paired_and_above_0_is_better():
    answers = {("probe", "test", seed): make_record(f"probe-{seed}", 0.9, seed=seed) for seed in range(3)}
    answers |= {("full", "test", seed): make_record(f"full-{seed}", 0.6, seed=seed) for seed in range(3)}
    asked = effect(recipe="probe", against="full", at_least=0.02)
    number = claims.estimate_difference(asked, answers, [0, 1, 2], SUITE)
    assert number.ours == pytest.approx(0.3, abs=0.05) and number.low < number.ours < number.high
    assert claims.estimate_difference(asked, {}, [0, 1, 2], SUITE).why


def test_a_measure_has_bounds_over_seeds_and_one_seed_has_none():
    rows = [{"recipe": "probe", "seed": seed, "trainable": 10.0, "seconds": 0.4 + 0.1 * seed, "error": ""} for seed in range(3)]
    share = claims.estimate_measure(effect(recipe="probe", measure="share", at_most=0.01), rows, 1000, SUITE)
    assert (share.ours, share.low, share.high) == pytest.approx((0.01, 0.01, 0.01))
    seconds = claims.estimate_measure(effect(recipe="probe", measure="seconds", at_most=1.0), rows, 1000, SUITE)
    assert seconds.low < 0.5 < seconds.high < 1.0
    assert claims.estimate_measure(effect(recipe="probe", measure="seconds", at_most=1.0), rows[:1], 1000, SUITE).why
    assert claims.estimate_measure(effect(recipe="other", measure="seconds", at_most=1.0), rows, 1000, SUITE).why


def test_what_is_called_accuracy_is_in_the_unit_of_the_suites_metric():
    rows = [{"recipe": "probe", "seed": seed, "accuracy": 0.5, "error": ""} for seed in range(3)]
    asked = effect(recipe="probe", measure="accuracy", at_most=1.0)
    found = [
        claims.estimate_measure(asked, rows, 1000, replace(SUITE, rules=replace(SUITE.rules, metric=metric))).unit
        for metric in ("accuracy", "nll")
    ]
    assert found == ["accuracy", metrics.get_metric("nll").unit] and found[0] != found[1]


@pytest.mark.parametrize("changes", [{"error": "a crash"}, {"seconds": None}])
def test_one_seed_that_is_missing_leaves_nothing_to_claim(changes):
    rows = [{"recipe": "probe", "seed": seed, "seconds": 0.5, "error": ""} for seed in range(5)]
    rows[2] |= changes
    number = claims.estimate_measure(effect(recipe="probe", measure="seconds", at_most=1.0), rows, 1000, SUITE)
    assert "seed 2" in number.why and claims.claim_outcome(effect(recipe="probe", at_most=1.0), number) == "not measured"


def test_between_two_bounds_the_whole_interval_must_lie():
    between = effect(recipe="a", against="b", at_least=-0.02, at_most=0.02)
    numbers = [
        claims.ClaimEstimate(ours=0.0, low=low, high=high) for low, high in ((-0.01, 0.01), (-0.09, -0.03), (-0.03, 0.01))
    ]
    assert [claims.claim_outcome(between, one) for one in numbers] == ["agrees", "disagrees", "inconclusive"]


def curved(accuracy, *scores, every=10):
    curve = tuple((every * (at + 1), 0.0, score) for at, score in enumerate(scores))
    return replace(make_record(f"{accuracy}", accuracy), curve=curve)


SPEED = effect(recipe="full", against="scratch", measure="speed-up", at_least=1.0)
PIPELINES = {
    "full": replace(PIPELINE, recipe=Recipe(phases=(Phase(steps=20, batch_size=10), Phase(steps=30, batch_size=20)))),
    "scratch": replace(PIPELINE, recipe=Recipe(phases=(Phase(steps=100, batch_size=20),))),
}


def told(full, scratch):
    return {(name, "test", seed): one for seed in (0, 1) for name, one in {"full": full, "scratch": scratch}.items()}


def test_speed_is_in_images_and_its_bounds_know_that_curves_have_few_rows():
    answers = told(curved(0.9, 0.5, 0.6, 0.9), curved(0.8, 0.1, 0.3, 0.8, every=20))
    number = claims.estimate_speed_up(SPEED, answers, PIPELINES, [0, 1], SUITE)
    assert number.ours == 1200 / 400, "30 steps of 10, then 20 images, against 60 of 20"
    assert (number.low, number.high) == (800 / 400, 1200 / 200)


def test_what_both_know_at_their_first_row_shows_no_speed():
    answers = told(curved(0.9, 0.9, 0.9), curved(0.8, 0.8, 0.8, every=20))
    number = claims.estimate_speed_up(SPEED, answers, PIPELINES, [0, 1], SUITE)
    assert number.low < 1 < number.high and claims.claim_outcome(SPEED, number) == "inconclusive"


def test_who_never_gets_there_is_not_faster_and_who_learnt_nothing_is_nowhere():
    never = claims.estimate_speed_up(SPEED, told(curved(0.5, 0.2, 0.6), curved(0.8, 0.3, 0.8)), PIPELINES, [0, 1], SUITE)
    assert claims.claim_outcome(SPEED, never) == "disagrees"
    dead = claims.estimate_speed_up(SPEED, told(curved(0.9, 0.9), curved(0.05, 0.1)), PIPELINES, [0, 1], SUITE)
    assert "learned nothing" in dead.why
    crashed = told(curved(0.9, 0.9), curved(0.8, 0.8))
    crashed["full", "test", 1] = replace(crashed["full", "test", 1], error="a crash")
    assert "a crash" in claims.estimate_speed_up(SPEED, crashed, PIPELINES, [0, 1], SUITE).why
