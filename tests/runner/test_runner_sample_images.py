from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from test_datasets import make_folder, make_npz

from xferbench.config import render
from xferbench.core.errors import UserError
from xferbench.core.interventions import PRETRAINED, ShuffledSource
from xferbench.core.pipeline import AuxiliaryDataset, Backbone, Data, Pipeline, PipelineData, Recipe, Serving
from xferbench.core.transforms import Preprocessing
from xferbench.core.trial import EvaluationSpec
from xferbench.data import inputs
from xferbench.lab.data import datasets, preprocessing, sample_images
from xferbench.runner import sample_images as gathering

RECORDED = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
TARGET = Data(digest="t", spec="npz:/somewhere/birds.npz")


@pytest.fixture
def dataset(tmp_path):
    return make_npz(tmp_path / "d.npz")


def original_images(dataset, index, cache):
    return datasets.load_dataset(dataset, RECORDED, None, cache).test.images[index].transpose(0, 2, 3, 1)


def test_sample_images_with_the_recorded_preprocessing_equal_the_originals(dataset, tmp_path):
    images, labels = sample_images.sample_images(dataset, RECORDED, 4, RECORDED, tmp_path)
    loaded_dataset = datasets.load_dataset(dataset, RECORDED, None, tmp_path)
    index = sample_images.choose_examples(loaded_dataset.test.labels, 4)
    assert images.dtype == np.uint8
    assert images.shape == (4, 16, 16, 3)
    np.testing.assert_array_equal(images, original_images(dataset, index, tmp_path))
    assert labels == tuple(loaded_dataset.classes[label] for label in loaded_dataset.test.labels[index])
    assert len(set(labels)) == 4


@pytest.mark.parametrize("changes", [{"channels": "bgr"}, {"mean": (0.0,) * 3, "std": (1.0,) * 3}, {"scale": 1.0}])
def test_sample_images_with_another_preprocessing_differ(dataset, tmp_path, changes):
    expected, labels = sample_images.sample_images(dataset, RECORDED, 4, RECORDED, tmp_path)
    images, same_labels = sample_images.sample_images(dataset, replace(RECORDED, **changes), 4, RECORDED, tmp_path)
    assert same_labels == labels
    assert np.abs(images.astype(int) - expected).mean() > 5


