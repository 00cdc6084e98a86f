"""Training images flipped and cropped anew at each step, on their stored values, by draws of each seed's own.

Flips and crops have a stream each, so that an arm with one of them shares it with an arm that has both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from xferbench.core.errors import UserError
from xferbench.core.interventions import Crop, Flip, FlipAndCrop
from xferbench.core.pipeline import Preprocessing
from xferbench.lab.training import seeds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xferbench.core.trial import TrainingSpec

SHIFT_DIVISOR = 8  # the share of a side by which a crop is shifted at most


def draw_augmentations(fits: Sequence[TrainingSpec], number: int, size: tuple[int, ...], sides: Sequence[int]) -> Tensor | None:
    """A phase's draws [steps, members, batch, 3]: by how many pixels up and to the left, and 1 where it is flipped.

    None where nothing is augmented.

    Args:
        fits: equal but for their seeds. number: of the phase. size: steps and images a batch. sides: height and width.

    Raises:
        UserError: where the examples are no images.
    """
    augmentation, ready = fits[0].augment, fits[0].preprocessing
    if augmentation is None:
        return None
    if not isinstance(ready, Preprocessing):
        kind = f"examples prepared as a {type(ready).__name__.lower()}"
        raise UserError(f"augment {augmentation} is for images", found=kind, expected="images", do="leave augment out")
    found = np.zeros((size[0], len(fits), size[1], 3), np.int64)
    for g, fit in enumerate(fits):
        flips, crops = (seeds.numpy_stream(fit.seed, seeds.AUGMENT, number, kind) for kind in range(2))
        if isinstance(augmentation, Crop | FlipAndCrop):
            reach = np.array([side // SHIFT_DIVISOR for side in sides])
            found[:, g, :, :2] = crops.integers(-reach, reach + 1, size=(*size, 2))
        if isinstance(augmentation, Flip | FlipAndCrop):
            found[:, g, :, 2] = flips.integers(2, size=size)
    return torch.from_numpy(found)


def augment_batches(batches: list[Tensor], draws: Tensor | None, step: int) -> list[Tensor]:
    """The members' batches at a step as a phase's draws say; as they are where there are none."""
    if draws is None:
        return batches
    return [shift_and_flip(images, own) for images, own in zip(batches, draws[step].to(batches[0].device), strict=True)]


def shift_and_flip(images: Tensor, draws: Tensor) -> Tensor:
    """Images [batch, channels, height, width] shifted and flipped as their draws [batch, 3] say; edges are reflected."""
    one, height, width = (torch.arange(side, device=images.device) for side in images.shape[1:])
    rows = _reflected(height + draws[:, :1], len(height))
    columns = _reflected(width + draws[:, 1:2], len(width))
    columns = torch.where(draws[:, 2:] > 0, columns.flip(1), columns)
    which = torch.arange(len(images), device=images.device)[:, None, None, None]
    return images[which, one[None, :, None, None], rows[:, None, :, None], columns[:, None, None, :]]


def _reflected(index: Tensor, side: int) -> Tensor:
    """Places that lie outside a side, by less than its length, as those inside it; the edge itself is not repeated."""
    return (side - 1) - ((side - 1) - index.abs()).abs()
