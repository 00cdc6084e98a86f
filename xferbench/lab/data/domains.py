"""Auxiliary datasets: the head output for each of their classes, and the purpose of their images.

Reads files, imports torch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from xferbench.core.errors import UserError
from xferbench.core.pipeline import MAX_HELD_OUT_EXAMPLES
from xferbench.lab.data import datasets

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from xferbench.core.pipeline import AuxiliaryDataset, Data
    from xferbench.core.transforms import InputTransform
    from xferbench.lab.data.datasets import Dataset, Split

MAX_MEMORY_EXAMPLES = 1000  # maximum number of images for a regularizer or a refitted head


def source_outputs(
    source_data: Data | None,
    outputs_by_class: Mapping[str, int],
    preprocessing: InputTransform,
    arch: str,
    head: Mapping[str, Tensor],
    cache: Path,
) -> tuple[tuple[int, ...], str]:
    """Return the outputs of the pretrained head that mean the classes of the source, or () and the reason why they are unknown.

    They are the outputs that the suite gives. Otherwise they are the classes that torchvision records for the weights, by name.
    Otherwise, if the head has as many outputs as the source has classes, they are all outputs in order.

    Raises:
        UserError: If the suite names classes that are not those of the source, or outputs that the head does not have.
    """
    if source_data is None:
        return (), "the suite has no [source]"
    dataset = datasets.load_dataset(source_data, preprocessing, None, cache)
    classes = dataset.classes
    if not len(dataset.train.labels):
        raise UserError("[source] data: no training images", found=source_data.spec, expected="a training set and a test set")
    outputs = next((len(tensor) for tensor in head.values()), 0)
    if outputs_by_class:
        if set(outputs_by_class) != set(classes) or max(outputs_by_class.values()) >= outputs:
            found = f"{_format_names(list(outputs_by_class))}; the head has {outputs} outputs"
            expected = f"one index below {outputs} for each of {_format_names(classes)}"
            raise UserError("[source] classes", found=found, expected=expected)
        return tuple(outputs_by_class[name] for name in classes), ""
    if not outputs:
        return (), "the checkpoint has no head, so forgetting cannot be measured"
    categories = _categories(arch)
    if len(categories) == outputs and set(classes) <= set(categories):
        return tuple(categories.index(name) for name in classes), ""
    if len(classes) == outputs:  # the order is assumed; a head that then recognizes nothing is no reference
        return tuple(range(outputs)), ""
    reason = f"the pretrained head has {outputs} outputs and the source {len(classes)} classes"
    return (), f"{reason}: set [source] classes to map them"


def shifted_classes(
    shifted_data: Data | None, classes: Sequence[str], preprocessing: InputTransform, cache: Path
) -> tuple[int, ...]:
    """Return the index of each shifted class among the classes of the target, by name.

    Raises:
        UserError: If the target does not have a class.
    """
    if shifted_data is None:
        return ()
    shifted_names = datasets.load_dataset(shifted_data, preprocessing, None, cache).classes
    unknown = [name for name in shifted_names if name not in classes]
    if unknown:
        raise UserError(
            "[shifted] data: classes that are missing from the target",
            found=_format_names(unknown),
            expected=_format_names(classes),
        )
    return tuple(list(classes).index(name) for name in shifted_names)


def _format_names(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" … ({len(names)} in all)" if len(names) > 6 else "")


def _categories(arch: str) -> list[str]:
    """Return the classes of an architecture's published weights; empty if it is not from torchvision."""
    import torchvision

    name = arch.removeprefix("torchvision:")
    if name == arch:
        return []
    return list(torchvision.models.get_model_weights(name).DEFAULT.meta.get("categories", []))


def load_domain(domain: AuxiliaryDataset, preprocessing: InputTransform, cache: Path) -> Dataset:
    """Load the dataset of a domain with outputs of the head as labels."""
    dataset, outputs = datasets.load_dataset(domain.data, preprocessing, None, cache), np.array(domain.classes)

    def relabel(split: Split) -> Split:
        return replace(split, labels=outputs[split.labels])

    validation = dataset.validation
    return replace(
        dataset,
        train=relabel(dataset.train),
        test=relabel(dataset.test),
        validation=None if validation is None else relabel(validation),
    )


def held_out_split(dataset: Dataset) -> Split:
    """Return the training images of a domain that are used for selection and not for training."""
    return datasets.take(dataset.train, _halves(dataset)[0][:MAX_HELD_OUT_EXAMPLES])


def memory_split(dataset: Dataset) -> Split:
    """Return the training images of a domain that are rehearsed, or on which a head is fitted."""
    return datasets.take(dataset.train, _halves(dataset)[1][:MAX_MEMORY_EXAMPLES])


def unlabeled_split(domain_data: Data, preprocessing: InputTransform, cache: Path) -> Split:
    """Return the images of a domain that training may use without their labels.

    They are those of :func:`~xferbench.lab.data.domains.memory_split`.

    Raises:
        UserError: If the domain has no training images.
    """
    dataset = datasets.load_dataset(domain_data, preprocessing, None, cache)
    if not len(dataset.train.labels):
        expected = "training images, to adapt to without their labels; the test images are only for scoring"
        raise UserError(f"{domain_data.spec}: no training images", found="only a test set", expected=expected)
    return memory_split(dataset)


def _halves(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the two halves of a domain's training images, each in a random order.

    A group stays in one half.
    """
    rng, groups = np.random.default_rng(0), dataset.train.groups
    order = rng.permutation(len(dataset.train.labels))
    if not len(groups):
        return order[: len(order) // 2], order[len(order) // 2 :]
    names = rng.permutation(np.unique(groups))
    first = np.isin(groups[order], names[: len(names) // 2])
    return order[first], order[~first]
