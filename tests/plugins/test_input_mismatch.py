"""Channels and resolution: what a first layer computes from them, the candidates and induced arms, and a run on the digits."""

from __future__ import annotations

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
from xferbench.config import loader
from xferbench.core.interventions import RANDOM
from xferbench.core.pipeline import Recipe, Selection
from xferbench.core.transforms import Preprocessing, Spectrogram
from xferbench.plugins import input_mismatch
from xferbench.runner import build_run, execute
from xferbench.testing import fake_lab

PROFILE, PIPELINE = fake_lab.PROFILE, fake_lab.PIPELINE
RECORDED = Preprocessing(resize=256, crop=224, mean=(0.5,), std=(0.25,))
RECORDED_PROFILE = replace(PROFILE, preprocessing=RECORDED)
TABLE = {
    "schema": 1,
    "name": "input",
    "plugins": ["input-mismatch"],
    "looks": [2],
    "tuning_seeds": 1,
    "backbone": {"arch": "tiny-resnet"},
    "target": {"data": "digits", "train_size": 100, "test_size": 100},
    "recipe": {"strategy": "linear-probe", "steps": 10},
    "scratch": {"lr": [3e-3], "weight_decay": [0.01], "steps": 10, "batch_size": 16},
}


def with_preprocessing(train, serve=None):
    return replace(
        PIPELINE,
        data=replace(PIPELINE.data, train_preprocessing=train),
        serving=replace(PIPELINE.serving, preprocessing=serve or train),
    )


def make_first_layer():
    torch.manual_seed(0)
    return torch.nn.Conv2d(3, 8, 3, padding=1, bias=False).double()


def make_one_channel_layer(layer, weight):
    one_channel = torch.nn.Conv2d(1, 8, 3, padding=1, bias=False).double()
    one_channel.weight.data = weight
    return one_channel


def test_repeating_one_channel_sums_the_input_channels_of_the_first_layer():
    layer, x = make_first_layer(), torch.randn(2, 1, 9, 9, dtype=torch.float64)
    summed = make_one_channel_layer(layer, layer.weight.data.sum(1, keepdim=True))
    torch.testing.assert_close(layer(x.expand(-1, 3, -1, -1)), summed(x))


def test_the_recorded_preprocessing_is_not_exposed_whatever_its_values():
    assert input_mismatch.cure(with_preprocessing(RECORDED), RECORDED_PROFILE) == with_preprocessing(RECORDED)
    other_values = replace(RECORDED, mean=(0.1,), std=(9.0,), scale=1.0)
    assert input_mismatch.cure(with_preprocessing(other_values), RECORDED_PROFILE) == with_preprocessing(other_values), (
        "other values belong to preprocessing-mismatch"
    )


def test_grey_or_small_images_are_tried_in_the_recorded_preprocessing_with_their_values():
    small = replace(RECORDED, resize=None, crop=None, channels="grey", mean=(0.1,))
    cured = input_mismatch.cure(with_preprocessing(small), RECORDED_PROFILE)
    assert cured == Selection(candidates=(with_preprocessing(small), with_preprocessing(replace(RECORDED, mean=(0.1,)))))


def test_images_served_at_another_size_are_tried_trained_at_that_size():
    large = replace(RECORDED, resize=320, crop=288)
    cured = input_mismatch.cure(with_preprocessing(RECORDED, large), RECORDED_PROFILE)
    near = replace(large, resize=280, crop=252)
    forms = [(RECORDED, large), (RECORDED, RECORDED), (large, large), (near, large)]
    assert cured.candidates == tuple(with_preprocessing(train, serve) for train, serve in forms)


def test_a_spectrogram_has_channels_but_no_resolution():
    profile = replace(PROFILE, preprocessing=Spectrogram())
    assert input_mismatch.cure(with_preprocessing(Spectrogram(mean=3.0)), profile) == with_preprocessing(Spectrogram(mean=3.0))
    assert input_mismatch.induce(with_preprocessing(Spectrogram()), profile) == {}


def test_half_the_resolution_is_served_to_the_network():
    induced = input_mismatch.induce(with_preprocessing(RECORDED), RECORDED_PROFILE)
    assert list(induced) == ["grey", "half-resolution"]
    assert induced["half-resolution"] == with_preprocessing(RECORDED, replace(RECORDED, detail=0.5))


def test_color_is_lost_in_training_and_serving_and_gray_images_have_none_to_lose():
    grey = replace(RECORDED, channels="grey")
    assert input_mismatch.induce(with_preprocessing(RECORDED), RECORDED_PROFILE)["grey"] == with_preprocessing(grey)
    assert list(input_mismatch.induce(with_preprocessing(grey), RECORDED_PROFILE)) == ["half-resolution"]


def test_no_variant_only_rescales_the_values_of_the_images():
    for arm in input_mismatch.induce(with_preprocessing(RECORDED), RECORDED_PROFILE).values():
        forms = (arm.data.train_preprocessing, arm.serving.preprocessing)
        assert all((form.scale, form.mean, form.std) == (RECORDED.scale, RECORDED.mean, RECORDED.std) for form in forms)


def test_without_a_record_or_a_pretrained_network_there_is_a_reason():
    assert input_mismatch.plugin.trust(PIPELINE, PROFILE) == ""
    assert "no preprocessing is recorded" in input_mismatch.plugin.trust(PIPELINE, replace(PROFILE, recorded=False))
    assert (
        input_mismatch.plugin.applies(replace(PIPELINE, recipe=Recipe(init=RANDOM)), PROFILE) == "nothing pretrained is adapted"
    )


def test_a_suite_on_digits_reaches_findings(tmp_path):
    suite = loader.parse_suite(TABLE, tmp_path / "input.toml")
    findings = build_run.build_run(execute.execute(suite, path=tmp_path / "store.sqlite")).findings
    assert [finding.id for finding in findings] == [f"input-mismatch/harm/{variant}" for variant in ("grey", "half-resolution")]
    assert all(
        (finding.estimate.exposed, finding.estimate.harm) == (False, 0.0) and finding.control.harm is not None
        for finding in findings
    )
