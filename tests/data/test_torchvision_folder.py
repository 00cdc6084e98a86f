"""Datasets of torchvision, in their own formats on disk."""

from __future__ import annotations

import gzip
import shlex
import struct

import numpy as np
import pytest
from PIL import Image

from xferbench.config.loader import parse_suite
from xferbench.core.errors import UserError
from xferbench.core.transforms import Preprocessing
from xferbench.data import inputs, sources, torchvision_folder


def to_idx(array):
    """Return an array in the file format of MNIST."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def make_mnist(root, name="MNIST"):
    folder = root / name / "raw"
    folder.mkdir(parents=True)
    for prefix, count in (("train", 40), ("t10k", 20)):
        labels = np.arange(count) % 10
        pixels = np.broadcast_to(labels[:, None, None] * 20, (count, 28, 28))
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(to_idx(pixels))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(to_idx(labels))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(to_idx(labels), mtime=0))
    return root


def make_countries(root):
    """Write a small Country211 with class folders in train, valid and test."""
    for split in ("train", "valid", "test"):
        for label, name in enumerate(("AD", "AE")):
            (root / "country211" / split / name).mkdir(parents=True)
            for number in range(3):
                pixels = np.full((8, 8, 3), 100 * label + number, np.uint8)
                Image.fromarray(pixels).save(root / "country211" / split / name / f"{number}.png")
    return root


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST", "KMNIST"])
def test_a_dataset_of_arrays_is_read_with_its_classes(name, tmp_path):
    pytest.importorskip("torchvision")
    classes, splits, left_out = sources.read_dataset(f"torchvision:{name}:{make_mnist(tmp_path, name)}", None)
    assert len(classes) == 10
    assert left_out == ()
    assert splits["train"].labels.tolist() == [number % 10 for number in range(40)]
    assert [image[0, 0] // 20 for image in splits["test"].images] == splits["test"].labels.tolist()
    assert splits["train"].images[0].shape == (28, 28)


def test_a_dataset_of_files_keeps_its_validation_split_and_leaves_out_broken_files(tmp_path):
    pytest.importorskip("torchvision")
    data = pytest.importorskip("xferbench.lab.data.datasets")
    (make_countries(tmp_path / "d") / "country211" / "train" / "AE" / "1.png").write_bytes(b"no image")
    target = inputs.digest_data(f"torchvision:Country211:{tmp_path / 'd'}")
    dataset = data.load_dataset(target, Preprocessing(), None, tmp_path / "cache")
    assert dataset.classes == ("AD", "AE")
    assert [len(split.labels) for split in (dataset.train, dataset.validation, dataset.test)] == [5, 6, 6]
    assert (dataset.test.images[:, 0, 0, 0] // 100 == dataset.test.labels).all()
    assert len(dataset.left_out) == 1
    assert dataset.left_out[0].startswith("country211/train/AE/1.png: cannot identify")


def test_the_digest_depends_on_the_files_of_the_dataset_alone(tmp_path):
    target = inputs.digest_data(f"torchvision:MNIST:{make_mnist(tmp_path / 'here')}")
    (tmp_path / "here" / "other").write_text("another dataset")
    assert (
        inputs.digest_data(f"torchvision:MNIST:{make_mnist(tmp_path / 'there')}") == target == inputs.digest_data(target.spec)
    )
    assert inputs.digest_data(f"torchvision:KMNIST:{make_mnist(tmp_path / 'far', 'KMNIST')}") != target
    (tmp_path / "here" / "MNIST" / "raw" / "train-labels-idx1-ubyte").write_bytes(to_idx(np.zeros(40)))
    assert inputs.digest_data(target.spec) != target


def test_a_missing_dataset_raises_with_the_download_command(tmp_path):
    with pytest.raises(UserError, match="DTD: files are missing") as error:
        inputs.split_spec(f"torchvision:DTD:{tmp_path}")
    assert f"{tmp_path} without dtd" in error.value.found
    command = error.value.do.partition(": ")[2]
    code = shlex.split(command)[2]
    compile(code, "", "exec")
    for split in ("train", "test", "val"):
        assert f"d.DTD({str(tmp_path)!r}, split={split!r}, download=True)" in code


@pytest.mark.parametrize("damage", [lambda file: file.unlink(), lambda file: file.write_bytes(file.read_bytes()[:50])])
def test_a_damaged_dataset_raises(damage, tmp_path):
    pytest.importorskip("torchvision")
    damage(make_mnist(tmp_path) / "MNIST" / "raw" / "t10k-images-idx3-ubyte")
    with pytest.raises(UserError, match="MNIST cannot be read") as error:
        sources.read_dataset(f"torchvision:MNIST:{tmp_path}", None)
    assert error.value.found
    assert "download=True" in error.value.do


def test_altered_files_of_cifar_raise_before_they_are_unpickled(tmp_path):
    pytest.importorskip("torchvision")
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(UserError, match="CIFAR10 cannot be read") as error:
        sources.read_dataset(f"torchvision:CIFAR10:{tmp_path}", None)
    assert "corrupted" in error.value.found


def test_every_layout_matches_the_constructor_in_torchvision():
    datasets = pytest.importorskip("torchvision.datasets")
    from inspect import signature

    for name, layout in torchvision_folder.LAYOUTS.items():
        parameters = signature(getattr(datasets, name).__init__).parameters
        for arguments in layout.roles.values():
            assert {*arguments, "root", "download"} <= set(parameters), name


def test_the_folder_is_relative_to_the_suite_file(tmp_path):
    table = {"schema": 1, "name": "a", "plugins": ["all"], "backbone": {"arch": "tiny-resnet"}}
    suite = parse_suite(table | {"target": {"data": "torchvision:MNIST:held"}}, tmp_path / "a.toml")
    assert suite.data.target == f"torchvision:MNIST:{tmp_path / 'held'}"
    assert (
        parse_suite(table | {"target": {"data": "torchvision:MNIST"}}, tmp_path / "a.toml").data.target == "torchvision:MNIST"
    )
