from __future__ import annotations

from dataclasses import replace

import pytest
from test_audits import FACTS, FINISHED, SUITE

from xferbench.core.interventions import AssignClasses, ProbeHead, RecalibrateBatchNorm
from xferbench.plugins import batchnorm_drift, class_order, linear_probe
from xferbench.report import messages
from xferbench.study import findings, followup
from xferbench.study.draft import Draft
from xferbench.study.study import Study
from xferbench.testing import fake_lab

AUDITS = (class_order.audit, batchnorm_drift.audit, linear_probe.audit)
ORDER, STATISTICS, PROBE = AssignClasses(), RecalibrateBatchNorm(), ProbeHead()


def carried_out(scores):
    """Audits of a network whose accuracy is that of the first words that are all among its edits."""
    study = Study(suite=SUITE, profile=FACTS, plugins=AUDITS, subject=FINISHED, context=fake_lab.CONTEXT)
    lab = fake_lab.fake_lab(
        lambda trial: next((value for words, value in scores.items() if {*words} <= {*trial.model.edits}), 0.3),
        {reference: {name: 0.0} for audit in AUDITS for name, reference in audit.measures.items()},
    )
    step, answers = fake_lab.replay_study(study, lab)
    found = findings.build_findings(study.suite, step, answers)
    asked = followup.followup_study(study, step)
    if asked is None:
        return None, messages.write_findings(found)
    again, _ = fake_lab.replay_study(asked[1], lab, answers)
    left = followup.Followup(by=asked[0], study=asked[1], step=again)
    return asked[0], {one.id: one for one in messages.write_findings(followup.add_followup(found, left))}


SAID = {
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


@pytest.mark.parametrize("said", SAID)
def test_a_failure_is_judged_again_once_the_largest_is_mended(said):
    by, found = carried_out(SAID[said])
    assert by == "audit/class-order"
    assert said in found["batchnorm-drift/harm/initial"].reason
    assert said in found["audit/linear-probe/permuted"].reason
    assert "once" not in found["audit/class-order/rotated"].reason


def test_a_probe_mends_no_network_however_much_better_it_is():
    by, _ = carried_out({(PROBE,): 0.95, (STATISTICS,): 0.5, (ORDER,): 0.3})
    assert by == "batchnorm-drift"


def test_one_failure_alone_has_no_symptoms():
    assert carried_out({(ORDER,): 0.9})[0] is None


def test_verdicts_are_not_touched():
    scores = SAID["after the repair of audit/class-order, this failure is gone"]
    _, told = carried_out(scores)
    verdicts = {one.id: one.verdict for one in told.values()}
    assert verdicts["batchnorm-drift/harm/initial"] == "FAIL"


def test_where_nothing_was_mended_findings_stay():
    drafts = (
        Draft(
            finding=fake_lab.run_study(
                fake_lab.make_study(replace(class_order.audit, explain=None)), fake_lab.fake_lab()
            ).findings[0],
            reasons=(),
        ),
    )
    assert followup.add_followup(drafts, None) == drafts


def test_what_is_asked_of_the_mended_network_is_counted():
    from xferbench.runner import build_run, execute

    study = Study(suite=SUITE, profile=FACTS, plugins=AUDITS, subject=FINISHED, context=fake_lab.CONTEXT)
    scores = {(ORDER, STATISTICS): 0.9, (ORDER,): 0.9, (STATISTICS,): 0.5, (PROBE,): 0.5}
    lab = fake_lab.fake_lab(
        lambda trial: next((value for words, value in scores.items() if {*words} <= {*trial.model.edits}), 0.3),
        {reference: {name: 0.0} for audit in AUDITS for name, reference in audit.measures.items()},
    )
    step, answers = fake_lab.replay_study(study, lab)
    by, left = followup.followup_study(study, step)
    again, known = fake_lab.replay_study(left, lab, answers)
    executed = execute.StudyResult(
        study=study,
        step=step,
        records=known,
        trials_run=len(known),
        fits_run=0,
        workers=1,
        seconds=0.0,
        followup=followup.Followup(by=by, study=left, step=again),
    )
    told = build_run.cost_summary(executed)["trials"]
    assert len(known) > len(answers)
    assert (told["unique"], told["reused"]) == (len(known), 0)
