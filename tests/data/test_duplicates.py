"""Copies: every kind that was planted is found, and what is only alike is not."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from xferbench.data import duplicates, fingerprints, synthetic

COUNT = 60


def of(images):
    return fingerprints.fingerprint_stream(iter(images))


@pytest.fixture(scope="module")
def glyphs():
    """Different drawn images: 600 of training, 200 of test."""
    return synthetic.generate("near", "train", 600)[0], synthetic.generate("near", "test", 200)[0]


def jpeg(image, quality):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "jpeg", quality=quality)
    return np.asarray(Image.open(file))


def resized(image, factor):
    side = round(len(image) * factor)
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR))


def jittered(image):
    picture = Image.fromarray(image)
    for enhancer, factor in ((ImageEnhance.Brightness, 1.2), (ImageEnhance.Contrast, 0.8), (ImageEnhance.Color, 1.2)):
        picture = enhancer(picture).enhance(factor)
    return np.asarray(picture)


KINDS = {
    "as it is": (lambda image: image, "exact"),
    "jpeg 75": (lambda image: jpeg(image, 75), "near"),
    "jpeg 50": (lambda image: jpeg(image, 50), "near"),
    "flipped": (lambda image: image[:, ::-1], "flipped"),
    "flipped, jpeg 75": (lambda image: jpeg(np.ascontiguousarray(image[:, ::-1]), 75), "flipped"),
    "half": (lambda image: resized(image, 0.5), "near"),
    "half and back": (lambda image: resized(resized(image, 0.5), 2), "near"),
    "one and a half": (lambda image: resized(image, 1.5), "near"),
    "other colours": (jittered, "near"),
}


@pytest.mark.parametrize("name", KINDS)
def test_planted_copies_are_found_and_named(glyphs, name):
    change, kind = KINDS[name]
    train, test = glyphs
    found = duplicates.find_duplicates(of([*map(change, train[:COUNT]), *test]), of(train))
    right = (found.kind[:COUNT] == kind) & (found.index[:COUNT] == np.arange(COUNT))
    assert right.mean() >= (1 if kind == "exact" else 0.95)
    assert not found.found[COUNT:].any()
    assert (found.chance[:COUNT][right] < duplicates.EXPECTED_FALSE_MATCHES / len(test)).all()


@pytest.mark.parametrize("size", [70, 200, 1000])
@pytest.mark.parametrize("world", ["source", "near", "tinted", "sketch"])
def test_different_images_are_not_copies(world, size):
    train, test = (of(synthetic.generate(world, split, count)[0]) for split, count in (("train", size), ("test", 500)))
    assert not duplicates.find_duplicates(test, train).found.any()


@pytest.mark.parametrize("dimension", [5, 20])
def test_chances_are_those_of_the_law_they_rest_on(dimension):
    rng = np.random.default_rng(0)

    def drawn(count):
        return rng.exponential(size=(count, duplicates.PARTS)) ** (1 / dimension) * rng.uniform(0.5, 2, (count, 1))

    distance, null = drawn(9000), drawn(2000)
    chance = duplicates.match_probabilities(distance, null)
    for level in (0.5, 0.1, 0.01):
        assert level / 4 < (chance < level).mean() < 1.2 * level


def test_too_few_images_to_calibrate_on_make_everything_possible():
    assert (duplicates.match_probabilities(np.full((3, 32), 0.1), np.ones((15, 32))) == 1).all()
    assert (duplicates.match_probabilities(np.full((3, 15), 0.1), np.ones((99, 15))) == 1).all()


def test_an_image_with_many_copies_is_found_too(glyphs):
    train, test = glyphs
    many = [jpeg(image, quality) for image in train[:10] for quality in range(75, 87)]
    found = duplicates.find_duplicates(of([*train[:10], *test]), of([*train[100:], *many]))
    assert found.found[:10].sum() >= 9
    assert not found.found[10:].any()


@pytest.mark.parametrize("times", [2, 8])
def test_a_set_that_was_augmented_before_it_was_split_is_seen_through(glyphs, times):
    augmented = [jpeg(image, 80 + number) for image in glyphs[0] for number in range(times)]
    order = np.random.default_rng(0).permutation(len(augmented))
    train, test = of([augmented[at] for at in order[300:]]), of([*(augmented[at] for at in order[:300]), *glyphs[1]])
    found = duplicates.find_duplicates(test, train)
    has = np.isin(order[:300] // times, order[300:] // times)
    assert found.found[:300][has].mean() > 0.9
    assert (order[300:][found.index[:300][has]] // times == order[:300][has] // times).mean() > 0.98
    assert not found.found[300:].any()
    assert not found.found[:300][~has].any()


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_the_threshold_does_not_move_with_the_share_of_copies(glyphs, share):
    train, test = glyphs
    planted = round(share * len(test))
    found = duplicates.find_duplicates(of([*(jpeg(image, 75) for image in train[:planted]), *test[planted:]]), of(train))
    assert found.found[:planted].mean() > 0.97
    assert not found.found[planted:].any()


def test_blank_images_are_no_copies_of_one_another(glyphs):
    blank = np.zeros((40, 32, 32, 3), np.uint8)
    found = duplicates.find_duplicates(of([*blank, *glyphs[0][:1]]), of([*blank, *blank + 255, *glyphs[0]]))
    assert not found.found[:40].any()
    assert found.plain[:40].all()
    assert (found.kind[40], found.index[40]) == ("exact", 80)


def test_a_simple_image_is_told_by_its_pixels_alone(glyphs):
    ramp = np.tile(np.linspace(0, 255, 32).astype(np.uint8)[:, None, None], (1, 32, 3))
    found = duplicates.find_duplicates(of([ramp, ramp // 2 + 60, *glyphs[1]]), of([*glyphs[0], ramp]))
    assert found.plain[:2].all()
    assert found.kind[:2].tolist() == ["exact", ""]


def test_a_few_images_are_matched_exactly_or_not_at_all(glyphs):
    train, _ = glyphs
    asked = of([train[3], train[4][:, ::-1], jpeg(train[5], 75), train[100]])
    found = duplicates.find_duplicates(asked, of(train[:60]))
    assert found.kind.tolist() == ["exact", "flipped", "", ""]
    assert found.index[:3].tolist() == [3, 4, 5]
    assert found.distance[:2].tolist() == [0, 0]


def test_of_nothing_nothing_is_a_copy(glyphs):
    some, none = of(glyphs[0][:5]), of([])
    assert duplicates.find_duplicates(some, none).index.tolist() == [-1] * 5
    assert not duplicates.find_duplicates(some, none).found.any()
    assert len(duplicates.find_duplicates(none, some).kind) == len(duplicates.find_duplicates(none, none).kind) == 0


def test_within_one_set_an_image_is_no_copy_of_itself(glyphs):
    train = glyphs[0][:400]
    both = of([*train, *train[:3], *(jpeg(image, 75) for image in train[3:6]), train[6][:, ::-1]])
    found = duplicates.find_duplicates(both, both, same=True)
    assert np.flatnonzero(found.found).tolist() == [*range(7), *range(400, 407)]
    assert found.index[:7].tolist() == list(range(400, 407))
    assert found.index[400:].tolist() == list(range(7))
    assert found.kind[:7].tolist() == ["exact"] * 3 + ["near"] * 3 + ["flipped"]


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 300), st.integers(1, 300), st.integers(0, 99), st.booleans())
def test_tiles_give_what_one_product_gives(rows, columns, seed, same):
    rng = np.random.default_rng(seed)
    train = rng.normal(size=(columns, fingerprints.EMBEDDING_SIZE)).astype(np.float16)
    test = train if same else rng.normal(size=(rows, fingerprints.EMBEDDING_SIZE)).astype(np.float16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "BLOCK_ROWS", 16)
        patch.setattr(duplicates, "BLOCK_COLUMNS", 3)
        distance, index = duplicates.nearest_distances(test, train, np.arange(columns) if same else None)
    unit = [one / np.linalg.norm(one.astype(float), axis=1, keepdims=True) for one in (test, train)]
    signs = np.where(np.arange(fingerprints.EMBEDDING_SIZE) >= fingerprints.EVEN_COLUMNS, -1, 1)
    cosine = np.maximum(unit[0] @ unit[1].T, (unit[0] * signs) @ unit[1].T)
    if same:
        np.fill_diagonal(cosine, -1)
    if len(test) and columns > same:
        assert distance.min(1) == pytest.approx(np.sqrt(np.clip(2 - 2 * cosine.max(1), 0, None)), abs=2e-3)
        best = index[np.arange(len(test)), distance.argmin(1)]
        assert cosine[np.arange(len(test)), best] == pytest.approx(cosine.max(1), abs=1e-5)


def test_the_search_is_the_same_every_time(glyphs):
    train, test = map(of, glyphs)
    first, second = (duplicates.find_duplicates(test, train) for _ in range(2))
    assert np.array_equal(first.index, second.index)
    assert np.array_equal(first.chance, second.chance)


def test_groups_in_both_splits():
    assert duplicates.shared_groups(np.array([3, 3, 1, 7]), np.array([7, 2, 3])).tolist() == [3, 7]
    assert duplicates.shared_groups(np.array([1, 2]), np.array([], np.int64)).tolist() == []


def test_photographs(shared):
    held = np.load(shared / "data" / "cifar10.npz")
    train, test = held["train_images"][:2000], held["test_images"][:500]
    planted = [jpeg(np.ascontiguousarray(image[:, ::-1]), 50) for image in train[:200]]
    found = duplicates.find_duplicates(of([*planted, *test]), of(train))
    assert (found.kind[:200] == "flipped").all()
    assert found.index[:200].tolist() == list(range(200))
    assert found.found[200:].sum() <= 2, "CIFAR-10 has a few of its own"
