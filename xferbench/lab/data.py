"""Datasets: decoded and brought to one size once, kept as arrays that every worker maps into memory."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xferbench.design import digest
from xferbench.lab import inputs, preprocess, seeds, synthetic
from xferbench.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xferbench.design import Data, Preprocessing

VERSION = 1
VALIDATION = 500  # images of a validation set cut from plenty
GENERATED = {"train": 4000, "test": 2000}
SOURCE_TRAIN = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """N examples: ``images`` [N, 3, H, W] uint8, ``labels`` [N], ``groups`` [N] or [0], ``example`` [N] uint64 digests."""

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


@dataclass(frozen=True, slots=True)
class Raw:
    """A split before decoding: image files, or arrays N×H×W(×3)."""

    images: Sequence[Path] | np.ndarray
    labels: np.ndarray
    groups: np.ndarray


def load(data: Data, preprocessing: Preprocessing, test_size: int | None, cache: Path) -> Dataset:
    """The dataset in the geometry of a preprocessing, from the cache or put there.

    Raises:
        Problem: for a dataset that cannot be used, with what was found and what was expected.
    """
    generated = max(test_size or 0, GENERATED["test"]) if data.spec.startswith("synthetic:") else None
    geometry = preprocess.geometry_key(preprocessing)
    place = cache / "data" / digest((VERSION, data.digest, digest(geometry), generated))[:32]
    if not (place / "about.json").is_file():
        _prepare(data.spec, geometry, generated, place)
    about = json.loads((place / "about.json").read_text())
    test = _open(place / "test")
    return Dataset(
        classes=tuple(about["classes"]),
        train=_open(place / "train"),
        validation=_open(place / "validation") if (place / "validation").is_dir() else None,
        test=taken(test, slice(test_size)),
        left_out=tuple(about["left_out"]),
    )


def subset(dataset: Dataset, train_size: int | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training subset and of the validation examples within ``dataset.train``, for one seed.

    The subset is stratified by class and nested: a smaller one of the same seed lies within a larger one. Groups are never
    parted between the two. Where nothing would be left for validation, a fifth of the training data is held out; where the
    dataset brings a validation split, all of the rest is unused and the second array is empty.
    """
    labels, groups = dataset.train.labels, dataset.train.groups
    order = _balanced(labels, groups, seeds.stream(seed, seeds.SUBSET))
    own = dataset.validation is not None
    plenty = train_size is not None and train_size < 0.9 * len(order)
    size = train_size if plenty and train_size else len(order) if own else len(order) - max(1, len(order) // 5)
    train, rest = order[:size], order[size:]
    if len(groups):
        rest = rest[~np.isin(groups[rest], groups[train])]
    missing = set(range(len(dataset.classes))) - set(labels[train].tolist())
    if missing:
        named = ", ".join(dataset.classes[index] for index in sorted(missing))
        raise Problem(
            f"train_size = {train_size}: too small",
            found=f"no training image of {named}",
            expected=f"at least {len(dataset.classes)}, one a class",
        )
    return np.sort(train), np.sort(rest[:VALIDATION]) if not own else np.empty(0, np.int64)


def _balanced(labels: np.ndarray, groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random order in which every prefix has the classes' shares (within one example); whole groups stay together."""
    if len(groups):
        shuffled = rng.permutation(np.unique(groups))
        return np.concatenate([np.flatnonzero(groups == group) for group in shuffled])
    rank = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        rank[rng.permutation(members)] = (np.arange(len(members)) + rng.random()) / len(members)
    return np.argsort(rank, kind="stable")


def taken(split: Split, index: np.ndarray | slice) -> Split:
    """Some of the examples of a split; the groups too, where it has any."""
    groups = split.groups[index] if len(split.groups) else split.groups
    return Split(images=split.images[index], labels=split.labels[index], groups=groups, example=split.example[index])


def _open(place: Path) -> Split:
    arrays: dict[str, Any] = dict(np.load(place / "rest.npz"))
    return Split(images=np.load(place / "images.npy", mmap_mode="r"), **arrays)


def _prepare(spec: str, geometry: Preprocessing, generated: int | None, place: Path) -> None:
    """Decode a dataset into a folder beside its final place, then rename, so that a killed run leaves nothing half done."""
    kind, rest = inputs.split_spec(spec)
    if kind == "folder":
        classes, splits, left_out = _folder(Path(rest))
    elif kind == "npz":
        classes, splits, left_out = _npz(Path(rest))
    elif kind == "digits":
        classes, splits, left_out = _digits()
    else:
        classes, splits, left_out = _synthetic(rest, generated or GENERATED["test"])
    place.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(dir=place.parent))
    try:
        for name, raw in splits.items():
            left_out = (*left_out, *_write(raw, geometry, building / name, f"{spec} ({name})", len(classes)))
        (building / "about.json").write_text(json.dumps({"classes": classes, "left_out": left_out}))
        if not place.exists():
            building.rename(place)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _write(raw: Raw, geometry: Preprocessing, place: Path, what: str, classes: int) -> tuple[str, ...]:
    """Decode one split; the names of the files that could not be read."""
    from PIL import Image, UnidentifiedImageError

    images, kept, unreadable = [], [], []
    for index, image in enumerate(raw.images):
        try:
            images.append(preprocess.geometry(Image.open(image) if isinstance(image, Path) else image, geometry))
            kept.append(index)
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
            if not isinstance(image, Path):
                raise
            unreadable.append(f"{image.parent.name}/{image.name}: {str(error).splitlines()[0][:80]}")
    sizes = {image.shape for image in images}
    if len(sizes) > 1:
        shown = ", ".join(f"{width}×{height}" for _, height, width in sorted(sizes)[:3])
        expected = "one size, or a preprocessing that makes one"
        raise Problem(
            f"{what}: images of differing sizes", found=shown, expected=expected, do="set resize and crop in preprocessing"
        )
    labels = raw.labels[kept]
    if len(set(labels.tolist())) < classes:
        empty = sorted(set(range(classes)) - set(labels.tolist()))
        raise Problem(
            f"{what}: a class without a readable image", found=f"none of class {empty[0]}", expected="some of each class"
        )
    stacked = np.stack(images)
    place.mkdir()
    np.save(place / "images.npy", stacked)
    groups = raw.groups[kept] if len(raw.groups) else raw.groups
    digests = np.array([_example(image, label) for image, label in zip(stacked, labels, strict=True)], np.uint64)
    np.savez(place / "rest.npz", labels=labels.astype(np.int64), groups=groups.astype(np.int64), example=digests)
    return tuple(unreadable)


def _example(image: np.ndarray, label: int) -> int:
    content = hashlib.blake2b(image.tobytes(), digest_size=8, salt=int(label).to_bytes(8, "little"))
    return int.from_bytes(content.digest(), "little")


def _shuffled(raw: Raw) -> Raw:
    """A fixed random order, so that the first examples of a test set are a fair sample of it."""
    order = np.random.default_rng(0).permutation(len(raw.labels))
    images = raw.images[order] if isinstance(raw.images, np.ndarray) else [raw.images[index] for index in order]
    return Raw(images, raw.labels[order], raw.groups[order] if len(raw.groups) else raw.groups)


def _folder(folder: Path) -> tuple[tuple[str, ...], dict[str, Raw], tuple[str, ...]]:
    present = {name for name in ("train", "val", "test") if (folder / name).is_dir()}
    if "train" not in present or not present & {"val", "test"}:
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:6]) or "nothing"
        expected = "train/ and val/ or test/, each with one folder of images a class"
        raise Problem(f"{folder}: not a dataset folder", found=found, expected=expected)
    classes = tuple(
        sorted(path.name for path in (folder / "train").iterdir() if path.is_dir() and not path.name.startswith("."))
    )
    if len(classes) < 2:
        found = f"{len(classes)} class folder(s): {', '.join(classes) or 'none'}"
        raise Problem(f"{folder / 'train'}: too few classes", found=found, expected="at least two folders, one a class")
    roles = {"train": "train"} | ({"validation": "val", "test": "test"} if "test" in present else {"test": "val"})
    splits, left_out = {}, []
    for role, name in roles.items():
        if name not in present:
            continue
        files = [path for path in inputs.walk(folder / name) if path.parent.parent == folder / name]
        strange = sorted({path.parent.name for path in files} - set(classes))
        if strange:
            raise Problem(
                f"{folder / name}: class folders that train/ has not", found=", ".join(strange), expected=", ".join(classes)
            )
        usable = [path for path in files if path.suffix.lower() in inputs.IMAGES]
        left_out += [
            f"{name}/{path.parent.name}/{path.name}: not an image's ending" for path in files if path not in set(usable)
        ]
        empty = sorted(set(classes) - {path.parent.name for path in usable})
        if empty:
            endings = ", ".join(sorted(inputs.IMAGES))
            raise Problem(f"{folder / name / empty[0]}: no images", found="no file with an image's ending", expected=endings)
        labels = np.array([classes.index(path.parent.name) for path in usable])
        raw = Raw(usable, labels, np.empty(0, np.int64))
        splits[role] = raw if role == "train" else _shuffled(raw)
    return classes, splits, tuple(left_out)


