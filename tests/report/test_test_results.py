from __future__ import annotations

from dataclasses import replace

import pytest
from factory import make_run
from hypothesis import given
from hypothesis import strategies as st
from test_audits import run_audit

from xferbench.analysis import exit_code
from xferbench.core.comparison import DECISIONS, ChangeEstimate, Comparison, Outcome
from xferbench.core.run import VERDICTS, Finding, contrast_id
from xferbench.core.sections import from_flat, replace_flat
from xferbench.report import test_results
from xferbench.runner import discovery
from xferbench.testing import fake_lab

RUN = make_run()


def make_finding(verdict="PASS", plugin="a", contrast="harm", variant="", **fields):
    finding_id = f"{plugin}/{contrast}/{variant}".rstrip("/")
    return from_flat(
        Finding, {"id": finding_id, "plugin": plugin, "contrast": contrast, "verdict": verdict, "variant": variant} | fields
    )


def result_of(*findings, name="a/harm", plugin="a", fail_on="fail", outcomes=None):
    gate = None if outcomes is None else Comparison(outcomes=outcomes)
    return test_results.test_outcome(replace(RUN, findings=findings, gate=gate), name, plugin, fail_on=fail_on)


def run_plugin(plugin):
    """Return the findings of a plugin from the fake lab."""
    if plugin in discovery.load_plugins(["all"], "audit"):
        return run_audit(plugin).findings
    plugin_without_callbacks = replace(
        plugin, explain=None, derived_metrics=None, plot=None
    )  # these functions need real scalars
    measures = {reference: {name: 0.0} for name, reference in plugin.measures.items()}
    return fake_lab.run_study(fake_lab.make_study(plugin_without_callbacks), fake_lab.fake_lab(measures=measures)).findings


@pytest.mark.parametrize("kind", ["experiment", "audit"])
def test_tests_have_the_names_of_contrasts(kind):
    complete = 0
    for plugin in discovery.load_plugins(["all"], kind):
        names, findings = test_results.test_names([plugin]), run_plugin(plugin)
        with_verdict = {contrast_id(finding.plugin, finding.contrast) for finding in findings if finding.verdict != "INFO"}
        if not plugin.has_verdict:
            assert not names, "a measurement is not a test"
            continue
        assert set(names.values()) == {plugin.id}
        assert with_verdict <= set(names)
        assert with_verdict == set(names) or {finding.verdict for finding in findings} <= {"SKIPPED", "ERROR", "INFO"}
        complete += with_verdict == set(names)
    assert complete > 5


def test_the_subject_is_a_test_only_with_a_baseline():
    assert list(test_results.test_names(discovery.load_plugins(["head-shock"]), has_baseline=True)) == [
        "subject",
        "head-shock/harm",
    ]


@pytest.mark.parametrize("verdict", set(VERDICTS) - {"INFO"})
@pytest.mark.parametrize("fail_on", ["fail", "inconclusive"])
def test_a_test_fails_if_the_command_does(verdict, fail_on):
    finding = make_finding(verdict, reason="because")
    code = exit_code.exit_code([finding], fail_on=fail_on)
    assert (result_of(finding, fail_on=fail_on).state == "failed") == (
        code in {exit_code.FAILED, exit_code.CRASHED, exit_code.INCONCLUSIVE}
    )


@given(st.lists(st.sampled_from(["FAIL", "PASS", "INCONCLUSIVE"]), min_size=1))
def test_the_worst_variant_determines_the_result(verdicts):
    worst = next(verdict for verdict in ("FAIL", "INCONCLUSIVE", "PASS") if verdict in verdicts)
    result = result_of(*(make_finding(verdict, variant=f"v{number}") for number, verdict in enumerate(verdicts)))
    assert result.message.startswith(worst)
    assert result.properties["verdict"] == worst


def test_measurements_do_not_affect_the_result():
    assert result_of(make_finding("PASS"), make_finding("INFO", reason="x")).state == "passed"


