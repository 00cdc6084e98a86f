"""Arrays in an npz file beyond 8-bit images: 16 bits, spectrograms, and groups in both splits."""

from __future__ import annotations

import numpy as np
import pytest

from xferbench.core.errors import UserError
from xferbench.core.pipeline import Preprocessing, Spectrogram
from xferbench.data import inputs, sources


def saved(path, images, **more):
    """An npz file whose first twelve images are trained on, and the rest tested."""
    labels = np.arange(len(images)) % 2
    arrays = {"train_images": images[:12], "test_images": images[12:], "train_labels": labels[:12], "test_labels": labels[12:]}
    np.savez(path / "d.npz", **arrays | more)
    return f"npz:{path / 'd.npz'}"


def values(kind, *shape):
    return (np.random.default_rng(0).random((20, *shape)) * 60000).astype(kind)


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 1), (6, 5, 3)])
def test_of_sixteen_bits_the_upper_eight_are_used(shape, tmp_path):
    data = pytest.importorskip("xferbench.lab.data.datasets")
    images = values(np.uint16, *shape)
    dataset = data.load_dataset(inputs.digest_data(saved(tmp_path, images)), Preprocessing(), None, tmp_path / "cache")
    expected = np.broadcast_to((images[:12] // 256).reshape(12, 6, 5, -1), (12, 6, 5, 3))
    assert np.array_equal(dataset.train.images, expected.transpose(0, 3, 1, 2))
    assert dataset.train.images.dtype == np.uint8


@pytest.mark.parametrize("kind", ["uint8", "uint16", "float16", "float32", "float64"])
def test_spectrograms_of_any_number_and_shape_are_kept_in_one_channel(kind, tmp_path):
    data = pytest.importorskip("xferbench.lab.data.datasets")
    images = (values(np.float64, 24, 40) / 500).astype(kind)
    dataset = data.load_dataset(inputs.digest_data(saved(tmp_path, images)), Spectrogram(), None, tmp_path / "cache")
    assert np.array_equal(dataset.train.images[:, 0], images[:12].astype(np.float32))
    assert data.input_shape(dataset, Spectrogram(channels=2)) == (2, 24, 40)


def test_spectrograms_are_no_images_and_images_no_spectrograms(tmp_path):
    data = pytest.importorskip("xferbench.lab.data.datasets")
    floats, colours = inputs.digest_data(saved(tmp_path, values(np.float32, 6, 5))), tmp_path / "colours"
    with pytest.raises(UserError, match="not an image") as told:
        data.load_dataset(floats, Preprocessing(), None, tmp_path / "cache")
    assert 'kind = "spectrogram"' in told.value.do
    colours.mkdir()
    with pytest.raises(UserError, match="not a spectrogram"):
        data.load_dataset(inputs.digest_data(saved(colours, values(np.uint8, 6, 5, 3))), Spectrogram(), None, tmp_path / "cache")


def test_what_is_no_number_is_told_by_its_place(tmp_path):
    images = values(np.float32, 6, 5)
    images[15, 2, 2] = np.nan
    with pytest.raises(UserError, match="test_images") as told:
        sources.read_dataset(saved(tmp_path, images), None)
    assert told.value.found == "NaN or infinity in image 3"


@pytest.mark.parametrize("kind", ["int64", "bool", "complex64"])
def test_other_numbers_are_refused(kind, tmp_path):
    with pytest.raises(UserError, match="train_images") as told:
        sources.read_dataset(saved(tmp_path, values(kind, 6, 5)), None)
    assert told.value.found == f"{kind} (12, 6, 5)"


@pytest.mark.parametrize("named", [lambda n: n, lambda n: np.array([f"p{i:02d}" for i in n])], ids=["numbers", "texts"])
def test_a_group_has_one_number_in_both_splits(named, tmp_path):
    groups = {"train_groups": named(np.arange(12) // 2 + 3), "test_groups": named(np.arange(8) // 2)}
    _, splits, _ = sources.read_dataset(saved(tmp_path, values(np.uint8, 6, 5), **groups), None)
    assert splits["train"].groups.tolist() == (np.arange(12) // 2 + 3).tolist()
    assert sorted(splits["test"].groups.tolist()) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_groups_of_differing_kinds_have_none_in_common(tmp_path):
    groups = {"train_groups": np.arange(12), "test_groups": np.arange(8).astype(str)}
    _, splits, _ = sources.read_dataset(saved(tmp_path, values(np.uint8, 6, 5), **groups), None)
    assert not set(splits["train"].groups) & set(splits["test"].groups)


def test_only_one_split_may_have_groups(tmp_path):
    _, splits, _ = sources.read_dataset(saved(tmp_path, values(np.uint8, 6, 5), test_groups=np.arange(8) // 4), None)
    assert (len(splits["train"].groups), sorted(splits["test"].groups)) == (0, [0] * 4 + [1] * 4)
