"""The decision tables: missing data never gives a PASS, nor a change that is not worse."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xferbench.analysis import verdict
from xferbench.analysis.estimates import UNDECIDED, ContrastEstimate
from xferbench.core.comparison import NOT_WORSE
from xferbench.core.reason import Code, because
from xferbench.core.run import CONTROLS

NAN = float("nan")
MARGIN = 0.03
GOOD = replace(UNDECIDED, harm=0.0, low=-0.01, high=0.01, p_pass=0.001, seeds=3, examples=100)
NO_BASELINE = because(Code.NO_BASELINE, arm="cured", view="test")
FAILURES = because(Code.FAILURES_LEAVE_OPEN, margin=0.03, share=0.7)
EQUAL = because(Code.CURE_CHANGES_NOTHING)
NUMBERS = st.floats(allow_nan=True, allow_infinity=True)
ESTIMATES = st.none() | st.tuples(NUMBERS, NUMBERS, NUMBERS).map(
    lambda values: replace(GOOD, harm=values[0], low=values[1], high=values[2])
)
BOOM = because(Code.TEXT, text="Boom")
ERRORS = st.sampled_from([None, BOOM])
DECISIONS = st.sampled_from(["FAIL", "PASS", "INCONCLUSIVE", "ERROR", ""])
PASSING = verdict.Evidence(control="detected", equal=EQUAL)


def judge(estimate=GOOD, decision="PASS", **changes):
    return verdict.decide_harm(estimate, replace(PASSING, **changes), decision=decision, margin=MARGIN)


def make_estimate(estimate=GOOD, **changes):
    return ContrastEstimate(
        **({"estimate": estimate, "exposed": True, "difference": np.zeros((1, 1)), "groups": np.empty(0)} | changes)
    )


@given(
    estimate=ESTIMATES,
    decision=DECISIONS,
    evidence=st.builds(
        verdict.Evidence,
        control=st.sampled_from([*CONTROLS, ""]),
        exposed=st.booleans(),
        trust=st.sampled_from(["", "nothing records it"]),
        baseline=st.sampled_from([None, NO_BASELINE]),
        error=ERRORS,
        equal=st.just(EQUAL),
        selected=st.booleans(),
        finished=st.booleans(),
        control_improves=st.booleans(),
        seeds_apart=st.booleans(),
        failures=st.sampled_from([None, FAILURES]),
        may_understate=st.sampled_from(["", "scratch"]),
        may_overstate=st.sampled_from(["", "cured"]),
    ),
)
def test_a_harm_passes_only_with_complete_evidence(estimate, decision, evidence):
    result = verdict.decide_harm(estimate, evidence, decision=decision, margin=MARGIN)
    assert result.code in {"FAIL", "PASS", "INCONCLUSIVE", "ERROR"}
    assert (result.code == "ERROR") == bool(evidence.error)
    if result.code == "PASS":
        assert decision == "PASS" and not evidence.trust and verdict.is_measured(estimate)
        assert evidence.control in {"detected", "harmless"} or not evidence.selected or evidence.exposed
        assert evidence.control in {"detected", "harmless"} or not evidence.exposed or estimate.high < -MARGIN
        assert evidence.baseline is None or not (evidence.exposed or evidence.finished)
        assert not (evidence.exposed and (evidence.seeds_apart or evidence.failures))
        assert not evidence.control_improves and not evidence.may_understate
    if result.code == "FAIL":
        assert decision == "FAIL" and not evidence.may_overstate


@pytest.mark.parametrize(
    ("changes", "code", "reason"),
    [
        ({}, "PASS", Code.BELOW_MARGIN),
        ({"control": "harmless"}, "PASS", Code.BELOW_MARGIN),
        ({"control": "missed"}, "INCONCLUSIVE", Code.NO_POWER),
        ({"control": "none"}, "INCONCLUSIVE", Code.NO_POWER),
        ({"control": "missed", "estimate": replace(GOOD, high=-0.05)}, "PASS", Code.BELOW_MARGIN),
        ({"baseline": NO_BASELINE, "estimate": replace(GOOD, high=-0.05)}, "INCONCLUSIVE", Code.NO_BASELINE),
        ({"baseline": NO_BASELINE, "control_improves": True}, "INCONCLUSIVE", Code.NO_BASELINE),
        ({"control": "harmless", "control_improves": True}, "INCONCLUSIVE", Code.CONTROL_IMPROVES),
        ({"exposed": False, "control_improves": True}, "INCONCLUSIVE", Code.CONTROL_IMPROVES),
        ({"seeds_apart": True}, "INCONCLUSIVE", Code.SEEDS_APART),
        ({"failures": FAILURES}, "INCONCLUSIVE", Code.FAILURES_LEAVE_OPEN),
        ({"failures": FAILURES, "decision": "FAIL"}, "FAIL", Code.ABOVE_MARGIN),
        ({"failures": FAILURES, "exposed": False}, "PASS", Code.NOT_EXPOSED),
        ({"may_understate": "scratch"}, "INCONCLUSIVE", Code.SEARCH_CUT),
        ({"may_understate": "scratch", "decision": "FAIL"}, "FAIL", Code.ABOVE_MARGIN),
        ({"may_overstate": "cured", "decision": "FAIL"}, "INCONCLUSIVE", Code.SEARCH_CUT),
        ({"may_overstate": "cured"}, "PASS", Code.BELOW_MARGIN),
        ({"seeds_apart": True, "decision": "FAIL"}, "FAIL", Code.ABOVE_MARGIN),
        ({"baseline": NO_BASELINE}, "INCONCLUSIVE", Code.NO_BASELINE),
        ({"trust": "nothing records it"}, "INCONCLUSIVE", Code.ON_TRUST),
        ({"error": BOOM}, "ERROR", Code.TEXT),
        ({"decision": "FAIL", "trust": "nothing records it"}, "FAIL", Code.ABOVE_MARGIN),
        ({"exposed": False, "control": "none"}, "PASS", Code.NOT_EXPOSED),
        ({"exposed": False, "control": "none", "selected": True}, "INCONCLUSIVE", Code.NOT_EXPOSED_NO_CONTROL),
        (
            {"exposed": False, "baseline": NO_BASELINE, "finished": True},
            "INCONCLUSIVE",
            Code.NOT_EXPOSED_NO_CONTROL,
        ),
        ({"estimate": None}, "INCONCLUSIVE", Code.NOT_ESTIMATED),
        ({"estimate": replace(GOOD, high=NAN)}, "INCONCLUSIVE", Code.NOT_ESTIMATED),
        ({"estimate": replace(GOOD, high=0.05), "decision": "INCONCLUSIVE"}, "INCONCLUSIVE", Code.MARGIN_WITHIN_INTERVAL),
        ({"decision": "INCONCLUSIVE"}, "INCONCLUSIVE", Code.BELOW_BEFORE_CORRECTION),
        (
            {"estimate": replace(GOOD, low=0.04, high=0.05), "decision": "INCONCLUSIVE"},
            "INCONCLUSIVE",
            Code.ABOVE_BEFORE_CORRECTION,
        ),
    ],
)
def test_evidence_determines_the_decision_on_a_harm(changes, code, reason):
    result = judge(**changes)
    assert (result.code, result.reason.code) == (code, reason)


@given(low=NUMBERS, high=NUMBERS, exposed=st.booleans(), error=st.sampled_from([None, BOOM]))
def test_a_control_works_only_if_its_interval_is_on_one_side(low, high, exposed, error):
    outcome = verdict.control_outcome(make_estimate(replace(GOOD, low=low, high=high), exposed=exposed, error=error), MARGIN)
    if outcome in {"detected", "harmless"}:
        assert exposed and not error
        assert low > MARGIN if outcome == "detected" else high < MARGIN
    assert verdict.control_outcome(None, MARGIN) == "none"


@given(
    values=st.lists(st.tuples(NUMBERS, st.booleans()), max_size=5),
    allowed=NUMBERS,
    error=st.sampled_from([None, BOOM]),
    trust=st.sampled_from(["", "nothing records it"]),
    comparable=st.booleans(),
    obstacle=st.sampled_from([None, because(Code.LOW_RECALL), because(Code.NO_GROUPS)]),
)
def test_an_invariant_holds_only_if_every_seed_was_measured(values, allowed, error, trust, comparable, obstacle):
    numbers, diverged = [number for number, _ in values], [diverged_at_seed for _, diverged_at_seed in values]
    result = verdict.decide_invariant(
        numbers, diverged, allowed=allowed, meaning="", error=error, trust=trust, comparable=comparable, obstacle=obstacle
    )
    if result.code == "PASS":
        assert numbers and not error and not trust and not obstacle
        assert all(np.isfinite(number) and abs(number) <= allowed for number in numbers)
    if obstacle and result.reason is obstacle:
        assert result.code == ("SKIPPED" if obstacle.code == Code.NO_GROUPS else "INCONCLUSIVE")
    if result.code == "FAIL":
        assert any(np.isfinite(number) and abs(number) > allowed for number in numbers)


@given(
    estimate=ESTIMATES.filter(bool),
    decision=DECISIONS,
    control=st.sampled_from(CONTROLS),
    has_reference=st.booleans(),
    error=ERRORS,
    trust=st.sampled_from(["", "taken on trust"]),
)
def test_a_share_passes_only_with_complete_evidence(estimate, decision, control, has_reference, error, trust):
    result = verdict.decide_share(
        estimate,
        decision=decision,
        allowed=0.2,
        control=control,
        variant="",
        cost=None,
        has_reference=has_reference,
        error=error,
        trust=trust,
    )
    if result.code == "PASS":
        assert decision == "PASS" and has_reference and not error and not trust
        assert control in verdict.WORKING_CONTROLS and np.isfinite([estimate.harm, estimate.low, estimate.high]).all()
    assert (result.code == "FAIL") == (decision == "FAIL" and not error)
    assert (result.code == "ERROR") == bool(error)


@given(
    failure=st.sampled_from([None, BOOM]), error=st.sampled_from([None, BOOM]), crashed=st.booleans(), seeds=st.integers(0, 3)
)
def test_a_measurement_has_no_verdict(failure, error, crashed, seeds):
    result = verdict.decide_measurement(meaning="", failure=failure, error=error, crashed=crashed, seeds=seeds)
    assert result.code in {"INFO", "SKIPPED", "ERROR"}
    assert (result.code == "INFO") == (not failure and not error)


CHANGES = {
    "margin": st.just(MARGIN),
    "crashed": st.booleans(),
    "same": st.booleans(),
    "elsewhere": st.booleans(),
    "one_pair_of": st.integers(0, 5),
    "to_decide": st.none(),
}


@given(error=st.sampled_from([None, BOOM]), exposed=st.booleans(), decision=DECISIONS, options=st.fixed_dictionaries(CHANGES))
def test_a_change_is_not_worse_only_if_it_could_be_estimated(error, exposed, decision, options):
    result = verdict.decide_change(make_estimate(error=error, exposed=exposed), decision, **options)
    if result.code == NOT_WORSE:
        assert not error
        assert not exposed or (not options["one_pair_of"] and (decision == "PASS" or options["elsewhere"]))


@given(
    candidate=st.sampled_from(["FAIL", "PASS", "INCONCLUSIVE"]),
    accepted=st.sampled_from(["FAIL", "PASS", "INCONCLUSIVE"]),
    was_below_margin=st.booleans(),
    decision=st.sampled_from(["FAIL", "PASS", "INCONCLUSIVE"]),
)
def test_a_new_failure_is_not_worse_only_if_the_accepted_run_left_it_open(candidate, accepted, was_below_margin, decision):
    options = {"margin": MARGIN, "crashed": False, "same": False, "elsewhere": False, "one_pair_of": 0, "to_decide": None}
    interval = verdict.decide_change(make_estimate(), decision, **options)
    result = verdict.decide_harm_change(
        interval, candidate, accepted, was_below_margin=was_below_margin, elsewhere=False, text=""
    )
    if candidate == "FAIL" and result.code == NOT_WORSE:
        assert decision == "PASS" and (accepted == "FAIL" or not was_below_margin)


@given(
    candidate=st.sampled_from(["FAIL", "PASS", "INCONCLUSIVE", "SKIPPED", "ERROR"]),
    accepted=st.sampled_from(["FAIL", "PASS", "INCONCLUSIVE"]),
    before=st.none() | st.floats(0, 1),
    now=st.none() | st.floats(0, 1),
)
def test_a_broken_invariant_is_not_worse_only_if_both_sizes_are_known(candidate, accepted, before, now):
    result = verdict.decide_invariant_change(candidate, accepted, before, now, text="")
    if result.code == NOT_WORSE and candidate != "PASS":
        assert candidate == accepted == "FAIL" and None not in {before, now} and now <= before * (1 + 1e-6) + 1e-6


@given(candidate=st.sampled_from(["FAIL", "PASS", "INCONCLUSIVE", "SKIPPED", "ERROR"]), accepted=st.sampled_from(["", "PASS"]))
def test_an_unpaired_contrast_is_not_worse_only_if_it_passes(candidate, accepted):
    result = verdict.decide_without_pair(candidate, accepted, because(Code.NOT_TESTED_BEFORE), text="")
    assert (result.code == NOT_WORSE) == (candidate == "PASS")


@given(low=NUMBERS, high=NUMBERS, error=st.sampled_from([None, BOOM]))
def test_recipes_without_a_comparison_stay_open(low, high, error):
    if error or np.isnan([low, high]).all():
        assert verdict.decide_difference(low, high, MARGIN, error) == "open"


@given(number=st.tuples(NUMBERS, NUMBERS, NUMBERS), at_least=st.none() | st.floats(-1, 1), error=st.sampled_from([None, BOOM]))
def test_a_claim_is_measured_only_if_all_its_numbers_are_finite(number, at_least, error):
    measured = not error and bool(np.isfinite(number).all())
    assert (verdict.decide_claim(number, at_least, None, error) != "not measured") == measured
