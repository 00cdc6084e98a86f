"""Files written whole or not at all, and their digests. Writes where its caller says.

It stands in core because the lab's caches, the report and the runner all need it.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from xferbench.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def replace_atomically(path: Path) -> Iterator[Path]:
    """Give a path beside a file to write to; it takes the file's place at the end, so that no reader finds a part of it.

    After an exception the file is as it was, and nothing is left beside it.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_file(path: Path, data: bytes, do: str = "") -> None:
    """Write a file whole or not at all; ``do`` is advice.

    Raises:
        UserError: where it cannot be written.
    """
    try:
        with replace_atomically(path) as part, part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # a full disk may report it only now
    except OSError as error:
        raise _unwritable(path, error, do) from error


def require_writable(folder: Path, do: str = "") -> None:
    """Make a folder, and a file in it for a moment, before an hour is spent on what could not be kept; ``do`` is advice.

    Raises:
        UserError: where that cannot be done.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try_to_write(folder / "writable")
    except OSError as error:
        raise _unwritable(folder, error, do) from error


def try_to_write(path: Path) -> None:
    """Make an empty file beside a path and delete it.

    Raises:
        OSError: where that cannot be done.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_bytes(b"")
    part.unlink()


def refuse_existing(path: Path, what: str = "", *, force: bool = False, do: str) -> None:
    """Refuse a path where something is already.

    Args:
        what: how the message names the path. force: whether it may be overwritten. do: advice.

    Raises:
        UserError: where something is there, a broken link too.
    """
    if os.path.lexists(path) and not force:
        raise UserError(f"{what or path} is there already", do=do)


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unwritable(path: Path, error: OSError, do: str) -> UserError:
    return UserError(
        f"{path} cannot be written",
        found=error.strerror or str(error),
        expected="a folder with room that can be written to",
        do=do or "free some space, or choose another folder with --output",
    )
