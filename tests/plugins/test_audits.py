from __future__ import annotations

from dataclasses import replace
from inspect import getmodule

import numpy as np
import pytest

from xferbench.core.interventions import RANDOM, BatchNormEpsilon, FitClassBias, RecalibrateBatchNorm, RestoreBatchNorm
from xferbench.core.pipeline import Checkpoint, Pipeline, Recipe, Selection, WeightsFile
from xferbench.core.run import finding_from_json, finding_to_json
from xferbench.core.sections import replace_flat
from xferbench.core.transforms import Preprocessing, Spectrogram
from xferbench.plugins import (
    batchnorm_drift,
    class_order,
    collapse,
    linear_probe,
    preprocessing_forms,
    preprocessing_mismatch,
    reload,
)
from xferbench.plugins.preprocessing_variants import normalized_twice
from xferbench.runner import discovery
from xferbench.study import selection, trials
from xferbench.study.affordable import afford
from xferbench.study.arms import plugin_arms
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
PROFILE = replace(fake_lab.PROFILE, model=replace(fake_lab.PROFILE.model, outputs=2))
SUITE = replace(
    fake_lab.SUITE,
    rules=replace(fake_lab.SUITE.rules, looks=(1,), tuning_seeds=1),
    checkpoint=replace(fake_lab.SUITE.checkpoint, after="after.pth", before="before.pth"),
    recipe=None,
)
WITHOUT_BEFORE = replace(FINISHED, checkpoint=Checkpoint(after=WeightsFile(digest="after")))


def make_audit_study(audit, pipeline=FINISHED, profile=PROFILE, **changes):
    study = Study(
        suite=replace_flat(SUITE, plugins=(audit.id,), **changes),
        profile=profile,
        plugins=(audit,),
        subject=pipeline,
        context=fake_lab.CONTEXT,
    )
    return afford(study)


def run_audit(audit, accuracy=lambda trial: 0.8, measured=0.0, examples=2000, **changes):
    measures = {reference: {name: measured} for name, reference in audit.measures.items()}
    audit_without_prose = replace(audit, explain=None, why_no_pass=None, plot=None)  # these need real scalars
    return fake_lab.run_study(make_audit_study(audit_without_prose, **changes), fake_lab.fake_lab(accuracy, measures, examples))


def list_arms(audit, pipeline=FINISHED, profile=PROFILE):
    cured = audit.cure(pipeline, profile)
    return [*(cured.candidates if isinstance(cured, Selection) else [cured]), *audit.induce(pipeline, profile).values()]


def accuracy_by_edit(scores):
    """Accuracies by the last edit of a model; the default is 0.8."""
    return lambda trial: scores.get(str(trial.model.edits[-1]) if trial.model.edits else "", 0.8)


@pytest.mark.parametrize("audit", AUDITS, ids=lambda audit: audit.id)
def test_the_page_of_an_audit_is_complete(audit):
    assert all(f"\n{heading}\n" in audit.doc for heading in PAGE_HEADINGS)
    assert audit.question.endswith("?")
    assert audit.remedy
    assert "\n" not in audit.remedy


@pytest.mark.parametrize("audit", AUDITS, ids=lambda audit: audit.id)
def test_no_arm_of_an_audit_trains_and_each_arm_is_described(audit):
    from xferbench.config.render import describe_pipeline

    if audit.applies(replace(FINISHED, expected_training=Recipe()), PROFILE):
        return
    for arm in list_arms(audit, replace(FINISHED, expected_training=Recipe())):
        assert isinstance(arm, Pipeline)
        spec = trials.make_trial(arm, "test", 3, fake_lab.CONTEXT).model.base
        assert (str(spec.network.head), spec.procedure.phases, spec.seed) == ("own", (), 0)
        assert describe_pipeline(arm, PROFILE.preprocessing)


