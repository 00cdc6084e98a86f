"""Find the test texts that are duplicates of texts in another set, by their fingerprints. Pure.

The same normalized text is a duplicate. Any other text is one if it shares most of its information with its nearest neighbor,
and if that one is nearer than chance allows. The comment below explains both conditions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from xferbench.data.duplicates import (
    MIN_PARTS,
    NULL_SAMPLE_SIZE,
    DuplicateMatches,
    match_probabilities,
    with_identical,
)
from xferbench.data.nearest import PARTS

if TYPE_CHECKING:
    from scipy import sparse

    from xferbench.data.text_fingerprints import TextFingerprints

# The similarity of two texts is the Jaccard index of their words, in which a word counts with its information, the logarithm of
# the inverse share of texts that have it. So "What is the capital of Chile?" and "… of Peru?" have a similarity below 0.5: the
# words of a common template count little, and each of the two names as much as "capital". Sequences of characters would
# tolerate more typing errors, but the long words of a template have more of them than a short name. The similarity of two pairs
# is the lower one of their texts, in the better order: a pair with a known premise and another hypothesis is no copy.
#
# Unrelated texts and texts of one subject are below MIN_SIMILARITY, but texts of a long template can be above. Templates are
# recognized as dense neighborhoods of images are, by the same law of the distances to the nearest text in each part of the set
# (see duplicates.py): a question whose template is in most parts must be nearer to one of them than to all others. A template
# with a handful of texts escapes the law. For this reason both conditions must hold.
#
# All similarities are computed, as products of sparse matrices. MinHash with banding (Broder 1997; Lee et al. 2022,
# arXiv:2107.06499, who take 0.8 for an index without weights) saves time for millions of texts, but it misses pairs at random,
# has no weights, and gives no distances of different texts, from which chance is estimated.
VERSION = 1  # raise it when the same fingerprints give other duplicates
MIN_SIMILARITY = 2 / 3  # measured: texts of one subject seldom have 0.4; a copy without a tenth of its words has 0.9
MIN_DIMENSION = 7.0  # measured: at least 12 for questions, sentences and invented texts; at most 4 for augmented copies
EXPECTED_FALSE_MATCHES = 0.01  # in a whole search under the law; real sets also have small templates
BLOCK_VALUES = 2**23  # similarities in a block, about


@dataclass(frozen=True, slots=True, kw_only=True)
class _Words:
    """The words of N texts or pairs.

    Attributes:
        matrices: for the first and the second texts, the square root of the information of each word: sparse [N, vocabulary].
        totals: for the first and the second texts, the information of all their words, unknown ones included: [N].
    """

    matrices: tuple[sparse.csr_matrix, sparse.csr_matrix]
    totals: tuple[np.ndarray, np.ndarray]

    def __len__(self) -> int:
        return len(self.totals[0])

    @property
    def has_pairs(self) -> bool:
        return bool(self.totals[1].any())

    @property
    def plain(self) -> np.ndarray:
        """[N] bool: whether an example has only words that say nothing."""
        return np.asarray((self.totals[0] == 0) & (self.totals[1] == 0))


def find_duplicates(
    test: TextFingerprints,
    train: TextFingerprints,
    *,
    same: bool = False,
    expected_false: float = EXPECTED_FALSE_MATCHES,
    searched: int | None = None,
) -> DuplicateMatches:
    """Find the duplicates of each test text, or pair of texts, in another set.

    The normalized texts are the same (``exact``; ``swapped`` if a pair has the other order), or both conditions above hold for
    the nearest text (``near``, or ``swapped``). If the other set has fewer than 64 texts, only identical ones are found. The
    distance is 1 − similarity, from 0 to 1. A plain text has only words that all texts have.

    Args:
        test: Fingerprints of the N test texts.
        train: Fingerprints of the other set.
        same: Whether both sets are the same one. A text is then not its own duplicate.
        expected_false: The expected number of false matches, if all different texts obey the law.
        searched: The N by which ``expected_false`` is divided, if the test texts are a part of those that are searched.
    """
    matches = _nearest_texts(test, train, expected_false / max(1, searched or len(test)), same=same)
    return with_identical(matches, test.exact, {"swapped": train.swapped, "exact": train.exact}, same=same)


def _nearest_texts(test: TextFingerprints, train: TextFingerprints, level: float, *, same: bool) -> DuplicateMatches:
    """Match each test text with the nearest text of another set, if both conditions hold."""
    vocabulary, counts = np.unique(train.words, return_counts=True)
    texts = int((train.counts > 0).sum())
    weights = np.log((texts + 1) / (counts + 1)).astype(np.float32)
    queries, others = (_weigh(prints, vocabulary, weights, unknown=np.log(texts + 1)) for prints in (test, train))
    by_part, index = _nearest_distances(queries, others, np.arange(len(test)) if same else np.full(len(test), -1))
    if by_part.shape[1] < MIN_PARTS:
        null = by_part[:0]
    else:
        sample = _sample_null(others)
        null, _ = _nearest_distances(_take(others, sample), others, sample)
    chance = np.where(queries.plain, 1.0, match_probabilities(by_part, null, MIN_DIMENSION))
    kind = np.full(len(test), "", "<U7")
    if not by_part.size:
        distance, nearest = np.ones(len(test), np.float32), np.full(len(test), -1)
        return DuplicateMatches(index=nearest, kind=kind, distance=distance, chance=chance, plain=queries.plain)
    part = by_part.argmin(1)[:, None]
    distance, nearest = (np.take_along_axis(values, part, 1)[:, 0] for values in (by_part, index))
    is_near = (chance < level) & (distance <= 1 - MIN_SIMILARITY)
    kind[is_near] = np.where(_is_swapped(_take(queries, is_near), _take(others, nearest[is_near])), "swapped", "near")
    return DuplicateMatches(index=nearest, kind=kind, distance=distance, chance=chance, plain=queries.plain)


def _weigh(prints: TextFingerprints, vocabulary: np.ndarray, weights: np.ndarray, unknown: float) -> _Words:
    """Return the words of texts with their information.

    Args:
        prints: the fingerprints of the texts.
        vocabulary: the digests of the words of the other set, in ascending order.
        weights: their information, 0 for a word that all texts have.
        unknown: the information of a word that the other set does not have.
    """
    from scipy import sparse

    column = np.searchsorted(vocabulary, prints.words).astype(np.int32)
    column[column == len(vocabulary)] = 0
    is_known = vocabulary[column] == prints.words if len(vocabulary) else np.zeros(len(column), bool)
    information = np.where(is_known, weights[column] if len(vocabulary) else 0, unknown).astype(np.float32)
    # Each text of a pair is a row. The words have the order of these rows.
    row_ends = np.cumsum(prints.counts.ravel())
    totals = np.diff(np.concatenate([[0.0], np.cumsum(information, dtype=float)])[np.concatenate([[0], row_ends])])
    is_used = is_known & (information > 0)
    used_ends = np.concatenate([[0], np.cumsum(is_used)])[row_ends]
    pointers = np.concatenate([[0], used_ends]).astype(np.int32)
    values = (np.sqrt(information[is_used]), column[is_used], pointers)
    matrix = sparse.csr_matrix(values, (2 * len(prints), len(vocabulary)))
    return _Words(
        matrices=(matrix[0::2], matrix[1::2]),
        totals=(totals[0::2].astype(np.float32), totals[1::2].astype(np.float32)),
    )


def _take(words: _Words, index: np.ndarray | slice) -> _Words:
    first, second = (matrix[index] for matrix in words.matrices)
    return _Words(matrices=(first, second), totals=(words.totals[0][index], words.totals[1][index]))


def _sample_null(others: _Words) -> np.ndarray:
    """Return the indices of some texts of a set that are not plain, the same every time."""
    candidates = np.random.default_rng(0).permutation(len(others))[: 4 * NULL_SAMPLE_SIZE]
    return np.sort(candidates[~others.plain[candidates]][:NULL_SAMPLE_SIZE])


def _nearest_distances(queries: _Words, others: _Words, own_index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distance to the nearest text in each part of a set, and its index: both [n, parts].

    Text i belongs to part i modulo ``parts``. ``own_index`` is as in :func:`xferbench.data.nearest.nearest_distances`.
    """
    count = len(others)
    parts = min(PARTS, max(1, count // 4)) if count else 0
    distance, index = np.ones((len(queries), parts), np.float32), np.full((len(queries), parts), -1, np.int64)
    transposed = tuple(matrix.T.tocsr() for matrix in others.matrices)
    step = max(1, BLOCK_VALUES // max(1, count))
    for start in range(0, len(queries) if count else 0, step):
        rows = slice(start, start + step)
        similarity = _similarities(_take(queries, rows), others, transposed)
        own_rows = np.flatnonzero(own_index[rows] >= 0)
        similarity[own_rows, own_index[rows][own_rows]] = -1
        padded = np.pad(similarity, ((0, 0), (0, -count % parts)), constant_values=-1).reshape(len(similarity), -1, parts)
        nearest = padded.argmax(1)
        distance[rows] = np.clip(1 - np.take_along_axis(padded, nearest[:, None], 1)[:, 0], 0, 1)
        index[rows] = nearest * parts + np.arange(parts)
    return distance, index


def _similarities(queries: _Words, others: _Words, transposed: tuple[sparse.csr_matrix, ...]) -> np.ndarray:
    """Return the similarities [n, N] of all examples; ``transposed`` are the matrices of the other set."""

    def jaccard(place: int, other_place: int) -> np.ndarray:
        shared = (queries.matrices[place] @ transposed[other_place]).toarray()
        return _jaccard(shared, queries.totals[place][:, None], others.totals[other_place])

    similarity = jaccard(0, 0)
    if queries.has_pairs or others.has_pairs:
        similarity = np.maximum(np.minimum(similarity, jaccard(1, 1)), np.minimum(jaccard(0, 1), jaccard(1, 0)))
    return similarity


def _is_swapped(queries: _Words, others: _Words) -> np.ndarray:
    """Return [n] bool: whether the pairs of two equally long sets are more similar in the other order."""

    def jaccard(place: int, other_place: int) -> np.ndarray:
        shared = np.asarray(queries.matrices[place].multiply(others.matrices[other_place]).sum(1)).ravel()
        return _jaccard(shared, queries.totals[place], others.totals[other_place])

    is_swapped: np.ndarray = np.minimum(jaccard(0, 1), jaccard(1, 0)) > np.minimum(jaccard(0, 0), jaccard(1, 1))
    return is_swapped


def _jaccard(shared: np.ndarray, information: np.ndarray, other_information: np.ndarray) -> np.ndarray:
    """Return shared through united information; 1 for two texts without any, such as missing second texts of pairs."""
    united = information + other_information - shared
    index: np.ndarray = np.divide(shared, united, out=np.ones_like(shared), where=united > 0)
    return index
