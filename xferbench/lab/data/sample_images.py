"""A few test images as a network sees them, converted back to pixels for people to look at. Reads files, imports torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from xferbench.core.transforms import Tokens
from xferbench.lab.data import datasets
from xferbench.lab.data.preprocessing import to_tensor

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

    from xferbench.core.pipeline import Data
    from xferbench.core.transforms import InputTransform

VERSION = 1  # raise it when the same request gives another result
MAX_SIDE = 96  # pixels of the longer side


def sample_images(
    source: Data, preprocessing: InputTransform, examples: int, recorded: InputTransform, cache: Path
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the first test images of different classes as a network sees them, and the names of their classes.

    The images are [k, H, W, 3] uint8. They are converted back with the *recorded* preprocessing, so a wrong preprocessing is
    visible: no normalization, a second one, or another channel order. All preprocessings use the same examples.

    Raises:
        UserError: If the dataset or a preprocessing cannot be used.
    """
    dataset = datasets.load_dataset(source, preprocessing, None, cache)
    index = choose_examples(dataset.test.labels, examples)
    stored = np.array(dataset.test.images[index])
    value_range = (0.0, 255.0) if stored.dtype == np.uint8 else (float(stored.min()), float(stored.max()))
    network_input = to_tensor(torch.from_numpy(stored), preprocessing)
    return to_pixels(network_input, recorded, value_range), tuple(
        dataset.classes[label] for label in dataset.test.labels[index]
    )


def choose_examples(labels: np.ndarray, examples: int) -> np.ndarray:
    """Return the indices of the first example of each class, then those of the second, up to the number of examples."""
    rank = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        in_class = labels == label
        rank[in_class] = np.arange(in_class.sum())
    return np.argsort(rank, kind="stable")[:examples]


def to_pixels(network_input: Tensor, recorded: InputTransform, value_range: tuple[float, float] = (0.0, 255.0)) -> np.ndarray:
    """Convert a network's input [k, C, H, W] to [k, H', W', 3] uint8, with at most 96 pixels per side.

    Inputs with other than three channels become gray. ``value_range`` holds the stored values that become black and white.
    """
    assert not isinstance(recorded, Tokens), "texts are no pictures"
    network_input = torch.nan_to_num(network_input if network_input.shape[1] == 3 else network_input.mean(1, keepdim=True))
    mean, std = (_by_channel(values, network_input.shape[1]) for values in (recorded.mean, recorded.std))
    values = (network_input * std + mean) / getattr(recorded, "scale", 1.0)  # not every kind of preprocessing has a scale
    if recorded.channels == "bgr" and network_input.shape[1] == 3:
        values = values.flip(1)
    values = (255 * (values - value_range[0]) / ((value_range[1] - value_range[0]) or 1.0)).clamp(0, 255).expand(-1, 3, -1, -1)
    factor = MAX_SIDE / max(values.shape[-2:])
    if factor < 1:
        size = [max(1, round(factor * side)) for side in values.shape[-2:]]
        values = torch.nn.functional.interpolate(values, size=size, mode="bilinear", antialias=True)
    image_pixels: np.ndarray = values.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    return image_pixels


def _by_channel(values: Sequence[float] | float, channels: int) -> Tensor:
    """Return values as [C, 1, 1]; for a single channel, their mean."""
    tensor = torch.atleast_1d(torch.tensor(values, dtype=torch.float32))
    return (tensor.mean().view(1) if channels == 1 else tensor).view(-1, 1, 1)
