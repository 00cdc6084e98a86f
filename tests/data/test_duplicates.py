"""Duplicates: every kind of injected duplicate is found, and similar images are not."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from xferbench.data import crops, duplicates, fingerprints, nearest, synthetic

COUNT = 60


def fingerprint(images):
    return fingerprints.fingerprint_stream(iter(images))


@pytest.fixture(scope="module")
def glyphs():
    """Return different generated images: 600 for training and 200 for testing."""
    return synthetic.generate("near", "train", 600)[0], synthetic.generate("near", "test", 200)[0]


def compress(image, quality):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "jpeg", quality=quality)
    return np.asarray(Image.open(file))


def resize(image, factor):
    side = round(len(image) * factor)
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR))


def crop(image, share, rng):
    side = round(len(image) * share)
    top, left = rng.integers(len(image) - side + 1, size=2)
    part = Image.fromarray(image[top : top + side, left : left + side])
    return np.asarray(part.resize((len(image), len(image)), Image.Resampling.BILINEAR))


def jitter(image):
    picture = Image.fromarray(image)
    for enhancer, factor in ((ImageEnhance.Brightness, 1.2), (ImageEnhance.Contrast, 0.8), (ImageEnhance.Color, 1.2)):
        picture = enhancer(picture).enhance(factor)
    return np.asarray(picture)


KINDS = {
    "unchanged": (lambda image: image, "exact"),
    "jpeg 75": (lambda image: compress(image, 75), "near"),
    "jpeg 50": (lambda image: compress(image, 50), "near"),
    "flipped": (lambda image: image[:, ::-1], "flipped"),
    "flipped, jpeg 75": (lambda image: compress(np.ascontiguousarray(image[:, ::-1]), 75), "flipped"),
    "half": (lambda image: resize(image, 0.5), "near"),
    "half and back": (lambda image: resize(resize(image, 0.5), 2), "near"),
    "one and a half": (lambda image: resize(image, 1.5), "near"),
    "other colors": (jitter, "near"),
}


@pytest.mark.parametrize("name", KINDS)
def test_injected_duplicates_are_found_with_their_kind(glyphs, name):
    change, kind = KINDS[name]
    train, test = glyphs
    matches = duplicates.find_duplicates(fingerprint([*map(change, train[:COUNT]), *test]), fingerprint(train))
    is_correct = (matches.kind[:COUNT] == kind) & (matches.index[:COUNT] == np.arange(COUNT))
    assert is_correct.mean() >= (1 if kind == "exact" else 0.95)
    assert not matches.found[COUNT:].any()
    assert (matches.chance[:COUNT][is_correct] < duplicates.EXPECTED_FALSE_MATCHES / len(test)).all()


@pytest.mark.parametrize("cropped_side", ["test", "train"])
def test_crops_of_photographs_are_found_in_either_direction(shared, cropped_side):
    arrays = np.load(shared / "data" / "cifar10.npz")
    originals, others = arrays["train_images"][:1000], arrays["test_images"][50:200]
    rng = np.random.default_rng(0)
    copies = [crop(image, 26 / 32, rng) for image in originals[:50]]
    is_test = cropped_side == "test"
    test = fingerprint([*(copies if is_test else originals[:50]), *others])
    train = fingerprint([*(originals[:50] if is_test else copies), *originals[50:]])
    matches = duplicates.find_duplicates(test, train)
    is_correct = (matches.kind[:50] == "cropped") & (matches.index[:50] == np.arange(50))
    assert is_correct.mean() > 0.8
    assert matches.found[50:].sum() <= 2, "CIFAR-10 itself has a few duplicates"


def test_the_map_of_a_crop_gives_the_embedding_of_the_cropped_image(glyphs):
    window = crops.Window(0.55, 0.45, 0.8)
    images = [np.asarray(Image.fromarray(image).resize((160, 160), Image.Resampling.BICUBIC)) for image in glyphs[0][:40]]
    top, left = (round(160 * (center - window.share / 2)) for center in (window.down, window.across))
    direct = fingerprint([image[top : top + 128, left : left + 128] for image in images])
    mapped = crops.crop_embedding(fingerprint(images).embedding, window)
    expected = crops.crop_embedding(direct.embedding, crops.Window(0.5, 0.5, 1.0))
    agreement = (mapped * expected).sum(1)
    shuffled = (mapped * np.roll(expected, 1, 0)).sum(1)
    assert np.median(agreement) > 0.97
    assert np.median(shuffled) < 0.5


@pytest.mark.parametrize("size", [70, 200, 1000])
@pytest.mark.parametrize("dataset", ["source", "near", "tinted", "sketch"])
def test_different_images_are_not_duplicates(dataset, size):
    train, test = (
        fingerprint(synthetic.generate(dataset, split, count)[0]) for split, count in (("train", size), ("test", 500))
    )
    assert not duplicates.find_duplicates(test, train).found.any()


@pytest.mark.parametrize("dimension", [5, 20])
def test_probabilities_are_calibrated(dimension):
    rng = np.random.default_rng(0)

    def draw_distances(count):
        return rng.exponential(size=(count, nearest.PARTS)) ** (1 / dimension) * rng.uniform(0.5, 2, (count, 1))

    distance, null = draw_distances(9000), draw_distances(2000)
    chance = duplicates.match_probabilities(distance, null)
    for level in (0.5, 0.1, 0.01):
        assert level / 4 < (chance < level).mean() < 1.2 * level


def test_with_too_few_images_the_probability_is_1():
    assert (duplicates.match_probabilities(np.full((3, 32), 0.1), np.ones((15, 32))) == 1).all()
    assert (duplicates.match_probabilities(np.full((3, 15), 0.1), np.ones((99, 15))) == 1).all()


def test_an_image_with_many_duplicates_is_found(glyphs):
    train, test = glyphs
    compressed_images = [compress(image, quality) for image in train[:10] for quality in range(75, 87)]
    matches = duplicates.find_duplicates(fingerprint([*train[:10], *test]), fingerprint([*train[100:], *compressed_images]))
    assert matches.found[:10].sum() >= 9
    assert not matches.found[10:].any()


@pytest.mark.parametrize("times", [2, 8])
def test_duplicates_are_found_in_a_set_that_was_augmented_before_it_was_split(glyphs, times):
    augmented = [compress(image, 80 + number) for image in glyphs[0] for number in range(times)]
    order = np.random.default_rng(0).permutation(len(augmented))
    train, test = (
        fingerprint([augmented[index] for index in order[300:]]),
        fingerprint([*(augmented[index] for index in order[:300]), *glyphs[1]]),
    )
    matches = duplicates.find_duplicates(test, train)
    has_duplicate = np.isin(order[:300] // times, order[300:] // times)
    assert matches.found[:300][has_duplicate].mean() > 0.9
    assert (order[300:][matches.index[:300][has_duplicate]] // times == order[:300][has_duplicate] // times).mean() > 0.98
    assert not matches.found[300:].any()
    assert not matches.found[:300][~has_duplicate].any()


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_the_threshold_does_not_depend_on_the_share_of_duplicates(glyphs, share):
    train, test = glyphs
    count = round(share * len(test))
    matches = duplicates.find_duplicates(
        fingerprint([*(compress(image, 75) for image in train[:count]), *test[count:]]), fingerprint(train)
    )
    assert matches.found[:count].mean() > 0.97
    assert not matches.found[count:].any()


def test_blank_images_are_not_duplicates_of_each_other(glyphs):
    blank = np.zeros((40, 32, 32, 3), np.uint8)
    matches = duplicates.find_duplicates(fingerprint([*blank, *glyphs[0][:1]]), fingerprint([*blank, *blank + 255, *glyphs[0]]))
    assert not matches.found[:40].any()
    assert matches.plain[:40].all()
    assert (matches.kind[40], matches.index[40]) == ("exact", 80)


def test_a_plain_image_has_only_exact_duplicates(glyphs):
    ramp = np.tile(np.linspace(0, 255, 32).astype(np.uint8)[:, None, None], (1, 32, 3))
    matches = duplicates.find_duplicates(fingerprint([ramp, ramp // 2 + 60, *glyphs[1]]), fingerprint([*glyphs[0], ramp]))
    assert matches.plain[:2].all()
    assert matches.kind[:2].tolist() == ["exact", ""]


def test_in_a_small_set_only_exact_duplicates_are_found(glyphs):
    train, _ = glyphs
    queries = fingerprint([train[3], train[4][:, ::-1], compress(train[5], 75), train[100]])
    matches = duplicates.find_duplicates(queries, fingerprint(train[:60]))
    assert matches.kind.tolist() == ["exact", "flipped", "", ""]
    assert matches.index[:3].tolist() == [3, 4, 5]
    assert matches.distance[:2].tolist() == [0, 0]


def test_empty_sets_have_no_duplicates(glyphs):
    few, empty = fingerprint(glyphs[0][:5]), fingerprint([])
    assert duplicates.find_duplicates(few, empty).index.tolist() == [-1] * 5
    assert not duplicates.find_duplicates(few, empty).found.any()
    assert len(duplicates.find_duplicates(empty, few).kind) == len(duplicates.find_duplicates(empty, empty).kind) == 0


def test_an_image_is_not_a_duplicate_of_itself(glyphs):
    train = glyphs[0][:400]
    prints = fingerprint([*train, *train[:3], *(compress(image, 75) for image in train[3:6]), train[6][:, ::-1]])
    matches = duplicates.find_duplicates(prints, prints, same=True)
    assert np.flatnonzero(matches.found).tolist() == [*range(7), *range(400, 407)]
    assert matches.index[:7].tolist() == list(range(400, 407))
    assert matches.index[400:].tolist() == list(range(7))
    assert matches.kind[:7].tolist() == ["exact"] * 3 + ["near"] * 3 + ["flipped"]


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 300), st.integers(1, 300), st.integers(0, 99), st.booleans())
def test_tiles_give_the_same_distances_as_one_product(rows, columns, seed, same):
    rng = np.random.default_rng(seed)
    train = rng.normal(size=(columns, fingerprints.EMBEDDING_SIZE)).astype(np.float16)
    test = train if same else rng.normal(size=(rows, fingerprints.EMBEDDING_SIZE)).astype(np.float16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nearest, "BLOCK_ROWS", 16)
        patch.setattr(nearest, "BLOCK_COLUMNS", 3)
        distance, index = nearest.nearest_distances(test, train, np.arange(columns) if same else None)
    unit = [embedding / np.linalg.norm(embedding.astype(float), axis=1, keepdims=True) for embedding in (test, train)]
    signs = np.where(np.arange(fingerprints.EMBEDDING_SIZE) >= fingerprints.EVEN_COLUMNS, -1, 1)
    cosine = np.maximum(unit[0] @ unit[1].T, (unit[0] * signs) @ unit[1].T)
    if same:
        np.fill_diagonal(cosine, -1)
    if len(test) and columns > same:
        assert distance.min(1) == pytest.approx(np.sqrt(np.clip(2 - 2 * cosine.max(1), 0, None)), abs=2e-3)
        closest = index[np.arange(len(test)), distance.argmin(1)]
        assert cosine[np.arange(len(test)), closest] == pytest.approx(cosine.max(1), abs=1e-5)


def test_the_search_is_deterministic(glyphs):
    train, test = map(fingerprint, glyphs)
    first, second = (duplicates.find_duplicates(test, train) for _ in range(2))
    assert np.array_equal(first.index, second.index)
    assert np.array_equal(first.chance, second.chance)


def test_shared_groups_are_those_in_both_splits():
    assert duplicates.shared_groups(np.array([3, 3, 1, 7]), np.array([7, 2, 3])).tolist() == [3, 7]
    assert duplicates.shared_groups(np.array([1, 2]), np.array([], np.int64)).tolist() == []


def test_photographs(shared):
    arrays = np.load(shared / "data" / "cifar10.npz")
    train, test = arrays["train_images"][:2000], arrays["test_images"][:500]
    injected = [compress(np.ascontiguousarray(image[:, ::-1]), 50) for image in train[:200]]
    matches = duplicates.find_duplicates(fingerprint([*injected, *test]), fingerprint(train))
    assert (matches.kind[:200] == "flipped").all()
    assert matches.index[:200].tolist() == list(range(200))
    assert matches.found[200:].sum() <= 2, "CIFAR-10 itself has a few duplicates"
