"""Read from a pickle which classes and functions it names. Nothing is unpickled. Reads files, imports torch."""

from __future__ import annotations

import io
import pickletools
import zipfile
import zlib
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

PICKLE_STARTS = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))
MAX_SCANNED_BYTES = 2**20  # of each pickle; a file that names code does so at the start of its objects
OLD_TORCH_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the number that torch wrote first before it wrote zip archives
OLD_TORCH_PICKLES = 5  # in such a file; the bytes of the tensors follow
PYTHON_2_MODULES = {"__builtin__": "builtins", "__builtins__": "builtins", "copy_reg": "copyreg"}
# The package of a named class → what the file holds, and what to do.
OTHER_LIBRARIES = {
    "sklearn": "it is a model of scikit-learn, and xferbench tests networks of PyTorch",
    "joblib": "it is a file of joblib, and xferbench tests networks of PyTorch",
    "xgboost": "it is a model of XGBoost, and xferbench tests networks of PyTorch",
    "lightgbm": "it is a model of LightGBM, and xferbench tests networks of PyTorch",
    "keras": "it is a network of Keras, and xferbench tests networks of PyTorch",
    "fastai": 'it is an exported learner of fastai; where it was trained, torch.save(learn.model.state_dict(), "weights.pth")',
    "ultralytics": "it is a network of Ultralytics, which needs its package; xferbench tests networks of timm and torchvision",
}
MEMO_WRITES = ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT")
MEMO_READS = ("GET", "BINGET", "LONG_BINGET")


def is_pickle(start: bytes) -> bool:
    """Return whether a file that begins with these bytes is a pickle. One of protocol 0 or 1 is read up to its end."""
    if start.startswith(PICKLE_STARTS):
        return True
    try:
        return len(list(pickletools.genops(start))) > 1
    except Exception:  # noqa: BLE001 - whatever cannot be parsed as a pickle is not one
        return False


def blocked_globals(path: Path) -> list[str]:
    """Return the classes and functions in a file that are not plain data, as ``module.name``; none if it is no pickle."""
    # torch has no public list of what it allows.
    allowed = torch._weights_only_unpickler._get_allowed_globals().keys()  # noqa: SLF001
    return sorted({name for content in _pickles(path) for name in named_globals(content)} - allowed)


def other_library_advice(names: list[str]) -> str:
    """Return what to do with a pickle of another library that names these classes, or "" for one of torch alone."""
    packages = {name.partition(".")[0] for name in names}
    return next((advice for package, advice in OTHER_LIBRARIES.items() if package in packages), "")


def named_globals(content: bytes) -> set[str]:
    """Return all classes and functions that a pickle names, up to the first byte that cannot be parsed.

    An old file of torch consists of several pickles.
    """
    names: set[str] = set()
    stream = io.BytesIO(content)
    for _ in range(OLD_TORCH_PICKLES if content.startswith(OLD_TORCH_START) else 1):
        try:
            _scan(pickletools.genops(stream), names)
        except Exception:  # noqa: BLE001 - the pickle is cut or damaged, or what follows is none
            break
    return names


def _scan(opcodes: Iterable[tuple[pickletools.OpcodeInfo, Any, int | None]], names: set[str]) -> None:
    """Add the classes and functions that the opcodes of a pickle name to a set.

    Since protocol 4, the names are the two strings on the top of the stack, so the strings are followed through the memo.
    """
    strings: list[str | None] = []  # what was put on the stack; None for what is not a string
    memo: dict[object, str | None] = {}
    for opcode, argument, _ in opcodes:
        if opcode.name in {"GLOBAL", "INST"}:
            names.add(_qualified(*str(argument).split(" ", 1)))
        elif opcode.name == "STACK_GLOBAL":
            names.add(_qualified(*([None, None, *strings][-2:])))
        elif opcode.name.startswith("EXT"):
            names.add(f"copyreg.extension {argument}")
        elif opcode.name in MEMO_WRITES:
            memo[len(memo) if argument is None else argument] = strings[-1] if strings else None
        elif opcode.name in MEMO_READS:
            strings.append(memo.get(argument))
        elif opcode.stack_after:
            strings.append(argument if isinstance(argument, str) else None)


def _qualified(module: object, name: object = "?") -> str:
    return f"{PYTHON_2_MODULES.get(str(module), module or '?')}.{name or '?'}"


def _pickles(path: Path) -> Iterator[bytes]:
    """Return the starts of the pickles in a file: itself, or those in its archive."""
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            yield file.read(MAX_SCANNED_BYTES)
        return
    # A damaged or encrypted archive names nothing that can be read.
    errors = zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, OSError, EOFError, ValueError
    with suppress(*errors), zipfile.ZipFile(path) as archive:
        name = next((name for name in archive.namelist() if name.endswith("data.pkl")), None)
        if name is not None:
            with archive.open(name) as member:
                yield member.read(MAX_SCANNED_BYTES)
