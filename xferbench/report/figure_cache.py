"""Cache of figures: files named by the content of a figure and by the code that draws it. Reads and writes the cache folder.

A figure without a content key is drawn each time, and a damaged file is replaced.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from functools import cache
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xferbench.core.files import replace_atomically
from xferbench.core.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_BYTES = 64 * 2**20  # bytes of cached figures
DIGESTED_LIBRARIES = ("matplotlib", "numpy", "pandas")


def cached_figure(folder: Path | None, content: Any, draw: Callable[[], str]) -> str:
    """Return a figure, from the cache folder if it is there.

    Without a folder or a content key, the figure is drawn.
    """
    key = None if folder is None else content_key(content)
    file = None if folder is None or key is None else folder / f"{key}.svg"
    drawing = None if file is None else _read_cached(file)
    if drawing is None:
        drawing = draw()
        if file is not None:
            _write_cached(file, drawing)
    return drawing


def content_key(content: Any) -> str | None:
    """Return the key of a figure's content and of the code that draws it; None if either has no key."""
    try:
        return figure_digest((_code_key(), content))
    except (TypeError, OSError, PackageNotFoundError):
        return None


def is_package_function(function: Callable[..., object]) -> bool:
    """Return whether a function belongs to this package, whose code is part of the content key."""
    module = str(getattr(function, "__module__", ""))
    is_plain = getattr(sys.modules.get(module), getattr(function, "__qualname__", ""), None) is function
    return is_plain and module.partition(".")[0] == __name__.partition(".")[0]


def figure_digest(value: Any) -> str:
    """Return a key for a value made of plain values, arrays and dataclasses, exact to the last bit.

    Raises:
        TypeError: for any other value.
    """
    hasher = blake2b(digest_size=20)
    for part in _digest_parts(value):
        hasher.update(len(part).to_bytes(8, "little"))
        hasher.update(part)
    return hasher.hexdigest()


def _digest_parts(value: Any) -> Iterator[bytes | memoryview]:
    if value is None or isinstance(value, str | int | float):
        yield f"{type(value).__name__} {value!r}".encode("utf-8", "surrogatepass")
    elif isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biufSU":
        yield f"array {value.dtype.str} {value.shape}".encode()
        yield np.ascontiguousarray(value).reshape(-1).view(np.uint8).data if value.size else b""
    elif is_dataclass(value) and not isinstance(value, type):
        yield f"{type(value).__qualname__} {len(fields(value))}".encode()
        for field in fields(value):
            yield from _digest_parts(getattr(value, field.name))
    elif isinstance(value, Mapping):
        yield f"mapping {len(value)}".encode()
        for item in value.items():
            yield from _digest_parts(item)
    elif isinstance(value, tuple | list):
        yield f"sequence {len(value)}".encode()
        for item in value:
            yield from _digest_parts(item)
    else:
        raise TypeError(f"no content key for {type(value)}")


@cache
def _code_key() -> str:
    """Return a key for the code of this package and for the libraries that draw."""
    root = Path(__file__).parents[1]
    files = sorted(root.rglob("*.py"))
    if not files:
        raise FileNotFoundError(root)
    sources = [(str(file.relative_to(root)), blake2b(file.read_bytes()).hexdigest()) for file in files]
    return figure_digest((__version__, sys.version, [version(name) for name in DIGESTED_LIBRARIES], sources))


def _read_cached(file: Path) -> str | None:
    try:
        checksum, _, body = file.read_bytes().partition(b"\n")
        if blake2b(body).hexdigest().encode() != checksum:
            return None
        os.utime(file)
        return body.decode()
    except (OSError, UnicodeDecodeError):
        return None


def _write_cached(file: Path, drawing: str) -> None:
    """Write a figure to the cache; if the disk is full, the next report draws it again."""
    body = drawing.encode("utf-8", "replace")
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with replace_atomically(file) as temporary:
            temporary.write_bytes(blake2b(body).hexdigest().encode() + b"\n" + body)


def trim_cache(folder: Path, limit: int = MAX_BYTES) -> None:
    """Delete the least recently used figures until the folder is within its limit, in bytes."""
    files = []
    with suppress(OSError):
        for file in folder.iterdir():
            with suppress(FileNotFoundError):  # another report may be trimming too
                files.append((file.stat().st_mtime, file.stat().st_size, file))
    total = 0
    for _, size, file in sorted(files, reverse=True):
        total += size
        if total > limit:
            with suppress(OSError):
                file.unlink()
