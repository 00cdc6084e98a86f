"""Which test images have a copy in training or in a pretraining set, and copies put into training on purpose."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xferbench.core.canonical import digest
from xferbench.core.errors import UserError
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
INJECTION_KINDS = ("copied", "altered")  # as they are; or flipped and compressed anew
JPEG_QUALITY = 60  # of JPEG


def find_copies(target: Data, limit: int | None, beside: Sequence[Data], cache: Path) -> dict[str, DuplicateMatches]:
    """Copies of each test image in ``train``, where there is one, and in each pretraining set, by the set's name; cached.

    Args:
        limit: how many test images are looked at. beside: pretraining sets: datasets, or manifests of such.
    """
    test, others = fingerprints.dataset_fingerprints(target, "test", cache, limit), list(_others(target, beside, cache))
    false = duplicates.EXPECTED_FALSE_MATCHES / max(1, len(others))  # expected in all searches together
    return {name: _searched(test, key, other, (target.digest, limit, false), cache) for name, key, other in others}


def _others(target: Data, beside: Sequence[Data], cache: Path) -> Iterator[tuple[str, str, Fingerprints]]:
    for one in (target, *beside):
        if one.spec.startswith(MANIFEST_PREFIX):
            read = manifest.read_manifest(Path(one.spec.removeprefix(MANIFEST_PREFIX)))
            yield f"{read.name} (by its manifest)", one.digest, read.prints
        else:
            name = "train" if one == target else one.spec
            try:
                yield name, one.digest, fingerprints.dataset_fingerprints(one, "train", cache)
            except UserError:
                if one != target:
                    raise  # a test set alone has no training images to be copied from; a source without any is a mistake


def _searched(
    test: Fingerprints, key: str, other: Fingerprints, asked: tuple[str, int | None, float], cache: Path
) -> DuplicateMatches:
    place = cache / "prints" / f"copies-{digest((LAB_VERSION, fingerprints.VERSION, duplicates.VERSION, *asked, key))[:32]}.npz"
    names = ("index", "kind", "distance", "chance", "plain")
    if not place.is_file():
        made = duplicates.find_duplicates(test, other, expected_false=asked[-1])
        fingerprints.save_npz(place, {name: getattr(made, name) for name in names})
    with np.load(place) as held:
        return duplicates.DuplicateMatches(**{name: held[name] for name in names})


def count_copies(sets: Mapping[str, DuplicateMatches]) -> dict[str, float]:
    """How many copies of which kind lie in which set: ``exact in train``."""
    kinds = ("exact", "near", "flipped")
    return {f"{kind} in {name}": n for name, one in sets.items() for kind in kinds if (n := float((one.kind == kind).sum()))}


def leaked_examples(target: Data, limit: int | None, beside: Sequence[Data], cache: Path) -> np.ndarray:
    """Which test images have a copy anywhere: [N] bool."""
    sets = find_copies(target, limit, beside, cache).values()
    return np.logical_or.reduce([one.found for one in sets])  # type: ignore[no-any-return] # of bool arrays


def inject_duplicates(dataset: Dataset, word: str, seed: int) -> tuple[Dataset, np.ndarray, np.ndarray]:
    """A dataset with test images among its training images; the places in the test set, and in training, of those.

    Each takes the place of a training image of its class, as far as there is one.

    Args:
        word: ``copied:SHARE`` of the test images as they are, ``altered:SHARE`` flipped and compressed anew.

    Raises:
        ValueError: for a word that is not known.
    """
    way, _, share = word.partition(":")
    if way not in INJECTION_KINDS:
        raise ValueError(f"no such way to leak: {word}")
    rng = seeds.numpy_stream(seed, seeds.LABELS)
    train, test = dataset.train, dataset.test
    wanted = rng.permutation(len(test.labels))[: max(1, round(float(share) * len(test.labels)))]
    free = {label: rng.permutation(np.flatnonzero(train.labels == label)).tolist() for label in np.unique(train.labels)}
    pairs = [(at, free[label].pop()) for at in wanted if (label := test.labels[at]) in free and free[label]]
    taken, places = (np.array(side, np.int64) for side in zip(*pairs, strict=True))
    images = np.array(train.images)
    images[places] = [_altered(one) for one in test.images[taken]] if way == "altered" else test.images[taken]
    return replace(dataset, train=replace(train, images=images)), taken, places


def detection_of_injected(dataset: Dataset, places: np.ndarray, leaked: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
    """Which of the first test images are found in training or were leaked before; and how well the search did on those planted.

    Args:
        places: in the test set, of the images that were planted. leaked: [n] bool, the copies that there are without them.
    """
    found = duplicates.find_duplicates(
        fingerprints.fingerprint(dataset.test.images[: len(leaked)]), fingerprints.fingerprint(dataset.train.images)
    ).found
    true = np.isin(np.arange(len(leaked)), places)
    right = float((found & true).sum())
    told = {"recall": right / max(1, true.sum()), "precision": right / max(1, (found & (true | ~leaked)).sum())}
    return leaked | found, told


def _altered(image: np.ndarray) -> np.ndarray:
    """An image [3, H, W] flipped and compressed anew."""
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)[:, ::-1])).save(file, "JPEG", quality=JPEG_QUALITY)
    return np.asarray(Image.open(file)).transpose(2, 0, 1)
