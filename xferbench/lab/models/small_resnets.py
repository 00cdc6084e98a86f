"""Small residual networks for 32×32 images: one that trains in seconds, and those of He et al. for CIFAR. Imports torch.

Modules have the names of the common CIFAR checkpoints (``conv1 bn1 layer1.0.conv1 … linear``), so their state dicts load. The
networks map [N, 3, H, W] to logits [N, classes], and work with torch.fx and torch.func.

References:
    He, Zhang, Ren, Sun. Deep residual learning for image recognition. CVPR 2016, section 4.2 (CIFAR, option A).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from xferbench.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

DEPTHS = (20, 32, 44, 56)


class IdentityShortcut(nn.Module):
    """Option A: every ``stride``-th pixel, padded with ``before`` and ``after`` channels of zeros. It has no parameters."""

    def __init__(self, stride: int, before: int, after: int) -> None:
        super().__init__()
        self.stride, self.before, self.after = stride, before, after

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [N, C, H, W] to [N, before + C + after, H/stride, W/stride]."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


class Block(nn.Module):
    """Two 3×3 convolutions with BatchNorm and a shortcut."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        extra_channels = width - width_in
        # The published checkpoints were trained with zeros on both sides.
        self.shortcut = (
            IdentityShortcut(stride, extra_channels // 2, extra_channels - extra_channels // 2)
            if stride > 1 or extra_channels
            else nn.Identity()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [N, width_in, H, W] to [N, width, H/stride, W/stride]."""
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet(nn.Module):
    """A residual network: a 3×3 convolution, stages ``layer1`` … of blocks, global average pooling and ``linear``.

    Every stage but the first halves the image.
    """

    def __init__(self, classes: int, *, widths: Sequence[int], blocks: int, stem_stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, stem_stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.stages = [f"layer{1 + i}" for i in range(len(widths))]
        for i, (name, width) in enumerate(zip(self.stages, widths, strict=True)):
            first_block = Block(widths[max(i - 1, 0)], width, 2 if i else 1)
            setattr(self, name, nn.Sequential(first_block, *(Block(width, width, 1) for _ in range(blocks - 1))))
        self.linear = nn.Linear(widths[-1], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [N, 3, H, W] to logits [N, classes]."""
        x = F.relu(self.bn1(self.conv1(x)))
        for name in self.stages:
            x = getattr(self, name)(x)
        return self.linear(x.mean((2, 3)))


def tiny_resnet(classes: int, width: int = 16) -> ResNet:
    """Build four stages of one block after a convolution of stride 2.

    It has 0.12 M parameters. A step on 32 images takes under 20 ms on a core.
    """
    return ResNet(classes, widths=[width, 2 * width, 3 * width, 4 * width], blocks=1, stem_stride=2)


def cifar_resnet(depth: int, classes: int = 10) -> ResNet:
    """Build the CIFAR network of He et al. with 6n + 2 = ``depth`` layers and parameter-free shortcuts (option A).

    Raises:
        UserError: If the depth is not 20, 32, 44 or 56.
    """
    if depth not in DEPTHS:
        expected = ", ".join(map(str, DEPTHS))
        raise UserError("a CIFAR ResNet cannot have this depth", found=str(depth), expected=expected, do="choose one of them")
    return ResNet(classes, widths=[16, 32, 64], blocks=(depth - 2) // 6, stem_stride=1)