def test_the_finding_of_a_skipped_plugin_applies_to_all_its_contrasts():
    result = result_of(make_finding("SKIPPED", reason="no [source]"), name="a/other")
    assert (result.state, result.message) == ("skipped", "SKIPPED: no [source]")
    assert result_of(make_finding("ERROR", reason="broke"), name="a/other").message == "ERROR: crashed: broke"
    assert result_of(make_finding("FAIL"), name="a/other").state == "failed"


def test_a_test_without_results_fails():
    assert result_of(make_finding("PASS", plugin="b")) == test_results.TestOutcome(
        state="failed", message=test_results.NOT_IN_RESULTS
    )
    assert result_of(outcomes=()).state == "failed"


def test_a_failure_shows_harm_reason_and_next_action():
    remedy = {"text": "lower it", "patch": ["[recipe]", "lr = 1e-3"], "verified": False}
    result = result_of(make_finding("FAIL", harm=0.05, low=0.03, high=0.07, margin=0.02, reason="too\nhigh", remedy=remedy))
    assert result.message == "FAIL: +5.0 [+3.0, +7.0] points of accuracy (margin 2.0): too high"
    assert result.details == "next: lower it (not shown to repair this pipeline)\n    [recipe]\n    lr = 1e-3"


@pytest.mark.parametrize("decision", DECISIONS)
@pytest.mark.parametrize("fail_on", ["fail", "inconclusive"])
def test_the_decision_of_a_comparison_determines_the_state(decision, fail_on):
    outcome = Outcome(id="a/harm", plugin="a", decision=decision, reason="because", verdict="FAIL", accepted="PASS")
    failing = {"worse", "crashed"} | ({"cannot tell"} if fail_on == "inconclusive" else set())
    state = "failed" if decision in failing else "passed" if decision == "not worse" else "skipped"
    result = result_of(make_finding("FAIL", reason="known"), outcomes=(outcome,), fail_on=fail_on)
    assert (result.state, result.message) == (state, f"{decision}: because")
    assert result.details == "FAIL: known"
    assert result.properties["gate.decision"] == decision


def test_a_known_failure_passes_and_is_marked_as_known():
    outcome = Outcome(id="a/harm", plugin="a", decision="not worse", reason="because", verdict="FAIL", accepted="FAIL")
    result = result_of(make_finding("FAIL", reason="it hurts"), outcomes=(outcome,))
    assert (result.state, result.message) == ("passed", "not worse: known: the accepted run also fails; because")


def test_a_reason_in_the_decision_is_not_repeated():
    outcome = Outcome(id="a/harm", plugin="a", decision="worse", reason="a new FAIL: it hurts", verdict="FAIL")
    result = result_of(
        make_finding("FAIL", reason="it hurts", remedy={"text": "lower it", "verified": True}), outcomes=(outcome,)
    )
    assert (result.message, result.details) == ("worse: a new FAIL: it hurts", "next: lower it (shown to repair this pipeline)")


def test_the_verdict_counts_without_a_decision():
    assert result_of(make_finding("FAIL"), outcomes=()).state == "failed"
    assert result_of(make_finding("PASS"), outcomes=()).state == "passed"


def test_a_metric_is_shown_as_a_level_and_a_harm_with_a_sign():
    estimate = ChangeEstimate(before=0.8, now=0.75, change=0.05, low=0.01, high=0.09, margin=0.02)
    subject = Outcome(id="subject", plugin="", decision="worse", reason="because", estimate=estimate, flipped=0.1)
    result = result_of(name="subject", plugin="", outcomes=(subject,))
    assert result.message == "worse: +5.0 [+1.0, +9.0] points of accuracy (margin 2.0), 80.0 % → 75.0 %: because"
    assert result.properties["gate.flipped"] == "0.1"
    harm = replace_flat(subject, id="a/harm", plugin="a", before=-0.01, now=0.04)
    assert "-1.0 → +4.0" in result_of(make_finding("PASS"), outcomes=(harm,)).message
