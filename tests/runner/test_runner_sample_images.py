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
from xferbench.core.pipeline import AuxiliaryDataset, Backbone, Data, Pipeline, PipelineData, Preprocessing, Recipe, Serving
from xferbench.core.trial import EvaluationSpec
from xferbench.data import inputs
from xferbench.lab.data import datasets, preprocessing, sample_images
from xferbench.runner import sample_images as gathering

RECORDED = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
TARGET = Data(digest="t", spec="npz:/somewhere/birds.npz")


@pytest.fixture
def dataset(tmp_path):
    return make_npz(tmp_path / "d.npz")


def original(dataset, index, cache):
    return datasets.load_dataset(dataset, RECORDED, None, cache).test.images[index].transpose(0, 2, 3, 1)


def test_images_seen_as_recorded_look_as_they_are(dataset, tmp_path):
    images, labels = sample_images.sample_images(dataset, RECORDED, 4, RECORDED, tmp_path)
    loaded = datasets.load_dataset(dataset, RECORDED, None, tmp_path)
    index = sample_images.choose_examples(loaded.test.labels, 4)
    assert images.dtype == np.uint8
    assert images.shape == (4, 16, 16, 3)
    np.testing.assert_array_equal(images, original(dataset, index, tmp_path))
    assert labels == tuple(loaded.classes[label] for label in loaded.test.labels[index])
    assert len(set(labels)) == 4


@pytest.mark.parametrize("wrong", [{"channels": "bgr"}, {"mean": (0.0,) * 3, "std": (1.0,) * 3}, {"scale": 1.0}])
def test_images_seen_otherwise_look_wrong(dataset, tmp_path, wrong):
    right, labels = sample_images.sample_images(dataset, RECORDED, 4, RECORDED, tmp_path)
    seen, same = sample_images.sample_images(dataset, replace(RECORDED, **wrong), 4, RECORDED, tmp_path)
    assert same == labels
    assert np.abs(seen.astype(int) - right).mean() > 5


def test_another_order_of_channels_swaps_red_and_blue():
    plain = Preprocessing()
    red = torch.tensor([200, 10, 30], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    seen = preprocessing.to_tensor(red, replace(plain, channels="bgr"))
    assert sample_images.to_pixels(seen, plain)[0, 0, 0].tolist() == [30, 10, 200]
    assert sample_images.to_pixels(seen, replace(plain, channels="bgr"))[0, 0, 0].tolist() == [200, 10, 30]


def test_one_channel_is_grey_and_what_is_not_finite_is_drawn():
    seen = torch.tensor([0.0, 1.0, float("nan"), float("inf")]).view(1, 1, 2, 2)
    found = sample_images.to_pixels(seen, RECORDED)
    assert found.shape == (1, 2, 2, 3)
    assert (found == found[..., :1]).all()
    assert found[0, 1, 1].tolist() == [255] * 3


def test_values_of_another_unit_go_from_black_to_white_and_a_wrong_mean_is_clipped():
    decibels = SimpleNamespace(channels=3, mean=-40.0, std=20.0)
    stored = torch.tensor([-80.0, -40.0, 0.0]).view(1, 1, 1, 3)
    right, wrong = ((stored - mean) / 20 for mean in (-40.0, 0.0))
    for channels in (1, 2, 3):
        shown = [
            sample_images.to_pixels(one.expand(-1, channels, -1, -1), decibels, (-80.0, 0.0))[0, 0, :, 0]
            for one in (right, wrong)
        ]
        assert [one.tolist() for one in shown] == [[0, 128, 255], [0, 0, 128]]


@pytest.mark.parametrize(
    ("shape", "shown"), [((224, 224), (96, 96)), ((120, 60), (96, 48)), ((96, 30), (96, 30)), ((500, 1), (96, 1))]
)
def test_large_images_are_shrunk(shape, shown):
    found = sample_images.to_pixels(torch.zeros(2, 3, *shape), Preprocessing(mean=(0.2,), std=(0.5,)))
    assert found.shape == (2, *shown, 3)
    assert set(found.ravel().tolist()) == {51}


def test_the_first_of_each_class_is_taken_then_the_second():
    assert sample_images.choose_examples(np.array([2, 2, 0, 2, 0, 1]), 4).tolist() == [0, 2, 5, 1]
    assert sample_images.choose_examples(np.array([1, 1]), 6).tolist() == [0, 1]


def test_folders_are_shown_in_the_geometry_of_each_preprocessing(tmp_path):
    make_folder(tmp_path / "f", classes=("<b>", "$x$"))
    folder = inputs.digest_data(f"folder:{tmp_path / 'f'}")
    small = sample_images.sample_images(folder, Preprocessing(resize=8, crop=8), 2, Preprocessing(), tmp_path)
    large = sample_images.sample_images(folder, Preprocessing(resize=10, crop=10), 2, Preprocessing(), tmp_path)
    assert (small[0].shape, large[0].shape) == ((2, 8, 8, 3), (2, 10, 10, 3))
    assert small[1] == large[1]
    assert set(small[1]) == {"<b>", "$x$"}


def test_real_images_are_shown(shared, tmp_path):
    cifar = inputs.digest_data(f"npz:{shared / 'data' / 'cifar10.npz'}")
    images, labels = sample_images.sample_images(cifar, RECORDED, 6, RECORDED, tmp_path)
    assert images.shape == (6, 32, 32, 3)
    assert len(set(labels)) == 6


# Which are wanted, and by whom


def pipeline(train=RECORDED, serve=None, source=None, init=PRETRAINED):
    return Pipeline(
        backbone=Backbone(arch="tiny-resnet", weights=None),
        data=PipelineData(target=TARGET, train_preprocessing=train, train_size=None, test_size=None, source=source),
        recipe=Recipe(init=init),
        serving=Serving(preprocessing=serve or train),
    )


def step(asked=(), **cases):
    return SimpleNamespace(
        requests=[SimpleNamespace(plugin="p", arm="subject", view=view, trial=trial) for view, trial in asked],
        states=[
            SimpleNamespace(
                plugin=SimpleNamespace(id=name.replace("_", "-")),
                arms={arm.replace("_", ":"): SimpleNamespace(pipeline=one) for arm, one in arms.items()},
            )
            for name, arms in cases.items()
        ],
    )


def study():
    return SimpleNamespace(profile=SimpleNamespace(preprocessing=RECORDED))


def engine(answer, calls=None):
    def call(*asked):
        if calls is not None:
            calls.append(asked)
        future = Future()
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)
        return future

    return lambda: call


