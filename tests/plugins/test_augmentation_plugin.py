"""Augmentations: the candidates, the controls, and a run on small images."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_datasets import make_npz

from xferbench.config import loader
from xferbench.core.interventions import RANDOM, Crop, Flip, FlipAndCrop
from xferbench.core.pipeline import Phase, Recipe, replace_data
from xferbench.core.transforms import Spectrogram
from xferbench.plugins import augmentation
from xferbench.runner import build_run, execute
from xferbench.testing import fake_lab
from xferbench.testing.fake_lab import PIPELINE, PROFILE

TABLE = {
    "schema": 1,
    "name": "augmentation",
    "plugins": ["augmentation"],
    "looks": [2],
    "tuning_seeds": 1,
    "backbone": {"arch": "tiny-resnet"},
    "target": {"data": "npz:target.npz", "train_size": 60},
    "recipe": {"steps": 5, "batch_size": 8},
    "scratch": {"lr": [3e-3], "weight_decay": [0.01], "steps": 5, "batch_size": 8},
}


def spell(candidates):
    return [str(candidate.recipe.augment or "none") for candidate in candidates]


@pytest.mark.parametrize(
    "recipe", [Recipe(), Recipe(init=RANDOM, phases=(Phase(steps=7),), stop="best"), Recipe(augment=Flip())]
)
def test_the_candidates_are_the_recipe_with_each_augmentation(recipe):
    candidates = augmentation.cure(replace(PIPELINE, recipe=recipe), PROFILE).candidates
    assert spell(candidates) == ["none", "flip", "crop", "flip+crop"]
    assert {replace(candidate.recipe, augment=None) for candidate in candidates} == {replace(recipe, augment=None)}


@pytest.mark.parametrize(
    ("augment", "expected"),
    [
        (None, {"worst": ["flip", "crop", "flip+crop"]}),
        (Crop(), {"none": ["none"], "worst": ["flip", "flip+crop"]}),
    ],
)
def test_no_augmentation_and_the_worst_one_are_induced_unless_the_cure_has_them(augment, expected):
    arms = augmentation.induce(replace(PIPELINE, recipe=Recipe(augment=augment)), PROFILE)
    assert {name: spell(getattr(arm, "candidates", (arm,))) for name, arm in arms.items()} == expected
    assert arms["worst"].worst


def test_only_images_can_be_augmented():
    assert augmentation.applies(PIPELINE, PROFILE) == ""
    assert "only images" in augmentation.applies(replace_data(PIPELINE, train_preprocessing=Spectrogram()), PROFILE)


def find_harms(scores, augment):
    """Findings by variant, where each augmentation has its accuracy."""
    suite = replace(fake_lab.SUITE, recipe=Recipe(augment=augment))
    lab = fake_lab.fake_lab(lambda trial: scores[str(trial.model.base.procedure.augment or "none")])
    run = fake_lab.run_study(fake_lab.make_study(augmentation.plugin, suite=suite), lab)
    return {finding.control.variant: finding for finding in run.findings}


def test_a_recipe_that_lacks_crops_fails_and_the_remedy_is_a_crop():
    by_variant = find_harms({"none": 0.6, "flip": 0.5, "crop": 0.8, "flip+crop": 0.7}, augment=None)
    assert set(by_variant) == {"none", "worst"}
    assert {(finding.verdict, finding.control.outcome) for finding in by_variant.values()} == {("FAIL", "detected")}
    assert by_variant["worst"].estimate.harm == pytest.approx(0.2, abs=0.03)
    assert by_variant["worst"].control.harm == pytest.approx(0.3, abs=0.03), "flips are the worst"
    assert 'augment = "crop"' in "\n".join(by_variant["worst"].remedy["patch"])


def test_flips_of_mirrored_classes_fail_and_the_remedy_has_none():
    (finding,) = find_harms({"none": 0.8, "flip": 0.5, "crop": 0.75, "flip+crop": 0.5}, augment=FlipAndCrop()).values()
    assert finding.verdict == "FAIL" and finding.estimate.harm == pytest.approx(0.3, abs=0.03)
    assert finding.accuracy["cured"] == pytest.approx(0.8, abs=0.03)


def test_a_suite_on_small_images_reaches_findings(tmp_path):
    make_npz(tmp_path / "target.npz")
    suite = loader.parse_suite(TABLE, tmp_path / "s.toml")
    findings = build_run.build_run(execute.execute(suite, path=tmp_path / "store.sqlite")).findings
    assert {"augmentation/harm/worst"} <= {finding.id for finding in findings}
    assert all(finding.verdict != "ERROR" and finding.control.harm is not None for finding in findings)
