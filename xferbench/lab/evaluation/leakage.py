"""Measures of duplicates of test images, and test images that are injected into the training images. Uses the cache."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from xferbench.core.interventions import AlteredTestImages, CopiedTestImages, InjectedDuplicates
from xferbench.core.suite import COPY_KINDS
from xferbench.data import duplicates, fingerprints, leaks
from xferbench.lab.training import seeds

if TYPE_CHECKING:
    from xferbench.lab.data.datasets import Dataset
    from xferbench.lab.evaluation.context import MeasureContext

JPEG_QUALITY = 60  # percent, of altered duplicates


def measure_copies(context: MeasureContext) -> dict[str, float]:
    """Return the share of test images with a copy, counts by kind and place, and how many altered copies the search finds.

    In an induced arm, the ``recall`` is that of the injected copies. The split without copies shows nothing.
    """
    trial, view = context.trial, context.trial.view
    if view.examples == "unique":
        return {"copies": float("nan")}
    search_inputs = (trial.spec.data.dataset, view.limit, view.reference_data, trial.cache)
    matches = leaks.find_leaked_duplicates(*search_inputs)
    leaked, scalars = leaks.leaked_examples(*search_inputs), leaks.count_duplicates(matches)
    if trial.injected_duplicates is None:
        for (found, altered), kind in zip(leaks.lowest_recall(*search_inputs), COPY_KINDS, strict=True):
            scalars |= {f"found {kind}": float(found), f"altered {kind}": float(altered)}
    else:
        leaked, scalars["recall"] = detection_of_injected(trial.dataset, trial.injected_duplicates, leaked)
    scalars |= {f"searched {name}": 1.0 for name in matches} | {"test images": float(len(leaked))}
    return {"copies": float(leaked.mean())} | scalars


def measure_identical(context: MeasureContext) -> dict[str, float]:
    """Return the share of test images with an identical copy, injected ones included."""
    trial, view = context.trial, context.trial.view
    if view.examples == "unique":
        return {"identical": float("nan")}
    matches = leaks.find_leaked_duplicates(trial.spec.data.dataset, view.limit, view.reference_data, trial.cache)
    is_identical = np.logical_or.reduce([found.kind == "exact" for found in matches.values()])
    if trial.injected_duplicates is not None and isinstance(trial.spec.data.injected_duplicates, CopiedTestImages):
        is_identical |= np.isin(np.arange(len(is_identical)), trial.injected_duplicates)
    return {"identical": float(is_identical.mean())} | {f"searched {name}": 1.0 for name in matches}


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


def detection_of_injected(dataset: Dataset, injected: np.ndarray, leaked: np.ndarray) -> tuple[np.ndarray, float]:
    """Search the injected images among the first test images in training.

    Args:
        dataset: the dataset with injected duplicates.
        injected: [k], the test-set indices of the injected images.
        leaked: [n] bool, which of the first test images have a duplicate without them.

    Returns:
        Which test images [n] have a duplicate now or had one before; and the share of the injected images that is found.
    """
    searched = np.sort(injected[injected < len(leaked)])
    test, train = (fingerprints.fingerprint(images) for images in (dataset.test.images[searched], dataset.train.images))
    is_found = duplicates.find_duplicates(test, train, searched=len(leaked)).found
    leaked_now = leaked.copy()
    leaked_now[searched] |= is_found
    return leaked_now, float(is_found.mean()) if len(searched) else 0.0


def _alter_image(image: np.ndarray) -> np.ndarray:
    """Flip an image [3, H, W] horizontally and compress it as JPEG."""
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)[:, ::-1])).save(file, "JPEG", quality=JPEG_QUALITY)
    return np.asarray(Image.open(file)).transpose(2, 0, 1)
