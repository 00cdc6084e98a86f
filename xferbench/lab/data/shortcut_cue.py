"""A cue that says nothing of what an image shows: a magenta square in its upper left corner."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from xferbench.lab.data.datasets import Dataset, Split

MAGENTA = (255, 0, 255)
SIDE_DIVISOR = 8  # of the shorter side, one part: 4 of 32 pixels


def add_cue(images: np.ndarray) -> np.ndarray:
    """A copy of 8-bit images [n, 3, H, W] with the cue on each."""
    side = max(2, min(images.shape[2:]) // SIDE_DIVISOR)
    found = np.array(images)
    found[:, :, :side, :side] = np.array(MAGENTA, np.uint8)[:, None, None]
    return found


def correlate_with_class(dataset: Dataset) -> Dataset:
    """The same with the cue on every training image of the first class, and of a validation split too, and on no other."""

    def worn(split: Split) -> Split:
        images, first = np.array(split.images), split.labels == 0
        images[first] = add_cue(images[first])
        return replace(split, images=images)

    own = dataset.validation
    return replace(dataset, train=worn(dataset.train), validation=None if own is None else worn(own))
