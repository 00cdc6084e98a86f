"""The schedule of a study in a lab that looks accuracies up: the trials it requests, when it stops, and its findings."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from xferbench.core.canonical import canonical
from xferbench.core.interventions import BATCHNORM_EVAL, PRETRAINED, RANDOM, Augmentation
from xferbench.core.pipeline import AuxiliaryDataset, Data, Recipe
from xferbench.core.plugin import Contrast, Plugin
from xferbench.core.reason import Code
from xferbench.core.record import Record
from xferbench.core.strategies import distillation, linear_probe, map_phases
from xferbench.core.trial import ModelSpec
from xferbench.plugins import batchnorm_drift, negative_transfer
from xferbench.report import messages
from xferbench.runner import shard
from xferbench.study import affordable, batching, findings, schedule, selection, trial_requests
from xferbench.study.study import TrialRequest
from xferbench.study.trials import make_trial, training_spec
from xferbench.testing import fake_lab

PROFILE = replace(fake_lab.PROFILE, data=replace(fake_lab.PROFILE.data, source=(), shifted=()))
SUITE = fake_lab.SUITE
PIPELINE = replace(fake_lab.PIPELINE, data=replace(fake_lab.PIPELINE.data, source=None, shifted=None))


def fix_batchnorm(pipeline, _):
    return map_phases(pipeline, lambda phase: replace(phase, batchnorm=BATCHNORM_EVAL))


DRIFT = replace(batchnorm_drift.plugin, cure=fix_batchnorm)  # a plugin with a single cure, so that nothing is selected


def make_study(*plugins, suite=SUITE, profile=PROFILE):
    return fake_lab.make_study(*plugins, suite=suite, pipeline=replace(PIPELINE, recipe=Recipe()), facts=profile)


def training_kind(trial):
    """The kind of a trial's training, in one word."""
    spec = trial.model.base
    if spec.network.init != PRETRAINED:
        return "scratch" if spec.network.init == RANDOM else "permuted"
    phase = spec.procedure.phases[0]
    batchnorm = phase.batchnorm.spelling
    return "class-order" if phase.order == "class" else {"eval": "cured", "train": "subject"}.get(batchnorm, batchnorm)


def make_lab(accuracy, crash=()):
    """A lab that gives each kind of training its accuracy."""

    def compute_record(trial):
        spec, kind = trial.model.base, training_kind(trial)
        if kind in crash:
            return Record(key=trial.key, error="Boom: on purpose")
        curve = ((10, 1.0, 0.5), (20, 0.5, accuracy[kind]))
        common = {"key": trial.key, "fit": str(hash(spec)), "curve": curve, "seconds": 1.0, "fit_seconds": 10.0}
        if trial.view.measure != "predictions":
            return Record(scalars={"drift": 1.0}, **common)
        return Record(predictions=fake_lab.fake_predictions(accuracy[kind], spec.seed), scalars={"diverged": 0.0}, **common)

    return compute_record


ACCURACIES = {"subject": 0.7, "cured": 0.8, "ghost": 0.6, "class-order": 0.6, "momentum": 0.8, "scratch": 0.5, "permuted": 0.3}


def replay(study, lab, records=None):
    """Replay a study to its end; returns the last step, the records and the trials computed."""
    computed = []
    step, all_records = fake_lab.replay_study(study, lambda trial: computed.append(trial) or lab(trial), records)
    return step, all_records, computed


def compute_findings(study, lab):
    step, records, _ = replay(study, lab)
    return {finding.id: finding for finding in messages.write_findings(findings.build_findings(study.suite, step, records))}


def test_an_induced_harm_is_found_and_its_cure_is_verified():
    finding = compute_findings(make_study(batchnorm_drift.plugin), make_lab(ACCURACIES))["batchnorm-drift/harm/ghost-batch"]
    assert (finding.verdict, finding.control.outcome) == ("FAIL", "detected")
    assert finding.estimate.low > 0.03 and finding.estimate.harm == pytest.approx(0.1, abs=0.02)
    assert finding.accuracy == pytest.approx({"subject": 0.7, "cured": 0.8, "induced": 0.6, "scratch": 0.5}, abs=0.03)
    assert finding.benefit_retained == pytest.approx(2 / 3, abs=0.05)
    assert finding.remedy["verified"] and 'batchnorm = "eval"    # was train' in finding.remedy["patch"]


