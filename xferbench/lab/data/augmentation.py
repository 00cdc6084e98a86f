"""Flip and crop training images at each step, or call the augmentation of an installed package. Imports torch.

The operations apply to the stored values. Flips and crops have separate random streams for each seed, so an arm with only one
of them has the same draws as an arm with both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from torch import Tensor

from xferbench.core.errors import UserError
from xferbench.core.interventions import Crop, Flip, FlipAndCrop
from xferbench.core.transforms import Preprocessing
from xferbench.lab.training import seeds
from xferbench.lab.training.implementations import load_implementation

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from xferbench.core.interventions import Augmentation
    from xferbench.core.trial import TrainingSpec

SHIFT_DIVISOR = 8  # a crop shifts an image by at most this part of its side
FLIP_STREAM, CROP_STREAM, INSTALLED_STREAM = range(3)


@dataclass(frozen=True, slots=True, kw_only=True)
class InstalledAugmentation:
    """An augmentation of an installed package in one phase. Each member has a random stream of its own at each step.

    Attributes:
        augmentation: the value.
        function: its implementation.
        member_seeds: [members], the seeds of the trainings.
        phase_index: the index of the phase.
    """

    augmentation: Augmentation
    function: Callable[[Tensor, Augmentation, np.random.Generator], Tensor]
    member_seeds: tuple[int, ...]
    phase_index: int

    def augment(self, images: Tensor, member: int, step: int) -> Tensor:
        """Augment the images of a member at a step.

        Raises:
            ValueError: if the implementation returns another shape or type.
        """
        rng = seeds.numpy_stream(self.member_seeds[member], seeds.AUGMENT, self.phase_index, INSTALLED_STREAM, step)
        augmented = self.function(images, self.augmentation, rng)
        if (augmented.shape, augmented.dtype) != (images.shape, images.dtype):
            returned, expected = (f"{x.dtype} {list(x.shape)}" for x in (augmented, images))
            raise ValueError(f"augment {self.augmentation} returned {returned}; expected {expected}")
        return augmented


Draws: TypeAlias = Tensor | InstalledAugmentation


def draw_augmentations(
    specs: Sequence[TrainingSpec], phase_index: int, size: tuple[int, ...], sides: Sequence[int]
) -> Draws | None:
    """Draw the augmentation of every image in a phase; one of an installed package draws at each step.

    Args:
        specs: the trainings, equal except for their seeds.
        phase_index: the index of the phase.
        size: the number of steps and the batch size.
        sides: the height and the width of the images.

    Returns:
        [steps, members, batch size, 3]: the shift up and to the left in pixels, and 1 for a flipped image. None without
        augmentation, and the augmentation itself if it is not built in.

    Raises:
        UserError: if the examples are not images.
    """
    augmentation, transform = specs[0].procedure.augment, specs[0].data.preprocessing
    if augmentation is None:
        return None
    if not isinstance(transform, Preprocessing):
        kind = f"examples prepared as a {type(transform).__name__.lower()}"
        raise UserError(f"augment {augmentation} is for images", found=kind, expected="images", do="leave augment out")
    if not isinstance(augmentation, Flip | Crop | FlipAndCrop):
        function, member_seeds = load_implementation(augmentation), tuple(spec.seed for spec in specs)
        return InstalledAugmentation(
            augmentation=augmentation, function=function, member_seeds=member_seeds, phase_index=phase_index
        )
    draws = np.zeros((size[0], len(specs), size[1], 3), np.int64)
    for member, spec in enumerate(specs):
        flip_rng, crop_rng = (
            seeds.numpy_stream(spec.seed, seeds.AUGMENT, phase_index, stream) for stream in (FLIP_STREAM, CROP_STREAM)
        )
        if isinstance(augmentation, Crop | FlipAndCrop):
            max_shift = np.array([side // SHIFT_DIVISOR for side in sides])
            draws[:, member, :, :2] = crop_rng.integers(-max_shift, max_shift + 1, size=(*size, 2))
        if isinstance(augmentation, Flip | FlipAndCrop):
            draws[:, member, :, 2] = flip_rng.integers(2, size=size)
    return torch.from_numpy(draws)


def augment_batches(batches: list[Tensor], draws: Draws | None, step: int) -> list[Tensor]:
    """Augment the batch of each member with the draws of a step, or return the batches unchanged if there are none."""
    if draws is None:
        return batches
    if isinstance(draws, InstalledAugmentation):
        return [draws.augment(images, member, step) for member, images in enumerate(batches)]
    step_draws = draws[step].to(batches[0].device)
    return [shift_and_flip(images, member_draws) for images, member_draws in zip(batches, step_draws, strict=True)]


def shift_and_flip(images: Tensor, draws: Tensor) -> Tensor:
    """Shift and flip images [batch, channels, height, width] by their draws [batch, 3]. Edges are reflected."""
    channel, y, x = (torch.arange(side, device=images.device) for side in images.shape[1:])
    rows = _reflect(y + draws[:, :1], len(y))
    columns = _reflect(x + draws[:, 1:2], len(x))
    columns = torch.where(draws[:, 2:] > 0, columns.flip(1), columns)
    image = torch.arange(len(images), device=images.device)[:, None, None, None]
    return images[image, channel[None, :, None, None], rows[:, None, :, None], columns[:, None, None, :]]


def _reflect(index: Tensor, side: int) -> Tensor:
    """Reflect indices that lie outside a side by less than its length. The edge itself is not repeated."""
    return (side - 1) - ((side - 1) - index.abs()).abs()
