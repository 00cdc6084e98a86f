from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from factory import make_record
from test_schedule import SUITE

from xferbench.analysis import estimates, metrics, verdict
from xferbench.core.plugin import HARM, Contrast

SEEDS = range(4)


def answers(**accuracy):
    return {
        (arm, "test", seed): make_record(f"{arm}{seed}", value, seed=seed) for arm, value in accuracy.items() for seed in SEEDS
    }


def judged(told, contrast=HARM, suite=SUITE):
    return estimates.estimate_contrast(contrast, told, SEEDS, suite)


def test_harm_is_cured_minus_subject():
    one = judged(answers(cured=0.9, subject=0.6))
    assert one.estimate.harm == pytest.approx(0.3, abs=0.06) and one.estimate.low > 0.1 and one.exposed
    assert one.difference.shape == (4, 200)


def test_equal_keys_are_a_harm_of_exactly_zero():
    told = answers(cured=0.9)
    told |= {("subject", *rest): record for (_, *rest), record in told.items()}
    one = judged(told)
    assert (one.estimate.harm, one.estimate.p_fail, one.estimate.p_pass, one.exposed) == (0.0, 1.0, 0.0, False)


@pytest.mark.parametrize("spoil", ["missing", "crash", "nothing", "unequal", "short"])
def test_whatever_is_not_there_decides_nothing(spoil):
    told = answers(cured=0.9, subject=0.9)
    at = ("subject", "test", 2)
    if spoil == "missing":
        del told[at]
    else:
        predictions = told[at].predictions
        told[at] = {
            "crash": replace(told[at], predictions=None, error="Boom"),
            "nothing": replace(told[at], predictions=None),
            "unequal": replace(told[at], predictions=replace(predictions, example=predictions.example[::-1].copy())),
            "short": make_record("k", 0.9, seed=2, examples=150),
        }[spoil]
    one = judged(told)
    assert one.error and (one.estimate.p_fail, one.estimate.p_pass) == (1.0, 1.0)
    assert verdict.control_outcome(one, 0.02) == "missed"


def test_nan_predictions_decide_nothing():
    told = answers(cured=0.9, subject=0.9)
    at = ("subject", "test", 2)
    broken = replace(told[at].predictions, p_true=np.full(200, np.nan, np.float32))
    told[at] = replace(told[at], predictions=broken)
    one = judged(told, suite=replace(SUITE, metric="nll", margin=0.5))
    assert (one.estimate.p_fail, one.estimate.p_pass) == (1.0, 1.0)
    assert verdict.control_outcome(one, 0.5) == "missed"


def test_the_control_of_a_contrast_has_the_induced_arm_in_the_subjects_place():
    assert estimates.positive_control(HARM, "hot").weights == {("cured", "test"): 1.0, ("induced:hot", "test"): -1.0}


def test_weights_that_meet_in_one_arm_are_added():
    assert estimates.swap_arm(HARM, "subject", "cured").weights == {("cured", "test"): 0.0}


def test_a_contrast_may_weigh_more_than_two_terms():
    told = answers(cured=0.9, subject=0.6, scratch=0.3)
    three = Contrast(name="d", weights={("cured", "test"): 1.0, ("subject", "test"): -0.5, ("scratch", "test"): -0.5})
    assert judged(told, three).estimate.harm == pytest.approx(0.45, abs=0.06)


def test_benefit_retained_is_null_unless_cured_is_shown_to_beat_scratch():
    assert estimates.benefit_retained(answers(cured=0.9, subject=0.6, scratch=0.3), SEEDS, SUITE) == pytest.approx(0.5, abs=0.1)
    assert estimates.benefit_retained(answers(cured=0.5, subject=0.6, scratch=0.5), SEEDS, SUITE) is None
    assert estimates.benefit_retained(answers(cured=0.9, subject=0.2, scratch=0.3), SEEDS, SUITE) < 0
    assert estimates.benefit_retained(answers(cured=0.9, subject=0.2), SEEDS, SUITE) is None


def test_a_gap_between_examples_of_their_own_is_measured_and_never_judged():
    own = {("subject", "test", seed): make_record(f"t{seed}", 0.6, seed=seed) for seed in SEEDS}
    for seed in SEEDS:
        known = make_record(f"k{seed}", 0.9, seed=seed, examples=40)
        mixed = np.random.default_rng(seed).permutation(40)  # a training subset of its own, in an order of its own
        named = np.uint64(1000 + 50 * (seed // 2)) + mixed.astype(np.uint64)
        own["subject", "training", seed] = replace(known, predictions=replace(known.predictions, example=named))
    gap = Contrast(name="gap", kind="info", weights={("subject", "training"): 1.0, ("subject", "test"): -1.0})
    means = {
        view: np.mean([metrics.metric_value(own["subject", view, seed].predictions, "accuracy") for seed in SEEDS])
        for view in ("training", "test")
    }
    found = judged(own, gap).estimate
    assert found.harm == pytest.approx(means["training"] - means["test"])
    assert found.examples == 200 + 2 * 40 and found.low < found.harm < found.high
    assert judged(own, replace(gap, kind="paired")).error == "the arms were not scored on the same examples"


def test_groups_are_the_examples_where_there_are_any():
    told = answers(cured=0.9, subject=0.8)
    grouped = {at: replace(one, predictions=replace(one.predictions, group=np.arange(200) // 10)) for at, one in told.items()}
    assert judged(told).estimate.examples == 200
    assert judged(grouped).estimate.examples == 20


def test_an_invariant_is_a_weighted_sum_of_measures_at_one_seed():
    told = {(arm, "m", 0): make_record(arm, 0.5, scalars={"m": value}) for arm, value in (("subject", 3.0), ("cured", 2.0))}
    contrast = Contrast(name="e", kind="exact", weights={("subject", "m"): 1.0, ("cured", "m"): -1.5})
    assert estimates.invariant_value(contrast, told, 0) == 0.0
    assert np.isnan(estimates.invariant_value(contrast, told, 1)), "nothing was measured there"


def test_a_measure_that_is_missing_or_not_a_number_makes_an_invariant_none():
    contrast = Contrast(name="e", kind="exact", weights={("subject", "m"): 1.0, ("cured", "m"): 0.0})
    for scalars in ({}, {"m": float("nan")}):
        told = {
            ("subject", "m", 0): make_record("a", 0.5, scalars={"m": 0.0}),
            ("cured", "m", 0): make_record("b", 0.5, scalars=scalars),
        }
        assert np.isnan(estimates.invariant_value(contrast, told, 0))


def test_no_seed_at_all_decides_nothing():
    one = estimates.estimate_contrast(HARM, {}, [], SUITE)
    assert one.error and (one.estimate.p_fail, one.estimate.p_pass) == (1.0, 1.0)
