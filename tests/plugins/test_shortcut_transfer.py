"""A cue in the source: how it is put on, what is asked, what is judged, and the whole of it on the digits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from test_datasets import make_npz
from test_loop import READY, make_fit, make_trial, make_world

from xferbench.config import loader
from xferbench.core.canonical import canonical
from xferbench.core.interventions import RANDOM, CuedSource, Regularizer
from xferbench.core.pipeline import Phase, Recipe, Spectrogram
from xferbench.core.sections import replace_flat
from xferbench.core.trial import EvaluationSpec
from xferbench.lab.data import datasets, shortcut_cue
from xferbench.lab.worker import run_trials
from xferbench.plugins import shortcut_transfer
from xferbench.runner import build_run, execute
from xferbench.study.trials import training_spec
from xferbench.testing import fake_lab

PLUGIN, PIPELINE, FACTS = shortcut_transfer.plugin, fake_lab.PIPELINE, fake_lab.PROFILE


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


def test_the_cue_is_a_magenta_square_of_an_eighth_in_the_corner_and_the_rest_stays():
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 40), dtype=np.uint8)
    before, found = images.copy(), shortcut_cue.add_cue(images)
    assert (found[:, :, :4, :4].transpose(0, 2, 3, 1) == (255, 0, 255)).all()
    changed = found != images
    assert not changed[:, :, 4:].any() and not changed[:, :, :, 4:].any()
    assert np.array_equal(images, before), "a copy"


def test_a_tied_cue_is_on_all_training_images_of_the_first_class_and_on_no_other(world):
    dataset = datasets.load_dataset(world.data, READY, None, world.cache)
    tied = shortcut_cue.correlate_with_class(dataset)
    worn = (tied.train.images == shortcut_cue.add_cue(dataset.train.images)).all((1, 2, 3))
    assert np.array_equal(worn, dataset.train.labels == 0)
    assert tied.test is dataset.test and np.array_equal(tied.train.labels, dataset.train.labels)


def test_a_cued_fit_is_trained_on_cued_images_and_a_cued_view_sees_them(world):
    one = make_fit(world, Phase(steps=2, batch_size=8), init=RANDOM, has_cue=True)
    trial = make_trial(one)
    dataset, _ = run_trials.training_inputs(one, trial, world.cache)
    plain, _ = run_trials.training_inputs(replace(one, has_cue=False), trial, world.cache)
    assert np.array_equal(dataset.train.images, shortcut_cue.correlate_with_class(plain).train.images)
    trials = [replace(trial, view=replace(trial.view, has_cue=cued)) for cued in (False, True)]
    (bare, worn), _ = run_trials.run_trials(trials, frozenset(one.key for one in trials), world.cache)
    assert not bare.error and not worn.error
    assert np.array_equal(bare.predictions.example, worn.predictions.example), "the same examples"
    assert not np.array_equal(bare.predictions.p_true, worn.predictions.p_true)


def test_what_has_no_cue_has_the_keys_that_it_always_had(world):
    assert "cued" not in canonical(make_fit(world)) and "cued" not in canonical(EvaluationSpec(preprocessing=READY))


def test_the_sources_are_one_with_the_cue_and_one_without_and_else_the_same():
    cured = PLUGIN.cure(PIPELINE, FACTS)
    tied = PLUGIN.induce(cured, FACTS)["tied"]
    clean, cued = (training_spec(one, 0).start for one in (cured, tied))
    assert clean == replace(cued, has_cue=False) and cued.has_cue
    assert clean.phases[0].steps == 3 * PIPELINE.baseline.steps
    assert (clean.labels, clean.init, clean.data) == ("true", RANDOM, PIPELINE.data.source.data)
    assert training_spec(cured, 0) == replace(training_spec(tied, 0), start=clean)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"source": None}, "no [source]"),
        ({"recipe": Recipe(init=RANDOM)}, "nothing pretrained"),
        ({"recipe": Recipe(regularizer=Regularizer.parse("l2-sp:1"))}, "regularizer"),
        ({"train_preprocessing": Spectrogram()}, "only images"),
        ({"recipe": Recipe(init=CuedSource())}, ""),
    ],
)
def test_where_it_cannot_be_asked_it_says_why(change, reason):
    told = PLUGIN.applies(replace_flat(PIPELINE, **change), FACTS)
    assert reason in told and bool(told) == bool(reason)


def found(costs):
    """Findings where the cue costs a subject, a clean source and a cued one so much."""

    def accuracy(trial):
        start = trial.model.base.start
        kind = "own" if not hasattr(start, "has_cue") else "cued" if start.has_cue else "clean"
        return 0.8 - trial.view.has_cue * costs[kind]

    run = fake_lab.run_study(fake_lab.make_study(PLUGIN), fake_lab.fake_lab(accuracy))
    return {one.id: one for one in run.findings}


def test_harm_is_what_the_cue_costs_beyond_what_it_costs_a_clean_source():
    told = found({"own": 0.05, "clean": 0.05, "cued": 0.35})
    one = told["shortcut-transfer/harm/tied"]
    assert (one.verdict, one.control) == ("PASS", "detected")
    assert one.harm == pytest.approx(0, abs=0.02) and one.control_harm == pytest.approx(0.3, abs=0.03)
    assert told["shortcut-transfer/cue-cost"].harm == pytest.approx(0.05, abs=0.02)
    assert told["shortcut-transfer/clean-cue-cost"].verdict == "INFO"


def test_a_subject_that_goes_by_the_cue_fails_and_is_told_where_to_begin():
    one = found({"own": 0.3, "clean": 0.05, "cued": 0.35})["shortcut-transfer/harm/tied"]
    assert one.verdict == "FAIL" and one.harm == pytest.approx(0.25, abs=0.03)
    assert 'init = "clean-source"' in "\n".join(one.remedy["patch"])


def test_the_whole_of_it_on_a_small_world(tmp_path):
    make_npz(tmp_path / "target.npz")
    make_npz(tmp_path / "source.npz", train=160)
    table = {
        "schema": 1,
        "name": "shortcut",
        "plugins": ["shortcut-transfer"],
        "looks": [2],
        "tuning_seeds": 1,
        "backbone": {"arch": "tiny-resnet"},
        "source": {"data": "npz:source.npz"},
        "target": {"data": "npz:target.npz", "train_size": 60},
        "recipe": {"strategy": "linear-probe", "steps": 10},
        "scratch": {"lr": [3e-3], "weight_decay": [0.01], "steps": 10, "batch_size": 16},
    }
    asked = loader.parse_suite(table, tmp_path / "s.toml")
    told = build_run.build_run(execute.execute(asked, path=tmp_path / "store.sqlite")).findings
    assert [one.id.removeprefix("shortcut-transfer/") for one in told] == ["harm/tied", "cue-cost", "clean-cue-cost"]
    assert all(one.verdict not in {"ERROR", "SKIPPED"} and one.harm is not None for one in told)