@pytest.mark.parametrize("audit", AUDITS, ids=lambda audit: audit.id)
def test_an_audit_is_pure(audit):
    results = [
        (audit.applies(FINISHED, PROFILE), audit.cure(FINISHED, PROFILE), audit.induce(FINISHED, PROFILE)) for _ in range(2)
    ]
    assert results[0] == results[1]


@pytest.mark.parametrize("audit", AUDITS, ids=lambda audit: audit.id)
def test_an_audit_goes_from_a_study_to_findings(audit):
    findings = run_audit(audit).findings
    assert findings
    assert all(finding.verdict != "ERROR" for finding in findings), [finding.reason for finding in findings]
    assert {(finding.plugin, finding.kind) for finding in findings} == {(audit.id, "audit")}


@pytest.mark.parametrize("audit", AUDITS, ids=lambda audit: audit.id)
def test_an_audit_without_records_is_never_a_pass(audit):
    study = make_audit_study(replace(audit, explain=None))
    findings = fake_lab.run_study(study, lambda trial: fake_lab.Record(key=trial.key, error="Boom: on purpose")).findings
    assert {finding.verdict for finding in findings} <= {"ERROR", "SKIPPED"}


@pytest.mark.parametrize("audit", AUDITS, ids=lambda audit: audit.id)
def test_the_module_of_an_audit_is_named_by_its_entry_point(audit):
    module = getmodule(audit.induce)
    assert module is not None
    assert audit.id.removeprefix("audit/") in discovery.plugin_names()


def test_verdicts_use_the_half_of_the_images_that_selects_nothing():
    step, _ = fake_lab.replay_study(make_audit_study(class_order.audit), fake_lab.fake_lab(lambda _: 0.8))
    judged_examples = {request.trial.view.examples for request in step.requests if request.view == "test"}
    selection_examples = {request.trial.view.examples for request in step.requests if request.view == "validation"}
    assert (judged_examples, selection_examples) == ({"confirm"}, {"screen"})


def test_an_audit_without_an_experiment_has_its_own_id():
    (finding,) = [candidate for candidate in run_audit(class_order.audit).findings if candidate.control.variant == "rotated"]
    assert (finding.id, finding.plugin, finding.contrast) == ("audit/class-order/rotated", "audit/class-order", "harm")
    assert finding.kind == "audit"


def test_a_repair_that_helps_on_both_halves_is_a_fail_with_a_patch():
    run = run_audit(class_order.audit, accuracy_by_edit({"classes:assigned@1": 0.9, "classes:rotated": 0.1}))
    (finding,) = run.findings
    assert finding.verdict == "FAIL"
    assert finding.remedy["verified"]
    assert finding.remedy["patch"] == ["# classes in the order that the screened half asks for"]
    assert "confidence" not in finding.reason, "an edit fitted on the screened half has no confidence"


def test_a_network_that_no_repair_helps_passes_only_if_the_control_is_detected():
    detected = run_audit(class_order.audit, accuracy_by_edit({"classes:rotated": 0.1, "classes:assigned@1": 0.7})).findings[0]
    accuracy = accuracy_by_edit({"classes:rotated": 0.75, "classes:assigned@1": 0.7})
    undetected = run_audit(class_order.audit, accuracy, examples=60).findings[0]
    assert (detected.verdict, undetected.verdict) == ("PASS", "INCONCLUSIVE")
    assert "no repair scored better on the screened half (1 tried)" in detected.reason


def test_a_single_network_has_mcnemars_p_beside_its_verdict():
    finding = run_audit(class_order.audit, accuracy_by_edit({"classes:assigned@1": 0.9})).findings[0]
    (p_value,) = [value for name, value in finding.measures.items() if name.startswith("McNemar")]
    assert 0 <= p_value < 1e-6


def test_without_the_weights_from_before_only_other_edits_are_tried():
    assert linear_probe.audit.applies(WITHOUT_BEFORE, PROFILE) == "the weights from before training are not given"
    cured = batchnorm_drift.audit.cure(WITHOUT_BEFORE, PROFILE)
    assert (RestoreBatchNorm(),) not in [candidate.edits for candidate in cured.candidates]


