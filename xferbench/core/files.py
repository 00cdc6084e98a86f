"""Atomic writes of files, and digests of files. Writes to the paths that the caller gives.

The module belongs to core because the lab's caches, the report and the runner need it.
"""

from __future__ import annotations

import hashlib
import os
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING

from xferbench.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


MAX_INPUT_BYTES = 200_000_000  # of a result file; those of large runs have some ten million


@contextmanager
def replace_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder, which replaces ``path`` at the end, so that no reader sees a partial file.

    After an exception, ``path`` is unchanged and the temporary file is removed.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_file(path: Path, data: bytes, do: str = "") -> None:
    """Write a file atomically; ``do`` is the advice of the error message.

    Raises:
        UserError: if the file cannot be written.
    """
    try:
        with replace_atomically(path) as part, part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # a full disk may report it only now
    except OSError as error:
        raise _unwritable(path, error, do) from error


def read_file(path: Path, limit: int = MAX_INPUT_BYTES) -> bytes:
    """Return the content of a regular file of at most ``limit`` bytes.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is a device, a pipe or a socket, or larger.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):  # a folder gives the usual error below
        raise ValueError("not a regular file")
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"more than {limit} bytes")
    return data


def require_writable(folder: Path, do: str = "") -> None:
    """Create a folder and check that files can be written in it, before a long computation; ``do`` is the advice of the error.

    Raises:
        UserError: if the folder cannot be created or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try_to_write(folder / "writable")
    except OSError as error:
        raise _unwritable(folder, error, do) from error


def try_to_write(path: Path) -> None:
    """Create an empty file in the folder of ``path`` and delete it.

    Raises:
        OSError: if the file cannot be created.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_bytes(b"")
    part.unlink()


def refuse_existing(path: Path, what: str = "", *, force: bool = False, do: str) -> None:
    """Refuse a path that already exists.

    Args:
        path: the path.
        what: the name of the path in the error message.
        force: whether the path may be overwritten.
        do: the advice of the error message.

    Raises:
        UserError: if the path exists, including a broken link.
    """
    if os.path.lexists(path) and not force:
        raise UserError(f"{what or path} already exists", do=do)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, as hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unwritable(path: Path, error: OSError, do: str) -> UserError:
    return UserError(
        f"{path} cannot be written",
        found=error.strerror or str(error),
        expected="a writable folder with free space",
        do=do or "free some space, or choose another folder with --output",
    )
