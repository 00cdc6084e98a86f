"""Where a dataset comes from: a folder, a file, or a generator; each becomes splits of raw images and labels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xferbench.lab import arrays, fetched, inputs, listed, synthetic
from xferbench.lab.raw import Found, Raw, shuffled
from xferbench.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Sequence

GENERATED = {"train": 4000, "test": 2000}
SOURCE_TRAIN = 10_000


def read(spec: str, generated: int | None) -> Found:
    """A dataset's classes, its splits (train, test, and validation where there is one) and what was left out.

    Args:
        spec: the suite's word for it. generated: test images, where they are drawn.

    Raises:
        Problem: for a dataset that cannot be used.
    """
    kind, rest = inputs.split_spec(spec)
    if kind == "folder":
        return listed.read(Path(rest)) if listed.tables(Path(rest)) else _folder(Path(rest))
    if kind == "npz":
        return arrays.read(Path(rest))
    if kind == "torchvision":
        return fetched.read(rest)
    return _digits() if kind == "digits" else _synthetic(rest, generated or GENERATED["test"])


def _folder(folder: Path) -> Found:
    present = {name for name in ("train", "val", "test") if (folder / name).is_dir()}
    if not present and len(alone := _classes(folder)) > 1:
        raw, odd = _class_folders(folder, alone)
        return alone, {"test": shuffled(raw)}, tuple(odd)
    if "train" not in present or not present & {"val", "test"}:
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:6]) or "nothing"
        expected = "train/ and val/ or test/, each with one folder of images a class; or metadata.csv"
        raise Problem(f"{folder}: not a dataset folder", found=found, expected=expected)
    classes = _classes(folder / "train")
    if len(classes) < 2:
        found = f"{len(classes)} class folder(s): {', '.join(classes) or 'none'}"
        raise Problem(f"{folder / 'train'}: too few classes", found=found, expected="at least two folders, one a class")
    roles = {"train": "train"} | ({"validation": "val", "test": "test"} if "test" in present else {"test": "val"})
    splits, left_out = {}, []
    for role, name in roles.items():
        if name in present:
            raw, odd = _class_folders(folder / name, classes)
            splits[role] = raw if role == "train" else shuffled(raw)
            left_out += [f"{name}/{one}" for one in odd]
    return classes, splits, tuple(left_out)


def _classes(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")))


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
    names = [f"{folder.name}/{path.as_posix()}" for path in usable]
    return Raw([folder / path for path in usable], labels, np.empty(0, np.int64), names), astray + odd


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
        "test": shuffled(Raw(images[1000:], bunch.target[1000:], none)),
    }
    return tuple(str(name) for name in bunch.target_names), splits, ()


def _synthetic(name: str, test: int) -> Found:
    counts = {"train": SOURCE_TRAIN if name == "source" else GENERATED["train"], "test": test}
    none = np.empty(0, np.int64)
    splits = {split: Raw(*synthetic.generate(name, split, count), none) for split, count in counts.items()}
    return synthetic.CLASSES[name], splits, ()
