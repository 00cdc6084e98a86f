"""Calibration of trained networks, with and without a temperature fitted on validation images."""

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


def make_confident_record(count, accuracy=None, seed=0):
    """A record with confidences of about 0.9; ``accuracy`` is the share of correct answers, by default the confidence."""
    p_max = np.random.default_rng(seed).uniform(0.85, 0.95, count).astype(np.float32)
    record = make_record("k", 0.5, examples=count)
    label = np.zeros(count, np.int32)
    predicted = (np.random.default_rng([seed, 1]).random(count) >= (p_max if accuracy is None else accuracy)).astype(np.int32)
    return replace(record, predictions=replace(record.predictions, label=label, predicted=predicted, p_max=p_max))


def test_the_calibration_error_is_the_gap_and_has_no_bias_for_calibrated_answers():
    assert reliability.squared_calibration_error(make_confident_record(3000, 0.6).predictions) ** 0.5 == pytest.approx(
        0.3, abs=0.03
    )
    calibrated = [make_confident_record(3000, seed=seed).predictions for seed in range(40)]
    biased_errors = [
        np.average((confidence - accuracy) ** 2, weights=size)
        for confidence, accuracy, size in map(reliability.confidence_bins, calibrated)
    ]
    assert np.mean(biased_errors) > 4e-4, "the usual estimate is biased"
    assert abs(np.mean([reliability.squared_calibration_error(predictions) for predictions in calibrated])) < 5e-5


def test_the_calibration_error_needs_2000_images():
    records = {
        ("subject", "test", 0): make_confident_record(2000, 0.6),
        ("induced:overtrained", "test", 0): make_confident_record(1999, 0.6),
    }
    records |= {
        ("scratch", "test", 0): make_confident_record(2000, 0.6),
        ("subject", "tempered", 0): make_confident_record(2000, 0.9),
    }
    assert calibration.calibration_errors(records, [0, 1]) == {"subject/ece": pytest.approx(0.3, abs=0.03)}
    assert calibration.calibration_errors(records, [1]) == {}


def test_the_cure_is_a_temperature_and_is_described_in_words():
    cured = calibration.cure(PIPELINE, PROFILE)
    assert cured == replace(PIPELINE, edits=(FitTemperature(),))
    lines = render.pipeline_patch(PIPELINE, cured, Preprocessing())
    assert "# logits divided by a temperature fitted on images kept apart" in lines
    assert render.describe_pipeline(cured, PIPELINE.data.train_preprocessing).endswith("fitted on images kept apart")
    assert calibration.audit.cure is calibration.cure, "the audit uses the same cure"


def test_both_scores_have_a_verdict_with_their_own_margin_on_views_of_one_training():
    study = fake_lab.make_study(calibration.plugin)
    step, _ = fake_lab.replay_study(study, fake_lab.fake_lab())
    specs = {(request.arm, request.seed): request.trial.model.base for request in step.requests if request.view == "test"}
    assert all(specs["subject", seed] == specs["cured", seed] for seed in range(3))
    by_contrast = {finding.contrast: finding for finding in fake_lab.run_study(study, fake_lab.fake_lab()).findings}
    assert {name: (finding.estimate.metric, finding.estimate.margin) for name, finding in by_contrast.items()} == {
        "harm": ("nll", 0.05),
        "brier": ("brier", 0.02),
    }
    assert all(finding.verdict != "ERROR" and finding.estimate.exposed for finding in by_contrast.values())


def test_a_small_suite_runs_from_images_to_a_verdict(tmp_path):
    data = make_npz(tmp_path / "d.npz", test=60).spec.removeprefix("npz:")
    file, out = tmp_path / "s.toml", tmp_path / "out"
    file.write_text(SUITE.format(plugin="calibration", data=data))
    main.main(["run", str(file), "-o", str(out), "--store", str(tmp_path / "s.sqlite"), "-j", "1"])
    by_id = {finding["id"]: finding for finding in json.loads((out / "results.json").read_text())["findings"]}
    assert set(by_id) == {"calibration/harm/overtrained", "calibration/brier/overtrained"}
    assert "ERROR" not in {finding["verdict"] for finding in by_id.values()}
    assert all(finding["accuracy"]["subject"] == finding["accuracy"]["cured"] for finding in by_id.values()), (
        "the cure changes no answer"
    )
    assert not any("ece" in name for finding in by_id.values() for name in finding["measures"]), "60 images are too few"
    assert "could not be drawn" not in (out / "report.html").read_text()
