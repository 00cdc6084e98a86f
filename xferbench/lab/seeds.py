"""One block of random streams per seed, one stream per purpose, so that a draw in one never shifts another."""

from __future__ import annotations

import numpy as np

SUBSET, HEAD, ORDER, INIT, DROPOUT, LABELS, REPLAY = range(7)


def stream(seed: int, purpose: int, *more: int) -> np.random.Generator:
    """The numpy generator of a purpose; ``more`` tells phases apart."""
    return np.random.default_rng(np.random.SeedSequence([seed, purpose, *more]))


def number(seed: int, purpose: int) -> int:
    """A 63-bit seed for torch."""
    return int(stream(seed, purpose).integers(2**63 - 1))
