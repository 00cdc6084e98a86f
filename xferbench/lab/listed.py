"""Images that a table lists: ``metadata.csv`` beside them, or one in each of ``train/``, ``val/`` and ``test/``.

The table is the one of Hugging Face's image folders (https://huggingface.co/docs/datasets/image_dataset): UTF-8 with commas and
a header; ``file_name`` is relative to the table's folder. Here it has a ``label``, perhaps a ``split`` and a ``group`` too.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from xferbench.lab.raw import Found, Raw, balanced, shuffled, taken
from xferbench.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Sequence

NAME = "metadata.csv"
COLUMNS = ("file_name", "label", "split", "group")
SPLITS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}
CUT = 5  # one in so many is a test image, where nobody says which are


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """An image: its path relative to the dataset's folder, its class, its split and its group ("" where none is told)."""

    file: str
    label: str
    split: str
    group: str


def tables(folder: Path) -> dict[str, Path]:
    """The tables of a folder by the split that they are of, "" for one of the whole; none where it has class folders."""
    if (folder / NAME).is_file():
        return {"": folder / NAME}
    if not (folder / "train" / NAME).is_file():
        return {}
    return {name: folder / name / NAME for name in SPLITS if (folder / name).is_dir()}


def rows(folder: Path) -> tuple[list[Row], tuple[str, ...]]:
    """All rows of a folder's tables, and a note for each column that is not used.

    Raises:
        Problem: for a table that cannot be read, with the line that is wrong.
    """
    found: list[Row] = []
    unused: list[str] = []
    for split, path in tables(folder).items():
        if not path.is_file():
            raise Problem(f"{path}: missing", found=f"{split}/ without it", expected=f"a {NAME} in each split's folder")
        header, lines = _read(path)
        wanted = COLUMNS if not split else tuple(name for name in COLUMNS if name != "split")
        unused += [f"{path.relative_to(folder).as_posix()}: column {name} is not used" for name in header if name not in wanted]
        found += [_row(path, number, dict(zip(header, line, strict=True)), split) for number, line in lines]
    told = {row.split for row in found} if tables(folder) else {""}
    roles = {SPLITS[name] for name in told if name}
    if "" not in told and ("train" not in roles or len(roles) < 2):
        expected = "train and val or test"
        raise Problem(f"{folder}: {NAME}: a split is missing", found=", ".join(sorted(told)) or "no rows", expected=expected)
    return found, tuple(unused)


def read(folder: Path) -> Found:
    """The dataset that a folder's tables list: classes are the labels in order; files that are missing are left out and named.

    Where no column ``split`` says which are which, a fifth is the test set, stratified by class, groups kept whole, always the
    same; this is said among what is left out.

    Raises:
        Problem: for a table that cannot be used.
    """
    listed, notes = rows(folder)
    absent = tuple(f"{row.file}: no such file" for row in listed if not (folder / row.file).is_file())
    there = [row for row in listed if (folder / row.file).is_file()]
    classes = tuple(sorted({row.label for row in there}))
    if len(classes) < 2:
        found = f"{len(classes)} among {len(there)} of {len(listed)} rows whose file is there"
        raise Problem(f"{folder}: {NAME}: too few labels", found=found, expected="at least two", do="check file_name and label")
    if not there[0].split:
        whole = _raw(folder, there, classes, there)
        test, note = _fifth(whole)
        rest = np.setdiff1d(np.arange(len(there)), test)
        if min(len(np.unique(whole.labels[index])) for index in (test, rest)) < len(classes):
            found = f"{len(there)} images" + (f" in {len(np.unique(whole.groups))} groups" if len(whole.groups) else "")
            expected = "enough to have each class in a test set and beside it, groups kept whole"
            what = f"{folder}: {NAME}: no column split, and no test set can be cut"
            raise Problem(what, found=found, expected=expected, do="add a column split with train and test")
        return classes, {"train": taken(whole, rest), "test": shuffled(taken(whole, test))}, (note, *notes, *absent)
    own = {SPLITS[row.split] for row in listed}
    splits = {}
    for role in ("train", *(("validation", "test") if own == {"train", "validation", "test"} else ("test",))):
        source = role if role in own else "validation"  # val is the test set where there is no other
        raw = _raw(folder, [row for row in there if SPLITS[row.split] == source], classes, there)
        splits[role] = raw if role == "train" else shuffled(raw)
    strange = sorted({classes[label] for raw in splits.values() for label in raw.labels} - _labels(splits["train"], classes))
    if strange:
        expected = ", ".join(sorted(_labels(splits["train"], classes)))
        raise Problem(f"{folder}: {NAME}: labels that train has not", found=", ".join(strange[:6]), expected=expected)
    return classes, splits, (*notes, *absent)


def _labels(raw: Raw, classes: Sequence[str]) -> set[str]:
    return {classes[label] for label in raw.labels}


