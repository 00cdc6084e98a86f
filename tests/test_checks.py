from __future__ import annotations

from dataclasses import replace
from inspect import getmodule

import pytest

from xferbench import discover, fake, plan
from xferbench.checks import batchnorm_drift, class_order, collapse, linear_probe, preprocessing_mismatch, reload
from xferbench.design import Choice, Finished, Pipeline, Recipe, Spectrogram, Weights
from xferbench.testing import HEADINGS

CHECKS = discover.plugins(["all"], discover.CHECKS)
FINISHED = replace(
    fake.PIPELINE,
    recipe=Recipe(),
    finished=Finished(after=Weights(digest="after"), before=Weights(digest="before")),
    judged="confirm",
)
FACTS = replace(fake.FACTS, outputs=2)
SUITE = replace(fake.SUITE, looks=(1,), tuning_seeds=1, after="after.pth", before="before.pth", recipe=None)
ALONE = replace(FINISHED, finished=Finished(after=Weights(digest="after")))


def study(check, pipeline=FINISHED, facts=FACTS, **changes):
    return plan.Study(
        suite=replace(SUITE, plugins=(check.id,), **changes), facts=facts, plugins=(check,), subject=pipeline, place=fake.PLACE
    )


def run(check, accuracy=lambda trial: 0.8, measured=0.0, examples=2000, **changes):
    measures = {reference: {name: measured} for name, reference in check.measures.items()}
    plain = replace(check, told=None, picture=None)  # what a check says of its scalars needs real ones
    return fake.run(study(plain, **changes), fake.lab(accuracy, measures, examples))


def arms(check, pipeline=FINISHED, facts=FACTS):
    cured = check.cure(pipeline, facts)
    return [*(cured.candidates if isinstance(cured, Choice) else [cured]), *check.induce(pipeline, facts).values()]


def by_edit(scores):
    """Accuracies by the last edit of a model, 0.8 where none is named."""
    return lambda trial: scores.get(trial.model.edits[-1] if trial.model.edits else "", 0.8)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.id)
def test_a_checks_page_says_what_a_reader_needs(check):
    assert all(f"\n{heading}\n" in check.page for heading in HEADINGS)
    assert check.question.endswith("?")
    assert check.remedy
    assert "\n" not in check.remedy


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.id)
def test_no_arm_of_a_check_trains_anything_and_each_can_be_told(check):
    from xferbench.wording import of_pipeline

    if check.applies(replace(FINISHED, believed=Recipe()), FACTS):
        return
    for arm in arms(check, replace(FINISHED, believed=Recipe())):
        assert isinstance(arm, Pipeline)
        fit = plan.trial(arm, "test", 3, fake.PLACE).model.base
        assert (fit.head, fit.phases, fit.seed) == ("own", (), 0)
        assert of_pipeline(arm, FACTS.preprocessing)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.id)
def test_a_check_is_pure(check):
    told = [(check.applies(FINISHED, FACTS), check.cure(FINISHED, FACTS), check.induce(FINISHED, FACTS)) for _ in range(2)]
    assert told[0] == told[1]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.id)
def test_a_check_goes_from_question_to_findings(check):
    found = run(check).findings
    assert found
    assert all(one.verdict != "ERROR" for one in found), [one.reason for one in found]
    assert {one.plugin for one in found} == {check.id.partition("/")[0]}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.id)
def test_a_check_without_a_record_is_never_a_pass(check):
    crashed = study(replace(check, told=None))
    found = fake.run(crashed, lambda trial: fake.Record(key=trial.key, error="Boom: on purpose")).findings
    assert {one.verdict for one in found} <= {"ERROR", "SKIPPED"}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.id)
def test_a_checks_module_is_named_by_its_entry(check):
    module = getmodule(check.induce)
    assert module is not None
    assert check.id.removeprefix("audit/") in discover.names(discover.CHECKS)


def test_verdicts_are_taken_on_the_half_that_nothing_was_chosen_on():
    step, _ = fake.replay(study(class_order.check), fake.lab(lambda _: 0.8))
    judged = {one.trial.view.examples for one in step.asked if one.view == "test"}
    chosen = {one.trial.view.examples for one in step.asked if one.view == "validation"}
    assert (judged, chosen) == ({"confirm"}, {"screen"})


def test_a_check_that_no_plugin_has_is_the_audits():
    (found,) = [one for one in run(class_order.check).findings if one.variant == "rotated"]
    assert (found.id, found.plugin, found.contrast) == ("audit/class-order/rotated", "audit", "class-order")
    assert found.check == "audit/class-order"


def test_a_repair_that_helps_on_both_halves_is_a_fail_with_its_words():
    run_ = run(class_order.check, by_edit({"classes:assigned@1": 0.9, "classes:rotated": 0.1}))
    (found,) = run_.findings
    assert found.verdict == "FAIL"
    assert found.remedy["verified"]
    assert found.remedy["patch"] == ["# classes in the order that the screened images ask for"]
    assert "confidence" not in found.reason, "what was fitted on the screened half says nothing of how sure that is"


