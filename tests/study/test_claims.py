"""Claims against estimates: a claim is decided only by a whole interval, and only if it was measured."""

from __future__ import annotations

from dataclasses import replace

import pytest
from factory import make_record

from xferbench.analysis import metrics
from xferbench.core.pipeline import Phase, Recipe
from xferbench.core.run import Finding
from xferbench.core.sections import from_flat
from xferbench.core.suite import BackboneSection, Claim, DataSection, Invocation, Rules, Suite
from xferbench.report.messages import write_sentence
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


def make_claim(**fields):
    return Claim(name="one", claim="a claim", source="a paper", task="near", **fields)


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
def test_an_interval_decides_a_claim_only_if_it_lies_on_one_side(low, high, least, most):
    estimate = claims.ClaimEstimate(ours=0.02, low=low, high=high)
    assert claims.claim_outcome(make_claim(contrast="a/b", at_least=0.02), estimate) == least
    assert claims.claim_outcome(make_claim(contrast="a/b", at_most=0.02), estimate) == most


def make_finding(finding_id, verdict="PASS", **fields):
    plugin, contrast, *variant = finding_id.split("/")
    return from_flat(
        Finding,
        {"id": finding_id, "plugin": plugin, "contrast": contrast, "variant": "".join(variant), "verdict": verdict} | fields,
    )


def test_a_contrast_estimate_is_the_control_harm_for_a_variant_and_the_measured_harm_otherwise():
    findings = [
        make_finding("a/harm/bgr", harm=0.0, low=0.0, high=0.0, control_harm=0.2, control_low=0.1, control_high=0.3),
        make_finding("a/gap", "INFO", harm=0.4, low=0.3, high=0.5),
    ]
    assert claims.estimate_contrast(make_claim(contrast="a/harm/bgr", at_least=0.0), findings).ours == 0.2
    assert claims.estimate_contrast(make_claim(contrast="a/gap", at_least=0.0), findings).low == 0.3


@pytest.mark.parametrize(
    ("findings", "why"),
    [
        ([], "no such contrast"),
        ([make_finding("a/harm", "SKIPPED", reason="no BatchNorm")], "no BatchNorm"),
        ([make_finding("a/harm", "ERROR", reason="a crash")], "a crash"),
        (
            [make_finding("a/harm/bgr", "ERROR", reason="a crash", control_harm=0.2, control_low=0.1, control_high=0.3)],
            "a crash",
        ),
        ([make_finding("a/harm/bgr", reason="not shown")], "not shown"),
    ],
)
def test_a_skipped_or_crashed_finding_leaves_the_claim_not_measured(findings, why):
    estimate = claims.estimate_contrast(make_claim(contrast="a/harm/bgr", at_least=-1.0), findings)
    assert write_sentence(estimate.why).startswith(why)
    assert claims.claim_outcome(make_claim(contrast="a/harm/bgr", at_least=-1.0), estimate) == "not measured"


def test_the_difference_of_two_recipes_is_paired_and_positive_if_the_first_is_better():
    records = {("probe", "test", seed): make_record(f"probe-{seed}", 0.9, seed=seed) for seed in range(3)}
    records |= {("full", "test", seed): make_record(f"full-{seed}", 0.6, seed=seed) for seed in range(3)}
    claim = make_claim(recipe="probe", against="full", at_least=0.02)
    estimate = claims.estimate_difference(claim, records, [0, 1, 2], SUITE)
    assert estimate.ours == pytest.approx(0.3, abs=0.05) and estimate.low < estimate.ours < estimate.high
    assert claims.estimate_difference(claim, {}, [0, 1, 2], SUITE).why


def test_a_measure_has_an_interval_over_seeds_and_a_single_seed_has_none():
    rows = [{"recipe": "probe", "seed": seed, "trainable": 10.0, "seconds": 0.4 + 0.1 * seed, "error": ""} for seed in range(3)]
    share = claims.estimate_measure(make_claim(recipe="probe", measure="share", at_most=0.01), rows, 1000, SUITE)
    assert (share.ours, share.low, share.high) == pytest.approx((0.01, 0.01, 0.01))
    seconds = claims.estimate_measure(make_claim(recipe="probe", measure="seconds", at_most=1.0), rows, 1000, SUITE)
    assert seconds.low < 0.5 < seconds.high < 1.0
    assert claims.estimate_measure(make_claim(recipe="probe", measure="seconds", at_most=1.0), rows[:1], 1000, SUITE).why
    assert claims.estimate_measure(make_claim(recipe="other", measure="seconds", at_most=1.0), rows, 1000, SUITE).why