def _npz(path: Path) -> tuple[tuple[str, ...], dict[str, Raw], tuple[str, ...]]:
    wanted = ("train_images", "train_labels", "test_images", "test_labels")
    try:
        arrays = dict(np.load(path, allow_pickle=False))
    except (ValueError, OSError, EOFError) as error:
        raise Problem(f"{path}: not an npz file of plain arrays", found=str(error), expected=", ".join(wanted)) from error
    if set(wanted) - set(arrays):
        raise Problem(f"{path}: arrays are missing", found=", ".join(sorted(arrays)), expected=", ".join(wanted))
    for name in ("train_images", "test_images"):
        shape, kind = arrays[name].shape, arrays[name].dtype
        if kind != np.uint8 or len(shape) not in {3, 4} or (len(shape) == 4 and shape[3] not in {1, 3}):
            raise Problem(f"{path}: {name}", found=f"{kind} {shape}", expected="uint8, N×H×W, N×H×W×1 or N×H×W×3")
        if len(arrays[name.replace("images", "labels")]) != len(arrays[name]):
            found = f"{len(arrays[name])} images, {len(arrays[name.replace('images', 'labels')])} labels"
            raise Problem(f"{path}: {name}", found=found, expected="a label for each image")
    values = np.unique(arrays["train_labels"])
    if len(values) < 2 or not set(np.unique(arrays["test_labels"])) <= set(values):
        found = f"train {values[:8].tolist()}, test {np.unique(arrays['test_labels'])[:8].tolist()}"
        raise Problem(f"{path}: labels", found=found, expected="at least two classes, and no test class that train has not")
    names = [str(name) for name in arrays.get("classes", values)]
    splits = {
        split: Raw(
            arrays[f"{split}_images"],
            np.asarray(np.searchsorted(values, arrays[f"{split}_labels"]), np.int64),
            _groups(arrays.get(f"{split}_groups")),
        )
        for split in ("train", "test")
    }
    return tuple(names), splits | {"test": _shuffled(splits["test"])}, ()


