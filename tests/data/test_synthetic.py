"""Synthetic datasets: determinism, balance, and the forms of their classes."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from xferbench.core.errors import UserError
from xferbench.data import synthetic
from xferbench.data.generated import SPLITS
from xferbench.data.synthetic import BLOCK, CLASSES, DATASETS, NAMES, generate

GOLDEN = {  # of the first two blocks of `test`, at VERSION 1
    "source": "74fb1fbd6a38d1c6c574501f86fe7ebf7b1bc6dc82ca0e2d69a80888c4a50e59",
    "near": "927d80ca7c91399878838fdc00dc58d02e62301e4a6900ffdaec257657955dc5",
    "tinted": "5b7b56645484b3145a2223e3268132181216ee9b0cb1d7956e2e11b2a4d7989e",
    "sketch": "07bf7e315307e13d729734b465d6748029a07d8109224f18f72da68e20733831",
    "spectra": "d14c4035970f5501c1b7744e53b7cad50073d223577577040246be6999bab1af",
}
every_dataset = pytest.mark.parametrize("name", NAMES)
every_split = pytest.mark.parametrize("split", SPLITS)


def distinct(images):
    return {image.tobytes() for image in images}


def test_the_source_has_20_classes_and_each_target_10():
    assert {name: len(classes) for name, classes in CLASSES.items()} == dict.fromkeys(NAMES, 10) | {"source": 20}
    assert all(len(set(classes)) == len(classes) for classes in CLASSES.values())


@every_dataset
@every_split
def test_pictures_are_small_color_bytes_with_integer_labels(name, split):
    images, labels = generate(name, split, 30)
    assert (images.shape, images.dtype) == ((30, 32, 32, 3), np.uint8)
    assert (labels.shape, labels.dtype) == ((30,), np.int64)
    assert set(labels) == set(range(len(CLASSES[name])))


def test_a_count_of_0_is_valid():
    images, labels = generate("near", "test", 0)
    assert (images.shape, labels.shape) == ((0, 32, 32, 3), (0,))


@every_dataset
def test_generation_is_deterministic(name):
    first, second = generate(name, "train", 50), generate(name, "train", 50)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@every_dataset
@pytest.mark.parametrize("count", [1, 37, BLOCK - 1, BLOCK, BLOCK + 1])
def test_fewer_pictures_are_a_prefix_of_more(name, count):
    longer, shorter = generate(name, "train", 2 * BLOCK), generate(name, "train", count)
    assert all(np.array_equal(a[:count], b) for a, b in zip(longer, shorter, strict=True))


@every_dataset
def test_no_picture_occurs_twice_within_or_between_the_splits(name):
    train, test = (generate(name, split, 3 * BLOCK)[0] for split in SPLITS)
    assert len(distinct(train) | distinct(test)) == 6 * BLOCK


@every_dataset
def test_the_splits_differ_in_labels_too(name):
    assert not np.array_equal(*(generate(name, split, BLOCK)[1] for split in SPLITS))


@every_dataset
@every_split
def test_every_prefix_is_balanced(name, split):
    labels = generate(name, split, 2 * BLOCK)[1]
    counts = np.cumsum(labels[:, None] == np.arange(len(CLASSES[name])), axis=0)
    assert np.ptp(counts, axis=1).max() == 1
    assert np.ptp(counts[-1]) == 0


@every_dataset
def test_a_block_is_a_multiple_of_the_number_of_classes(name):
    assert BLOCK % len(CLASSES[name]) == 0


@every_dataset
def test_classes_have_distinct_forms(name):
    forms = DATASETS[name].forms
    assert len(np.unique(forms, axis=0)) == len(forms) == len(CLASSES[name])


def test_contours_of_source_and_target_differ():
    harmonics = 2 * len(synthetic.ORDERS)
    source, near = (DATASETS[name].forms[:, None, :harmonics] for name in ("source", "near"))
    assert np.abs(source - near.swapaxes(0, 1)).max(axis=2).min() > 0.05


@pytest.mark.parametrize("name", ["sketch", "spectra"])
def test_outlines_and_chirps_are_gray(name):
    images = generate(name, "train", 100)[0]
    assert np.array_equal(images[..., 0], images[..., 1])
    assert np.array_equal(images[..., 0], images[..., 2])


@pytest.mark.parametrize("name", ["source", "near"])
def test_color_does_not_depend_on_the_class(name):
    images, labels = generate(name, "train", 2000)
    mean = np.stack([images[labels == k].mean((0, 1, 2)) for k in range(len(CLASSES[name]))])
    spread = images.mean((1, 2)).std(axis=0) / np.sqrt(np.bincount(labels)[:, None])
    assert np.abs((mean - mean.mean(axis=0)) / spread).max() < 4


def test_a_tilted_contour_is_the_upright_one_rotated_by_an_eighth_of_a_turn():
    forms = DATASETS["sketch"].forms
    angle = np.tile(np.linspace(0, 2 * np.pi, 80, endpoint=False, dtype=np.float32), (len(forms), 1))
    beyond = synthetic._depth(np.cos(angle), np.sin(angle), forms)
    upright, tilted = beyond[:5], beyond[5:]
    assert np.allclose(np.roll(upright, 10, axis=1), tilted, atol=1e-4)
    assert np.abs(upright - tilted).max(axis=1).min() > 0.2


def test_directions_are_nearly_uniform():
    c, s = synthetic._directions(np.random.default_rng(0), 160_000)
    assert np.allclose(c * c + s * s, 1, atol=1e-5)
    assert np.histogram(np.arctan2(s, c), bins=16, range=(-np.pi, np.pi))[0] == pytest.approx(10_000, rel=0.08)


@every_dataset
def test_pictures_are_drawn_in_float32(name):
    forms = np.repeat(DATASETS[name].forms, BLOCK // len(CLASSES[name]), axis=0)
    pictures = DATASETS[name].draw(np.random.default_rng(0), forms)
    assert pictures.dtype == np.float32
    assert -1e-5 <= pictures.min() < pictures.max() <= 1 + 1e-5


@every_dataset
def test_pictures_equal_those_of_the_version(name):
    images, labels = generate(name, "test", 2 * BLOCK)
    digest = hashlib.sha256(images.tobytes() + labels.astype("<i8").tobytes()).hexdigest()
    assert (synthetic.VERSION, digest) == (1, GOLDEN[name]), (
        "pictures changed: raise VERSION, train the shipped weights again, and update GOLDEN"
    )


def test_another_version_gives_other_pictures(monkeypatch):
    before = generate("near", "train", 10)[0]
    monkeypatch.setattr(synthetic, "VERSION", synthetic.VERSION + 1)
    assert not distinct(before) & distinct(generate("near", "train", 10)[0])


@pytest.mark.parametrize(("name", "split", "suggestion"), [("skech", "train", "sketch"), ("near", "tset", "test")])
def test_an_unknown_name_raises_with_a_suggestion(name, split, suggestion):
    with pytest.raises(UserError, match=f"did you mean '{suggestion}'"):
        generate(name, split, 1)


def test_a_negative_count_raises():
    with pytest.raises(UserError, match="-1"):
        generate("near", "train", -1)