def test_without_training_images_batchnorm_statistics_are_not_recalibrated():
    cured = batchnorm_drift.audit.cure(FINISHED, replace(PROFILE, data=replace(PROFILE.data, train=0)))
    assert cured.candidates[0].edits == (RestoreBatchNorm(),)
    assert not any(isinstance(edit, RecalibrateBatchNorm) for candidate in cured.candidates for edit in candidate.edits)
    assert batchnorm_drift.audit.applies(WITHOUT_BEFORE, replace(PROFILE, data=replace(PROFILE.data, train=0)))


def test_preprocessing_candidates_are_distinct_and_exclude_the_served_one():
    cured = preprocessing_mismatch.audit.cure(FINISHED, PROFILE)
    candidates = [candidate.serving.preprocessing for candidate in cured.candidates]
    assert len(set(candidates)) == len(candidates)
    assert FINISHED.serving.preprocessing not in candidates
    assert {candidate.channels for candidate in candidates} == {"rgb", "bgr"}


def test_ranges_and_orders_of_channels_are_crossed():
    forms = set(preprocessing_forms.value_forms(replace(fake_lab.PREPROCESSING, resize=40, crop=32)))
    assert Preprocessing(channels="bgr", resize=40, crop=32) in forms, "BGR in 0–1, which ncnn and OpenCV give"
    assert replace(fake_lab.PREPROCESSING, channels="bgr", resize=40, crop=32) in forms
    caffe = {form.channels: form.mean for form in forms if form.mean[1] == preprocessing_forms.CAFFE.mean[1]}
    assert caffe == {"rgb": (123.68, 116.779, 103.939), "bgr": (103.939, 116.779, 123.68)}


def serve_form(form):
    return replace(
        FINISHED, serving=replace(FINISHED.serving, preprocessing=form), data=replace(FINISHED.data, train_preprocessing=form)
    )


SERVED = replace(fake_lab.PREPROCESSING, resize=40, crop=32)
BEST_VALUES = Preprocessing(channels="bgr", resize=40, crop=32)
BEST_FORM = replace(BEST_VALUES, interpolation="bicubic")


def screen_forms(trial):
    """Accuracies by form: the geometry of the best form is only better with the values of the best form."""
    return {BEST_VALUES: 0.85, BEST_FORM: 0.95}.get(trial.view.preprocessing, 0.8)


def test_geometries_are_tried_with_the_best_values():
    study = make_audit_study(preprocessing_mismatch.audit, serve_form(SERVED))
    step, records = fake_lab.replay_study(study, fake_lab.fake_lab(screen_forms))
    (state,) = step.states
    tried = [candidate.pipeline.serving.preprocessing for candidate in state.arms["cured"].candidates]
    assert state.arms["cured"].pipeline.serving.preprocessing == BEST_FORM
    assert len(set(tried)) == len(tried) == 21
    assert replace(SERVED, interpolation="bicubic") not in tried, "the served values were not the best"
    assert len(records) < 40, "the search is bounded"


def make_sized(*sizes):
    return replace(PROFILE, model=replace(PROFILE.model, accepted_sizes=sizes))


def tried_sizes(form, *sizes):
    forms = preprocessing_forms.geometry_forms(form, make_sized(*sizes).model)
    return [(tried.resize, tried.crop) for tried in forms if (tried.resize, tried.crop) != (form.resize, form.crop)]


def test_smaller_sizes_and_two_larger_ones_are_tried_at_the_same_scale():
    photos, stored = Preprocessing(resize=256, crop=224), Preprocessing()
    sizes = (32, 64, 128, 224, 256, 288, 384)
    assert tried_sizes(photos, *sizes)[1:] == [(73, 64), (146, 128), (293, 256), (329, 288)], "the first is the margin"
    assert tried_sizes(stored, *sizes) == [(64, None), (128, None)], "32 is the size of the stored images"
    assert tried_sizes(Preprocessing(resize=100), *sizes) == [(32, None), (64, None), (128, None), (224, None)]
    assert tried_sizes(stored) == [], "the network accepts no other size"


