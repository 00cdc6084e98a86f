"""Cheap evidence that a tensor has moved: a few of its values as bits, and a sum over all of its bits.

A version counter is a hint only. It rises where nothing changes (``add_(0)``), and some writers leave it alone: ``.data``, the
fused optimizers, and BatchNorm's kernels for their running statistics (torch 2.15). So values are compared.
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

SAMPLED = 64  # positions of a tensor
WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of an element


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Values at fixed positions of some tensors, those of one type and device in one vector; ``parts`` are views of it."""

    parts: Mapping[str, Tensor]
    whole: tuple[tuple[tuple[str, ...], Tensor], ...]


def readable(tensor: Tensor) -> bool:
    """Whether there are values to look at.

    Not in a meta, sparse, nested or empty tensor, in one that waits for its shape, or that wraps others (sharded, quantised).
    """
    lazy = isinstance(tensor, torch.nn.parameter.UninitializedTensorMixin) or hasattr(tensor, "__tensor_flatten__")
    return not lazy and tensor.layout == torch.strided and not tensor.is_meta and not tensor.is_nested and tensor.numel() > 0


def sample(tensors: Mapping[str, Tensor]) -> Sample:
    """At most 64 values of each, at positions that only its size decides; a few kernels, nothing is waited for."""
    kinds: dict[tuple[torch.dtype, torch.device], list[str]] = {}
    for name, tensor in tensors.items():
        kinds.setdefault((tensor.dtype, tensor.device), []).append(name)
    parts: dict[str, Tensor] = {}
    whole = []
    for names in kinds.values():
        found = [_positions(tensors[name].detach()) for name in names]
        joined = torch.cat(found)
        parts.update(zip(names, joined.split([len(part) for part in found]), strict=True))
        whole.append((tuple(names), joined))
    return Sample(parts=parts, whole=tuple(whole))


def _positions(tensor: Tensor) -> Tensor:
    size = tensor.numel()
    stride = max(1, size // SAMPLED)
    stride -= stride > 1 and stride % 2 == 0  # an even stride would meet the same corner of every filter
    return _flat(tensor)[: min(SAMPLED, size) * stride : stride]


def _flat(tensor: Tensor) -> Tensor:
    """All values in the order of memory, so that channels-last weights are not copied."""
    dense = tensor.is_contiguous() or (tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last))
    return tensor.as_strided((tensor.numel(),), (1,)) if dense else tensor.reshape(-1)


def moved(now: Sample, before: Mapping[str, Tensor]) -> set[str]:
    """Names of the tensors whose sampled values are other bits than before; waits for the device once a type."""
    found: set[str] = set()
    for names, values in now.whole:
        old = torch.cat([before[name] for name in names])
        found |= _any(names, now, _bits(values) != _bits(old))
    return found


def broken(now: Sample) -> set[str]:
    """Names of the tensors with a sampled value that is not finite."""
    found: set[str] = set()
    for names, values in now.whole:
        if values.is_floating_point() or values.is_complex():
            found |= _any(names, now, ~values.isfinite())
    return found


def _any(names: tuple[str, ...], of: Sample, flags: Tensor) -> set[str]:
    """The names of the parts in which a flag is set."""
    starts = [0, *accumulate(len(of.parts[name]) for name in names)][:-1]
    each = flags.cpu().numpy().reshape(starts[-1] + len(of.parts[names[-1]]), -1).any(1)  # a complex number has two
    found = np.logical_or.reduceat(each, starts)
    return {name for name, one in zip(names, found, strict=True) if one}


def _bits(tensor: Tensor) -> Tensor:
    """Values as whole numbers, so that NaN equals itself and -0 is not 0."""
    plain = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return plain.view(WHOLE[plain.element_size()])


def sums(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """The sum of each tensor's bits, modulo 2^64: any single change shows; waits for the device once."""
    devices: dict[torch.device, list[str]] = {}
    for name, tensor in tensors.items():
        devices.setdefault(tensor.device, []).append(name)
    found: dict[str, int] = {}
    for names in devices.values():
        values = torch.stack([_words(_bits(_flat(tensors[name].detach()))).sum(dtype=torch.int64) for name in names])
        found.update(zip(names, values.tolist(), strict=True))
    return found


def _words(bits: Tensor) -> Tensor:
    """In 64-bit words where they fit, since these are summed without a copy."""
    whole = bits.reshape(-1)
    width = 8 // whole.element_size()
    return whole.view(torch.int64) if not (whole.numel() % width or whole.storage_offset() % width) else whole


def norms(gradients: Mapping[str, Tensor]) -> dict[str, float]:
    """The Euclidean norm of each gradient, in single precision at least; waits for the device once each."""
    narrow = (torch.float16, torch.bfloat16)
    devices: dict[torch.device, dict[str, Tensor]] = {}
    for name, tensor in gradients.items():
        norm = torch.linalg.vector_norm(tensor.detach(), dtype=torch.float32 if tensor.dtype in narrow else None)
        devices.setdefault(tensor.device, {})[name] = norm.double() if tensor.device.type != "mps" else norm
    found: dict[str, float] = {}
    for of in devices.values():
        found.update(zip(of, torch.stack(list(of.values())).tolist(), strict=True))
    return found


def shrunk(now: Tensor, before: Tensor) -> float | None:
    """The one factor below 1 by which all sampled values were multiplied, as weight decay does; None where there is none."""
    if not before.is_floating_point():
        return None
    new, old = now.double(), before.double()
    power = float(old @ old)
    if not power:
        return None
    factor = float(new @ old) / power
    left = float((new - factor * old).norm()) / power**0.5
    # The change must be explained by the factor, beyond what rounding adds.
    return factor if 0 < factor < 1 and left < 0.05 * (1 - factor) + 4 * torch.finfo(before.dtype).eps else None


def distance(now: Mapping[str, Tensor], before: Mapping[str, Tensor], sizes: Mapping[str, int]) -> float:
    """How far tensors have gone in all, relative to their length, as their samples tell; NaN where they had none."""
    gone = sum(sizes[name] * float((now[name] - before[name]).double().square().mean()) for name in sizes)
    length = sum(sizes[name] * float(before[name].double().square().mean()) for name in sizes)
    return (gone / length) ** 0.5 if length else float("nan")
