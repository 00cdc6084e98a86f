"""Altered copies of images, which measure how many copies the search for duplicates finds. Pure.

Each alteration is one that copies in published datasets have: see Barz & Denzler 2020 (arXiv:1902.00423).
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

from xferbench.core.suite import COPY_KINDS

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_SIDE = 512  # pixels; larger images are reduced before they are altered
JPEG_QUALITY = 50  # percent
SCALE = 0.5  # of a resized copy
JITTER = 0.2  # largest relative change of brightness, contrast and saturation
CROPPED_SHARE = 26 / 32  # of each side of the image that a cropped copy shows


def reduce_image(image: np.ndarray) -> np.ndarray:
    """Return an image H×W×3 with at most ``MAX_SIDE`` pixels per side."""
    factor = MAX_SIDE / max(image.shape[:2])
    return image if factor >= 1 else _resize(image, round(image.shape[1] * factor), round(image.shape[0] * factor))


def alter_image(image: np.ndarray, kind: str, rng: np.random.Generator) -> np.ndarray:
    """Return an altered copy of an image uint8 H×W×3; ``kind`` is one of ``COPY_KINDS``."""
    return ALTERATIONS[kind](image, rng)


def recompress(image: np.ndarray, _: np.random.Generator | None = None, quality: int = JPEG_QUALITY) -> np.ndarray:
    """Return an image after JPEG compression."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def _flip(image: np.ndarray, _: np.random.Generator) -> np.ndarray:
    # Identical pixels have the same digest, so only a flipped copy that is compressed again tests the search.
    return recompress(image[:, ::-1])


def _shrink(image: np.ndarray, _: np.random.Generator) -> np.ndarray:
    return _resize(image, max(1, round(image.shape[1] * SCALE)), max(1, round(image.shape[0] * SCALE)))


def _recolor(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    from PIL import Image, ImageEnhance

    picture = Image.fromarray(np.ascontiguousarray(image))
    for enhancer in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        picture = enhancer(picture).enhance(rng.uniform(1 - JITTER, 1 + JITTER))
    return np.asarray(picture)


def _crop(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    height, width = image.shape[:2]
    rows, columns = (max(1, round(side * CROPPED_SHARE)) for side in (height, width))
    top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
    return _resize(image[top : top + rows, left : left + columns], width, height)


def _resize(image: np.ndarray, width: int, height: int) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize((width, height), Image.Resampling.BILINEAR))


ALTERATIONS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = dict(
    zip(COPY_KINDS, (_flip, lambda image, _: recompress(image), _shrink, _recolor, _crop), strict=True)
)
