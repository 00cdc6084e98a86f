from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from factory import make_record
from test_schedule import SUITE

from xferbench.analysis import estimates, metrics, verdict
from xferbench.core.plugin import HARM, Contrast
from xferbench.core.reason import Code, because

SEEDS = range(4)


def make_records(**accuracy):
    return {
        (arm, "test", seed): make_record(f"{arm}{seed}", value, seed=seed) for arm, value in accuracy.items() for seed in SEEDS
    }


def estimate(records, contrast=HARM, suite=SUITE):
    return estimates.estimate_contrast(contrast, records, SEEDS, suite.rules)


def test_harm_is_cured_minus_subject():
    result = estimate(make_records(cured=0.9, subject=0.6))
    assert result.estimate.harm == pytest.approx(0.3, abs=0.06) and result.estimate.low > 0.1 and result.exposed
    assert result.difference.shape == (4, 200)


def test_equal_keys_have_a_harm_of_zero():
    records = make_records(cured=0.9)
    records |= {("subject", *rest): record for (_, *rest), record in records.items()}
    result = estimate(records)
    assert (result.estimate.harm, result.estimate.p_fail, result.estimate.p_pass, result.exposed) == (0.0, 1.0, 0.0, False)


@pytest.mark.parametrize("damage", ["missing", "crash", "nothing", "unequal", "short"])
def test_missing_data_stay_undecided(damage):
    records = make_records(cured=0.9, subject=0.9)
    term = ("subject", "test", 2)
    if damage == "missing":
        del records[term]
    else:
        predictions = records[term].predictions
        records[term] = {
            "crash": replace(records[term], predictions=None, error="Boom"),
            "nothing": replace(records[term], predictions=None),
            "unequal": replace(records[term], predictions=replace(predictions, example=predictions.example[::-1].copy())),
            "short": make_record("k", 0.9, seed=2, examples=150),
        }[damage]
    result = estimate(records)
    assert result.error and (result.estimate.p_fail, result.estimate.p_pass) == (1.0, 1.0)
    assert verdict.control_outcome(result, 0.02) == "missed"


def test_nan_predictions_stay_undecided():
    records = make_records(cured=0.9, subject=0.9)
    term = ("subject", "test", 2)
    broken = replace(records[term].predictions, p_true=np.full(200, np.nan, np.float32))
    records[term] = replace(records[term], predictions=broken)
    result = estimate(records, suite=replace(SUITE, rules=replace(SUITE.rules, metric="nll", margin=0.5)))
    assert (result.estimate.p_fail, result.estimate.p_pass) == (1.0, 1.0)
    assert verdict.control_outcome(result, 0.5) == "missed"


def test_the_positive_control_replaces_the_subject_by_the_induced_arm():
    assert estimates.positive_control(HARM, "hot").weights == {("cured", "test"): 1.0, ("induced:hot", "test"): -1.0}


def test_swapping_arms_adds_the_weights_of_equal_terms():
    assert estimates.swap_arm(HARM, "subject", "cured").weights == {("cured", "test"): 0.0}


def test_a_contrast_may_have_more_than_two_terms():
    records = make_records(cured=0.9, subject=0.6, scratch=0.3)
    three = Contrast(name="d", weights={("cured", "test"): 1.0, ("subject", "test"): -0.5, ("scratch", "test"): -0.5})
    assert estimate(records, three).estimate.harm == pytest.approx(0.45, abs=0.06)


def test_benefit_retained_needs_a_cured_arm_that_beats_scratch():
    assert estimates.benefit_retained(make_records(cured=0.9, subject=0.6, scratch=0.3), SEEDS, SUITE.rules) == pytest.approx(
        0.5, abs=0.1
    )
    assert estimates.benefit_retained(make_records(cured=0.5, subject=0.6, scratch=0.5), SEEDS, SUITE.rules) is None
    assert estimates.benefit_retained(make_records(cured=0.9, subject=0.2, scratch=0.3), SEEDS, SUITE.rules) < 0
    assert estimates.benefit_retained(make_records(cured=0.9, subject=0.2), SEEDS, SUITE.rules) is None


