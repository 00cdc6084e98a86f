from __future__ import annotations

from dataclasses import replace

import pytest
from factory import make_run
from hypothesis import given
from hypothesis import strategies as st
from test_audits import run as audited

from xferbench.analysis import exit_code
from xferbench.core.comparison import DECISIONS, Comparison, Outcome
from xferbench.core.run import VERDICTS, Finding, contrast_id
from xferbench.report import test_results
from xferbench.runner import discovery
from xferbench.testing import fake_lab

RUN = make_run()


def make(verdict="PASS", plugin="a", contrast="harm", variant="", **more):
    id_ = f"{plugin}/{contrast}/{variant}".rstrip("/")
    return Finding(id=id_, plugin=plugin, contrast=contrast, verdict=verdict, variant=variant, **more)


def told(*findings, name="a/harm", plugin="a", fail_on="fail", outcomes=None):
    compared = None if outcomes is None else Comparison(outcomes=outcomes)
    return test_results.test_outcome(replace(RUN, findings=findings, gate=compared), name, plugin, fail_on=fail_on)


def asked(plugin):
    """A plugin's findings, from a laboratory that trains nothing."""
    if plugin in discovery.load_plugins(["all"], "audit"):
        return audited(plugin).findings
    plain = replace(plugin, told=None, derived=None, picture=None)  # what it reads out of scalars needs real ones
    measures = {reference: {name: 0.0} for name, reference in plugin.measures.items()}
    return fake_lab.run_study(fake_lab.make_study(plain), fake_lab.fake_lab(measures=measures)).findings


@pytest.mark.parametrize("kind", ["experiment", "audit"])
def test_the_tests_are_named_as_the_findings_are(kind):
    whole = 0
    for plugin in discovery.load_plugins(["all"], kind):
        names, found = test_results.test_names([plugin]), asked(plugin)
        judged = {contrast_id(one.plugin, one.contrast) for one in found if one.verdict != "INFO"}
        if not plugin.has_verdict:
            assert not names, "a measurement is no test"
            continue
        assert set(names.values()) == {plugin.id}
        assert judged <= set(names)
        assert judged == set(names) or {one.verdict for one in found} <= {"SKIPPED", "ERROR"}
        whole += judged == set(names)
    assert whole > 5


def test_the_subject_is_a_test_of_a_comparison_only():
    assert list(test_results.test_names(discovery.load_plugins(["head-shock"]), compared_too=True)) == [
        "subject",
        "head-shock/harm",
    ]


@pytest.mark.parametrize("verdict", set(VERDICTS) - {"INFO"})
@pytest.mark.parametrize("fail_on", ["fail", "inconclusive"])
def test_a_test_fails_where_the_command_does(verdict, fail_on):
    finding = make(verdict, reason="so")
    code = exit_code.exit_code([finding], fail_on=fail_on)
    assert (told(finding, fail_on=fail_on).state == "failed") == (
        code in {exit_code.FAILED, exit_code.CRASHED, exit_code.INCONCLUSIVE}
    )


@given(st.lists(st.sampled_from(["FAIL", "PASS", "INCONCLUSIVE"]), min_size=1))
def test_of_several_variants_the_worst_counts(verdicts):
    worst = next(one for one in ("FAIL", "INCONCLUSIVE", "PASS") if one in verdicts)
    found = told(*(make(verdict, variant=f"v{number}") for number, verdict in enumerate(verdicts)))
    assert found.said.startswith(worst)
    assert found.figures["verdict"] == worst


def test_what_is_measured_beside_it_counts_for_nothing():
    assert told(make("PASS"), make("INFO", reason="x")).state == "passed"


def test_a_plugin_that_was_not_asked_stands_for_all_its_contrasts():
    found = told(make("SKIPPED", reason="no [source]"), name="a/other")
    assert (found.state, found.said) == ("skipped", "SKIPPED: no [source]")
    assert told(make("ERROR", reason="broke"), name="a/other").said == "ERROR: crashed: broke"
    assert told(make("FAIL"), name="a/other").state == "failed"


def test_what_the_results_do_not_have_is_no_pass():
    assert told(make("PASS", plugin="b")) == test_results.TestOutcome(state="failed", said=test_results.NOT_IN_RESULTS)
    assert told(outcomes=()).state == "failed"


def test_a_failure_tells_its_number_its_reason_and_what_to_do():
    remedy = {"text": "lower it", "patch": ["[recipe]", "lr = 1e-3"], "verified": False}
    found = told(make("FAIL", harm=0.05, low=0.03, high=0.07, margin=0.02, reason="too\nhigh", remedy=remedy))
    assert found.said == "FAIL: +5.0 [+3.0, +7.0] points of accuracy (margin 2.0): too high"
    assert found.more == "next: lower it (not shown to mend it here)\n    [recipe]\n    lr = 1e-3"


@pytest.mark.parametrize("decision", DECISIONS)
@pytest.mark.parametrize("fail_on", ["fail", "inconclusive"])
def test_beside_an_accepted_run_its_decision_is_the_state(decision, fail_on):
    outcome = Outcome(id="a/harm", plugin="a", decision=decision, reason="so", verdict="FAIL", accepted="PASS")
    failing = {"worse", "crashed"} | ({"cannot tell"} if fail_on == "inconclusive" else set())
    state = "failed" if decision in failing else "passed" if decision == "not worse" else "skipped"
    found = told(make("FAIL", reason="known"), outcomes=(outcome,), fail_on=fail_on)
    assert (found.state, found.said) == (state, f"{decision}: so")
    assert found.more == "FAIL: known"
    assert found.figures["gate.decision"] == decision


def test_a_known_failure_passes_and_is_called_known():
    outcome = Outcome(id="a/harm", plugin="a", decision="not worse", reason="so", verdict="FAIL", accepted="FAIL")
    found = told(make("FAIL", reason="it hurts"), outcomes=(outcome,))
    assert (found.state, found.said) == ("passed", "not worse: known: the accepted run fails it too; so")


def test_a_reason_that_the_comparison_has_given_is_not_given_again():
    outcome = Outcome(id="a/harm", plugin="a", decision="worse", reason="a new FAIL: it hurts", verdict="FAIL")
    found = told(make("FAIL", reason="it hurts", remedy={"text": "lower it", "verified": True}), outcomes=(outcome,))
    assert (found.said, found.more) == ("worse: a new FAIL: it hurts", "next: lower it (shown to mend it here)")


def test_what_was_not_compared_counts_by_its_own_verdict():
    assert told(make("FAIL"), outcomes=()).state == "failed"
    assert told(make("PASS"), outcomes=()).state == "passed"


def test_a_metric_that_moved_is_told_as_it_stands_and_a_harm_with_its_sign():
    figures = {"before": 0.8, "now": 0.75, "change": 0.05, "low": 0.01, "high": 0.09, "margin": 0.02, "flipped": 0.1}
    subject = Outcome(id="subject", plugin="", decision="worse", reason="so", **figures)
    found = told(name="subject", plugin="", outcomes=(subject,))
    assert found.said == "worse: +5.0 [+1.0, +9.0] points of accuracy (margin 2.0), 80.0 % → 75.0 %: so"
    assert found.figures["gate.flipped"] == "0.1"
    harm = replace(subject, id="a/harm", plugin="a", before=-0.01, now=0.04)
    assert "-1.0 → +4.0" in told(make("PASS"), outcomes=(harm,)).said
