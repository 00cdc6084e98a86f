"""Datasets in an npz file: arrays of images, or of spectrograms, with their labels and groups."""

from __future__ import annotations

import zipfile
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.npyio import NpzFile

from xferbench.lab.raw import Found, Raw, shuffled
from xferbench.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


IMAGES = "uint8 or uint16, N×H×W, N×H×W×1 or N×H×W×3, none of them 0; or spectrograms: any of these or floats, N×H×W"


def read(path: Path) -> Found:
    """The dataset in an npz file.

    Raises:
        Problem: for a file or arrays that cannot be used.
    """
    wanted = ("train_images", "train_labels", "test_images", "test_labels")
    arrays = _arrays(path, wanted)
    present = tuple(split for split in ("train", "test") if f"{split}_images" in arrays)  # a test set alone has no train
    for split in present:
        _check_split(path, split, arrays)
    values = np.unique(arrays[f"{present[0]}_labels"])
    if len(values) < 2 or not set(np.unique(arrays["test_labels"])) <= set(values):
        found = f"{present[0]} {values[:8].tolist()}, test {np.unique(arrays['test_labels'])[:8].tolist()}"
        raise Problem(f"{path}: labels", found=found, expected="at least two classes, and no test class that train has not")
    names = [str(name) for name in arrays.get("classes", values)]
    if len(names) != len(values):
        found = f"{len(names)} names for {len(values)} classes"
        raise Problem(f"{path}: classes", found=found, expected="a name for each label, in the labels' order")
    groups = _groups(arrays.get("train_groups"), arrays.get("test_groups"))
    splits = {
        split: Raw(
            arrays[f"{split}_images"],
            np.asarray(np.searchsorted(values, arrays[f"{split}_labels"].ravel()), np.int64),
            groups[split],
        )
        for split in present
    }
    known = {*wanted, "classes", "train_groups", "test_groups"}
    unused = tuple(f"{path.name}: array {name} is not used" for name in sorted(set(arrays) - known))
    return tuple(names), splits | {"test": shuffled(splits["test"])}, unused


def _arrays(path: Path, wanted: Sequence[str]) -> dict[str, np.ndarray]:
    """All arrays of an npz file, none of which may be pickled."""
    damaged = (ValueError, OSError, EOFError, TypeError, KeyError, zipfile.BadZipFile, zlib.error)
    try:
        with path.open("rb") as file, NpzFile(file, allow_pickle=False) as found:
            held: dict[str, Any] = dict(found)  # a member that is no array comes as bytes
    except damaged as error:
        said = f"{type(error).__name__}: {error}"[:160]
        raise Problem(f"{path}: not an npz file of plain arrays", found=said, expected=", ".join(wanted)) from error
    arrays = {name: array for name, array in held.items() if isinstance(array, np.ndarray)}
    alone = not any(name.startswith("train_") for name in arrays)
    if {name for name in wanted if not (alone and name.startswith("train_"))} - set(arrays):
        raise Problem(f"{path}: arrays are missing", found=", ".join(sorted(arrays)) or "none", expected=", ".join(wanted))
    return arrays


def _check_split(path: Path, split: str, arrays: Mapping[str, np.ndarray]) -> None:
    images, labels, groups = (arrays.get(f"{split}_{part}") for part in ("images", "labels", "groups"))
    assert images is not None
    assert labels is not None
    shape, whole = images.shape, images.dtype in {np.dtype(np.uint8), np.dtype(np.uint16)}
    channels = {1, 3} if whole else {1}
    usable = (whole or images.dtype.kind == "f") and (len(shape) == 3 or (len(shape) == 4 and shape[3] in channels))
    if not usable or not images.size:
        raise Problem(f"{path}: {split}_images", found=f"{images.dtype} {shape}", expected=IMAGES)
    if not whole and not np.isfinite(images).all():
        first = int(np.flatnonzero(~np.isfinite(images).reshape(len(images), -1).all(1))[0])
        raise Problem(f"{path}: {split}_images", found=f"NaN or infinity in number {first}", expected="numbers only")
    if labels.dtype.kind not in "iuU" or labels.shape not in {(len(images),), (len(images), 1)}:
        found = f"{labels.dtype} {labels.shape} for {len(images)} images"
        raise Problem(f"{path}: {split}_labels", found=found, expected="a whole number or a text for each image")
    if groups is not None and (groups.dtype.kind not in "iuU" or groups.shape != (len(images),)):
        found = f"{groups.dtype} {groups.shape} for {len(images)} images"
        raise Problem(f"{path}: {split}_groups", found=found, expected="a whole number or a text for each image")


def _groups(train: np.ndarray | None, test: np.ndarray | None) -> dict[str, np.ndarray]:
    """Groups as numbers, the same in both splits where they are of one kind; none where there are none."""
    named = {"train": train, "test": test}
    numbers = {split: np.empty(0, np.int64) for split in named}
    kinds = {split: "text" if held.dtype.kind == "U" else "number" for split, held in named.items() if held is not None}
    offset = 0
    for kind in dict.fromkeys(kinds.values()):
        held = {split: one for split, one in named.items() if one is not None and kinds[split] == kind}
        names, member = np.unique(np.concatenate(list(held.values())), return_inverse=True)
        parts = np.split(member.astype(np.int64) + offset, np.cumsum([len(one) for one in held.values()])[:-1])
        numbers |= dict(zip(held, parts, strict=True))
        offset += len(names)
    return numbers
