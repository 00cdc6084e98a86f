"""Read datasets from npz files: arrays of images or of spectrograms, with their labels and groups.

Reads files.
"""

from __future__ import annotations

import zipfile
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.npyio import NpzFile

from xferbench.core.array_file import read_header
from xferbench.core.errors import UserError
from xferbench.data.raw import DatasetParts, RawSplit, shuffle

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path


# The errors that reading a damaged file raises.
# zipfile raises RuntimeError for a damaged member that seems encrypted or of an unknown compression.
READ_ERRORS = (ValueError, OSError, EOFError, TypeError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error)
ARRAYS_EXPECTED = "uint8 or uint16, N×H×W, N×H×W×1 or N×H×W×3, no axis 0; or spectrograms: any of these or floats, N×H×W"


def read_npz(path: Path) -> DatasetParts:
    """Read the dataset of an npz file.

    Raises:
        UserError: If the file or its arrays cannot be used.
    """
    required = ("train_images", "train_labels", "test_images", "test_labels")
    arrays = _read_arrays(path, required)
    splits_present = tuple(split for split in ("train", "test") if f"{split}_images" in arrays)  # a test set may be alone
    for split in splits_present:
        _check_split(path, split, arrays)
    label_values = np.unique(arrays[f"{splits_present[0]}_labels"])
    if len(label_values) < 2 or not set(np.unique(arrays["test_labels"])) <= set(label_values):
        found = f"{splits_present[0]} {label_values[:8].tolist()}, test {np.unique(arrays['test_labels'])[:8].tolist()}"
        raise UserError(
            f"{path}: labels", found=found, expected="at least two classes, and no test class that is missing from train"
        )
    names = [str(name) for name in arrays.get("classes", label_values)]
    if len(names) != len(label_values):
        found = f"{len(names)} names for {len(label_values)} classes"
        raise UserError(f"{path}: classes", found=found, expected="one name for each label, in the order of the labels")
    groups = _number_groups(arrays.get("train_groups"), arrays.get("test_groups"))
    splits = {
        split: RawSplit(
            arrays[f"{split}_images"],
            np.asarray(np.searchsorted(label_values, arrays[f"{split}_labels"].ravel()), np.int64),
            groups[split],
        )
        for split in splits_present
    }
    used_names = {*required, "classes", "train_groups", "test_groups"}
    unused = tuple(f"{path.name}: array {name} is not used" for name in sorted(set(arrays) - used_names))
    return tuple(names), splits | {"test": shuffle(splits["test"])}, unused


def stream_train_images(path: Path) -> tuple[Iterator[np.ndarray], np.ndarray]:
    """Return an iterator over the training images of an npz file, and their labels [N] or [0].

    The images are never all in memory. They are ``train_images``, or ``images`` if the file has no splits.

    Raises:
        UserError: If the file or its arrays cannot be used. A damaged member raises when the iterator reaches it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
            prefix = next((start for start in ("train_", "") if f"{start}images" in names), None)
            if prefix is None:
                found, expected = ", ".join(sorted(names)[:6]) or "none", "train_images, or images"
                raise UserError(f"{path}: arrays are missing", found=found, expected=expected)
            with archive.open(f"{prefix}images.npy") as member:
                shape, _, dtype = read_header(member)
            labels = np.empty(0, np.int64)
            if f"{prefix}labels" in names:
                with archive.open(f"{prefix}labels.npy") as member:
                    labels = np.lib.format.read_array(member, allow_pickle=False).ravel()
    except READ_ERRORS as error:
        raise _damaged_file(path, error, "images") from error
    if dtype not in {np.dtype(np.uint8), np.dtype(np.uint16)} or 0 in shape or not _is_image(shape):
        raise UserError(f"{path}: {prefix}images", found=f"{dtype} {shape}", expected=ARRAYS_EXPECTED.partition(";")[0])
    if len(labels) not in {0, shape[0]}:
        found = f"{len(labels)} for {shape[0]} images"
        raise UserError(f"{path}: {prefix}labels", found=found, expected="one label for each image")
    return _stream_rows(path, f"{prefix}images.npy"), labels


def _is_image(shape: tuple[int, ...]) -> bool:
    return len(shape) == 3 or (len(shape) == 4 and shape[3] in {1, 3})


def _stream_rows(path: Path, name: str) -> Iterator[np.ndarray]:
    """Yield the rows of an array in an npz file."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(name) as member:
            shape, is_column_major, dtype = read_header(member)
            if is_column_major:  # a row of such an array is scattered over the whole file
                message, found = f"{path}: {name} cannot be streamed", "stored column by column"
                raise UserError(message, found=found, expected="row by row", do="save np.ascontiguousarray(array)")
            size = int(np.prod(shape[1:])) * dtype.itemsize
            for _ in range(shape[0]):
                row = member.read(size)
                if len(row) < size:
                    raise EOFError("the array ends too early")
                yield np.frombuffer(row, dtype).reshape(shape[1:])
    except READ_ERRORS as error:
        raise _damaged_file(path, error, name) from error


