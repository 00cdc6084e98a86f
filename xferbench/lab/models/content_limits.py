"""Refuse content of a checkpoint that would take unlimited time or memory, or that no network holds. Imports torch.

A small file can describe gigabytes: a view repeats one number, and a dictionary contains itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from xferbench.core.errors import UserError
from xferbench.lab.models.state_dict_names import format_names

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_NESTING = 20  # dictionaries within dictionaries; those of trainers are nested less than ten deep
MAX_MAPPINGS = 100_000  # an optimizer has one for each tensor
MAX_KEY = 2**63
MAX_GROWTH = 8  # float32 needs four times the bytes of 8-bit weights, and two names may share a tensor
FREE_BYTES = 2**26  # small tensors may grow more
READABLE_DTYPES = {
    getattr(torch, name)
    for name in (
        *("float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"),
        *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    )
    if hasattr(torch, name)
}


def plain_mappings(content: object, path: Path) -> object:
    """Return the content of a file with plain dictionaries, without the entries whose key is neither text nor a small integer.

    Raises:
        UserError: if dictionaries are nested without end, or nearly.
    """
    return _plain_mappings(content, path, 0, count())


def _plain_mappings(content: object, path: Path, depth: int, counter: Iterator[int]) -> object:
    if not isinstance(content, Mapping):
        return content
    if depth > MAX_NESTING or next(counter) > MAX_MAPPINGS:
        raise UserError(
            f"{path}: not a checkpoint of a network",
            found=f"dictionaries that contain themselves, or nested more than {MAX_NESTING} deep or {MAX_MAPPINGS} in number",
            expected="a state dict, at the top level or below a few names",
            do="save model.state_dict() alone",
        )
    items = ((key, value) for key, value in content.items() if isinstance(key, str) or _is_small(key))
    return {str(key): _plain_mappings(value, path, depth + 1, counter) for key, value in items}


def _is_small(key: object) -> bool:
    return isinstance(key, int) and abs(key) < MAX_KEY


def require_plain_tensors(state: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors that cannot become dense float32 tensors, and tensors that need far more memory than the file holds.

    Raises:
        UserError: that names the tensors, or the sizes.
    """
    kinds = {name: kind for name, tensor in state.items() if (kind := _unreadable_kind(tensor))}
    if kinds:
        raise UserError(
            f"{path}: tensors of a kind that cannot be loaded",
            found=f"{', '.join(sorted(set(kinds.values())))}: {format_names(list(kinds))}",
            expected="dense, real tensors",
            do="convert them where they were saved; weights of 4 bits need the full ones",
        )
    needed = sum(tensor.numel() * max(4, tensor.element_size()) for tensor in state.values())
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in state.values()}
    stored = sum(storages.values())
    if needed > MAX_GROWTH * stored + FREE_BYTES:
        largest = max(state, key=lambda name: state[name].numel())
        raise UserError(
            f"{path}: tensors that repeat the numbers of the file",
            found=f"{needed} bytes from {stored}; the largest: {format_names([largest])}",
            expected="tensors with numbers of their own",
            do="save copies: {name: tensor.contiguous() for name, tensor in state.items()}",
        )


def _unreadable_kind(tensor: Tensor) -> str:
    """Return the kind of a tensor that cannot become a dense, real one, or ""."""
    kinds = {
        "nested": tensor.is_nested,
        "sparse": tensor.layout != torch.strided,
        "quantized": tensor.is_quantized,
        "complex": tensor.is_complex(),
        "without values (meta)": tensor.is_meta,
        f"{tensor.dtype}".removeprefix("torch."): tensor.dtype not in READABLE_DTYPES,
    }
    return next((kind for kind, applies in kinds.items() if applies), "")