def _groups(named: np.ndarray | None) -> np.ndarray:
    """Groups as numbers; none where there are none."""
    if named is None:
        return np.empty(0, np.int64)
    _, numbers = np.unique(named, return_inverse=True)
    return numbers


def _digits() -> tuple[tuple[str, ...], dict[str, Raw], tuple[str, ...]]:
    """Scikit-learn's 8×8 handwriting (Alpaydin & Kaynak 1998), brought to 32 px; the first 1000 train, 797 test."""
    from PIL import Image
    from sklearn.datasets import load_digits

    bunch = load_digits()
    small = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    images = np.stack([np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BILINEAR)) for image in small])
    none = np.empty(0, np.int64)
    splits = {
        "train": Raw(images[:1000], bunch.target[:1000], none),
        "test": _shuffled(Raw(images[1000:], bunch.target[1000:], none)),
    }
    return tuple(str(name) for name in bunch.target_names), splits, ()


def _synthetic(name: str, test: int) -> tuple[tuple[str, ...], dict[str, Raw], tuple[str, ...]]:
    counts = {"train": SOURCE_TRAIN if name == "source" else GENERATED["train"], "test": test}
    none = np.empty(0, np.int64)
    splits = {split: Raw(*synthetic.generate(name, split, count), none) for split, count in counts.items()}
    return synthetic.CLASSES[name], splits, ()