ANSWER = (np.full((2, 4, 4, 3), 7, np.uint8), ("cat", "a|b\n"))
BGR = replace(RECORDED, channels="bgr")


def test_one_preprocessing_for_all_is_one_entry(tmp_path):
    one = step(drift={"subject": pipeline(), "cured": pipeline()}, other={"subject": pipeline(), "cured": None})
    (found,), notes = gathering.collect_sample_images(study(), one, engine(ANSWER), tmp_path)
    assert (found.role, found.title, found.arms) == (
        "target",
        "birds.npz, the backbone's own preprocessing",
        ("all arms",),
    )
    assert found.labels == ANSWER[1]
    assert notes == ()


def test_each_preprocessing_is_an_entry_that_names_its_arms(tmp_path):
    mismatch = {"subject": pipeline(), "cured": pipeline(), "induced_bgr": pipeline(BGR), "induced_late": pipeline(serve=BGR)}
    found, _ = gathering.collect_sample_images(study(), step(mismatch=mismatch), engine(ANSWER), tmp_path)
    assert [(one.title, one.arms) for one in found] == [
        ("birds.npz, the backbone's own preprocessing", ("all others",)),
        ("birds.npz, channels bgr", ("mismatch: bgr, late (at test)",)),
    ]


def test_an_arm_that_plugins_share_is_named_once(tmp_path):
    arms = {"subject": pipeline(BGR), "cured": pipeline(), "induced_a": pipeline(), "induced_b": pipeline()}
    found, _ = gathering.collect_sample_images(study(), step(one=arms, two=arms), engine(ANSWER), tmp_path)
    assert [one.arms for one in found] == [("subject",), ("all others",)]


def test_a_source_is_shown_where_a_trial_used_it_and_only_there(tmp_path):
    source = AuxiliaryDataset(data=Data(digest="s", spec="synthetic:source"))
    arms = {"subject": pipeline(source=source), "cured": pipeline(source=source, serve=Preprocessing())}
    assert {one.role for one in gathering.sample_requests(step(p=arms))} == {"target"}
    trial = SimpleNamespace(view=EvaluationSpec(preprocessing=RECORDED, domain=source))
    *_, beside = gathering.sample_requests(step(p=arms, asked=[("source", trial)]))
    assert (beside.role, beside.preprocessing, beside.arms) == ("source", RECORDED, (("p", "subject", "serve"),))
    *_, beside = gathering.sample_requests(step(p=arms | {"induced:s": pipeline(source=source, init=ShuffledSource())}))
    assert (beside.role, beside.arms) == ("source", (("p", "induced:s", "train"),))


def test_what_cannot_be_shown_is_a_note_and_loses_nothing(tmp_path):
    one = step(p={"subject": pipeline()})
    for error in (UserError("the file is gone"), RuntimeError("Traceback:\nKeyError: 'x'"), OSError("disk")):
        found, (note,) = gathering.collect_sample_images(study(), one, engine(error), tmp_path)
        assert found == ()
        assert note.startswith("no sample images of target (the backbone's own preprocessing): ")
        assert "Traceback" not in note


def test_samples_are_asked_once_and_a_broken_file_is_made_again(tmp_path):
    one, calls = step(p={"subject": pipeline()}), []
    first, _ = gathering.collect_sample_images(study(), one, engine(ANSWER, calls), tmp_path)
    again, _ = gathering.collect_sample_images(study(), one, engine(ANSWER, calls), tmp_path)
    assert len(calls) == 1
    np.testing.assert_array_equal(first[0].images, again[0].images)
    assert first[0].labels == again[0].labels
    (file,) = (tmp_path / "samples").iterdir()
    file.write_bytes(file.read_bytes()[:40])
    assert gathering.collect_sample_images(study(), one, engine(ANSWER, calls), tmp_path)[0][0].labels == ANSWER[1]
    assert len(calls) == 2


def test_names_and_differences_are_short():
    assert gathering.dataset_name(Data(digest="", spec="folder:/a/b/<script>")) == "<script>"
    assert gathering.dataset_name(Data(digest="", spec="synthetic:near")) == "synthetic:near"
    text = render.describe_preprocessing(replace(RECORDED, mean=(0.5,) * 3, std=(0.1, 0.2, 0.3), resize=8), RECORDED)
    assert text == "resize 8, mean 0.5, std 0.1 0.2 0.3"
