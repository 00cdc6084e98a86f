"""``samples.npz``: sample images beside the results; and the same as inline PNGs for the page.

``index`` is JSON in UTF-8: ``run`` (the digest of the ``results.json`` beside it) and ``samples``, whose k-th entry has its
images in the array ``k``. No pickle.
"""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from xferbench.record import Samples

if TYPE_CHECKING:
    from collections.abc import Sequence

BUDGET = 600_000  # characters of all images on the page together
SIDES = (96, 64, 48, 32, 24)  # pixels a side, tried until the budget is kept
OF_SAMPLES = ("role", "title", "arms", "labels")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """Samples with each image as a data URI."""

    samples: Samples
    images: tuple[str, ...]


def pack(samples: Sequence[Samples], run: str) -> bytes:
    """Give the file's content."""
    index = {"run": run, "samples": [{name: getattr(one, name) for name in OF_SAMPLES} for one in samples]}
    arrays = {str(number): one.images for number, one in enumerate(samples)}
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, index=np.frombuffer(json.dumps(index).encode(), np.uint8), **arrays)
    return file.getvalue()


def unpack(file: BinaryIO) -> tuple[str, tuple[Samples, ...]]:
    """Give the digest of the results that the file belongs to, and the samples.

    Raises:
        OSError, EOFError, KeyError, ValueError, TypeError, zipfile.BadZipFile, zlib.error: for a file that is not such a one.
    """
    with np.load(file, allow_pickle=False) as arrays:
        index = json.loads(arrays["index"].tobytes())
        return index["run"], tuple(_samples(entry, arrays[str(k)]) for k, entry in enumerate(index["samples"]))


def _samples(entry: dict[str, object], images: np.ndarray) -> Samples:
    role, title, arms, labels = (entry[name] for name in OF_SAMPLES)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or not all(images.shape):
        raise ValueError(f"images of {images.dtype} {images.shape}")
    if not isinstance(arms, list) or not isinstance(labels, list) or len(labels) != len(images):
        raise ValueError("labels that are not those of the images")
    return Samples(role=str(role), title=str(title), arms=tuple(map(str, arms)), images=images, labels=tuple(map(str, labels)))


def shown(samples: Sequence[Samples], budget: int = BUDGET) -> tuple[Shown, ...]:
    """Encode all images, smaller ones where they would be too many characters, and the first entries where even that is."""
    found: list[Shown] = []
    for side in SIDES:
        found = [Shown(samples=one, images=tuple(_uri(image, side) for image in one.images)) for one in samples]
        if _length(found) <= budget:
            return tuple(found)
    while _length(found) > budget:
        found.pop()
    return tuple(found)


def _length(found: Sequence[Shown]) -> int:
    return sum(len(image) for one in found for image in one.images)


def _uri(pixels: np.ndarray, side: int) -> str:
    """One image as a PNG, no larger than so many pixels a side."""
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(pixels))
    if max(image.size) > side:
        factor = side / max(image.size)
        image = image.resize(tuple(max(1, round(factor * length)) for length in image.size), Image.Resampling.BOX)
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
