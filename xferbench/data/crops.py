"""Find the images that are crops of each other, by their embeddings alone. Pure.

An embedding holds the lowest frequencies of an image, so the embedding of any crop is a linear map of it. Each image of one set
is compared with a grid of crops of each image of the other set, in both directions; the best crop is then refined.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from xferbench.data import fingerprints, nearest

if TYPE_CHECKING:
    from collections.abc import Iterator

# A frequency of a crop with the share s of a side comes from s times this frequency in the whole image. With frequencies below
# COARSE in the whole image, those below s × COARSE of the crop are known.
MIN_SHARE = 0.75  # of a side; smaller crops are not searched
LUMINANCE, COLOR = 6, 3  # frequencies per side that are compared
GRID = ((1.0, 1), (0.95, 2), (0.9, 3), (0.82, 4), (0.75, 5))  # share of a side, positions per side
REFINEMENTS = (-0.03, -0.01, 0.01, 0.03)  # changes of the share, and of the center in both directions

_channel, _down, _across = np.unravel_index(fingerprints.USED, (3, fingerprints.FINE, fingerprints.FINE))
_compared = np.maximum(_down, _across) < np.where(_channel == 0, LUMINANCE, COLOR)
EVEN_COLUMNS = int((_across[_compared] % 2 == 0).sum())


@dataclass(frozen=True, slots=True)
class Window:
    """A square window, in shares of a side: its center and its side."""

    down: float
    across: float
    share: float

    def moved(self, down: float, across: float, share: float) -> Window:
        """Return the window after a change. It stays within the image."""
        side = min(1.0, self.share + share)
        center_down, center_across = (
            float(np.clip(center, side / 2, 1 - side / 2)) for center in (self.down + down, self.across + across)
        )
        return Window(center_down, center_across, side)


def nearest_crops(test: np.ndarray, train: np.ndarray, own_index: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the distance to the nearest image in each part of a set, where either image may be cropped: both [n, parts].

    Arguments and results are those of :func:`~xferbench.data.nearest.nearest_distances`.
    """
    windows = tuple(_grid())
    whole = (crop_embedding(test, windows[0]), crop_embedding(train, windows[0]))
    distance, index = nearest.nearest_distances(whole[0], whole[1], own_index, EVEN_COLUMNS)
    choice = np.zeros(distance.shape, np.int64)  # 2 × the window, plus 1 if the image of the other set is cropped
    for number, window in enumerate(windows[1:], 1):
        for direction, pair in enumerate(((crop_embedding(test, window), whole[1]), (whole[0], crop_embedding(train, window)))):
            cropped_distance, cropped_index = nearest.nearest_distances(*pair, own_index, EVEN_COLUMNS)
            is_better = cropped_distance < distance
            distance = np.where(is_better, cropped_distance, distance)
            index = np.where(is_better, cropped_index, index)
            choice[is_better] = 2 * number + direction
    for code in np.unique(choice):
        row, part = np.nonzero(choice == code)
        pair = (test[row], train[index[row, part]])
        cropped, other = pair[::-1] if code % 2 else pair
        refined = _refine(cropped, crop_embedding(other, windows[0]), windows[code // 2])
        distance[row, part] = np.minimum(distance[row, part], refined)
    return distance, index


def _grid() -> Iterator[Window]:
    """Return the windows of the grid; the first is the whole image."""
    for share, positions in GRID:
        centers = np.linspace(share / 2, 1 - share / 2, positions)
        yield from (Window(float(down), float(across), share) for down in centers for across in centers)


def _refine(cropped: np.ndarray, other: np.ndarray, window: Window) -> np.ndarray:
    """Return the least distance [n] of pairs over the windows around the one of their first image."""
    best = np.full(len(cropped), -1.0, np.float32)
    for share in REFINEMENTS:
        for down in REFINEMENTS:
            for across in REFINEMENTS:
                product = crop_embedding(cropped, window.moved(down, across, share)) * other
                cosine = product[:, :EVEN_COLUMNS].sum(1) + np.abs(product[:, EVEN_COLUMNS:].sum(1))
                best = np.maximum(best, cosine)
    refined: np.ndarray = np.sqrt(np.clip(2 - 2 * best, 0, 4))
    return refined


def crop_embedding(embedding: np.ndarray, window: Window) -> np.ndarray:
    """Return the compared frequencies [n, k] of crops with unit length. They are zero for a plain crop."""
    unit = nearest.unit_length(embedding.astype(np.float32) @ _crop_map(window))
    return np.where(fingerprints.has_structure(unit)[:, None], unit, np.float32(0))


@lru_cache(maxsize=4096)
def _crop_map(window: Window) -> np.ndarray:
    """Return the matrix [d, k] from the embedding of an image to the compared frequencies of a crop."""
    rows, columns = (_axis_map(center - window.share / 2, window.share) for center in (window.down, window.across))
    weight = np.hypot(_down, _across)  # the embedding is whitened by it
    values = rows[_down[:, None], _down] * columns[_across[:, None], _across] * (_channel[:, None] == _channel)
    crop_map: np.ndarray = (values * weight[:, None] / weight)[_compared].T.astype(np.float32)
    return crop_map


def _axis_map(start: float, share: float) -> np.ndarray:
    """Return the matrix [COARSE, COARSE] from the frequencies of a line to those of a part of it."""
    samples = (np.arange(fingerprints.SIDE) + 0.5) / fingerprints.SIDE
    frequency = np.arange(fingerprints.COARSE)[:, None]
    norm = np.sqrt(np.where(frequency, 2, 1) / fingerprints.SIDE)
    part, whole = (norm * np.cos(np.pi * frequency * places) for places in (samples, start + share * samples))
    axis_map: np.ndarray = part @ whole.T
    return axis_map
