from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from xferbench.core.run import SampleImages
from xferbench.report import sample_images


def make_samples(count=3, side=8, labels=None, **more):
    images = np.random.default_rng(0).integers(256, size=(count, side, side, 3), dtype=np.uint8)
    told = {"role": "target", "title": "birds", "arms": ("all arms",)} | more
    return SampleImages(images=images, labels=tuple(labels or map(str, range(count))), **told)


def decoded(uri):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,")))))


def test_what_was_packed_is_unpacked():
    packed = [make_samples(labels=("<b>", "a|b\n", "日本")), make_samples(role="shifted", arms=("x", "y"))]
    run, found = sample_images.unpack_samples(io.BytesIO(sample_images.pack_samples(packed, "run")))
    assert run == "run"
    for one, again in zip(packed, found, strict=True):
        assert (one.role, one.title, one.arms, one.labels) == (again.role, again.title, again.arms, again.labels)
        np.testing.assert_array_equal(one.images, again.images)


def test_nothing_is_packed_too():
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
def test_arrays_that_are_no_images_are_refused(images):
    bad = SampleImages(role="target", title="", arms=(), images=images, labels=("a", "b"))
    with pytest.raises(ValueError):
        sample_images.unpack_samples(io.BytesIO(sample_images.pack_samples([bad], "run")))


def test_small_images_are_shown_to_the_last_bit():
    one = make_samples()
    (shown,) = sample_images.encode_images([one])
    for image, uri in zip(one.images, shown.images, strict=True):
        np.testing.assert_array_equal(decoded(uri), image)


def test_images_keep_to_the_budget_by_getting_smaller():
    many = [make_samples(6, 96) for _ in range(10)]
    shown = sample_images.encode_images(many)
    assert len(shown) == 10
    assert sum(len(uri) for one in shown for uri in one.images) <= sample_images.MAX_CHARACTERS
    assert decoded(shown[0].images[0]).shape[0] in sample_images.THUMBNAIL_SIDES[1:]


def test_where_even_that_is_too_much_the_first_ones_are_shown():
    assert 0 < len(sample_images.encode_images([make_samples(6, 96) for _ in range(10)], budget=50_000)) < 10
