"""Splits of a dataset before decoding. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

from xferbench.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL import Image


class TextExample(NamedTuple):
    """A text, and the second text of a pair, "" for none."""

    text: str
    pair: str = ""


RawExample: TypeAlias = Path | bytes | np.ndarray | TextExample
DecodedExample: TypeAlias = "Image.Image | np.ndarray | TextExample"


def text_error(kind: str) -> UserError:
    """Return the error of a text that meets a network for another kind of example."""
    do = "name a dataset of such examples, or a backbone that takes text"
    return UserError(f"a text for a network that takes {kind}", found="a text", expected=kind, do=do)


@dataclass(frozen=True, slots=True)
class RawSplit:
    """A split before decoding: image files or their bytes, arrays H×W(×1, ×3), or texts.

    Attributes:
        images: N image files, the bytes of image files, arrays or texts.
        labels: [N] int64.
        groups: [N] numbers that mean the same in every split of a dataset, or [0] if there are no groups.
        names: The names of the files as the user knows them, for messages.
    """

    images: Sequence[RawExample] | np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    names: Sequence[str] = ()


# The class names, the splits by name, and a note for each file that was left out.
DatasetParts: TypeAlias = tuple[tuple[str, ...], dict[str, RawSplit], tuple[str, ...]]


def take(raw: RawSplit, index: np.ndarray) -> RawSplit:
    """Return the examples at the given indices, in the order of the indices."""
    images = raw.images[index] if isinstance(raw.images, np.ndarray) else [raw.images[position] for position in index]
    groups = raw.groups[index] if len(raw.groups) else raw.groups
    return RawSplit(images, raw.labels[index], groups, [raw.names[position] for position in index] if raw.names else ())


def shuffle(raw: RawSplit) -> RawSplit:
    """Return the split in a fixed random order, so that the first examples of a test set are a fair sample of it."""
    return take(raw, np.random.default_rng(0).permutation(len(raw.labels)))


def balanced_order(labels: np.ndarray, groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a random order in which every prefix has the class shares of the whole, within one example.

    The first examples cover all classes. A group stays together and counts as one example of its most frequent class.
    """
    if len(groups):
        names, member = np.unique(groups, return_inverse=True)
        majority_label = np.array([np.bincount(labels[groups == name]).argmax() for name in names])
        return np.argsort(np.argsort(balanced_order(majority_label, np.empty(0), rng))[member], kind="stable")
    rank = np.empty(len(labels))
    for label in np.unique(labels):
        members, offset = np.flatnonzero(labels == label), rng.random()
        members = rng.permutation(members)
        rank[members] = (np.arange(len(members)) + offset) / len(members)
        rank[members[0]] -= 1
    return np.argsort(rank, kind="stable")
