"""Datasets as arrays: decoded and preprocessed once, then memory-mapped by every worker.

Reads files, writes to the cache, imports torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from xferbench.core.cached_files import flush_tree, read_or_discard
from xferbench.core.canonical import digest
from xferbench.core.errors import UserError
from xferbench.core.files import name_path
from xferbench.data import sources
from xferbench.data.images import highest_value, is_rotated, is_sixteen_bit, open_image
from xferbench.data.raw import RawExample, TextExample, balanced_order
from xferbench.lab.data import batch
from xferbench.lab.data.preprocessing import apply_geometry, geometry_key, to_tensor
from xferbench.lab.training import seeds

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from xferbench.core.pipeline import Data
    from xferbench.core.transforms import InputTransform
    from xferbench.data.raw import DecodedExample, RawSplit

VERSION = 5
MAX_VALIDATION = 500  # maximum number of validation images that are taken from the training data


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Examples of a dataset.

    Attributes:
        images: [N, C, H, W]. Images are uint8 with three channels; spectrograms are uint8 or float32 with one channel. Texts
            are [N, 2, L] int32: token ids and segments.
        labels: [N].
        groups: [N], or [0] without groups. A group has the same number in every split.
        example: [N] uint64, digests of the original examples.
    """

    images: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    example: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """A dataset in one geometry.

    Attributes:
        classes: the class names, in the order of the labels.
        train: the training examples.
        validation: the validation examples; None if they are taken from ``train``.
        test: the test examples.
        left_out: unreadable files, with the reason.
        rotated, sixteen_bit: numbers of images with an EXIF orientation, and with 16 bits per channel.
        highest: the highest value of images with 16 bits per channel.
    """

    classes: tuple[str, ...]
    train: Split
    validation: Split | None
    test: Split
    left_out: tuple[str, ...]
    rotated: int = 0
    sixteen_bit: int = 0
    highest: int = 0


def load_dataset(
    data: Data, preprocessing: InputTransform, test_size: int | None, cache: Path, *, only_test: bool = False
) -> Dataset:
    """Load a dataset in the geometry of a preprocessing, and write it to the cache if it is not there.

    With ``only_test``, the other splits may be missing. An audit tries many geometries, and decoding the training images in
    each of them would take more time than everything else.

    Raises:
        UserError: if the dataset cannot be used.
    """
    generated_size = sources.generated_size(data.spec, test_size)
    geometry = geometry_key(preprocessing)
    folder = cache / "data" / digest((VERSION, data.digest, digest(geometry), generated_size))[:32]
    dataset = read_or_discard(folder, _open_dataset)
    if dataset is None and only_test:
        folder = folder.with_name(f"{folder.name}-test")
        dataset = read_or_discard(folder, _open_dataset)
    if dataset is None:
        with name_path(folder):
            _prepare(data.spec, geometry, generated_size, folder, only_test=only_test)
        dataset = _open_dataset(folder)
    _check_size("test_size", test_size, len(dataset.test.labels), "test")
    return replace(dataset, test=take(dataset.test, slice(test_size)))


def _open_dataset(folder: Path) -> Dataset:
    """Return a prepared dataset with all its test images. Damage raises any exception."""
    metadata = json.loads((folder / "about.json").read_text())
    test = _open_split(folder / "test")
    return Dataset(
        classes=tuple(metadata["classes"]),
        train=_open_split(folder / "train") if (folder / "train").is_dir() else take(test, slice(0)),
        validation=_open_split(folder / "validation") if (folder / "validation").is_dir() else None,
        test=test,
        left_out=tuple(metadata["left_out"]),
        rotated=metadata["rotated"],
        sixteen_bit=metadata["sixteen_bit"],
        highest=metadata["highest"],
    )


def input_shape(dataset: Dataset, transform: InputTransform) -> batch.Shape:
    """Return the shape of one example as the input of a network."""
    return batch.example_shape(to_tensor(torch.from_numpy(np.array(dataset.test.images[:1])), transform))


