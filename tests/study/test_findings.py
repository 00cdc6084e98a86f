"""From judgements to findings: invariants that hold, are broken or could not be measured, and what is taken on trust."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_schedule import SUITE, USUAL, carried_out, found, kind, lab, study

from xferbench.core.interventions import PRETRAINED
from xferbench.core.plugin import Contrast
from xferbench.plugins import batchnorm_drift, catastrophic_forgetting
from xferbench.report import messages
from xferbench.study import findings
from xferbench.testing import fake_lab

NAN = float("nan")
INVARIANT = Contrast(name="drift", kind="exact", weights={("subject", "drift"): 1.0}, meaning="nothing drifts")
EXACT = replace(batchnorm_drift.plugin, contrasts=(*batchnorm_drift.plugin.contrasts, INVARIANT))
ALL = {"subject": 0.0, "cured": 0.0, "ghost": 0.0, "class-order": 0.0, "momentum": 0.0}


def measured(values, accuracy=USUAL):
    """A lab whose measure has a value for each kind of fit, or a list of them by seed."""
    usual = lab(accuracy)

    def answer(trial):
        record = usual(trial)
        if trial.view.measure == "predictions":
            return record
        value = values[kind(trial)]
        return replace(record, scalars={"drift": value[trial.model.base.seed] if isinstance(value, list) else value})

    return answer


def invariant(values, plugin=EXACT, accuracy=USUAL):
    return found(study(plugin), measured(ALL | values, accuracy))["batchnorm-drift/drift"]


def test_an_invariant_that_holds_passes_and_what_is_induced_shows_that_it_could_be_broken():
    one = invariant({"ghost": 2.0})
    assert (one.verdict, one.control, one.exposed, one.remedy, one.seeds) == ("PASS", "detected", False, None, 3)
    assert one.reason == "holds at all 3 seeds: nothing drifts"
    assert one.measures == {
        "subject/drift": 0.0,
        "cured/drift": 0.0,
        "induced:ghost-batch/drift": 2.0,
        "induced:class-order/drift": 0.0,
        "induced:stale-statistics/drift": 0.0,
    }
    assert invariant({}).control == "missed"


def test_an_invariant_is_broken_by_one_seed_however_little_and_in_either_direction():
    for value in (1e-12, -5.0):
        one = invariant({"subject": [0.0, value, 0.0]})
        assert (one.verdict, one.exposed) == ("FAIL", True)
        assert one.reason == "broken at 1 of 3 seeds: nothing drifts"
        assert one.remedy["verified"] and 'batchnorm = "eval"    # was train' in one.remedy["patch"]


def test_a_cure_that_breaks_it_too_or_could_not_be_measured_is_not_verified():
    for value in (1.0, NAN, [0.0, 0.0, NAN]):
        assert not invariant({"subject": 1.0, "cured": value}).remedy["verified"]


def test_where_the_cure_changes_nothing_the_next_action_stands_without_a_patch():
    def same(pipeline, _):
        return pipeline

    remedy = invariant({"subject": 1.0}, replace(EXACT, cure=same)).remedy
    assert remedy == {"text": EXACT.remedy, "patch": [], "verified": False}


@pytest.mark.parametrize("value", [NAN, [0.0, NAN, 0.0], [1.0, NAN, 0.0], float("inf")])
def test_what_could_not_be_measured_is_an_error_and_never_a_pass(value):
    one = invariant({"subject": value})
    assert (one.verdict, one.reason) == ("ERROR", "not measured")


def test_an_induced_failure_that_could_not_be_measured_was_not_detected():
    assert invariant({"ghost": NAN}).control == "missed"
    assert invariant({"ghost": [NAN, 1.0, NAN]}).control == "detected"


@pytest.mark.parametrize("word", ["subject", "cured", "ghost"])
def test_a_crash_of_any_arm_is_an_error(word):
    crash = lab(USUAL, crash=(word,))
    one = found(study(EXACT), lambda trial: crash(trial) if kind(trial) == word else measured(ALL)(trial))
    assert one["batchnorm-drift/drift"].verdict == "ERROR"
    assert "Boom: on purpose" in one["batchnorm-drift/drift"].reason


def test_a_sum_of_several_measures_is_broken_where_it_is_not_zero():
    balanced = replace(INVARIANT, weights={("cured", "drift"): 1.0, ("subject", "drift"): -1.0})
    plugin = replace(batchnorm_drift.plugin, contrasts=(balanced,))
    assert invariant({"subject": 3.0, "cured": 3.0}, plugin).verdict == "PASS"
    assert invariant({"subject": 3.0, "cured": 2.0}, plugin).verdict == "FAIL"


def test_invariants_are_asked_at_the_first_look_alone_of_all_arms():
    contrast = replace(INVARIANT, weights={("subject", "drift"): 1.0})
    plugin = replace(batchnorm_drift.plugin, contrasts=(contrast,), measures=batchnorm_drift.plugin.measures)
    step, answers, _ = carried_out(study(plugin), measured(ALL))
    asked = {(one.arm, one.view, one.seed) for one in step.requests if one.view == "drift"}
    arms = {"subject", "cured", "induced:ghost-batch", "induced:class-order", "induced:stale-statistics"}
    assert asked == {(arm, "drift", seed) for arm in arms for seed in range(3)}
    assert [one.verdict for one in messages.write_findings(findings.build_findings(SUITE, step, answers))] == ["PASS"]


def test_invariants_are_no_hypotheses_and_cost_no_correction():
    alone, among = (
        found(study(plugin), measured(ALL, USUAL | {"subject": 0.755}))["batchnorm-drift/harm/ghost-batch"]
        for plugin in (batchnorm_drift.plugin, EXACT)
    )
    assert alone.p_fail == among.p_fail


def trusting(pipeline, facts):
    return "nobody wrote it down"


@pytest.mark.parametrize(("subject", "verdict"), [(0.8, "INCONCLUSIVE"), (0.6, "FAIL")])
def test_what_is_taken_on_trust_is_never_a_pass_but_may_fail(subject, verdict):
    plugin = replace(batchnorm_drift.plugin, trust=trusting)
    accuracy = USUAL | {"subject": subject}
    assert found(study(batchnorm_drift.plugin), lab(accuracy))["batchnorm-drift/harm/ghost-batch"].verdict in {"PASS", "FAIL"}
    one = found(study(plugin), lab(accuracy))["batchnorm-drift/harm/ghost-batch"]
    assert one.verdict == verdict
    assert (verdict == "FAIL") != one.reason.startswith("taken on trust: nobody wrote it down")


def test_an_invariant_is_taken_on_trust_too():
    plugin = replace(EXACT, trust=trusting)
    one = invariant({}, plugin)
    assert (one.verdict, one.reason) == ("INCONCLUSIVE", "taken on trust: nobody wrote it down")
    assert invariant({"subject": 1.0}, plugin).verdict == "FAIL"


def test_a_trust_that_crashes_is_an_error():
    def broken(pipeline, facts):
        raise KeyError("on purpose")

    told = found(study(replace(batchnorm_drift.plugin, trust=broken)), lab(USUAL))
    assert {one.verdict for one in told.values()} == {"ERROR"}


def test_a_subject_that_diverged_leaves_an_invariant_open_and_is_no_crash():
    usual = measured(ALL | {"subject": [0.0, NAN, 0.0]})

    def answer(trial):
        record = usual(trial)
        dead = trial.view.measure != "predictions" and kind(trial) == "subject" and trial.model.base.seed == 1
        return replace(record, scalars=record.scalars | {"diverged": 1.0}) if dead else record

    one = found(study(EXACT), answer)["batchnorm-drift/drift"]
    assert (one.verdict, one.reason) == ("INCONCLUSIVE", "the subject diverged at 1 of 3 seeds")


@pytest.mark.parametrize("plugin", [batchnorm_drift.plugin, EXACT], ids=["judged", "exact too"])
def test_a_crash_of_what_is_only_measured_beside_is_told_and_changes_no_verdict(plugin):
    plugin = replace(
        plugin, extra_arms=lambda pipeline, _: {"shorter": replace(pipeline, data=replace(pipeline.data, train_size=7))}
    )
    usual = measured(ALL)

    def answer(trial):
        few = trial.model.base.train_size == 7
        return replace(usual(trial), predictions=None, error="Boom: on purpose") if few else usual(trial)

    whole, part = (found(study(plugin), one) for one in (usual, answer))
    judged = [name for name, one in whole.items() if one.verdict != "INFO"]
    assert {name: part[name].verdict for name in judged} == {name: whole[name].verdict for name in judged}
    assert all("beside:shorter (seed 0): Boom: on purpose" in part[name].reason for name in judged)


def forgotten(before, after):
    """What is said of forgetting where the source's accuracy was and is so; on the target everything is fine."""

    def accuracy(trial):
        beside = trial.view.domain is not None
        return (after if trial.model.base.phases else before) if beside else 0.8

    world = next(one for one in fake_lab.scenarios() if one.profile.data.source and one.pipeline.recipe.init == PRETRAINED)
    asked = fake_lab.make_study(catastrophic_forgetting.plugin, pipeline=world.pipeline, facts=world.profile)
    step, answers = fake_lab.replay_study(asked, fake_lab.fake_lab(accuracy))
    return messages.write_findings(findings.build_findings(asked.suite, step, answers))[0]


def test_a_source_that_nobody_knew_before_cannot_have_been_kept():
    assert forgotten(0.9, 0.9).verdict == "PASS"
    assert forgotten(0.9, 0.4).verdict == "FAIL"
    one = forgotten(0.1, 0.1)
    assert one.verdict == "INCONCLUSIVE"
    assert "no better than the most frequent class" in one.reason
