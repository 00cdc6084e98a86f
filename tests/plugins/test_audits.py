from __future__ import annotations

from dataclasses import replace
from inspect import getmodule

import pytest

from xferbench.core.interventions import RANDOM, RecalibrateBatchNorm, RestoreBatchNorm
from xferbench.core.pipeline import Checkpoint, Pipeline, Recipe, Selection, Spectrogram, WeightsFile
from xferbench.core.run import finding_from_json, finding_to_json
from xferbench.core.sections import replace_flat
from xferbench.plugins import batchnorm_drift, class_order, collapse, linear_probe, preprocessing_mismatch, reload
from xferbench.runner import discovery
from xferbench.study import trials
from xferbench.study.arms import plugin_arms, scratch_grid
from xferbench.study.study import Study
from xferbench.testing import fake_lab
from xferbench.testing.conformance import PAGE_HEADINGS

AUDITS = discovery.load_plugins(["all"], "audit")
FINISHED = replace(
    fake_lab.PIPELINE,
    recipe=Recipe(),
    checkpoint=Checkpoint(after=WeightsFile(digest="after"), before=WeightsFile(digest="before")),
    evaluation_split="confirm",
)
FACTS = replace(fake_lab.PROFILE, model=replace(fake_lab.PROFILE.model, outputs=2))
SUITE = replace(
    fake_lab.SUITE,
    rules=replace(fake_lab.SUITE.rules, looks=(1,), tuning_seeds=1),
    checkpoint=replace(fake_lab.SUITE.checkpoint, after="after.pth", before="before.pth"),
    recipe=None,
)
ALONE = replace(FINISHED, checkpoint=Checkpoint(after=WeightsFile(digest="after")))


def study(audit, pipeline=FINISHED, facts=FACTS, **changes):
    return Study(
        suite=replace_flat(SUITE, plugins=(audit.id,), **changes),
        profile=facts,
        plugins=(audit,),
        subject=pipeline,
        context=fake_lab.CONTEXT,
    )


def run(audit, accuracy=lambda trial: 0.8, measured=0.0, examples=2000, **changes):
    measures = {reference: {name: measured} for name, reference in audit.measures.items()}
    plain = replace(audit, explain=None, plot=None)  # what a audit says of its scalars needs real ones
    return fake_lab.run_study(study(plain, **changes), fake_lab.fake_lab(accuracy, measures, examples))


def arms(audit, pipeline=FINISHED, facts=FACTS):
    cured = audit.cure(pipeline, facts)
    return [*(cured.candidates if isinstance(cured, Selection) else [cured]), *audit.induce(pipeline, facts).values()]


def by_edit(scores):
    """Accuracies by the last edit of a model, 0.8 where none is named."""
    return lambda trial: scores.get(str(trial.model.edits[-1]) if trial.model.edits else "", 0.8)


@pytest.mark.parametrize("audit", AUDITS, ids=lambda audit: audit.id)
def test_an_audits_page_says_what_a_reader_needs(audit):
    assert all(f"\n{heading}\n" in audit.doc for heading in PAGE_HEADINGS)
    assert audit.question.endswith("?")
    assert audit.remedy
    assert "\n" not in audit.remedy


@pytest.mark.parametrize("audit", AUDITS, ids=lambda audit: audit.id)
def test_no_arm_of_an_audit_trains_anything_and_each_can_be_told(audit):
    from xferbench.config.render import describe_pipeline

    if audit.applies(replace(FINISHED, expected_training=Recipe()), FACTS):
        return
    for arm in arms(audit, replace(FINISHED, expected_training=Recipe())):
        assert isinstance(arm, Pipeline)
        fit = trials.make_trial(arm, "test", 3, fake_lab.CONTEXT).model.base
        assert (str(fit.head), fit.phases, fit.seed) == ("own", (), 0)
        assert describe_pipeline(arm, FACTS.preprocessing)


@pytest.mark.parametrize("audit", AUDITS, ids=lambda audit: audit.id)
def test_an_audit_is_pure(audit):
    told = [(audit.applies(FINISHED, FACTS), audit.cure(FINISHED, FACTS), audit.induce(FINISHED, FACTS)) for _ in range(2)]
    assert told[0] == told[1]


