"""Test examples with a duplicate in training or pretraining data, and the recall of their search. Uses the cache."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xferbench.core.canonical import digest
from xferbench.core.errors import UserError
from xferbench.core.run import Duplicate
from xferbench.core.version import LAB_VERSION
from xferbench.data.copy_search import search_for
from xferbench.data.duplicates import DuplicateMatches
from xferbench.data.fingerprints import cached_arrays

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from xferbench.core.pipeline import Data
    from xferbench.data.copy_search import CopySearch

MANIFEST_PREFIX = "manifest:"
MAX_ALTERED_COPIES = 100  # of each kind, to measure the recall


def find_leaked_duplicates(
    target: Data, limit: int | None, reference_data: Sequence[Data], cache: Path
) -> dict[str, DuplicateMatches]:
    """Find the duplicates of each test example in ``train`` and in each pretraining set. The results are cached.

    Args:
        target: the dataset with the test examples.
        limit: how many test examples are searched.
        reference_data: the pretraining sets, as datasets or as their manifests.
        cache: the cache folder of the store.

    Returns:
        The matches by the name of the set. ``train`` is missing if the target has no training examples.
    """
    search = search_for(target)
    test = search.dataset_fingerprints(target, "test", cache, limit)
    searched_sets = list(_searched_sets(search, target, reference_data, cache))
    expected_false = search.expected_false / max(1, len(searched_sets))
    return {
        name: _find_duplicates(search, test, key, other, (target.digest, limit, expected_false), cache)
        for name, key, other in searched_sets
    }


def _searched_sets(
    search: CopySearch, target: Data, reference_data: Sequence[Data], cache: Path
) -> Iterator[tuple[str, str, Any]]:
    """Yield the name, the digest and the fingerprints of each set that is searched."""
    for data in (target, *reference_data):
        if data.spec.startswith(MANIFEST_PREFIX):
            name, prints = search.read_manifest(Path(data.spec.removeprefix(MANIFEST_PREFIX)))
            yield f"{name} (by its manifest)", data.digest, prints
        else:
            name = "train" if data == target else data.spec
            try:
                yield name, data.digest, search.dataset_fingerprints(data, "train", cache, None)
            except UserError:
                if data != target:
                    raise  # only the target may have no training examples


def _find_duplicates(
    search: CopySearch, test: Any, key: str, other: Any, test_key: tuple[str, int | None, float], cache: Path
) -> DuplicateMatches:
    """Find the duplicates of the test examples in another set, or read them from the cache."""
    path = _cache_file(search, cache, "copies", (*test_key, key))
    names = ("index", "kind", "distance", "chance", "plain")

    def compute() -> dict[str, np.ndarray]:
        matches = search.find_duplicates(test, other, expected_false=test_key[-1])
        return {name: getattr(matches, name) for name in names}

    return DuplicateMatches(**cached_arrays(path, names, compute))


def count_duplicates(matches_by_set: Mapping[str, DuplicateMatches]) -> dict[str, float]:
    """Count the duplicates by kind and set, under names such as ``exact in train``. Counts of 0 are left out."""
    kinds = ("exact", "near", "flipped", "cropped", "swapped")
    counts = {
        f"{kind} in {name}": float((matches.kind == kind).sum()) for name, matches in matches_by_set.items() for kind in kinds
    }
    return {name: count for name, count in counts.items() if count}


def leaked_examples(target: Data, limit: int | None, reference_data: Sequence[Data], cache: Path) -> np.ndarray:
    """Return which test examples have a duplicate in any of the sets of :func:`find_leaked_duplicates`: [n] bool."""
    matches_by_set = find_leaked_duplicates(target, limit, reference_data, cache)
    return np.logical_or.reduce([matches.found for matches in matches_by_set.values()])  # type: ignore[no-any-return] # of bool arrays


def search_recall(target: Data, limit: int | None, reference_data: Sequence[Data], cache: Path) -> dict[str, np.ndarray]:
    """Measure how many altered copies of the user's own test examples the search finds. The results are cached.

    Altered copies of some test examples replace examples of a set, and the search looks for these test examples in it. The
    size of the set stays, because the search finds less in a small set.

    Returns:
        For each set of :func:`find_leaked_duplicates`: an array [kinds, 2] of the numbers of found and of all altered
        copies, in the order of the kinds of the search.
    """
    search = search_for(target)
    matches_by_set = find_leaked_duplicates(target, limit, reference_data, cache)
    expected_false = search.expected_false / max(1, len(matches_by_set))
    counts = {}
    for name, key, other in _searched_sets(search, target, reference_data, cache):
        path = _cache_file(search, cache, "recall", (target.digest, limit, expected_false, key))

        def compute(name: str = name, other: Any = other) -> dict[str, np.ndarray]:
            unique = np.flatnonzero(~matches_by_set[name].found)
            most = min(len(search.copy_kinds) * MAX_ALTERED_COPIES, len(other) // 2)
            chosen = np.random.default_rng(0).permutation(unique)[:most]
            return {"counts": _find_altered(search, target, limit, cache, chosen, other, expected_false)}

        counts[name] = cached_arrays(path, ("counts",), compute)["counts"]
    return counts


def list_duplicates(target: Data, limit: int | None, reference_data: Sequence[Data], cache: Path) -> tuple[Duplicate, ...]:
    """Return each test example that has a duplicate, with the file or line of the duplicate in each set."""
    search = search_for(target)
    data = {"train" if other == target else other.spec: other for other in (target, *reference_data)}

    def name_examples(data: Data, split: str, limit: int | None) -> _Places:
        return _Places(search.noun, search.example_names(data, split, cache, limit))

    tests = name_examples(target, "test", limit)
    return tuple(
        Duplicate(
            test=tests[index],
            original=originals[matches.index[index]],
            dataset=name,
            kind=str(matches.kind[index]),
            similarity=float(search.similarity(matches.distance[index])),
        )
        for name, matches in find_leaked_duplicates(target, limit, reference_data, cache).items()
        for originals in [name_examples(data[name], "train", None) if name in data else _Places(search.noun, {})]
        for index in np.flatnonzero(matches.found).tolist()
    )


class _Places(dict[int, str]):
    """The names of examples; those without a file or line have their place."""

    def __init__(self, noun: str, names: Mapping[int, str]) -> None:
        super().__init__(names)
        self.noun = noun

    def __missing__(self, index: int) -> str:
        return f"{self.noun} {index}"


def lowest_recall(target: Data, limit: int | None, reference_data: Sequence[Data], cache: Path) -> dict[str, tuple[int, int]]:
    """Return the numbers of found and of all altered copies of each kind, in the set in which the search finds the fewest."""
    counts = np.stack(list(search_recall(target, limit, reference_data, cache).values()))
    lowest = (counts[..., 0] / np.maximum(counts[..., 1], 1)).argmin(0)
    kinds = search_for(target).copy_kinds
    return {kind: tuple(counts[place, row].tolist()) for row, (kind, place) in enumerate(zip(kinds, lowest, strict=True))}


def _find_altered(
    search: CopySearch,
    target: Data,
    limit: int | None,
    cache: Path,
    chosen: np.ndarray,
    other: Any,
    expected_false: float,
) -> np.ndarray:
    """Return the numbers [kinds, 2] of found and of all copies if the other set has altered copies of the chosen examples."""
    rng, kinds = np.random.default_rng(1), np.arange(len(chosen)) % len(search.copy_kinds)
    altered = search.altered_fingerprints(target, chosen, [search.copy_kinds[kind] for kind in kinds], rng, cache, limit)
    kept = np.sort(rng.permutation(len(other))[len(chosen) :])
    with_copies = search.concatenate([search.take(other, kept), altered])
    test = search.dataset_fingerprints(target, "test", cache, limit)
    queries = search.take(test, chosen)
    matches = search.find_duplicates(queries, with_copies, expected_false=expected_false, searched=len(test))
    is_hit = matches.found & (matches.index == len(kept) + np.arange(len(chosen)))
    return np.array([[is_hit[kinds == kind].sum(), (kinds == kind).sum()] for kind in range(len(search.copy_kinds))], np.int64)


def _cache_file(search: CopySearch, cache: Path, kind: str, key: tuple[object, ...]) -> Path:
    """Return the file of a cached result, whose key contains the versions of everything that it depends on."""
    return cache / "prints" / f"{kind}-{digest((LAB_VERSION, *search.versions, *key))[:32]}.npz"
