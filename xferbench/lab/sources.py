"""Where a dataset comes from: class folders, an npz file, or a generator; each becomes splits of raw images and labels."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.lib.npyio import NpzFile

from xferbench.lab import inputs, synthetic
from xferbench.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

GENERATED = {"train": 4000, "test": 2000}
SOURCE_TRAIN = 10_000


@dataclass(frozen=True, slots=True)
class Raw:
    """A split before decoding: image files, or arrays N×H×W(×3)."""

    images: Sequence[Path] | np.ndarray
    labels: np.ndarray
    groups: np.ndarray


# The classes' names, the splits by name, and what of the files was left out.
Found: TypeAlias = tuple[tuple[str, ...], dict[str, Raw], tuple[str, ...]]


def read(spec: str, generated: int | None) -> Found:
    """A dataset's classes, its splits (train, test, and validation where there is one) and what was left out.

    Args:
        spec: the suite's word for it. generated: test images, where they are drawn.

    Raises:
        Problem: for a dataset that cannot be used.
    """
    kind, rest = inputs.split_spec(spec)
    if kind == "folder":
        return _folder(Path(rest))
    if kind == "npz":
        return _npz(Path(rest))
    return _digits() if kind == "digits" else _synthetic(rest, generated or GENERATED["test"])


def _shuffled(raw: Raw) -> Raw:
    """A fixed random order, so that the first examples of a test set are a fair sample of it."""
    order = np.random.default_rng(0).permutation(len(raw.labels))
    images = raw.images[order] if isinstance(raw.images, np.ndarray) else [raw.images[index] for index in order]
    return Raw(images, raw.labels[order], raw.groups[order] if len(raw.groups) else raw.groups)


def _folder(folder: Path) -> Found:
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
        if name in present:
            raw, odd = _class_folders(folder / name, classes)
            splits[role] = raw if role == "train" else _shuffled(raw)
            left_out += [f"{name}/{one}" for one in odd]
    return classes, splits, tuple(left_out)


def _class_folders(folder: Path, classes: Sequence[str]) -> tuple[Raw, list[str]]:
    """The images of one split by the folder they lie in, and the files that are none or lie elsewhere."""
    files = [path.relative_to(folder) for path in inputs.walk(folder)]
    strange = sorted({path.parts[0] for path in files if len(path.parts) > 1} - set(classes))
    if strange:
        expected = ", ".join(classes)
        raise Problem(f"{folder}: class folders that train/ has not", found=", ".join(strange[:6]), expected=expected)
    astray = [f"{path.as_posix()}: not directly in a class folder" for path in files if len(path.parts) != 2]
    files = [path for path in files if len(path.parts) == 2]
    odd = [f"{path.as_posix()}: not an image's ending" for path in files if path.suffix.lower() not in inputs.IMAGES]
    usable = [path for path in files if path.suffix.lower() in inputs.IMAGES]
    empty = sorted(set(classes) - {path.parts[0] for path in usable})
    if empty:
        found = f"{len(list((folder / empty[0]).glob('*')))} other files" if (folder / empty[0]).is_dir() else "no such folder"
        expected = "files that end in " + ", ".join(sorted(inputs.IMAGES))
        raise Problem(f"{folder / empty[0]}: no images", found=found, expected=expected)
    labels = np.array([classes.index(path.parts[0]) for path in usable])
    return Raw([folder / path for path in usable], labels, np.empty(0, np.int64)), astray + odd


def _npz(path: Path) -> Found:
    wanted = ("train_images", "train_labels", "test_images", "test_labels")
    arrays = _arrays(path, wanted)
    for split in ("train", "test"):
        _check_split(path, split, arrays)
    values = np.unique(arrays["train_labels"])
    if len(values) < 2 or not set(np.unique(arrays["test_labels"])) <= set(values):
        found = f"train {values[:8].tolist()}, test {np.unique(arrays['test_labels'])[:8].tolist()}"
        raise Problem(f"{path}: labels", found=found, expected="at least two classes, and no test class that train has not")
    names = [str(name) for name in arrays.get("classes", values)]
    if len(names) != len(values):
        found = f"{len(names)} names for {len(values)} classes"
        raise Problem(f"{path}: classes", found=found, expected="a name for each label, in the labels' order")
    splits = {
        split: Raw(
            arrays[f"{split}_images"],
            np.asarray(np.searchsorted(values, arrays[f"{split}_labels"].ravel()), np.int64),
            _groups(arrays.get(f"{split}_groups")),
        )
        for split in ("train", "test")
    }
    known = {*wanted, "classes", "train_groups", "test_groups"}
    unused = tuple(f"{path.name}: array {name} is not used" for name in sorted(set(arrays) - known))
    return tuple(names), splits | {"test": _shuffled(splits["test"])}, unused


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
    if set(wanted) - set(arrays):
        raise Problem(f"{path}: arrays are missing", found=", ".join(sorted(arrays)) or "none", expected=", ".join(wanted))
    return arrays


def _check_split(path: Path, split: str, arrays: Mapping[str, np.ndarray]) -> None:
    images, labels, groups = (arrays.get(f"{split}_{part}") for part in ("images", "labels", "groups"))
    assert images is not None
    assert labels is not None
    shape = images.shape
    if images.dtype != np.uint8 or len(shape) not in {3, 4} or (len(shape) == 4 and shape[3] not in {1, 3}) or not images.size:
        found = f"{images.dtype} {shape}"
        raise Problem(f"{path}: {split}_images", found=found, expected="uint8, N×H×W, N×H×W×1 or N×H×W×3, none of them 0")
    if labels.dtype.kind not in "iuU" or labels.shape not in {(len(images),), (len(images), 1)}:
        found = f"{labels.dtype} {labels.shape} for {len(images)} images"
        raise Problem(f"{path}: {split}_labels", found=found, expected="a whole number or a text for each image")
    if groups is not None and (groups.dtype.kind not in "iuU" or groups.shape != (len(images),)):
        found = f"{groups.dtype} {groups.shape} for {len(images)} images"
        raise Problem(f"{path}: {split}_groups", found=found, expected="a whole number or a text for each image")


def _groups(named: np.ndarray | None) -> np.ndarray:
    """Groups as numbers; none where there are none."""
    if named is None:
        return np.empty(0, np.int64)
    _, numbers = np.unique(named, return_inverse=True)
    return numbers


def _digits() -> Found:
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


def _synthetic(name: str, test: int) -> Found:
    counts = {"train": SOURCE_TRAIN if name == "source" else GENERATED["train"], "test": test}
    none = np.empty(0, np.int64)
    splits = {split: Raw(*synthetic.generate(name, split, count), none) for split, count in counts.items()}
    return synthetic.CLASSES[name], splits, ()
