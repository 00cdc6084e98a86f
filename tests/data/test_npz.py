"""Datasets in npz files: 16-bit images, spectrograms, and groups in both splits."""

from __future__ import annotations

import numpy as np
import pytest

from xferbench.core.errors import UserError
from xferbench.core.transforms import Preprocessing, Spectrogram
from xferbench.data import inputs, sources


def save_dataset(path, images, **groups):
    """Write an npz file with the first twelve images for training and the others for testing. Return the dataset."""
    labels = np.arange(len(images)) % 2
    arrays = {"train_images": images[:12], "test_images": images[12:], "train_labels": labels[:12], "test_labels": labels[12:]}
    np.savez(path / "d.npz", **arrays | groups)
    return f"npz:{path / 'd.npz'}"


def random_images(kind, *shape):
    return (np.random.default_rng(0).random((20, *shape)) * 60000).astype(kind)


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 1), (6, 5, 3)])
def test_the_upper_8_of_16_bits_are_used(shape, tmp_path):
    data = pytest.importorskip("xferbench.lab.data.datasets")
    images = random_images(np.uint16, *shape)
    dataset = data.load_dataset(inputs.digest_data(save_dataset(tmp_path, images)), Preprocessing(), None, tmp_path / "cache")
    expected = np.broadcast_to((images[:12] // 256).reshape(12, 6, 5, -1), (12, 6, 5, 3))
    assert np.array_equal(dataset.train.images, expected.transpose(0, 3, 1, 2))
    assert dataset.train.images.dtype == np.uint8


@pytest.mark.parametrize("kind", ["uint8", "uint16", "float16", "float32", "float64"])
def test_spectrograms_of_any_dtype_have_one_channel(kind, tmp_path):
    data = pytest.importorskip("xferbench.lab.data.datasets")
    images = (random_images(np.float64, 24, 40) / 500).astype(kind)
    dataset = data.load_dataset(inputs.digest_data(save_dataset(tmp_path, images)), Spectrogram(), None, tmp_path / "cache")
    assert np.array_equal(dataset.train.images[:, 0], images[:12].astype(np.float32))
    assert data.input_shape(dataset, Spectrogram(channels=2)) == (2, 24, 40)


def test_spectrograms_and_images_are_not_interchangeable(tmp_path):
    data = pytest.importorskip("xferbench.lab.data.datasets")
    floats, colors = inputs.digest_data(save_dataset(tmp_path, random_images(np.float32, 6, 5))), tmp_path / "colors"
    with pytest.raises(UserError, match="not an image") as error:
        data.load_dataset(floats, Preprocessing(), None, tmp_path / "cache")
    assert 'kind = "spectrogram"' in error.value.do
    colors.mkdir()
    with pytest.raises(UserError, match="not a spectrogram"):
        data.load_dataset(
            inputs.digest_data(save_dataset(colors, random_images(np.uint8, 6, 5, 3))), Spectrogram(), None, tmp_path / "cache"
        )


def test_a_non_finite_value_raises_with_the_index_of_its_image(tmp_path):
    images = random_images(np.float32, 6, 5)
    images[15, 2, 2] = np.nan
    with pytest.raises(UserError, match="test_images") as error:
        sources.read_dataset(save_dataset(tmp_path, images), None)
    assert error.value.found == "NaN or infinity in image 3"


@pytest.mark.parametrize("kind", ["int64", "bool", "complex64"])
def test_other_dtypes_raise(kind, tmp_path):
    with pytest.raises(UserError, match="train_images") as error:
        sources.read_dataset(save_dataset(tmp_path, random_images(kind, 6, 5)), None)
    assert error.value.found == f"{kind} (12, 6, 5)"


@pytest.mark.parametrize("convert", [lambda n: n, lambda n: np.array([f"p{i:02d}" for i in n])], ids=["numbers", "texts"])
def test_a_group_has_one_number_in_both_splits(convert, tmp_path):
    groups = {"train_groups": convert(np.arange(12) // 2 + 3), "test_groups": convert(np.arange(8) // 2)}
    _, splits, _ = sources.read_dataset(save_dataset(tmp_path, random_images(np.uint8, 6, 5), **groups), None)
    assert splits["train"].groups.tolist() == (np.arange(12) // 2 + 3).tolist()
    assert sorted(splits["test"].groups.tolist()) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_groups_of_different_kinds_are_disjoint(tmp_path):
    groups = {"train_groups": np.arange(12), "test_groups": np.arange(8).astype(str)}
    _, splits, _ = sources.read_dataset(save_dataset(tmp_path, random_images(np.uint8, 6, 5), **groups), None)
    assert not set(splits["train"].groups) & set(splits["test"].groups)


def test_only_one_split_may_have_groups(tmp_path):
    _, splits, _ = sources.read_dataset(
        save_dataset(tmp_path, random_images(np.uint8, 6, 5), test_groups=np.arange(8) // 4), None
    )
    assert (len(splits["train"].groups), sorted(splits["test"].groups)) == (0, [0] * 4 + [1] * 4)
