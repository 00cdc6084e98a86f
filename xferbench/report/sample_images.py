"""``samples.npz``: sample images next to the results, and the same images as inline PNGs for the page. Pure.

``index`` is JSON in UTF-8 with ``run`` (the digest of the ``results.json`` next to it) and ``samples``. The images of entry k
are in the array ``k``. The file contains no pickle.
"""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from xferbench.core.array_file import read_arrays
from xferbench.core.json_shape import read_json
from xferbench.core.results_shape import SAMPLES_INDEX
from xferbench.core.run import SampleImages

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MAX_CHARACTERS = 600_000  # total characters of all images on the page
THUMBNAIL_SIDES = (96, 64, 48, 32, 24)  # sides in pixels, tried until the images fit the budget
SAMPLE_FIELDS = ("role", "title", "arms", "labels")


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedImages:
    """Sample images encoded as data URIs."""

    samples: SampleImages
    images: tuple[str, ...]


def pack_samples(samples: Sequence[SampleImages], run: str) -> bytes:
    """Return the content of the file.

    Args:
        samples: sample images.
        run: digest of the results of the run.
    """
    index = {"run": run, "samples": [{name: getattr(sample, name) for name in SAMPLE_FIELDS} for sample in samples]}
    arrays = {str(number): sample.images for number, sample in enumerate(samples)}
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, index=np.frombuffer(json.dumps(index).encode(), np.uint8), **arrays)
    return file.getvalue()


def unpack_samples(file: BinaryIO) -> tuple[str, tuple[SampleImages, ...]]:
    """Return the digest of the results that the file belongs to, and the samples.

    Raises:
        xferbench.core.array_file.READ_ERRORS: if the file is not valid.
    """
    arrays = read_arrays(file)
    index = read_json(arrays["index"].tobytes(), SAMPLES_INDEX)
    return index["run"], tuple(_samples_from_entry(entry, arrays[str(k)]) for k, entry in enumerate(index["samples"]))


def _samples_from_entry(entry: Mapping[str, Any], images: np.ndarray) -> SampleImages:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or not all(images.shape):
        raise ValueError(f"images of {images.dtype} {images.shape}")
    if len(entry["labels"]) != len(images):
        raise ValueError("labels do not match the images")
    lists = {name: tuple(entry[name]) for name in ("arms", "labels")}
    return SampleImages(role=entry["role"], title=entry["title"], images=images, **lists)


def encode_images(samples: Sequence[SampleImages], budget: int = MAX_CHARACTERS) -> tuple[EncodedImages, ...]:
    """Encode all images within a budget of characters.

    If the images are too large, they are scaled down. If the smallest size is still too large, the last entries are dropped.
    """
    encoded: list[EncodedImages] = []
    for side in THUMBNAIL_SIDES:
        encoded = [
            EncodedImages(samples=sample, images=tuple(_png_uri(image, side) for image in sample.images)) for sample in samples
        ]
        if _total_length(encoded) <= budget:
            return tuple(encoded)
    while _total_length(encoded) > budget:
        encoded.pop()
    return tuple(encoded)


def _total_length(encoded: Sequence[EncodedImages]) -> int:
    return sum(len(image) for entry in encoded for image in entry.images)


def _png_uri(pixels: np.ndarray, side: int) -> str:
    """Return an image as a PNG data URI with sides of at most ``side`` pixels."""
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(pixels))
    if max(image.size) > side:
        factor = side / max(image.size)
        image = image.resize(tuple(max(1, round(factor * length)) for length in image.size), Image.Resampling.BOX)
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
