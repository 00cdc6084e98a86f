"""Class folders: the names of splits, nested and system folders, and the notes that say how a folder was understood."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

from xferbench.core.errors import UserError
from xferbench.core.transforms import Preprocessing
from xferbench.data import class_folders, inputs, sources


def write_split(folder, counts):
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (6, 6), (number, count, len(name))).save(folder / name / f"{number}.png")


@pytest.fixture
def make(tmp_path):
    """Return a function that writes splits with three images in each of the classes fox and owl, and returns their folder."""

    def write(*splits, root="pets"):
        for split in splits:
            write_split(tmp_path / root / split, {"fox": 3, "owl": 3})
        return tmp_path / root

    return write


def read(folder):
    return sources.read_dataset(f"folder:{folder}", None)


def roles(folder):
    """Return the folder of each split by its role."""
    return {role: path.name for role, path in class_folders.read_layout(folder).splits.items()}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("Train", "Valid"), {"train": "Train", "test": "Valid"}),
        (("Training", "Testing"), {"train": "Training", "test": "Testing"}),
        (("TRAIN", "dev", "test"), {"train": "TRAIN", "validation": "dev", "test": "test"}),
        (("training_set", "validation", "test set"), {"train": "training_set", "validation": "validation", "test": "test set"}),
    ],
)
def test_splits_have_many_names(make, names, expected):
    folder = make(*names)
    assert roles(folder) == expected
    assert set(read(folder)[1]) == set(expected)


def test_a_note_says_what_each_split_is_for(make):
    assert (
        "train/ is for training; valid/ is for selection; test/ is for testing"
        in class_folders.read_layout(make("train", "valid", "test")).notes
    )
    two = class_folders.read_layout(make("train", "val", root="two")).notes
    assert two == ("train/ is for training; val/ is for testing, because there is no test/",)


def test_a_dataset_inside_a_folder_is_found_and_other_folders_are_named(make):
    folder = make("train", "val", root="archive/v2")
    write_split(folder / "unlabeled", {"all": 1})
    (folder.parent / "docs").mkdir()
    layout = class_folders.read_layout(folder.parent)
    assert layout.splits["train"] == folder / "train"
    notes = "\n".join(layout.notes)
    assert "the dataset is in v2/" in notes
    assert "v2/unlabeled/ is left out" in notes
    assert "docs/ is left out" in notes


def test_a_class_may_have_the_name_of_a_split(tmp_path):
    write_split(tmp_path, {"bus": 2, "car": 2, "train": 2})
    classes, splits, _ = read(tmp_path)
    assert classes == ("bus", "car", "train")
    assert set(splits) == {"test"}


def test_what_systems_add_is_no_part_of_a_dataset(make):
    folder = make("train", "val")
    before = inputs.digest_data(f"folder:{folder}")
    write_split(folder / "train" / "__MACOSX", {"fox": 1})
    write_split(folder / "__MACOSX", {"train": 1})
    write_split(folder / "val" / ".ipynb_checkpoints", {"owl": 1})
    for name in ("Thumbs.db", "desktop.ini", "._0.png"):
        (folder / "val" / "owl" / name).write_bytes(b"\0\5\x16\7")
    classes, splits, left_out = read(folder)
    assert classes == ("fox", "owl")
    assert [len(raw.labels) for raw in splits.values()] == [6, 6]
    assert left_out == ()
    assert inputs.digest_data(f"folder:{folder}") == before


def test_an_empty_folder_is_no_class_and_is_named(make):
    folder = make("train", "val")
    (folder / "train" / "untitled").mkdir()
    layout = class_folders.read_layout(folder)
    assert layout.classes == ("fox", "owl")
    assert "train/: untitled has no files, so it is left out" in layout.notes


def test_a_test_set_may_lack_a_class(make, tmp_path):
    folder = make("train", "val")
    shutil.rmtree(folder / "val" / "fox")
    assert "val/ has no images of fox" in class_folders.read_layout(folder).notes
    datasets = pytest.importorskip("xferbench.lab.data.datasets")
    data = inputs.digest_data(f"folder:{folder}")
    assert datasets.load_dataset(data, Preprocessing(), None, tmp_path / "cache").test.labels.tolist() == [1, 1, 1]


def test_a_test_set_with_another_class_is_refused(make):
    folder = make("train", "val")
    write_split(folder / "val", {"elk": 1})
    with pytest.raises(UserError, match="class folders that are missing from train/") as error:
        read(folder)
    assert error.value.found == "elk"


def test_numbers_that_are_sorted_as_text_are_noted(tmp_path):
    write_split(tmp_path, {str(number): 1 for number in (2, 11, 1)})
    layout = class_folders.read_layout(tmp_path)
    assert layout.classes == ("1", "11", "2")
    assert "(1, 11, 2, …), and not in numeric order" in layout.notes[0]
    assert list(class_folders.order_notes(("1", "2", "3"))) == []


@pytest.mark.parametrize("names", [("train", "val"), ("train", "val", "test"), ("train", "test")])
def test_the_digest_of_usual_splits_is_that_of_their_files(make, names, monkeypatch):
    folder = make(*names)
    before = inputs.digest_data(f"folder:{folder}")
    monkeypatch.setattr(class_folders, "unusual_splits", lambda _: {})
    assert inputs.digest_data(f"folder:{folder}") == before


def test_the_digest_depends_on_a_split_that_earlier_versions_ignored(make, monkeypatch):
    folder = make("train", "valid", "test")
    before = inputs.digest_data(f"folder:{folder}")
    monkeypatch.setattr(class_folders, "unusual_splits", lambda _: {})
    assert inputs.digest_data(f"folder:{folder}") != before


def test_labels_have_the_order_of_the_classes(make):
    classes, splits, _ = read(make("Training", "Testing"))
    named = zip(splits["test"].images, splits["test"].labels, strict=True)
    assert all(path.parent.name == classes[label] for path, label in named)
    assert np.bincount(splits["train"].labels).tolist() == [3, 3]


def test_a_table_beside_class_folders_is_named(make):
    folder = make("train", "val")
    (folder / "labels.csv").write_text("image,label\n")
    assert "labels.csv is not used, because the class folders label the images" in class_folders.read_layout(folder).notes
