"""The transforms of a decoded example into the input of a network, as frozen values. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """The transform from a decoded image to a tensor.

    The image is converted to 8-bit RGB first: 16-bit channels keep the upper 8 of their ``bits``, a single channel is
    repeated three times, and transparency is dropped. Then the image is turned, resized, loses detail, is cropped, its
    channels are reordered, and its values are scaled and normalized.

    Attributes:
        resize: length of the shorter side after resizing, in pixels; None for no resizing.
        crop: side of the center square that is cut out, in pixels; None for no crop.
        interpolation, antialias: how the image is resized.
        channels: order of the channels: ``rgb``, ``bgr`` or ``grey`` (the mean of the three, repeated).
        scale: factor on the values.
        mean, std: mean and standard deviation of the normalization, in the unit after ``scale``.
        detail: factor by which the resized image is reduced and enlarged again, bilinear with antialias; 1 keeps the image.
        orientation: ``stored`` ignores the EXIF orientation of a file, as Pillow and torchvision do; ``upright`` applies it, as
            viewers and OpenCV do. ``auto`` becomes ``upright`` when a pipeline is profiled whose data have such files.
        bits: number of bits that 16-bit channels use. The upper 8 of them are kept, and larger values become 255: with 8, as
            Pillow converts them; with 12, as scanners that store 12 bits need it.
    """

    tag: ClassVar[str] = "Preprocessing"
    resize: int | None = None
    crop: int | None = None
    interpolation: str = "bilinear"
    antialias: bool = True
    channels: str = "rgb"
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    detail: float = field(default=1.0, metadata={"added": True})
    orientation: str = field(default="auto", metadata={"added": True})
    bits: int = field(default=16, metadata={"added": True})


@dataclass(frozen=True, slots=True, kw_only=True)
class Spectrogram:
    """The transform from a stored spectrogram [1, H, W] to a tensor.

    ``mean`` is subtracted, the result is divided by ``std`` and repeated to ``channels`` channels. Both are in the unit of the
    stored values, for example decibels. Nothing is resized: H and W may have any size that the backbone accepts.
    """

    tag: ClassVar[str] = "Spectrogram"
    channels: int = 3
    mean: float = 0.0
    std: float = 1.0


# The transform of a batch into a network's input. The lab dispatches on its type.
InputTransform: TypeAlias = Preprocessing | Spectrogram
