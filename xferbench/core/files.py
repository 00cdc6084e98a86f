"""Atomic writes of files, and digests of files. Writes to the paths that the caller gives.

The module belongs to core because the lab's caches, the report and the runner need it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from xferbench.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

MAX_INPUT_BYTES = 200_000_000  # of a result file; those of large runs have some ten million


@contextmanager
def replace_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder, which replaces ``path`` at the end, so that no reader sees a partial file.

    After an exception, ``path`` is unchanged and the temporary file is removed. The content reaches the disk before the name,
    so that a power failure leaves no empty file either.

    Raises:
        OSError: that names the path, if a file cannot be written.
    """
    part = _part_path(path)
    try:
        with name_path(path):
            yield part
            flush_to_disk(part)
            part.replace(path)
            flush_to_disk(path.parent)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def name_path(path: Path) -> Iterator[None]:
    """Let an ``OSError`` without a path, such as one of a full disk, name this path."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(path)) from error


def write_file(path: Path, data: bytes, do: str = "") -> None:
    """Write a file atomically; ``do`` is the advice of the error message.

    Raises:
        UserError: if the file cannot be written.
    """
    write_files({path: data}, do)


def write_files(content: Mapping[Path, bytes], do: str = "") -> None:
    """Write several files. Each of the existing ones stays until all new ones are on the disk; then they are renamed in order.

    Raises:
        UserError: if a file cannot be written; then nothing has changed, unless a rename failed.
    """
    parts = {path: _part_path(path) for path in content}
    path = next(iter(content))
    try:
        for path, data in content.items():
            with parts[path].open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())  # a full disk may report it only now
        for path, part in parts.items():
            part.replace(path)
        for folder in {path.parent for path in content}:
            flush_to_disk(folder)
    except OSError as error:
        raise _unwritable(path, error, do) from error
    finally:
        for part in parts.values():
            with suppress(OSError):  # a part below a file, for example
                part.unlink(missing_ok=True)


def _part_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}")


def flush_to_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk; some systems cannot do this for a folder."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        if path.is_dir():
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():
            raise
    finally:
        os.close(descriptor)


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
    part = _part_path(path)
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
