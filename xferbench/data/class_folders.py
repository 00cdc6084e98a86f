"""Read datasets of class folders: splits with one folder of images for each class, or the class folders of a test set.

Reads folders; images are not decoded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from xferbench.core.errors import UserError
from xferbench.data.archives import find_archive, refuse_archive
from xferbench.data.listing import IMAGE_SUFFIXES, is_visible, list_files, list_folders, list_irregular
from xferbench.data.raw import DatasetParts, RawSplit, shuffle

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

SPLIT_ROLES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
SPLIT_SUFFIX = re.compile(r"[ _-]?(set|data|images)$")
PLAIN_SPLITS = ("train", "val", "test")  # names whose meaning is part of no digest, because all versions know them
PURPOSES = {"train": "for training", "validation": "for selection", "test": "for testing"}
MAX_NESTING = 2  # folders around a dataset, as an unpacked archive may have them
MAX_LISTED = 6
TABLE_SUFFIXES = (".csv", ".jsonl")
EXPECTED_FOLDER = "train/ and val/ or test/, each with one folder of images per class; or metadata.csv"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where the images of a folder are.

    Attributes:
        classes: the class names, in the order of the labels.
        splits: the folder of each split, by ``train``, ``validation`` and ``test``.
        notes: how the folder was understood, and what of it is left out.
    """

    classes: tuple[str, ...]
    splits: Mapping[str, Path]
    notes: tuple[str, ...] = ()


def split_role(name: str) -> str:
    """Return ``train``, ``validation`` or ``test`` for the name of a split in any case, or "" for any other name."""
    return SPLIT_ROLES.get(SPLIT_SUFFIX.sub("", name.casefold()), "")


def find_splits(folder: Path) -> dict[str, Path]:
    """Return the split folders in a folder by their role. A folder without class folders is not a split.

    Raises:
        UserError: If two folders have the same role.
    """
    splits: dict[str, Path] = {}
    for path in list_folders(folder):
        role = split_role(path.name)
        if not role or not list_folders(path):
            continue
        if role in splits:
            found, do = f"{splits[role].name}/ and {path.name}/", "move one of them out of the dataset"
            raise UserError(f"{folder}: two folders {PURPOSES[role]}", found=found, expected="one", do=do)
        splits[role] = path
    return splits


def unusual_splits(folder: Path) -> dict[str, str]:
    """Return the role of each split whose folder has another name than ``train``, ``val`` or ``test``.

    Earlier versions did not know these names, so the digest of a dataset depends on them.
    """
    splits = find_splits(dataset_root(folder))
    return {role: path.name for role, path in splits.items() if path.name not in PLAIN_SPLITS}


def dataset_root(folder: Path) -> Path:
    """Return the folder that holds the splits or the class folders: the folder itself, or one inside it.

    Raises:
        UserError: If several folders inside it have splits of their own.
    """
    root = folder
    for _ in range(MAX_NESTING + 1):
        inner = list_folders(root)
        if find_splits(root):
            return root
        datasets = [path for path in inner if len(find_splits(path)) > 1]
        if len(datasets) > 1:
            found = ", ".join(path.name for path in datasets[:MAX_LISTED])
            do = f"name one of them, such as folder:{datasets[0]}, or put the class folders into the splits"
            raise UserError(f"{folder}: several folders with splits", found=found, expected=EXPECTED_FOLDER, do=do)
        if datasets:
            return datasets[0]
        if len(inner) != 1:
            return root if len(inner) > 1 else folder
        root = inner[0]
    return folder


def read_layout(folder: Path) -> Layout:
    """Return where the images of a folder are, and notes on everything that is not obvious.

    Raises:
        UserError: If the folder has no splits and no class folders, or a split lacks a class that it must have.
    """
    root = dataset_root(folder)
    splits = find_splits(root)
    if not splits and len(list_folders(root)) > 1:
        splits = {"test": root}
    elif "train" not in splits or len(splits) < 2:
        if not splits and (archive := find_archive(folder)):
            refuse_archive(archive)
        raise _not_a_dataset(folder, root, splits)
    if "test" not in splits:
        splits = {"train": splits["train"], "test": splits["validation"]}
    counts = {role: count_images(path) for role, path in splits.items()}
    first = "train" if "train" in splits else "test"
    classes = _class_names(splits, counts, first)
    notes = [*_split_notes(folder, root, splits), *_class_notes(splits, counts, classes), *order_notes(classes)]
    return Layout(classes=classes, splits=splits, notes=tuple(notes))


def count_images(split: Path) -> dict[str, int | None]:
    """Return the number of image files in each class folder of a split; None for a folder without any file."""
    counts: dict[str, int | None] = {path.name: None for path in list_folders(split)}
    for path in list_files(split):
        name, *rest = path.relative_to(split).parts
        if rest and name in counts:
            is_image = len(rest) == 1 and path.suffix.lower() in IMAGE_SUFFIXES
            counts[name] = (counts[name] or 0) + is_image
    return counts


def read_class_folders(folder: Path) -> DatasetParts:
    """Read the classes and splits of a folder, and a note for each file that is left out.

    Raises:
        UserError: As for :func:`read_layout`.
    """
    layout = read_layout(folder)
    splits, left_out = {}, []
    for role, path in layout.splits.items():
        raw, unused = _read_split(path, layout.classes)
        splits[role] = raw if role == "train" else shuffle(raw)
        prefix = "" if path == folder else f"{path.name}/"
        left_out += [f"{prefix}{note}" for note in unused]
    return layout.classes, splits, tuple(left_out)