@pytest.mark.parametrize(("right", "served"), [(64, 224), (192, 32)], ids=["smaller", "larger, in several rounds"])
def test_the_size_of_training_is_found(right, served):
    def accuracy(trial):
        size = trial.view.preprocessing.crop
        return 0.95 - 0.1 * abs(np.log2(size / right))

    subject = serve_form(replace(fake_lab.PREPROCESSING, resize=served, crop=served))
    profile = make_sized(32, 48, 64, 96, 128, 160, 192, 224, 256, 288)
    step, _ = fake_lab.replay_study(
        make_audit_study(preprocessing_mismatch.audit, subject, profile), fake_lab.fake_lab(accuracy)
    )
    assert step.states[0].arms["cured"].pipeline.serving.preprocessing.crop == right


def test_files_are_decoded_otherwise_only_where_there_are_such_files():
    def decodings(**counts):
        cured = preprocessing_mismatch.audit.cure(FINISHED, replace(PROFILE, data=replace(PROFILE.data, **counts)))
        forms = [candidate.serving.preprocessing for candidate in cured.candidates]
        return {(form.orientation, form.bits) for form in forms} - {("auto", 16)}

    assert decodings() == set()
    assert decodings(rotated=1) == {("upright", 16)}
    assert decodings(sixteen_bit=1) == {("auto", bits) for bits in (8, 10, 12, 14)}


def test_values_are_tried_again_if_files_are_decoded_otherwise():
    right = Preprocessing(bits=12, scale=1.0)
    accuracies = {right: 0.95, replace(fake_lab.PREPROCESSING, bits=12): 0.85}
    profile = replace(PROFILE, data=replace(PROFILE.data, sixteen_bit=40))
    study = make_audit_study(preprocessing_mismatch.audit, serve_form(fake_lab.PREPROCESSING), profile)
    step, _ = fake_lab.replay_study(study, fake_lab.fake_lab(lambda trial: accuracies.get(trial.view.preprocessing, 0.7)))
    assert step.states[0].arms["cured"].pipeline.serving.preprocessing == right


def test_a_forecast_takes_the_first_candidate_to_be_refined():
    study = make_audit_study(preprocessing_mismatch.audit, serve_form(SERVED), make_sized(64))
    arm = plugin_arms(preprocessing_mismatch.audit, study, study.subject)["cured"]
    *_, last = selection.search_rounds(arm, study, {}, assume=True)
    assert len(arm.candidates) < len(last.candidates) < 30
    assert replace(SERVED, resize=80, crop=64) in [candidate.serving.preprocessing for candidate in last.candidates]
    assert len(list(selection.search_rounds(arm, study, {}))) == 1, "without records there is nothing to refine"


def test_a_crash_of_a_refined_candidate_is_an_error():
    lab = fake_lab.fake_lab(screen_forms)

    def crash(trial):
        return replace(lab(trial), error="Boom: on purpose") if trial.view.preprocessing == BEST_FORM else lab(trial)

    findings = fake_lab.run_study(make_audit_study(preprocessing_mismatch.audit, serve_form(SERVED)), crash).findings
    assert {finding.verdict for finding in findings} == {"ERROR"}


def accuracy_of_twice_normalized(served, bias_fitted):
    """Accuracies of the form that is normalized twice, served as it is and with a fitted bias of each class; others: 0.8."""
    twice = normalized_twice(FINISHED.serving.preprocessing)

    def accuracy(trial):
        if trial.view.preprocessing != twice:
            return 0.8
        return bias_fitted if FitClassBias() in trial.model.edits else served

    return accuracy


@pytest.mark.parametrize(
    ("served", "bias_fitted", "fails"), [(0.95, 0.7, False), (0.7, 0.95, True)], ids=["a threshold", "a form"]
)
def test_a_form_that_only_moves_the_decision_threshold_is_no_repair(served, bias_fitted, fails):
    findings = run_audit(preprocessing_mismatch.audit, accuracy_of_twice_normalized(served, bias_fitted)).findings
    assert {finding.verdict == "FAIL" for finding in findings} == {fails}


