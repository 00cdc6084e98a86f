"""Measures of duplicates of test examples, and test examples that are injected into the training set. Uses the cache."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from xferbench.core.interventions import AlteredTestImages, CopiedTestImages, InjectedDuplicates
from xferbench.data import altered_texts, copy_search, fingerprints, inputs, leaks, text_fingerprints
from xferbench.lab.data import preprocessing
from xferbench.lab.training import seeds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xferbench.core.trial import TrainingData
    from xferbench.data.raw import TextExample
    from xferbench.lab.data.datasets import Dataset
    from xferbench.lab.evaluation.context import MeasureContext, TrialContext

JPEG_QUALITY = 60  # percent, of altered duplicates


def measure_copies(context: MeasureContext) -> dict[str, float]:
    """Return the share of test examples with a copy, counts by kind and place, and how many altered copies the search finds.

    In an induced arm, the ``recall`` is that of the injected copies. The split without copies shows nothing.
    """
    trial, view = context.trial, context.trial.view
    if view.examples == "unique":
        return {"copies": float("nan")}
    search_inputs = (trial.spec.data.dataset, view.limit, view.reference_data, trial.cache)
    matches = leaks.find_leaked_duplicates(*search_inputs)
    leaked, scalars = leaks.leaked_examples(*search_inputs), leaks.count_duplicates(matches)
    if trial.injected_duplicates is None:
        for kind, (found, altered) in leaks.lowest_recall(*search_inputs).items():
            scalars |= {f"found {kind}": float(found), f"altered {kind}": float(altered)}
    else:
        leaked, scalars["recall"] = detection_of_injected(trial, trial.injected_duplicates, leaked)
    noun = copy_search.search_for(trial.spec.data.dataset).noun
    scalars |= {f"searched {name}": 1.0 for name in matches} | {f"test {noun}s": float(len(leaked))}
    return {"copies": float(leaked.mean())} | scalars


def measure_identical(context: MeasureContext) -> dict[str, float]:
    """Return the share of test examples with an identical copy, injected ones included."""
    trial, view = context.trial, context.trial.view
    if view.examples == "unique":
        return {"identical": float("nan")}
    matches = leaks.find_leaked_duplicates(trial.spec.data.dataset, view.limit, view.reference_data, trial.cache)
    is_identical = np.logical_or.reduce([found.kind == "exact" for found in matches.values()])
    if trial.injected_duplicates is not None and isinstance(trial.spec.data.injected_duplicates, CopiedTestImages):
        is_identical |= np.isin(np.arange(len(is_identical)), trial.injected_duplicates)
    return {"identical": float(is_identical.mean())} | {f"searched {name}": 1.0 for name in matches}


def choose_injected(dataset: Dataset, injected: InjectedDuplicates, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Choose test examples, and training examples of the same class that they replace.

    Args:
        dataset: the dataset.
        injected: the share of the test examples.
        seed: of the choice.

    Returns:
        The test-set indices [k] of the injected examples, and their training-set indices [k]. A class with too few training
        examples gets fewer injected examples.
    """
    rng = seeds.numpy_stream(seed, seeds.LABELS)
    train, test = dataset.train, dataset.test
    candidates = rng.permutation(len(test.labels))[: max(1, round(injected.share * len(test.labels)))]
    free = {label: rng.permutation(np.flatnonzero(train.labels == label)).tolist() for label in np.unique(train.labels)}
    pairs = [(index, free[label].pop()) for index in candidates if (label := test.labels[index]) in free and free[label]]
    test_index, train_index = (np.array(side, np.int64) for side in zip(*pairs, strict=True))
    return test_index, train_index


def inject_duplicates(dataset: Dataset, data: TrainingData, seed: int) -> Dataset:
    """Return a dataset in which test examples replace training examples of their class, as ``data`` says."""
    injected = data.injected_duplicates
    assert injected is not None, "only a training with injected duplicates has them"
    test_index, train_index = choose_injected(dataset, injected, seed)
    images = np.array(dataset.train.images)
    copies: Sequence[np.ndarray] = dataset.test.images[test_index]
    if isinstance(injected, AlteredTestImages):
        if inputs.holds_texts(data.dataset.spec):
            texts = _injected_texts(data, test_index, seed)
            copies = [preprocessing.apply_geometry(text, data.preprocessing) for text in texts]
        else:
            copies = [_alter_image(image) for image in copies]
    images[train_index] = copies
    return replace(dataset, train=replace(dataset.train, images=images))


def detection_of_injected(trial: TrialContext, injected: np.ndarray, leaked: np.ndarray) -> tuple[np.ndarray, float]:
    """Search the injected examples among the first test examples in training.

    Args:
        trial: the trial, whose dataset has injected duplicates.
        injected: [k], the test-set indices of the injected examples.
        leaked: [n] bool, which of the first test examples have a duplicate without them.

    Returns:
        Which test examples [n] have a duplicate now or had one before; and the share of the injected ones that is found.
    """
    searched = np.sort(injected[injected < len(leaked)])
    search = copy_search.search_for(trial.spec.data.dataset)
    fingerprint = _text_fingerprints if search is copy_search.TEXTS else _image_fingerprints
    test, train = fingerprint(trial, searched)
    is_found = search.find_duplicates(test, train, searched=len(leaked)).found
    leaked_now = leaked.copy()
    leaked_now[searched] |= is_found
    return leaked_now, float(is_found.mean()) if len(searched) else 0.0


def _image_fingerprints(trial: TrialContext, searched: np.ndarray) -> tuple[fingerprints.Fingerprints, ...]:
    """Return the fingerprints of some test images, and of the training images with injected duplicates, as they are stored."""
    dataset = trial.dataset
    return tuple(fingerprints.fingerprint(images) for images in (dataset.test.images[searched], dataset.train.images))


def _text_fingerprints(trial: TrialContext, searched: np.ndarray) -> tuple[text_fingerprints.TextFingerprints, ...]:
    """Return the fingerprints of some test texts, and of the training texts with injected duplicates.

    The stored form of a text is a list of tokens, so the texts themselves are read again.
    """
    data, cache = trial.spec.data, trial.cache
    assert data.injected_duplicates is not None, "only a training with injected duplicates is searched for them"
    test_index, train_index = choose_injected(trial.dataset, data.injected_duplicates, trial.spec.seed)
    test, train = (text_fingerprints.dataset_fingerprints(data.dataset, split, cache) for split in ("test", "train"))
    copies = text_fingerprints.fingerprint_texts(_injected_texts(data, test_index, trial.spec.seed))
    others = np.setdiff1d(np.arange(len(train)), train_index)
    with_copies = text_fingerprints.concatenate([text_fingerprints.take(train, others), copies])
    return text_fingerprints.take(test, searched), with_copies


def _injected_texts(data: TrainingData, test_index: np.ndarray, seed: int) -> list[TextExample]:
    """Return the injected copies of some test texts. Altered ones lack a tenth of their words."""
    texts = text_fingerprints.read_texts(data.dataset, "test")
    if isinstance(data.injected_duplicates, CopiedTestImages):
        return [texts[index] for index in test_index]
    streams = (seeds.numpy_stream(seed, seeds.LABELS, int(index)) for index in test_index)
    return [
        altered_texts.alter_text(texts[index], "shortened", stream, texts[index])
        for index, stream in zip(test_index, streams, strict=True)
    ]


def _alter_image(image: np.ndarray) -> np.ndarray:
    """Flip an image [3, H, W] horizontally and compress it as JPEG."""
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)[:, ::-1])).save(file, "JPEG", quality=JPEG_QUALITY)
    return np.asarray(Image.open(file)).transpose(2, 0, 1)