def test_a_gap_between_different_examples_is_an_estimate_without_a_verdict():
    records = {("subject", "test", seed): make_record(f"t{seed}", 0.6, seed=seed) for seed in SEEDS}
    for seed in SEEDS:
        record = make_record(f"k{seed}", 0.9, seed=seed, examples=40)
        order = np.random.default_rng(seed).permutation(40)  # each seed has its own subset and order
        names = np.uint64(1000 + 50 * (seed // 2)) + order.astype(np.uint64)
        records["subject", "training", seed] = replace(record, predictions=replace(record.predictions, example=names))
    gap = Contrast(name="gap", kind="info", weights={("subject", "training"): 1.0, ("subject", "test"): -1.0})
    means = {
        view: np.mean([metrics.metric_value(records["subject", view, seed].predictions, "accuracy") for seed in SEEDS])
        for view in ("training", "test")
    }
    gap_estimate = estimate(records, gap).estimate
    assert gap_estimate.harm == pytest.approx(means["training"] - means["test"])
    assert gap_estimate.examples == 200 + 2 * 40 and gap_estimate.low < gap_estimate.harm < gap_estimate.high
    assert estimate(records, replace(gap, kind="paired")).error == because(Code.OTHER_EXAMPLES)


def test_groups_replace_the_examples():
    records = make_records(cured=0.9, subject=0.8)
    grouped = {
        term: replace(record, predictions=replace(record.predictions, group=np.arange(200) // 10))
        for term, record in records.items()
    }
    assert estimate(records).estimate.examples == 200
    assert estimate(grouped).estimate.examples == 20


def test_an_invariant_is_a_weighted_sum_of_measures_at_one_seed():
    records = {(arm, "m", 0): make_record(arm, 0.5, scalars={"m": value}) for arm, value in (("subject", 3.0), ("cured", 2.0))}
    contrast = Contrast(name="e", kind="exact", weights={("subject", "m"): 1.0, ("cured", "m"): -1.5})
    assert estimates.invariant_value(contrast, records, 0) == 0.0
    assert np.isnan(estimates.invariant_value(contrast, records, 1)), "no record exists for this seed"


def test_a_missing_or_nan_measure_makes_an_invariant_nan():
    contrast = Contrast(name="e", kind="exact", weights={("subject", "m"): 1.0, ("cured", "m"): 0.0})
    for scalars in ({}, {"m": float("nan")}):
        records = {
            ("subject", "m", 0): make_record("a", 0.5, scalars={"m": 0.0}),
            ("cured", "m", 0): make_record("b", 0.5, scalars=scalars),
        }
        assert np.isnan(estimates.invariant_value(contrast, records, 0))


def test_no_seed_stays_undecided():
    result = estimates.estimate_contrast(HARM, {}, [], SUITE.rules)
    assert result.error and (result.estimate.p_fail, result.estimate.p_pass) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("harms", "apart"),
    [
        ([0.0, 0.01, -0.01, 0.0, 0.15], True),
        ([0.0, 0.01, 0.0, 0.14, 0.16], True),
        ([0.0, 0.01, 0.02, 0.03, 0.04], False),
        ([0.0, 0.0, 0.0, 0.0, 0.01], False),
        ([0.0, 0.01, -0.15, 0.0, 0.01], False),
        ([0.0, 0.15], False),
        ([0.0] * 9 + [0.15], False),
    ],
    ids=["one seed", "two seeds", "spread", "within the margin", "a better seed", "too few", "ten seeds"],
)
def test_seeds_are_apart_if_a_gap_separates_a_few_that_are_harmed(harms, apart):
    difference = np.repeat(np.asarray(harms)[:, None], 20, axis=1)
    estimate = estimates.ContrastEstimate(estimate=estimates.UNDECIDED, exposed=True, difference=difference, groups=np.empty(0))
    assert estimates.has_seeds_apart(estimate, 0.02) == apart
