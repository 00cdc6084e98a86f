"""Calibration of trained networks, with and without a temperature fitted on validation images."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from factory import make_record
from test_datasets import make_npz

from xferbench.analysis import intervals, metrics, reliability
from xferbench.cli import main
from xferbench.config import render
from xferbench.core.interventions import FitTemperature
from xferbench.core.transforms import Preprocessing
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
    assert "# logits divided by a temperature fitted on examples kept apart" in lines
    assert render.describe_pipeline(cured, PIPELINE.data.train_preprocessing).endswith("fitted on examples kept apart")
    assert calibration.audit.cure is calibration.cure, "the audit uses the same cure"


def test_the_brier_score_has_a_verdict_and_the_nll_is_measured_on_views_of_one_training():
    study = fake_lab.make_study(calibration.plugin)
    step, _ = fake_lab.replay_study(study, fake_lab.fake_lab())
    specs = {(request.arm, request.seed): request.trial.model.base for request in step.requests if request.view == "test"}
    assert all(specs["subject", seed] == specs["cured", seed] for seed in range(3))
    by_contrast = {finding.contrast: finding for finding in fake_lab.run_study(study, fake_lab.fake_lab()).findings}
    assert {name: (finding.estimate.metric, finding.estimate.margin) for name, finding in by_contrast.items()} == {
        "harm": ("brier", 0.02),
        "nll": ("nll", None),
    }
    assert by_contrast["nll"].verdict == "INFO" and by_contrast["harm"].estimate.exposed


CLASSES, MARGIN, SPAN = 10, calibration.BRIER_MARGIN, calibration.LARGEST_CHANGE
LEVEL, TOLERANCE = 0.05, 0.065 + 2 * (0.065 * 0.935 / 600) ** 0.5


def softmax(logits):
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def draw_harms(replicates, N, temperature, seed, S=5):
    """Harms [replicates, S, N] of networks whose logits are too large by a factor, which is the right temperature."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2.5, (replicates, 1, N, CLASSES))
    label = (softmax(logits).cumsum(-1) < rng.random((replicates, 1, N, 1))).sum(-1).clip(max=CLASSES - 1)
    truth = np.eye(CLASSES)[label]
    noisy = logits + rng.normal(0, 0.5, (replicates, S, N, CLASSES))
    as_it_is, tempered = (np.square(softmax(factor * noisy) - truth).sum(-1) for factor in (temperature, 1.0))
    return as_it_is - tempered


def test_no_temperature_changes_the_score_of_an_image_by_more_than_the_bound():
    rng = np.random.default_rng(0)
    logits, truth = rng.normal(0, 6, (4000, 1, 3)), np.eye(3)[rng.integers(3, size=(4000, 1))]
    temperatures = np.geomspace(1e-2, 1e2, 60)[:, None]
    scores = np.square(softmax(logits / temperatures) - truth).sum(-1)
    changes = scores.max(1) - scores.min(1)
    assert 1.45 < changes.max() <= SPAN


@pytest.mark.parametrize("temperature", [1.5, 2.5, 4.0])
def test_at_most_one_verdict_in_twenty_is_wrong_with_300_images_and_a_harm_at_the_margin(temperature):
    margin = draw_harms(40, 2000, temperature, seed=1).mean()
    p_fail, p_pass = intervals.p_values(draw_harms(600, 300, temperature, seed=2), margin, SPAN)
    assert (p_fail < LEVEL).mean() < TOLERANCE and (p_pass < LEVEL).mean() < TOLERANCE


def test_certain_and_wrong_predictions_that_are_rare_do_not_pass_though_most_samples_lack_them():
    hit = np.random.default_rng(3).random((600, 1, 300)) < MARGIN / SPAN
    harms = np.broadcast_to(SPAN * hit, (600, 5, 300))
    assert (intervals.p_values(harms, MARGIN, SPAN)[1] < LEVEL).mean() < TOLERANCE


def test_300_images_decide_and_the_nll_would_not():
    (contrast,) = (contrast for contrast in calibration.plugin.contrasts if contrast.kind == "paired")
    calibrated, overconfident = draw_harms(200, 300, 1.02, seed=4), draw_harms(200, 300, 2.0, seed=5)
    assert (intervals.p_values(calibrated, contrast.margin, contrast.span)[1] < LEVEL).mean() > 0.8
    assert (intervals.p_values(overconfident, contrast.margin, contrast.span)[0] < LEVEL).mean() > 0.8
    nothing = np.zeros((1, 5, 300))
    assert intervals.p_values(nothing, contrast.margin, contrast.span)[1] < LEVEL / 2
    assert intervals.p_values(nothing, calibration.NLL_MARGIN_NATS, metrics.get_metric("nll").span)[1] > LEVEL


def test_a_network_that_a_temperature_does_not_change_passes_with_300_images():
    study = fake_lab.make_study(calibration.plugin)
    findings = fake_lab.run_study(study, fake_lab.fake_lab(lambda _: 0.8, examples=300)).findings
    harm = next(finding for finding in findings if finding.contrast == "harm")
    assert harm.estimate.high == pytest.approx(SPAN * (1 - LEVEL ** (1 / 301)), rel=0.05), "the binomial bound, with its span"


def test_a_small_suite_runs_from_images_to_a_verdict(tmp_path):
    data = make_npz(tmp_path / "d.npz", test=60).spec.removeprefix("npz:")
    file, out = tmp_path / "s.toml", tmp_path / "out"
    file.write_text(SUITE.format(plugin="calibration", data=data))
    main.main(["run", str(file), "-o", str(out), "--store", str(tmp_path / "s.sqlite"), "-j", "1"])
    by_id = {finding["id"]: finding for finding in json.loads((out / "results.json").read_text())["findings"]}
    assert set(by_id) == {"calibration/harm/overtrained", "calibration/nll"}
    assert "ERROR" not in {finding["verdict"] for finding in by_id.values()}
    accuracy = by_id["calibration/harm/overtrained"]["accuracy"]
    assert accuracy["subject"] == accuracy["cured"], "the cure changes no answer"
    assert not any("ece" in name for finding in by_id.values() for name in finding["measures"]), "60 images are too few"
    assert "could not be drawn" not in (out / "report.html").read_text()
