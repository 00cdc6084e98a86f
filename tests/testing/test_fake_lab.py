"""The fake laboratory: of one form with the real one, and as strict about what cannot be trained."""

from __future__ import annotations

from dataclasses import replace

import pytest

from xferbench.analysis import metrics
from xferbench.core.interventions import PermutedWeights, Regularizer
from xferbench.core.pipeline import AuxiliaryDataset, Recipe
from xferbench.core.sections import replace_flat
from xferbench.core.strategies import from_scratch
from xferbench.plugins import batchnorm_drift, catastrophic_forgetting
from xferbench.study import schedule, trials
from xferbench.testing import fake_lab


def trial(view="test", seed=0, **recipe):
    pipeline = replace(fake_lab.PIPELINE, recipe=Recipe(**recipe))
    return trials.make_trial(pipeline, view, seed, fake_lab.CONTEXT)


@pytest.mark.parametrize("accuracy", [0.1, 0.5, 0.83])
def test_predictions_have_about_the_accuracy_that_is_asked_for(accuracy):
    told = fake_lab.fake_predictions(accuracy, 3)
    assert metrics.metric_value(told, "accuracy") == pytest.approx(accuracy, abs=0.05)
    assert 0 <= metrics.metric_value(told, "auroc") <= 1 and metrics.metric_value(told, "nll") > 0
    assert (told.example == fake_lab.fake_predictions(0.9, 4, 2000).example).all()
    assert len(fake_lab.fake_predictions(accuracy, 0, 30).label) == 30


def test_answers_are_of_their_trial_and_the_same_each_time():
    answer = fake_lab.fake_lab()
    first, again = answer(trial()), answer(trial())
    assert first.key == trial().key and (first.predictions.predicted == again.predictions.predicted).all()
    assert first.fit == answer(trial("train-mode")).fit != answer(trial(seed=1)).fit
    assert [step for step, _, _ in first.curve] == [30, 60, 90, 120, 150]
    assert answer(trial("source-before")).curve == ()


def test_accuracies_go_with_content_and_not_with_the_seed():
    values = {
        fake_lab.accuracy_by_content(trial(view, **more))
        for view in ("test", "shifted")
        for more in ({}, {"regularizer": Regularizer.parse("l2-sp:1")})
    }
    assert len(values) == 4 and all(0.5 <= value <= 0.9 for value in values)
    assert fake_lab.accuracy_by_content(trial(seed=1)) == fake_lab.accuracy_by_content(trial(seed=2))


@pytest.mark.parametrize(
    ("recipe", "change", "why"),
    [
        (
            {"regularizer": Regularizer.parse("l2-sp:1"), "init": PermutedWeights()},
            {},
            "regularizer l2-sp:1 without pretrained weights",
        ),
        ({"regularizer": Regularizer.parse("replay:4")}, {"source": None}, "without a source"),
        (
            {"regularizer": Regularizer.parse("ewc:4")},
            {"source": AuxiliaryDataset(data=fake_lab.PIPELINE.data.target)},
            "without a source",
        ),
        ({}, {"weights": None}, "init pretrained without pretrained weights"),
    ],
)
def test_what_the_real_one_could_not_train_crashes_here_too(recipe, change, why):
    pipeline = replace_flat(fake_lab.PIPELINE, recipe=Recipe(**recipe), **change)
    assert why in fake_lab.fake_lab()(trials.make_trial(pipeline, "test", 0, fake_lab.CONTEXT)).error
    assert not fake_lab.fake_lab()(
        trials.make_trial(replace(pipeline, recipe=from_scratch()), "test", 0, fake_lab.CONTEXT)
    ).error


def test_a_measure_returns_what_it_is_told():
    (reference,) = batchnorm_drift.plugin.measures.values()
    measured = trials.make_trial(fake_lab.PIPELINE, "test", 0, fake_lab.CONTEXT, reference)
    assert fake_lab.fake_lab(measures={reference: {"drift": 3.0}})(measured).scalars == {"diverged": 0.0, "drift": 3.0}


def test_a_study_is_replayed_to_its_end_from_whatever_is_known():
    study = fake_lab.make_study(catastrophic_forgetting.plugin)
    step, answers = fake_lab.replay_study(study, fake_lab.fake_lab(examples=100))
    assert not step.pending and set(answers) == {one.trial.key for one in step.requests}

    def never(_):
        raise AssertionError("nothing is missing")

    again, known = fake_lab.replay_study(study, never, answers)
    assert known == answers and again.requests == step.requests == schedule.next_schedule(study, answers).requests


def test_a_run_is_judged_and_tells_what_it_cost():
    run = fake_lab.run_study(fake_lab.make_study(catastrophic_forgetting.plugin), fake_lab.fake_lab(examples=100))
    assert {one.plugin for one in run.findings} == {"catastrophic-forgetting"}
    assert run.cells and run.cost["trials"]["reused"] == 0 and "subject" in run.arms["catastrophic-forgetting"]
