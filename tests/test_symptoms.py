from __future__ import annotations

from dataclasses import replace

import pytest
from test_audits import FACTS, FINISHED, SUITE

from xferbench import fake, findings, plan, symptoms
from xferbench.plugins import batchnorm_drift, class_order, linear_probe
from xferbench.report import messages
from xferbench.study.draft import Draft

AUDITS = (class_order.audit, batchnorm_drift.audit, linear_probe.audit)
ORDER, STATISTICS, PROBE = "classes:assigned@1", "batchnorm:recalibrated@2", "head:probe"


def carried_out(scores):
    """Audits of a network whose accuracy is that of the first words that are all among its edits."""
    study = plan.Study(suite=SUITE, facts=FACTS, plugins=AUDITS, subject=FINISHED, place=fake.PLACE)
    lab = fake.lab(
        lambda trial: next((value for words, value in scores.items() if {*words} <= {*trial.model.edits}), 0.3),
        {reference: {name: 0.0} for audit in AUDITS for name, reference in audit.measures.items()},
    )
    step, answers = fake.replay(study, lab)
    found = findings.findings(study.suite, step, answers)
    asked = symptoms.mended(study, step)
    if asked is None:
        return None, messages.write_findings(found)
    again, _ = fake.replay(asked[1], lab, answers)
    left = symptoms.Mended(by=asked[0], study=asked[1], step=again)
    return asked[0], {one.id: one for one in messages.write_findings(symptoms.add_followup(found, left))}


SAID = {
    "is gone once audit/class-order is mended": {(ORDER, STATISTICS): 0.9, (ORDER,): 0.9, (STATISTICS,): 0.5, (PROBE,): 0.5},
    "stays once audit/class-order is mended": {(ORDER, STATISTICS): 0.97, (ORDER,): 0.8, (STATISTICS,): 0.5, (PROBE,): 0.9},
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
    scores = SAID["is gone once audit/class-order is mended"]
    _, told = carried_out(scores)
    verdicts = {one.id: one.verdict for one in told.values()}
    assert verdicts["batchnorm-drift/harm/initial"] == "FAIL"


def test_where_nothing_was_mended_findings_stay():
    drafts = (Draft(finding=fake.run(fake.study(replace(class_order.audit, told=None)), fake.lab()).findings[0], reasons=()),)
    assert symptoms.add_followup(drafts, None) == drafts


def test_what_is_asked_of_the_mended_network_is_counted():
    from xferbench import execute, finish

    study = plan.Study(suite=SUITE, facts=FACTS, plugins=AUDITS, subject=FINISHED, place=fake.PLACE)
    scores = {(ORDER, STATISTICS): 0.9, (ORDER,): 0.9, (STATISTICS,): 0.5, (PROBE,): 0.5}
    lab = fake.lab(
        lambda trial: next((value for words, value in scores.items() if {*words} <= {*trial.model.edits}), 0.3),
        {reference: {name: 0.0} for audit in AUDITS for name, reference in audit.measures.items()},
    )
    step, answers = fake.replay(study, lab)
    by, left = symptoms.mended(study, step)
    again, known = fake.replay(left, lab, answers)
    executed = execute.Executed(
        study=study,
        step=step,
        answers=known,
        trials_run=len(known),
        fits_run=0,
        workers=1,
        seconds=0.0,
        mended=symptoms.Mended(by=by, study=left, step=again),
    )
    told = finish.cost(executed)["trials"]
    assert len(known) > len(answers)
    assert (told["unique"], told["reused"]) == (len(known), 0)
