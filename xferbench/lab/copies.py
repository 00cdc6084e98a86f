"""Which test images have a copy in another set: found by fingerprints, and told from mere likeness by the data themselves.

Pixel for pixel the same image, or its mirror image, is a copy. Any other is one where its nearest neighbour is closer than
chance allows. Deal a set into parts: the distances d of an image to the nearest in each are, as long as all are different
images that lie as points of dimension m do, of a Weibull law, P(d < x) = 1 − exp(−(x/s)^m), and so is the nearest of all (the
estimates of intrinsic dimension by Levina & Bickel 2004 and Facco et al. 2017 rest on the same). The scale s is that of the
image itself, by its median over the parts. The dimension is that at which the other set's own images, each looked for in the
rest of its set, obey the law at their lower quartile; it is pooled over images that are as densely surrounded. So in a dense or
clustered set, such as digits or sketches, a copy has to be closer than among photographs, and may be too like others to be
told. How many test images are copies moves nothing.

A dimension below LOWEST is that of no pictures: then the other set is full of copies of its own (augmented before it was
split), and the dimension is read from the upper half of the parts, where they do not lie.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from xferbench.lab.prints import EVEN, FLIP, SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xferbench.lab.prints import Prints

VERSION = 1  # raised when the same fingerprints would have other copies
PARTS = 32  # that a set is dealt into
LEAST = 16  # parts of four images each, below which nothing but an exact copy is told
SAMPLE = 192  # images of the other set that are looked for in the rest of it
POOLED = 64  # of them at least from which a dimension is estimated, where there are so many
LOWEST = 2.5  # measured: 3.5 and above in drawings, digits and photographs; 1.6 and below among augmented copies
FALSE = 0.001  # false matches in a whole search that the law expects; the tails of real sets are somewhat heavier
AGREEING = 0.72  # of the bits: measured, 0.52–0.76 agree by chance, and at least 0.77 in 99 % of copies at quality 50
ROWS, COLUMNS = 256, 1024  # of a tile: two of them stay in a core's cache


@dataclass(frozen=True, slots=True, kw_only=True)
class Copies:
    """For each of N test images its likeliest original.

    Attributes:
        index: [N] int64, its place in the other set; -1 where that is empty.
        kind: [N] ``exact``, ``flipped`` (exactly or nearly), ``near``, or "" for an image that is no copy.
        distance: [N] float32 between the embeddings, in 0 … 2.
        chance: [N] that a different image is as near, by the law above; 0 for exact copies.
        plain: [N] bool: too plain for anything but an exact copy to be told; where it is blank, not even that.
    """

    index: np.ndarray
    kind: np.ndarray
    distance: np.ndarray
    chance: np.ndarray
    plain: np.ndarray

    @property
    def found(self) -> np.ndarray:
        """Which images are copies: [N] bool."""
        found: np.ndarray = self.kind != ""
        return found


def search(test: Prints, train: Prints, *, same: bool = False, false: float = FALSE) -> Copies:
    """The copies of each test image in another set, of any order and size.

    An image counts as a copy if it is exactly one, flipped or not; or if ``chance`` < ``false`` / N and at least AGREEING of
    the bits agree, of which the chance knows nothing; or, since the fine bits of a blurred picture are noise, if ``chance`` is
    below ``false``² / N. Where all different images obey the law, fewer than ``false`` of them are expected to be called so.
    Where the other set has fewer than LEAST × 4 images, only exact copies are told.

    Args:
        same: both sets are one, and an image is no copy of itself.
    """
    count = len(test)
    sample = _sample(train)
    rows = np.concatenate([test.embedding, train.embedding[sample]])
    own = np.concatenate([np.arange(count) if same else np.full(count, -1), sample])
    distance, index = nearest(rows, train.embedding, own)
    chance = np.where(test.plain, 1.0, chances(distance[:count], distance[count:]))
    distance, index = distance[:count], index[:count]
    if distance.size:
        at = distance.argmin(1)[:, None]
        closest, best = (np.take_along_axis(held, at, 1)[:, 0] for held in (distance, index))
    else:
        closest, best = np.full(count, 2, np.float32), np.full(count, -1)
    kind = np.full(count, "", "<U7")
    if distance.size:
        flipped = _flipped(test.embedding, train.embedding[best])
        turned = test.bits ^ np.where(flipped[:, None], FLIP, np.uint8(0))
        agreeing = 1 - np.unpackbits(turned ^ train.bits[best], axis=1).mean(1)
        near = chance * count < np.where(agreeing >= AGREEING, false, false**2)
        kind = np.where(near, np.where(flipped, "flipped", "near"), kind)
    for name, digests in (("flipped", train.mirrored), ("exact", train.exact)):
        place = np.where(test.blank, -1, _lookup(test.exact, digests, same=same))
        there = place >= 0
        best, kind = np.where(there, place, best), np.where(there, name, kind)
        chance, closest = np.where(there, 0.0, chance), np.where(there, np.float32(0), closest)
    return Copies(index=best, kind=kind, distance=closest, chance=chance, plain=test.plain)


def nearest(test: np.ndarray, train: np.ndarray, own: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Distance to the nearest image of each part of a set, either way round, and its place in the set: both [n, parts].

    A set is dealt out like cards, whatever its order. Since a flip turns the odd half's sign, the larger of both cosines is
    ``even + |odd|``, for two products of half the width. Embeddings are as in :class:`~xferbench.lab.prints.Prints`.

    Args:
        own: [n] the place of each image itself in the set, which is passed over; -1 where it is none of the set.
    """
    parts = min(PARTS, max(1, len(train) // 4)) if len(train) else 0
    highest = np.full((len(test), parts), -2, np.float32)
    index = np.full((len(test), parts), -1, np.int64)
    held = _unit(test)
    tiles = np.empty((2, ROWS * COLUMNS), np.float32)
    for first in _dealt(len(train), parts):
        part, columns = first % parts, _unit(train[first : first + parts * COLUMNS : parts])
        for at in _tiles(len(test), ROWS * COLUMNS // len(columns)):
            rows = held[at]
            even, odd = (tile[: len(rows) * len(columns)].reshape(len(rows), len(columns)) for tile in tiles)
            np.matmul(rows[:, :EVEN], columns[:, :EVEN].T, out=even)
            np.matmul(rows[:, EVEN:], columns[:, EVEN:].T, out=odd)
            even += np.abs(odd, out=odd)
            if own is not None and own[at].max() >= first:
                place = own[at] - first
                mine = (place >= 0) & (place % parts == 0) & (place < parts * len(columns)) & (own[at] >= 0)
                even[mine, place[mine] // parts] = -2
            where = even.argmax(1)
            value = even[np.arange(len(rows)), where]
            better = value > highest[at, part]
            highest[at, part] = np.where(better, value, highest[at, part])
            index[at, part] = np.where(better, first + parts * where, index[at, part])
    return np.sqrt(np.clip(2 - 2 * highest, 0, 4)), index


def chances(distance: np.ndarray, null: np.ndarray) -> np.ndarray:
    """How probably the nearest of all parts is as near as it is, if it is a different image: [n].

    1 where there are too few parts, or images, to tell.

    Args:
        distance: [n, parts] of the images asked about. null: [k, parts] of such as are known to be no copies, mostly.
    """
    count, parts = distance.shape
    if parts < LEAST or len(null) < LEAST:
        return np.ones(count)
    asked, known = (np.maximum(np.sort(held, 1), 1e-6) for held in (distance, null))
    middle = parts // 2
    pools = np.array_split(known[np.argsort(known[:, middle], kind="stable")], max(1, len(null) // POOLED))
    dimension = np.array([_dimension(pool) for pool in pools])
    dense = np.searchsorted([pool[-1, middle] for pool in pools[:-1]], asked[:, middle])
    ratio = asked[:, 0] / asked[:, middle]
    chance: np.ndarray = -np.expm1(-parts * np.log(2) * ratio ** dimension[dense])
    return chance


def _dimension(ordered: np.ndarray) -> float:
    """That of some images, from their distances [k, parts] in ascending order; less its error, for few images tell little."""
    count, parts = ordered.shape
    scale = ordered[:, parts // 2]
    quartile = np.log(-np.log(0.75) / (parts * np.log(2)))  # of the nearest of all, whose law has the scale parts times
    found = quartile / min(float(np.quantile(np.log(ordered[:, 0] / scale), 0.25)), quartile / SIZE)
    if found < LOWEST:
        spread = float(np.median(np.log(ordered[:, 3 * parts // 4] / scale)))  # a quartile's odds are twice the median's
        found = np.log(2) / max(spread, np.log(2) / SIZE)
    return float(found * (1 - 1 / np.sqrt(count)))


def _sample(train: Prints) -> np.ndarray:
    """Places of some images of a set, the same every time, that are not plain."""
    some = np.random.default_rng(0).permutation(len(train))[: 4 * SAMPLE]
    return np.sort(some[train.embedding[some].any(1)][:SAMPLE])


def group_overlap(train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """The numbers of the groups (patients, scenes) that are in both splits, ascending."""
    return np.intersect1d(train, test)


def _unit(embedding: np.ndarray) -> np.ndarray:
    """In float32, of unit length as it was before it was rounded; zeros stay."""
    held = embedding.astype(np.float32)
    held /= np.sqrt(np.maximum(np.einsum("nd,nd->n", held, held), 1e-12))[:, None]
    return held


def _dealt(count: int, parts: int) -> Iterator[int]:
    """Where each tile of each part begins."""
    return (first for part in range(parts) for first in range(part, count, parts * COLUMNS))


def _tiles(count: int, rows: int) -> Iterator[slice]:
    return (slice(start, min(start + rows, count)) for start in range(0, count, rows))


def _flipped(test: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Which pairs are more alike with one of them flipped."""
    alike: np.ndarray = np.einsum("nd,nd->n", test[:, EVEN:], train[:, EVEN:], dtype=np.float32)
    return alike < 0


def _lookup(wanted: np.ndarray, digests: np.ndarray, *, same: bool) -> np.ndarray:
    """The first place of each digest among others, -1 where it is not there; of the same set, another place than its own."""
    order = np.argsort(digests, kind="stable")
    ordered, own = digests[order], np.arange(len(wanted))
    first = np.searchsorted(ordered, wanted)
    found = np.full(len(wanted), -1)
    for at in (first + 1, first) if same else (first,):
        there = at < len(ordered)
        there[there] = ordered[at[there]] == wanted[there]
        place = np.full(len(wanted), -1)
        place[there] = order[at[there]]
        found = np.where(there & ~(same & (place == own)), place, found)
    return found
