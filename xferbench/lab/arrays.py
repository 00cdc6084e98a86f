"""Datasets in an npz file: arrays of images, or of spectrograms, with their labels and groups."""

from __future__ import annotations

import zipfile
import zlib
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.lib.npyio import NpzFile

from xferbench.lab.raw import Found, Raw, shuffled
from xferbench.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path


DAMAGED = (ValueError, OSError, EOFError, TypeError, KeyError, zipfile.BadZipFile, zlib.error)  # what reading one raises
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


def streamed(path: Path) -> tuple[Iterator[np.ndarray], np.ndarray]:
    """The training images of an npz file one by one, never all of them in memory, and their labels [N] or [0].

    They are ``train_images``, or ``images`` where nothing is split.

    Raises:
        Problem: for a file or arrays that cannot be used; for a damaged member when it is reached.
    """
    try:
        with zipfile.ZipFile(path) as held:
            names = {name.removesuffix(".npy") for name in held.namelist()}
            prefix = next((one for one in ("train_", "") if f"{one}images" in names), None)
            if prefix is None:
                found, expected = ", ".join(sorted(names)[:6]) or "none", "train_images, or images"
                raise Problem(f"{path}: arrays are missing", found=found, expected=expected)
            with held.open(f"{prefix}images.npy") as member:
                shape, _, kind = _header(member)
            labels = np.empty(0, np.int64)
            if f"{prefix}labels" in names:
                with held.open(f"{prefix}labels.npy") as member:
                    labels = np.lib.format.read_array(member, allow_pickle=False).ravel()
    except DAMAGED as error:
        raise _damaged(path, error, "images") from error
    if kind not in {np.dtype(np.uint8), np.dtype(np.uint16)} or 0 in shape or not _is_image(shape):
        raise Problem(f"{path}: {prefix}images", found=f"{kind} {shape}", expected=IMAGES.partition(";")[0])
    if len(labels) not in {0, shape[0]}:
        found = f"{len(labels)} for {shape[0]} images"
        raise Problem(f"{path}: {prefix}labels", found=found, expected="one for each image")
    return _members(path, f"{prefix}images.npy"), labels


def _is_image(shape: tuple[int, ...]) -> bool:
    return len(shape) == 3 or (len(shape) == 4 and shape[3] in {1, 3})


def _header(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(member)


def _members(path: Path, name: str) -> Iterator[np.ndarray]:
    """The rows of an array in an npz file."""
    try:
        with zipfile.ZipFile(path) as held, held.open(name) as member:
            shape, by_column, kind = _header(member)
            if by_column:  # a row of such lies scattered over the whole file
                what, found = f"{path}: {name} cannot be streamed", "stored column by column"
                raise Problem(what, found=found, expected="row by row", do="save np.ascontiguousarray of it")
            size = int(np.prod(shape[1:])) * kind.itemsize
            for _ in range(shape[0]):
                row = member.read(size)
                if len(row) < size:
                    raise EOFError("an array that ends too early")
                yield np.frombuffer(row, kind).reshape(shape[1:])
    except DAMAGED as error:
        raise _damaged(path, error, name) from error


def _damaged(path: Path, error: Exception, expected: str) -> Problem:
    said = f"{type(error).__name__}: {error}"[:160]
    return Problem(f"{path}: not an npz file of plain arrays", found=said, expected=expected)


def _arrays(path: Path, wanted: Sequence[str]) -> dict[str, np.ndarray]:
    """All arrays of an npz file, none of which may be pickled."""
    try:
        with path.open("rb") as file, NpzFile(file, allow_pickle=False) as found:
            held: dict[str, Any] = dict(found)  # a member that is no array comes as bytes
    except DAMAGED as error:
        raise _damaged(path, error, ", ".join(wanted)) from error
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