def test_a_pass_needs_a_control_that_detects_the_failure():
    by_id = compute_findings(make_study(DRIFT), make_lab(ACCURACIES | {"subject": 0.8, "momentum": 0.774}))
    assert by_id["batchnorm-drift/harm/ghost-batch"].verdict == "PASS"
    stale = by_id["batchnorm-drift/harm/stale-statistics"]
    assert (stale.verdict, stale.control.outcome) == ("INCONCLUSIVE", "missed")
    assert "no power" in stale.reason


def test_an_induced_failure_without_cost_is_harmless_and_allows_a_pass():
    finding = compute_findings(make_study(batchnorm_drift.plugin), make_lab(ACCURACIES | {"subject": 0.8}))[
        "batchnorm-drift/harm/stale-statistics"
    ]
    assert (finding.verdict, finding.control.outcome) == ("PASS", "harmless")


def test_a_subject_equal_to_its_cure_is_not_exposed_and_shares_its_trials():
    suite = replace(SUITE, recipe=linear_probe())
    step, records, _ = replay(make_study(batchnorm_drift.plugin, suite=suite), make_lab(ACCURACIES))
    finding = messages.write_findings(findings.build_findings(suite, step, records))[0]
    assert (finding.verdict, finding.estimate.bounds, finding.estimate.exposed) == ("PASS", (0.0, 0.0, 0.0), False)
    keys_by_arm = {
        arm: {request.trial.key for request in step.requests if (request.arm, request.view) == (arm, "test")}
        for arm in ("subject", "cured")
    }
    assert keys_by_arm["subject"] == keys_by_arm["cured"]
    assert finding.reason.startswith("not exposed")


def test_negative_transfer_is_scratch_minus_subject():
    by_id = compute_findings(make_study(negative_transfer.plugin), make_lab(ACCURACIES | {"scratch": 0.9}))
    finding = by_id["negative-transfer/pipeline/permuted"]
    assert finding.verdict == "FAIL" and finding.estimate.harm == pytest.approx(0.2, abs=0.03)
    assert finding.control.harm == pytest.approx(0.6, abs=0.08)
    assert finding.remedy["verified"] and 'init = "random"' in finding.remedy["patch"]
    assert "the cause is the pretraining: even the best recipe of the search is worse than scratch" in finding.reason
    by_id = compute_findings(make_study(negative_transfer.plugin), make_lab(ACCURACIES | {"scratch": 0.9, "cured": 0.9}))
    assert "the cause is the recipe" in by_id["negative-transfer/pipeline/permuted"].reason
    assert by_id["negative-transfer/pretraining/permuted"].verdict == "PASS"
    assert finding.benefit_retained is None, "cured is scratch here and does not beat it"
    assert (
        compute_findings(make_study(negative_transfer.plugin), make_lab(ACCURACIES))[
            "negative-transfer/pipeline/permuted"
        ].verdict
        == "PASS"
    )


def test_the_steps_to_the_accuracy_of_scratch_are_measured():
    finding = compute_findings(make_study(negative_transfer.plugin), make_lab(ACCURACIES))[
        "negative-transfer/pipeline/permuted"
    ]
    assert finding.measures == {"seeds that never reach scratch's accuracy": 0.0, "steps to scratch's accuracy": 10.0}


def test_seeds_are_added_only_to_open_findings():
    close_accuracy = ACCURACIES | {"subject": 0.77, "scratch": 0.2}
    step, records, _ = replay(make_study(batchnorm_drift.plugin, negative_transfer.plugin), make_lab(close_accuracy))
    seeds_by_plugin = {
        plugin: {request.seed for request in step.requests if request.plugin == plugin and request.view == "test"}
        for plugin in ("batchnorm-drift", "negative-transfer")
    }
    assert seeds_by_plugin == {"batchnorm-drift": set(range(5)), "negative-transfer": set(range(3))}
    by_id = {finding.id: finding for finding in messages.write_findings(findings.build_findings(SUITE, step, records))}
    assert by_id["negative-transfer/pipeline/permuted"].estimate.seeds == 3
    assert by_id["batchnorm-drift/harm/ghost-batch"].estimate.seeds == 5
    assert "a decision needs" in by_id["batchnorm-drift/harm/ghost-batch"].reason