def test_a_fitted_bias_decides_sensitivity_so_that_balanced_accuracy_replaces_it():
    findings = run_audit(preprocessing_mismatch.audit, metric="sensitivity").findings
    assert {finding.estimate.metric for finding in findings} == {"balanced_accuracy"}


def test_the_training_preprocessing_is_the_first_candidate():
    other = replace(fake_lab.PREPROCESSING, mean=(0.1, 0.1, 0.1))
    cured = preprocessing_mismatch.audit.cure(
        replace(FINISHED, data=replace(FINISHED.data, train_preprocessing=other)), PROFILE
    )
    assert cured.candidates[0].serving.preprocessing == other


def test_the_preprocessing_audit_applies_to_images_only():
    assert preprocessing_mismatch.audit.applies(
        replace(FINISHED, serving=replace(FINISHED.serving, preprocessing=Spectrogram())), PROFILE
    )


def test_a_scratch_baseline_is_trained_only_with_a_budget():
    (audit,) = discovery.load_plugins(["negative-transfer"], "audit")
    (finding,) = run_audit(audit).findings
    assert (finding.verdict, "--scratch" in finding.reason) == ("SKIPPED", True)
    run = run_audit(audit, scratch_budget=60.0, profile=replace(PROFILE, timing=replace(PROFILE.timing, seconds_step=0.001)))
    assert "scratch" in run.findings[0].accuracy
    assert any("the budget affords only a part of the search" in note for note in run.notes)
    run = run_audit(audit, scratch_budget=1e9, profile=replace(PROFILE, timing=replace(PROFILE.timing, seconds_step=0.001)))
    assert any("a longer search" in note and "4000 steps" in note for note in run.notes)


def test_a_budget_becomes_a_bounded_number_of_steps():
    (audit,) = discovery.load_plugins(["negative-transfer"], "audit")
    timed = replace(PROFILE, timing=replace(PROFILE.timing, seconds_step=0.001))
    steps = [
        make_audit_study(audit, scratch_budget=seconds, profile=timed).subject.baseline.steps for seconds in (0.01, 200.0, 1e9)
    ]
    assert steps == [62, 250, 4000]


def test_the_scratch_arm_is_scored_on_the_same_half():
    scratch = plugin_arms(linear_probe.audit, make_audit_study(linear_probe.audit, scratch_budget=60.0), FINISHED)["scratch"]
    trial = trials.make_trial(scratch.candidates[0], "test", 0, fake_lab.CONTEXT)
    assert trial.view.examples == "confirm"
    assert (trial.model.base.network.init, trial.model.base.network.before) == (RANDOM, None)


@pytest.mark.parametrize("audit", [reload.audit, collapse.audit], ids=lambda audit: audit.id)
def test_an_exact_audit_fails_by_any_violation_and_gives_a_remedy(audit):
    (finding,) = run_audit(audit, measured=0.1).findings
    assert (finding.verdict, finding.remedy["text"]) == ("FAIL", audit.remedy)
    assert run_audit(audit).findings[0].verdict == "PASS"


def test_a_worse_network_than_its_probe_has_causes_that_the_check_cannot_tell_apart():
    def explain(subject, cured):
        accuracies = {"subject": subject, "cured": cured}
        records = {
            (arm, "as-trained", 0): fake_lab.Record(key=arm, predictions=fake_lab.fake_predictions(accuracy, 0))
            for arm, accuracy in accuracies.items()
        }
        return linear_probe.explain("harm", records, FINISHED, FINISHED)

    assert "wrong labels" in explain(0.5, 0.9)
    assert not explain(0.9, 0.5)


