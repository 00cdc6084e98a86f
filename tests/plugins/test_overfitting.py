"""Training past the best step: what it is compared with, and the candidates against it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from test_datasets import make_npz

from xferbench.cli import main
from xferbench.config.render import describe_recipe
from xferbench.core.interventions import RANDOM, Regularizer
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
def test_every_candidate_is_a_shorter_training_with_the_same_recipe(recipe):
    subject = replace(PIPELINE, recipe=recipe)
    first, *others = (candidate.recipe for candidate in overfitting.cure(subject, PROFILE).candidates)
    assert first == recipe and others
    lengths = [sum(phase.steps for phase in candidate.phases) for candidate in (first, *others)]
    assert lengths == sorted(set(lengths), reverse=True)
    for candidate in others:
        assert all(phase.warmup < phase.steps for phase in candidate.phases), "a suite requires it"
        pairs = zip(candidate.phases, recipe.phases, strict=True)
        same = tuple(replace(new, steps=old.steps, warmup=old.warmup) for new, old in pairs)
        assert replace(candidate, phases=same) == recipe, "the schedule of a shorter training ends at its last step"


def test_a_single_step_leaves_nothing_to_select():
    assert overfitting.applies(replace(PIPELINE, recipe=Recipe(phases=(Phase(steps=1),))), PROFILE).startswith("a single step")


def test_the_overtrained_arm_of_a_recipe_is_one_training_for_both_plugins():
    subject = replace(PIPELINE, recipe=lp_ft())
    (arm,) = overfitting.induce(subject, PROFILE).values()
    assert (arm,) == tuple(calibration.induce(calibration.cure(subject, PROFILE), PROFILE).values())
    probe, rest = arm.recipe.phases
    assert (str(probe.trainable), probe.steps, rest.steps, rest.lr, rest.schedule) == ("head", 60, 240, 1e-2, "constant")
    assert arm.recipe.stop == "last"


def find_by_contrast(best):
    """Findings by contrast, where a training is worse the farther its number of steps is from the best one."""

    def accuracy(trial):
        phases = trial.model.base.procedure.phases
        steps = sum(phase.steps for phase in phases)
        return 0.6 if phases[-1].schedule == "constant" else 0.8 - 0.1 * abs(np.log2(max(steps, 1) / best))

    findings = fake_lab.run_study(fake_lab.make_study(overfitting.plugin), fake_lab.fake_lab(accuracy)).findings
    return {finding.contrast: finding for finding in findings}


def test_a_training_that_is_four_times_too_long_fails_and_the_remedy_is_a_quarter_of_the_steps():
    by_contrast = find_by_contrast(best=38)
    harm = by_contrast["harm"]
    assert (harm.verdict, harm.control.outcome) == ("FAIL", "detected")
    assert harm.estimate.harm == pytest.approx(0.2, abs=0.03)
    assert "steps = 38" in "\n".join(harm.remedy["patch"])
    assert {by_contrast[name].verdict for name in ("gap", "regulariser")} == {"INFO"}


def test_a_training_that_ends_at_its_best_step_is_not_harmed_whatever_its_gap():
    by_contrast = find_by_contrast(best=150)
    assert by_contrast["harm"].verdict == "PASS", "every shorter training is worse"
    assert by_contrast["harm"].estimate.high < 0 and by_contrast["harm"].control.outcome == "detected"
    assert by_contrast["gap"].verdict == "INFO", "it is measured even if the cure changes nothing"


def test_a_small_suite_runs_from_images_to_a_verdict(tmp_path):
    data = make_npz(tmp_path / "d.npz", test=60).spec.removeprefix("npz:")
    file, out = tmp_path / "s.toml", tmp_path / "out"
    file.write_text(SUITE.format(plugin="overfitting", data=data))
    main.main(["run", str(file), "-o", str(out), "--store", str(tmp_path / "s.sqlite"), "-j", "1"])
    by_id = {finding["id"]: finding for finding in json.loads((out / "results.json").read_text())["findings"]}
    assert set(by_id) == {"overfitting/harm/overtrained", "overfitting/gap", "overfitting/regulariser"}
    assert "ERROR" not in {finding["verdict"] for finding in by_id.values()}
    assert by_id["overfitting/gap"]["harm"] is not None
    assert "could not be drawn" not in (out / "report.html").read_text()
