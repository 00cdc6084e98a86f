"""Channels and resolution: what a first layer makes of them, what is tried and induced, and the whole of it on the digits."""

from __future__ import annotations

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
from xferbench.config import loader
from xferbench.core.interventions import RANDOM
from xferbench.core.pipeline import Preprocessing, Recipe, Selection, Spectrogram
from xferbench.lab.data import preprocessing
from xferbench.plugins import input_mismatch
from xferbench.runner import build_run, execute
from xferbench.testing import fake_lab

FACTS, PIPELINE = fake_lab.PROFILE, fake_lab.PIPELINE
FORM = Preprocessing(resize=256, crop=224, mean=(0.5,), std=(0.25,))
KNOWN = replace(FACTS, preprocessing=FORM)
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


def of(train, serve=None):
    return replace(
        PIPELINE,
        data=replace(PIPELINE.data, train_preprocessing=train),
        serving=replace(PIPELINE.serving, preprocessing=serve or train),
    )


def first_layer():
    torch.manual_seed(0)
    return torch.nn.Conv2d(3, 8, 3, padding=1, bias=False).double()


def with_one_channel(layer, weight):
    one = torch.nn.Conv2d(1, 8, 3, padding=1, bias=False).double()
    one.weight.data = weight
    return one


def test_one_channel_repeated_is_a_first_layer_whose_input_channels_are_summed():
    layer, x = first_layer(), torch.randn(2, 1, 9, 9, dtype=torch.float64)
    summed = with_one_channel(layer, layer.weight.data.sum(1, keepdim=True))
    torch.testing.assert_close(layer(x.expand(-1, 3, -1, -1)), summed(x))


def test_what_mean_not_sum_prepares_is_what_a_layer_of_averaged_weights_answers():
    layer = first_layer()
    averaged = with_one_channel(layer, layer.weight.data.mean(1, keepdim=True))
    grey = torch.randint(0, 256, (2, 1, 9, 9), dtype=torch.uint8).expand(-1, 3, -1, -1)
    ready = Preprocessing(mean=(0.4,), std=(0.2,))
    whole, third = (preprocessing.to_tensor(grey, one).double() for one in (ready, input_mismatch.divide_by_three(ready)))
    torch.testing.assert_close(layer(third), averaged(whole[:, :1]), atol=1e-6, rtol=1e-5)
    spectrogram = Spectrogram(mean=1.0, std=2.0)
    x = torch.randn(2, 1, 5, 5)
    torch.testing.assert_close(
        preprocessing.to_tensor(x, input_mismatch.divide_by_three(spectrogram)), preprocessing.to_tensor(x, spectrogram) / 3
    )


def test_what_has_the_recorded_form_is_not_exposed_whatever_its_values():
    assert input_mismatch.cure(of(FORM), KNOWN) == of(FORM)
    twice = replace(FORM, mean=(0.1,), std=(9.0,), scale=1.0)
    assert input_mismatch.cure(of(twice), KNOWN) == of(twice), "that is preprocessing-mismatch's"


def test_grey_for_colour_and_images_left_small_are_tried_in_the_recorded_form_with_their_own_values():
    small = replace(FORM, resize=None, crop=None, channels="grey", mean=(0.1,))
    tried = input_mismatch.cure(of(small), KNOWN)
    assert tried == Selection(candidates=(of(small), of(replace(FORM, mean=(0.1,)))))


def test_what_is_served_at_another_size_is_tried_trained_at_that():
    large = replace(FORM, resize=320, crop=288)
    tried = input_mismatch.cure(of(FORM, large), KNOWN)
    assert tried.candidates == (of(FORM, large), of(FORM), of(large))


def test_a_spectrogram_has_channels_and_no_resolution_to_lose():
    known = replace(FACTS, preprocessing=Spectrogram())
    assert input_mismatch.cure(of(Spectrogram(mean=3.0)), known) == of(Spectrogram(mean=3.0))
    assert list(input_mismatch.induce(of(Spectrogram()), known)) == ["mean-not-sum"]


def test_half_the_resolution_is_served_to_the_network_that_was_trained_on_all_of_it():
    found = input_mismatch.induce(of(FORM), KNOWN)
    assert list(found) == ["mean-not-sum", "half-resolution"]
    assert found["half-resolution"] == of(FORM, replace(FORM, detail=0.5))


def test_without_a_record_or_a_pretrained_network_it_is_said():
    assert input_mismatch.plugin.trust(PIPELINE, FACTS) == ""
    assert "no preprocessing is recorded" in input_mismatch.plugin.trust(PIPELINE, replace(FACTS, recorded=False))
    assert (
        input_mismatch.plugin.applies(replace(PIPELINE, recipe=Recipe(init=RANDOM)), FACTS) == "nothing pretrained is adapted"
    )


def test_the_whole_of_it_on_digits(tmp_path):
    asked = loader.parse_suite(TABLE, tmp_path / "input.toml")
    found = build_run.build_run(execute.execute(asked, path=tmp_path / "store.sqlite")).findings
    assert [one.id for one in found] == [f"input-mismatch/harm/{variant}" for variant in ("mean-not-sum", "half-resolution")]
    assert all((one.exposed, one.harm) == (False, 0.0) and one.control_harm is not None for one in found)
