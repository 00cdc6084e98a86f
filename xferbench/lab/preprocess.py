"""From what a dataset holds to what a network is given, in two steps: the geometry, done once and stored, and the values.

Three functions know the kind of a preprocessing, by its type; a further modality is one more value in
:mod:`xferbench.design` and three more functions here.
"""

from __future__ import annotations

from functools import singledispatch
from math import inf, isfinite
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from xferbench.design import Preprocessing, Ready, Spectrogram
from xferbench.lab import pixels
from xferbench.problem import Problem, nearest

if TYPE_CHECKING:
    from PIL import Image

    from xferbench.lab.batch import Batch

SAMPLED = ("nearest", "nearest-exact", "bilinear", "bicubic")
INTERPOLATIONS = (*SAMPLED, "box", "hamming", "lanczos")
CHANNELS = ("rgb", "bgr", "grey")


@singledispatch
def geometry_key(preprocessing: Ready) -> Ready:
    """The part of a preprocessing that stored examples depend on.

    Raises:
        TypeError: for a kind that is not known.
    """
    raise TypeError(type(preprocessing).__name__)


@singledispatch
def stored(preprocessing: Ready, example: Image.Image | np.ndarray) -> np.ndarray:
    """An example as it is kept, in the geometry of a preprocessing.

    Raises:
        Problem: for an example that there is no rule for.
        TypeError: for a kind of preprocessing that is not known.
    """
    del example
    raise TypeError(type(preprocessing).__name__)


@singledispatch
def made(preprocessing: Ready, batch: Tensor) -> Batch:
    """A batch of kept examples as a network is given it: a float32 tensor, or of another modality a mapping of tensors.

    Raises:
        Problem: for a preprocessing that cannot be used.
        TypeError: for a kind of preprocessing that is not known.
    """
    del batch
    raise TypeError(type(preprocessing).__name__)


def geometry(example: Image.Image | np.ndarray, preprocessing: Ready) -> np.ndarray:
    """:func:`stored`, the example first."""
    return stored(preprocessing, example)


def tensor(batch: Tensor, preprocessing: Ready) -> Batch:
    """:func:`made`, the batch first."""
    return made(preprocessing, batch)


@geometry_key.register(Preprocessing)
def _image_key(preprocessing: Preprocessing) -> Preprocessing:
    """Where nothing is resized, interpolation is no part of it."""
    if preprocessing.resize is None:
        return Preprocessing(crop=preprocessing.crop, detail=preprocessing.detail)
    return Preprocessing(
        resize=preprocessing.resize,
        crop=preprocessing.crop,
        interpolation=preprocessing.interpolation,
        antialias=preprocessing.antialias,
        detail=preprocessing.detail,
    )


@stored.register(Preprocessing)
def _image_stored(preprocessing: Preprocessing, image: Image.Image | np.ndarray) -> np.ndarray:
    """An image as [3, H, W] uint8, in RGB: shorter side resized, centre square cut, as torchvision does both.

    Resizing with antialias is Pillow's; without it, pixels are sampled from the tensor. A crop larger than the image is filled
    up with black. Arrays are H×W, H×W×1 or H×W×3 of uint8 or uint16.

    Raises:
        Problem: for a kind of image that there is no rule for, or an interpolation that is not known.
    """
    rgb = pixels.rgb(image)
    if preprocessing.resize is None and preprocessing.crop is None and preprocessing.detail == 1:
        return np.ascontiguousarray(rgb.transpose(2, 0, 1))
    from PIL import Image as pillow  # noqa: N813 - the module, beside the class of the annotations
    from torchvision.transforms.v2 import functional

    smooth, known = preprocessing.antialias, INTERPOLATIONS if preprocessing.antialias else SAMPLED
    if preprocessing.interpolation not in known:
        what = "unknown interpolation" if smooth else "unknown interpolation without antialias"
        raise Problem(what, found=preprocessing.interpolation, expected=nearest(preprocessing.interpolation, known))
    sizes = [size for size in (preprocessing.resize, preprocessing.crop) if size is not None]
    if not 0 < preprocessing.detail <= 1:
        raise Problem("preprocessing: detail", found=f"{preprocessing.detail:g}", expected="a share above 0, at most 1")
    if sizes and min(sizes) < 1:
        raise Problem("preprocessing: resize and crop are in pixels", found=str(min(sizes)), expected="at least 1")
    picture: Any = pillow.fromarray(rgb) if smooth else torch.from_numpy(rgb.transpose(2, 0, 1).copy())
    if preprocessing.resize is not None:
        mode = _interpolation(preprocessing.interpolation)
        picture = functional.resize(picture, [preprocessing.resize], interpolation=mode, antialias=smooth)
    if preprocessing.detail != 1:
        whole = functional.get_size(picture)
        coarse = [max(1, round(side * preprocessing.detail)) for side in whole]
        picture = functional.resize(functional.resize(picture, coarse, antialias=True), whole, antialias=True)
    if preprocessing.crop is not None:
        picture = functional.center_crop(picture, [preprocessing.crop, preprocessing.crop])
    return np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1) if smooth else picture.numpy())


