"""Figures that were drawn before, kept as files under the content of what is drawn and of the code that draws it.

What cannot be named by its content is drawn each time. A file that is not whole is drawn again.
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

from xferbench import __version__
from xferbench.core import files

if TYPE_CHECKING:
    from collections.abc import Iterator

LIMIT = 64 * 2**20  # bytes of kept figures
LIBRARIES = ("matplotlib", "numpy", "pandas")


def kept(folder: Path | None, of: Any, draw: Callable[[], str]) -> str:
    """The drawing of something, from the folder if it holds it. Without a folder, or a name for the content, it is drawn."""
    name = None if folder is None else named(of)
    file = None if folder is None or name is None else folder / f"{name}.svg"
    found = None if file is None else _read(file)
    if found is None:
        found = draw()
        if file is not None:
            _write(file, found)
    return found


def named(of: Any) -> str | None:
    """A name for what is drawn and the code that draws it; None where either has none."""
    try:
        return digest((_code(), of))
    except (TypeError, OSError, PackageNotFoundError):
        return None


def own(function: Callable[..., object]) -> bool:
    """Whether a function is one of this package's modules, whose code is part of the content's name."""
    module = str(getattr(function, "__module__", ""))
    plain = getattr(sys.modules.get(module), getattr(function, "__qualname__", ""), None) is function
    return plain and module.partition(".")[0] == __name__.partition(".")[0]


def digest(value: Any) -> str:
    """A name for a value made of plain values, arrays and dataclasses, exact to the last bit.

    Raises:
        TypeError: for anything else.
    """
    found = blake2b(digest_size=20)
    for part in _parts(value):
        found.update(len(part).to_bytes(8, "little"))
        found.update(part)
    return found.hexdigest()


def _parts(value: Any) -> Iterator[bytes | memoryview]:
    if value is None or isinstance(value, str | int | float):
        yield f"{type(value).__name__} {value!r}".encode("utf-8", "surrogatepass")
    elif isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biufSU":
        yield f"array {value.dtype.str} {value.shape}".encode()
        yield np.ascontiguousarray(value).reshape(-1).view(np.uint8).data if value.size else b""
    elif is_dataclass(value) and not isinstance(value, type):
        yield f"{type(value).__qualname__} {len(fields(value))}".encode()
        for one in fields(value):
            yield from _parts(getattr(value, one.name))
    elif isinstance(value, Mapping):
        yield f"mapping {len(value)}".encode()
        for item in value.items():
            yield from _parts(item)
    elif isinstance(value, tuple | list):
        yield f"sequence {len(value)}".encode()
        for one in value:
            yield from _parts(one)
    else:
        raise TypeError(f"no name for the content of {type(value)}")


@cache
def _code() -> str:
    """A name for all code of this package and for the libraries that draw."""
    root = Path(__file__).parents[1]
    files = sorted(root.rglob("*.py"))
    if not files:
        raise FileNotFoundError(root)
    sources = [(str(file.relative_to(root)), blake2b(file.read_bytes()).hexdigest()) for file in files]
    return digest((__version__, sys.version, [version(name) for name in LIBRARIES], sources))


def _read(file: Path) -> str | None:
    try:
        sum_, _, body = file.read_bytes().partition(b"\n")
        if blake2b(body).hexdigest().encode() != sum_:
            return None
        os.utime(file)
        return body.decode()
    except (OSError, UnicodeDecodeError):
        return None


def _write(file: Path, drawing: str) -> None:
    """Keep a drawing; a disk that is full costs the next report a moment, nothing else."""
    body = drawing.encode("utf-8", "replace")
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with files.replace_atomically(file) as part:
            part.write_bytes(blake2b(body).hexdigest().encode() + b"\n" + body)


def trim(folder: Path, limit: int = LIMIT) -> None:
    """Delete the least recently used figures until the folder is within its limit, in bytes."""
    used = []
    with suppress(OSError):
        for file in folder.iterdir():
            with suppress(FileNotFoundError):  # another report may be trimming too
                used.append((file.stat().st_mtime, file.stat().st_size, file))
    held = 0
    for _, size, file in sorted(used, reverse=True):
        held += size
        if held > limit:
            with suppress(OSError):
                file.unlink()
