"""Find the test images that are duplicates of images in another set, by their fingerprints. Pure.

Identical pixels, flipped or not, are a duplicate. Any other image is one if its nearest neighbor, or its nearest crop, is
closer than chance allows. The comment below explains how the data determine that distance.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from xferbench.data.crops import nearest_crops
from xferbench.data.fingerprints import EMBEDDING_SIZE, EVEN_COLUMNS, FLIP
from xferbench.data.nearest import nearest_distances

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from xferbench.data.fingerprints import Fingerprints

# How chance is estimated. Divide a set into parts, and let d be the distances of an image to the nearest image in each part.
# If all images are different and lie like points of dimension m, d follows a Weibull law, P(d < x) = 1 − exp(−(x/s)^m), and
# so does the smallest of all distances; the estimates of intrinsic dimension by Levina & Bickel 2004 and Facco et al. 2017
# rest on the same law. The scale s belongs to the image: it comes from the median over the parts. The dimension m belongs to
# the other set: its own images are searched in the rest of the set, and m is the dimension at which their lower quartile
# obeys the law. It is pooled over images with equally dense neighborhoods. In a dense or clustered set, such as digits or
# sketches, a duplicate must therefore be closer than among photographs, and may be too similar to others to be recognized.
# The estimate does not depend on how many test images are duplicates.
#
# Pictures have a dimension of at least the limit below. A set with a lower one is full of its own duplicates (it was augmented
# before it was split). The dimension is then estimated from the upper half of the parts, which the duplicates do not reach.
VERSION = 2  # raise it when the same fingerprints give other duplicates
MIN_PARTS = 16  # parts of four images each; with fewer, only exact duplicates are found
NULL_SAMPLE_SIZE = 192  # images of the other set that are searched in the rest of it
MIN_POOL_SIZE = 64  # images per estimate of a dimension, at least, if there are so many
MIN_DIMENSION = 2.5  # measured: at least 3.5 for drawings, digits and photographs; at most 1.6 for augmented copies
EXPECTED_FALSE_MATCHES = 0.001  # in a whole search under the law; the tails of real sets are somewhat heavier
MIN_AGREEING_BITS = 0.72  # share; measured: 0.52–0.76 agree by chance, at least 0.77 in 99 % of JPEG copies at quality 50


@dataclass(frozen=True, slots=True, kw_only=True)
class DuplicateMatches:
    """The most likely original of each of N test images.

    Attributes:
        index: [N] int64, the index in the other set; -1 if that set is empty.
        kind: [N] ``exact``, ``flipped`` (exactly or nearly), ``near``, ``cropped``, or "" for an image without a duplicate.
        distance: [N] float32, between the embeddings, from 0 to 2.
        chance: [N], the probability that a different image is as near, under the law above; 0 for exact duplicates.
        plain: [N] bool, whether an image is so plain that only an exact duplicate is recognized; for a blank image, none is.
    """

    index: np.ndarray
    kind: np.ndarray
    distance: np.ndarray
    chance: np.ndarray
    plain: np.ndarray

    @property
    def found(self) -> np.ndarray:
        """[N] bool: whether an image has a duplicate."""
        is_duplicate: np.ndarray = self.kind != ""
        return is_duplicate


def find_duplicates(
    test: Fingerprints,
    train: Fingerprints,
    *,
    same: bool = False,
    expected_false: float = EXPECTED_FALSE_MATCHES,
    searched: int | None = None,
) -> DuplicateMatches:
    """Find the duplicates of each test image in another set. The order and the size of the sets do not matter.

    An image has a duplicate if one of these holds:

    - the pixels are identical, flipped or not;
    - ``chance`` < ``expected_false`` / N, and enough of the bits agree, which is evidence that ``chance`` does not use;
    - ``chance`` < ``expected_false``² / N, for any bits, because the fine bits of a blurred image are noise;
    - one image is a crop of the other, where ``chance`` < ``expected_false`` / N holds for the nearest crop.

    If all different images obey the law, fewer than twice ``expected_false`` of them are expected to be matched. If the other
    set has fewer than 64 images, only exact duplicates are found.

    Args:
        test: Fingerprints of the N test images.
        train: Fingerprints of the other set.
        same: Whether both sets are the same one. An image is then not its own duplicate.
        expected_false: The expected number of false matches.
        searched: The N of the conditions, if the test images are a part of the images that are searched.
    """
    count = searched or len(test)
    level = expected_false / max(1, count)
    matches = _nearest_images(test, train, level, expected_false, same=same)
    is_identical = _lookup(test.exact, np.concatenate([train.exact, train.mirrored]), same=False) >= 0
    open_index = np.flatnonzero(~matches.found & ~test.plain & (same | ~is_identical))
    if len(open_index) and len(train) >= 4 * MIN_PARTS:
        matches = _add_crops(matches, open_index, test, train, level, same=same)
    return with_identical(
        matches, test.exact, {"flipped": train.mirrored, "exact": train.exact}, searchable=~test.blank, same=same
    )


def with_identical(
    matches: DuplicateMatches,
    queries: np.ndarray,
    digests_by_kind: Mapping[str, np.ndarray],
    *,
    searchable: np.ndarray | bool = True,
    same: bool = False,
) -> DuplicateMatches:
    """Return matches in which the examples with an identical one in the other set are matched with that one.

    Args:
        matches: the matches of N test examples.
        queries: [N] digests of the test examples.
        digests_by_kind: the digests of the other set by the kind of match; the last kind takes precedence.
        searchable: [N] bool, the test examples for which an identical one is a duplicate.
        same: as in :func:`find_duplicates`.
    """
    index, kind, distance, chance = matches.index, matches.kind, matches.distance, matches.chance
    for name, digests in digests_by_kind.items():
        exact_index = np.where(searchable, _lookup(queries, digests, same=same), -1)
        is_exact = exact_index >= 0
        index, kind = np.where(is_exact, exact_index, index), np.where(is_exact, name, kind)
        chance, distance = np.where(is_exact, 0.0, chance), np.where(is_exact, np.float32(0), distance)
    return replace(matches, index=index, kind=kind, distance=distance, chance=chance)


def _nearest_images(
    test: Fingerprints, train: Fingerprints, level: float, expected_false: float, *, same: bool
) -> DuplicateMatches:
    """Match each test image with the nearest image of another set, if that is nearer than chance allows."""
    count, own_index = len(test), np.arange(len(test)) if same else np.full(len(test), -1)
    distance, index, chance = _search(nearest_distances, test.embedding, train, own_index)
    chance, kind = np.where(test.plain, 1.0, chance), np.full(count, "", "<U7")
    if len(train):
        flipped = _is_flipped(test.embedding, train.embedding[index])
        flipped_bits = test.bits ^ np.where(flipped[:, None], FLIP, np.uint8(0))
        agreeing = 1 - np.unpackbits(flipped_bits ^ train.bits[index], axis=1).mean(1)
        is_near = chance < np.where(agreeing >= MIN_AGREEING_BITS, level, level * expected_false)
        kind = np.where(is_near, np.where(flipped, "flipped", "near"), kind)
    return DuplicateMatches(index=index, kind=kind, distance=distance, chance=chance, plain=test.plain)


def _add_crops(
    matches: DuplicateMatches, rows: np.ndarray, test: Fingerprints, train: Fingerprints, level: float, *, same: bool
) -> DuplicateMatches:
    """Match some of the test images with the nearest crop, if that is nearer than chance allows."""
    own_index = rows if same else np.full(len(rows), -1)
    distance, index, chance = _search(nearest_crops, test.embedding[rows], train, own_index)
    is_crop = chance < level
    changed = {"index": index, "kind": np.full(len(rows), "cropped"), "distance": distance, "chance": chance}
    arrays = {name: getattr(matches, name).copy() for name in changed}
    for name, values in changed.items():
        arrays[name][rows[is_crop]] = values[is_crop]
    return DuplicateMatches(**arrays, plain=matches.plain)


def _search(
    nearest: Callable[..., tuple[np.ndarray, np.ndarray]], embedding: np.ndarray, train: Fingerprints, own_index: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the distance to the nearest image of a set, its index, and the probability of it for different images."""
    count, sample = len(embedding), _sample_null(train)
    queries = np.concatenate([embedding, train.embedding[sample]])
    by_part, index = nearest(queries, train.embedding, np.concatenate([own_index, sample]))
    chance = match_probabilities(by_part[:count], by_part[count:])
    if not by_part[:count].size:
        return np.full(count, 2, np.float32), np.full(count, -1), chance
    part = by_part[:count].argmin(1)[:, None]
    distance, index = (np.take_along_axis(values[:count], part, 1)[:, 0] for values in (by_part, index))
    return distance, index, chance