def test_a_network_that_no_repair_helps_passes_only_where_the_failure_would_have_been_seen():
    seen = run(class_order.check, by_edit({"classes:rotated": 0.1, "classes:assigned@1": 0.7})).findings[0]
    few = by_edit({"classes:rotated": 0.75, "classes:assigned@1": 0.7})
    unseen = run(class_order.check, few, examples=60).findings[0]
    assert (seen.verdict, unseen.verdict) == ("PASS", "INCONCLUSIVE")
    assert "none of 1 repairs did better on the screened half" in seen.reason


def test_one_network_has_mcnemars_p_beside_its_verdict():
    found = run(class_order.check, by_edit({"classes:assigned@1": 0.9})).findings[0]
    (p,) = [value for name, value in found.measures.items() if name.startswith("McNemar")]
    assert 0 <= p < 1e-6


def test_without_the_weights_of_before_nothing_is_asked_that_needs_them():
    assert linear_probe.check.applies(ALONE, FACTS) == "the weights of before are not given"
    cured = batchnorm_drift.check.cure(ALONE, FACTS)
    assert [one.edits for one in cured.candidates] == [("batchnorm:recalibrated@2",)]


def test_without_training_images_statistics_can_only_be_restored():
    cured = batchnorm_drift.check.cure(FINISHED, replace(FACTS, train=0))
    assert [one.edits for one in cured.candidates] == [("batchnorm:restored",)]
    assert batchnorm_drift.check.applies(ALONE, replace(FACTS, train=0))


def test_the_autopsy_tries_no_form_twice_and_never_the_one_that_is_served():
    cured = preprocessing_mismatch.check.cure(FINISHED, FACTS)
    forms = [one.serve_preprocessing for one in cured.candidates]
    assert len(set(forms)) == len(forms)
    assert FINISHED.serve_preprocessing not in forms
    assert {one.channels for one in forms} == {"rgb", "bgr"}


def test_the_autopsy_tries_the_form_of_training_first():
    other = replace(fake.RECORDED, mean=(0.1, 0.1, 0.1))
    cured = preprocessing_mismatch.check.cure(replace(FINISHED, train_preprocessing=other), FACTS)
    assert cured.candidates[0].serve_preprocessing == other


def test_the_autopsy_knows_images_alone():
    assert preprocessing_mismatch.check.applies(replace(FINISHED, serve_preprocessing=Spectrogram()), FACTS)


def test_a_from_scratch_baseline_is_only_trained_where_it_is_paid_for():
    (check,) = discover.plugins(["negative-transfer"], discover.CHECKS)
    (skipped,) = run(check).findings
    assert (skipped.verdict, "--scratch" in skipped.reason) == ("SKIPPED", True)
    paid = run(check, scratch_budget=60.0, facts=replace(FACTS, seconds_step=0.001))
    assert "scratch" in paid.findings[0].accuracy
    assert any("as the budget allows" in note for note in paid.notes)


def test_a_budget_becomes_steps_and_stays_within_reason():
    (check,) = discover.plugins(["negative-transfer"], discover.CHECKS)
    grids = [
        plan.grid(study(check, scratch_budget=seconds, facts=replace(FACTS, seconds_step=0.001))).steps
        for seconds in (0.01, 60.0, 1e9)
    ]
    assert grids == [10, 460, 5000]


def test_the_scratch_arm_is_scored_on_the_same_half():
    scratch = plan.arms(linear_probe.check, study(linear_probe.check, scratch_budget=60.0), FINISHED)["scratch"]
    trial = plan.trial(scratch.candidates[0], "test", 0, fake.PLACE)
    assert trial.view.examples == "confirm"
    assert (trial.model.base.init, trial.model.base.before) == ("random", None)


@pytest.mark.parametrize("check", [reload.check, collapse.check], ids=lambda check: check.id)
def test_an_exact_check_fails_by_any_violation_and_still_advises(check):
    (found,) = run(check, measured=0.1).findings
    assert (found.verdict, found.remedy["text"]) == ("FAIL", check.remedy)
    assert run(check).findings[0].verdict == "PASS"


def test_the_form_that_was_screened_is_not_said_to_be_better_where_the_other_half_denies_it():
    other = replace(FINISHED, serve_preprocessing=replace(FINISHED.serve_preprocessing, channels="bgr"))

    def told(subject, cured):
        answers = {
            (arm, "test", 0): fake.Record(key=arm, predictions=fake.predictions(accuracy, 0))
            for arm, accuracy in {"subject": subject, "cured": cured}.items()
        }
        return preprocessing_mismatch.told("harm", answers, FINISHED, other)

    assert told(0.5, 0.9).startswith("the screened half prefers images with channels")
    assert "and the other does not" in told(0.9, 0.5)
    assert not preprocessing_mismatch.told("harm", {}, FINISHED, FINISHED)