def order_notes(classes: Sequence[str]) -> Iterator[str]:
    """Yield a note if the order of the classes is that of numbers as text, which is not the numeric order."""
    if all(name.isdecimal() for name in classes) and list(classes) != sorted(classes, key=int):
        listed = ", ".join(classes[:3])
        yield f"the classes are sorted as text, as torchvision's ImageFolder does ({listed}, …), and not in numeric order"


def _read_split(folder: Path, classes: Sequence[str]) -> tuple[RawSplit, list[str]]:
    """Return the images of a split, labeled by their folder, and a note for each file that is not one of them."""
    files = [path.relative_to(folder) for path in list_files(folder)]
    irregular = [f"{path.relative_to(folder).as_posix()}: not a regular file" for path in list_irregular(folder)]
    misplaced = [f"{path.as_posix()}: not directly in a class folder" for path in files if len(path.parts) != 2]
    files = [path for path in files if len(path.parts) == 2]
    not_images = [f"{path.as_posix()}: not an image file" for path in files if path.suffix.lower() not in IMAGE_SUFFIXES]
    usable = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    number = {name: index for index, name in enumerate(classes)}
    labels = np.array([number[path.parts[0]] for path in usable], np.int64)
    names = [f"{folder.name}/{path.as_posix()}" for path in usable]
    return RawSplit(
        [folder / path for path in usable], labels, np.empty(0, np.int64), names
    ), irregular + misplaced + not_images


def _class_names(splits: Mapping[str, Path], counts: Mapping[str, Mapping[str, int | None]], first: str) -> tuple[str, ...]:
    """Return the classes: the folders of the first split, without those that are empty in every split.

    Raises:
        UserError: If there are fewer than two, one of them has no images, or another split has a class that the first lacks.
    """
    folder = splits[first]
    present = {name for split in counts.values() for name, count in split.items() if count is not None}
    classes = tuple(sorted(name for name in counts[first] if name in present))
    if len(classes) < 2 and len(counts[first]) < 2:
        found = f"{len(classes)} class folder(s): {', '.join(classes) or 'none'}"
        raise UserError(f"{folder}: too few classes", found=found, expected="at least two folders, one per class")
    for name in classes if len(classes) > 1 else sorted(counts[first]):
        if not counts[first][name]:
            found = f"{sum(1 for _ in (folder / name).iterdir())} other files"
            raise UserError(
                f"{folder / name}: no images", found=found, expected="files that end in " + ", ".join(sorted(IMAGE_SUFFIXES))
            )
    for role, split in counts.items():
        unknown = sorted(name for name, count in split.items() if count is not None and name not in classes)
        if unknown:
            raise UserError(
                f"{splits[role]}: class folders that are missing from {folder.name}/",
                found=_listed(unknown),
                expected=_listed(classes),
                do=f"add images of these classes to {folder.name}/, or remove their folders",
            )
        if not any(split.values()):
            raise UserError(f"{splits[role]}: no images", found="no image file in any class folder", expected=_listed(classes))
    return classes


def _split_notes(folder: Path, root: Path, splits: Mapping[str, Path]) -> Iterator[str]:
    """Yield notes on the folders that are the splits, and on those that are left out."""
    searched = [root] if root not in splits.values() else []
    if root != folder:
        yield f"the dataset is in {root.relative_to(folder).as_posix()}/"
        searched += [outer for outer in root.parents if outer.is_relative_to(folder)]
    if root not in splits.values():
        uses = "; ".join(f"{splits[role].name}/ is {PURPOSES[role]}" for role in PURPOSES if role in splits)
        yield uses + ("" if split_role(splits["test"].name) == "test" else ", because there is no test/")
    for path in [inner for outer in searched for inner in list_folders(outer)]:
        if path not in splits.values() and not root.is_relative_to(path):
            yield f"{path.relative_to(folder).as_posix()}/ is left out, because it is not a split with class folders"
    for path in sorted(path for outer in {folder, root} for path in outer.iterdir() if path.suffix in TABLE_SUFFIXES):
        if is_visible(path.name):
            yield f"{path.relative_to(folder).as_posix()} is not used, because the class folders label the images"


def _class_notes(
    splits: Mapping[str, Path], counts: Mapping[str, Mapping[str, int | None]], classes: Sequence[str]
) -> Iterator[str]:
    """Yield a note for empty folders, and for classes without images in a split."""
    for role, split in counts.items():
        empty = [name for name in split if name not in classes]
        if empty:
            yield f"{splits[role].name}/: {_listed(empty)} has no files, so it is left out"
        missing = [name for name in classes if not split.get(name)]
        if missing:
            yield f"{splits[role].name}/ has no images of {_listed(missing)}"


def _not_a_dataset(folder: Path, root: Path, splits: Mapping[str, Path]) -> UserError:
    unlabeled = [path.name for path in list_folders(root) if split_role(path.name) and path not in splits.values()]
    found = ", ".join(sorted(path.name for path in root.iterdir())[:MAX_LISTED]) or "nothing"
    found += f"; {_listed(unlabeled)} without class folders" if unlabeled else ""
    (only,) = splits.values() if len(splits) == 1 else [None]
    do = f"for an audit, name the folder of the class folders: folder:{only}" if only else ""
    return UserError(f"{folder}: not a dataset folder", found=found, expected=EXPECTED_FOLDER, do=do)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:MAX_LISTED]) + (f" … ({len(names)} in all)" if len(names) > MAX_LISTED else "")
