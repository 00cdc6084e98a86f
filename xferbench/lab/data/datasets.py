"""Datasets: decoded and brought to one size once, kept as arrays that every worker maps into memory."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from xferbench.core.canonical import digest
from xferbench.core.errors import UserError
from xferbench.data import sources
from xferbench.data.images import open_image
from xferbench.data.raw import balanced_order
from xferbench.lab.data import batch
from xferbench.lab.data.preprocessing import apply_geometry, geometry_key, to_tensor
from xferbench.lab.training import seeds

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from xferbench.core.pipeline import Data, InputTransform
    from xferbench.data.raw import RawSplit

VERSION = 3
MAX_VALIDATION = 500  # images of a validation set cut from plenty


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """N examples: ``images`` [N, C, H, W], ``labels`` [N], ``groups`` [N] or [0], ``example`` [N] uint64 digests.

    Images are uint8 with three channels, spectrograms uint8 or float32 with one. A group's number is the same in every split.
    """

    images: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    example: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Three splits; ``validation`` is None where it is to be cut from ``train``. ``left_out`` names unreadable files."""

    classes: tuple[str, ...]
    train: Split
    validation: Split | None
    test: Split
    left_out: tuple[str, ...]


def load_dataset(data: Data, preprocessing: InputTransform, test_size: int | None, cache: Path) -> Dataset:
    """The dataset in the geometry of a preprocessing, from the cache or put there.

    Raises:
        UserError: for a dataset that cannot be used, with what was found and what was expected.
    """
    generated = max(test_size or 0, sources.SYNTHETIC_SPLIT_SIZES["test"]) if data.spec.startswith("synthetic:") else None
    geometry = geometry_key(preprocessing)
    place = cache / "data" / digest((VERSION, data.digest, digest(geometry), generated))[:32]
    if not (place / "about.json").is_file():
        _prepare(data.spec, geometry, generated, place)
    about = json.loads((place / "about.json").read_text())
    test = _open(place / "test")
    _enough("test_size", test_size, len(test.labels), "test")
    return Dataset(
        classes=tuple(about["classes"]),
        train=_open(place / "train") if (place / "train").is_dir() else take(test, slice(0)),
        validation=_open(place / "validation") if (place / "validation").is_dir() else None,
        test=take(test, slice(test_size)),
        left_out=tuple(about["left_out"]),
    )


def input_shape(dataset: Dataset, ready: InputTransform) -> batch.Shape:
    """What a network is given of one example."""
    return batch.example_shape(to_tensor(torch.from_numpy(np.array(dataset.test.images[:1])), ready))


