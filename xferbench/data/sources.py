"""Read a dataset from a folder, a file or a generator into splits of raw images and labels.

Reads files.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xferbench.core.errors import UserError
from xferbench.data import (
    class_folders,
    inputs,
    language,
    metadata_csv,
    npz,
    saved_datasets,
    synthetic,
    text_tables,
    torchvision_folder,
)
from xferbench.data.raw import DatasetParts, RawSplit, TextExample, shuffle

if TYPE_CHECKING:
    from xferbench.core.pipeline import Data

SYNTHETIC_SPLIT_SIZES = {"train": 4000, "test": 2000}
SOURCE_TRAIN_EXAMPLES = 10_000


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
        read = metadata_csv.read_metadata if metadata_csv.metadata_files(Path(rest)) else class_folders.read_class_folders
        return read(Path(rest))
    if kind == "npz":
        return npz.read_npz(Path(rest))
    if kind in {"csv", "jsonl"}:
        classes, splits, _ = text_tables.read_texts(Path(rest), kind)  # its notes are those of layout_notes
        return classes, splits, ()
    if kind == "datasets":
        parts, _ = saved_datasets.read_saved(Path(rest))
        return parts
    if kind == "torchvision":
        return torchvision_folder.read_torchvision(rest)
    return _load_digits() if kind == "digits" else _generate(rest, generated or SYNTHETIC_SPLIT_SIZES["test"])


def read_split(data: Data, split: str, test_size: int | None) -> RawSplit:
    """Read one split of a dataset before decoding.

    Raises:
        UserError: If the dataset cannot be used, or has no such split.
    """
    splits = read_dataset(data.spec, generated_size(data.spec, test_size))[1]
    if split not in splits:
        raise UserError(f"{data.spec}: no such split", found=split, expected=", ".join(splits))
    return splits[split]


def generated_size(spec: str, test_size: int | None) -> int | None:
    """Return the number of test examples that a synthetic dataset generates; None for other datasets."""
    return max(test_size or 0, SYNTHETIC_SPLIT_SIZES["test"]) if spec.startswith("synthetic:") else None


def layout_notes(spec: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the classes of class folders, a table of texts or a saved dataset, and notes on how it was understood; else ().

    Raises:
        UserError: If the dataset cannot be used.
    """
    kind, rest = inputs.split_spec(spec)
    if kind in {"csv", "jsonl"}:
        classes, _, notes = text_tables.read_texts(Path(rest), kind)
        return classes, notes
    if kind == "datasets":
        (classes, _, _), notes = saved_datasets.read_saved(Path(rest))
        return classes, notes
    if kind != "folder" or metadata_csv.metadata_files(Path(rest)):
        return (), ()
    layout = class_folders.read_layout(Path(rest))
    return layout.classes, layout.notes


def describe_folder(spec: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the classes of a folder with or without a table, and notes on its folders or columns; () for other datasets.

    Raises:
        UserError: If the dataset cannot be used.
    """
    kind, rest = inputs.split_spec(spec)
    if kind != "folder" or not metadata_csv.metadata_files(Path(rest)):
        return layout_notes(spec)
    rows, notes = metadata_csv.read_rows(Path(rest))
    return tuple(sorted({row.label for row in rows})), notes


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
    is_source = name in {"source", "text-source"}
    counts = {"train": SOURCE_TRAIN_EXAMPLES if is_source else SYNTHETIC_SPLIT_SIZES["train"], "test": test_size}
    no_groups = np.empty(0, np.int64)
    if name in language.SPEC_NAMES:
        name = language.SPEC_NAMES[name]
        generated = {split: language.generate(name, split, count) for split, count in counts.items()}
        texts = {
            split: RawSplit([TextExample(text) for text in lines], labels, no_groups)
            for split, (lines, labels) in generated.items()
        }
        return language.CLASSES[name], texts, ()
    splits = {split: RawSplit(*synthetic.generate(name, split, count), no_groups) for split, count in counts.items()}
    return synthetic.CLASSES[name], splits, ()
