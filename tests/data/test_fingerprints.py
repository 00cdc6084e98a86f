"""Fingerprints: equal for equal pixels, similar for similar images, and computed in a stream."""

from __future__ import annotations

import io
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from xferbench.core.errors import UserError
from xferbench.data import duplicates, fingerprints, inputs, sources
from xferbench.data.images import to_rgb
from xferbench.data.raw import RawSplit

NONE = np.empty(0, np.int64)
FIELDS = ("exact", "mirrored", "bits", "embedding")


def make_pictures(count, height=32, width=32, seed=0):
    """Return smooth images: a few coarse color pixels, enlarged."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(256, size=(count, 6, 6, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)) for image in coarse])


def fingerprint(images):
    return fingerprints.fingerprint(np.asarray(images).transpose(0, 3, 1, 2))


def cosine(first, second, *, flipped=False):
    signs = np.where(np.arange(fingerprints.EMBEDDING_SIZE) >= fingerprints.EVEN_COLUMNS, -1.0, 1.0) if flipped else 1.0
    return (first.embedding.astype(float) * second.embedding * signs).sum(1)


def share_of_different_bits(first, second, *, flipped=False):
    """Return the share of different bits."""
    return np.unpackbits(first.bits ^ second.bits ^ (fingerprints.FLIP if flipped else np.uint8(0)), axis=1).mean(1)


def are_equal(first, second):
    return all(np.array_equal(getattr(first, name), getattr(second, name)) for name in FIELDS)


@pytest.mark.parametrize("size", [(8, 8), (16, 9), (31, 33), (32, 32), (47, 32), (300, 500)])
def test_images_of_any_size_have_fingerprints_of_one_shape(size):
    prints = fingerprint(make_pictures(3, *size))
    assert (prints.exact.dtype, prints.bits.shape, prints.embedding.shape) == (
        np.uint64,
        (3, 32),
        (3, fingerprints.EMBEDDING_SIZE),
    )
    assert np.linalg.norm(prints.embedding.astype(float), axis=1) == pytest.approx(1, abs=1e-3)
    assert not prints.plain.any()


def test_one_pixel_changes_the_exact_digest_but_hardly_the_embedding():
    images = make_pictures(1)
    changed = images.copy()
    changed[0, 3, 5, 1] ^= 1
    assert fingerprint(images).exact != fingerprint(changed).exact
    assert cosine(fingerprint(images), fingerprint(changed))[0] > 0.999


def test_the_exact_digest_depends_on_the_shape():
    assert (
        fingerprint(np.full((1, 4, 6, 3), 7)[..., :].astype(np.uint8)).exact
        != fingerprint(np.full((1, 6, 4, 3), 7, np.uint8)).exact
    )


def test_a_flip_changes_only_the_odd_frequencies():
    images = make_pictures(20, 24, 36)
    upright, mirrored = fingerprint(images), fingerprint(images[:, :, ::-1])
    assert np.array_equal(upright.exact, mirrored.mirrored)
    assert np.array_equal(upright.mirrored, mirrored.exact)
    assert cosine(upright, mirrored, flipped=True) == pytest.approx(1, abs=1e-3)
    assert share_of_different_bits(upright, mirrored, flipped=True).max() < 0.02
    assert cosine(upright, mirrored).max() < 0.9


def compress(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "jpeg", quality=50)
    return np.asarray(Image.open(file))


@pytest.mark.parametrize(
    "change",
    [
        compress,
        lambda image: np.asarray(Image.fromarray(image).resize((40, 24), Image.Resampling.BILINEAR)),
        lambda image: np.asarray(Image.fromarray(image).resize((96, 96), Image.Resampling.BICUBIC)),
        lambda image: (0.8 * image + 20).astype(np.uint8),
    ],
    ids=["jpeg", "smaller", "larger", "paler"],
)
def test_altered_images_have_similar_fingerprints(change):
    images = make_pictures(20, 48, 48)
    prints = fingerprint([change(image) for image in images])
    assert cosine(fingerprint(images), prints).min() > 0.98
    assert cosine(fingerprint(images), fingerprint(images[::-1])).mean() < 0.5
    assert (
        np.median(share_of_different_bits(fingerprint(images), prints))
        < 1 - duplicates.MIN_AGREEING_BITS
        < share_of_different_bits(fingerprint(images), fingerprint(images[::-1])).mean()
    )


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((16, 16, 3), np.uint8),
        np.full((40, 30, 3), (12, 200, 90), np.uint8),
        np.full((20, 20, 3), 128, np.uint8) + np.random.default_rng(0).integers(2, size=(20, 20, 3), dtype=np.uint8),
        np.tile(np.linspace(0, 255, 64).astype(np.uint8)[:, None, None], (1, 64, 3)),
    ],
    ids=["black", "one color", "a little noise", "a ramp"],
)
def test_an_image_without_structure_is_plain(image):
    assert fingerprint(image[None]).plain.all()
    assert not fingerprint(image[None]).embedding.any()
    assert fingerprint(image[None]).blank == (image.std((0, 1)).max() < 1)


def test_gray_16_bit_and_rgb_images_of_equal_values_have_equal_fingerprints():
    gray = make_pictures(1)[0, :, :, 0]
    variants = [gray, gray[:, :, None], np.repeat(gray[:, :, None], 3, 2), gray.astype(np.uint16) * 256 + 7]
    prints = [fingerprints.fingerprint_split(RawSplit([image], np.zeros(1, int), NONE))[0] for image in variants]
    assert all(are_equal(prints[0], other_prints) for other_prints in prints[1:])


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), max_size=8), st.integers(1, 4000))
def test_fingerprints_do_not_depend_on_the_batch(sizes, batch):
    rng = np.random.default_rng(0)
    images = [rng.integers(256, size=(*size, 3), dtype=np.uint8) for size in sizes]
    separate = fingerprints.concatenate(fingerprint(image[None]) for image in images)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fingerprints, "BATCH_VALUES", batch)
        prints = fingerprints.fingerprint_stream(iter(images))
    assert len(prints) == len(images)
    assert np.array_equal(prints.exact, separate.exact)
    assert np.array_equal(prints.mirrored, separate.mirrored)
    assert np.allclose(prints.embedding, separate.embedding, atol=2e-3)


def test_fingerprints_are_deterministic():
    images = make_pictures(50)
    assert are_equal(fingerprint(images), fingerprint(images.copy()))


def test_a_tensor_is_accepted():
    torch = pytest.importorskip("torch")
    images = make_pictures(3)
    assert are_equal(fingerprints.fingerprint(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())), fingerprint(images))


def test_an_empty_batch_has_no_fingerprints():
    prints = fingerprints.fingerprint(np.empty((0, 3, 8, 8), np.uint8))
    assert len(prints) == len(fingerprints.fingerprint_stream([])) == 0
    assert prints.embedding.shape == (0, fingerprints.EMBEDDING_SIZE)


@pytest.mark.parametrize("images", [np.zeros((2, 3, 8, 8)), np.zeros((2, 8, 8, 3), np.uint8), np.zeros((1, 3, 0, 8), np.uint8)])
def test_other_arrays_raise(images):
    with pytest.raises(UserError, match=r"expected: uint8 \[n, 3, H, W\]"):
        fingerprints.fingerprint(images)


def test_a_stream_keeps_few_images_in_memory(monkeypatch):
    monkeypatch.setattr(fingerprints, "BATCH_VALUES", 4 * 32 * 32 * 3)
    alive, maximum = weakref.WeakSet(), 0

    def stream():
        nonlocal maximum
        for seed in range(60):
            image = make_pictures(1, seed=seed)[0].view(CountedArray)
            alive.add(image)
            maximum = max(maximum, len(alive))
            yield image
            del image

    assert len(fingerprints.fingerprint_stream(stream())) == 60
    assert maximum <= 8


class CountedArray(np.ndarray):
    """An array in a WeakSet."""

    __hash__ = object.__hash__


def test_unreadable_files_are_left_out_and_named(tmp_path):
    Image.fromarray(make_pictures(1)[0]).save(tmp_path / "whole.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "whole.png").read_bytes()[:200])
    (tmp_path / "text.jpg").write_text("no image")
    names = ["broken.png", "whole.png", "text.jpg"]
    prints, index, left_out = fingerprints.fingerprint_split(
        RawSplit([tmp_path / name for name in names], np.zeros(3, int), NONE, names)
    )
    assert (len(prints), index.tolist()) == (1, [1])
    assert [note.partition(":")[0] for note in left_out] == ["broken.png", "text.jpg"]
    assert are_equal(prints, fingerprint(make_pictures(1)))


def make_npz(path):
    rng = np.random.default_rng(0)
    arrays = {f"{split}_images": rng.integers(256, size=(12, 16, 16, 3), dtype=np.uint8) for split in ("train", "test")}
    np.savez(path, **arrays, train_labels=np.arange(12) % 2, test_labels=np.arange(12) % 2)
    return inputs.digest_data(f"npz:{path}")


def test_fingerprints_of_a_dataset_are_cached(tmp_path, monkeypatch):
    data = make_npz(tmp_path / "a.npz")
    first = fingerprints.dataset_fingerprints(data, "train", tmp_path / "cache")
    assert are_equal(first, fingerprint(np.load(tmp_path / "a.npz")["train_images"]))
    monkeypatch.setattr(sources, "read_dataset", None)
    assert are_equal(fingerprints.dataset_fingerprints(data, "train", tmp_path / "cache"), first)
    assert [path.suffix for path in (tmp_path / "cache" / "prints").iterdir()] == [".npz"], "no temporary file remains"


def test_fingerprints_of_the_first_test_images_are_a_prefix(tmp_path):
    data = make_npz(tmp_path / "a.npz")
    all_prints, first = (fingerprints.dataset_fingerprints(data, "test", tmp_path, size) for size in (None, 5))
    assert are_equal(first, fingerprints.take(all_prints, slice(5)))
    with pytest.raises(UserError, match="no such split"):
        fingerprints.dataset_fingerprints(data, "validation", tmp_path)


def test_fingerprints_have_the_order_of_the_loaded_dataset(tmp_path):
    pytest.importorskip("torch")
    from xferbench.core.transforms import Preprocessing
    from xferbench.lab.data import datasets

    for split in ("train", "val"):
        for label, name in enumerate(("cat", "dog")):
            (tmp_path / "set" / split / name).mkdir(parents=True)
            for number, image in enumerate(make_pictures(4, 12, 12, seed=label + 2 * (split == "val"))):
                Image.fromarray(image).save(tmp_path / "set" / split / name / f"{number}.png")
    (tmp_path / "set" / "val" / "cat" / "2.png").write_text("broken")
    data = inputs.digest_data(f"folder:{tmp_path / 'set'}")
    dataset = datasets.load_dataset(data, Preprocessing(), None, tmp_path)
    assert are_equal(fingerprints.dataset_fingerprints(data, "test", tmp_path), fingerprints.fingerprint(dataset.test.images))
    assert are_equal(fingerprints.dataset_fingerprints(data, "train", tmp_path), fingerprints.fingerprint(dataset.train.images))


def test_float_images_raise():
    with pytest.raises(UserError, match="not an image"):
        fingerprints.fingerprint_split(RawSplit(np.zeros((2, 8, 8)), np.zeros(2, int), NONE))
    assert to_rgb(np.zeros((8, 8), np.uint8)).shape == (8, 8, 3)