def test_tuning_seeds_differ_from_judged_seeds():
    suite = replace(SUITE, recipe=None)
    step, _, _ = replay(make_study(negative_transfer.plugin, suite=suite), make_lab(ACCURACIES))
    tuning_seeds = {request.seed for request in step.requests if request.view == "validation"}
    judged_seeds = {request.seed for request in step.requests if request.view != "validation"}
    assert tuning_seeds == {selection.FIRST_TUNING_SEED, selection.FIRST_TUNING_SEED + 1} and judged_seeds == {0, 1, 2}
    assert all(request.trial.view.examples == "validation" for request in step.requests if request.seed in tuning_seeds)


def test_the_default_recipe_is_selected_before_any_other_trial():
    study = make_study(batchnorm_drift.plugin, suite=replace(SUITE, recipe=None))
    first = schedule.next_schedule(study, {})
    assert {training_kind(trial) for trial in first.pending.values()} == {"cured"}, "probe phases are first"
    assert {request.plugin for request in first.requests} == {""}


def test_a_resumed_replay_computes_only_missing_trials_and_finds_the_same():
    study, lab = make_study(batchnorm_drift.plugin, negative_transfer.plugin), make_lab(ACCURACIES | {"subject": 0.77})
    step, records, computed = replay(study, lab)
    expected = messages.write_findings(findings.build_findings(SUITE, step, records))
    for share in (0.2, 0.6, 1.0):
        stored = dict(random.Random(0).sample(sorted(records.items()), round(share * len(records))))
        resumed_step, all_records, recomputed = replay(study, lab, stored)
        assert messages.write_findings(findings.build_findings(SUITE, resumed_step, all_records)) == expected
        assert len(recomputed) == len(computed) - len(stored)


def test_a_spent_budget_stops_after_its_look_even_if_records_are_reused():
    timed = replace(PROFILE, timing=replace(PROFILE.timing, seconds_step=1e-5))
    rules = replace(SUITE.rules, looks=(3, 300))
    planned = affordable.planned_seconds(make_study(batchnorm_drift.plugin, suite=replace(SUITE, rules=rules), profile=timed))
    suite = replace(SUITE, rules=replace(rules, budget=planned * 1.01))
    study = make_study(batchnorm_drift.plugin, suite=suite, profile=timed)
    step, records, _ = replay(study, make_lab(ACCURACIES | {"subject": 0.77}))
    resumed_step, _, recomputed = replay(study, make_lab(ACCURACIES), records)
    assert max(request.seed for request in step.requests if request.view == "test") == 2
    assert step.stop_reason.code is Code.BUDGET_SPENT and resumed_step.stop_reason == step.stop_reason and not recomputed
    assert "budget" in messages.write_findings(findings.build_findings(study.suite, step, records))[0].reason


def test_nothing_is_run_if_the_budget_does_not_pay_for_the_first_look():
    timed = replace(PROFILE, timing=replace(PROFILE.timing, seconds_step=1e-5))
    study = make_study(batchnorm_drift.plugin, suite=replace(SUITE, rules=replace(SUITE.rules, budget=0.1)), profile=timed)
    step, records, computed = replay(study, make_lab(ACCURACIES))
    (finding,) = messages.write_findings(findings.build_findings(study.suite, step, records))
    assert not computed and (finding.id, finding.verdict) == ("batchnorm-drift/harm", "INCONCLUSIVE")
    assert "nothing was trained: the budget is 0.1 s, and a first verdict needs about" in finding.reason


