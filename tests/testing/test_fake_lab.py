"""The fake lab: its records have the form of real records, and it refuses what the real lab cannot train."""

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


def make_trial(view="test", seed=0, **recipe):
    pipeline = replace(fake_lab.PIPELINE, recipe=Recipe(**recipe))
    return trials.make_trial(pipeline, view, seed, fake_lab.CONTEXT)


@pytest.mark.parametrize("accuracy", [0.1, 0.5, 0.83])
def test_predictions_have_about_the_requested_accuracy(accuracy):
    predictions = fake_lab.fake_predictions(accuracy, 3)
    assert metrics.metric_value(predictions, "accuracy") == pytest.approx(accuracy, abs=0.05)
    assert 0 <= metrics.metric_value(predictions, "auroc") <= 1 and metrics.metric_value(predictions, "nll") > 0
    assert (predictions.example == fake_lab.fake_predictions(0.9, 4, 2000).example).all()
    assert len(fake_lab.fake_predictions(accuracy, 0, 30).label) == 30


def test_records_belong_to_their_trial_and_are_reproducible():
    lab = fake_lab.fake_lab()
    first, repeated = lab(make_trial()), lab(make_trial())
    assert first.key == make_trial().key and (first.predictions.predicted == repeated.predictions.predicted).all()
    assert first.fit == lab(make_trial("train-mode")).fit != lab(make_trial(seed=1)).fit
    assert [step for step, _, _ in first.curve] == [30, 60, 90, 120, 150]
    assert lab(make_trial("source-before")).curve == ()


def test_accuracies_depend_on_the_content_and_not_on_the_seed():
    values = {
        fake_lab.accuracy_by_content(make_trial(view, **fields))
        for view in ("test", "shifted")
        for fields in ({}, {"regularizer": Regularizer.parse("l2-sp:1")})
    }
    assert len(values) == 4 and all(0.5 <= value <= 0.9 for value in values)
    assert fake_lab.accuracy_by_content(make_trial(seed=1)) == fake_lab.accuracy_by_content(make_trial(seed=2))


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
def test_a_recipe_that_the_real_lab_cannot_train_crashes(recipe, change, why):
    pipeline = replace_flat(fake_lab.PIPELINE, recipe=Recipe(**recipe), **change)
    assert why in fake_lab.fake_lab()(trials.make_trial(pipeline, "test", 0, fake_lab.CONTEXT)).error
    assert not fake_lab.fake_lab()(
        trials.make_trial(replace(pipeline, recipe=from_scratch()), "test", 0, fake_lab.CONTEXT)
    ).error


def test_a_measure_returns_the_given_scalars():
    (reference,) = batchnorm_drift.plugin.measures.values()
    trial = trials.make_trial(fake_lab.PIPELINE, "test", 0, fake_lab.CONTEXT, reference)
    assert fake_lab.fake_lab(measures={reference: {"drift": 3.0}})(trial).scalars == {"diverged": 0.0, "drift": 3.0}


def test_a_study_is_replayed_to_its_end_from_any_records():
    study = fake_lab.make_study(catastrophic_forgetting.plugin)
    step, records = fake_lab.replay_study(study, fake_lab.fake_lab(examples=100))
    assert not step.pending and set(records) == {request.trial.key for request in step.requests}

    def fail(_):
        raise AssertionError("nothing is missing")

    replayed_step, all_records = fake_lab.replay_study(study, fail, records)
    assert all_records == records and replayed_step.requests == step.requests == schedule.next_schedule(study, records).requests


def test_a_run_has_findings_and_costs():
    run = fake_lab.run_study(fake_lab.make_study(catastrophic_forgetting.plugin), fake_lab.fake_lab(examples=100))
    assert {finding.plugin for finding in run.findings} == {"catastrophic-forgetting"}
    assert run.cells and run.cost["trials"]["reused"] == 0 and "subject" in run.arms["catastrophic-forgetting"]
