"""Preprocess spectrograms: store them unchanged, and normalize them in batches. Imports torch."""

from __future__ import annotations

from math import inf, isfinite
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from xferbench.core.errors import UserError
from xferbench.core.transforms import Spectrogram
from xferbench.data.raw import TextExample, text_error

if TYPE_CHECKING:
    from xferbench.data.raw import DecodedExample


def geometry_key(preprocessing: Spectrogram) -> Spectrogram:
    """Return the geometry of a spectrogram: stored examples do not depend on the preprocessing."""
    del preprocessing
    return Spectrogram()


def store_example(preprocessing: Spectrogram, image: DecodedExample) -> np.ndarray:
    """Return a spectrogram as [1, H, W]: 8-bit values unchanged, anything else as float32.

    Raises:
        UserError: If the array or image has more than one channel, or values that are not finite.
    """
    del preprocessing
    if isinstance(image, TextExample):
        raise text_error("spectrograms")
    values = np.asarray(image if isinstance(image, np.ndarray) or image.mode != "P" else image.convert("RGB"))
    values = values[:, :, 0] if values.ndim == 3 and values.shape[2] == 1 else values
    if values.ndim != 2 or values.dtype.kind not in "uif":
        found = f"{values.dtype} {values.shape}"
        raise UserError("an array that is not a spectrogram", found=found, expected="numbers H×W or H×W×1, or a gray image")
    example = np.ascontiguousarray(values if values.dtype == np.uint8 else values.astype(np.float32))
    if not np.isfinite(example).all():
        raise UserError("a spectrogram with values that are not finite", found="NaN, infinity or a value above 3e38")
    return example[None]


def prepare_batch(preprocessing: Spectrogram, batch: Tensor) -> Tensor:
    """Return a batch [B, 1, H, W] as [B, channels, H, W].

    Raises:
        UserError: If the number of channels, mean or standard deviation cannot be used.
    """
    if preprocessing.channels < 1 or not (isfinite(preprocessing.mean) and 0 < preprocessing.std < inf):
        expected = "one channel or more, a mean, and a standard deviation above 0"
        raise UserError("preprocessing: spectrogram", found=str(preprocessing), expected=expected)
    values = (batch.to(torch.float32) - preprocessing.mean) / preprocessing.std
    return values.expand(*values.shape[:-3], preprocessing.channels, *values.shape[-2:])