@pytest.mark.parametrize("audit", AUDITS, ids=lambda audit: audit.id)
def test_an_audit_goes_from_question_to_findings(audit):
    found = run(audit).findings
    assert found
    assert all(one.verdict != "ERROR" for one in found), [one.reason for one in found]
    assert {(one.plugin, one.kind) for one in found} == {(audit.id, "audit")}


@pytest.mark.parametrize("audit", AUDITS, ids=lambda audit: audit.id)
def test_an_audit_without_a_record_is_never_a_pass(audit):
    crashed = study(replace(audit, explain=None))
    found = fake_lab.run_study(crashed, lambda trial: fake_lab.Record(key=trial.key, error="Boom: on purpose")).findings
    assert {one.verdict for one in found} <= {"ERROR", "SKIPPED"}


@pytest.mark.parametrize("audit", AUDITS, ids=lambda audit: audit.id)
def test_an_audits_module_is_named_by_its_entry(audit):
    module = getmodule(audit.induce)
    assert module is not None
    assert audit.id.removeprefix("audit/") in discovery.plugin_names()


def test_verdicts_are_taken_on_the_half_that_nothing_was_chosen_on():
    step, _ = fake_lab.replay_study(study(class_order.audit), fake_lab.fake_lab(lambda _: 0.8))
    judged = {one.trial.view.examples for one in step.requests if one.view == "test"}
    chosen = {one.trial.view.examples for one in step.requests if one.view == "validation"}
    assert (judged, chosen) == ({"confirm"}, {"screen"})


def test_an_audit_without_an_experiment_has_an_id_of_its_own():
    (found,) = [one for one in run(class_order.audit).findings if one.variant == "rotated"]
    assert (found.id, found.plugin, found.contrast) == ("audit/class-order/rotated", "audit/class-order", "harm")
    assert found.kind == "audit"


def test_a_repair_that_helps_on_both_halves_is_a_fail_with_its_words():
    run_ = run(class_order.audit, by_edit({"classes:assigned@1": 0.9, "classes:rotated": 0.1}))
    (found,) = run_.findings
    assert found.verdict == "FAIL"
    assert found.remedy["verified"]
    assert found.remedy["patch"] == ["# classes in the order that the screened images ask for"]
    assert "confidence" not in found.reason, "what was fitted on the screened half says nothing of how sure that is"


def test_a_network_that_no_repair_helps_passes_only_where_the_failure_would_have_been_seen():
    seen = run(class_order.audit, by_edit({"classes:rotated": 0.1, "classes:assigned@1": 0.7})).findings[0]
    few = by_edit({"classes:rotated": 0.75, "classes:assigned@1": 0.7})
    unseen = run(class_order.audit, few, examples=60).findings[0]
    assert (seen.verdict, unseen.verdict) == ("PASS", "INCONCLUSIVE")
    assert "no repair scored better on the screened half (1 tried)" in seen.reason


def test_one_network_has_mcnemars_p_beside_its_verdict():
    found = run(class_order.audit, by_edit({"classes:assigned@1": 0.9})).findings[0]
    (p,) = [value for name, value in found.measures.items() if name.startswith("McNemar")]
    assert 0 <= p < 1e-6


def test_without_the_weights_of_before_nothing_is_asked_that_needs_them():
    assert linear_probe.audit.applies(ALONE, FACTS) == "the weights from before training are not given"
    cured = batchnorm_drift.audit.cure(ALONE, FACTS)
    assert [one.edits for one in cured.candidates] == [(RecalibrateBatchNorm(),)]


def test_without_training_images_statistics_can_only_be_restored():
    cured = batchnorm_drift.audit.cure(FINISHED, replace(FACTS, data=replace(FACTS.data, train=0)))
    assert [one.edits for one in cured.candidates] == [(RestoreBatchNorm(),)]
    assert batchnorm_drift.audit.applies(ALONE, replace(FACTS, data=replace(FACTS.data, train=0)))


def test_the_autopsy_tries_no_form_twice_and_never_the_one_that_is_served():
    cured = preprocessing_mismatch.audit.cure(FINISHED, FACTS)
    forms = [one.serving.preprocessing for one in cured.candidates]
    assert len(set(forms)) == len(forms)
    assert FINISHED.serving.preprocessing not in forms
    assert {one.channels for one in forms} == {"rgb", "bgr"}


