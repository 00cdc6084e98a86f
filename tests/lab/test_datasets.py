"""Datasets: files that are read and left out, order, subsets and splits."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")

from PIL import Image

from xferbench.core.errors import UserError
from xferbench.core.transforms import Preprocessing
from xferbench.data import inputs, sources, synthetic
from xferbench.lab.data import datasets

PREPROCESSING = Preprocessing()
SMALL = Preprocessing(resize=8, crop=8)


def make_pixels(count, side=16, classes=4, seed=0):
    """Return noisy images of one color per class in turn, uint8 [count, side, side, 3], and their labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    colours = np.random.default_rng(1).integers(60, 196, (classes, 1, 1, 3))
    return (colours[labels] + rng.integers(-40, 41, (count, side, side, 3))).astype(np.uint8), labels


def make_npz(path, *, train=120, test=60, side=16, classes=4, **more):
    """Write an npz file whose task a small network can partly learn."""
    arrays = {}
    for split, count, seed in (("train", train, 0), ("test", test, 1)):
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = make_pixels(count, side, classes, seed)
    np.savez(path, **arrays | more)
    return inputs.digest_data(f"npz:{path}")


def make_folder(folder, *, splits=("train", "val"), classes=("cat", "dog"), each=5):
    for number, split in enumerate(splits):
        for label, name in enumerate(classes):
            (folder / split / name).mkdir(parents=True)
            for i in range(each):
                pixels = np.full((12, 12, 3), (20 * i + 5 * number + 100 * label) % 256, np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{i}.png")
    return folder


def load_folder(folder, cache, preprocessing=PREPROCESSING, test_size=None):
    return datasets.load_dataset(inputs.digest_data(f"folder:{folder}"), preprocessing, test_size, cache)


def make_dataset(labels, groups=(), has_validation=False):
    """Return a dataset of blank images with given labels."""
    labels, groups = np.asarray(labels), np.asarray(groups)
    blank = np.zeros((len(labels), 3, 2, 2), np.uint8)
    split = datasets.Split(images=blank, labels=labels, groups=groups, example=np.arange(len(labels), dtype=np.uint64))
    classes = tuple(f"c{label}" for label in np.unique(labels))
    return datasets.Dataset(classes=classes, train=split, validation=split if has_validation else None, test=split, left_out=())


def test_a_subset_is_stratified_and_disjoint_from_validation():
    dataset = make_dataset(np.repeat([0, 1, 2], [200, 100, 50]))
    train, validation = datasets.train_validation_indices(dataset, 70, 0)
    assert np.bincount(dataset.train.labels[train]).tolist() == pytest.approx([40, 20, 10], abs=1)
    assert np.bincount(dataset.train.labels[validation]).tolist() == pytest.approx([160, 80, 40], abs=1)
    assert not set(train) & set(validation)


def test_subsets_are_nested_and_depend_on_the_seed():
    dataset = make_dataset(np.arange(300) % 5)
    small, middle, large = (set(datasets.train_validation_indices(dataset, size, 7)[0]) for size in (20, 100, None))
    assert small < middle < large
    assert small != set(datasets.train_validation_indices(dataset, 20, 8)[0])


@pytest.mark.parametrize("size", [None, 95, 100])
def test_a_fifth_is_held_out_if_nothing_remains_for_validation(size):
    train, validation = datasets.train_validation_indices(make_dataset(np.arange(100) % 4), size, 0)
    assert (len(train), len(validation)) == (80, 20)
    assert np.bincount(validation % 4).tolist() == [5, 5, 5, 5]


@pytest.mark.parametrize(("size", "used"), [(None, 100), (95, 95), (40, 40)])
def test_a_dataset_with_a_validation_split_uses_it(size, used):
    train, validation = datasets.train_validation_indices(make_dataset(np.arange(100) % 4, has_validation=True), size, 0)
    assert (len(train), len(validation)) == (used, 0)


def test_the_validation_set_has_a_maximum_size():
    assert len(datasets.train_validation_indices(make_dataset(np.arange(4000) % 4), 50, 0)[1]) == datasets.MAX_VALIDATION


def test_every_subset_contains_the_rarest_class():
    dataset = make_dataset(np.repeat([0, 1, 2], [500, 60, 2]))
    for seed in range(30):
        train, _ = datasets.train_validation_indices(dataset, 3, seed)
        assert sorted(dataset.train.labels[train]) == [0, 1, 2]


def test_a_train_size_that_is_too_small_or_too_large_is_an_error():
    with pytest.raises(UserError, match="too small"):
        datasets.train_validation_indices(make_dataset(np.arange(100) % 4), 3, 0)
    with pytest.raises(UserError, match="more than there are"):
        datasets.train_validation_indices(make_dataset(np.arange(100) % 4), 101, 0)


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 12), min_size=3, max_size=12),
    size=st.none() | st.integers(1, 60),
    seed=st.integers(0, 50),
)
def test_groups_are_never_divided_and_validation_is_never_empty(counts, size, seed):
    groups = np.repeat(np.arange(len(counts)), counts)
    labels = groups % 2
    dataset = make_dataset(labels, groups)
    try:
        train, validation = datasets.train_validation_indices(dataset, min(size, len(labels)) if size else None, seed)
    except UserError:  # too few groups, or images, for both classes
        assert len(counts) == 3 or (size or len(labels)) <= max(counts) * 2
        return
    assert len(train)
    assert len(validation)
    assert not set(groups[train]) & set(groups[validation])


