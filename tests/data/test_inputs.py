"""Inputs that a suite names: checks, digests, and datasets in folders and npz files."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from xferbench.core.errors import UserError
from xferbench.core.sections import replace_flat
from xferbench.core.suite import BackboneSection, DataSection, Invocation, Suite
from xferbench.core.transforms import Preprocessing
from xferbench.data import inputs, listing, sources, synthetic

SUITE = Suite(
    name="ants",
    plugins=("all",),
    invocation=Invocation(path="/suites/ants.toml"),
    backbone=BackboneSection(arch="tiny-resnet"),
    data=DataSection(target="digits"),
)
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="on other systems every file name is text")


def write_images(folder, count=4, size=(8, 8)):
    folder.mkdir(parents=True)
    for number in range(count):
        pixels = np.random.default_rng([number, *folder.name.encode()]).integers(256, size=(*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")


@pytest.fixture
def folder(tmp_path):
    """Return a folder with two classes in train/ and val/, four images each."""
    for split in ("train", "val"):
        for name in ("ants", "bees"):
            write_images(tmp_path / "insects" / split / name)
    return tmp_path / "insects"


ARRAYS = {
    "train_images": np.random.default_rng(0).integers(256, size=(12, 8, 8, 3), dtype=np.uint8),
    "train_labels": np.arange(12) % 2,
    "test_images": np.random.default_rng(1).integers(256, size=(10, 8, 8, 3), dtype=np.uint8),
    "test_labels": np.arange(10) % 2,
}


@pytest.fixture
def npz(tmp_path):
    def save(**changed):
        arrays = {name: array for name, array in (ARRAYS | changed).items() if array is not None}
        np.savez(tmp_path / "insects.npz", **arrays)
        return tmp_path / "insects.npz"

    return save


# Inputs of a suite


@pytest.mark.parametrize(
    ("changed", "key", "found", "expected"),
    [
        ({"arch": "resnet18"}, "[backbone] arch: unknown", "resnet18", "torchvision:NAME"),
        ({"arch": "keras:vit"}, "[backbone] arch: unknown", "keras:vit", "tiny-resnet, cifar-resnet20"),
        ({"target": "foldr:x"}, "[target] data: unknown kind of dataset", "foldr:x", "did you mean 'folder'? known: csv"),
        (
            {"target": "path/to/ants"},
            "[target] data: unknown kind of dataset",
            "path/to/ants",
            "known: csv, datasets, digits",
        ),
        ({"target": "torchvision:CIFAR"}, "[target] data: unknown dataset of torchvision", "CIFAR", "did you mean 'CIFAR10'?"),
        ({"target": "torchvision:CIFAR10"}, "[target] data: torchvision: no folder", "CIFAR10", "torchvision:CIFAR10:FOLDER"),
        ({"shifted": "torchvision:MNIST:/nowhere"}, "[shifted] data: MNIST: files are missing", "without MNIST", "download"),
        ({"target": "synthetic:nera"}, "[target] data: unknown synthetic dataset", "synthetic:nera", "did you mean 'near'?"),
        ({"target": "synthetic"}, "[target] data: unknown synthetic dataset", "synthetic", "known: near, sketch"),
        ({"target": "digits:8"}, "[target] data: digits is a single dataset", "digits:8", "digits"),
        ({"target": "folder:"}, "[target] data: no such folder", "folder:", "a folder with train/ and val/ or test/"),
        ({"target": "folder:/nowhere"}, "[target] data: no such folder", "folder:/nowhere", "a folder with train/"),
        ({"target": f"folder:{__file__}"}, "[target] data: no such folder", "test_inputs.py", "a folder with train/"),
        ({"target": "npz:/nowhere.npz"}, "[target] data: no such file", "npz:/nowhere.npz", "an npz file"),
        ({"target": "npz:/"}, "[target] data: no such file", "npz:/", "an npz file"),
        ({"source": "digitz"}, "[source] data: unknown kind of dataset", "digitz", "did you mean 'digits'?"),
        ({"shifted": "npz:/nowhere.npz"}, "[shifted] data: no such file", "/nowhere.npz", "an npz file"),
        (
            {"arch": "torchvision:resnet18"},
            "[backbone] weights: missing",
            "torchvision:resnet18",
            "a file of pretrained weights",
        ),
        ({"weights": "/nowhere.pth"}, "[backbone] weights", "/nowhere.pth: no such file", "a file of pretrained weights"),
        ({"weights": "/"}, "[backbone] weights", "/: a folder", "a file of pretrained weights"),
    ],
)
def test_check_inputs_names_the_file_and_the_key(changed, key, found, expected):
    with pytest.raises(UserError) as error:
        inputs.check_inputs(replace_flat(SUITE, **changed))
    assert error.value.what.startswith(f"/suites/ants.toml: {key}")
    assert found in error.value.found
    assert expected in error.value.expected


def test_check_inputs_accepts_existing_inputs(folder, npz):
    changed = {"target": f"folder:{folder}", "source": "synthetic:source", "shifted": f"npz:{npz()}"}
    inputs.check_inputs(replace_flat(SUITE, **changed))


def test_named_archs_are_those_that_can_be_built():
    backbones = pytest.importorskip("xferbench.lab.models.backbones")
    assert {name for name in backbones.known_archs() if not name.startswith("torchvision:")} == set(inputs.NAMED_ARCHS)


def test_tiny_resnet_has_shipped_weights():
    assert inputs.digest_weights(SUITE).path.endswith("tiny-resnet-0.safetensors")
    assert len(inputs.digest_weights(SUITE).digest) == 64


def test_the_digest_of_weights_depends_only_on_their_bytes(tmp_path):
    for name, content in (("a.pth", b"one"), ("b.pth", b"one"), ("c.pth", b"other")):
        (tmp_path / name).write_bytes(content)
    a, b, c = (
        inputs.digest_weights(replace(SUITE, backbone=replace(SUITE.backbone, weights=str(tmp_path / name))))
        for name in ("a.pth", "b.pth", "c.pth")
    )
    assert a == b != c
    assert a.path != b.path


# Digests of datasets


def digest(folder):
    return inputs.digest_data(f"folder:{folder}").digest


def test_the_digest_of_a_folder_does_not_depend_on_its_path(folder, tmp_path):
    before = digest(folder)
    folder.rename(tmp_path / "elsewhere")
    assert digest(tmp_path / "elsewhere") == before


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "train" / "ants" / "0.png").write_bytes(b"touched"),
        lambda folder: (folder / "train" / "ants" / "0.png").unlink(),
        lambda folder: (folder / "train" / "ants").rename(folder / "train" / "wasps"),
        lambda folder: (folder / "train" / "ants" / "0.png").rename(folder / "train" / "bees" / "00.png"),
        lambda folder: shutil.copy(folder / "train" / "ants" / "0.png", folder / "train" / "ants" / "9.png"),
    ],
)
def test_a_changed_image_or_class_changes_the_digest(folder, change):
    before = digest(folder)
    change(folder)
    assert digest(folder) != before


def test_hidden_files_are_ignored(folder):
    before = digest(folder)
    (folder / ".DS_Store").write_bytes(b"x")
    write_images(folder / "train" / ".ipynb_checkpoints")
    (folder / "train" / "ants" / "._0.png").write_bytes(b"x")
    assert digest(folder) == before
    assert sources.read_dataset(f"folder:{folder}", None)[0] == ("ants", "bees")


def test_links_are_followed(folder, tmp_path):
    linked = tmp_path / "linked"
    linked.mkdir()
    for split in ("train", "val"):
        (linked / split).symlink_to(folder / split)
    before = digest(linked)
    assert before == digest(folder)
    (folder / "train" / "ants" / "0.png").write_bytes(b"touched")
    assert digest(linked) != before


def test_a_cycle_of_links_ends(folder):
    (folder / "train" / "ants" / "up").symlink_to(folder)
    assert len(list(listing.list_files(folder))) == 16


def test_files_are_listed_in_a_fixed_order(folder):
    names = [path.relative_to(folder).as_posix() for path in listing.list_files(folder)]
    assert names == sorted(names)
    assert len(names) == 16


@LINUX
def test_a_file_name_that_is_not_text_is_accepted(folder):
    before = digest(folder)
    shutil.copy(folder / "train" / "ants" / "0.png", os.fsencode(folder) + b"/train/ants/\xff.png")
    assert digest(folder) != before
    assert len(sources.read_dataset(f"folder:{folder}", None)[1]["train"].labels) == 9


def test_digests_of_other_datasets_depend_on_file_or_generator(npz, monkeypatch):
    digest_before = inputs.digest_data(f"npz:{npz()}").digest
    assert inputs.digest_data(f"npz:{npz(train_labels=1 - ARRAYS['train_labels'])}").digest != digest_before
    near = inputs.digest_data("synthetic:near").digest
    assert len({near, inputs.digest_data("synthetic:sketch").digest, inputs.digest_data("digits").digest}) == 3
    monkeypatch.setattr(synthetic, "VERSION", synthetic.VERSION + 1)
    assert inputs.digest_data("synthetic:near").digest != near


# Class folders


def empty_folder(folder):
    for file in folder.iterdir():
        file.unlink()


def move_into_folds(folder):
    for fold in ("fold1", "fold2"):
        for split in ("train", "val"):
            shutil.copytree(folder / split, folder / fold / split)
    for split in ("train", "val"):
        shutil.rmtree(folder / split)


def unpack_flat_test(folder):
    shutil.rmtree(folder / "val")
    write_images(folder / "test")


@pytest.mark.parametrize(
    ("change", "what", "found", "expected"),
    [
        (lambda folder: shutil.rmtree(folder / "val"), "not a dataset folder", "train", "train/ and val/ or test/"),
        (lambda folder: shutil.rmtree(folder / "train"), "not a dataset folder", "val", "train/ and val/ or test/"),
        (lambda folder: [shutil.rmtree(folder / name) for name in ("train", "val")], "not a dataset", "nothing", "train/"),
        (lambda folder: shutil.rmtree(folder / "train" / "bees"), "train: too few classes", "1 class folder(s): ants", "two"),
        (lambda folder: empty_folder(folder / "train" / "bees"), "train/bees: no images", "0 other files", ".jpeg, .jpg"),
        (lambda folder: write_images(folder / "dev" / "ants"), "two folders for selection", "dev/ and val/", "one"),
        (move_into_folds, "several folders with splits", "fold1, fold2", "train/"),
        (unpack_flat_test, "not a dataset folder", "test without class folders", "one folder of images"),
        (lambda folder: write_images(folder / "val" / "wasps"), "val: class folders that are missing", "wasps", "ants, bees"),
    ],
)
def test_a_wrong_folder_raises(folder, change, what, found, expected):
    change(folder)
    with pytest.raises(UserError) as error:
        sources.read_dataset(f"folder:{folder}", None)
    assert what in error.value.what
    assert found in error.value.found
    assert expected in error.value.expected


def test_a_class_folder_without_images_raises(folder):
    empty_folder(folder / "train" / "bees")
    (folder / "train" / "bees" / "notes.txt").write_text("bees")
    with pytest.raises(UserError, match="no images") as error:
        sources.read_dataset(f"folder:{folder}", None)
    assert error.value.found == "1 other files"


def test_val_is_the_test_set_without_a_test_folder(folder):
    _, splits, _ = sources.read_dataset(f"folder:{folder}", None)
    assert set(splits) == {"train", "test"}
    for name in ("ants", "bees"):
        write_images(folder / "test" / name)
    _, splits, _ = sources.read_dataset(f"folder:{folder}", None)
    assert set(splits) == {"train", "validation", "test"}
    assert {path.parts[-3] for path in splits["test"].images} == {"test"}


def test_notes_name_the_files_that_are_left_out(folder):
    (folder / "train" / "ants" / "imgs.txt").write_text("0.png")
    write_images(folder / "train" / "ants" / "more", count=1)
    shutil.copy(folder / "train" / "ants" / "0.png", folder / "train" / "stray.png")
    classes, splits, left_out = sources.read_dataset(f"folder:{folder}", None)
    assert classes == ("ants", "bees")
    assert len(splits["train"].labels) == 8
    assert set(left_out) == {
        "train/ants/imgs.txt: not an image file",
        "train/ants/more/0.png: not directly in a class folder",
        "train/stray.png: not directly in a class folder",
    }


# Arrays


@pytest.mark.parametrize(
    ("changed", "what", "found", "expected"),
    [
        ({"test_labels": None}, "arrays are missing", "test_images, train_images, train_labels", "test_labels"),
        ({"train_labels": np.array([None] * 12)}, "not an npz file of plain arrays", "Object arrays", "train_images"),
        ({"train_labels": ARRAYS["train_labels"] * 1.0}, "train_labels", "float64 (12,)", "an integer or a string"),
        ({"train_labels": np.arange(5) % 2}, "train_labels", "int64 (5,) for 12 images", "for each image"),
        ({"train_labels": np.eye(2, dtype=int)[np.arange(12) % 2]}, "train_labels", "(12, 2) for 12 images", "for each image"),
        ({"train_labels": np.zeros(12, int)}, "labels", "train [0], test [0, 1]", "at least two classes"),
        ({"test_labels": np.arange(10) % 3}, "labels", "test [0, 1, 2]", "no test class that is missing from train"),
        ({"train_images": ARRAYS["train_images"] / 255}, "train_images", "float64 (12, 8, 8, 3)", "uint8 or uint16, N×H×W"),
        ({"test_images": ARRAYS["test_images"].transpose(0, 3, 1, 2)}, "test_images", "uint8 (10, 3, 8, 8)", "N×H×W×3"),
        ({"test_images": np.zeros((10, 0, 8, 3), np.uint8)}, "test_images", "(10, 0, 8, 3)", "no axis 0"),
        ({"classes": np.array(["a", "b", "c"])}, "classes", "3 names for 2 classes", "one name for each label"),
        ({"train_groups": np.arange(5)}, "train_groups", "int64 (5,) for 12 images", "for each image"),
        ({"test_groups": np.ones(10)}, "test_groups", "float64 (10,)", "an integer or a string"),
    ],
)
def test_unusable_arrays_raise(npz, changed, what, found, expected):
    file = npz(**changed)
    with pytest.raises(UserError) as error:
        sources.read_dataset(f"npz:{file}", None)
    assert error.value.what == f"{file}: {what}"
    assert found in error.value.found
    assert expected in error.value.expected


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: b"not a zip file",
        lambda content: b"PK\x03\x04 and no more",
        lambda content: content[: len(content) // 2],
        lambda content: content[:300] + bytes(100) + content[400:],
    ],
)
def test_a_damaged_file_raises(npz, damage):
    file = npz()
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UserError, match="not an npz file of plain arrays"):
        sources.read_dataset(f"npz:{file}", None)


@pytest.mark.parametrize("shape", [(3,), (3, 2)])
def test_a_single_array_raises(tmp_path, shape):
    with (tmp_path / "one.npz").open("wb") as file:
        np.save(file, np.zeros(shape))
    with pytest.raises(UserError, match="not an npz file of plain arrays"):
        sources.read_dataset(f"npz:{tmp_path / 'one.npz'}", None)


@pytest.mark.parametrize("shape", [(12,), (12, 1)])
def test_labels_may_be_a_column(npz, shape):
    _, splits, _ = sources.read_dataset(f"npz:{npz(train_labels=ARRAYS['train_labels'].reshape(shape))}", None)
    assert splits["train"].labels.tolist() == [0, 1] * 6


def test_labels_may_be_text_or_any_integers(npz):
    names = np.array(["ants", "bees"])
    classes, splits, _ = sources.read_dataset(
        f"npz:{npz(train_labels=names[ARRAYS['train_labels']], test_labels=names[ARRAYS['test_labels']])}", None
    )
    assert classes == ("ants", "bees")
    assert splits["train"].labels.tolist() == [0, 1] * 6
    distant = {name: ARRAYS[name] * 1000 - 7 for name in ("train_labels", "test_labels")}
    assert sources.read_dataset(f"npz:{npz(**distant)}", None)[0] == ("-7", "993")


def test_a_note_names_an_unused_array(npz):
    *_, left_out = sources.read_dataset(f"npz:{npz(train_group=np.arange(12))}", None)
    assert left_out == ("insects.npz: array train_group is not used",)


# Decoded datasets


def load_dataset(spec, tmp_path, test_size=None):
    data = pytest.importorskip("xferbench.lab.data.datasets")
    return data.load_dataset(inputs.digest_data(spec), Preprocessing(), test_size, tmp_path / "cache")


def test_an_image_of_an_unsupported_kind_is_left_out_with_a_note(folder, tmp_path):
    Image.fromarray(np.zeros((8, 8), np.float32)).save(folder / "train" / "ants" / "float.tiff")
    dataset = load_dataset(f"folder:{folder}", tmp_path)
    assert dataset.train.labels.tolist() == [0] * 4 + [1] * 4
    assert dataset.left_out == ("train/ants/float.tiff: an image of floating-point pixels, mode F",)


def test_a_decompression_bomb_is_left_out(folder, tmp_path, monkeypatch):
    Image.new("1", (64, 64)).save(folder / "train" / "ants" / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 8)
    assert "exceeds limit" in load_dataset(f"folder:{folder}", tmp_path).left_out[0]


def test_a_class_without_readable_images_raises_with_the_reason(folder, tmp_path):
    for file in (folder / "val" / "bees").iterdir():
        file.write_bytes(b"no image")
    with pytest.raises(UserError, match="a class without an example that can be read") as error:
        load_dataset(f"folder:{folder}", tmp_path)
    assert error.value.found.startswith("none of bees; ")
    assert "cannot identify image file" in error.value.found


def test_different_sizes_of_train_and_test_raise(npz, tmp_path):
    file = npz(test_images=np.zeros((10, 16, 16, 3), np.uint8))
    with pytest.raises(UserError, match="images of differing sizes") as error:
        load_dataset(f"npz:{file}", tmp_path)
    assert error.value.found == "8×8, 16×16"
    assert "resize and crop" in error.value.do


def test_a_test_size_above_the_number_of_images_raises(npz, tmp_path):
    spec = f"npz:{npz()}"
    assert len(load_dataset(spec, tmp_path, test_size=10).test.labels) == 10
    with pytest.raises(UserError, match="test_size") as error:
        load_dataset(spec, tmp_path, test_size=11)
    assert (error.value.found, error.value.expected) == ("11, of 10 test examples", "at most 10")


def test_the_digest_of_weights_covers_the_configuration_of_their_architecture(tmp_path):
    (tmp_path / "net").mkdir()
    (tmp_path / "weights.pth").write_bytes(b"weights")
    backbone = replace(SUITE.backbone, arch=f"transformers:{tmp_path / 'net'}", weights=str(tmp_path / "weights.pth"))
    suite, digests = replace(SUITE, backbone=backbone), set()
    for layers in (1, 2):
        (tmp_path / "net" / "config.json").write_text(f'{{"model_type": "bert", "num_hidden_layers": {layers}}}')
        digests.add(inputs.digest_weights(suite).digest)
    assert len(digests) == 2
