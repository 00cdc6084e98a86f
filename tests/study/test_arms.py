"""Choices: by which view, what they must keep, and what they never see."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_schedule import PIPELINE, SUITE, study

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
from xferbench.study import selection, trials
from xferbench.testing import fake_lab
from xferbench.testing.fake_lab import fake_predictions

SOURCE = AuxiliaryDataset(data=Data(digest="source"), classes=(0, 1))
ARMS = tuple(
    replace(PIPELINE, data=replace(PIPELINE.data, source=SOURCE), recipe=Recipe(name=f"{lr}", phases=(Phase(lr=lr),)))
    for lr in (1e-2, 1e-3, 1e-4)
)
FORGETTING = Selection(candidates=ARMS, by="source-held-out", keeping="validation")
ASKED = study()


def settled(choice, scores, asked=ASKED):
    """A choice among candidates with a score on each view: rows of view and accuracies."""
    answers = {}
    for one in selection.selection_trials(choice, asked):
        rank = [arm.recipe.phases for arm in choice.candidates].index(one.model.base.phases)
        view = "validation" if one.view.examples == "validation" else "source-held-out"
        told = fake_predictions(scores[view][rank], one.model.base.seed)
        answers[one.key] = Record(key=one.key, predictions=told, curve=((10, 1.0, scores[view][rank]),))
    return selection.select(choice, asked, answers)


def test_a_choice_is_made_by_its_own_view_among_those_that_keep_the_other():
    one = settled(FORGETTING, {"validation": (0.8, 0.79, 0.5), "source-held-out": (0.3, 0.6, 0.9)})
    assert one.pipeline == ARMS[1], "the last one keeps more of the source, and loses the target"
    assert [round(weighed.score, 1) for weighed in one.candidates] == [0.3, 0.6, 0.9]
    assert [round(weighed.keeping, 1) for weighed in one.candidates] == [0.8, 0.8, 0.5]


def test_what_is_kept_is_measured_from_the_first_candidate_and_may_be_better():
    scores = {"validation": (0.5, 0.8, 0.52), "source-held-out": (0.3, 0.6, 0.9)}
    assert settled(FORGETTING, scores).pipeline == ARMS[2]


def test_where_nobody_else_keeps_it_the_first_stays():
    scores = {"validation": (0.9, 0.5, 0.5), "source-held-out": (0.3, 0.6, 0.9)}
    assert settled(FORGETTING, scores).pipeline == ARMS[0]


def test_of_equals_the_first_is_taken():
    scores = {"validation": (0.8, 0.8, 0.8), "source-held-out": (0.3, 0.6, 0.6)}
    assert settled(FORGETTING, scores).pipeline == ARMS[1]


def test_without_anything_to_keep_the_best_wins():
    one = settled(Selection(candidates=ARMS), {"validation": (0.8, 0.9, 0.5)})
    assert one.pipeline == ARMS[1] and one.candidates[0].keeping is None


def test_curves_and_divergence_are_of_the_view_that_it_is_chosen_by():
    asked = selection.selection_trials(FORGETTING, ASKED)
    assert [one.view.examples for one in asked[:4]] == ["held-out", "held-out", "validation", "validation"]
    one = settled(FORGETTING, {"validation": (0.8, 0.8, 0.8), "source-held-out": (0.3, 0.6, 0.9)})
    assert [weighed.curve[0][1] for weighed in one.candidates] == pytest.approx([0.3, 0.6, 0.9])


def test_a_choice_asks_tuning_seeds_alone_and_never_test_images():
    for one in selection.selection_trials(FORGETTING, ASKED):
        assert one.model.base.seed >= selection.FIRST_TUNING_SEED
        assert one.view.examples in {"held-out", "validation"}


def test_losses_are_kept_and_chosen_the_other_way_round():
    asked = study(suite=replace(SUITE, rules=replace(SUITE.rules, metric="nll", margin=0.1)))
    one = settled(FORGETTING, {"validation": (0.8, 0.79, 0.3), "source-held-out": (0.3, 0.6, 0.9)}, asked)
    assert one.pipeline == ARMS[1]
    assert all(weighed.score < 0 and weighed.keeping < 0 for weighed in one.candidates)


def test_a_candidate_that_crashed_on_either_view_leaves_nothing_to_choose():
    for examples in ("held-out", "validation"):
        answers = {
            one.key: Record(
                key=one.key, error="Boom" if one.view.examples == examples else "", predictions=fake_predictions(0.5, 0)
            )
            for one in selection.selection_trials(FORGETTING, ASKED)
        }
        found = selection.select(FORGETTING, ASKED, answers)
        assert found.pipeline is None and "Boom" in found.error


def test_a_view_of_the_network_as_it_starts_is_the_same_trial_at_every_seed():
    first, other = (trials.make_trial(ARMS[0], "source-before", seed, ASKED.context) for seed in (0, 7))
    assert first == other and first.model.base.phases == ()
    best = replace(
        ARMS[0], recipe=replace(ARMS[0].recipe, stop="best", regularizer=Regularizer.parse("replay:4"), phases=(Phase(lr=3.0),))
    )
    assert trials.make_trial(best, "source-before", 0, ASKED.context) == first, "whatever the recipe is"


def test_the_best_step_is_another_view_of_one_fit_and_is_told_to_code_that_stops_by_itself():
    last, best = (trials.make_trial(ARMS[0], view, 0, ASKED.context) for view in ("test", "best-step"))
    assert last.model == best.model and (last.view.step, best.view.step) == ("last", "best")
    early = replace(ARMS[0], recipe=replace(ARMS[0].recipe, stop="best"))
    assert best == trials.make_trial(early, "test", 0, ASKED.context)
    own = replace(ARMS[0], training=UserCode(spec="python:train:fit", digest="d"))
    assert trials.make_trial(own, "best-step", 0, ASKED.context).model.base.stop == "best"


def test_what_has_its_temperature_already_is_not_given_another():
    cured = replace(ARMS[0], edits=(FitTemperature(),))
    keys = {
        trials.make_trial(arm, view, 0, ASKED.context).key
        for arm, view in ((cured, "test"), (cured, "tempered"), (ARMS[0], "tempered"))
    }
    assert len(keys) == 1
    assert trials.make_trial(ARMS[0], "test", 0, ASKED.context).key not in keys


def test_only_a_regularizer_that_needs_the_source_makes_it_part_of_a_fit():
    for word, source in (("", None), ("l2-sp:1", None), ("lwf:1", None), ("ewc:1", SOURCE), ("replay:4", SOURCE)):
        one = replace(ARMS[0], recipe=replace(ARMS[0].recipe, regularizer=Regularizer.parse(word) if word else None))
        assert trials.training_spec(one, 0).source == source


def test_where_what_is_to_be_kept_is_not_known_nothing_is_chosen():
    nan = float("nan")
    asked = replace(ASKED, suite=replace(SUITE, rules=replace(SUITE.rules, metric="sensitivity")))
    answers = {}
    for one in selection.selection_trials(FORGETTING, asked):
        told = fake_predictions(0.9, one.model.base.seed)
        if one.view.examples == "validation":  # without a positive example there is no sensitivity
            told = replace(told, label=np.zeros_like(told.label))
        answers[one.key] = Record(key=one.key, predictions=told)
    found = selection.select(FORGETTING, asked, answers)
    assert found.pipeline is None and "sensitivity" in found.error
    assert all(str(one.keeping) == str(nan) for one in found.candidates)


def test_a_network_as_it_starts_is_trained_by_nobody():
    own = replace(ARMS[0], training=UserCode(spec="python:a:b", digest="d"), recipe=replace(ARMS[0].recipe, stop="best"))
    before = trials.make_trial(own, "source-before", 3, study().context).model.base
    assert (before.training, before.stop, before.phases) == (None, "last", ())


def test_metrics_of_a_positive_class_say_nothing_of_a_sources_classes():
    for metric in ("sensitivity", "specificity", "auroc"):
        assert selection.metric_for_views(metric, ["source", "source-before"]) == "accuracy"
        assert selection.metric_for_views(metric, ["test", "shifted"]) == metric
    assert selection.metric_for_views("nll", ["source"]) == "nll"


def test_a_start_on_the_target_is_a_candidate_of_the_baseline_on_the_seeds_own_images():
    first = replace(PIPELINE, recipe=Recipe(init=TargetPretraining(), transferred=TransferLowest(groups=2)))
    one, other = trials.training_spec(first, 3), trials.training_spec(first, 4)
    assert (one.init, one.transferred, one.start.seed, other.start.seed) == (PRETRAINED, TransferLowest(groups=2), 3, 4)
    assert one.start in {
        trials.training_spec(candidate, 3) for candidate in scratch_baseline(PIPELINE, PIPELINE.baseline).candidates
    }
    assert trials.initial_model(first).transferred == TRANSFER_ALL


def test_how_much_is_transferred_is_in_a_key_only_where_it_is_not_all():
    key = canonical(trials.training_spec(PIPELINE, 0))
    assert "transferred" not in key and "transferred" not in canonical(Recipe())
    part = replace(PIPELINE, recipe=replace(PIPELINE.recipe, transferred=TransferLowest(groups=1)))
    assert canonical(trials.training_spec(part, 0)) == key | {"transferred": "low:1"}


def test_a_fit_is_given_unlabelled_images_where_domains_are_to_be_told_apart_and_nowhere_else():
    alike = replace(fake_lab.PIPELINE, recipe=Recipe(regularizer=Regularizer.parse("dann:1")))
    assert trials.training_spec(alike, 0).unlabeled == fake_lab.PIPELINE.data.shifted.data
    assert trials.training_spec(fake_lab.PIPELINE, 0).unlabeled is None
    assert (
        trials.training_spec(replace(fake_lab.PIPELINE, recipe=Recipe(regularizer=Regularizer.parse("ewc:1"))), 0).unlabeled
        is None
    )
    assert trials.training_cost(trials.training_spec(alike, 0)) == 3 * trials.training_cost(
        trials.training_spec(fake_lab.PIPELINE, 0)
    )


def test_what_finishes_a_recipe_is_the_first_edit_of_what_is_predicted_and_no_part_of_the_fit():
    plain = fake_lab.PIPELINE
    own = replace(plain, recipe=Recipe(finish=AdaptBatchNorm()))
    assert trials.training_spec(own, 0) == trials.training_spec(plain, 0)
    edits = {
        view: trials.make_trial(own, view, 0, fake_lab.CONTEXT).model.edits
        for view in ("test", "source", "tempered", "source-before")
    }
    assert edits == {
        "test": (AdaptBatchNorm(),),
        "source": (AdaptBatchNorm(), SourceHead()),
        "tempered": (AdaptBatchNorm(), FitTemperature()),
        "source-before": (SourceHead(),),
    }
    assert trials.make_trial(own, "test", 0, fake_lab.CONTEXT, "a:b@1").model.edits == (), "a measure is about training"
    assert trials.make_trial(own, "test", 0, fake_lab.CONTEXT).key != trials.make_trial(plain, "test", 0, fake_lab.CONTEXT).key
    assert selection.strategy_key(own) != selection.strategy_key(plain)