def test_groups_of_one_class_each_are_balanced_too():
    groups = np.repeat(np.arange(40), 5)
    labels = (groups >= 30).astype(int)  # three in four groups are of the first class
    for seed in range(10):
        train, _ = datasets.train_validation_indices(make_dataset(labels, groups), 60, seed)
        assert np.bincount(labels[train])[1] == pytest.approx(15, abs=5)


def test_shuffled_labels_have_the_same_counts():
    dataset = make_dataset(np.arange(100) % 4, has_validation=True)
    mixed, again = datasets.with_shuffled_labels(dataset, 3), datasets.with_shuffled_labels(dataset, 3)
    assert (mixed.train.labels != dataset.train.labels).any()
    assert sorted(mixed.train.labels) == sorted(dataset.train.labels)
    assert (mixed.train.labels == again.train.labels).all()
    assert (mixed.test.labels == dataset.test.labels).all()


def test_val_is_the_test_set_only_if_there_is_no_test_folder(tmp_path):
    two = load_folder(make_folder(tmp_path / "two"), tmp_path / "cache")
    assert two.validation is None
    assert sorted(two.test.labels) == [0] * 5 + [1] * 5
    assert len(set(two.test.labels[:5].tolist())) == 2, "in a fixed random order"
    three = load_folder(make_folder(tmp_path / "three", splits=("train", "val", "test"), each=4), tmp_path / "cache")
    assert len(three.validation.labels) == len(three.test.labels) == 8
    assert set(three.validation.example).isdisjoint(three.test.example)
    only = load_folder(make_folder(tmp_path / "only", splits=("train", "test")), tmp_path / "cache")
    assert only.validation is None