def test_a_smaller_budget_leaves_out_values_of_small_effect_first_and_the_first_look_stays_within_it():
    timed = replace(PROFILE, timing=replace(PROFILE.timing, seconds_step=1e-5))
    full = make_study(negative_transfer.plugin, profile=timed)
    cost, searches = affordable.planned_seconds(full), []
    for share in (1.0, 0.9, 0.5, 0.3, 0.2, 0.1):
        suite = replace(SUITE, rules=replace(SUITE.rules, budget=cost * share))
        study = make_study(negative_transfer.plugin, suite=suite, profile=timed)
        if study.lacking_seconds is None:
            assert affordable.planned_seconds(study) <= suite.rules.budget
            searches.append(study.subject.baseline)
    assert searches[0] == SUITE.scratch and len(searches) > 3
    sizes = [(search.steps, len(search.augment), len(search.label_smoothing)) for search in searches]
    assert sizes == sorted(sizes, reverse=True) and sizes[1][1:] == (3, 1)


def test_a_search_that_a_budget_cut_decides_only_what_a_better_search_could_not_change():
    def verdicts(accuracies):
        study = affordable.with_search(make_study(negative_transfer.plugin), replace(SUITE.scratch, is_cut=True))
        by_id = compute_findings(study, make_lab(ACCURACIES | accuracies))
        return [by_id[f"negative-transfer/{name}/permuted"] for name in ("pipeline", "pretraining")]

    pipeline, pretraining = verdicts({"scratch": 0.95, "cured": 0.7})
    assert (pipeline.verdict, pretraining.verdict) == ("FAIL", "INCONCLUSIVE")
    assert "search of cured" in pretraining.reason
    pipeline, pretraining = verdicts({"scratch": 0.6})
    assert {pipeline.verdict, pretraining.verdict} == {"INCONCLUSIVE"} and "search of scratch" in pipeline.reason


def test_a_scratch_arm_that_crashes_in_tuning_is_an_error_of_the_plugin():
    by_id = compute_findings(make_study(batchnorm_drift.plugin), make_lab(ACCURACIES, crash=("scratch",)))
    assert [(finding.id, finding.verdict) for finding in by_id.values()] == [("batchnorm-drift/harm", "ERROR")]


@pytest.mark.parametrize("kind", ["subject", "cured", "ghost"])
def test_a_crashed_arm_is_an_error_and_never_a_pass(kind):
    by_id = compute_findings(make_study(DRIFT), make_lab(ACCURACIES, crash=(kind,)))
    finding = by_id["batchnorm-drift/harm/ghost-batch"]
    assert finding.verdict == "ERROR" and "Boom: on purpose" in finding.reason
    assert finding.estimate.p_fail is None and finding.benefit_retained is None


def test_a_crash_of_one_induced_variant_leaves_the_others():
    by_id = compute_findings(make_study(batchnorm_drift.plugin), make_lab(ACCURACIES, crash=("ghost",)))
    assert by_id["batchnorm-drift/harm/class-order"].verdict == "FAIL"


def test_a_plugin_that_raises_is_an_error_and_the_others_go_on():
    def crash(pipeline, profile):
        raise ZeroDivisionError("in the plugin")

    broken_plugin = replace(batchnorm_drift.plugin, id="bad", cure=crash)
    by_id = compute_findings(make_study(broken_plugin, negative_transfer.plugin), make_lab(ACCURACIES))
    assert by_id["bad/harm"].verdict == "ERROR" and "ZeroDivisionError" in by_id["bad/harm"].reason
    assert by_id["negative-transfer/pipeline/permuted"].verdict == "PASS"


@pytest.mark.parametrize("view", ["source", "shifted", "nowhere"])
@pytest.mark.parametrize("kind", ["paired", "info", "exact"])
def test_an_unavailable_view_is_an_error_of_its_plugin_and_the_others_go_on(view, kind):
    contrast = Contrast(name="odd", kind=kind, weights={("subject", view): 1.0, ("cured", view): -1.0})
    broken_plugin = replace(batchnorm_drift.plugin, id="bad", contrasts=(contrast,))
    by_id = compute_findings(make_study(broken_plugin, negative_transfer.plugin), make_lab(ACCURACIES))
    verdicts = [finding.verdict for finding in by_id.values() if finding.plugin == "bad"]
    assert verdicts == ["ERROR"]
    assert by_id["negative-transfer/pipeline/permuted"].verdict == "PASS"


