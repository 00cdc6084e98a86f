"""Read ``.npz`` files whose content is not trusted: plain arrays, whose claimed size is checked before they are read. Pure."""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from math import prod
from typing import IO, TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_BYTES = 500_000_000  # of all arrays of a file, uncompressed
MAX_DIMENSIONS = 4
PLAIN_KINDS = "biufUS"  # booleans, numbers and text; no objects, times, structures or complex numbers
SUFFIX = ".npy"
# zipfile raises RuntimeError and NotImplementedError for members that seem encrypted or of an unknown compression.
READ_ERRORS = (
    *(OSError, EOFError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, SyntaxError, OverflowError),
    *(MemoryError, zipfile.BadZipFile, zlib.error, tokenize.TokenError),
)


def read_arrays(file: IO[bytes]) -> Mapping[str, np.ndarray]:
    """Return the arrays of an ``.npz`` file by name.

    Raises:
        READ_ERRORS: if the file is damaged, an array is not plain or claims another size than it has, or all of them are larger
            than :data:`MAX_BYTES`.
    """
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if sum(member.file_size for member in members) > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES} bytes of arrays")
        return {member.filename.removesuffix(SUFFIX): _read_array(archive, member) for member in members}


def read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return the shape of a stored array, whether it is stored column by column, and its type; the values follow.

    Raises:
        ValueError: if the stream does not begin with an array, or with one of another format.
    """
    version = np.lib.format.read_magic(stream)
    if version not in {(1, 0), (2, 0)}:
        raise ValueError(f"an array of format {version}")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(stream)


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(member) as stream:
        shape, _, dtype = read_header(stream)
        size = prod(shape) * dtype.itemsize
        if dtype.kind not in PLAIN_KINDS or len(shape) > MAX_DIMENSIONS or min(shape, default=0) < 0:
            raise ValueError(f"{member.filename}: an array of {dtype} {shape}")
        if stream.tell() + size != member.file_size:
            raise ValueError(f"{member.filename}: {member.file_size} bytes for an array of {dtype} {shape}")
    with archive.open(member) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)