def _damaged_file(path: Path, error: Exception, expected: str) -> UserError:
    reason = f"{type(error).__name__}: {error}"[:160]
    return UserError(f"{path}: not an npz file of plain arrays", found=reason, expected=expected)


def _read_arrays(path: Path, required: Sequence[str]) -> dict[str, np.ndarray]:
    """Return all arrays of an npz file. Pickled arrays are refused."""
    try:
        with path.open("rb") as file, NpzFile(file, allow_pickle=False) as archive:
            members: dict[str, Any] = dict(archive)  # a member that is not an array is read as bytes
    except READ_ERRORS as error:
        raise _damaged_file(path, error, ", ".join(required)) from error
    arrays = {name: array for name, array in members.items() if isinstance(array, np.ndarray)}
    is_test_only = not any(name.startswith("train_") for name in arrays)
    if {name for name in required if not (is_test_only and name.startswith("train_"))} - set(arrays):
        raise UserError(f"{path}: arrays are missing", found=", ".join(sorted(arrays)) or "none", expected=", ".join(required))
    return arrays


def _check_split(path: Path, split: str, arrays: Mapping[str, np.ndarray]) -> None:
    images, labels, groups = (arrays.get(f"{split}_{part}") for part in ("images", "labels", "groups"))
    assert images is not None
    assert labels is not None
    shape, is_integer = images.shape, images.dtype in {np.dtype(np.uint8), np.dtype(np.uint16)}
    channels = {1, 3} if is_integer else {1}
    is_usable = (is_integer or images.dtype.kind == "f") and (len(shape) == 3 or (len(shape) == 4 and shape[3] in channels))
    if not is_usable or not images.size:
        raise UserError(f"{path}: {split}_images", found=f"{images.dtype} {shape}", expected=ARRAYS_EXPECTED)
    if not is_integer and not np.isfinite(images).all():
        position = int(np.flatnonzero(~np.isfinite(images).reshape(len(images), -1).all(1))[0])
        raise UserError(f"{path}: {split}_images", found=f"NaN or infinity in image {position}", expected="finite numbers")
    if labels.dtype.kind not in "iuU" or labels.shape not in {(len(images),), (len(images), 1)}:
        found = f"{labels.dtype} {labels.shape} for {len(images)} images"
        raise UserError(f"{path}: {split}_labels", found=found, expected="an integer or a string for each image")
    if groups is not None and (groups.dtype.kind not in "iuU" or groups.shape != (len(images),)):
        found = f"{groups.dtype} {groups.shape} for {len(images)} images"
        raise UserError(f"{path}: {split}_groups", found=found, expected="an integer or a string for each image")


def _number_groups(train: np.ndarray | None, test: np.ndarray | None) -> dict[str, np.ndarray]:
    """Return the groups of each split as integers, [0] for a split without groups.

    Groups of the same kind (text or number) get the same numbers in both splits.
    """
    groups_by_split = {"train": train, "test": test}
    numbers = {split: np.empty(0, np.int64) for split in groups_by_split}
    kinds = {
        split: "text" if groups.dtype.kind == "U" else "number"
        for split, groups in groups_by_split.items()
        if groups is not None
    }
    offset = 0
    for kind in dict.fromkeys(kinds.values()):
        same_kind = {split: groups for split, groups in groups_by_split.items() if groups is not None and kinds[split] == kind}
        names, member = np.unique(np.concatenate(list(same_kind.values())), return_inverse=True)
        parts = np.split(member.astype(np.int64) + offset, np.cumsum([len(groups) for groups in same_kind.values()])[:-1])
        numbers |= dict(zip(same_kind, parts, strict=True))
        offset += len(names)
    return numbers