def test_measurements_are_taken_even_without_a_verdict():
    measurements = [contrast for contrast in batchnorm_drift.plugin.contrasts if contrast.kind == "info"]
    by_id = compute_findings(make_study(replace(batchnorm_drift.plugin, contrasts=tuple(measurements))), make_lab(ACCURACIES))
    assert {(finding.verdict, finding.estimate.seeds) for finding in by_id.values()} == {("INFO", 3)}


def test_a_plugin_that_does_not_apply_is_skipped_with_its_reason():
    by_id = compute_findings(
        make_study(batchnorm_drift.plugin, profile=replace(PROFILE, model=replace(PROFILE.model, batchnorm=()))),
        make_lab(ACCURACIES),
    )
    assert list(by_id) == ["batchnorm-drift/harm"]
    assert by_id["batchnorm-drift/harm"].verdict == "SKIPPED" and "no BatchNorm" in by_id["batchnorm-drift/harm"].reason


def test_a_crash_of_every_candidate_of_the_subject_is_an_error_everywhere():
    by_id = compute_findings(
        make_study(batchnorm_drift.plugin, suite=replace(SUITE, recipe=None)), make_lab(ACCURACIES, crash=("subject", "cured"))
    )
    assert {finding.verdict for finding in by_id.values()} == {"ERROR"}


def test_arms_scored_on_other_examples_are_an_error():
    def shift_examples(trial):
        record = make_lab(ACCURACIES)(trial)
        if training_kind(trial) != "cured" or record.predictions is None:
            return record
        return replace(record, predictions=replace(record.predictions, example=record.predictions.example + np.uint64(1)))

    finding = compute_findings(make_study(batchnorm_drift.plugin), shift_examples)["batchnorm-drift/harm/ghost-batch"]
    assert finding.verdict == "ERROR" and "same examples" in finding.reason


def make_failing_lab(kind, accuracy, at_failure):
    """A lab in which a kind of training diverges at seed 1, with an accuracy of its own."""
    lab = make_lab(ACCURACIES | accuracy)

    def diverge(trial):
        record = lab(trial)
        has_failed = training_kind(trial) == kind and trial.model.base.seed == 1 and trial.view.measure == "predictions"
        predictions = fake_lab.fake_predictions(at_failure, 1) if has_failed else record.predictions
        return replace(record, predictions=predictions, scalars={"diverged": 1.0}) if has_failed else record

    return diverge


def test_a_finding_has_the_share_of_runs_that_fail():
    finding = compute_findings(make_study(DRIFT), make_failing_lab("subject", {}, 0.7))["batchnorm-drift/harm/ghost-batch"]
    assert (finding.failures.count, finding.estimate.seeds) == (1, 3)
    assert (finding.failures.low, finding.failures.high) == (pytest.approx(0.0084, abs=1e-4), pytest.approx(0.9057, abs=1e-4))
    assert "1 of 3 runs of subject failed" in finding.reason and "33 % [0.8, 90.6]" in finding.reason
    finding = compute_findings(make_study(DRIFT), make_failing_lab("cured", {}, 0.8))["batchnorm-drift/harm/ghost-batch"]
    assert finding.failures.count == 0 and "cured diverged at 1 of 3 seeds" in finding.reason


def test_a_failed_run_prevents_a_pass_even_if_the_mean_harm_is_far_below_the_margin():
    suite = replace(SUITE, rules=replace(SUITE.rules, looks=(12,)))
    better = {"subject": 0.84, "cured": 0.8}
    healthy = compute_findings(make_study(DRIFT, suite=suite), make_lab(ACCURACIES | better))
    failing = compute_findings(make_study(DRIFT, suite=suite), make_failing_lab("subject", better, 0.64))
    name = "batchnorm-drift/harm/ghost-batch"
    assert (healthy[name].verdict, healthy[name].failures.count) == ("PASS", 0)
    assert failing[name].estimate.high < failing[name].estimate.margin and failing[name].estimate.p_pass < 0.05
    assert failing[name].verdict == "INCONCLUSIVE" and "some runs fail" in failing[name].reason


