"""Datasets of torchvision's, in its own formats, that lie on the disk already."""

from __future__ import annotations

import gzip
import shlex
import struct

import numpy as np
import pytest
from PIL import Image

from xferbench.config.loader import parse_suite
from xferbench.core.errors import UserError
from xferbench.core.pipeline import Preprocessing
from xferbench.data import inputs, sources, torchvision_folder


def idx(array):
    """An array in the format of MNIST's files."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def mnist(root, name="MNIST"):
    place = root / name / "raw"
    place.mkdir(parents=True)
    for prefix, count in (("train", 40), ("t10k", 20)):
        labels = np.arange(count) % 10
        pixels = np.broadcast_to(labels[:, None, None] * 20, (count, 28, 28))
        (place / f"{prefix}-images-idx3-ubyte").write_bytes(idx(pixels))
        (place / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(labels))
        (place / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels), mtime=0))
    return root


def countries(root):
    """Country211 in small: class folders in train, valid and test."""
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
    classes, splits, left_out = sources.read_dataset(f"torchvision:{name}:{mnist(tmp_path, name)}", None)
    assert len(classes) == 10
    assert left_out == ()
    assert splits["train"].labels.tolist() == [number % 10 for number in range(40)]
    assert [image[0, 0] // 20 for image in splits["test"].images] == splits["test"].labels.tolist()
    assert splits["train"].images[0].shape == (28, 28)


def test_a_dataset_of_files_keeps_its_own_validation_and_loses_only_the_broken(tmp_path):
    pytest.importorskip("torchvision")
    data = pytest.importorskip("xferbench.lab.data.datasets")
    (countries(tmp_path / "d") / "country211" / "train" / "AE" / "1.png").write_bytes(b"no image")
    target = inputs.digest_data(f"torchvision:Country211:{tmp_path / 'd'}")
    dataset = data.load_dataset(target, Preprocessing(), None, tmp_path / "cache")
    assert dataset.classes == ("AD", "AE")
    assert [len(split.labels) for split in (dataset.train, dataset.validation, dataset.test)] == [5, 6, 6]
    assert (dataset.test.images[:, 0, 0, 0] // 100 == dataset.test.labels).all()
    assert len(dataset.left_out) == 1
    assert dataset.left_out[0].startswith("country211/train/AE/1.png: cannot identify")


def test_the_digest_is_of_its_own_files_wherever_they_lie(tmp_path):
    target = inputs.digest_data(f"torchvision:MNIST:{mnist(tmp_path / 'here')}")
    (tmp_path / "here" / "other").write_text("another dataset")
    assert inputs.digest_data(f"torchvision:MNIST:{mnist(tmp_path / 'there')}") == target == inputs.digest_data(target.spec)
    assert inputs.digest_data(f"torchvision:KMNIST:{mnist(tmp_path / 'far', 'KMNIST')}") != target
    (tmp_path / "here" / "MNIST" / "raw" / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(40)))
    assert inputs.digest_data(target.spec) != target


def test_a_dataset_that_is_not_there_is_told_with_the_command_that_fetches_it(tmp_path):
    with pytest.raises(UserError, match="DTD: files are missing") as told:
        inputs.split_spec(f"torchvision:DTD:{tmp_path}")
    assert f"{tmp_path} without dtd" in told.value.found
    command = told.value.do.partition(": ")[2]
    code = shlex.split(command)[2]
    compile(code, "", "exec")
    for split in ("train", "test", "val"):
        assert f"d.DTD({str(tmp_path)!r}, split={split!r}, download=True)" in code


@pytest.mark.parametrize("damage", [lambda file: file.unlink(), lambda file: file.write_bytes(file.read_bytes()[:50])])
def test_a_dataset_that_is_damaged_is_a_problem(damage, tmp_path):
    pytest.importorskip("torchvision")
    damage(mnist(tmp_path) / "MNIST" / "raw" / "t10k-images-idx3-ubyte")
    with pytest.raises(UserError, match="MNIST cannot be read") as told:
        sources.read_dataset(f"torchvision:MNIST:{tmp_path}", None)
    assert told.value.found
    assert "download=True" in told.value.do


def test_altered_files_of_cifar_are_refused_before_anything_in_them_is_unpickled(tmp_path):
    pytest.importorskip("torchvision")
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(UserError, match="CIFAR10 cannot be read") as told:
        sources.read_dataset(f"torchvision:CIFAR10:{tmp_path}", None)
    assert "corrupted" in told.value.found


def test_every_name_is_one_of_torchvisions_whose_constructor_takes_the_arguments():
    datasets = pytest.importorskip("torchvision.datasets")
    from inspect import signature

    for name, one in torchvision_folder.LAYOUTS.items():
        known = signature(getattr(datasets, name).__init__).parameters
        for given in one.roles.values():
            assert {*given, "root", "download"} <= set(known), name


def test_a_suites_folder_is_relative_to_its_file(tmp_path):
    table = {"schema": 1, "name": "a", "plugins": ["all"], "backbone": {"arch": "tiny-resnet"}}
    suite = parse_suite(table | {"target": {"data": "torchvision:MNIST:held"}}, tmp_path / "a.toml")
    assert suite.target == f"torchvision:MNIST:{tmp_path / 'held'}"
    assert parse_suite(table | {"target": {"data": "torchvision:MNIST"}}, tmp_path / "a.toml").target == "torchvision:MNIST"
