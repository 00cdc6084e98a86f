"""Training past the best step: what it is compared with, and the candidates against it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from factory import make_record
from test_datasets import make_npz

from xferbench.cli import main
from xferbench.config.render import describe_recipe
from xferbench.core.interventions import RANDOM, Regularizer, Trainable
from xferbench.core.pipeline import Phase, Recipe
from xferbench.core.strategies import gradual_unfreezing, linear_probe, lp_ft
from xferbench.plugins import calibration, overfitting
from xferbench.testing import fake_lab
from xferbench.testing.fake_lab import PIPELINE, PROFILE

RECIPES = [
    Recipe(),
    linear_probe(),
    lp_ft(),
    gradual_unfreezing(),
    Recipe(regularizer=Regularizer.parse("l2-sp:1"), stop="best"),
]
RECIPES += [
    Recipe(init=RANDOM),
    Recipe(phases=(Phase(steps=150, warmup=100),)),
    Recipe(phases=(Phase(steps=2, batch_size=2),)),
]
SUITE = """
schema = 1
name = "small"
plugins = ["{plugin}"]
margin = 0.3
looks = [2]
tuning_seeds = 1
[backbone]
arch = "tiny-resnet"
[target]
data = "npz:{data}"
train_size = 40
[recipe]
lr = 1e-3
steps = 5
batch_size = 8
[scratch]
lr = [1e-3]
weight_decay = [0.01]
steps = 2
"""


@pytest.mark.parametrize("recipe", RECIPES, ids=describe_recipe)
def test_every_candidate_stops_at_its_best_step_and_trains_no_longer_than_the_recipe(recipe):
    subject = replace(PIPELINE, recipe=recipe)
    first, *others = (candidate.recipe for candidate in overfitting.cure(subject, PROFILE).candidates)
    assert first == replace(recipe, stop="best")
    assert others and all(candidate.stop == "best" for candidate in others), "one stopping rule for all"
    assert all(candidate.init == recipe.init and candidate.regularizer == recipe.regularizer for candidate in others)
    steps = sum(phase.steps for phase in recipe.phases)
    assert all(sum(phase.steps for phase in candidate.phases) == steps for candidate in others)


@pytest.mark.parametrize(
    ("spellings", "expected"),
    [
        (["all"], ["all", "top:2", "head"]),
        (["top:3"], ["top:3", "top:1", "head"]),
        (["norm"], ["norm", "head"]),
        (["head"], ["head"]),
    ],
)
def test_fewer_layers_are_half_of_the_trained_ones_or_the_head(spellings, expected):
    subject = replace(
        PIPELINE, recipe=Recipe(phases=tuple(Phase(trainable=Trainable.parse(spelling)) for spelling in spellings))
    )
    candidates = [str(candidate.recipe.phases[-1].trainable) for candidate in overfitting.cure(subject, PROFILE).candidates]
    assert list(dict.fromkeys(candidates)) == expected


def test_a_single_step_leaves_nothing_to_select():
    assert overfitting.applies(replace(PIPELINE, recipe=Recipe(phases=(Phase(steps=1),))), PROFILE).startswith("a single step")


def test_the_overtrained_arm_is_one_training_for_both_plugins():
    cured = overfitting.cure(replace(PIPELINE, recipe=Recipe()), PROFILE).candidates
    arms = [overfitting.induce(candidate, PROFILE)["overtrained"] for candidate in cured]
    arms += calibration.induce(calibration.cure(replace(PIPELINE, recipe=lp_ft()), PROFILE), PROFILE).values()
    assert set(arms) == {arms[0]}, "the arm depends neither on the candidate nor on a temperature"
    probe, rest = arms[0].recipe.phases
    assert (str(probe.trainable), probe.steps, rest.steps, rest.lr, rest.schedule) == ("head", 60, 240, 1e-2, "constant")
    assert arms[0].recipe.stop == "last"


def test_the_best_step_is_the_first_maximum_and_validation_is_optimistic_about_it():
    curve = ((10, 1.0, 0.5), (20, 0.5, 0.8), (30, 0.1, 0.8))
    records = {("subject", "best-step", seed): replace(make_record(f"s{seed}", 0.75), curve=curve) for seed in range(2)}
    accuracy = np.mean([(record.predictions.predicted == record.predictions.label).mean() for record in records.values()])
    assert overfitting.mean_best_step(records, [0, 1, 2]) == {"chosen step": 20.0, "optimism": pytest.approx(0.8 - accuracy)}
    assert np.isnan(overfitting.mean_best_step({}, [0])["optimism"])


def test_a_subject_that_stops_at_the_best_step_is_not_exposed():
    recipe = replace(Recipe(), stop="best")
    study = fake_lab.make_study(
        overfitting.plugin, suite=replace(fake_lab.SUITE, recipe=recipe), pipeline=replace(PIPELINE, recipe=recipe)
    )
    harm = next(finding for finding in fake_lab.run_study(study, fake_lab.fake_lab()).findings if finding.contrast == "harm")
    assert (harm.verdict, harm.estimate.harm, harm.estimate.exposed) == ("PASS", 0.0, False)
    assert harm.reason.startswith("not exposed: ")


def test_the_last_step_is_compared_with_the_best_step_of_the_same_training():
    def accuracy(trial):
        schedule = trial.model.base.procedure.phases[-1].schedule
        return 0.8 if trial.view.step == "best" or schedule != "constant" else 0.6

    by_contrast = {
        finding.contrast: finding
        for finding in fake_lab.run_study(fake_lab.make_study(overfitting.plugin), fake_lab.fake_lab(accuracy)).findings
    }
    assert (by_contrast["harm"].verdict, by_contrast["harm"].control.outcome) == ("PASS", "detected")
    assert by_contrast["harm"].control.harm == pytest.approx(0.2, abs=0.03)
    assert {by_contrast[name].verdict for name in ("gap", "regulariser")} == {"INFO"}


def test_a_small_suite_runs_from_images_to_a_verdict(tmp_path):
    data = make_npz(tmp_path / "d.npz", test=60).spec.removeprefix("npz:")
    file, out = tmp_path / "s.toml", tmp_path / "out"
    file.write_text(SUITE.format(plugin="overfitting", data=data))
    main.main(["run", str(file), "-o", str(out), "--store", str(tmp_path / "s.sqlite"), "-j", "1"])
    by_id = {finding["id"]: finding for finding in json.loads((out / "results.json").read_text())["findings"]}
    assert set(by_id) == {"overfitting/harm/overtrained", "overfitting/gap", "overfitting/regulariser"}
    assert "ERROR" not in {finding["verdict"] for finding in by_id.values()}
    assert 1 <= by_id["overfitting/harm/overtrained"]["measures"]["chosen step"] <= 5
    assert by_id["overfitting/gap"]["harm"] is not None
    assert "could not be drawn" not in (out / "report.html").read_text()
