"""Decode image files and arrays to 8-bit RGB. Reads files, without torch."""

from __future__ import annotations

import io
import os
import stat
import struct
import warnings
import zlib
from typing import TYPE_CHECKING

import numpy as np

from xferbench.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import BinaryIO

    from PIL import Image

ORIENTATION_TAG, UPRIGHT = 0x0112, 1  # of EXIF
DAMAGED_FILE_ERRORS = (OSError, SyntaxError, ValueError, LookupError, TypeError, EOFError, struct.error, zlib.error)
# Formats whose decoders are a part of Pillow; EPS would start Ghostscript, for example.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MAX_PIXELS = 50_000_000  # of an image; with its copies in other modes, a larger one needs a gigabyte
SIXTEEN_BIT_MODES = frozenset({"I", "I;16", "I;16B", "I;16L", "I;16N"})


def to_rgb(image: Image.Image | np.ndarray, *, upright: bool = False, bits: int = 16) -> np.ndarray:
    """Return an image as uint8 H×W×3.

    The function drops transparency and repeats gray. Arrays are H×W, H×W×1 or H×W×3 of uint8 or uint16.

    Args:
        image: the image.
        upright: whether the EXIF orientation of a file is applied.
        bits: the number of bits that 16-bit channels use; the upper 8 of them are kept, and larger values become 255.

    Raises:
        UserError: If the kind of image is not supported.
    """
    if isinstance(image, np.ndarray):
        return _array_to_rgb(image, bits)
    if upright and is_rotated(image):
        from PIL import ImageOps

        image = ImageOps.exif_transpose(image)
    if image.mode in SIXTEEN_BIT_MODES:
        return _array_to_rgb(np.asarray(image).clip(0, 65535).astype(np.uint16), bits)
    if image.mode == "F":
        do = "convert it to 8 or 16 bits first"
        raise UserError("an image of floating-point pixels", found="mode F", expected="8 or 16 bits per channel", do=do)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the direct conversion gives the same pixels with a warning
    return np.asarray(image.convert("RGB"))


def is_rotated(image: Image.Image | np.ndarray) -> bool:
    """Return whether a file has an EXIF orientation other than upright. Damaged metadata have none."""
    if isinstance(image, np.ndarray):
        return False
    try:
        with warnings.catch_warnings(action="ignore"):  # Pillow warns of damaged metadata
            return image.getexif().get(ORIENTATION_TAG, UPRIGHT) in range(UPRIGHT + 1, 9)
    except DAMAGED_FILE_ERRORS:
        return False


def is_sixteen_bit(image: Image.Image | np.ndarray) -> bool:
    """Return whether an image has 16 bits per channel."""
    return image.dtype == np.uint16 if isinstance(image, np.ndarray) else image.mode in SIXTEEN_BIT_MODES


def highest_value(image: Image.Image | np.ndarray) -> int:
    """Return the highest value of a 16-bit image, and 0 for other images."""
    return int(np.asarray(image).max(initial=0)) if is_sixteen_bit(image) else 0


def open_image(file: Path | bytes, decode: Callable[[Image.Image], np.ndarray]) -> tuple[np.ndarray | None, str]:
    """Return an image file, or the bytes of one, as ``decode`` returns it, or None and the reason why it cannot be decoded.

    Only regular files of the accepted formats are read.
    """
    try:
        with _open(file) as stream, _load(stream) as image:
            return decode(image), ""
    except DAMAGED_FILE_ERRORS as error:
        reason = _first_line(error)
        return None, (reason if isinstance(file, bytes) else reason.replace(str(file), file.name))[:80]
    except UserError as problem:
        return None, f"{problem.what}, {problem.found}"


def _open(file: Path | bytes) -> BinaryIO:
    return io.BytesIO(file) if isinstance(file, bytes) else open_regular(file)


def open_regular(file: Path) -> BinaryIO:
    """Open a file for reading. Opening a pipe or a device could wait forever, or never end.

    Raises:
        UserError: If it is not a regular file.
    """
    descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError("not a regular file", found="a device, a pipe or a folder", expected="an image file")
    return os.fdopen(descriptor, "rb")


def _load(stream: BinaryIO) -> Image.Image:
    """Decode the pixels of an image.

    Raises:
        UserError: If it is too large, or cannot be decoded. Plugins of Pillow raise errors of any type on damaged files.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings(action="ignore"):  # of damaged metadata, and of many pixels
            image = Image.open(stream, formats=FORMATS)
            if image.width * image.height <= MAX_PIXELS:
                image.load()
                return image
    except Image.UnidentifiedImageError as error:
        raise UserError("cannot identify image file", found=f"none of {', '.join(FORMATS)}") from error
    except Exception as error:
        raise UserError("cannot be decoded", found=_first_line(error)[:80]) from error
    found = f"{image.width} × {image.height} pixels, above the limit of {MAX_PIXELS // 10**6} million"
    raise UserError("too many pixels", found=found, expected="a smaller image", do="resize it")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _array_to_rgb(pixels: np.ndarray, bits: int) -> np.ndarray:
    if pixels.dtype == np.uint16:
        pixels = (pixels >> (bits - 8)).clip(0, 255).astype(np.uint8)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in {1, 3}:
        found = f"{pixels.dtype} {pixels.shape}"
        do = 'for spectrograms set preprocessing = { kind = "spectrogram" } under [backbone]'
        raise UserError("an array that is not an image", found=found, expected="uint8 or uint16, H×W, H×W×1 or H×W×3", do=do)
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3))
