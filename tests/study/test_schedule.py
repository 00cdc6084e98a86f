"""The replay, with a lab that is a table: what is asked, when it stops, and what is found."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from xferbench.core.canonical import canonical
from xferbench.core.interventions import PRETRAINED, RANDOM, Augmentation
from xferbench.core.pipeline import AuxiliaryDataset, Data, Recipe
from xferbench.core.plugin import Contrast, Plugin
from xferbench.core.reason import Code
from xferbench.core.record import Record
from xferbench.core.strategies import distillation, linear_probe
from xferbench.core.trial import ModelSpec
from xferbench.plugins import batchnorm_drift, negative_transfer
from xferbench.report import messages
from xferbench.runner import shard
from xferbench.study import batching, findings, schedule, selection, trial_requests
from xferbench.study.study import TrialRequest
from xferbench.study.trials import make_trial, training_spec
from xferbench.testing import fake_lab

FACTS = replace(fake_lab.PROFILE, data=replace(fake_lab.PROFILE.data, source=(), shifted=()))
SUITE = fake_lab.SUITE
PIPELINE = replace(fake_lab.PIPELINE, data=replace(fake_lab.PIPELINE.data, source=None, shifted=None))


def study(*plugins, suite=SUITE, facts=FACTS):
    return fake_lab.make_study(*plugins, suite=suite, pipeline=replace(PIPELINE, recipe=Recipe()), facts=facts)


def kind(trial):
    """What a fit is, in a word."""
    fit = trial.model.base
    if fit.init != PRETRAINED:
        return "scratch" if fit.init == RANDOM else "permuted"
    word = fit.phases[0].batchnorm.spelling
    return "class-order" if fit.phases[0].order == "class" else {"eval": "cured", "train": "subject"}.get(word, word)


def lab(accuracy, crash=()):
    """A lab that gives each kind of fit its accuracy."""

    def answer(trial):
        fit, word = trial.model.base, kind(trial)
        if word in crash:
            return Record(key=trial.key, error="Boom: on purpose")
        curve = ((10, 1.0, 0.5), (20, 0.5, accuracy[word]))
        common = {"key": trial.key, "fit": str(hash(fit)), "curve": curve, "seconds": 1.0, "fit_seconds": 10.0}
        if trial.view.measure != "predictions":
            return Record(scalars={"drift": 1.0}, **common)
        return Record(predictions=fake_lab.fake_predictions(accuracy[word], fit.seed), scalars={"diverged": 0.0}, **common)

    return answer


USUAL = {"subject": 0.7, "cured": 0.8, "ghost": 0.6, "class-order": 0.6, "momentum": 0.8, "scratch": 0.5, "permuted": 0.3}


def carried_out(asked, answer, answers=None):
    """Go round until nothing is wanted; the last step, the answers, and what was computed."""
    computed = []
    step, known = fake_lab.replay_study(asked, lambda trial: computed.append(trial) or answer(trial), answers)
    return step, known, computed


def found(asked, answer):
    step, answers, _ = carried_out(asked, answer)
    return {one.id: one for one in messages.write_findings(findings.build_findings(asked.suite, step, answers))}


def test_a_harm_that_is_put_in_is_found_and_its_cure_verified():
    one = found(study(batchnorm_drift.plugin), lab(USUAL))["batchnorm-drift/harm/ghost-batch"]
    assert (one.verdict, one.control) == ("FAIL", "detected")
    assert one.low > 0.03 and one.harm == pytest.approx(0.1, abs=0.02)
    assert one.accuracy == pytest.approx({"subject": 0.7, "cured": 0.8, "induced": 0.6, "scratch": 0.5}, abs=0.03)
    assert one.benefit_retained == pytest.approx(2 / 3, abs=0.05)
    assert one.remedy["verified"] and 'batchnorm = "eval"    # was train' in one.remedy["patch"]


def test_a_pass_needs_a_control_that_could_have_seen_the_failure():
    told = found(study(batchnorm_drift.plugin), lab(USUAL | {"subject": 0.8, "momentum": 0.77}))
    assert told["batchnorm-drift/harm/ghost-batch"].verdict == "PASS"
    stale = told["batchnorm-drift/harm/stale-statistics"]
    assert (stale.verdict, stale.control) == ("INCONCLUSIVE", "missed")
    assert "no power" in stale.reason


def test_an_induced_failure_that_costs_nothing_is_harmless_and_lets_a_pass_stand():
    one = found(study(batchnorm_drift.plugin), lab(USUAL | {"subject": 0.8}))["batchnorm-drift/harm/stale-statistics"]
    assert (one.verdict, one.control) == ("PASS", "harmless")


def test_a_subject_that_is_its_own_cure_is_not_exposed_and_asks_nothing_twice():
    suite = replace(SUITE, recipe=linear_probe())
    step, answers, _ = carried_out(study(batchnorm_drift.plugin, suite=suite), lab(USUAL))
    one = messages.write_findings(findings.build_findings(suite, step, answers))[0]
    assert (one.verdict, one.harm, one.low, one.high, one.exposed) == ("PASS", 0.0, 0.0, 0.0, False)
    keys = {arm: {q.trial.key for q in step.requests if (q.arm, q.view) == (arm, "test")} for arm in ("subject", "cured")}
    assert keys["subject"] == keys["cured"]
    assert one.reason.startswith("not exposed")


def test_negative_transfer_is_scratch_minus_subject():
    told = found(study(negative_transfer.plugin), lab(USUAL | {"scratch": 0.9}))
    one = told["negative-transfer/harm/permuted"]
    assert one.verdict == "FAIL" and one.harm == pytest.approx(0.2, abs=0.03)
    assert one.control_harm == pytest.approx(0.6, abs=0.08)
    assert one.remedy["verified"] and 'init = "random"' in one.remedy["patch"]
    assert one.benefit_retained is None, "cured is scratch here, and does not beat it"
    assert found(study(negative_transfer.plugin), lab(USUAL))["negative-transfer/harm/permuted"].verdict == "PASS"


def test_steps_to_scratchs_accuracy_stand_beside_the_verdict():
    told = found(study(negative_transfer.plugin), lab(USUAL))["negative-transfer/harm/permuted"]
    assert told.measures == {"seeds that never reach scratch's accuracy": 0.0, "steps to scratch's accuracy": 10.0}


def test_seeds_are_added_only_to_what_is_open():
    close = USUAL | {"subject": 0.77, "scratch": 0.2}
    step, answers, _ = carried_out(study(batchnorm_drift.plugin, negative_transfer.plugin), lab(close))
    seeds = {
        plugin: {q.seed for q in step.requests if q.plugin == plugin and q.view == "test"}
        for plugin in ("batchnorm-drift", "negative-transfer")
    }
    assert seeds == {"batchnorm-drift": set(range(5)), "negative-transfer": set(range(3))}
    told = {one.id: one for one in messages.write_findings(findings.build_findings(SUITE, step, answers))}
    assert told["negative-transfer/harm/permuted"].seeds == 3
    assert told["batchnorm-drift/harm/ghost-batch"].seeds == 5
    assert "a decision needs" in told["batchnorm-drift/harm/ghost-batch"].reason


def test_tuning_seeds_are_apart_from_the_judged_ones():
    suite = replace(SUITE, recipe=None)
    step, _, _ = carried_out(study(negative_transfer.plugin, suite=suite), lab(USUAL))
    tuned = {q.seed for q in step.requests if q.view == "validation"}
    judged = {q.seed for q in step.requests if q.view != "validation"}
    assert tuned == {selection.FIRST_TUNING_SEED, selection.FIRST_TUNING_SEED + 1} and judged == {0, 1, 2}
    assert all(q.trial.view.examples == "validation" for q in step.requests if q.seed in tuned)


def test_the_healthy_default_is_settled_before_anything_else_is_asked():
    asked = study(batchnorm_drift.plugin, suite=replace(SUITE, recipe=None))
    first = schedule.next_schedule(asked, {})
    assert {kind(trial) for trial in first.pending.values()} == {"cured"}, "probe phases come first"
    assert {q.plugin for q in first.requests} == {""}


def test_a_resumed_replay_asks_only_for_what_is_missing_and_finds_the_same():
    asked, answer = study(batchnorm_drift.plugin, negative_transfer.plugin), lab(USUAL | {"subject": 0.77})
    step, answers, computed = carried_out(asked, answer)
    whole = messages.write_findings(findings.build_findings(SUITE, step, answers))
    for share in (0.2, 0.6, 1.0):
        kept = dict(random.Random(0).sample(sorted(answers.items()), round(share * len(answers))))
        again, full, rest = carried_out(asked, answer, kept)
        assert messages.write_findings(findings.build_findings(SUITE, again, full)) == whole
        assert len(rest) == len(computed) - len(kept)


def test_a_spent_budget_stops_after_the_look_that_spent_it_whatever_was_reused():
    asked = study(batchnorm_drift.plugin, suite=replace(SUITE, rules=replace(SUITE.rules, budget=50.0)))
    step, answers, _ = carried_out(asked, lab(USUAL | {"subject": 0.77}))
    again, _, rest = carried_out(asked, lab(USUAL), answers)
    assert max(q.seed for q in step.requests if q.view == "test") == 2
    assert step.stop_reason.code is Code.BUDGET_SPENT and again.stop_reason == step.stop_reason and not rest
    assert "budget" in messages.write_findings(findings.build_findings(asked.suite, step, answers))[0].reason


def test_a_scratch_arm_that_cannot_be_tuned_is_an_error_of_the_whole_plugin():
    told = found(study(batchnorm_drift.plugin), lab(USUAL, crash=("scratch",)))
    assert [(one.id, one.verdict) for one in told.values()] == [("batchnorm-drift/harm", "ERROR")]


@pytest.mark.parametrize("word", ["subject", "cured", "ghost"])
def test_a_crashed_arm_is_an_error_and_never_a_pass(word):
    told = found(study(batchnorm_drift.plugin), lab(USUAL, crash=(word,)))
    one = told["batchnorm-drift/harm/ghost-batch"]
    assert one.verdict == "ERROR" and "Boom: on purpose" in one.reason
    assert one.p_fail is None and one.benefit_retained is None


def test_a_crash_in_one_induced_variant_leaves_the_others():
    told = found(study(batchnorm_drift.plugin), lab(USUAL, crash=("ghost",)))
    assert told["batchnorm-drift/harm/class-order"].verdict == "FAIL"


def test_a_plugin_that_raises_is_its_own_error_and_the_others_go_on():
    def broken(pipeline, facts):
        raise ZeroDivisionError("in the plugin")

    bad = replace(batchnorm_drift.plugin, id="bad", cure=broken)
    told = found(study(bad, negative_transfer.plugin), lab(USUAL))
    assert told["bad/harm"].verdict == "ERROR" and "ZeroDivisionError" in told["bad/harm"].reason
    assert told["negative-transfer/harm/permuted"].verdict == "PASS"


@pytest.mark.parametrize("view", ["source", "shifted", "nowhere"])
@pytest.mark.parametrize("kind", ["paired", "info", "exact"])
def test_a_view_that_is_not_there_is_the_error_of_the_plugin_that_asks_for_it_and_the_others_go_on(view, kind):
    contrast = Contrast(name="odd", kind=kind, weights={("subject", view): 1.0, ("cured", view): -1.0})
    bad = replace(batchnorm_drift.plugin, id="bad", contrasts=(contrast,))
    told = found(study(bad, negative_transfer.plugin), lab(USUAL))
    verdicts = [one.verdict for one in told.values() if one.plugin == "bad"]
    assert verdicts == ["ERROR"]
    assert told["negative-transfer/harm/permuted"].verdict == "PASS"


def test_what_is_only_measured_is_measured_where_nothing_is_judged_too():
    info = [one for one in batchnorm_drift.plugin.contrasts if one.kind == "info"]
    told = found(study(replace(batchnorm_drift.plugin, contrasts=tuple(info))), lab(USUAL))
    assert {one.verdict for one in told.values()} == {"INFO"} and {one.seeds for one in told.values()} == {3}


def test_a_plugin_that_does_not_apply_is_skipped_with_its_reason():
    told = found(study(batchnorm_drift.plugin, facts=replace(FACTS, model=replace(FACTS.model, batchnorm=()))), lab(USUAL))
    assert list(told) == ["batchnorm-drift/harm"]
    assert told["batchnorm-drift/harm"].verdict == "SKIPPED" and "no BatchNorm" in told["batchnorm-drift/harm"].reason


def test_a_crash_of_every_candidate_of_the_subject_is_an_error_everywhere():
    told = found(study(batchnorm_drift.plugin, suite=replace(SUITE, recipe=None)), lab(USUAL, crash=("subject", "cured")))
    assert {one.verdict for one in told.values()} == {"ERROR"}


def test_arms_scored_on_other_examples_are_an_error():
    def shifted(trial):
        record = lab(USUAL)(trial)
        if kind(trial) != "cured" or record.predictions is None:
            return record
        return replace(record, predictions=replace(record.predictions, example=record.predictions.example + np.uint64(1)))

    one = found(study(batchnorm_drift.plugin), shifted)["batchnorm-drift/harm/ghost-batch"]
    assert one.verdict == "ERROR" and "same examples" in one.reason


def test_diverged_seeds_are_named():
    def answer(trial):
        record = lab(USUAL)(trial)
        return replace(record, scalars={"diverged": 1.0}) if kind(trial) == "subject" and trial.model.base.seed == 1 else record

    measured = lab(USUAL)
    one = found(study(batchnorm_drift.plugin), lambda t: answer(t) if t.view.measure == "predictions" else measured(t))
    assert "subject diverged at 1 of 3 seeds" in one["batchnorm-drift/harm/ghost-batch"].reason


def test_more_plugins_make_a_verdict_harder_but_variants_of_one_contrast_do_not():
    alone = found(study(batchnorm_drift.plugin), lab(USUAL | {"subject": 0.755}))
    copies = [replace(negative_transfer.plugin, id=f"other-{n}") for n in range(6)]
    among = found(study(batchnorm_drift.plugin, *copies), lab(USUAL | {"subject": 0.755}))
    p = {told["batchnorm-drift/harm/ghost-batch"].p_fail for told in (alone, among)}
    assert len(p) == 2 and among["batchnorm-drift/harm/ghost-batch"].p_fail > alone["batchnorm-drift/harm/ghost-batch"].p_fail
    assert alone["batchnorm-drift/harm/ghost-batch"].p_fail == alone["batchnorm-drift/harm/class-order"].p_fail


def test_losses_are_judged_the_other_way_round():
    suite = replace(SUITE, rules=replace(SUITE.rules, metric="nll", margin=0.05))
    assert found(study(batchnorm_drift.plugin, suite=suite), lab(USUAL))["batchnorm-drift/harm/ghost-batch"].verdict == "FAIL"


def test_groups_of_fits_do_not_depend_on_what_is_there():
    step, _, _ = carried_out(study(batchnorm_drift.plugin), lab(USUAL))
    asked = batching.unique_trials(step.requests)
    groups = list(batching.group_trials(asked, 2, SUITE))
    assert sorted(trial.key for group in groups for trial in group) == sorted(asked)
    for group in groups:
        fits = {trial.model.base for trial in group}
        assert len(fits) <= 2 and len({replace(fit, seed=0) for fit in fits}) == 1


def test_a_choice_names_the_edge_of_its_grid():
    pipelines = [replace(PIPELINE, recipe=Recipe(phases=(replace(Recipe().phases[0], lr=lr),))) for lr in (1e-3, 1e-2, 1e-1)]
    weighed = tuple(selection.CandidateScore(pipeline=pipeline, score=0.5) for pipeline in pipelines)
    assert selection.ResolvedArm(pipeline=pipelines[2], candidates=weighed).at_edge == "highest rate tried, 0.1"
    assert selection.ResolvedArm(pipeline=pipelines[1], candidates=weighed).at_edge == ""


def test_a_plugin_with_no_variant_has_one_finding_without_a_control():
    bare = Plugin(
        id="bare",
        version=1,
        question="?",
        doc="",
        applies=lambda *_: "",
        cure=batchnorm_drift.cure,
        induce=lambda *_: {},
        remedy="",
    )
    one = found(study(bare), lab(USUAL))["bare/harm"]
    assert (one.verdict, one.control, one.variant) == ("FAIL", "none", "")


def test_every_candidate_of_a_choice_is_counted_among_what_was_asked():
    step, answers, computed = carried_out(study(negative_transfer.plugin), lab(USUAL))
    assert {q.trial.key for q in step.requests} == {trial.key for trial in computed} == set(answers)


def test_a_source_is_pretrained_on_once_before_the_arm_that_starts_from_it():
    asked = study(negative_transfer.plugin)
    asked = replace(
        asked, subject=replace(PIPELINE, data=replace(PIPELINE.data, source=AuxiliaryDataset(data=Data(digest="source"))))
    )
    stages, answers = [], {}
    while (step := schedule.next_schedule(asked, answers)).pending.keys() - answers.keys():
        stages.append((step.stage, len(step.pending)))
        answers |= {key: lab(USUAL)(trial) for key, trial in step.pending.items()}
    assert stages[1] == ("training initial networks", 1)
    starts = {
        one.trial.model.base.start for one in step.requests if one.arm == "induced:shuffled-source" and one.view == "test"
    }
    (start,) = starts
    assert (start.data.digest, start.labels, start.init) == ("source", "shuffled", RANDOM)
    assert step.requests[0].trial.model.base != start


def test_teachers_are_trained_once_each_and_before_whoever_learns_from_them():
    distilled = replace(PIPELINE, recipe=distillation())
    asked = fake_lab.make_study(
        replace(batchnorm_drift.plugin, applies=lambda *_: "", measures={}), pipeline=distilled, facts=FACTS
    )
    stages, answers, last = [], {}, {}
    while (step := schedule.next_schedule(asked, answers)).pending.keys() - answers.keys():
        new = {key: one for key, one in step.pending.items() if key not in answers}
        stages.append(step.stage)
        for one in new.values():
            teacher = one.model.base.teacher
            assert teacher is None or (teacher.seed == one.model.base.seed and teacher in last), "its teacher came before"
            assert teacher is None or (teacher.init, teacher.regularizer, teacher.augment) == (PRETRAINED, None, None)
        last |= {one.model.base: None for one in new.values()}
        answers |= {key: fake_lab.fake_lab()(one) for key, one in new.items()}
    assert stages[1:3] == ["training teachers", "look 1 of 2: 3 seeds"]
    taught = [one for one in step.requests if one.trial.model.base.regularizer]
    teachers = {one.trial.model.base.teacher for one in taught}
    assert {one.seed for one in teachers} == {one.seed for one in taught} >= {0, 1, 2}
    assert teachers <= {one.trial.model.base for one in step.requests}, "they are counted among what was asked"
    assert {one.trial.key for one in step.requests} == set(answers)


def test_a_teachers_seconds_are_in_its_students_and_count_once():
    taught = make_trial(replace(PIPELINE, recipe=distillation()), "test", 0, fake_lab.CONTEXT)
    asked = [TrialRequest(plugin="", arm="subject", view="test", seed=0, trial=taught)]
    asked += trial_requests.teacher_requests(asked)
    records = {one.trial.key: Record(key=one.trial.key, fit_seconds=cost) for one, cost in zip(asked, (7.0, 3.0), strict=True)}
    assert schedule.training_seconds(asked, records) == 7
    assert schedule.training_seconds(asked[:1], records) == 7 and schedule.training_seconds(asked[1:], records) == 3


def test_what_is_taught_by_teachers_of_several_seeds_is_one_group():
    distilled = replace(PIPELINE, recipe=distillation())
    trials = [make_trial(distilled, "test", seed, fake_lab.CONTEXT) for seed in range(3)]
    assert [len(group) for group in batching.group_trials({one.key: one for one in trials}, 5, SUITE)] == [3]
    (taught,) = {shard.owner_number((one,), 7) for one in trials[:1]}
    assert taught == shard.owner_number((replace(trials[0], model=ModelSpec(base=trials[0].model.base.teacher)),), 7)


def test_whoever_has_no_teacher_has_the_key_that_it_always_had():
    one = training_spec(PIPELINE, 0)
    assert not {"teacher", "augment"} & canonical(one).keys()
    assert "augment" not in canonical(Recipe())
    assert {"teacher", "augment"} <= canonical(
        training_spec(replace(PIPELINE, recipe=replace(distillation(), augment=Augmentation.parse("flip"))), 0)
    ).keys()


def test_a_baseline_that_learnt_nothing_cannot_pass_a_subject_that_learnt_nothing_either():
    dead = USUAL | {"subject": 0.5, "scratch": 0.5, "permuted": 0.5, "cured": 0.9}
    one = found(study(negative_transfer.plugin), lab(dead))["negative-transfer/harm/permuted"]
    assert one.verdict == "INCONCLUSIVE" and "scratch is no better than the most frequent class" in one.reason
    assert "another recipe reaches" in one.reason


def test_a_subject_that_is_far_better_than_a_baseline_that_learnt_nothing_passes():
    dead = USUAL | {"subject": 0.9, "scratch": 0.5, "permuted": 0.5}
    one = found(study(negative_transfer.plugin), lab(dead))["negative-transfer/harm/permuted"]
    assert one.verdict == "PASS"
