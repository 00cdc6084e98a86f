"""Fingerprints: the same for the same pixels, close for the same picture, and small however large the set."""

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
    """Smooth pictures: a few coarse pixels in colour, drawn large."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(256, size=(count, 6, 6, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(one).resize((width, height), Image.Resampling.BICUBIC)) for one in coarse])


def of(images):
    return fingerprints.fingerprint(np.asarray(images).transpose(0, 3, 1, 2))


def cosine(first, second, *, flipped=False):
    signs = np.where(np.arange(fingerprints.EMBEDDING_SIZE) >= fingerprints.EVEN_COLUMNS, -1.0, 1.0) if flipped else 1.0
    return (first.embedding.astype(float) * second.embedding * signs).sum(1)


def differing(first, second, *, flipped=False):
    """Share of the bits."""
    return np.unpackbits(first.bits ^ second.bits ^ (fingerprints.FLIP if flipped else np.uint8(0)), axis=1).mean(1)


def equal(first, second):
    return all(np.array_equal(getattr(first, name), getattr(second, name)) for name in FIELDS)


@pytest.mark.parametrize("size", [(8, 8), (16, 9), (31, 33), (32, 32), (47, 32), (300, 500)])
def test_any_size_has_prints_of_one_form(size):
    found = of(make_pictures(3, *size))
    assert (found.exact.dtype, found.bits.shape, found.embedding.shape) == (
        np.uint64,
        (3, 32),
        (3, fingerprints.EMBEDDING_SIZE),
    )
    assert np.linalg.norm(found.embedding.astype(float), axis=1) == pytest.approx(1, abs=1e-3)
    assert not found.plain.any()


def test_one_pixel_changes_the_exact_digest_and_little_else():
    images = make_pictures(1)
    other = images.copy()
    other[0, 3, 5, 1] ^= 1
    assert of(images).exact != of(other).exact
    assert cosine(of(images), of(other))[0] > 0.999


def test_the_shape_is_part_of_the_exact_digest():
    assert of(np.full((1, 4, 6, 3), 7)[..., :].astype(np.uint8)).exact != of(np.full((1, 6, 4, 3), 7, np.uint8)).exact


def test_a_flip_changes_signs_that_are_known():
    images = make_pictures(20, 24, 36)
    here, turned = of(images), of(images[:, :, ::-1])
    assert np.array_equal(here.exact, turned.mirrored)
    assert np.array_equal(here.mirrored, turned.exact)
    assert cosine(here, turned, flipped=True) == pytest.approx(1, abs=1e-3)
    assert differing(here, turned, flipped=True).max() < 0.02
    assert cosine(here, turned).max() < 0.9


def recompressed(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "jpeg", quality=50)
    return np.asarray(Image.open(file))


@pytest.mark.parametrize(
    "change",
    [
        recompressed,
        lambda image: np.asarray(Image.fromarray(image).resize((40, 24), Image.Resampling.BILINEAR)),
        lambda image: np.asarray(Image.fromarray(image).resize((96, 96), Image.Resampling.BICUBIC)),
        lambda image: (0.8 * image + 20).astype(np.uint8),
    ],
    ids=["jpeg", "smaller", "larger", "paler"],
)
def test_the_same_picture_has_nearly_the_same_prints(change):
    images = make_pictures(20, 48, 48)
    found = of([change(image) for image in images])
    assert cosine(of(images), found).min() > 0.98
    assert cosine(of(images), of(images[::-1])).mean() < 0.5
    assert (
        np.median(differing(of(images), found))
        < 1 - duplicates.MIN_AGREEING_BITS
        < differing(of(images), of(images[::-1])).mean()
    )


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((16, 16, 3), np.uint8),
        np.full((40, 30, 3), (12, 200, 90), np.uint8),
        np.full((20, 20, 3), 128, np.uint8) + np.random.default_rng(0).integers(2, size=(20, 20, 3), dtype=np.uint8),
        np.tile(np.linspace(0, 255, 64).astype(np.uint8)[:, None, None], (1, 64, 3)),
    ],
    ids=["black", "one colour", "a little noise", "a ramp"],
)
def test_an_image_without_a_picture_is_plain(image):
    assert of(image[None]).plain.all()
    assert not of(image[None]).embedding.any()
    assert of(image[None]).blank == (image.std((0, 1)).max() < 1)


def test_grey_16_bit_and_rgb_of_the_same_values_are_the_same_image():
    grey = make_pictures(1)[0, :, :, 0]
    same = [grey, grey[:, :, None], np.repeat(grey[:, :, None], 3, 2), grey.astype(np.uint16) * 256 + 7]
    found = [fingerprints.fingerprint_split(RawSplit([one], np.zeros(1, int), NONE))[0] for one in same]
    assert all(equal(found[0], one) for one in found[1:])


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), max_size=8), st.integers(1, 4000))
def test_prints_do_not_depend_on_what_is_worked_on_together(sizes, batch):
    rng = np.random.default_rng(0)
    images = [rng.integers(256, size=(*size, 3), dtype=np.uint8) for size in sizes]
    alone = fingerprints.concatenate(of(image[None]) for image in images)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fingerprints, "BATCH_VALUES", batch)
        found = fingerprints.fingerprint_stream(iter(images))
    assert len(found) == len(images)
    assert np.array_equal(found.exact, alone.exact)
    assert np.array_equal(found.mirrored, alone.mirrored)
    assert np.allclose(found.embedding, alone.embedding, atol=2e-3)


def test_they_are_the_same_every_time():
    images = make_pictures(50)
    assert equal(of(images), of(images.copy()))


def test_a_tensor_will_do():
    torch = pytest.importorskip("torch")
    images = make_pictures(3)
    assert equal(fingerprints.fingerprint(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())), of(images))


def test_of_nothing_there_is_nothing():
    found = fingerprints.fingerprint(np.empty((0, 3, 8, 8), np.uint8))
    assert len(found) == len(fingerprints.fingerprint_stream([])) == 0
    assert found.embedding.shape == (0, fingerprints.EMBEDDING_SIZE)


@pytest.mark.parametrize("wrong", [np.zeros((2, 3, 8, 8)), np.zeros((2, 8, 8, 3), np.uint8), np.zeros((1, 3, 0, 8), np.uint8)])
def test_what_is_no_batch_of_images_is_a_problem(wrong):
    with pytest.raises(UserError, match=r"expected: uint8 \[n, 3, H, W\]"):
        fingerprints.fingerprint(wrong)


def test_only_a_few_images_are_held_at_a_time(monkeypatch):
    monkeypatch.setattr(fingerprints, "BATCH_VALUES", 4 * 32 * 32 * 3)
    alive, most = weakref.WeakSet(), 0

    def stream():
        nonlocal most
        for seed in range(60):
            image = make_pictures(1, seed=seed)[0].view(Watched)
            alive.add(image)
            most = max(most, len(alive))
            yield image
            del image

    assert len(fingerprints.fingerprint_stream(stream())) == 60
    assert most <= 8


class Watched(np.ndarray):
    """An array that can be counted."""

    __hash__ = object.__hash__


def test_files_that_cannot_be_read_are_left_out_and_named(tmp_path):
    Image.fromarray(make_pictures(1)[0]).save(tmp_path / "whole.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "whole.png").read_bytes()[:200])
    (tmp_path / "text.jpg").write_text("no image")
    names = ["broken.png", "whole.png", "text.jpg"]
    found, kept, left_out = fingerprints.fingerprint_split(
        RawSplit([tmp_path / name for name in names], np.zeros(3, int), NONE, names)
    )
    assert (len(found), kept.tolist()) == (1, [1])
    assert [one.partition(":")[0] for one in left_out] == ["broken.png", "text.jpg"]
    assert equal(found, of(make_pictures(1)))


def make_npz(path):
    rng = np.random.default_rng(0)
    arrays = {f"{split}_images": rng.integers(256, size=(12, 16, 16, 3), dtype=np.uint8) for split in ("train", "test")}
    np.savez(path, **arrays, train_labels=np.arange(12) % 2, test_labels=np.arange(12) % 2)
    return inputs.digest_data(f"npz:{path}")


def test_prints_of_a_dataset_are_computed_once_and_read_again(tmp_path, monkeypatch):
    made = make_npz(tmp_path / "a.npz")
    first = fingerprints.dataset_fingerprints(made, "train", tmp_path / "cache")
    assert equal(first, of(np.load(tmp_path / "a.npz")["train_images"]))
    monkeypatch.setattr(sources, "read_dataset", None)
    assert equal(fingerprints.dataset_fingerprints(made, "train", tmp_path / "cache"), first)
    assert [path.suffix for path in (tmp_path / "cache" / "prints").iterdir()] == [".npz"], "nothing half written"


def test_prints_of_the_first_test_images(tmp_path):
    made = make_npz(tmp_path / "a.npz")
    whole, first = (fingerprints.dataset_fingerprints(made, "test", tmp_path, size) for size in (None, 5))
    assert equal(first, fingerprints.take(whole, slice(5)))
    with pytest.raises(UserError, match="no such split"):
        fingerprints.dataset_fingerprints(made, "validation", tmp_path)


def test_prints_are_in_the_order_of_the_loaded_dataset(tmp_path):
    pytest.importorskip("torch")
    from xferbench.core.pipeline import Preprocessing
    from xferbench.lab.data import datasets

    for split in ("train", "val"):
        for label, name in enumerate(("cat", "dog")):
            (tmp_path / "set" / split / name).mkdir(parents=True)
            for number, image in enumerate(make_pictures(4, 12, 12, seed=label + 2 * (split == "val"))):
                Image.fromarray(image).save(tmp_path / "set" / split / name / f"{number}.png")
    (tmp_path / "set" / "val" / "cat" / "2.png").write_text("broken")
    made = inputs.digest_data(f"folder:{tmp_path / 'set'}")
    held = datasets.load_dataset(made, Preprocessing(), None, tmp_path)
    assert equal(fingerprints.dataset_fingerprints(made, "test", tmp_path), fingerprints.fingerprint(held.test.images))
    assert equal(fingerprints.dataset_fingerprints(made, "train", tmp_path), fingerprints.fingerprint(held.train.images))


def test_floats_are_no_image():
    with pytest.raises(UserError, match="not an image"):
        fingerprints.fingerprint_split(RawSplit(np.zeros((2, 8, 8)), np.zeros(2, int), NONE))
    assert to_rgb(np.zeros((8, 8), np.uint8)).shape == (8, 8, 3)
