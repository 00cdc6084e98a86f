"""A batch: a tensor whose first axis is the examples, or a mapping of such tensors, such as token ids and their mask.

Imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

Batch: TypeAlias = Tensor | Mapping[str, Tensor]
# The axes of one example, or those of each of its tensors by name. Hashable, because results of networks are cached by shape.
Shape: TypeAlias = tuple[int, ...] | tuple[tuple[str, tuple[int, ...], torch.dtype], ...]


def map_tensors(function: Callable[..., Tensor], *batches: Batch) -> Batch:
    """Apply a function of tensors to batches of the same kind, tensor by tensor."""
    first = batches[0]
    if not isinstance(first, Mapping):
        return function(*batches)
    return {name: function(*(batch[name] for batch in batches)) for name in first}


def copy_batch(batch: Batch) -> Batch:
    """Return a copy of a batch."""
    return map_tensors(torch.clone, batch)


def example_shape(batch: Batch) -> Shape:
    """Return the shape of one example of a batch."""
    if isinstance(batch, Mapping):
        return tuple((name, tuple(tensor.shape[1:]), tensor.dtype) for name, tensor in sorted(batch.items()))
    return tuple(batch.shape[1:])


def zeros(shape: Shape, examples: int, device: torch.device | str) -> Batch:
    """Return a batch of zeros whose examples have the given shape."""
    if shape and isinstance(shape[0], tuple):
        tensor_shapes: Any = shape
        return {name: torch.zeros(examples, *axes, dtype=dtype, device=device) for name, axes, dtype in tensor_shapes}
    return torch.zeros(examples, *shape, device=device)
