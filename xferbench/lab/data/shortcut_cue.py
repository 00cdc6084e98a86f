"""A shortcut cue that is unrelated to the content of an image: a magenta square in its upper left corner. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from xferbench.lab.data.datasets import Dataset, Split

MAGENTA = (255, 0, 255)
SIDE_DIVISOR = 8  # the side of the cue is this part of the shorter side of an image: 4 of 32 pixels


def add_cue(images: np.ndarray) -> np.ndarray:
    """Return a copy of images [n, 3, H, W] uint8 with the cue on each."""
    side = max(2, min(images.shape[2:]) // SIDE_DIVISOR)
    images_with_cue = np.array(images)
    images_with_cue[:, :, :side, :side] = np.array(MAGENTA, np.uint8)[:, None, None]
    return images_with_cue


def correlate_with_class(dataset: Dataset) -> Dataset:
    """Return a dataset with the cue on all training and validation images of the first class, and on no other image."""

    def add_to_first_class(split: Split) -> Split:
        images, is_first = np.array(split.images), split.labels == 0
        images[is_first] = add_cue(images[is_first])
        return replace(split, images=images)

    validation = dataset.validation
    return replace(
        dataset,
        train=add_to_first_class(dataset.train),
        validation=None if validation is None else add_to_first_class(validation),
    )
