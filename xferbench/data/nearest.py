"""Search the nearest embedding in each part of a set. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from xferbench.data.fingerprints import EVEN_COLUMNS

if TYPE_CHECKING:
    from collections.abc import Iterator

PARTS = 32  # parts that a set is divided into
BLOCK_ROWS, BLOCK_COLUMNS = 256, 1024  # rows and columns of a tile: two tiles stay in the cache of a core


def nearest_distances(
    test: np.ndarray, train: np.ndarray, own_index: np.ndarray | None = None, even_columns: int = EVEN_COLUMNS
) -> tuple[np.ndarray, np.ndarray]:
    """Return the distance to the nearest image in each part of a set, in either orientation, and its index: both [n, parts].

    Image i belongs to part i modulo ``parts``. Since a flip changes the sign of the odd half, the larger of the two cosines is
    ``even + |odd|``, which takes two products of half the width. Embeddings are as in
    :class:`~xferbench.data.fingerprints.Fingerprints`.

    Args:
        test: [n, d] embeddings.
        train: [N, d] embeddings of the set.
        own_index: [n] the index of each image itself in the set, which is skipped; -1 for an image outside the set.
        even_columns: the number of columns that a flip does not change.
    """
    parts = min(PARTS, max(1, len(train) // 4)) if len(train) else 0
    highest = np.full((len(test), parts), -2, np.float32)
    index = np.full((len(test), parts), -1, np.int64)
    unit_test = unit_length(test)
    tiles = np.empty((2, BLOCK_ROWS * BLOCK_COLUMNS), np.float32)
    for first in _tile_starts(len(train), parts):
        part, columns = first % parts, unit_length(train[first : first + parts * BLOCK_COLUMNS : parts])
        for row_tile in _tiles(len(test), BLOCK_ROWS * BLOCK_COLUMNS // len(columns)):
            test_rows = unit_test[row_tile]
            even, odd = (tile[: len(test_rows) * len(columns)].reshape(len(test_rows), len(columns)) for tile in tiles)
            np.matmul(test_rows[:, :even_columns], columns[:, :even_columns].T, out=even)
            np.matmul(test_rows[:, even_columns:], columns[:, even_columns:].T, out=odd)
            even += np.abs(odd, out=odd)
            if own_index is not None and own_index[row_tile].max() >= first:
                offset = own_index[row_tile] - first
                is_self = (offset >= 0) & (offset % parts == 0) & (offset < parts * len(columns)) & (own_index[row_tile] >= 0)
                even[is_self, offset[is_self] // parts] = -2
            column = even.argmax(1)
            cosine = even[np.arange(len(test_rows)), column]
            is_better = cosine > highest[row_tile, part]
            highest[row_tile, part] = np.where(is_better, cosine, highest[row_tile, part])
            index[row_tile, part] = np.where(is_better, first + parts * column, index[row_tile, part])
    return np.sqrt(np.clip(2 - 2 * highest, 0, 4)), index


def unit_length(embedding: np.ndarray) -> np.ndarray:
    """Return embeddings in float32 with the unit length that rounding to float16 took from them. Zeros stay zero."""
    unit = embedding.astype(np.float32)
    unit /= np.sqrt(np.maximum(np.einsum("nd,nd->n", unit, unit), 1e-12))[:, None]
    return unit


def _tile_starts(count: int, parts: int) -> Iterator[int]:
    """Return the first index of each tile of each part."""
    return (first for part in range(parts) for first in range(part, count, parts * BLOCK_COLUMNS))


def _tiles(count: int, rows: int) -> Iterator[slice]:
    return (slice(start, min(start + rows, count)) for start in range(0, count, rows))
