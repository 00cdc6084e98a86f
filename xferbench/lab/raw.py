"""Examples before decoding, as every kind of dataset gives them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Raw:
    """A split before decoding: image files with the ``names`` that a user knows them by, or arrays H×W(×1, ×3).

    ``labels`` are [N], ``groups`` [N] numbers that mean the same in every split of a dataset, or [0] where there are none.
    """

    images: Sequence[Path | np.ndarray] | np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    names: Sequence[str] = ()


# The classes' names, the splits by name, and what of the files was left out.
Found: TypeAlias = tuple[tuple[str, ...], dict[str, Raw], tuple[str, ...]]


def taken(raw: Raw, index: np.ndarray) -> Raw:
    """Some of the examples, in the order of an index."""
    images = raw.images[index] if isinstance(raw.images, np.ndarray) else [raw.images[at] for at in index]
    groups = raw.groups[index] if len(raw.groups) else raw.groups
    return Raw(images, raw.labels[index], groups, [raw.names[at] for at in index] if raw.names else ())


def shuffled(raw: Raw) -> Raw:
    """A fixed random order, so that the first examples of a test set are a fair sample of it."""
    return taken(raw, np.random.default_rng(0).permutation(len(raw.labels)))


def balanced(labels: np.ndarray, groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random order in which every prefix has the classes' shares (within one example), and the first ones are of all classes.

    Whole groups stay together, each as one example of the class that most of it is of.
    """
    if len(groups):
        names, member = np.unique(groups, return_inverse=True)
        usual = np.array([np.bincount(labels[groups == name]).argmax() for name in names])
        return np.argsort(np.argsort(balanced(usual, np.empty(0), rng))[member], kind="stable")
    rank = np.empty(len(labels))
    for label in np.unique(labels):
        members, offset = np.flatnonzero(labels == label), rng.random()
        members = rng.permutation(members)
        rank[members] = (np.arange(len(members)) + offset) / len(members)
        rank[members[0]] -= 1
    return np.argsort(rank, kind="stable")