def test_the_autopsy_tries_the_form_of_training_first():
    other = replace(fake_lab.PREPROCESSING, mean=(0.1, 0.1, 0.1))
    cured = preprocessing_mismatch.audit.cure(replace(FINISHED, data=replace(FINISHED.data, train_preprocessing=other)), FACTS)
    assert cured.candidates[0].serving.preprocessing == other


def test_the_autopsy_knows_images_alone():
    assert preprocessing_mismatch.audit.applies(
        replace(FINISHED, serving=replace(FINISHED.serving, preprocessing=Spectrogram())), FACTS
    )


def test_a_from_scratch_baseline_is_only_trained_where_it_is_paid_for():
    (audit,) = discovery.load_plugins(["negative-transfer"], "audit")
    (skipped,) = run(audit).findings
    assert (skipped.verdict, "--scratch" in skipped.reason) == ("SKIPPED", True)
    paid = run(audit, scratch_budget=60.0, facts=replace(FACTS, timing=replace(FACTS.timing, seconds_step=0.001)))
    assert "scratch" in paid.findings[0].accuracy
    assert any("fits the budget" in note for note in paid.notes)


def test_a_budget_becomes_steps_and_stays_within_reason():
    (audit,) = discovery.load_plugins(["negative-transfer"], "audit")
    grids = [
        scratch_grid(
            study(audit, scratch_budget=seconds, facts=replace(FACTS, timing=replace(FACTS.timing, seconds_step=0.001)))
        ).steps
        for seconds in (0.01, 60.0, 1e9)
    ]
    assert grids == [10, 460, 5000]


def test_the_scratch_arm_is_scored_on_the_same_half():
    scratch = plugin_arms(linear_probe.audit, study(linear_probe.audit, scratch_budget=60.0), FINISHED)["scratch"]
    trial = trials.make_trial(scratch.candidates[0], "test", 0, fake_lab.CONTEXT)
    assert trial.view.examples == "confirm"
    assert (trial.model.base.init, trial.model.base.before) == (RANDOM, None)


@pytest.mark.parametrize("audit", [reload.audit, collapse.audit], ids=lambda audit: audit.id)
def test_an_exact_audit_fails_by_any_violation_and_still_advises(audit):
    (found,) = run(audit, measured=0.1).findings
    assert (found.verdict, found.remedy["text"]) == ("FAIL", audit.remedy)
    assert run(audit).findings[0].verdict == "PASS"


def test_the_form_that_was_screened_is_not_said_to_be_better_where_the_other_half_denies_it():
    other = replace(
        FINISHED, serving=replace(FINISHED.serving, preprocessing=replace(FINISHED.serving.preprocessing, channels="bgr"))
    )

    def told(subject, cured):
        answers = {
            (arm, "test", 0): fake_lab.Record(key=arm, predictions=fake_lab.fake_predictions(accuracy, 0))
            for arm, accuracy in {"subject": subject, "cured": cured}.items()
        }
        return preprocessing_mismatch.explain("harm", answers, FINISHED, other)

    assert told(0.5, 0.9).startswith("the screened half prefers images with channels")
    assert "and the other half does not" in told(0.9, 0.5)
    assert not preprocessing_mismatch.explain("harm", {}, FINISHED, FINISHED)


@pytest.mark.parametrize("audit", AUDITS, ids=lambda audit: audit.id)
def test_the_findings_of_an_audit_are_the_same_once_they_are_written_and_read(audit):
    found = run(audit).findings
    plugins = [other.id for other in AUDITS]
    assert [finding_from_json(finding_to_json(finding), plugins) for finding in found] == list(found)


def test_a_written_finding_has_the_two_parts_of_its_contrasts_id():
    (calibration,) = discovery.load_plugins(["calibration"], "audit")
    written = {entry["id"]: (entry["plugin"], entry["contrast"]) for entry in map(finding_to_json, run(calibration).findings)}
    assert written["audit/calibration/overconfident"] == ("audit", "calibration")
    assert written["audit/calibration-brier"] == ("audit", "calibration-brier")
    (finding, *_) = run(linear_probe.audit).findings
    unknown = finding_from_json(finding_to_json(finding), ())
    assert (unknown.plugin, unknown.contrast) == ("audit/linear-probe", "harm")
