"""What all generated datasets share: the check of a request, and random streams that are the same on every machine. Pure."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from xferbench.core.errors import UserError, suggest

if TYPE_CHECKING:
    from collections.abc import Sequence

SPLITS = ("train", "test")


def check_request(kind: str, name: str, names: Sequence[str], split: str, count: int) -> None:
    """Check what is requested from a generator.

    Args:
        kind: The kind of the datasets, for the message.
        name: The requested dataset.
        names: The datasets of the generator.
        split: The requested split.
        count: The requested number of examples.

    Raises:
        UserError: If the name or split is unknown, or the count is negative.
    """
    for noun, value, choices in (("dataset", name, names), ("split", split, SPLITS)):
        if value not in choices:
            raise UserError(f"no such {kind} {noun}", found=value, expected=suggest(value, choices), do="choose a known one")
    if count < 0:
        raise UserError("a negative number of examples", found=str(count), do="ask for 0 or more")


def random_stream(*purpose: str | int) -> np.random.Generator:
    """Return the random stream of a purpose. It depends on nothing else."""
    digest = hashlib.sha256("/".join(map(str, purpose)).encode()).digest()
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(int.from_bytes(digest, "big"))))
