"""Test images with a duplicate in training or pretraining data, and the recall of their search. Uses the cache."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xferbench.core.canonical import digest
from xferbench.core.errors import UserError
from xferbench.core.run import Duplicate
from xferbench.core.suite import COPY_KINDS
from xferbench.core.version import LAB_VERSION
from xferbench.data import altered_copies, duplicates, fingerprints, manifest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from xferbench.core.pipeline import Data
    from xferbench.data.duplicates import DuplicateMatches
    from xferbench.data.fingerprints import Fingerprints

MANIFEST_PREFIX = "manifest:"
MAX_ALTERED_COPIES = 100  # of each kind, to measure the recall


def find_leaked_duplicates(
    target: Data, limit: int | None, reference_data: Sequence[Data], cache: Path
) -> dict[str, DuplicateMatches]:
    """Find the duplicates of each test image in ``train`` and in each pretraining set. The results are cached.

    Args:
        target: the dataset with the test images.
        limit: how many test images are searched.
        reference_data: the pretraining sets, as datasets or as their manifests.
        cache: the cache folder of the store.

    Returns:
        The matches by the name of the set. ``train`` is missing if the target has no training images.
    """
    test = fingerprints.dataset_fingerprints(target, "test", cache, limit)
    searched_sets = list(_searched_sets(target, reference_data, cache))
    expected_false = duplicates.EXPECTED_FALSE_MATCHES / max(1, len(searched_sets))  # in all searches together
    return {
        name: _find_duplicates(test, key, other, (target.digest, limit, expected_false), cache)
        for name, key, other in searched_sets
    }


def _searched_sets(target: Data, reference_data: Sequence[Data], cache: Path) -> Iterator[tuple[str, str, Fingerprints]]:
    """Yield the name, the digest and the fingerprints of each set that is searched."""
    for data in (target, *reference_data):
        if data.spec.startswith(MANIFEST_PREFIX):
            pretraining_set = manifest.read_manifest(Path(data.spec.removeprefix(MANIFEST_PREFIX)))
            yield f"{pretraining_set.name} (by its manifest)", data.digest, pretraining_set.prints
        else:
            name = "train" if data == target else data.spec
            try:
                yield name, data.digest, fingerprints.dataset_fingerprints(data, "train", cache)
            except UserError:
                if data != target:
                    raise  # only the target may have no training images


def _find_duplicates(
    test: Fingerprints, key: str, other: Fingerprints, test_key: tuple[str, int | None, float], cache: Path
) -> DuplicateMatches:
    """Find the duplicates of the test images in another set, or read them from the cache."""
    path = _cache_file(cache, "copies", (*test_key, key))
    names = ("index", "kind", "distance", "chance", "plain")

    def compute() -> dict[str, np.ndarray]:
        matches = duplicates.find_duplicates(test, other, expected_false=test_key[-1])
        return {name: getattr(matches, name) for name in names}

    return duplicates.DuplicateMatches(**fingerprints.cached_arrays(path, names, compute))


def count_duplicates(matches_by_set: Mapping[str, DuplicateMatches]) -> dict[str, float]:
    """Count the duplicates by kind and set, under names such as ``exact in train``. Counts of 0 are left out."""
    kinds = ("exact", "near", "flipped", "cropped")
    counts = {
        f"{kind} in {name}": float((matches.kind == kind).sum()) for name, matches in matches_by_set.items() for kind in kinds
    }
    return {name: count for name, count in counts.items() if count}


def leaked_examples(target: Data, limit: int | None, reference_data: Sequence[Data], cache: Path) -> np.ndarray:
    """Return which test images have a duplicate in any of the sets of :func:`find_leaked_duplicates`: [n] bool."""
    matches_by_set = find_leaked_duplicates(target, limit, reference_data, cache)
    return np.logical_or.reduce([matches.found for matches in matches_by_set.values()])  # type: ignore[no-any-return] # of bool arrays


def search_recall(target: Data, limit: int | None, reference_data: Sequence[Data], cache: Path) -> dict[str, np.ndarray]:
    """Measure how many altered copies of the user's own test images the search finds. The results are cached.

    Altered copies of some test images replace images of a set, and the search looks for these test images in it. The size of
    the set stays, because the search finds less in a small set.

    Returns:
        For each set of :func:`find_leaked_duplicates`: an array [kinds, 2] of the numbers of found and of all altered
        copies, in the order of ``COPY_KINDS``.
    """
    test = fingerprints.dataset_fingerprints(target, "test", cache, limit)
    matches_by_set = find_leaked_duplicates(target, limit, reference_data, cache)
    expected_false = duplicates.EXPECTED_FALSE_MATCHES / max(1, len(matches_by_set))
    counts = {}
    for name, key, other in _searched_sets(target, reference_data, cache):
        path = _cache_file(cache, "recall", (target.digest, limit, expected_false, key))

        def compute(name: str = name, other: Fingerprints = other) -> dict[str, np.ndarray]:
            unique = np.flatnonzero(~matches_by_set[name].found)
            chosen = np.random.default_rng(0).permutation(unique)[: min(len(COPY_KINDS) * MAX_ALTERED_COPIES, len(other) // 2)]
            images = fingerprints.read_images(target, "test", chosen, cache, limit)
            return {"counts": _find_altered(test, chosen, images, other, expected_false)}

        counts[name] = fingerprints.cached_arrays(path, ("counts",), compute)["counts"]
    return counts


def list_duplicates(target: Data, limit: int | None, reference_data: Sequence[Data], cache: Path) -> tuple[Duplicate, ...]:
    """Return each test image that has a duplicate, with the file of the duplicate in each set."""
    data = {"train" if other == target else other.spec: other for other in (target, *reference_data)}
    tests = _image_names(target, "test", cache, limit)
    return tuple(
        Duplicate(
            test=tests[index],
            original=originals[matches.index[index]],
            dataset=name,
            kind=str(matches.kind[index]),
            similarity=float(1 - matches.distance[index] ** 2 / 2),
        )
        for name, matches in find_leaked_duplicates(target, limit, reference_data, cache).items()
        for originals in [_image_names(data[name], "train", cache) if name in data else _Places()]
        for index in np.flatnonzero(matches.found).tolist()
    )


class _Places(dict[int, str]):
    """The names of images without files: their places."""

    def __missing__(self, index: int) -> str:
        return f"image {index}"


def _image_names(data: Data, split: str, cache: Path, limit: int | None = None) -> Mapping[int, str]:
    """Return the file of each image of a split by its place; an image of an array has its place only."""
    readable = fingerprints.readable_split(data, split, cache, limit)
    places = {index: str(image) for index, image in enumerate(readable.images) if isinstance(image, Path)}
    rows = {index: readable.names[index] for index, image in enumerate(readable.images) if isinstance(image, bytes)}
    return _Places(places | rows)


def lowest_recall(target: Data, limit: int | None, reference_data: Sequence[Data], cache: Path) -> np.ndarray:
    """Return, for each kind, the counts [kinds, 2] of the set in which the search finds the smallest share of that kind."""
    counts = np.stack(list(search_recall(target, limit, reference_data, cache).values()))
    lowest = (counts[..., 0] / np.maximum(counts[..., 1], 1)).argmin(0)
    chosen: np.ndarray = counts[lowest, np.arange(len(COPY_KINDS))]
    return chosen


def _find_altered(
    test: Fingerprints, chosen: np.ndarray, images: Iterator[np.ndarray], other: Fingerprints, expected_false: float
) -> np.ndarray:
    """Return the numbers [kinds, 2] of found and of all copies if altered copies of the chosen images are in the other set."""
    rng, kinds = np.random.default_rng(1), np.arange(len(chosen)) % len(COPY_KINDS)
    altered = fingerprints.fingerprint_stream(
        altered_copies.alter_image(altered_copies.reduce_image(image), COPY_KINDS[kind], rng)
        for kind, image in zip(kinds, images, strict=True)
    )
    kept = np.sort(rng.permutation(len(other))[len(chosen) :])
    with_copies = fingerprints.concatenate([fingerprints.take(other, kept), altered])
    queries = fingerprints.take(test, chosen)
    matches = duplicates.find_duplicates(queries, with_copies, expected_false=expected_false, searched=len(test))
    is_hit = matches.found & (matches.index == len(kept) + np.arange(len(chosen)))
    return np.array([[is_hit[kinds == kind].sum(), (kinds == kind).sum()] for kind in range(len(COPY_KINDS))], np.int64)


def _cache_file(cache: Path, kind: str, key: tuple[object, ...]) -> Path:
    """Return the file of a cached result, whose key contains the versions of everything that it depends on."""
    versions = (LAB_VERSION, fingerprints.VERSION, duplicates.VERSION)
    return cache / "prints" / f"{kind}-{digest((*versions, *key))[:32]}.npz"