def train_validation_indices(dataset: Dataset, train_size: int | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training subset and of the validation examples within ``dataset.train``, for one seed.

    The subset is stratified by class and nested: a smaller one of the same seed lies within a larger one. Groups are never
    parted between the two. Where nothing would be left for validation, a fifth of the training data is held out, or one
    group; where the dataset brings a validation split, all of the rest is unused and the second array is empty.

    Raises:
        UserError: where the training data do not have as many images, or the subset lacks a class.
    """
    labels, groups = dataset.train.labels, dataset.train.groups
    _enough("train_size", train_size, len(labels), "training")
    order = balanced_order(labels, groups, seeds.numpy_stream(seed, seeds.SUBSET))
    own = dataset.validation is not None
    size = train_size or len(order)
    if not own and size >= 0.9 * len(order):
        size = len(order) - max(1, len(order) // 5)
    train, rest = order[:size], order[size:]
    if len(groups) and not own:
        rest = rest[~np.isin(groups[rest], groups[train])]
        if not len(rest):
            last = groups[order[-1]]
            train, rest = train[groups[train] != last], order[groups[order] == last]
    missing = set(range(len(dataset.classes))) - set(labels[train].tolist())
    if missing:
        named = ", ".join(dataset.classes[index] for index in sorted(missing))
        found = f"{len(train)} of {len(order)} training images, none of {named}"
        raise UserError("[target] train_size: too small", found=found, expected="at least one training image a class")
    return np.sort(train), np.sort(rest[:MAX_VALIDATION]) if not own else np.empty(0, np.int64)


def _enough(key: str, asked: int | None, there: int, what: str) -> None:
    if asked is not None and asked > there:
        do = f"lower {key}, or leave it out to use all"
        raise UserError(
            f"[target] {key}: more than there are",
            found=f"{asked}, of {there} {what} images",
            expected=f"at most {there}",
            do=do,
        )


def with_shuffled_labels(dataset: Dataset, seed: int) -> Dataset:
    """The same with the training labels shuffled among the images, and those of a validation split too."""
    rng = seeds.numpy_stream(seed, seeds.LABELS)

    def mixed(split: Split) -> Split:
        return replace(split, labels=rng.permutation(split.labels))

    own = dataset.validation
    return replace(dataset, train=mixed(dataset.train), validation=None if own is None else mixed(own))


def split_half(split: Split, *, second: bool) -> Split:
    """One of two halves of a split, alike in their classes; whole groups stay on one side, as far as there are several."""
    order = balanced_order(split.labels, split.groups, np.random.default_rng(0))
    middle = len(order) // 2
    if len(split.groups):
        own = split.groups[order]
        ends = np.flatnonzero(own[1:] != own[:-1]) + 1
        middle = int(ends[np.abs(ends - middle).argmin()]) if len(ends) else middle
    return take(split, np.sort(order[middle:] if second else order[:middle]))


def take(split: Split, index: np.ndarray | slice) -> Split:
    """Some of the examples of a split; the groups too, where it has any."""
    groups = split.groups[index] if len(split.groups) else split.groups
    return Split(images=split.images[index], labels=split.labels[index], groups=groups, example=split.example[index])


def _open(place: Path) -> Split:
    arrays: dict[str, Any] = dict(np.load(place / "rest.npz"))
    return Split(images=np.load(place / "images.npy", mmap_mode="r"), **arrays)


def _prepare(spec: str, geometry: InputTransform, generated: int | None, place: Path) -> None:
    """Decode a dataset into a folder beside its final place, then rename, so that a killed run leaves nothing half done."""
    classes, splits, left_out = sources.read_dataset(spec, generated)
    place.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(dir=place.parent))
    try:
        for name, raw in splits.items():
            left_out = (*left_out, *_write(raw, geometry, building / name, f"{spec} ({name})", classes))
        _one_size(spec, {np.load(building / name / "images.npy", mmap_mode="r").shape[1:] for name in splits})
        (building / "about.json").write_text(json.dumps({"classes": classes, "left_out": left_out}))
        try:
            building.rename(place)
        except OSError:
            if not (place / "about.json").is_file():  # else another worker was quicker
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _write(raw: RawSplit, geometry: InputTransform, place: Path, what: str, classes: Sequence[str]) -> tuple[str, ...]:
    """Decode one split; the names of the files that could not be read."""
    images, kept, unreadable = [], [], []
    for index, image in enumerate(raw.images):
        if not isinstance(image, Path):
            images.append(apply_geometry(image, geometry))
            kept.append(index)
            continue
        decoded, why = open_image(image, lambda opened: apply_geometry(opened, geometry))
        if decoded is None:
            unreadable.append(f"{raw.names[index]}: {why}")
        else:
            images.append(decoded)
            kept.append(index)
    labels = raw.labels[kept]
    empty = sorted(set(range(len(classes))) - set(labels.tolist()))
    if empty:
        found = f"none of {classes[empty[0]]}" + (f"; {unreadable[0]}" if unreadable else "")
        raise UserError(f"{what}: a class without an image that can be read", found=found, expected="some of each class")
    _one_size(what, {image.shape for image in images})
    stacked = np.stack(images)
    place.mkdir()
    np.save(place / "images.npy", stacked)
    groups = raw.groups[kept] if len(raw.groups) else raw.groups
    digests = np.array([_example(raw.images[index], raw.labels[index]) for index in kept], np.uint64)
    np.savez(place / "rest.npz", labels=labels.astype(np.int64), groups=groups.astype(np.int64), example=digests)
    return tuple(unreadable)


def _one_size(what: str, shapes: Iterable[tuple[int, ...]]) -> None:
    shapes = sorted(set(shapes))
    if len(shapes) > 1:
        found = ", ".join(f"{shape[-1]}×{shape[-2]}" for shape in shapes[:3])
        do = "set resize and crop under [backbone] preprocessing"
        raise UserError(
            f"{what}: images of differing sizes", found=found, expected="one size, or a preprocessing that makes one", do=do
        )


def _example(image: Path | np.ndarray, label: int) -> int:
    """A digest of an example as it came, so that arms that resize it differently are still paired."""
    held = image.read_bytes() if isinstance(image, Path) else np.ascontiguousarray(image).tobytes()
    content = hashlib.blake2b(held, digest_size=8, salt=int(label).to_bytes(8, "little"))
    return int.from_bytes(content.digest(), "little")
