"""A few test images as a network sees them, mapped back to pixels for people to look at."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from xferbench.lab import data, preprocess

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

    from xferbench.design import Data, Ready

VERSION = 1  # raised when the same question would have another answer
LARGEST = 96  # pixels a side


def samples(
    source: Data, preprocessing: Ready, examples: int, recorded: Ready, cache: Path
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The first test images of distinct classes as a network is given them: [k, H, W, 3] uint8, and their classes' names.

    The way back to pixels is the *recorded* preprocessing's, so that an image that was normalised twice, not at all, or in
    another order of channels looks as wrong as it is. The same examples are shown for every preprocessing.

    Raises:
        Problem: for a dataset or a preprocessing that cannot be used.
    """
    dataset = data.load(source, preprocessing, None, cache)
    index = chosen(dataset.test.labels, examples)
    held = np.array(dataset.test.images[index])
    span = (0.0, 255.0) if held.dtype == np.uint8 else (float(held.min()), float(held.max()))
    seen = preprocess.tensor(torch.from_numpy(held), preprocessing)
    return pixels(seen, recorded, span), tuple(dataset.classes[label] for label in dataset.test.labels[index])


def chosen(labels: np.ndarray, examples: int) -> np.ndarray:
    """Indices of the first example of each class, as far as they are wanted; then the second ones, and so on."""
    rank = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        of_class = labels == label
        rank[of_class] = np.arange(of_class.sum())
    return np.argsort(rank, kind="stable")[:examples]


def pixels(seen: Tensor, recorded: Ready, span: tuple[float, float] = (0.0, 255.0)) -> np.ndarray:
    """A network's input [k, C, H, W] as [k, H', W', 3] uint8, at most 96 pixels a side; other than three channels are grey.

    ``span`` are the stored values that become black and white.
    """
    seen = torch.nan_to_num(seen if seen.shape[1] == 3 else seen.mean(1, keepdim=True))
    mean, std = (_by_channel(values, seen.shape[1]) for values in (recorded.mean, recorded.std))
    values = (seen * std + mean) / getattr(recorded, "scale", 1.0)  # not every kind of preprocessing has one
    if recorded.channels == "bgr" and seen.shape[1] == 3:
        values = values.flip(1)
    values = (255 * (values - span[0]) / ((span[1] - span[0]) or 1.0)).clamp(0, 255).expand(-1, 3, -1, -1)
    factor = LARGEST / max(values.shape[-2:])
    if factor < 1:
        size = [max(1, round(factor * side)) for side in values.shape[-2:]]
        values = torch.nn.functional.interpolate(values, size=size, mode="bilinear", antialias=True)
    shown: np.ndarray = values.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    return shown


def _by_channel(values: Sequence[float] | float, channels: int) -> Tensor:
    """[C, 1, 1]; for a single channel, the mean of three values."""
    told = torch.atleast_1d(torch.tensor(values, dtype=torch.float32))
    return (told.mean().view(1) if channels == 1 else told).view(-1, 1, 1)