def test_another_channel_order_swaps_red_and_blue():
    plain = Preprocessing()
    red = torch.tensor([200, 10, 30], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    tensor = preprocessing.to_tensor(red, replace(plain, channels="bgr"))
    assert sample_images.to_pixels(tensor, plain)[0, 0, 0].tolist() == [30, 10, 200]
    assert sample_images.to_pixels(tensor, replace(plain, channels="bgr"))[0, 0, 0].tolist() == [200, 10, 30]


def test_one_channel_is_drawn_grey_and_infinity_white():
    tensor = torch.tensor([0.0, 1.0, float("nan"), float("inf")]).view(1, 1, 2, 2)
    pixels = sample_images.to_pixels(tensor, RECORDED)
    assert pixels.shape == (1, 2, 2, 3)
    assert (pixels == pixels[..., :1]).all()
    assert pixels[0, 1, 1].tolist() == [255] * 3


def test_values_of_another_unit_span_black_to_white_and_are_clipped():
    decibels = SimpleNamespace(channels=3, mean=-40.0, std=20.0)
    stored = torch.tensor([-80.0, -40.0, 0.0]).view(1, 1, 1, 3)
    correct, wrong = ((stored - mean) / 20 for mean in (-40.0, 0.0))
    for channels in (1, 2, 3):
        rows = [
            sample_images.to_pixels(tensor.expand(-1, channels, -1, -1), decibels, (-80.0, 0.0))[0, 0, :, 0]
            for tensor in (correct, wrong)
        ]
        assert [tensor.tolist() for tensor in rows] == [[0, 128, 255], [0, 0, 128]]


@pytest.mark.parametrize(
    ("shape", "expected"), [((224, 224), (96, 96)), ((120, 60), (96, 48)), ((96, 30), (96, 30)), ((500, 1), (96, 1))]
)
def test_large_images_are_shrunk(shape, expected):
    pixels = sample_images.to_pixels(torch.zeros(2, 3, *shape), Preprocessing(mean=(0.2,), std=(0.5,)))
    assert pixels.shape == (2, *expected, 3)
    assert set(pixels.ravel().tolist()) == {51}


def test_examples_are_chosen_class_by_class():
    assert sample_images.choose_examples(np.array([2, 2, 0, 2, 0, 1]), 4).tolist() == [0, 2, 5, 1]
    assert sample_images.choose_examples(np.array([1, 1]), 6).tolist() == [0, 1]


def test_folders_have_the_geometry_of_each_preprocessing(tmp_path):
    make_folder(tmp_path / "f", classes=("<b>", "$x$"))
    folder = inputs.digest_data(f"folder:{tmp_path / 'f'}")
    small = sample_images.sample_images(folder, Preprocessing(resize=8, crop=8), 2, Preprocessing(), tmp_path)
    large = sample_images.sample_images(folder, Preprocessing(resize=10, crop=10), 2, Preprocessing(), tmp_path)
    assert (small[0].shape, large[0].shape) == ((2, 8, 8, 3), (2, 10, 10, 3))
    assert small[1] == large[1]
    assert set(small[1]) == {"<b>", "$x$"}


def test_real_images_have_sample_images(shared, tmp_path):
    cifar = inputs.digest_data(f"npz:{shared / 'data' / 'cifar10.npz'}")
    images, labels = sample_images.sample_images(cifar, RECORDED, 6, RECORDED, tmp_path)
    assert images.shape == (6, 32, 32, 3)
    assert len(set(labels)) == 6


# Requests for sample images, by arm


def make_pipeline(train=RECORDED, serve=None, source=None, init=PRETRAINED):
    return Pipeline(
        backbone=Backbone(arch="tiny-resnet", weights=None),
        data=PipelineData(target=TARGET, train_preprocessing=train, train_size=None, test_size=None, source=source),
        recipe=Recipe(init=init),
        serving=Serving(preprocessing=serve or train),
    )


def make_step(trials=(), **cases):
    return SimpleNamespace(
        requests=[SimpleNamespace(plugin="p", arm="subject", view=view, trial=trial) for view, trial in trials],
        states=[
            SimpleNamespace(
                plugin=SimpleNamespace(id=name.replace("_", "-")),
                arms={
                    arm.replace("_", ":"): SimpleNamespace(pipeline=pipeline_of_arm) for arm, pipeline_of_arm in arms.items()
                },
            )
            for name, arms in cases.items()
        ],
    )


def make_study():
    return SimpleNamespace(profile=SimpleNamespace(preprocessing=RECORDED))


def make_engine(answer, calls=None):
    def call(*arguments):
        if calls is not None:
            calls.append(arguments)
        future = Future()
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)
        return future

    return lambda: call


ANSWER = (np.full((2, 4, 4, 3), 7, np.uint8), ("cat", "a|b\n"))
BGR = replace(RECORDED, channels="bgr")


def test_one_preprocessing_for_all_arms_is_one_entry(tmp_path):
    study_step = make_step(
        drift={"subject": make_pipeline(), "cured": make_pipeline()}, other={"subject": make_pipeline(), "cured": None}
    )
    (sample,), notes = gathering.collect_sample_images(make_study(), study_step, make_engine(ANSWER), tmp_path)
    assert (sample.role, sample.title, sample.arms) == (
        "target",
        "birds.npz, the backbone's own preprocessing",
        ("all arms",),
    )
    assert sample.labels == ANSWER[1]
    assert notes == ()


