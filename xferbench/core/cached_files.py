"""Files of a cache, which may be damaged, and what killed processes leave behind. Reads and deletes files."""

from __future__ import annotations

import os
import re
import shutil
import time
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from xferbench.core.files import flush_to_disk

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

T = TypeVar("T")
LEFTOVER_SECONDS = 3600.0  # younger ones may be of a process on another machine
# names of temporary files and folders with the number of their process, and of the folders of earlier versions
LEFTOVER_NAME = re.compile(r"\..+\.(\d{1,9})|tmp[\w]{8}")


def read_or_discard(path: Path, read: Callable[[Path], T]) -> T | None:
    """Return what ``read`` returns for a cached file or folder; None if it is missing or damaged.

    A damaged one is deleted, so that it is made again. Damage may raise any exception.
    """
    if not os.path.lexists(path):
        return None
    try:
        return read(path)
    except (MemoryError, PermissionError):  # these say nothing about the content
        raise
    except Exception:  # noqa: BLE001 - see above
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        return None


def mark_used(path: Path) -> None:
    """Update the time of a cached file, because those that were used least recently are deleted first."""
    with suppress(OSError):  # a store may lie on a read-only disk
        os.utime(path)


def sweep_leftovers(folder: Path, seconds: float = LEFTOVER_SECONDS) -> None:
    """Delete the temporary files and folders that killed processes left in a cache folder: old ones whose process is gone."""
    newest = time.time() - seconds
    for path in (*folder.glob(".*"), *folder.glob("*/.*"), *folder.glob("*/tmp*")):
        match = LEFTOVER_NAME.fullmatch(path.name)
        with suppress(OSError):
            if match is None or _is_running(int(match[1] or 0)) or path.lstat().st_mtime > newest:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def flush_tree(folder: Path) -> None:
    """Wait until all files below a folder are on the disk, before the folder gets its name."""
    for path in (*folder.rglob("*"), folder):
        flush_to_disk(path)


def _is_running(process: int) -> bool:
    """Return whether a process of this machine has this number."""
    try:
        os.kill(process, 0) if process else None
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return bool(process)