@made.register(Preprocessing)
def _image_made(preprocessing: Preprocessing, batch: Tensor) -> Tensor:
    """A batch [B, 3, H, W] of 8-bit pixels as the float32 values that a network is given.

    Raises:
        Problem: for an order of channels, a mean or a standard deviation that cannot be used.
    """
    mean, std = (
        torch.tensor(_checked(name, getattr(preprocessing, name)), dtype=torch.float32, device=batch.device).view(-1, 1, 1)
        for name in ("mean", "std")
    )
    if preprocessing.channels not in CHANNELS:
        expected = nearest(preprocessing.channels, CHANNELS)
        raise Problem("preprocessing: channels", found=preprocessing.channels, expected=expected)
    values = batch.to(torch.float32)
    if preprocessing.channels == "bgr":
        values = values.flip(-3)
    elif preprocessing.channels == "grey":
        values = values.mean(-3, keepdim=True).expand_as(values)
    return (values * preprocessing.scale - mean) / std


@geometry_key.register(Spectrogram)
def _spectrogram_key(preprocessing: Spectrogram) -> Spectrogram:
    """Nothing of it."""
    del preprocessing
    return Spectrogram()


@stored.register(Spectrogram)
def _spectrogram_stored(preprocessing: Spectrogram, image: Image.Image | np.ndarray) -> np.ndarray:
    """A spectrogram as [1, H, W]: 8 bits as they are, anything else as float32.

    Raises:
        Problem: for an array or image of more than one channel, or with values that are no finite numbers.
    """
    del preprocessing
    values = np.asarray(image if isinstance(image, np.ndarray) or image.mode != "P" else image.convert("RGB"))
    values = values[:, :, 0] if values.ndim == 3 and values.shape[2] == 1 else values
    if values.ndim != 2 or values.dtype.kind not in "uif":
        found = f"{values.dtype} {values.shape}"
        raise Problem("an array that is no spectrogram", found=found, expected="numbers H×W or H×W×1, or a grey image")
    kept = np.ascontiguousarray(values if values.dtype == np.uint8 else values.astype(np.float32))
    if not np.isfinite(kept).all():
        raise Problem("a spectrogram of values that are no numbers", found="NaN, infinity or a value above 3e38")
    return kept[None]


@made.register(Spectrogram)
def _spectrogram_made(preprocessing: Spectrogram, batch: Tensor) -> Tensor:
    """A batch [B, 1, H, W] as [B, channels, H, W].

    Raises:
        Problem: for a number of channels, a mean or a standard deviation that cannot be used.
    """
    if preprocessing.channels < 1 or not (isfinite(preprocessing.mean) and 0 < preprocessing.std < inf):
        expected = "one channel or more, a mean, and a standard deviation above 0"
        raise Problem("preprocessing: spectrogram", found=str(preprocessing), expected=expected)
    values = (batch.to(torch.float32) - preprocessing.mean) / preprocessing.std
    return values.expand(*values.shape[:-3], preprocessing.channels, *values.shape[-2:])


def _checked(name: str, values: tuple[float, ...]) -> tuple[float, ...]:
    usable = all(isfinite(value) and (name != "std" or value > 0) for value in values)
    if not usable or len(values) not in {1, 3}:
        expected = f"one or three {'numbers above 0' if name == 'std' else 'numbers'}, in the unit that scale gives"
        raise Problem(f"preprocessing: {name}", found=str(list(values)), expected=expected)
    return values


def _interpolation(name: str) -> Any:
    from torchvision.transforms import InterpolationMode

    return InterpolationMode(name)