def train_validation_indices(dataset: Dataset, train_size: int | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the training subset and of the validation examples in ``dataset.train``, for one seed.

    The subset is stratified by class and nested: with one seed, a smaller subset is contained in a larger one. A group is never
    divided between training and validation. If nothing would remain for validation, a fifth of the training data is held out,
    or one group. If the dataset has a validation split, the remaining examples are unused and the second array is empty.

    Raises:
        UserError: if there are fewer training images than ``train_size``, or the subset lacks a class.
    """
    labels, groups = dataset.train.labels, dataset.train.groups
    _check_size("train_size", train_size, len(labels), "training")
    order = balanced_order(labels, groups, seeds.numpy_stream(seed, seeds.SUBSET))
    has_validation = dataset.validation is not None
    size = train_size or len(order)
    if not has_validation and size >= 0.9 * len(order):
        size = len(order) - max(1, len(order) // 5)
    train, remaining = order[:size], order[size:]
    if len(groups) and not has_validation:
        remaining = remaining[~np.isin(groups[remaining], groups[train])]
        if not len(remaining):
            last_group = groups[order[-1]]
            train, remaining = train[groups[train] != last_group], order[groups[order] == last_group]
    missing = set(range(len(dataset.classes))) - set(labels[train].tolist())
    if missing:
        class_names = ", ".join(dataset.classes[index] for index in sorted(missing))
        found = f"{len(train)} of {len(order)} training examples, none of {class_names}"
        raise UserError("[target] train_size: too small", found=found, expected="at least one training example per class")
    return np.sort(train), np.sort(remaining[:MAX_VALIDATION]) if not has_validation else np.empty(0, np.int64)


def _check_size(key: str, size: int | None, available: int, split: str) -> None:
    if size is not None and size > available:
        raise UserError(
            f"[target] {key}: more than there are",
            found=f"{size}, of {available} {split} examples",
            expected=f"at most {available}",
            do=f"lower {key}, or leave it out to use all",
        )


def with_shuffled_labels(dataset: Dataset, seed: int) -> Dataset:
    """Return a dataset with the labels shuffled among the training images, and among those of a validation split."""
    rng = seeds.numpy_stream(seed, seeds.LABELS)

    def shuffle(split: Split) -> Split:
        return replace(split, labels=rng.permutation(split.labels))

    validation = dataset.validation
    return replace(dataset, train=shuffle(dataset.train), validation=None if validation is None else shuffle(validation))


def split_half(split: Split, *, second: bool) -> Split:
    """Return one of two halves of a split with similar class frequencies.

    If there are several groups, each stays in one half.
    """
    order = balanced_order(split.labels, split.groups, np.random.default_rng(0))
    middle = len(order) // 2
    if len(split.groups):
        groups = split.groups[order]
        boundaries = np.flatnonzero(groups[1:] != groups[:-1]) + 1
        middle = int(boundaries[np.abs(boundaries - middle).argmin()]) if len(boundaries) else middle
    return take(split, np.sort(order[middle:] if second else order[:middle]))


def take(split: Split, index: np.ndarray | slice) -> Split:
    """Return some of the examples of a split."""
    groups = split.groups[index] if len(split.groups) else split.groups
    return Split(images=split.images[index], labels=split.labels[index], groups=groups, example=split.example[index])


def _open_split(folder: Path) -> Split:
    with (folder / "rest.npz").open("rb") as file:  # NumPy leaves a damaged file open
        arrays: dict[str, Any] = dict(np.load(file))
    split = Split(images=np.load(folder / "images.npy", mmap_mode="r"), **arrays)
    if len({len(split.images), len(split.labels), len(split.example)}) > 1:
        raise ValueError(f"{folder}: arrays of different lengths")
    return split


def _prepare(spec: str, geometry: InputTransform, generated_size: int | None, folder: Path, *, only_test: bool) -> None:
    """Decode a dataset into a temporary folder and rename it, so that an interrupted run leaves no partial dataset."""
    classes, splits, unreadable = sources.read_dataset(spec, generated_size)
    splits = {"test": splits["test"]} if only_test else splits
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=f".{os.getpid()}", dir=folder.parent))
    try:
        counts = dict[str, Counter[str]]()
        for name, raw in splits.items():
            unread, counts[name] = _write_split(raw, geometry, temporary / name, f"{spec} ({name})", classes)
            unreadable = (*unreadable, *unread)
        _check_one_size(spec, {np.load(temporary / name / "images.npy", mmap_mode="r").shape[1:] for name in splits})
        formats = {name: sum(split[name] for split in counts.values()) for name in ("rotated", "sixteen_bit")}
        formats["highest"] = max(split["highest"] for split in counts.values())
        (temporary / "about.json").write_text(json.dumps({"classes": classes, "left_out": unreadable} | formats))
        flush_tree(temporary)
        try:
            temporary.rename(folder)
        except OSError:
            if not (folder / "about.json").is_file():  # otherwise another worker was faster
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_split(
    raw: RawSplit, geometry: InputTransform, folder: Path, name: str, classes: Sequence[str]
) -> tuple[tuple[str, ...], Counter[str]]:
    """Decode one split.

    Returns:
        The names of the unreadable files, with the reason; the numbers of images that are ``rotated`` or ``sixteen_bit``; and
        the ``highest`` 16-bit value.
    """
    images, readable, unreadable, counts = [], [], [], Counter[str]()

    def decode(image: DecodedExample) -> np.ndarray:
        decoded = apply_geometry(image, geometry)
        if isinstance(image, TextExample):
            return decoded
        counts.update(rotated=is_rotated(image), sixteen_bit=is_sixteen_bit(image))
        counts["highest"] = max(counts["highest"], highest_value(image))
        return decoded

    for index, image in enumerate(raw.images):
        if not isinstance(image, Path | bytes):
            images.append(decode(image))
            readable.append(index)
            continue
        decoded, reason = open_image(image, decode)
        if decoded is None:
            unreadable.append(f"{raw.names[index]}: {reason}")
        else:
            images.append(decoded)
            readable.append(index)
    labels = raw.labels[readable]
    required = range(len(classes)) if folder.name == "train" else raw.labels.tolist()  # a test set may lack a class
    empty = sorted(set(required) - set(labels.tolist()))
    if empty:
        found = f"none of {classes[empty[0]]}" + (f"; {unreadable[0]}" if unreadable else "")
        raise UserError(f"{name}: a class without an example that can be read", found=found, expected="some of each class")
    _check_one_size(name, {image.shape for image in images})
    stacked = np.stack(images)
    folder.mkdir()
    np.save(folder / "images.npy", stacked)
    groups = raw.groups[readable] if len(raw.groups) else raw.groups
    digests = np.array([_example_digest(raw.images[index], raw.labels[index]) for index in readable], np.uint64)
    np.savez(folder / "rest.npz", labels=labels.astype(np.int64), groups=groups.astype(np.int64), example=digests)
    return tuple(unreadable), counts


def _check_one_size(name: str, shapes: Iterable[tuple[int, ...]]) -> None:
    shapes = sorted(set(shapes))
    if len(shapes) > 1:
        raise UserError(
            f"{name}: images of differing sizes",
            found=", ".join(f"{shape[-1]}×{shape[-2]}" for shape in shapes[:3]),
            expected="one size, or a preprocessing that produces one",
            do="set resize and crop under [backbone] preprocessing",
        )


def _example_digest(image: RawExample, label: int) -> int:
    """Compute a digest of an original example, so that arms with different preprocessing can be paired."""
    if isinstance(image, TextExample):
        content = "\0".join(image).encode("utf-8", "surrogatepass")
    else:
        stored = image.read_bytes() if isinstance(image, Path) else image
        content = stored if isinstance(stored, bytes) else np.ascontiguousarray(stored).tobytes()
    hashed = hashlib.blake2b(content, digest_size=8, salt=int(label).to_bytes(8, "little"))
    return int.from_bytes(hashed.digest(), "little")
