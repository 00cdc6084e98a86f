from __future__ import annotations

from dataclasses import replace

import pytest
from test_audits import FINISHED, PROFILE, SUITE

from xferbench.core.interventions import AssignClasses, FitClassBias, ProbeHead, RecalibrateBatchNorm
from xferbench.core.pipeline import replace_serving
from xferbench.core.reason import Code
from xferbench.plugins import batchnorm_drift, class_order, linear_probe
from xferbench.report import messages
from xferbench.study import findings, followup
from xferbench.study.draft import Draft
from xferbench.study.study import Study
from xferbench.testing import fake_lab

AUDITS = (class_order.audit, batchnorm_drift.audit, linear_probe.audit)
ORDER, STATISTICS, PROBE = AssignClasses(), RecalibrateBatchNorm(), ProbeHead()


def audit_lab(scores):
    """``scores`` maps edits to the accuracy of a network that has all of them; the first match counts."""
    return fake_lab.fake_lab(
        lambda trial: next((value for edits, value in scores.items() if {*edits} <= {*trial.model.edits}), 0.3),
        {reference: {name: 0.0} for audit in AUDITS for name, reference in audit.measures.items()},
    )


def replay_audits(scores):
    study = Study(suite=SUITE, profile=PROFILE, plugins=AUDITS, subject=FINISHED, context=fake_lab.CONTEXT)
    lab = audit_lab(scores)
    step, records = fake_lab.replay_study(study, lab)
    drafts = findings.build_findings(study.suite, step, records)
    followup_by_plugin = followup.followup_study(study, step, records)
    if followup_by_plugin is None:
        return None, messages.write_findings(drafts)
    followup_step, _ = fake_lab.replay_study(followup_by_plugin[1], lab, records)
    repaired = followup.Followup(by=followup_by_plugin[0], study=followup_by_plugin[1], step=followup_step)
    return followup_by_plugin[0], {
        finding.id: finding for finding in messages.write_findings(followup.add_followup(drafts, repaired))
    }


SCORES_BY_REASON = {
    "after the repair of audit/class-order, this failure is gone": {
        (ORDER, STATISTICS): 0.9,
        (ORDER,): 0.9,
        (STATISTICS,): 0.5,
        (PROBE,): 0.5,
    },
    "after the repair of audit/class-order, this failure remains": {
        (ORDER, STATISTICS): 0.97,
        (ORDER,): 0.8,
        (STATISTICS,): 0.5,
        (PROBE,): 0.9,
    },
}


@pytest.mark.parametrize("reason", SCORES_BY_REASON)
def test_a_failure_is_judged_again_after_the_largest_is_repaired(reason):
    repair, by_id = replay_audits(SCORES_BY_REASON[reason])
    assert repair == "audit/class-order"
    assert reason in by_id["batchnorm-drift/harm/initial"].reason
    assert reason in by_id["audit/linear-probe/permuted"].reason
    assert "once" not in by_id["audit/class-order/rotated"].reason


def test_a_symptom_names_the_plugin_whose_repair_removes_it():
    gone, remains = (replay_audits(scores)[1] for scores in SCORES_BY_REASON.values())
    assert gone["batchnorm-drift/harm/initial"].symptom_of == "audit/class-order"
    assert gone["audit/class-order/rotated"].symptom_of == ""
    assert remains["batchnorm-drift/harm/initial"].symptom_of == ""


def test_after_a_repair_of_the_form_the_training_has_the_repaired_form_as_well():
    wrong = FINISHED.serving.preprocessing
    right = replace(wrong, channels="bgr")
    repaired = replace_serving(FINISHED, preprocessing=right)
    assert followup._train_on_served_form(FINISHED, repaired).data.train_preprocessing == right
    assert followup._train_on_served_form(FINISHED, FINISHED) == FINISHED


def test_a_probe_is_no_repair_however_accurate_it_is():
    repair, _ = replay_audits({(PROBE,): 0.95, (STATISTICS,): 0.5, (ORDER,): 0.3})
    assert repair == "batchnorm-drift"


