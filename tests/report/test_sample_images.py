from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from xferbench.core.run import SampleImages
from xferbench.report import sample_images


def make_samples(count=3, side=8, labels=None, **fields):
    images = np.random.default_rng(0).integers(256, size=(count, side, side, 3), dtype=np.uint8)
    values = {"role": "target", "title": "birds", "arms": ("all arms",)} | fields
    return SampleImages(images=images, labels=tuple(labels or map(str, range(count))), **values)


def decode(uri):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,")))))


def test_packed_samples_are_unpacked():
    samples = [make_samples(labels=("<b>", "a|b\n", "日本")), make_samples(role="shifted", arms=("x", "y"))]
    run, reread = sample_images.unpack_samples(io.BytesIO(sample_images.pack_samples(samples, "run")))
    assert run == "run"
    for sample, reread_sample in zip(samples, reread, strict=True):
        assert (sample.role, sample.title, sample.arms, sample.labels) == (
            reread_sample.role,
            reread_sample.title,
            reread_sample.arms,
            reread_sample.labels,
        )
        np.testing.assert_array_equal(sample.images, reread_sample.images)


def test_an_empty_list_can_be_packed():
    assert sample_images.unpack_samples(io.BytesIO(sample_images.pack_samples((), "run"))) == ("run", ())


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 8, 8, 3), np.float32),
        np.zeros((2, 8, 8), np.uint8),
        np.zeros((1, 8, 8, 3), np.uint8),
        np.zeros((2, 0, 8, 3), np.uint8),
    ],
)
def test_arrays_that_are_not_images_are_an_error(images):
    samples = SampleImages(role="target", title="", arms=(), images=images, labels=("a", "b"))
    with pytest.raises(ValueError):
        sample_images.unpack_samples(io.BytesIO(sample_images.pack_samples([samples], "run")))


def test_small_images_are_encoded_exactly():
    sample = make_samples()
    (encoded_sample,) = sample_images.encode_images([sample])
    for image, uri in zip(sample.images, encoded_sample.images, strict=True):
        np.testing.assert_array_equal(decode(uri), image)


def test_images_become_smaller_to_stay_within_the_budget():
    samples = [make_samples(6, 96) for _ in range(10)]
    encoded = sample_images.encode_images(samples)
    assert len(encoded) == 10
    assert sum(len(uri) for entry in encoded for uri in entry.images) <= sample_images.MAX_CHARACTERS
    assert decode(encoded[0].images[0]).shape[0] in sample_images.THUMBNAIL_SIDES[1:]


def test_if_the_smallest_images_are_too_large_the_last_entries_are_dropped():
    assert 0 < len(sample_images.encode_images([make_samples(6, 96) for _ in range(10)], budget=50_000)) < 10
