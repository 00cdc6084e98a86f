"""Candidates: the view that selects them, the accuracy they must keep, and the examples they never see."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_schedule import PIPELINE, SUITE, make_study

from xferbench.core.canonical import canonical
from xferbench.core.interventions import (
    PRETRAINED,
    TRANSFER_ALL,
    AdaptBatchNorm,
    FitTemperature,
    Regularizer,
    SourceHead,
    TargetPretraining,
    TransferLowest,
)
from xferbench.core.pipeline import AuxiliaryDataset, Data, Phase, Recipe, Selection, UserCode
from xferbench.core.record import Record
from xferbench.core.strategies import scratch_baseline
from xferbench.study import cost, selection, trials
from xferbench.testing import fake_lab
from xferbench.testing.fake_lab import fake_predictions

SOURCE = AuxiliaryDataset(data=Data(digest="source"), classes=(0, 1))
ARMS = tuple(
    replace(PIPELINE, data=replace(PIPELINE.data, source=SOURCE), recipe=Recipe(name=f"{lr}", phases=(Phase(lr=lr),)))
    for lr in (1e-2, 1e-3, 1e-4)
)
FORGETTING = Selection(candidates=ARMS, by="source-held-out", keeping="validation")
STUDY = make_study()


def select_by_scores(choice, scores, study=STUDY):
    """Select among candidates by their accuracies on each view."""
    records = {}
    for trial in selection.selection_trials(choice, study, {}):
        rank = [arm.recipe.phases for arm in choice.candidates].index(trial.model.base.procedure.phases)
        view = "validation" if trial.view.examples == "validation" else "source-held-out"
        predictions = fake_predictions(scores[view][rank], trial.model.base.seed)
        records[trial.key] = Record(key=trial.key, predictions=predictions, curve=((10, 1.0, scores[view][rank]),))
    return selection.select(choice, study, records)


def test_a_candidate_is_selected_by_its_view_among_those_that_keep_the_other_view():
    arm = select_by_scores(FORGETTING, {"validation": (0.8, 0.79, 0.5), "source-held-out": (0.3, 0.6, 0.9)})
    assert arm.pipeline == ARMS[1], "the last candidate keeps more of the source and loses accuracy on the target"
    assert [round(candidate.score, 1) for candidate in arm.candidates] == [0.3, 0.6, 0.9]
    assert [round(candidate.keeping, 1) for candidate in arm.candidates] == [0.8, 0.8, 0.5]


def test_the_first_candidate_sets_what_must_be_kept_and_others_may_exceed_it():
    scores = {"validation": (0.5, 0.8, 0.52), "source-held-out": (0.3, 0.6, 0.9)}
    assert select_by_scores(FORGETTING, scores).pipeline == ARMS[2]


def test_the_first_candidate_is_selected_if_no_other_keeps_its_accuracy():
    scores = {"validation": (0.9, 0.5, 0.5), "source-held-out": (0.3, 0.6, 0.9)}
    assert select_by_scores(FORGETTING, scores).pipeline == ARMS[0]


def test_the_first_of_equal_candidates_is_selected():
    scores = {"validation": (0.8, 0.8, 0.8), "source-held-out": (0.3, 0.6, 0.6)}
    assert select_by_scores(FORGETTING, scores).pipeline == ARMS[1]


def test_the_best_candidate_is_selected_if_nothing_must_be_kept():
    arm = select_by_scores(Selection(candidates=ARMS), {"validation": (0.8, 0.9, 0.5)})
    assert arm.pipeline == ARMS[1] and arm.candidates[0].keeping is None


def test_a_selected_subject_is_compared_with_the_best_of_the_others():
    arm = select_by_scores(Selection(candidates=ARMS), {"validation": (0.9, 0.6, 0.8)})
    alternative = selection.best_alternative(arm, ARMS[0], STUDY)
    assert arm.pipeline == ARMS[0]
    assert alternative.pipeline == ARMS[2] and alternative.is_alternative
    assert selection.best_alternative(arm, ARMS[1], STUDY) == arm, "another candidate was selected"


def test_an_alternative_must_keep_what_the_subject_keeps():
    scores = {"validation": (0.8, 0.5, 0.79), "source-held-out": (0.9, 0.8, 0.1)}
    arm = select_by_scores(FORGETTING, scores)
    assert selection.best_alternative(arm, ARMS[0], STUDY).pipeline == ARMS[2]
    scores = {"validation": (0.8, 0.5, 0.5), "source-held-out": (0.9, 0.8, 0.1)}
    arm = select_by_scores(FORGETTING, scores)
    assert not selection.best_alternative(arm, ARMS[0], STUDY).is_alternative


def test_another_seed_of_the_suite_selects_on_other_seeds():
    study = make_study(suite=replace(SUITE, rules=replace(SUITE.rules, seed=7)))
    assert {trial.model.base.seed for trial in selection.selection_trials(FORGETTING, study, {})} == {
        selection.FIRST_TUNING_SEED + 7 + number for number in range(SUITE.rules.tuning_seeds)
    }


def test_curves_come_from_the_view_that_selects():
    selection_trials = selection.selection_trials(FORGETTING, STUDY, {})
    assert [trial.view.examples for trial in selection_trials[:4]] == ["held-out", "held-out", "validation", "validation"]
    arm = select_by_scores(FORGETTING, {"validation": (0.8, 0.8, 0.8), "source-held-out": (0.3, 0.6, 0.9)})
    assert [candidate.curve[0][1] for candidate in arm.candidates] == pytest.approx([0.3, 0.6, 0.9])


def test_selection_uses_only_tuning_seeds_and_no_test_images():
    for trial in selection.selection_trials(FORGETTING, STUDY, {}):
        assert trial.model.base.seed >= selection.FIRST_TUNING_SEED
        assert trial.view.examples in {"held-out", "validation"}


def test_losses_are_selected_and_kept_with_the_opposite_sign():
    study = make_study(suite=replace(SUITE, rules=replace(SUITE.rules, metric="nll", margin=0.1)))
    arm = select_by_scores(FORGETTING, {"validation": (0.8, 0.79, 0.3), "source-held-out": (0.3, 0.6, 0.9)}, study)
    assert arm.pipeline == ARMS[1]
    assert all(candidate.score < 0 and candidate.keeping < 0 for candidate in arm.candidates)


def test_a_crash_of_a_candidate_on_either_view_is_an_error_of_the_arm():
    for examples in ("held-out", "validation"):
        records = {
            trial.key: Record(
                key=trial.key, error="Boom" if trial.view.examples == examples else "", predictions=fake_predictions(0.5, 0)
            )
            for trial in selection.selection_trials(FORGETTING, STUDY, {})
        }
        arm = selection.select(FORGETTING, STUDY, records)
        assert arm.pipeline is None and "Boom" in arm.error


def test_the_network_before_training_is_the_same_trial_for_every_seed():
    first, second = (trials.make_trial(ARMS[0], "source-before", seed, STUDY.context) for seed in (0, 7))
    assert first == second and first.model.base.procedure.phases == ()
    best = replace(
        ARMS[0], recipe=replace(ARMS[0].recipe, stop="best", regularizer=Regularizer.parse("replay:4"), phases=(Phase(lr=3.0),))
    )
    assert trials.make_trial(best, "source-before", 0, STUDY.context) == first, "the recipe does not matter"


def test_the_best_step_is_a_view_of_the_same_training_except_for_training_code():
    last, best = (trials.make_trial(ARMS[0], view, 0, STUDY.context) for view in ("test", "best-step"))
    assert last.model == best.model and (last.view.step, best.view.step) == ("last", "best")
    early = replace(ARMS[0], recipe=replace(ARMS[0].recipe, stop="best"))
    assert best == trials.make_trial(early, "test", 0, STUDY.context)
    user_trained = replace(ARMS[0], training=UserCode(spec="python:train:fit", digest="d"))
    assert trials.make_trial(user_trained, "best-step", 0, STUDY.context).model.base.procedure.stop == "best"


def test_a_temperature_is_fitted_once():
    cured = replace(ARMS[0], edits=(FitTemperature(),))
    trial_keys = {
        trials.make_trial(arm, view, 0, STUDY.context).key
        for arm, view in ((cured, "test"), (cured, "tempered"), (ARMS[0], "tempered"))
    }
    assert len(trial_keys) == 1
    assert trials.make_trial(ARMS[0], "test", 0, STUDY.context).key not in trial_keys


def test_only_regularizers_that_need_the_source_add_it_to_the_training_spec():
    for spelling, source in (("", None), ("l2-sp:1", None), ("lwf:1", None), ("ewc:1", SOURCE), ("replay:4", SOURCE)):
        arm = replace(ARMS[0], recipe=replace(ARMS[0].recipe, regularizer=Regularizer.parse(spelling) if spelling else None))
        assert trials.training_spec(arm, 0).data.source == source


def test_nothing_is_selected_if_the_score_to_keep_is_undefined():
    nan = float("nan")
    study = replace(STUDY, suite=replace(SUITE, rules=replace(SUITE.rules, metric="sensitivity")))
    records = {}
    for trial in selection.selection_trials(FORGETTING, study, {}):
        predictions = fake_predictions(0.9, trial.model.base.seed)
        if trial.view.examples == "validation":  # sensitivity is undefined without a positive example
            predictions = replace(predictions, label=np.zeros_like(predictions.label))
        records[trial.key] = Record(key=trial.key, predictions=predictions)
    arm = selection.select(FORGETTING, study, records)
    assert arm.pipeline is None and "sensitivity" in arm.error
    assert all(str(candidate.keeping) == str(nan) for candidate in arm.candidates)


def test_training_code_does_not_train_the_network_before_training():
    user_trained = replace(
        ARMS[0], training=UserCode(spec="python:a:b", digest="d"), recipe=replace(ARMS[0].recipe, stop="best")
    )
    before = trials.make_trial(user_trained, "source-before", 3, make_study().context).model.base
    assert (before.procedure.training, before.procedure.stop, before.procedure.phases) == (None, "last", ())


def test_metrics_of_a_positive_class_become_accuracy_on_the_source():
    for metric in ("sensitivity", "specificity", "auroc"):
        assert selection.metric_for_views(metric, ["source", "source-before"]) == "accuracy"
        assert selection.metric_for_views(metric, ["test", "shifted"]) == metric
    assert selection.metric_for_views("nll", ["source"]) == "nll"


def test_pretraining_on_the_target_equals_a_candidate_of_the_scratch_baseline_with_the_same_seed():
    pipeline = replace(PIPELINE, recipe=Recipe(init=TargetPretraining(), transferred=TransferLowest(groups=2)))
    spec, other_spec = trials.training_spec(pipeline, 3), trials.training_spec(pipeline, 4)
    assert (spec.network.init, spec.network.transferred) == (PRETRAINED, TransferLowest(groups=2))
    assert (spec.network.start.seed, other_spec.network.start.seed) == (3, 4)
    assert spec.network.start in {
        trials.training_spec(candidate, 3) for candidate in scratch_baseline(PIPELINE, PIPELINE.baseline).candidates
    }
    assert trials.initial_model(pipeline).network.transferred == TRANSFER_ALL


def test_the_key_omits_the_number_of_transferred_layers_if_all_are_transferred():
    key = canonical(trials.training_spec(PIPELINE, 0))
    assert "transferred" not in key and "transferred" not in canonical(Recipe())
    part = replace(PIPELINE, recipe=replace(PIPELINE.recipe, transferred=TransferLowest(groups=1)))
    assert canonical(trials.training_spec(part, 0)) == key | {"transferred": "low:1"}


def test_only_domain_adversarial_training_receives_unlabeled_images():
    dann_pipeline = replace(fake_lab.PIPELINE, recipe=Recipe(regularizer=Regularizer.parse("dann:1")))
    assert trials.training_spec(dann_pipeline, 0).data.unlabeled == fake_lab.PIPELINE.data.shifted.data
    assert trials.training_spec(fake_lab.PIPELINE, 0).data.unlabeled is None
    assert (
        trials.training_spec(
            replace(fake_lab.PIPELINE, recipe=Recipe(regularizer=Regularizer.parse("ewc:1"))), 0
        ).data.unlabeled
        is None
    )
    assert cost.training_cost(trials.training_spec(dann_pipeline, 0)) == 3 * cost.training_cost(
        trials.training_spec(fake_lab.PIPELINE, 0)
    )


def test_the_finish_is_the_first_edit_and_no_part_of_the_training_spec():
    plain = fake_lab.PIPELINE
    finished_pipeline = replace(plain, recipe=Recipe(finish=AdaptBatchNorm()))
    assert trials.training_spec(finished_pipeline, 0) == trials.training_spec(plain, 0)
    edits = {
        view: trials.make_trial(finished_pipeline, view, 0, fake_lab.CONTEXT).model.edits
        for view in ("test", "source", "tempered", "source-before")
    }
    assert edits == {
        "test": (AdaptBatchNorm(),),
        "source": (AdaptBatchNorm(), SourceHead()),
        "tempered": (AdaptBatchNorm(), FitTemperature()),
        "source-before": (SourceHead(),),
    }
    assert trials.make_trial(finished_pipeline, "test", 0, fake_lab.CONTEXT, "a:b@1").model.edits == (), (
        "a measure describes training"
    )
    assert (
        trials.make_trial(finished_pipeline, "test", 0, fake_lab.CONTEXT).key
        != trials.make_trial(plain, "test", 0, fake_lab.CONTEXT).key
    )
    assert selection.strategy_key(finished_pipeline) != selection.strategy_key(plain)