def test_the_repair_that_restores_most_is_made_whatever_harm_its_check_measures():
    (contrast,) = class_order.audit.contrasts
    fitted = replace(contrast, weights={("cured", "bias-fitted"): 1.0, ("subject", "bias-fitted"): -1.0})
    audits = (replace(class_order.audit, contrasts=(fitted,)), replace(batchnorm_drift.audit, measures={}))
    study = Study(suite=SUITE, profile=PROFILE, plugins=audits, subject=FINISHED, context=fake_lab.CONTEXT)

    def accuracy(trial):
        if ORDER in trial.model.edits:
            return 0.7 if FitClassBias() in trial.model.edits else 0.9
        return 0.8 if STATISTICS in trial.model.edits else 0.4

    step, records = fake_lab.replay_study(study, fake_lab.fake_lab(accuracy))
    harms = {name: decision.harm.estimate.harm for name, decision in step.decisions.items()}
    assert harms["audit/class-order/harm"] < harms["batchnorm-drift/harm"]
    assert followup.followup_study(study, step, records)[0] == "audit/class-order"


def test_a_single_failure_has_no_followup():
    assert replay_audits({(ORDER,): 0.9})[0] is None


def test_a_followup_changes_no_verdict():
    scores = SCORES_BY_REASON["after the repair of audit/class-order, this failure is gone"]
    _, by_id = replay_audits(scores)
    verdicts = {finding.id: finding.verdict for finding in by_id.values()}
    assert verdicts["batchnorm-drift/harm/initial"] == "FAIL"


def test_findings_stay_unchanged_without_a_followup():
    drafts = (
        Draft(
            finding=fake_lab.run_study(
                fake_lab.make_study(replace(class_order.audit, explain=None)), fake_lab.fake_lab()
            ).findings[0],
            reasons=(),
        ),
    )
    assert followup.add_followup(drafts, None) == drafts


@pytest.mark.parametrize(("scores", "notes"), [({(ORDER,): 0.9}, 0), ({(PROBE,): 0.9}, 1)])
def test_a_network_that_a_repair_makes_better_did_learn_something(scores, notes):
    from xferbench.runner import build_run, execute

    study = Study(suite=SUITE, profile=PROFILE, plugins=AUDITS, subject=FINISHED, context=fake_lab.CONTEXT)
    step, records = fake_lab.replay_study(study, audit_lab(scores))
    executed = execute.StudyResult(study=study, step=step, records=records, trials_run=0, fits_run=0, workers=1, seconds=0.0)
    assert any(decision.verdict == "FAIL" for decision in step.decisions.values())
    codes = [reason.code for reason in build_run._notes(executed)]
    assert codes.count(Code.SUBJECT_LEARNT_NOTHING) == notes


def test_the_cost_includes_the_trials_of_the_followup():
    from xferbench.runner import build_run, execute

    study = Study(suite=SUITE, profile=PROFILE, plugins=AUDITS, subject=FINISHED, context=fake_lab.CONTEXT)
    scores = {(ORDER, STATISTICS): 0.9, (ORDER,): 0.9, (STATISTICS,): 0.5, (PROBE,): 0.5}
    lab = audit_lab(scores)
    step, records = fake_lab.replay_study(study, lab)
    repair, followup_plan = followup.followup_study(study, step, records)
    followup_step, all_records = fake_lab.replay_study(followup_plan, lab, records)
    executed = execute.StudyResult(
        study=study,
        step=step,
        records=all_records,
        trials_run=len(all_records),
        fits_run=0,
        workers=1,
        seconds=0.0,
        followup=followup.Followup(by=repair, study=followup_plan, step=followup_step),
    )
    trial_counts = build_run.cost_summary(executed)["trials"]
    assert len(all_records) > len(records)
    assert (trial_counts["unique"], trial_counts["reused"]) == (len(all_records), 0)