def _raw(folder: Path, some: Sequence[Row], classes: Sequence[str], whole: Sequence[Row]) -> Raw:
    """Rows as examples; groups are numbered over all splits, so that one that lies in two of them is the same in both."""
    number = {name: at for at, name in enumerate(classes)}
    names = {name: at for at, name in enumerate(sorted({row.group for row in whole}))}
    groups = np.array([names[row.group] for row in some if row.group], np.int64)
    labels = np.array([number[row.label] for row in some], np.int64)
    return Raw([folder / row.file for row in some], labels, groups, [row.file for row in some])


def _fifth(whole: Raw) -> tuple[np.ndarray, str]:
    """Indices of the test images cut from a table without splits, and the sentence that says so."""
    order = balanced(whole.labels, whole.groups, np.random.default_rng(0))
    size = max(len(order) // CUT, len(np.unique(whole.labels)))
    by = ""
    if len(whole.groups):
        chosen = np.unique(whole.groups[order[:size]])
        order = order[np.isin(whole.groups[order], chosen)]
        size, by = len(order), f" ({len(chosen)} whole groups)"
    return np.sort(order[:size]), f"{NAME}: no column split, so {size} of {len(whole.labels)} images{by} are the test set"


def _read(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """A table's header and its rows with the lines they end on."""
    expected = "a header with file_name,label and perhaps split,group; UTF-8, separated by commas"
    held = path.read_bytes()
    if b"\0" in held:
        raise Problem(f"{path}: not a text file in UTF-8", found="a NUL byte", expected=expected, do="save it as CSV in UTF-8")
    try:
        reader = csv.reader(io.StringIO(held.decode("utf-8-sig"), newline=""), strict=True)
        lines = [(reader.line_num, line) for line in reader if line]
    except UnicodeDecodeError as error:
        found = f"byte {error.object[error.start]:#04x} at {error.start}"
        raise Problem(f"{path}: not UTF-8", found=found, expected=expected, do="save it as CSV in UTF-8") from error
    except csv.Error as error:
        raise Problem(f"{path}: not a CSV file", found=str(error), expected=expected) from error
    header = [name.strip() for name in lines[0][1]] if lines else []
    missing = [name for name in COLUMNS[:2] if name not in header]
    if missing:
        found = ",".join(header)[:80] or "an empty file"
        do = "separate by commas" if ";" in found or "\t" in found else "or rename the file where class folders are meant"
        raise Problem(f"{path}: no column {' and '.join(missing)}", found=found, expected=expected, do=do)
    twice = [name for name, count in Counter(header).items() if count > 1]
    if twice:
        raise Problem(f"{path}: a column twice", found=", ".join(twice), expected=expected)
    for number, line in lines[1:]:
        if len(line) != len(header):
            found, expected = f"{len(line)} fields: {','.join(line)[:80]}", f"{len(header)}, as the header has"
            raise Problem(f"{path}: line {number}", found=found, expected=expected, do="quote a field that holds a comma")
    _once(path, [(number, line[header.index("file_name")]) for number, line in lines[1:]])
    _all_or_none(path, header, lines[1:])
    return header, lines[1:]


def _once(path: Path, named: Sequence[tuple[int, str]]) -> None:
    seen: dict[PurePosixPath, int] = {}
    for number, name in named:
        file = PurePosixPath(name.strip())
        if file in seen:
            found = f"{name}, on line {seen[file]} already"
            raise Problem(f"{path}: line {number}: a file twice", found=found, expected="one row for each file")
        seen[file] = number


def _all_or_none(path: Path, header: Sequence[str], lines: Sequence[tuple[int, Sequence[str]]]) -> None:
    """A group for every row or for none: what has no group could lie on both sides of a cut."""
    if "group" in header:
        at = header.index("group")
        without = [number for number, line in lines if not line[at].strip()]
        if 0 < len(without) < len(lines):
            raise Problem(f"{path}: line {without[0]}: group", found="nothing", expected="a group for every row, or for none")


def _row(path: Path, number: int, named: dict[str, str], split: str) -> Row:
    """One row, checked."""
    at = f"{path}: line {number}"
    told = {name: named.get(name, "").strip() for name in COLUMNS}
    file = PurePosixPath(told["file_name"])
    if not told["file_name"] or file.is_absolute() or ".." in file.parts or "\\" in told["file_name"]:
        expected = f"a path with /, relative to {path.parent.name or path.parent} and within it"
        raise Problem(f"{at}: file_name", found=told["file_name"] or "nothing", expected=expected)
    if not told["label"]:
        raise Problem(f"{at}: label", found="nothing", expected="the class of the image")
    word = split or told["split"].lower()
    if not split and "split" in named and word not in SPLITS:
        raise Problem(f"{at}: split", found=told["split"] or "nothing", expected=", ".join(SPLITS))
    return Row(file=str(PurePosixPath(split) / file), label=told["label"], split=word, group=told["group"])
