"""Read a dataset from a folder, a file or a generator into splits of raw images and labels.

Reads files.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xferbench.core.errors import UserError
from xferbench.data import inputs, metadata_csv, npz, synthetic, torchvision_folder
from xferbench.data.raw import DatasetParts, RawSplit, shuffle

if TYPE_CHECKING:
    from collections.abc import Sequence

SYNTHETIC_SPLIT_SIZES = {"train": 4000, "test": 2000}
SOURCE_TRAIN_IMAGES = 10_000


def read_dataset(spec: str, generated: int | None) -> DatasetParts:
    """Read the classes of a dataset, its splits and a note for each file that is left out.

    The splits are train, test and, if there is one, validation.

    Args:
        spec: The dataset as a suite file names it.
        generated: The number of test images of a synthetic dataset.

    Raises:
        UserError: If the dataset cannot be used.
    """
    kind, rest = inputs.split_spec(spec)
    if kind == "folder":
        return metadata_csv.read_metadata(Path(rest)) if metadata_csv.metadata_files(Path(rest)) else _read_folder(Path(rest))
    if kind == "npz":
        return npz.read_npz(Path(rest))
    if kind == "torchvision":
        return torchvision_folder.read_torchvision(rest)
    return _load_digits() if kind == "digits" else _generate(rest, generated or SYNTHETIC_SPLIT_SIZES["test"])


def _read_folder(folder: Path) -> DatasetParts:
    present = {name for name in ("train", "val", "test") if (folder / name).is_dir()}
    if not present and len(classes_of_test := _class_names(folder)) > 1:
        raw, unused = _read_class_folders(folder, classes_of_test)
        return classes_of_test, {"test": shuffle(raw)}, tuple(unused)
    if "train" not in present or not present & {"val", "test"}:
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:6]) or "nothing"
        expected = "train/ and val/ or test/, each with one folder of images per class; or metadata.csv"
        raise UserError(f"{folder}: not a dataset folder", found=found, expected=expected)
    classes = _class_names(folder / "train")
    if len(classes) < 2:
        found = f"{len(classes)} class folder(s): {', '.join(classes) or 'none'}"
        raise UserError(f"{folder / 'train'}: too few classes", found=found, expected="at least two folders, one per class")
    roles = {"train": "train"} | ({"validation": "val", "test": "test"} if "test" in present else {"test": "val"})
    splits, left_out = {}, []
    for role, name in roles.items():
        if name in present:
            raw, unused = _read_class_folders(folder / name, classes)
            splits[role] = raw if role == "train" else shuffle(raw)
            left_out += [f"{name}/{note}" for note in unused]
    return classes, splits, tuple(left_out)


def _class_names(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")))


def _read_class_folders(folder: Path, classes: Sequence[str]) -> tuple[RawSplit, list[str]]:
    """Return the images of a split, labeled by their folder, and a note for each file that is not one of them."""
    files = [path.relative_to(folder) for path in inputs.list_files(folder)]
    unknown = sorted({path.parts[0] for path in files if len(path.parts) > 1} - set(classes))
    if unknown:
        expected = ", ".join(classes)
        raise UserError(
            f"{folder}: class folders that are missing from train/", found=", ".join(unknown[:6]), expected=expected
        )
    misplaced = [f"{path.as_posix()}: not directly in a class folder" for path in files if len(path.parts) != 2]
    files = [path for path in files if len(path.parts) == 2]
    not_images = [f"{path.as_posix()}: not an image file" for path in files if path.suffix.lower() not in inputs.IMAGE_SUFFIXES]
    usable = [path for path in files if path.suffix.lower() in inputs.IMAGE_SUFFIXES]
    empty = sorted(set(classes) - {path.parts[0] for path in usable})
    if empty:
        found = f"{len(list((folder / empty[0]).glob('*')))} other files" if (folder / empty[0]).is_dir() else "no such folder"
        expected = "files that end in " + ", ".join(sorted(inputs.IMAGE_SUFFIXES))
        raise UserError(f"{folder / empty[0]}: no images", found=found, expected=expected)
    labels = np.array([classes.index(path.parts[0]) for path in usable])
    names = [f"{folder.name}/{path.as_posix()}" for path in usable]
    return RawSplit([folder / path for path in usable], labels, np.empty(0, np.int64), names), misplaced + not_images


def _load_digits() -> DatasetParts:
    """Load scikit-learn's 8×8 digits (Alpaydin & Kaynak 1998), resized to 32 px: 1000 for training, 797 for testing."""
    from PIL import Image
    from sklearn.datasets import load_digits

    dataset = load_digits()
    small = np.round(dataset.images * (255 / 16)).astype(np.uint8)
    images = np.stack([np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BILINEAR)) for image in small])
    no_groups = np.empty(0, np.int64)
    splits = {
        "train": RawSplit(images[:1000], dataset.target[:1000], no_groups),
        "test": shuffle(RawSplit(images[1000:], dataset.target[1000:], no_groups)),
    }
    return tuple(str(name) for name in dataset.target_names), splits, ()


def _generate(name: str, test_size: int) -> DatasetParts:
    counts = {"train": SOURCE_TRAIN_IMAGES if name == "source" else SYNTHETIC_SPLIT_SIZES["train"], "test": test_size}
    no_groups = np.empty(0, np.int64)
    splits = {split: RawSplit(*synthetic.generate(name, split, count), no_groups) for split, count in counts.items()}
    return synthetic.CLASSES[name], splits, ()
