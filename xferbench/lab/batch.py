"""A batch: a tensor whose first axis is the examples, or a mapping of such (token ids and their mask, say)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

Batch: TypeAlias = Tensor | Mapping[str, Tensor]
# Of one example: its axes; or those of each tensor, by name. Hashable, so that what is known of a network can be kept by it.
Shape: TypeAlias = tuple[int, ...] | tuple[tuple[str, tuple[int, ...], torch.dtype], ...]


def mapped(function: Callable[..., Tensor], *batches: Batch) -> Batch:
    """A function of tensors on batches of one kind, tensor by tensor."""
    first = batches[0]
    if not isinstance(first, Mapping):
        return function(*batches)
    return {name: function(*(batch[name] for batch in batches)) for name in first}


def copied(batch: Batch) -> Batch:
    """The same in memory of its own."""
    return mapped(torch.clone, batch)


def shape(batch: Batch) -> Shape:
    """What one example of a batch looks like."""
    if isinstance(batch, Mapping):
        return tuple((name, tuple(tensor.shape[1:]), tensor.dtype) for name, tensor in sorted(batch.items()))
    return tuple(batch.shape[1:])


def blank(shape: Shape, examples: int, device: torch.device | str) -> Batch:
    """A batch of zeros of a shape."""
    if shape and isinstance(shape[0], tuple):
        named: Any = shape
        return {name: torch.zeros(examples, *axes, dtype=kind, device=device) for name, axes, kind in named}
    return torch.zeros(examples, *shape, device=device)
