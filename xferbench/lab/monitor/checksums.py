"""Cheap evidence that a tensor has moved: some of its values as bits, and a sum over all of its bits. Imports torch.

A version counter is only a hint, so values are compared. The counter rises where nothing changes (``add_(0)``), and some writes
do not raise it: ``.data``, fused optimizers, and BatchNorm's kernels for their running statistics (torch 2.15).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping

SAMPLES_PER_TENSOR = 64  # values at most
INTEGER_DTYPES = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of an element


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSample:
    """Values at fixed positions of some tensors.

    Attributes:
        values: the sampled values of each tensor, views of the vectors in ``joined``.
        joined: one vector for each dtype and device, with the names of the tensors in it.
    """

    values: Mapping[str, Tensor]
    joined: tuple[tuple[tuple[str, ...], Tensor], ...]


def has_values(tensor: Tensor) -> bool:
    """Check whether a tensor has values to read.

    A meta, sparse, nested or empty tensor has none, nor has one without a shape yet, or one that wraps others (sharded,
    quantized).
    """
    is_opaque = isinstance(tensor, torch.nn.parameter.UninitializedTensorMixin) or hasattr(tensor, "__tensor_flatten__")
    return (
        not is_opaque and tensor.layout == torch.strided and not tensor.is_meta and not tensor.is_nested and tensor.numel() > 0
    )


def sample_tensors(tensors: Mapping[str, Tensor]) -> TensorSample:
    """Copy at most ``SAMPLES_PER_TENSOR`` values of each tensor, without waiting for the device.

    The positions depend only on the size of the tensor.
    """
    by_kind: dict[tuple[torch.dtype, torch.device], list[str]] = {}
    for name, tensor in tensors.items():
        by_kind.setdefault((tensor.dtype, tensor.device), []).append(name)
    values: dict[str, Tensor] = {}
    vectors = []
    for names in by_kind.values():
        parts = [_sample_positions(tensors[name].detach()) for name in names]
        vector = torch.cat(parts)
        values.update(zip(names, vector.split([len(part) for part in parts]), strict=True))
        vectors.append((tuple(names), vector))
    return TensorSample(values=values, joined=tuple(vectors))


def _sample_positions(tensor: Tensor) -> Tensor:
    size = tensor.numel()
    stride = max(1, size // SAMPLES_PER_TENSOR)
    stride -= stride > 1 and stride % 2 == 0  # an even stride would sample the same corner of every filter
    return _flatten(tensor)[: min(SAMPLES_PER_TENSOR, size) * stride : stride]


def _flatten(tensor: Tensor) -> Tensor:
    """Return all values in memory order, so that channels-last weights are not copied."""
    is_dense = tensor.is_contiguous() or (tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last))
    return tensor.as_strided((tensor.numel(),), (1,)) if is_dense else tensor.reshape(-1)


def moved_tensors(now: TensorSample, before: Mapping[str, Tensor]) -> set[str]:
    """Return the names of the tensors whose sampled bits differ. Waits for the device once for each dtype.

    Args:
        now: the current sample.
        before: earlier sampled values by name.
    """
    names_moved: set[str] = set()
    for names, vector in now.joined:
        earlier = torch.cat([before[name] for name in names])
        names_moved |= _names_with_flag(names, now, _as_integers(vector) != _as_integers(earlier))
    return names_moved


def non_finite_tensors(now: TensorSample) -> set[str]:
    """Return the names of the tensors with a sampled value that is not finite."""
    names_broken: set[str] = set()
    for names, vector in now.joined:
        if vector.is_floating_point() or vector.is_complex():
            names_broken |= _names_with_flag(names, now, ~vector.isfinite())
    return names_broken


def _names_with_flag(names: tuple[str, ...], now: TensorSample, flags: Tensor) -> set[str]:
    """Return the names of the tensors of one vector with a flag at any of their values."""
    starts = [0, *accumulate(len(now.values[name]) for name in names)][:-1]
    count = starts[-1] + len(now.values[names[-1]])
    value_flags = flags.cpu().numpy().reshape(count, -1).any(1)  # a complex number has two flags
    tensor_flags = np.logical_or.reduceat(value_flags, starts)
    return {name for name, flag in zip(names, tensor_flags, strict=True) if flag}


def _as_integers(tensor: Tensor) -> Tensor:
    """View values as integers, so that NaN equals itself and -0 differs from 0."""
    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return real.view(INTEGER_DTYPES[real.element_size()])


def bit_sums(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Sum the bits of each tensor modulo 2^64. Any single change alters the sum. Waits once for each device."""
    by_device: dict[torch.device, list[str]] = {}
    for name, tensor in tensors.items():
        by_device.setdefault(tensor.device, []).append(name)
    totals: dict[str, int] = {}
    for names in by_device.values():
        integers = (_widen(_as_integers(_flatten(tensors[name].detach()))) for name in names)
        totals.update(zip(names, torch.stack([values.sum(dtype=torch.int64) for values in integers]).tolist(), strict=True))
    return totals


def _widen(bits: Tensor) -> Tensor:
    """View integers as 64-bit integers where the sizes allow it, because torch sums these without a copy."""
    flat = bits.reshape(-1)
    count = 8 // flat.element_size()
    return flat.view(torch.int64) if not (flat.numel() % count or flat.storage_offset() % count) else flat


def gradient_norms(gradients: Mapping[str, Tensor]) -> dict[str, float]:
    """Compute the Euclidean norm of each gradient, in float32 or wider. Waits once for each device."""
    half_dtypes = (torch.float16, torch.bfloat16)
    by_device: dict[torch.device, dict[str, Tensor]] = {}
    for name, tensor in gradients.items():
        norm = torch.linalg.vector_norm(tensor.detach(), dtype=torch.float32 if tensor.dtype in half_dtypes else None)
        by_device.setdefault(tensor.device, {})[name] = norm.double() if tensor.device.type != "mps" else norm
    values: dict[str, float] = {}
    for device_norms in by_device.values():
        values.update(zip(device_norms, torch.stack(list(device_norms.values())).tolist(), strict=True))
    return values


def decay_factor(now: Tensor, before: Tensor) -> float | None:
    """Return the factor below 1 by which all sampled values were multiplied, as weight decay does, or None."""
    if not before.is_floating_point():
        return None
    new, old = now.double(), before.double()
    squared_norm = float(old @ old)
    if not squared_norm:
        return None
    factor = float(new @ old) / squared_norm
    residual = float((new - factor * old).norm()) / squared_norm**0.5
    # The factor must explain the change, up to what rounding adds.
    return factor if 0 < factor < 1 and residual < 0.05 * (1 - factor) + 4 * torch.finfo(before.dtype).eps else None


def relative_distance(now: Mapping[str, Tensor], before: Mapping[str, Tensor], sizes: Mapping[str, int]) -> float:
    """Estimate ‖now − before‖ / ‖before‖ over all tensors from their samples.

    Args:
        now, before: sampled values by name.
        sizes: the number of values of each whole tensor, by name.

    Returns:
        The relative distance, or NaN if all earlier values are 0.
    """
    moved_by = sum(sizes[name] * float((now[name] - before[name]).double().square().mean()) for name in sizes)
    squared_norm = sum(sizes[name] * float(before[name].double().square().mean()) for name in sizes)
    return (moved_by / squared_norm) ** 0.5 if squared_norm else float("nan")