def test_the_unit_of_accuracy_is_that_of_the_metric_of_the_suite():
    rows = [{"recipe": "probe", "seed": seed, "accuracy": 0.5, "error": ""} for seed in range(3)]
    claim = make_claim(recipe="probe", measure="accuracy", at_most=1.0)
    units = [
        claims.estimate_measure(claim, rows, 1000, replace(SUITE, rules=replace(SUITE.rules, metric=metric))).unit
        for metric in ("accuracy", "nll")
    ]
    assert units == ["accuracy", metrics.get_metric("nll").unit] and units[0] != units[1]


@pytest.mark.parametrize("changes", [{"error": "a crash"}, {"seconds": None}])
def test_a_missing_seed_leaves_the_claim_not_measured(changes):
    rows = [{"recipe": "probe", "seed": seed, "seconds": 0.5, "error": ""} for seed in range(5)]
    rows[2] |= changes
    estimate = claims.estimate_measure(make_claim(recipe="probe", measure="seconds", at_most=1.0), rows, 1000, SUITE)
    assert "seed 2" in write_sentence(estimate.why)
    assert claims.claim_outcome(make_claim(recipe="probe", at_most=1.0), estimate) == "not measured"


def test_a_claim_with_two_bounds_needs_the_whole_interval_between_them():
    claim = make_claim(recipe="a", against="b", at_least=-0.02, at_most=0.02)
    estimates = [
        claims.ClaimEstimate(ours=0.0, low=low, high=high) for low, high in ((-0.01, 0.01), (-0.09, -0.03), (-0.03, 0.01))
    ]
    assert [claims.claim_outcome(claim, estimate) for estimate in estimates] == ["agrees", "disagrees", "inconclusive"]


def make_record_with_curve(accuracy, *scores, every=10):
    curve = tuple((every * (index + 1), 0.0, score) for index, score in enumerate(scores))
    return replace(make_record(f"{accuracy}", accuracy), curve=curve)


SPEED = make_claim(recipe="full", against="scratch", measure="speed-up", at_least=1.0)
PIPELINES = {
    "full": replace(PIPELINE, recipe=Recipe(phases=(Phase(steps=20, batch_size=10), Phase(steps=30, batch_size=20)))),
    "scratch": replace(PIPELINE, recipe=Recipe(phases=(Phase(steps=100, batch_size=20),))),
}


def make_records(full, scratch):
    return {(name, "test", seed): record for seed in (0, 1) for name, record in {"full": full, "scratch": scratch}.items()}


def test_the_speed_up_counts_images_and_its_interval_reflects_the_spacing_of_the_curve():
    records = make_records(make_record_with_curve(0.9, 0.5, 0.6, 0.9), make_record_with_curve(0.8, 0.1, 0.3, 0.8, every=20))
    estimate = claims.estimate_speed_up(SPEED, records, PIPELINES, [0, 1], SUITE)
    assert estimate.ours == 1200 / 400, "30 steps of 10, then 20 images, against 60 of 20"
    assert (estimate.low, estimate.high) == (800 / 400, 1200 / 200)


def test_the_speed_up_is_inconclusive_if_both_recipes_are_accurate_at_the_first_step():
    records = make_records(make_record_with_curve(0.9, 0.9, 0.9), make_record_with_curve(0.8, 0.8, 0.8, every=20))
    estimate = claims.estimate_speed_up(SPEED, records, PIPELINES, [0, 1], SUITE)
    assert estimate.low < 1 < estimate.high and claims.claim_outcome(SPEED, estimate) == "inconclusive"


def test_a_recipe_that_never_reaches_the_accuracy_is_not_faster_and_a_dead_baseline_gives_no_claim():
    slow = claims.estimate_speed_up(
        SPEED,
        make_records(make_record_with_curve(0.5, 0.2, 0.6), make_record_with_curve(0.8, 0.3, 0.8)),
        PIPELINES,
        [0, 1],
        SUITE,
    )
    assert claims.claim_outcome(SPEED, slow) == "disagrees"
    untrained = claims.estimate_speed_up(
        SPEED, make_records(make_record_with_curve(0.9, 0.9), make_record_with_curve(0.05, 0.1)), PIPELINES, [0, 1], SUITE
    )
    assert "learned nothing" in write_sentence(untrained.why)
    crashed = make_records(make_record_with_curve(0.9, 0.9), make_record_with_curve(0.8, 0.8))
    crashed["full", "test", 1] = replace(crashed["full", "test", 1], error="a crash")
    assert "a crash" in write_sentence(claims.estimate_speed_up(SPEED, crashed, PIPELINES, [0, 1], SUITE).why)