def test_more_plugins_make_a_verdict_harder_but_variants_of_a_contrast_do_not():
    alone = compute_findings(make_study(batchnorm_drift.plugin), make_lab(ACCURACIES | {"subject": 0.755}))
    copies = [replace(negative_transfer.plugin, id=f"other-{number}") for number in range(6)]
    with_others = compute_findings(make_study(batchnorm_drift.plugin, *copies), make_lab(ACCURACIES | {"subject": 0.755}))
    first, second = "batchnorm-drift/harm/ghost-batch", "batchnorm-drift/harm/class-order"
    assert with_others[first].estimate.p_fail > alone[first].estimate.p_fail
    assert alone[first].estimate.p_fail == alone[second].estimate.p_fail


def test_losses_are_judged_with_the_opposite_sign():
    suite = replace(SUITE, rules=replace(SUITE.rules, metric="nll", margin=0.05))
    assert (
        compute_findings(make_study(batchnorm_drift.plugin, suite=suite), make_lab(ACCURACIES))[
            "batchnorm-drift/harm/ghost-batch"
        ].verdict
        == "FAIL"
    )


def test_groups_of_trials_share_their_training_spec_except_for_the_seed():
    step, _, _ = replay(make_study(batchnorm_drift.plugin), make_lab(ACCURACIES))
    trials_by_key = batching.unique_trials(step.requests)
    groups = list(batching.group_trials(trials_by_key, 2, SUITE))
    assert sorted(trial.key for group in groups for trial in group) == sorted(trials_by_key)
    for group in groups:
        specs = {trial.model.base for trial in group}
        assert len(specs) <= 2 and len({replace(spec, seed=0) for spec in specs}) == 1


def test_a_selection_at_the_edge_of_its_grid_says_so():
    pipelines = [replace(PIPELINE, recipe=Recipe(phases=(replace(Recipe().phases[0], lr=lr),))) for lr in (1e-3, 1e-2, 1e-1)]
    candidates = tuple(selection.CandidateScore(pipeline=pipeline, score=0.5) for pipeline in pipelines)
    assert selection.ResolvedArm(pipeline=pipelines[2], candidates=candidates).at_edge == "highest rate tried, 0.1"
    assert selection.ResolvedArm(pipeline=pipelines[1], candidates=candidates).at_edge == ""


def test_a_plugin_without_a_variant_has_one_finding_without_a_control():
    plugin = Plugin(
        id="bare",
        version=1,
        question="?",
        doc="",
        applies=lambda *_: "",
        cure=batchnorm_drift.cure,
        induce=lambda *_: {},
        remedy="",
    )
    finding = compute_findings(make_study(plugin), make_lab(ACCURACIES))["bare/harm"]
    assert (finding.verdict, finding.control.outcome, finding.control.variant) == ("FAIL", "none", "")


def test_every_candidate_of_a_selection_is_counted_among_the_requests():
    step, records, computed = replay(make_study(negative_transfer.plugin), make_lab(ACCURACIES))
    assert {request.trial.key for request in step.requests} == {trial.key for trial in computed} == set(records)


def test_pretraining_on_the_source_comes_once_before_the_arm_that_starts_from_it():
    study = make_study(negative_transfer.plugin)
    study = replace(
        study, subject=replace(PIPELINE, data=replace(PIPELINE.data, source=AuxiliaryDataset(data=Data(digest="source"))))
    )
    stages, records = [], {}
    while (step := schedule.next_schedule(study, records)).pending.keys() - records.keys():
        stages.append((step.stage, len(step.pending)))
        records |= {key: make_lab(ACCURACIES)(trial) for key, trial in step.pending.items()}
    assert ("training initial networks", 1) in stages
    starts = {
        request.trial.model.base.network.start
        for request in step.requests
        if request.arm == "induced:shuffled-source" and request.view == "test"
    }
    (start,) = starts
    assert (start.data.dataset.digest, start.data.labels, start.network.init) == ("source", "shuffled", RANDOM)
    assert step.requests[0].trial.model.base != start


