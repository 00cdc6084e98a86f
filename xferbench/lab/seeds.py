"""One block of random streams per seed, one stream per purpose, so that a draw in one never shifts another."""

from __future__ import annotations

import random
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

SUBSET, HEAD, ORDER, INIT, DROPOUT, LABELS, REPLAY, AUGMENT = range(8)
LOW_RANK, ADAPTER, RIVAL, INTERVENTION = 20, 21, 22, 23


def stream(seed: int, purpose: int, *more: int) -> np.random.Generator:
    """The numpy generator of a purpose; ``more`` tells phases apart."""
    return np.random.default_rng(np.random.SeedSequence([seed, purpose, *more]))


def number(seed: int, purpose: int, *more: int) -> int:
    """A 63-bit seed for torch."""
    return int(stream(seed, purpose, *more).integers(2**63 - 1))


@contextmanager
def everywhere(value: int) -> Iterator[None]:
    """Seed the global streams that a user's code may draw from, and put them back afterwards."""
    import torch

    own, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the global stream is meant
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            random.seed(value)
            np.random.seed(value % 2**32)  # noqa: NPY002 - likewise
            torch.manual_seed(value)
            yield
        finally:
            random.setstate(own)
            np.random.set_state(legacy)  # noqa: NPY002 - likewise
