"""Datasets beside the target: which output of a head each of their classes means, and which images serve for what."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from xferbench.design import HELD_OUT
from xferbench.lab import data
from xferbench.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from xferbench.design import Data, Domain, Ready
    from xferbench.lab.data import Dataset, Split

MEMORY = 1000  # images at most that a regularizer or a refitted head is given


def source(
    given: Data | None, words: Mapping[str, int], ready: Ready, arch: str, head: Mapping[str, Tensor], cache: Path
) -> tuple[tuple[int, ...], str]:
    """The outputs of the pretrained head that mean the source's classes, or () and why nobody knows them.

    They are those that the suite gives; or the classes that torchvision records for the architecture's weights, by name; or,
    where the head has as many outputs as the source has classes, all of them in order.

    Raises:
        Problem: for classes of the suite that are not the source's, or outputs that the head has not.
    """
    if given is None:
        return (), "the suite has no [source]"
    dataset = data.load(given, ready, None, cache)
    classes = dataset.classes
    if not len(dataset.train.labels):
        raise Problem(
            "[source] data: no training images", found=given.spec, expected="a training set, and a test set beside it"
        )
    outputs = next((len(tensor) for tensor in head.values()), 0)
    if words:
        if set(words) != set(classes) or max(words.values()) >= outputs:
            found = f"{_few(list(words))}; the head has {outputs} outputs"
            expected = f"one index below {outputs} for each of {_few(classes)}"
            raise Problem("[source] classes", found=found, expected=expected)
        return tuple(words[name] for name in classes), ""
    if not outputs:
        return (), "the checkpoint has no head, so nothing can be forgotten with it"
    known = _categories(arch)
    if len(known) == outputs and set(classes) <= set(known):
        return tuple(known.index(name) for name in classes), ""
    if len(classes) == outputs:  # said to be taken on trust: a head that then knows nothing is no yardstick
        return tuple(range(outputs)), ""
    why = f"the pretrained head has {outputs} outputs and the source {len(classes)} classes"
    return (), f"{why}: say which is which by [source] classes"


def shifted(given: Data | None, classes: Sequence[str], ready: Ready, cache: Path) -> tuple[int, ...]:
    """Each shifted class's place among the target's, by name.

    Raises:
        Problem: for a class that the target has not.
    """
    if given is None:
        return ()
    own = data.load(given, ready, None, cache).classes
    strange = [name for name in own if name not in classes]
    if strange:
        raise Problem("[shifted] data: classes that the target has not", found=_few(strange), expected=_few(classes))
    return tuple(list(classes).index(name) for name in own)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" … ({len(names)} in all)" if len(names) > 6 else "")


def _categories(arch: str) -> list[str]:
    """The classes of an architecture's published weights, or none."""
    import torchvision

    name = arch.removeprefix("torchvision:")
    if name == arch:
        return []
    return list(torchvision.models.get_model_weights(name).DEFAULT.meta.get("categories", []))


def load(domain: Domain, ready: Ready, cache: Path) -> Dataset:
    """A domain's dataset, its labels being outputs of the head."""
    dataset, outputs = data.load(domain.data, ready, None, cache), np.array(domain.classes)

    def told(split: Split) -> Split:
        return replace(split, labels=outputs[split.labels])

    own = dataset.validation
    return replace(dataset, train=told(dataset.train), test=told(dataset.test), validation=None if own is None else told(own))


def held_out(dataset: Dataset) -> Split:
    """The part of a domain's training images that choices are made on, and no fit is given."""
    return data.taken(dataset.train, _halves(dataset)[0][:HELD_OUT])


def memory(dataset: Dataset) -> Split:
    """The part of a domain's training images that is rehearsed, or that a head is fitted on."""
    return data.taken(dataset.train, _halves(dataset)[1][:MEMORY])


def unlabelled(given: Data, ready: Ready, cache: Path) -> Split:
    """What may be seen of a domain whose labels nobody looks at: those of its training images that :func:`memory` has.

    Raises:
        Problem: where it has none.
    """
    dataset = data.load(given, ready, None, cache)
    if not len(dataset.train.labels):
        expected = "training images, to adapt to without their labels; a test part is only scored"
        raise Problem(f"{given.spec}: no training images", found="a test set alone", expected=expected)
    return memory(dataset)


def _halves(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the two halves of a domain's training images, each in a random order; whole groups stay on one side."""
    rng, groups = np.random.default_rng(0), dataset.train.groups
    order = rng.permutation(len(dataset.train.labels))
    if not len(groups):
        return order[: len(order) // 2], order[len(order) // 2 :]
    names = rng.permutation(np.unique(groups))
    first = np.isin(groups[order], names[: len(names) // 2])
    return order[first], order[~first]