def match_probabilities(distance: np.ndarray, null: np.ndarray, min_dimension: float = MIN_DIMENSION) -> np.ndarray:
    """Return the probability [n] that the nearest example over all parts is as near as it is if it is a different one.

    It is 1 if there are too few parts or examples to estimate it.

    Args:
        distance: [n, parts] distances of the examples in question.
        null: [k, parts] distances of examples, most without a duplicate.
        min_dimension: the lowest dimension of a set that is not full of its own duplicates.
    """
    count, parts = distance.shape
    if parts < MIN_PARTS or len(null) < MIN_PARTS:
        return np.ones(count)
    sorted_distance, sorted_null = (np.maximum(np.sort(values, 1), 1e-6) for values in (distance, null))
    middle = parts // 2
    pools = np.array_split(sorted_null[np.argsort(sorted_null[:, middle], kind="stable")], max(1, len(null) // MIN_POOL_SIZE))
    dimension = np.array([_estimate_dimension(pool, min_dimension) for pool in pools])
    pool_index = np.searchsorted([pool[-1, middle] for pool in pools[:-1]], sorted_distance[:, middle])
    ratio = sorted_distance[:, 0] / sorted_distance[:, middle]
    chance: np.ndarray = -np.expm1(-parts * np.log(2) * ratio ** dimension[pool_index])
    return chance


def _estimate_dimension(ordered: np.ndarray, min_dimension: float) -> float:
    """Estimate the dimension of examples from their distances [k, parts] in ascending order, less its standard error.

    Few examples determine the dimension badly, so the estimate is conservative.
    """
    count, parts = ordered.shape
    scale = ordered[:, parts // 2]
    quartile = np.log(-np.log(0.75) / (parts * np.log(2)))  # of the smallest distance over all parts
    dimension = quartile / min(float(np.quantile(np.log(ordered[:, 0] / scale), 0.25)), quartile / EMBEDDING_SIZE)
    if dimension < min_dimension:
        # The odds of a quartile are twice those of the median.
        spread = float(np.median(np.log(ordered[:, 3 * parts // 4] / scale)))
        dimension = np.log(2) / max(spread, np.log(2) / EMBEDDING_SIZE)
    return float(dimension * (1 - 1 / np.sqrt(count)))


def _sample_null(train: Fingerprints) -> np.ndarray:
    """Return the indices of some images of a set that are not plain, the same every time."""
    candidates = np.random.default_rng(0).permutation(len(train))[: 4 * NULL_SAMPLE_SIZE]
    return np.sort(candidates[train.embedding[candidates].any(1)][:NULL_SAMPLE_SIZE])


def shared_groups(train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Return the numbers of the groups (patients, scenes) that are in both splits, in ascending order."""
    return np.intersect1d(train, test)


def _is_flipped(test: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Return [n] bool: whether a pair is more similar if one image is flipped."""
    cosine: np.ndarray = np.einsum("nd,nd->n", test[:, EVEN_COLUMNS:], train[:, EVEN_COLUMNS:], dtype=np.float32)
    return cosine < 0


def _lookup(queries: np.ndarray, digests: np.ndarray, *, same: bool) -> np.ndarray:
    """Return the first index of each query among the digests, -1 if it is absent.

    If both are the same set, the index of the query itself does not count.
    """
    order = np.argsort(digests, kind="stable")
    ordered, own_index = digests[order], np.arange(len(queries))
    start = np.searchsorted(ordered, queries)
    first_match = np.full(len(queries), -1)
    for index in (start + 1, start) if same else (start,):
        is_match = index < len(ordered)
        is_match[is_match] = ordered[index[is_match]] == queries[is_match]
        match = np.full(len(queries), -1)
        match[is_match] = order[index[is_match]]
        first_match = np.where(is_match & ~(same & (match == own_index)), match, first_match)
    return first_match
