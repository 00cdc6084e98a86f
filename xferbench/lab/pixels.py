"""What an image file or an array holds, as 8-bit RGB; known without torch."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np

from xferbench.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from PIL import Image

DEEP = frozenset({"I", "I;16", "I;16B", "I;16L", "I;16N"})


def rgb(image: Image.Image | np.ndarray) -> np.ndarray:
    """An image as uint8 H×W×3: of 16 bits the upper 8; transparency dropped; grey repeated; orientation tags ignored.

    Arrays are H×W, H×W×1 or H×W×3 of uint8 or uint16.

    Raises:
        Problem: for a kind of image that there is no rule for.
    """
    if isinstance(image, np.ndarray):
        return _rgb_of_array(image)
    if image.mode in DEEP:
        return _rgb_of_array(np.asarray(image).clip(0, 65535).astype(np.uint16))
    if image.mode == "F":
        do = "convert it first"
        raise Problem("an image of floating-point pixels", found="mode F", expected="8 or 16 bits a channel", do=do)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow would warn on the direct way, to the same end
    return np.asarray(image.convert("RGB"))


def opened(file: Path, made: Callable[[Image.Image], np.ndarray]) -> tuple[np.ndarray | None, str]:
    """What is made of an image file, or None and why it cannot be had: Pillow's plugins raise whatever they stumble over."""
    from PIL import Image

    damaged = (OSError, SyntaxError, ValueError, LookupError, TypeError, EOFError, struct.error, zlib.error)
    try:
        with Image.open(file) as image:
            return made(image), ""
    except (*damaged, Image.DecompressionBombError) as error:
        return None, (str(error).replace(str(file), file.name).splitlines() or [type(error).__name__])[0][:80]
    except Problem as problem:
        return None, f"{problem.what}, {problem.found}"


def _rgb_of_array(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in {1, 3}:
        found = f"{pixels.dtype} {pixels.shape}"
        do = 'for spectrograms set preprocessing = { kind = "spectrogram" } under [backbone]'
        raise Problem("an array that is no image", found=found, expected="uint8 or uint16, H×W, H×W×1 or H×W×3", do=do)
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3))
