"""Learning curves of subject and scratch: which sizes, of which images, and what is said of them."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest
from factory import make_record, make_run
from test_schedule import PIPELINE, PROFILE

torch = pytest.importorskip("torch")

from test_loop import READY, WEIGHTS, make_world

from xferbench.core.interventions import RANDOM
from xferbench.core.pipeline import Phase, Recipe, ScratchGrid, Selection
from xferbench.core.sections import replace_flat
from xferbench.lab.data import datasets
from xferbench.lab.worker import run_trials
from xferbench.plugins import data_efficiency
from xferbench.report import figures, html, markdown
from xferbench.testing import fake_lab

TEN = replace(PROFILE, data=replace(PROFILE.data, classes=tuple("0123456789"), train=800))
PLUGIN = data_efficiency.plugin


def asked(pipeline=PIPELINE, facts=TEN, **more):
    suite = replace_flat(fake_lab.SUITE, **{"looks": (3, 5), "tuning_seeds": 1, "scratch": pipeline.baseline} | more)
    return fake_lab.make_study(PLUGIN, suite=suite, pipeline=pipeline, facts=facts)


def by_size(trial):
    """Transfer needs a quarter of the images that scratch does."""
    fit = trial.model.base
    n = (fit.train_size or 800) * (1 if fit.init == RANDOM else 4)
    return 1 - (0.1 + 0.1 * (n / 800) ** -0.5)


def test_six_sizes_from_a_thirty_second_or_two_a_class():
    many = replace(TEN, data=replace(TEN.data, train=3200))
    assert data_efficiency.sizes(replace(PIPELINE, data=replace(PIPELINE.data, train_size=3200)), many) == [
        100,
        200,
        400,
        800,
        1600,
        3200,
    ]
    assert data_efficiency.sizes(replace(PIPELINE, data=replace(PIPELINE.data, train_size=200)), TEN) == [
        20,
        32,
        50,
        80,
        126,
        200,
    ]
    assert data_efficiency.sizes(replace(PIPELINE, data=replace(PIPELINE.data, train_size=None)), TEN)[-1] == 800


def test_the_largest_size_is_of_the_images_that_are_trained_on(tmp_path):
    dataset = datasets.load_dataset(make_world(tmp_path).data, READY, None, tmp_path)
    trained = len(datasets.train_validation_indices(dataset, 115, 0)[0])
    assert (trained, len(dataset.train.labels)) == (96, 120)
    assert (
        data_efficiency.sizes(
            replace(PIPELINE, data=replace(PIPELINE.data, train_size=115)), replace(TEN, data=replace(TEN.data, train=trained))
        )[-1]
        == 96
    )
    assert "fewer than eight" in data_efficiency.applies(
        replace(PIPELINE, data=replace(PIPELINE.data, train_size=90)), replace(TEN, data=replace(TEN.data, train=72))
    )


def test_the_largest_set_is_the_pipelines_own_and_scratch_is_tuned_at_each():
    arms = data_efficiency.extra_arms(replace(PIPELINE, data=replace(PIPELINE.data, train_size=None)), TEN)
    assert arms["transfer-800"] == replace(PIPELINE, data=replace(PIPELINE.data, train_size=None))
    assert [one.data.train_size for one in arms["scratch-25"].candidates] == [25] * len(arms["scratch-25"].candidates)
    rates = {one.recipe.phases[0].lr for one in arms["scratch-800"].candidates if one.recipe.phases[0].steps == 500}
    assert rates == set(PIPELINE.baseline.lr)
    assert all(isinstance(arm, Selection) for name, arm in arms.items() if name.startswith("scratch"))


def test_too_few_images_and_images_in_groups_are_not_asked_about():
    assert "fewer than eight" in data_efficiency.applies(replace(PIPELINE, data=replace(PIPELINE.data, train_size=79)), TEN)
    assert "groups" in data_efficiency.applies(PIPELINE, replace(TEN, data=replace(TEN.data, test_groups=5)))
    assert data_efficiency.applies(replace(PIPELINE, data=replace(PIPELINE.data, train_size=80)), TEN) == ""


def test_the_multiplier_is_told_at_each_size_and_never_beyond_twice_the_largest():
    run = fake_lab.run_study(asked(replace(PIPELINE, data=replace(PIPELINE.data, train_size=800))), fake_lab.fake_lab(by_size))
    (one,) = run.findings
    assert (one.id, one.verdict, one.seeds) == ("data-efficiency/gain", "INFO", 3)
    assert one.measures["M at n = 25"] == pytest.approx(4, rel=0.1)
    assert "M at n = 800" not in one.measures, "what is not reached is no number"
    assert "more than 2 at n = 800" in one.reason and "more than 4 at n = 400" in one.reason
    assert one.measures["M, low, at n = 25"] <= one.measures["M at n = 25"] <= one.measures["M, high, at n = 25"]


def test_what_is_only_measured_is_asked_at_the_first_look_alone_and_is_in_every_report():
    step, _ = fake_lab.replay_study(
        asked(replace(PIPELINE, data=replace(PIPELINE.data, train_size=800))), fake_lab.fake_lab(by_size)
    )
    assert {one.seed for one in step.requests if one.view == "test"} == {0, 1, 2}
    run = fake_lab.run_study(asked(replace(PIPELINE, data=replace(PIPELINE.data, train_size=800))), fake_lab.fake_lab(by_size))
    for page in (html.render(run, {PLUGIN.id: PLUGIN}), markdown.render(run)):
        assert "data-efficiency" in page
    assert "more than 2 at n = 800" in html.render(run, {PLUGIN.id: PLUGIN})


def test_a_crash_of_one_size_is_an_error_and_no_curve_without_it():
    def lab(trial):
        fine = fake_lab.fake_lab(by_size)(trial)
        small = trial.model.base.train_size == 25 and trial.model.base.init != RANDOM
        return replace(fine, predictions=None, error="Boom: on purpose") if small else fine

    (one,) = fake_lab.run_study(asked(replace(PIPELINE, data=replace(PIPELINE.data, train_size=800))), lab).findings
    assert one.verdict == "ERROR" and "Boom" in one.reason


def answers(sizes=(10, 20), seeds=range(3), **crashed):
    """Records of both arms, each of an accuracy of its own; those named ``ARM_SIZE=SEED`` crashed."""
    told = {}
    for (rank, name), size, seed in product(enumerate(("transfer", "scratch")), sizes, seeds):
        one = make_record(f"{name}{size}{seed}", 0.5 + 0.1 * seed + 0.01 * size - 0.1 * rank)
        broken = crashed.get(f"{name}_{size}") == seed
        told[f"beside:{name}-{size}", "test", seed] = replace(one, predictions=None, error="Boom") if broken else one
    return told


def test_curves_are_of_the_seeds_that_both_have_at_every_size():
    whole, some = (data_efficiency.curves(answers(**crashed)) for crashed in ({}, {"transfer_10": 0, "scratch_20": 2}))
    assert [one.shape for one in whole] == [(2,), (3, 2), (3, 2)]
    assert [one.shape for one in some] == [(2,), (1, 2), (1, 2)]
    assert all(np.array_equal(few, own[1:2]) for few, own in zip(some[1:], whole[1:], strict=True)), "of seed 1 alone"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("told", [{}, answers(seeds=[0], transfer_10=0)], ids=["nothing", "no whole seed"])
def test_without_a_whole_curve_nothing_is_told(told):
    assert data_efficiency.metrics_by_size(told, [0]) == {}
    assert data_efficiency.explain("gain", told, PIPELINE, PIPELINE) == ""
    assert "could not be drawn" not in figures.draw_plugin_plot(PLUGIN, make_run())


def test_all_is_in_accuracy_whatever_the_suites_metric():
    (one,) = fake_lab.run_study(asked(metric="nll", margin=0.1), fake_lab.fake_lab(by_size)).findings
    assert (one.metric, one.verdict) == ("accuracy", "INFO")


def test_smaller_sets_of_a_seed_lie_within_larger_ones(tmp_path):
    world = make_world(tmp_path)
    dataset = datasets.load_dataset(world.data, READY, None, world.cache)
    for seed in range(3):
        chosen = [
            set(datasets.train_validation_indices(dataset, size, seed)[0].tolist()) for size in (8, 13, 20, 33, 60, 100, 120)
        ]
        assert all(small < large for small, large in pairwise(chosen[:-1]))
        assert chosen[-1] < chosen[-2], "all of them, less the fifth that is held out, is a set of that order too"


def test_a_small_run_from_images_to_picture(tmp_path):
    world = make_world(tmp_path)
    pipeline = replace(
        PIPELINE,
        backbone=replace(PIPELINE.backbone, weights=WEIGHTS),
        data=replace(PIPELINE.data, target=world.data, train_size=60, train_preprocessing=READY),
        recipe=Recipe(phases=(Phase(steps=2, batch_size=8),)),
        baseline=ScratchGrid(lr=(1e-2,), weight_decay=(0.01,), steps=2, batch_size=8),
        serving=replace(PIPELINE.serving, preprocessing=READY),
    )
    facts = replace(PROFILE, data=replace(PROFILE.data, classes=("0", "1", "2", "3"), train=120, test=60))
    study = asked(pipeline, facts, looks=(2,), recipe=pipeline.recipe)
    run = fake_lab.run_study(study, lambda trial: run_trials.run_trials((trial,), frozenset({trial.key}), world.cache)[0][0])
    (one,) = run.findings
    assert one.verdict == "INFO", one.reason
    sizes = data_efficiency.sizes(pipeline, facts)
    assert len(set(sizes)) == 6 and all(f"n = {size}" in one.reason for size in sizes)
    assert np.isfinite([one.measures[f"scratch error at n = {size}"] for size in sizes]).all()
    assert "could not be drawn" not in figures.draw_plugin_plot(PLUGIN, run)
