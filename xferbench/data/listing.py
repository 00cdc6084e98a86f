"""List the files and folders of a dataset. Reads folders."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp"})
# What systems add to folders; names that begin with a dot are skipped too.
SYSTEM_NAMES = frozenset({"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "lost+found"})


def is_visible(name: str) -> bool:
    """Return whether a file or folder can be a part of a dataset: it is not hidden, and no system has added it."""
    return not name.startswith(".") and name.casefold() not in SYSTEM_NAMES


def list_folders(folder: Path) -> list[Path]:
    """Return the visible folders in a folder, by name."""
    return sorted((path for path in folder.iterdir() if is_visible(path.name) and path.is_dir()), key=lambda path: path.name)


def list_files(folder: Path) -> Iterator[Path]:
    """Return all files of a folder, in the same order on every system. Links are followed, and hidden files are skipped."""
    return filter(Path.is_file, _list_names(folder))


def list_irregular(folder: Path) -> Iterator[Path]:
    """Return what is neither a file nor a folder: pipes, devices, and links that lead nowhere."""
    return (path for path in _list_names(folder) if not path.is_file())


def _list_names(folder: Path) -> Iterator[Path]:
    paths, visited = [], set()
    for directory, subfolders, file_names in os.walk(folder, followlinks=True):
        visited.add(os.path.realpath(directory))
        subfolders[:] = [
            name for name in subfolders if is_visible(name) and os.path.realpath(Path(directory, name)) not in visited
        ]
        paths += [Path(directory, name) for name in file_names if is_visible(name)]
    return iter(sorted(paths, key=lambda path: path.relative_to(folder).as_posix()))
