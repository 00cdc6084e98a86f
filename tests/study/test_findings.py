"""Findings of exact contrasts, of crashes and divergence, and of what a plugin takes on trust."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_schedule import ACCURACIES, DRIFT, SUITE, compute_findings, make_lab, make_study, replay, training_kind

from xferbench.core.interventions import PRETRAINED
from xferbench.core.plugin import Contrast
from xferbench.plugins import batchnorm_drift, catastrophic_forgetting
from xferbench.report import messages
from xferbench.study import findings
from xferbench.testing import fake_lab

NAN = float("nan")
INVARIANT = Contrast(name="drift", kind="exact", weights={("subject", "drift"): 1.0}, meaning="nothing drifts")
EXACT_PLUGIN = replace(DRIFT, contrasts=(*DRIFT.contrasts, INVARIANT))
NO_DRIFT = {"subject": 0.0, "cured": 0.0, "ghost": 0.0, "class-order": 0.0, "momentum": 0.0}


def make_measuring_lab(values, accuracy=ACCURACIES):
    """A lab whose measure has a value for each kind of training; a list holds a value for each seed."""
    lab = make_lab(accuracy)

    def measure(trial):
        record = lab(trial)
        if trial.view.measure == "predictions":
            return record
        value = values[training_kind(trial)]
        return replace(record, scalars={"drift": value[trial.model.base.seed] if isinstance(value, list) else value})

    return measure


def find_invariant(values, plugin=EXACT_PLUGIN, accuracy=ACCURACIES):
    return compute_findings(make_study(plugin), make_measuring_lab(NO_DRIFT | values, accuracy))["batchnorm-drift/drift"]


def test_an_invariant_that_holds_passes_and_the_induced_arm_is_the_control():
    finding = find_invariant({"ghost": 2.0})
    assert (finding.verdict, finding.control.outcome, finding.estimate.exposed, finding.remedy, finding.estimate.seeds) == (
        "PASS",
        "detected",
        False,
        None,
        3,
    )
    assert finding.reason == "holds at all 3 seeds: nothing drifts"
    assert finding.measures == {
        "subject/drift": 0.0,
        "cured/drift": 0.0,
        "induced:ghost-batch/drift": 2.0,
        "induced:class-order/drift": 0.0,
        "induced:stale-statistics/drift": 0.0,
    }
    assert find_invariant({}).control.outcome == "missed"


def test_an_invariant_fails_by_any_deviation_of_a_single_seed():
    for value in (1e-12, -5.0):
        finding = find_invariant({"subject": [0.0, value, 0.0]})
        assert (finding.verdict, finding.estimate.exposed) == ("FAIL", True)
        assert finding.reason == "does not hold at 1 of 3 seeds: nothing drifts"
        assert finding.remedy["verified"] and 'batchnorm = "eval"    # was train' in finding.remedy["patch"]


def test_a_cure_is_not_verified_if_it_breaks_the_invariant_or_is_not_measured():
    for value in (1.0, NAN, [0.0, 0.0, NAN]):
        assert not find_invariant({"subject": 1.0, "cured": value}).remedy["verified"]


def test_a_remedy_without_a_patch_is_advised_if_the_cure_changes_nothing():
    def leave_unchanged(pipeline, _):
        return pipeline

    remedy = find_invariant({"subject": 1.0}, replace(EXACT_PLUGIN, cure=leave_unchanged)).remedy
    assert remedy == {"text": EXACT_PLUGIN.remedy, "patch": [], "verified": False}


@pytest.mark.parametrize("value", [NAN, [0.0, NAN, 0.0], [1.0, NAN, 0.0], float("inf")])
def test_an_unmeasured_invariant_is_an_error_and_never_a_pass(value):
    finding = find_invariant({"subject": value})
    assert (finding.verdict, finding.reason) == ("ERROR", "not measured")


def test_an_unmeasured_induced_failure_is_not_detected():
    assert find_invariant({"ghost": NAN}).control.outcome == "missed"
    assert find_invariant({"ghost": [NAN, 1.0, NAN]}).control.outcome == "detected"


@pytest.mark.parametrize("crashing_kind", ["subject", "cured", "ghost"])
def test_a_crash_of_any_arm_is_an_error_of_an_exact_contrast(crashing_kind):
    crashing_lab = make_lab(ACCURACIES, crash=(crashing_kind,))
    by_id = compute_findings(
        make_study(EXACT_PLUGIN),
        lambda trial: crashing_lab(trial) if training_kind(trial) == crashing_kind else make_measuring_lab(NO_DRIFT)(trial),
    )
    assert by_id["batchnorm-drift/drift"].verdict == "ERROR"
    assert "Boom: on purpose" in by_id["batchnorm-drift/drift"].reason


def test_a_weighted_sum_of_measures_is_broken_if_it_is_not_zero():
    balanced = replace(INVARIANT, weights={("cured", "drift"): 1.0, ("subject", "drift"): -1.0})
    plugin = replace(batchnorm_drift.plugin, contrasts=(balanced,))
    assert find_invariant({"subject": 3.0, "cured": 3.0}, plugin).verdict == "PASS"
    assert find_invariant({"subject": 3.0, "cured": 2.0}, plugin).verdict == "FAIL"


def test_an_exact_contrast_requests_every_arm_at_the_first_look_only():
    contrast = replace(INVARIANT, weights={("subject", "drift"): 1.0})
    plugin = replace(batchnorm_drift.plugin, contrasts=(contrast,), measures=batchnorm_drift.plugin.measures)
    step, records, _ = replay(make_study(plugin), make_measuring_lab(NO_DRIFT))
    requested = {(request.arm, request.view, request.seed) for request in step.requests if request.view == "drift"}
    arms = {"subject", "cured", "induced:ghost-batch", "induced:class-order", "induced:stale-statistics"}
    assert requested == {(arm, "drift", seed) for arm in arms for seed in range(3)}
    assert [finding.verdict for finding in messages.write_findings(findings.build_findings(SUITE, step, records))] == ["PASS"]


def test_an_exact_contrast_adds_no_hypothesis_to_the_correction():
    without_exact, with_exact = (
        compute_findings(make_study(plugin), make_measuring_lab(NO_DRIFT, ACCURACIES | {"subject": 0.755}))[
            "batchnorm-drift/harm/ghost-batch"
        ]
        for plugin in (batchnorm_drift.plugin, EXACT_PLUGIN)
    )
    assert without_exact.estimate.p_fail == with_exact.estimate.p_fail


def unrecorded_preprocessing(pipeline, profile):
    return "nobody wrote it down"


@pytest.mark.parametrize(("subject", "verdict"), [(0.8, "INCONCLUSIVE"), (0.6, "FAIL")])
def test_a_finding_on_trust_never_passes_but_may_fail(subject, verdict):
    plugin = replace(batchnorm_drift.plugin, trust=unrecorded_preprocessing)
    accuracy = ACCURACIES | {"subject": subject}
    assert compute_findings(make_study(batchnorm_drift.plugin), make_lab(accuracy))[
        "batchnorm-drift/harm/ghost-batch"
    ].verdict in {"PASS", "FAIL"}
    finding = compute_findings(make_study(plugin), make_lab(accuracy))["batchnorm-drift/harm/ghost-batch"]
    assert finding.verdict == verdict
    assert (verdict == "FAIL") != finding.reason.startswith("taken on trust: nobody wrote it down")


def test_an_invariant_on_trust_never_passes_but_may_fail():
    plugin = replace(EXACT_PLUGIN, trust=unrecorded_preprocessing)
    finding = find_invariant({}, plugin)
    assert (finding.verdict, finding.reason) == ("INCONCLUSIVE", "taken on trust: nobody wrote it down")
    assert find_invariant({"subject": 1.0}, plugin).verdict == "FAIL"


def test_a_crash_of_the_trust_function_is_an_error():
    def crash(pipeline, profile):
        raise KeyError("on purpose")

    by_id = compute_findings(make_study(replace(batchnorm_drift.plugin, trust=crash)), make_lab(ACCURACIES))
    assert {finding.verdict for finding in by_id.values()} == {"ERROR"}


def test_a_diverged_subject_leaves_an_invariant_inconclusive():
    lab = make_measuring_lab(NO_DRIFT | {"subject": [0.0, NAN, 0.0]})

    def diverge(trial):
        record = lab(trial)
        is_diverged = trial.view.measure != "predictions" and training_kind(trial) == "subject" and trial.model.base.seed == 1
        return replace(record, scalars=record.scalars | {"diverged": 1.0}) if is_diverged else record

    finding = compute_findings(make_study(EXACT_PLUGIN), diverge)["batchnorm-drift/drift"]
    assert (finding.verdict, finding.reason) == ("INCONCLUSIVE", "the subject diverged at 1 of 3 seeds")


@pytest.mark.parametrize("plugin", [batchnorm_drift.plugin, EXACT_PLUGIN], ids=["judged", "exact too"])
def test_a_crash_of_an_extra_arm_is_reported_and_changes_no_verdict(plugin):
    plugin = replace(
        plugin, extra_arms=lambda pipeline, _: {"shorter": replace(pipeline, data=replace(pipeline.data, train_size=7))}
    )
    lab = make_measuring_lab(NO_DRIFT)

    def crash_beside(trial):
        is_short = trial.model.base.data.train_size == 7
        return replace(lab(trial), predictions=None, error="Boom: on purpose") if is_short else lab(trial)

    without_crash, with_crash = (compute_findings(make_study(plugin), lab_function) for lab_function in (lab, crash_beside))
    with_verdict = [name for name, finding in without_crash.items() if finding.verdict != "INFO"]
    assert {name: with_crash[name].verdict for name in with_verdict} == {
        name: without_crash[name].verdict for name in with_verdict
    }
    assert all("beside:shorter (seed 0): Boom: on purpose" in with_crash[name].reason for name in with_verdict)


def find_forgetting(before, after):
    """The finding of catastrophic forgetting for two accuracies on the source; the accuracy on the target is high."""

    def accuracy(trial):
        on_source = trial.view.domain is not None
        return (after if trial.model.base.procedure.phases else before) if on_source else 0.8

    scenario = next(
        scenario
        for scenario in fake_lab.scenarios()
        if scenario.profile.data.source and scenario.pipeline.recipe.init == PRETRAINED
    )
    study = fake_lab.make_study(catastrophic_forgetting.plugin, pipeline=scenario.pipeline, facts=scenario.profile)
    step, records = fake_lab.replay_study(study, fake_lab.fake_lab(accuracy))
    return messages.write_findings(findings.build_findings(study.suite, step, records))[0]


def test_a_source_that_the_network_never_learned_leaves_the_finding_inconclusive():
    assert find_forgetting(0.9, 0.9).verdict == "PASS"
    assert find_forgetting(0.9, 0.4).verdict == "FAIL"
    finding = find_forgetting(0.1, 0.1)
    assert finding.verdict == "INCONCLUSIVE"
    assert "no better than the most frequent class" in finding.reason
