"""Probabilities of trained networks, with and without a temperature from validation."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from factory import make_record
from test_datasets import make_npz

from xferbench.analysis import reliability
from xferbench.cli import main
from xferbench.config import render
from xferbench.core.interventions import FitTemperature
from xferbench.core.pipeline import Preprocessing
from xferbench.plugins import calibration
from xferbench.testing import fake_lab
from xferbench.testing.fake_lab import PIPELINE, PROFILE

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
lr = 1e-2
steps = 5
batch_size = 8
[scratch]
lr = [1e-3]
weight_decay = [0.01]
steps = 2
"""


def make_sure(count, right=None, seed=0):
    """A record of as many answers, each said with a confidence about 0.9, of which a share is right, or as many as are said."""
    p_max = np.random.default_rng(seed).uniform(0.85, 0.95, count).astype(np.float32)
    record = make_record("k", 0.5, examples=count)
    label = np.zeros(count, np.int32)
    predicted = (np.random.default_rng([seed, 1]).random(count) >= (p_max if right is None else right)).astype(np.int32)
    return replace(record, predictions=replace(record.predictions, label=label, predicted=predicted, p_max=p_max))


def test_the_calibration_error_is_the_gap_and_none_on_average_where_chance_alone_is_at_work():
    assert reliability.squared_calibration_error(make_sure(3000, 0.6).predictions) ** 0.5 == pytest.approx(0.3, abs=0.03)
    fair = [make_sure(3000, seed=seed).predictions for seed in range(40)]
    plain = [np.average((said - true) ** 2, weights=size) for said, true, size in map(reliability.confidence_bins, fair)]
    assert np.mean(plain) > 4e-4, "as it is usually computed there is some where there is none"
    assert abs(np.mean([reliability.squared_calibration_error(one) for one in fair])) < 5e-5


def test_the_calibration_error_is_stated_from_2000_images_on():
    told = {("subject", "test", 0): make_sure(2000, 0.6), ("induced:overtrained", "test", 0): make_sure(1999, 0.6)}
    told |= {("scratch", "test", 0): make_sure(2000, 0.6), ("subject", "tempered", 0): make_sure(2000, 0.9)}
    assert calibration.calibration_errors(told, [0, 1]) == {"subject/ece": pytest.approx(0.3, abs=0.03)}
    assert calibration.calibration_errors(told, [1]) == {}


def test_the_cure_is_one_temperature_and_is_advised_in_words():
    cured = calibration.cure(PIPELINE, PROFILE)
    assert cured == replace(PIPELINE, edits=(FitTemperature(),))
    lines = render.pipeline_patch(PIPELINE, cured, Preprocessing())
    assert "# logits divided by a temperature fitted on images kept apart" in lines
    assert render.describe_pipeline(cured, PIPELINE.data.train_preprocessing).endswith("fitted on images kept apart")
    assert calibration.audit.cure is calibration.cure, "of a finished network the same is asked"


def test_both_scores_are_judged_each_with_its_margin_on_views_of_one_fit():
    study = fake_lab.make_study(calibration.plugin)
    step, _ = fake_lab.replay_study(study, fake_lab.fake_lab())
    fits = {(one.arm, one.seed): one.trial.model.base for one in step.requests if one.view == "test"}
    assert all(fits["subject", seed] == fits["cured", seed] for seed in range(3))
    told = {one.contrast: one for one in fake_lab.run_study(study, fake_lab.fake_lab()).findings}
    assert {name: (one.metric, one.margin) for name, one in told.items()} == {"harm": ("nll", 0.05), "brier": ("brier", 0.02)}
    assert all(one.verdict != "ERROR" and one.exposed for one in told.values())


def test_a_small_suite_from_images_to_a_verdict(tmp_path):
    data = make_npz(tmp_path / "d.npz", test=60).spec.removeprefix("npz:")
    file, out = tmp_path / "s.toml", tmp_path / "out"
    file.write_text(SUITE.format(plugin="calibration", data=data))
    main.main(["run", str(file), "-o", str(out), "--store", str(tmp_path / "s.sqlite"), "-j", "1"])
    found = {one["id"]: one for one in json.loads((out / "results.json").read_text())["findings"]}
    assert set(found) == {"calibration/harm/overtrained", "calibration/brier/overtrained"}
    assert "ERROR" not in {one["verdict"] for one in found.values()}
    assert all(one["accuracy"]["subject"] == one["accuracy"]["cured"] for one in found.values()), "no answer changes"
    assert not any("ece" in name for one in found.values() for name in one["measures"]), "of 60 images it says nothing"
    assert "could not be drawn" not in (out / "report.html").read_text()
