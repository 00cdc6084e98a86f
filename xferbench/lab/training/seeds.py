"""Random streams: one block per seed and one stream per purpose, so that a draw from one never shifts another. Pure."""

from __future__ import annotations

import random
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

SUBSET, HEAD, ORDER, INIT, DROPOUT, LABELS, REPLAY, AUGMENT = range(8)
LOW_RANK, ADAPTER, DISCRIMINATOR, INTERVENTION, PERMUTED_LABELS, VIRTUAL_TOKENS = range(20, 26)


def numpy_stream(seed: int, purpose: int, *more: int) -> np.random.Generator:
    """Return the numpy generator of a purpose. ``more`` distinguishes phases."""
    return np.random.default_rng(np.random.SeedSequence([seed, purpose, *more]))


def torch_seed(seed: int, purpose: int, *more: int) -> int:
    """Return a 63-bit seed for torch."""
    return int(numpy_stream(seed, purpose, *more).integers(2**63 - 1))


@contextmanager
def seed_global_streams(value: int) -> Iterator[None]:
    """Seed the global streams that user code may draw from, and restore them afterwards."""
    import torch

    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002 - user code may use the global stream
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            random.seed(value)
            np.random.seed(value % 2**32)  # noqa: NPY002 - the global stream
            torch.manual_seed(value)
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002 - the global stream
