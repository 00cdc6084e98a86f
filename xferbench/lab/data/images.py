"""Preprocess images: resize and crop them once, and normalize them in batches. Imports torch."""

from __future__ import annotations

from dataclasses import replace
from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from xferbench.core.errors import UserError, suggest
from xferbench.core.transforms import Preprocessing
from xferbench.data import images
from xferbench.data.raw import TextExample, text_error

if TYPE_CHECKING:
    from xferbench.data.raw import DecodedExample

TORCH_INTERPOLATIONS = ("nearest", "nearest-exact", "bilinear", "bicubic")
INTERPOLATIONS = (*TORCH_INTERPOLATIONS, "box", "hamming", "lanczos")
ORIENTATIONS = ("auto", "stored", "upright")
CHANNEL_ORDERS = ("rgb", "bgr", "grey")


def geometry_key(preprocessing: Preprocessing) -> Preprocessing:
    """Return the geometry of an image preprocessing. Without resizing, interpolation is not a part of it."""
    default, values = Preprocessing(), ("channels", "scale", "mean", "std")
    unused = values if preprocessing.resize is not None else (*values, "interpolation", "antialias")
    return replace(preprocessing, **{name: getattr(default, name) for name in unused})


def store_example(preprocessing: Preprocessing, image: DecodedExample) -> np.ndarray:
    """Return an image as [3, H, W] uint8 RGB: shorter side resized and center square cropped, both as in torchvision.

    With antialias, Pillow resizes; without, pixels of the tensor are sampled. A crop larger than the image is padded with
    black. Arrays are H×W, H×W×1 or H×W×3 of uint8 or uint16.

    Raises:
        UserError: If the kind of image is not supported, or the interpolation is unknown.
    """
    if preprocessing.orientation not in ORIENTATIONS or not 8 <= preprocessing.bits <= 16:
        found = f"orientation {preprocessing.orientation}, bits {preprocessing.bits}"
        raise UserError("preprocessing: decoding", found=found, expected=f"{' or '.join(ORIENTATIONS)}, and 8 to 16 bits")
    if isinstance(image, TextExample):
        raise text_error("images")
    rgb = images.to_rgb(image, upright=preprocessing.orientation == "upright", bits=preprocessing.bits)
    if preprocessing.resize is None and preprocessing.crop is None and preprocessing.detail == 1:
        return np.ascontiguousarray(rgb.transpose(2, 0, 1))
    from PIL import Image as pillow  # noqa: N813 - annotations need the class of this name
    from torchvision.transforms.v2 import functional

    antialias, interpolations = preprocessing.antialias, INTERPOLATIONS if preprocessing.antialias else TORCH_INTERPOLATIONS
    if preprocessing.interpolation not in interpolations:
        message = "unknown interpolation" if antialias else "unknown interpolation without antialias"
        raise UserError(
            message, found=preprocessing.interpolation, expected=suggest(preprocessing.interpolation, interpolations)
        )
    sizes = [size for size in (preprocessing.resize, preprocessing.crop) if size is not None]
    if not 0 < preprocessing.detail <= 1:
        raise UserError("preprocessing: detail", found=f"{preprocessing.detail:g}", expected="a share above 0 and at most 1")
    if sizes and min(sizes) < 1:
        raise UserError("preprocessing: resize and crop are in pixels", found=str(min(sizes)), expected="at least 1")
    picture: Any = pillow.fromarray(rgb) if antialias else torch.from_numpy(rgb.transpose(2, 0, 1).copy())
    if preprocessing.resize is not None:
        mode = _interpolation_mode(preprocessing.interpolation)
        picture = functional.resize(picture, [preprocessing.resize], interpolation=mode, antialias=antialias)
    if preprocessing.detail != 1:
        full_size = functional.get_size(picture)
        reduced_size = [max(1, round(side * preprocessing.detail)) for side in full_size]
        picture = functional.resize(functional.resize(picture, reduced_size, antialias=True), full_size, antialias=True)
    if preprocessing.crop is not None:
        picture = functional.center_crop(picture, [preprocessing.crop, preprocessing.crop])
    return np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1) if antialias else picture.numpy())


def prepare_batch(preprocessing: Preprocessing, batch: Tensor) -> Tensor:
    """Return a batch [B, 3, H, W] of 8-bit pixels as the float32 input of a network.

    Raises:
        UserError: If the channel order, mean or standard deviation cannot be used.
    """
    mean, std = (
        torch.tensor(_check_values(name, getattr(preprocessing, name)), dtype=torch.float32, device=batch.device).view(-1, 1, 1)
        for name in ("mean", "std")
    )
    if preprocessing.channels not in CHANNEL_ORDERS:
        expected = suggest(preprocessing.channels, CHANNEL_ORDERS)
        raise UserError("preprocessing: channels", found=preprocessing.channels, expected=expected)
    values = batch.to(torch.float32)
    if preprocessing.channels == "bgr":
        values = values.flip(-3)
    elif preprocessing.channels == "grey":
        values = values.mean(-3, keepdim=True).expand_as(values)
    return (values * preprocessing.scale - mean) / std


def _check_values(name: str, values: tuple[float, ...]) -> tuple[float, ...]:
    usable = all(isfinite(value) and (name != "std" or value > 0) for value in values)
    if not usable or len(values) not in {1, 3}:
        expected = f"one or three {'numbers above 0' if name == 'std' else 'numbers'}, in the unit that scale gives"
        raise UserError(f"preprocessing: {name}", found=str(list(values)), expected=expected)
    return values


def _interpolation_mode(name: str) -> Any:
    from torchvision.transforms import InterpolationMode

    return InterpolationMode(name)