def test_each_teacher_is_trained_once_before_its_student():
    pipeline = replace(PIPELINE, recipe=distillation())
    study = fake_lab.make_study(replace(DRIFT, applies=lambda *_: "", measures={}), pipeline=pipeline, facts=PROFILE)
    stages, records, trained_specs = [], {}, {}
    while (step := schedule.next_schedule(study, records)).pending.keys() - records.keys():
        new_trials = {key: trial for key, trial in step.pending.items() if key not in records}
        stages.append(step.stage)
        for trial in new_trials.values():
            teacher = trial.model.base.procedure.teacher
            assert teacher is None or (teacher.seed == trial.model.base.seed and teacher in trained_specs), (
                "its teacher is trained before"
            )
            if teacher is not None:
                procedure = teacher.procedure
                assert (teacher.network.init, procedure.regularizer, procedure.augment) == (PRETRAINED, None, None)
        trained_specs |= {trial.model.base: None for trial in new_trials.values()}
        records |= {key: fake_lab.fake_lab()(trial) for key, trial in new_trials.items()}
    assert list(dict.fromkeys(stages)) == ["tuning cures and scratch", "training teachers", "look 1 of 2: 3 seeds"]
    student_requests = [request for request in step.requests if request.trial.model.base.procedure.regularizer]
    teachers = {request.trial.model.base.procedure.teacher for request in student_requests}
    assert {teacher.seed for teacher in teachers} == {request.seed for request in student_requests} >= {0, 1, 2}
    assert teachers <= {request.trial.model.base for request in step.requests}, "teachers are counted among the requests"
    assert {request.trial.key for request in step.requests} == set(records)


def test_the_seconds_of_a_teacher_count_once():
    student = make_trial(replace(PIPELINE, recipe=distillation()), "test", 0, fake_lab.CONTEXT)
    requests = [TrialRequest(plugin="", arm="subject", view="test", seed=0, trial=student)]
    requests += trial_requests.teacher_requests(requests)
    records = {
        request.trial.key: Record(key=request.trial.key, fit_seconds=cost)
        for request, cost in zip(requests, (7.0, 3.0), strict=True)
    }
    assert schedule.training_seconds(requests, records) == 7
    assert schedule.training_seconds(requests[:1], records) == 7 and schedule.training_seconds(requests[1:], records) == 3


def test_students_of_several_seeds_form_one_group():
    pipeline = replace(PIPELINE, recipe=distillation())
    trials = [make_trial(pipeline, "test", seed, fake_lab.CONTEXT) for seed in range(3)]
    assert [len(group) for group in batching.group_trials({trial.key: trial for trial in trials}, 5, SUITE)] == [3]
    (owner,) = {shard.owner_number((trial,), 7) for trial in trials[:1]}
    assert owner == shard.owner_number((replace(trials[0], model=ModelSpec(base=trials[0].model.base.procedure.teacher)),), 7)


def test_a_spec_without_a_teacher_or_augmentation_keeps_its_key():
    spec = training_spec(PIPELINE, 0)
    assert not {"teacher", "augment"} & canonical(spec).keys()
    assert "augment" not in canonical(Recipe())
    assert {"teacher", "augment"} <= canonical(
        training_spec(replace(PIPELINE, recipe=replace(distillation(), augment=Augmentation.parse("flip"))), 0)
    ).keys()


def test_a_dead_subject_does_not_pass_against_a_dead_baseline():
    accuracy = ACCURACIES | {"subject": 0.5, "scratch": 0.5, "permuted": 0.5, "cured": 0.9}
    finding = compute_findings(make_study(negative_transfer.plugin), make_lab(accuracy))["negative-transfer/pipeline/permuted"]
    assert finding.verdict == "INCONCLUSIVE" and "scratch is no better than the most frequent class" in finding.reason
    assert "another recipe reaches" in finding.reason


def test_a_good_subject_passes_against_a_dead_baseline():
    accuracy = ACCURACIES | {"subject": 0.9, "scratch": 0.5, "permuted": 0.5}
    finding = compute_findings(make_study(negative_transfer.plugin), make_lab(accuracy))["negative-transfer/pipeline/permuted"]
    assert finding.verdict == "PASS"
