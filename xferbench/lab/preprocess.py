"""From a decoded image to a tensor, in two steps: the geometry, done once and stored as 8-bit pixels, and the values."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from xferbench.design import Preprocessing
from xferbench.problem import Problem, nearest

if TYPE_CHECKING:
    from PIL import Image

SAMPLED = ("nearest", "nearest-exact", "bilinear", "bicubic")
INTERPOLATIONS = (*SAMPLED, "box", "hamming", "lanczos")
CHANNELS = ("rgb", "bgr", "grey")
DEEP = frozenset({"I", "I;16", "I;16B", "I;16L", "I;16N"})


def geometry_key(preprocessing: Preprocessing) -> Preprocessing:
    """The part of a preprocessing that stored pixels depend on; where nothing is resized, interpolation is no part of it."""
    if preprocessing.resize is None:
        return Preprocessing(crop=preprocessing.crop)
    return Preprocessing(
        resize=preprocessing.resize,
        crop=preprocessing.crop,
        interpolation=preprocessing.interpolation,
        antialias=preprocessing.antialias,
    )


def geometry(image: Image.Image | np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """An image as [3, H, W] uint8, in RGB: shorter side resized, centre square cut, as torchvision does both.

    Resizing with antialias is Pillow's; without it, pixels are sampled from the tensor. A crop larger than the image is filled
    up with black. Arrays are H×W, H×W×1 or H×W×3 of uint8 or uint16.

    Raises:
        Problem: for a kind of image that there is no rule for, or an interpolation that is not known.
    """
    rgb = _rgb_of_array(image) if isinstance(image, np.ndarray) else _rgb_of_image(image)
    if preprocessing.resize is None and preprocessing.crop is None:
        return np.ascontiguousarray(rgb.transpose(2, 0, 1))
    from PIL import Image as pillow  # noqa: N813 - the module, beside the class of the annotations
    from torchvision.transforms.v2 import functional

    smooth, known = preprocessing.antialias, INTERPOLATIONS if preprocessing.antialias else SAMPLED
    if preprocessing.interpolation not in known:
        what = "unknown interpolation" if smooth else "unknown interpolation without antialias"
        raise Problem(what, found=preprocessing.interpolation, expected=nearest(preprocessing.interpolation, known))
    sizes = [size for size in (preprocessing.resize, preprocessing.crop) if size is not None]
    if min(sizes) < 1:
        raise Problem("preprocessing: resize and crop are in pixels", found=str(min(sizes)), expected="at least 1")
    picture: Any = pillow.fromarray(rgb) if smooth else torch.from_numpy(rgb.transpose(2, 0, 1).copy())
    if preprocessing.resize is not None:
        mode = _interpolation(preprocessing.interpolation)
        picture = functional.resize(picture, [preprocessing.resize], interpolation=mode, antialias=smooth)
    if preprocessing.crop is not None:
        picture = functional.center_crop(picture, [preprocessing.crop, preprocessing.crop])
    pixels = np.asarray(picture).transpose(2, 0, 1) if smooth else picture.numpy()
    return np.ascontiguousarray(pixels)


def tensor(batch: Tensor, preprocessing: Preprocessing) -> Tensor:
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


def _checked(name: str, values: tuple[float, ...]) -> tuple[float, ...]:
    usable = all(isfinite(value) and (name != "std" or value > 0) for value in values)
    if not usable or len(values) not in {1, 3}:
        expected = f"one or three {'numbers above 0' if name == 'std' else 'numbers'}, in the unit that scale gives"
        raise Problem(f"preprocessing: {name}", found=str(list(values)), expected=expected)
    return values


def _interpolation(name: str) -> Any:
    from torchvision.transforms import InterpolationMode

    return InterpolationMode(name)


def _rgb_of_image(image: Image.Image) -> np.ndarray:
    """H×W×3: of 16 bits the upper 8; transparency dropped without a background; grey repeated; orientation tags ignored."""
    if image.mode in DEEP:
        return _rgb_of_array(np.asarray(image).clip(0, 65535).astype(np.uint16))
    if image.mode == "F":
        do = "convert it first"
        raise Problem("an image of floating-point pixels", found="mode F", expected="8 or 16 bits a channel", do=do)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow would warn on the direct way, to the same end
    return np.asarray(image.convert("RGB"))


def _rgb_of_array(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in {1, 3}:
        found = f"{pixels.dtype} {pixels.shape}"
        raise Problem("an array that is no image", found=found, expected="uint8 or uint16, H×W, H×W×1 or H×W×3")
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3))
