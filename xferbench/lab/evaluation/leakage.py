"""Test images with a duplicate in training or pretraining data, and injected duplicates. Reads datasets and the cache."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xferbench.core.canonical import digest
from xferbench.core.errors import UserError
from xferbench.core.interventions import AlteredTestImages, InjectedDuplicates
from xferbench.core.version import LAB_VERSION
from xferbench.data import duplicates, fingerprints, manifest
from xferbench.lab.training import seeds

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from xferbench.core.pipeline import Data
    from xferbench.data.duplicates import DuplicateMatches
    from xferbench.data.fingerprints import Fingerprints
    from xferbench.lab.data.datasets import Dataset

MANIFEST_PREFIX = "manifest:"
JPEG_QUALITY = 60  # percent, of altered duplicates


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
    cache_key = digest((LAB_VERSION, fingerprints.VERSION, duplicates.VERSION, *test_key, key))
    path = cache / "prints" / f"copies-{cache_key[:32]}.npz"
    names = ("index", "kind", "distance", "chance", "plain")
    if not path.is_file():
        matches = duplicates.find_duplicates(test, other, expected_false=test_key[-1])
        fingerprints.save_npz(path, {name: getattr(matches, name) for name in names})
    with np.load(path) as members:
        return duplicates.DuplicateMatches(**{name: members[name] for name in names})


def count_duplicates(matches_by_set: Mapping[str, DuplicateMatches]) -> dict[str, float]:
    """Count the duplicates by kind and set, under names such as ``exact in train``. Counts of 0 are left out."""
    kinds = ("exact", "near", "flipped")
    counts = {
        f"{kind} in {name}": float((matches.kind == kind).sum()) for name, matches in matches_by_set.items() for kind in kinds
    }
    return {name: count for name, count in counts.items() if count}


def leaked_examples(target: Data, limit: int | None, reference_data: Sequence[Data], cache: Path) -> np.ndarray:
    """Return which test images have a duplicate in any of the sets of :func:`find_copies`: [n] bool."""
    matches_by_set = find_leaked_duplicates(target, limit, reference_data, cache)
    return np.logical_or.reduce([matches.found for matches in matches_by_set.values()])  # type: ignore[no-any-return] # of bool arrays


def inject_duplicates(dataset: Dataset, injected: InjectedDuplicates, seed: int) -> tuple[Dataset, np.ndarray, np.ndarray]:
    """Replace training images of a dataset by test images of the same class.

    Args:
        dataset: the dataset.
        injected: the share of the test images, and whether they are altered.
        seed: of the choice of the images.

    Returns:
        The new dataset, the test-set indices [k] of the injected images, and their training-set indices [k]. A class with too
        few training images gets fewer injected images.
    """
    rng = seeds.numpy_stream(seed, seeds.LABELS)
    train, test = dataset.train, dataset.test
    candidates = rng.permutation(len(test.labels))[: max(1, round(injected.share * len(test.labels)))]
    free = {label: rng.permutation(np.flatnonzero(train.labels == label)).tolist() for label in np.unique(train.labels)}
    pairs = [(index, free[label].pop()) for index in candidates if (label := test.labels[index]) in free and free[label]]
    test_index, train_index = (np.array(side, np.int64) for side in zip(*pairs, strict=True))
    images = np.array(train.images)
    copies = test.images[test_index]
    is_altered = isinstance(injected, AlteredTestImages)
    images[train_index] = [_alter_image(image) for image in copies] if is_altered else copies
    return replace(dataset, train=replace(train, images=images)), test_index, train_index


def detection_of_injected(dataset: Dataset, injected: np.ndarray, leaked: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
    """Search the first test images in training, and compute how well the search detects the injected duplicates.

    Args:
        dataset: the dataset with injected duplicates.
        injected: [k], the test-set indices of the injected images.
        leaked: [n] bool, which of the first test images have a duplicate without them.

    Returns:
        Which test images [n] have a duplicate now or had one before; and the ``recall`` and ``precision`` of the search.
    """
    test, train = fingerprints.fingerprint(dataset.test.images[: len(leaked)]), fingerprints.fingerprint(dataset.train.images)
    has_match = duplicates.find_duplicates(test, train).found
    is_injected = np.isin(np.arange(len(leaked)), injected)
    hits = float((has_match & is_injected).sum())
    scores = {
        "recall": hits / max(1, is_injected.sum()),
        "precision": hits / max(1, (has_match & (is_injected | ~leaked)).sum()),
    }
    return leaked | has_match, scores


def _alter_image(image: np.ndarray) -> np.ndarray:
    """Flip an image [3, H, W] horizontally and compress it as JPEG."""
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)[:, ::-1])).save(file, "JPEG", quality=JPEG_QUALITY)
    return np.asarray(Image.open(file)).transpose(2, 0, 1)