def test_hidden_files_are_ignored_and_unreadable_files_are_reported(tmp_path):
    folder = make_folder(tmp_path / "d")
    whole = (folder / "train" / "cat" / "0.png").read_bytes()
    (folder / "train" / "cat" / ".hidden.png").write_bytes(b"")
    (folder / "train" / "cat" / "torn.png").write_bytes(whole[: len(whole) // 2])
    (folder / "train" / "dog" / "empty.jpg").write_bytes(b"")
    (folder / "val" / "dog" / "notes.txt").write_text("woof")
    dataset = load_folder(folder, tmp_path / "cache")
    assert len(dataset.train.labels) == 10
    message = "\n".join(dataset.left_out)
    for name in ("train/cat/torn.png: ", "train/dog/empty.jpg: cannot identify", "val/dog/notes.txt: "):
        assert name in message
    assert ".hidden" not in message
    assert str(tmp_path) not in message


@pytest.mark.parametrize("kind", ["I;16", "L", "RGBA", "P", "LA", "1", "CMYK"])
def test_common_image_formats_become_rgb_uint8(kind, tmp_path):
    folder = make_folder(tmp_path / "d")
    grey = np.full((12, 12), 200, np.uint8)
    image = Image.fromarray(grey.astype(np.uint16) << 8) if kind == "I;16" else Image.fromarray(grey).convert(kind)
    if kind == "1":
        image = Image.fromarray(grey > 100)
    image.save(folder / "train" / "cat" / ("odd.tiff" if kind == "CMYK" else "odd.png"))
    dataset = load_folder(folder, tmp_path / "cache")
    assert dataset.left_out == ()
    assert dataset.train.images.dtype == np.uint8
    (odd,) = [
        image
        for image, label in zip(dataset.train.images, dataset.train.labels, strict=True)
        if image.max() >= 199 and label == 0
    ]
    assert odd.shape == (3, 12, 12)
    assert np.ptp(odd) <= 1
    assert odd[0, 0, 0] == (255 if kind == "1" else pytest.approx(200, abs=1))


def test_images_of_different_sizes_need_a_preprocessing(tmp_path):
    folder = make_folder(tmp_path / "d")
    Image.new("RGB", (20, 14)).save(folder / "train" / "cat" / "large.png")
    with pytest.raises(UserError, match="differing sizes"):
        load_folder(folder, tmp_path / "cache")
    assert load_folder(folder, tmp_path / "cache", SMALL).train.images.shape[1:] == (3, 8, 8)


def test_a_class_without_readable_images_is_an_error_and_leaves_no_files(tmp_path):
    folder = make_folder(tmp_path / "d")
    for file in (folder / "train" / "dog").iterdir():
        file.write_bytes(b"no image")
    with pytest.raises(UserError, match="none of dog"):
        load_folder(folder, tmp_path / "cache")
    assert list((tmp_path / "cache" / "data").iterdir()) == []


def test_the_digest_depends_on_pixels_and_not_on_the_location(tmp_path):
    folder = make_folder(tmp_path / "here")
    copied_folder = tmp_path / "far" / "there"
    shutil.copytree(folder, copied_folder)
    (copied_folder / "train" / "cat" / ".DS_Store").write_text("hidden")
    digest = inputs.digest_data(f"folder:{folder}").digest
    assert inputs.digest_data(f"folder:{copied_folder}") == inputs.digest_data(f"folder:{folder}")
    load_folder(folder, tmp_path / "cache")
    assert len(load_folder(copied_folder, tmp_path / "cache").train.labels) == 10
    assert len(list((tmp_path / "cache" / "data").iterdir())) == 1, "and is prepared once"
    Image.new("RGB", (12, 12), (1, 2, 3)).save(copied_folder / "train" / "cat" / "0.png")
    assert inputs.digest_data(f"folder:{copied_folder}").digest != digest
    (folder / "train" / "cat" / "0.png").rename(folder / "train" / "dog" / "0b.png")
    assert inputs.digest_data(f"folder:{folder}").digest != digest


def test_a_smaller_test_set_is_a_prefix_of_a_larger_one(tmp_path):
    pixels, labels = make_pixels(60, seed=1)
    by_class = np.argsort(labels, kind="stable")
    target = make_npz(tmp_path / "d.npz", test_images=pixels[by_class], test_labels=labels[by_class])
    whole = datasets.load_dataset(target, PREPROCESSING, None, tmp_path / "cache").test
    some = datasets.load_dataset(target, PREPROCESSING, 20, tmp_path / "cache").test
    other = datasets.load_dataset(target, SMALL, 20, tmp_path / "cache").test
    assert (some.example == whole.example[:20]).all()
    assert (other.example == some.example).all(), "paired whatever their size"
    assert len(set(whole.labels[:20].tolist())) == 4, "a fair sample, not the first class"
    assert sorted(whole.labels) == sorted(make_pixels(60)[1])
    with pytest.raises(UserError, match="test_size"):
        datasets.load_dataset(target, PREPROCESSING, 61, tmp_path / "cache")


def test_groups_follow_their_images(tmp_path):
    groups = {"train_groups": np.arange(120) // 6, "test_groups": np.array([f"p{i // 3}" for i in range(60)])}
    target = make_npz(tmp_path / "d.npz", **groups)
    dataset = datasets.load_dataset(target, PREPROCESSING, 30, tmp_path / "cache")
    pixels, _ = make_pixels(60, seed=1)
    group_of = {pixels[i].transpose(2, 0, 1).tobytes(): i // 3 for i in range(60)}
    expected = np.array([group_of[image.tobytes()] for image in dataset.test.images])
    same = dataset.test.groups[:, None] == dataset.test.groups
    assert (same == (expected[:, None] == expected)).all()
    assert (dataset.train.groups == np.arange(120) // 6).all()


def test_example_digests_depend_on_pixels_and_label(tmp_path):
    pixels, labels = make_pixels(60, seed=1)
    pixels[1], pixels[4] = pixels[0], pixels[0]  # labels 0, 1, 0
    target = make_npz(tmp_path / "d.npz", test_images=pixels, test_labels=labels)
    test = datasets.load_dataset(target, PREPROCESSING, None, tmp_path / "cache").test
    twins = [
        example
        for image, example in zip(test.images, test.example, strict=True)
        if (image == pixels[0].transpose(2, 0, 1)).all()
    ]
    assert (len(twins), len(set(twins))) == (3, 2)
    assert len(set(test.example.tolist())) == 59


@pytest.mark.parametrize("name", synthetic.NAMES)
def test_synthetic_datasets_are_balanced_and_have_the_requested_size(name, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "SYNTHETIC_SPLIT_SIZES", {"train": 200, "test": 100})
    monkeypatch.setattr(sources, "SOURCE_TRAIN_EXAMPLES", 400)
    target = inputs.digest_data(f"synthetic:{name}")
    dataset = datasets.load_dataset(target, PREPROCESSING, None, tmp_path)
    assert dataset.classes == synthetic.CLASSES[name]
    assert dataset.train.images.shape == (400 if name == "source" else 200, 3, 32, 32)
    assert np.ptp(np.bincount(dataset.train.labels)) == 0
    more = datasets.load_dataset(target, PREPROCESSING, 160, tmp_path).test
    assert (more.example[:100] == dataset.test.example).all()


def test_the_digits_dataset_is_complete(tmp_path):
    dataset = datasets.load_dataset(inputs.digest_data("digits"), PREPROCESSING, None, tmp_path)
    assert (len(dataset.train.labels), len(dataset.test.labels)) == (1000, 797)
    assert dataset.train.images.shape[1:] == (3, 32, 32)


def test_an_interrupted_preparation_leaves_no_dataset(tmp_path, monkeypatch):
    target = make_npz(tmp_path / "d.npz")
    real, written = datasets._write_split, []

    def interrupted(*arguments):
        if written:
            raise KeyboardInterrupt
        written.append(real(*arguments))
        return written[0]

    monkeypatch.setattr(datasets, "_write_split", interrupted)
    with pytest.raises(KeyboardInterrupt):
        datasets.load_dataset(target, PREPROCESSING, None, tmp_path / "cache")
    monkeypatch.undo()
    assert list((tmp_path / "cache" / "data").iterdir()) == []
    assert len(datasets.load_dataset(target, PREPROCESSING, None, tmp_path / "cache").train.labels) == 120


def test_files_of_a_killed_preparation_are_not_read(tmp_path):
    target = make_npz(tmp_path / "d.npz")
    whole = datasets.load_dataset(target, PREPROCESSING, None, tmp_path / "cache")
    (place,) = (tmp_path / "cache" / "data").iterdir()
    torn = place.rename(place.with_name("tmp0"))
    shutil.rmtree(torn / "test")
    (torn / "about.json").unlink()
    again = datasets.load_dataset(target, PREPROCESSING, None, tmp_path / "cache")
    assert (again.test.example == whole.test.example).all()


def test_the_slower_of_two_workers_uses_the_result_of_the_faster(tmp_path, monkeypatch):
    target = make_npz(tmp_path / "d.npz")
    real = datasets._write_split

    def overtaken(*arguments):
        monkeypatch.setattr(datasets, "_write_split", real)
        datasets.load_dataset(target, PREPROCESSING, None, tmp_path / "cache")
        return real(*arguments)

    monkeypatch.setattr(datasets, "_write_split", overtaken)
    assert len(datasets.load_dataset(target, PREPROCESSING, None, tmp_path / "cache").train.labels) == 120
    (place,) = (tmp_path / "cache" / "data").iterdir()
    assert json.loads((place / "about.json").read_text())["classes"] == ["0", "1", "2", "3"]


def test_a_full_disk_is_an_os_error_and_leaves_no_files(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    target = make_npz(tmp_path / "d.npz")
    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match="No space left"):
        datasets.load_dataset(target, PREPROCESSING, None, tmp_path / "cache")
    assert list((tmp_path / "cache" / "data").iterdir()) == []


def test_a_geometry_of_the_test_images_alone_decodes_no_training_image(tmp_path):
    data = inputs.digest_data(f"folder:{make_folder(tmp_path / 'd')}")
    whole = datasets.load_dataset(data, Preprocessing(resize=8), None, tmp_path / "cache")
    alone = datasets.load_dataset(data, Preprocessing(resize=8), None, tmp_path / "other", only_test=True)
    assert np.array_equal(alone.test.images, whole.test.images)
    assert np.array_equal(alone.test.example, whole.test.example)
    assert (len(alone.train.labels), alone.validation, alone.classes) == (0, None, whole.classes)
    later = datasets.load_dataset(data, Preprocessing(resize=8), None, tmp_path / "other")
    assert len(later.train.labels) == 10, "the other splits are decoded when they are needed"
    assert (
        len(datasets.load_dataset(data, Preprocessing(resize=8), None, tmp_path / "other", only_test=True).train.labels) == 10
    )


def test_images_with_an_orientation_or_sixteen_bits_are_counted(tmp_path):
    folder = make_folder(tmp_path / "d")
    exif = Image.Exif()
    exif[0x0112] = 6
    for number, name in enumerate(("cat", "dog")):
        Image.fromarray(np.full((12, 12, 3), 50, np.uint8)).save(folder / "val" / name / "5.jpg", exif=exif)
        Image.fromarray(np.full((12, 12), 700 * number, np.uint16)).save(folder / "train" / name / "6.png")
    Image.fromarray(np.full((12, 12), 700, np.uint16)).save(folder / "val" / "cat" / "7.png")
    dataset = load_folder(folder, tmp_path / "cache")
    assert (dataset.rotated, dataset.sixteen_bit, dataset.highest) == (2, 3, 700)
    deep = make_npz(tmp_path / "d.npz", test_images=np.zeros((60, 16, 16), np.uint16))
    assert datasets.load_dataset(deep, PREPROCESSING, None, tmp_path / "cache").sixteen_bit == 60
