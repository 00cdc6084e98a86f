"""The examples that an evaluation of a trained network uses. Imports torch; reads the datasets."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from xferbench.data import leaks
from xferbench.lab.data import datasets, domains, shortcut_cue
from xferbench.lab.training.examples import training_subset

if TYPE_CHECKING:
    from xferbench.core.trial import EvaluationSpec
    from xferbench.lab.data.datasets import Dataset, Split
    from xferbench.lab.evaluation.context import LoadedModel

TEST_EXAMPLES = ("test", "unique", "screen", "confirm")
MAX_PROBE_EXAMPLES = 2000  # training images at most that a probe is fitted to, or that are evaluated


def view_examples(model: LoadedModel, view: EvaluationSpec) -> Split:
    """Return the examples of an evaluation in the geometry of its preprocessing, with the shortcut cue if it has one.

    Raises:
        ValueError: if the specification names unknown examples.
    """
    split = _examples_without_cue(model, view)
    return replace(split, images=shortcut_cue.add_cue(split.images)) if view.has_cue else split


def _examples_without_cue(model: LoadedModel, view: EvaluationSpec) -> Split:
    if view.domain is not None:
        dataset = domains.load_domain(view.domain, view.preprocessing, model.cache)
        return {"test": dataset.test, "held-out": domains.held_out_split(dataset)}[view.examples]
    only_test = view.examples in TEST_EXAMPLES
    dataset = datasets.load_dataset(model.spec.data.dataset, view.preprocessing, view.limit, model.cache, only_test=only_test)
    if view.examples == "test":
        return dataset.test
    if view.examples == "unique":
        is_unique = ~leaks.leaked_examples(model.spec.data.dataset, view.limit, view.reference_data, model.cache)
        return datasets.take(dataset.test, np.flatnonzero(is_unique))
    if view.examples in {"screen", "confirm"}:
        return datasets.split_half(dataset.test, second=view.examples == "confirm")
    if view.examples not in {"validation", "training"}:
        raise ValueError(f"no such examples: {view.examples}")
    return _training_or_validation(model, dataset, training=view.examples == "training")


def _training_or_validation(model: LoadedModel, dataset: Dataset, *, training: bool) -> Split:
    """Return at most ``MAX_PROBE_EXAMPLES`` training examples of a network, or its validation examples."""
    if training:
        subset = training_subset(dataset, model.spec)
        order = np.random.default_rng(0).permutation(subset.index)
        return datasets.take(subset.split, np.sort(order[:MAX_PROBE_EXAMPLES]))
    if dataset.validation is not None:
        return dataset.validation
    _, index = datasets.train_validation_indices(model.dataset, model.spec.data.train_size, model.spec.seed)
    return datasets.take(dataset.train, index)


def training_examples(model: LoadedModel, dataset: Dataset, limit: int | None = None) -> Split:
    """Return the training examples of a network in a fixed random order.

    Args:
        model: the trained network.
        dataset: its dataset in the geometry of any preprocessing.
        limit: the maximum number of examples.

    Returns:
        The examples; none for a checkpoint without training images.
    """
    if not len(dataset.train.labels):
        return dataset.train
    subset = training_subset(dataset, model.spec)
    return datasets.take(subset.split, np.random.default_rng(0).permutation(subset.index)[:limit])
