"""Learning curves of transfer and scratch: the sizes, the images of each size, and the explanation."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest
from factory import make_record, make_run
from test_schedule import PIPELINE, PROFILE

torch = pytest.importorskip("torch")

from test_loop import PREPROCESSING, WEIGHTS, make_workspace

from xferbench.core.interventions import RANDOM
from xferbench.core.pipeline import Phase, Recipe, ScratchGrid, Selection
from xferbench.core.sections import replace_flat
from xferbench.lab.data import datasets
from xferbench.lab.worker import run_trials
from xferbench.plugins import data_efficiency
from xferbench.report import figures, html, markdown
from xferbench.testing import fake_lab

TEN_CLASSES = replace(PROFILE, data=replace(PROFILE.data, classes=tuple("0123456789"), train=800))
PLUGIN = data_efficiency.plugin


def make_study(pipeline=PIPELINE, profile=TEN_CLASSES, **changes):
    suite = replace_flat(fake_lab.SUITE, **{"looks": (3, 5), "tuning_seeds": 1, "scratch": pipeline.baseline} | changes)
    return fake_lab.make_study(PLUGIN, suite=suite, pipeline=pipeline, facts=profile)


def accuracy_by_size(trial):
    """Transfer needs a quarter of the images of scratch."""
    spec = trial.model.base
    images = (spec.data.train_size or 800) * (1 if spec.network.init == RANDOM else 4)
    return 1 - (0.1 + 0.1 * (images / 800) ** -0.5)


def test_there_are_six_sizes_from_a_thirty_second_or_two_images_a_class():
    profile = replace(TEN_CLASSES, data=replace(TEN_CLASSES.data, train=3200))
    assert data_efficiency.sizes(replace(PIPELINE, data=replace(PIPELINE.data, train_size=3200)), profile) == [
        100,
        200,
        400,
        800,
        1600,
        3200,
    ]
    assert data_efficiency.sizes(replace(PIPELINE, data=replace(PIPELINE.data, train_size=200)), TEN_CLASSES) == [
        20,
        32,
        50,
        80,
        126,
        200,
    ]
    assert data_efficiency.sizes(replace(PIPELINE, data=replace(PIPELINE.data, train_size=None)), TEN_CLASSES)[-1] == 800


def test_the_largest_size_counts_images_of_the_training_part(tmp_path):
    dataset = datasets.load_dataset(make_workspace(tmp_path).data, PREPROCESSING, None, tmp_path)
    train_size = len(datasets.train_validation_indices(dataset, 115, 0)[0])
    assert (train_size, len(dataset.train.labels)) == (96, 120)
    assert (
        data_efficiency.sizes(
            replace(PIPELINE, data=replace(PIPELINE.data, train_size=115)),
            replace(TEN_CLASSES, data=replace(TEN_CLASSES.data, train=train_size)),
        )[-1]
        == 96
    )
    assert "fewer than eight" in data_efficiency.applies(
        replace(PIPELINE, data=replace(PIPELINE.data, train_size=90)),
        replace(TEN_CLASSES, data=replace(TEN_CLASSES.data, train=72)),
    )


def test_the_largest_set_is_that_of_the_pipeline_and_scratch_is_tuned_at_every_size():
    arms = data_efficiency.extra_arms(replace(PIPELINE, data=replace(PIPELINE.data, train_size=None)), TEN_CLASSES)
    assert arms["transfer-800"] == replace(PIPELINE, data=replace(PIPELINE.data, train_size=None))
    assert [candidate.data.train_size for candidate in arms["scratch-25"].candidates] == [25] * len(
        arms["scratch-25"].candidates
    )
    rates = {
        candidate.recipe.phases[0].lr for candidate in arms["scratch-800"].candidates if candidate.recipe.phases[0].steps == 500
    }
    assert rates == set(PIPELINE.baseline.lr)
    assert all(isinstance(arm, Selection) for name, arm in arms.items() if name.startswith("scratch"))


def test_the_plugin_does_not_apply_to_few_images_or_to_groups():
    assert "fewer than eight" in data_efficiency.applies(
        replace(PIPELINE, data=replace(PIPELINE.data, train_size=79)), TEN_CLASSES
    )
    assert "groups" in data_efficiency.applies(PIPELINE, replace(TEN_CLASSES, data=replace(TEN_CLASSES.data, test_groups=5)))
    assert data_efficiency.applies(replace(PIPELINE, data=replace(PIPELINE.data, train_size=80)), TEN_CLASSES) == ""


def test_the_multiplier_is_measured_at_each_size_up_to_twice_the_largest():
    run = fake_lab.run_study(
        make_study(replace(PIPELINE, data=replace(PIPELINE.data, train_size=800))), fake_lab.fake_lab(accuracy_by_size)
    )
    (finding,) = run.findings
    assert (finding.id, finding.verdict, finding.estimate.seeds) == ("data-efficiency/gain", "INFO", 3)
    assert finding.measures["M at n = 25"] == pytest.approx(4, rel=0.1)
    assert "M at n = 800" not in finding.measures, "a multiplier that is not reached has no value"
    assert "more than 2 at n = 800" in finding.reason and "more than 4 [3.7" in finding.reason
    assert finding.measures["M, low, at n = 25"] <= finding.measures["M at n = 25"] <= finding.measures["M, high, at n = 25"]


def test_a_measurement_uses_the_first_look_only_and_is_in_every_report():
    step, _ = fake_lab.replay_study(
        make_study(replace(PIPELINE, data=replace(PIPELINE.data, train_size=800))), fake_lab.fake_lab(accuracy_by_size)
    )
    assert {request.seed for request in step.requests if request.view == "test"} == {0, 1, 2}
    run = fake_lab.run_study(
        make_study(replace(PIPELINE, data=replace(PIPELINE.data, train_size=800))), fake_lab.fake_lab(accuracy_by_size)
    )
    for page in (html.render(run, {PLUGIN.id: PLUGIN}), markdown.render(run)):
        assert "data-efficiency" in page
    assert "more than 2 at n = 800" in html.render(run, {PLUGIN.id: PLUGIN})


def test_a_crash_at_one_size_is_an_error_of_the_curve():
    def lab(trial):
        record = fake_lab.fake_lab(accuracy_by_size)(trial)
        is_small = trial.model.base.data.train_size == 25 and trial.model.base.network.init != RANDOM
        return replace(record, predictions=None, error="Boom: on purpose") if is_small else record

    (finding,) = fake_lab.run_study(make_study(replace(PIPELINE, data=replace(PIPELINE.data, train_size=800))), lab).findings
    assert finding.verdict == "ERROR" and "Boom" in finding.reason


def make_records(sizes=(10, 20), seeds=range(3), **crashed):
    """Records of both arms, each with its own accuracy; those named ``ARM_SIZE=SEED`` crash."""
    records = {}
    for (rank, name), size, seed in product(enumerate(("transfer", "scratch")), sizes, seeds):
        record = make_record(f"{name}{size}{seed}", 0.5 + 0.1 * seed + 0.01 * size - 0.1 * rank)
        is_crashed = crashed.get(f"{name}_{size}") == seed
        records[f"beside:{name}-{size}", "test", seed] = (
            replace(record, predictions=None, error="Boom") if is_crashed else record
        )
    return records


def test_curves_use_the_seeds_that_both_arms_have_at_every_size():
    complete, partial = (
        data_efficiency.curves(make_records(**crashed)) for crashed in ({}, {"transfer_10": 0, "scratch_20": 2})
    )
    assert [curve.shape for curve in complete] == [(2,), (3, 2), (3, 2)]
    assert [curve.shape for curve in partial] == [(2,), (1, 2), (1, 2)]
    assert all(
        np.array_equal(partial_curve, complete_curve[1:2])
        for partial_curve, complete_curve in zip(partial[1:], complete[1:], strict=True)
    ), "only seed 1 is complete"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("records", [{}, make_records(seeds=[0], transfer_10=0)], ids=["nothing", "no whole seed"])
def test_without_a_complete_curve_nothing_is_reported(records):
    assert data_efficiency.metrics_by_size(records, [0]) == {}
    assert data_efficiency.explain("gain", records, PIPELINE, PIPELINE) == ""
    assert "could not be drawn" not in figures.draw_plugin_plot(PLUGIN, make_run())


def test_the_measure_is_accuracy_whatever_the_metric_of_the_suite():
    (finding,) = fake_lab.run_study(make_study(metric="nll", margin=0.1), fake_lab.fake_lab(accuracy_by_size)).findings
    assert (finding.estimate.metric, finding.verdict) == ("accuracy", "INFO")


def test_smaller_sets_of_a_seed_are_subsets_of_larger_ones(tmp_path):
    context = make_workspace(tmp_path)
    dataset = datasets.load_dataset(context.data, PREPROCESSING, None, context.cache)
    for seed in range(3):
        index_sets = [
            set(datasets.train_validation_indices(dataset, size, seed)[0].tolist()) for size in (8, 13, 20, 33, 60, 100, 120)
        ]
        assert all(smaller < larger for smaller, larger in pairwise(index_sets[:-1]))
        assert index_sets[-1] < index_sets[-2], "the whole training set without its held-out fifth follows the same order"


def test_a_small_run_goes_from_images_to_a_plot(tmp_path):
    context = make_workspace(tmp_path)
    pipeline = replace(
        PIPELINE,
        backbone=replace(PIPELINE.backbone, weights=WEIGHTS),
        data=replace(PIPELINE.data, target=context.data, train_size=60, train_preprocessing=PREPROCESSING),
        recipe=Recipe(phases=(Phase(steps=2, batch_size=8),)),
        baseline=ScratchGrid(lr=(1e-2,), weight_decay=(0.01,), steps=2, batch_size=8),
        serving=replace(PIPELINE.serving, preprocessing=PREPROCESSING),
    )
    profile = replace(PROFILE, data=replace(PROFILE.data, classes=("0", "1", "2", "3"), train=120, test=60))
    study = make_study(pipeline, profile, looks=(2,), recipe=pipeline.recipe)
    run = fake_lab.run_study(study, lambda trial: run_trials.run_trials((trial,), frozenset({trial.key}), context.cache)[0][0])
    (finding,) = run.findings
    assert finding.verdict == "INFO", finding.reason
    sizes = data_efficiency.sizes(pipeline, profile)
    assert len(set(sizes)) == 6 and all(f"n = {size}" in finding.reason for size in sizes)
    assert np.isfinite([finding.measures[f"scratch error at n = {size}"] for size in sizes]).all()
    assert "could not be drawn" not in figures.draw_plugin_plot(PLUGIN, run)