def test_stale_statistics_name_the_steps_and_the_share_that_they_left():
    def explain(edit, **scalars):
        records = {("subject", "drift", 0): fake_lab.Record(key="k", scalars=scalars)}
        return batchnorm_drift.explain("harm", records, FINISHED, replace(FINISHED, edits=(edit,)))

    stale = explain(RecalibrateBatchNorm(), **{"steps in train mode": 40.0, "share from before": 0.67})
    assert "recalibrated" in stale
    assert "after 40 steps in train mode, 67% of the running statistics are still those from before" in stale
    restored = explain(RestoreBatchNorm(), **{"steps in train mode": 40.0, "share from before": 0.67})
    assert "still those" not in restored, "old statistics are better, so the present ones are not too old"
    other = explain(BatchNormEpsilon(epsilon=1e-3), **{"steps in train mode": 400.0, "share from before": 0.02})
    assert other == "the screened half prefers BatchNorm with an epsilon of 0.001"
    assert not batchnorm_drift.explain("harm", {}, FINISHED, FINISHED)


def test_the_explanation_says_if_the_other_half_contradicts_the_screened_half():
    cured_pipeline = replace(
        FINISHED, serving=replace(FINISHED.serving, preprocessing=replace(FINISHED.serving.preprocessing, channels="bgr"))
    )

    def explain(subject, cured, unfitted_gain=0.0):
        accuracies = {
            ("subject", "bias-fitted"): subject,
            ("cured", "bias-fitted"): cured,
            ("subject", "test"): subject - 0.1,
            ("cured", "test"): cured - 0.1 + unfitted_gain,
        }
        records = {
            (arm, view, 0): fake_lab.Record(key=arm + view, predictions=fake_lab.fake_predictions(accuracy, 0))
            for (arm, view), accuracy in accuracies.items()
        }
        return preprocessing_mismatch.explain("harm", records, FINISHED, cured_pipeline)

    assert explain(0.5, 0.9).startswith("the screened half prefers images with channels")
    assert "and the other half does not" in explain(0.9, 0.5)
    assert "without fitted biases" not in explain(0.5, 0.9)
    unfitted = explain(0.8, 0.8, unfitted_gain=0.1)
    assert unfitted.endswith("so this form or other biases would gain that much")
    assert "the other half does not" in unfitted and "without fitted biases it has 8" in unfitted
    assert not preprocessing_mismatch.explain("harm", {}, FINISHED, FINISHED)


@pytest.mark.parametrize("audit", AUDITS, ids=lambda audit: audit.id)
def test_findings_of_an_audit_survive_json(audit):
    findings = run_audit(audit).findings
    plugins = [plugin.id for plugin in AUDITS]
    assert [finding_from_json(finding_to_json(finding), plugins) for finding in findings] == list(findings)


def test_a_finding_in_json_has_a_plugin_and_a_contrast_part_of_its_id():
    (calibration,) = discovery.load_plugins(["calibration"], "audit")
    parts_by_id = {
        entry["id"]: (entry["plugin"], entry["contrast"]) for entry in map(finding_to_json, run_audit(calibration).findings)
    }
    assert parts_by_id["audit/calibration/overconfident"] == ("audit", "calibration")
    assert parts_by_id["audit/calibration-brier"] == ("audit", "calibration-brier")
    (finding, *_) = run_audit(linear_probe.audit).findings
    loaded = finding_from_json(finding_to_json(finding), ())
    assert (loaded.plugin, loaded.contrast) == ("audit/linear-probe", "harm")


@pytest.mark.parametrize("first", [0, 1])
def test_outputs_in_numeric_order_are_recognized(first):
    names = sorted(str(number) for number in range(first, first + 11))
    assigned = {output: names.index(str(first + output)) for output in range(11)}
    assert class_order.is_numeric_order(assigned, 11)
    assert class_order.is_numeric_order({output: assigned[output] for output in (0, 3, 7)}, 11)
    assert not class_order.is_numeric_order(assigned | {0: 1}, 11)
    assert not class_order.is_numeric_order({output: output for output in range(11)}, 11)


def test_nine_outputs_have_the_same_order_as_text():
    assert not class_order.is_numeric_order({output: output for output in range(9)}, 9)