def test_each_preprocessing_is_an_entry_with_its_arms(tmp_path):
    mismatch = {
        "subject": make_pipeline(),
        "cured": make_pipeline(),
        "induced_bgr": make_pipeline(BGR),
        "induced_late": make_pipeline(serve=BGR),
    }
    samples, _ = gathering.collect_sample_images(make_study(), make_step(mismatch=mismatch), make_engine(ANSWER), tmp_path)
    assert [(sample.title, sample.arms) for sample in samples] == [
        ("birds.npz, the backbone's own preprocessing", ("all others",)),
        ("birds.npz, channels bgr", ("mismatch: bgr, late (at test)",)),
    ]


def test_an_arm_shared_by_plugins_is_named_once(tmp_path):
    arms = {"subject": make_pipeline(BGR), "cured": make_pipeline(), "induced_a": make_pipeline(), "induced_b": make_pipeline()}
    samples, _ = gathering.collect_sample_images(make_study(), make_step(one=arms, two=arms), make_engine(ANSWER), tmp_path)
    assert [sample.arms for sample in samples] == [("subject",), ("all others",)]


def test_a_source_is_shown_only_if_a_trial_uses_it(tmp_path):
    source = AuxiliaryDataset(data=Data(digest="s", spec="synthetic:source"))
    arms = {"subject": make_pipeline(source=source), "cured": make_pipeline(source=source, serve=Preprocessing())}
    assert {request.role for request in gathering.sample_requests(make_step(p=arms))} == {"target"}
    trial = SimpleNamespace(view=EvaluationSpec(preprocessing=RECORDED, domain=source))
    *_, request_of_source = gathering.sample_requests(make_step(p=arms, trials=[("source", trial)]))
    assert (request_of_source.role, request_of_source.preprocessing, request_of_source.arms) == (
        "source",
        RECORDED,
        (("p", "subject", "serve"),),
    )
    *_, request_of_source = gathering.sample_requests(
        make_step(p=arms | {"induced:s": make_pipeline(source=source, init=ShuffledSource())})
    )
    assert (request_of_source.role, request_of_source.arms) == ("source", (("p", "induced:s", "train"),))


def test_images_that_cannot_be_drawn_are_a_note(tmp_path):
    study_step = make_step(p={"subject": make_pipeline()})
    for error in (UserError("the file is gone"), RuntimeError("Traceback:\nKeyError: 'x'"), OSError("disk")):
        samples, (note,) = gathering.collect_sample_images(make_study(), study_step, make_engine(error), tmp_path)
        assert samples == ()
        assert note.startswith("no sample images of target (the backbone's own preprocessing): ")
        assert "Traceback" not in note


def test_samples_are_computed_once_and_a_broken_file_is_replaced(tmp_path):
    study_step, calls = make_step(p={"subject": make_pipeline()}), []
    first, _ = gathering.collect_sample_images(make_study(), study_step, make_engine(ANSWER, calls), tmp_path)
    repeated, _ = gathering.collect_sample_images(make_study(), study_step, make_engine(ANSWER, calls), tmp_path)
    assert len(calls) == 1
    np.testing.assert_array_equal(first[0].images, repeated[0].images)
    assert first[0].labels == repeated[0].labels
    (file,) = (tmp_path / "samples").iterdir()
    file.write_bytes(file.read_bytes()[:40])
    assert (
        gathering.collect_sample_images(make_study(), study_step, make_engine(ANSWER, calls), tmp_path)[0][0].labels
        == ANSWER[1]
    )
    assert len(calls) == 2


def test_names_and_differences_are_short():
    assert gathering.dataset_name(Data(digest="", spec="folder:/a/b/<script>")) == "<script>"
    assert gathering.dataset_name(Data(digest="", spec="synthetic:near")) == "synthetic:near"
    text = render.describe_preprocessing(replace(RECORDED, mean=(0.5,) * 3, std=(0.1, 0.2, 0.3), resize=8), RECORDED)
    assert text == "resize 8, mean 0.5, std 0.1 0.2 0.3"
