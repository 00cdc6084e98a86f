"""A shortcut cue in the source: its pixels, the arms and contrasts, and a run on small datasets."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from test_datasets import make_npz
from test_loop import PREPROCESSING, make_spec, make_trial, make_workspace

from xferbench.config import loader
from xferbench.core.canonical import canonical
from xferbench.core.interventions import PRETRAINED, RANDOM, CleanSource, CuedSource, Regularizer
from xferbench.core.pipeline import Phase, Recipe
from xferbench.core.sections import replace_flat
from xferbench.core.transforms import Spectrogram
from xferbench.core.trial import EvaluationSpec, TrainingSpec
from xferbench.lab.data import datasets, shortcut_cue
from xferbench.lab.worker import run_trials
from xferbench.plugins import shortcut_transfer
from xferbench.runner import build_run, execute
from xferbench.study.trials import training_spec
from xferbench.testing import fake_lab

PLUGIN, PIPELINE, PROFILE = shortcut_transfer.plugin, fake_lab.PIPELINE, fake_lab.PROFILE


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return make_workspace(tmp_path_factory.mktemp("workspace"))


def test_the_cue_is_a_magenta_square_in_the_corner_and_leaves_the_rest_unchanged():
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 40), dtype=np.uint8)
    before, with_cue = images.copy(), shortcut_cue.add_cue(images)
    assert (with_cue[:, :, :4, :4].transpose(0, 2, 3, 1) == (255, 0, 255)).all()
    is_changed = with_cue != images
    assert not is_changed[:, :, 4:].any() and not is_changed[:, :, :, 4:].any()
    assert np.array_equal(images, before), "the function returns a copy"


def test_a_correlated_cue_is_on_all_training_images_of_the_first_class_and_on_no_other(workspace):
    dataset = datasets.load_dataset(workspace.data, PREPROCESSING, None, workspace.cache)
    correlated = shortcut_cue.correlate_with_class(dataset)
    has_cue = (correlated.train.images == shortcut_cue.add_cue(dataset.train.images)).all((1, 2, 3))
    assert np.array_equal(has_cue, dataset.train.labels == 0)
    assert correlated.test is dataset.test and np.array_equal(correlated.train.labels, dataset.train.labels)


def test_a_training_with_a_cue_uses_cued_images_and_so_does_a_cued_view(workspace):
    spec = make_spec(workspace, Phase(steps=2, batch_size=8), init=RANDOM, cued=True)
    trial = make_trial(spec)
    dataset, _ = run_trials.training_inputs(spec, trial, workspace.cache)
    plain_dataset, _ = run_trials.training_inputs(replace_flat(spec, cued=False), trial, workspace.cache)
    assert np.array_equal(dataset.train.images, shortcut_cue.correlate_with_class(plain_dataset).train.images)
    trials = [replace(trial, view=replace(trial.view, has_cue=has_cue)) for has_cue in (False, True)]
    (without_cue, with_cue), _ = run_trials.run_trials(trials, frozenset(trial.key for trial in trials), workspace.cache)
    assert not without_cue.error and not with_cue.error
    assert np.array_equal(without_cue.predictions.example, with_cue.predictions.example), "the same examples"
    assert not np.array_equal(without_cue.predictions.p_true, with_cue.predictions.p_true)


def test_keys_without_a_cue_stay_unchanged(workspace):
    assert "cued" not in canonical(make_spec(workspace)) and "cued" not in canonical(
        EvaluationSpec(preprocessing=PREPROCESSING)
    )


def test_the_sources_with_and_without_the_cue_are_otherwise_equal():
    cured = PLUGIN.cure(PIPELINE, PROFILE)
    induced = PLUGIN.induce(cured, PROFILE)["tied"]
    clean_source, cued_source = (training_spec(arm, 0).network.start for arm in (cured, induced))
    assert clean_source == replace_flat(cued_source, cued=False) and cued_source.data.has_cue
    assert clean_source.procedure.phases[0].steps == 3 * PIPELINE.baseline.steps
    assert (clean_source.data.labels, clean_source.network.init) == ("true", RANDOM)
    assert clean_source.data.dataset == PIPELINE.data.source.data
    assert training_spec(cured, 0) == replace_flat(training_spec(induced, 0), start=clean_source)


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
def test_the_plugin_gives_a_reason_if_it_does_not_apply(change, reason):
    actual = PLUGIN.applies(replace_flat(PIPELINE, **change), PROFILE)
    assert reason in actual and bool(actual) == bool(reason)


def find_by_cost(costs, init=PRETRAINED):
    """Findings by id; ``costs`` is what the cue costs from a checkpoint or none, a clean source and a cued source."""

    def accuracy(trial):
        start = trial.model.base.network.start
        kind = "own" if not isinstance(start, TrainingSpec) else "cued" if start.data.has_cue else "clean"
        return 0.8 - trial.view.has_cue * costs[kind]

    suite = replace(fake_lab.SUITE, recipe=Recipe(init=init))
    run = fake_lab.run_study(fake_lab.make_study(PLUGIN, suite=suite), fake_lab.fake_lab(accuracy))
    return {finding.id.removeprefix("shortcut-transfer/"): finding for finding in run.findings}


def test_the_cost_for_a_checkpoint_is_measured_and_never_judged_as_clean_networks_differ_too():
    by_id = find_by_cost({"own": 0.3, "clean": 0.05, "cued": 0.35})
    assert {name: finding.verdict for name, finding in by_id.items()} == dict.fromkeys(
        ("cue-cost", "clean-cue-cost", "difference", "tied"), "INFO"
    )
    harms = [finding.estimate.harm for finding in by_id.values()]
    assert harms == pytest.approx([0.3, 0.05, 0.25, 0.3], abs=0.03)


def test_a_recipe_that_starts_from_a_cued_source_fails_and_the_remedy_is_a_clean_source():
    by_id = find_by_cost({"own": 0, "clean": 0.05, "cued": 0.35}, init=CuedSource())
    assert set(by_id) == {"harm/tied", "cue-cost"}
    finding = by_id["harm/tied"]
    assert finding.verdict == "FAIL" and finding.estimate.harm == pytest.approx(0.3, abs=0.03)
    assert 'init = "clean-source"' in "\n".join(finding.remedy["patch"])


def test_a_recipe_that_starts_from_a_clean_source_is_not_exposed():
    finding = find_by_cost({"own": 0, "clean": 0.05, "cued": 0.35}, init=CleanSource())["harm/tied"]
    assert (finding.verdict, finding.estimate.harm, finding.control.outcome) == ("PASS", 0.0, "detected")


def test_a_suite_on_small_datasets_reaches_findings(tmp_path):
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
    suite = loader.parse_suite(table, tmp_path / "s.toml")
    findings = build_run.build_run(execute.execute(suite, path=tmp_path / "store.sqlite")).findings
    names = [finding.id.removeprefix("shortcut-transfer/") for finding in findings]
    assert names == ["cue-cost", "clean-cue-cost", "difference", "tied"]
    assert all(finding.verdict == "INFO" and finding.estimate.harm is not None for finding in findings)
