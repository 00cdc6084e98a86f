"""Read image datasets that a ``metadata.csv`` lists: one for the folder, or one in each of ``train/``, ``val/`` and ``test/``.

The table is that of Hugging Face's image folders (https://huggingface.co/docs/datasets/image_dataset): UTF-8, commas, a header,
and ``file_name`` relative to the table's folder, here with ``label`` and optionally ``split`` and ``group``. Reads files.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from xferbench.core.errors import UserError
from xferbench.data.raw import DatasetParts, RawSplit, balanced_order, shuffle, take

if TYPE_CHECKING:
    from collections.abc import Sequence

METADATA_FILE = "metadata.csv"
COLUMNS = ("file_name", "label", "split", "group")
SPLITS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}
GROUP_NAME = re.compile(r"(patient|subject|case|person|participant)s?([ _-]?(id|no|nr|number|code|name))?", re.IGNORECASE)
TEST_SHARE_DIVISOR = 5  # a fifth of the images is the test set if the table has no splits


@dataclass(frozen=True, slots=True, kw_only=True)
class MetadataRow:
    """A row of the table: an image.

    ``file`` is relative to the dataset's folder. ``split`` and ``group`` are "" if the table has none.
    """

    file: str
    label: str
    split: str
    group: str


def metadata_files(folder: Path) -> dict[str, Path]:
    """Return the tables of a folder by their split; the key is "" for a table of the whole folder.

    The result is empty for a folder without tables.
    """
    if (folder / METADATA_FILE).is_file():
        return {"": folder / METADATA_FILE}
    if not (folder / "train" / METADATA_FILE).is_file():
        return {}
    return {split: folder / split / METADATA_FILE for split in SPLITS if (folder / split).is_dir()}


def read_rows(folder: Path) -> tuple[list[MetadataRow], tuple[str, ...]]:
    """Return all rows of the tables of a folder, and notes: on columns that may be the group, and on those that are not used.

    Raises:
        UserError: If a table cannot be read. The message names the line.
    """
    table_rows: list[MetadataRow] = []
    questions: list[str] = []
    unused: list[str] = []
    for split, path in metadata_files(folder).items():
        if not path.is_file():
            raise UserError(
                f"{path}: missing", found=f"{split}/ without it", expected=f"a {METADATA_FILE} in the folder of each split"
            )
        header, lines = _read_table(path)
        used_columns = COLUMNS if not split else tuple(name for name in COLUMNS if name != "split")
        table = path.relative_to(folder).as_posix()
        questions += [f"{table}: {question}" for question in group_questions(header)]
        unused += [f"{table}: column {name} is not used" for name in header if name not in used_columns]
        table_rows += [_parse_row(path, number, dict(zip(header, line, strict=True)), split) for number, line in lines]
    split_names = {row.split for row in table_rows} if metadata_files(folder) else {""}
    roles = {SPLITS[name] for name in split_names if name}
    if "" not in split_names and ("train" not in roles or len(roles) < 2):
        expected = "train and val or test"
        raise UserError(
            f"{folder}: {METADATA_FILE}: a split is missing",
            found=", ".join(sorted(split_names)) or "no rows",
            expected=expected,
        )
    return table_rows, (*questions, *unused)


def group_questions(header: Sequence[str]) -> tuple[str, ...]:
    """Return a question for each column that is named like a patient or person, if there is no column ``group``.

    Without groups, images of one person may be in training and in the test set, and nothing checks it.
    """
    likely = () if "group" in header else [name for name in header if GROUP_NAME.fullmatch(name)]
    return tuple(f"is `{name}` your group? If it is, rename the column to `group`" for name in likely)


def read_metadata(folder: Path) -> DatasetParts:
    """Read the dataset that the tables of a folder list.

    The classes are the sorted labels. Missing files are left out, and a note names each. Without a column ``split``, a fifth of
    the images is the test set: stratified by class, with whole groups, the same in every run. A note says so.

    Raises:
        UserError: If a table cannot be used.
    """
    listed_rows, notes = read_rows(folder)
    absent = tuple(f"{row.file}: no such file" for row in listed_rows if not (folder / row.file).is_file())
    present_rows = [row for row in listed_rows if (folder / row.file).is_file()]
    classes = tuple(sorted({row.label for row in present_rows}))
    if len(classes) < 2:
        found = f"{len(classes)} among {len(present_rows)} of {len(listed_rows)} rows whose file exists"
        raise UserError(
            f"{folder}: {METADATA_FILE}: too few labels", found=found, expected="at least two", do="check file_name and label"
        )
    if not present_rows[0].split:
        splits, note = _split_without_column(folder, _rows_to_split(folder, present_rows, classes, present_rows), classes)
        return classes, splits, (note, *notes, *absent)
    roles = {SPLITS[row.split] for row in listed_rows}
    splits = {}
    for role in ("train", *(("validation", "test") if roles == {"train", "validation", "test"} else ("test",))):
        source = role if role in roles else "validation"  # without a test set, val is the test set
        raw = _rows_to_split(folder, [row for row in present_rows if SPLITS[row.split] == source], classes, present_rows)
        splits[role] = raw if role == "train" else shuffle(raw)
    unknown = sorted(
        {classes[label] for raw in splits.values() for label in raw.labels} - _class_names(splits["train"], classes)
    )
    if unknown:
        expected = ", ".join(sorted(_class_names(splits["train"], classes)))
        raise UserError(
            f"{folder}: {METADATA_FILE}: labels that are missing from train", found=", ".join(unknown[:6]), expected=expected
        )
    return classes, splits, (*notes, *absent)


def _split_without_column(folder: Path, raw: RawSplit, classes: Sequence[str]) -> tuple[dict[str, RawSplit], str]:
    """Cut a test set from the images of a table without splits. Return the splits, and a note that says so."""
    test, note = _cut_test_set(raw)
    rest = np.setdiff1d(np.arange(len(raw.labels)), test)
    if min(len(np.unique(raw.labels[index])) for index in (test, rest)) < len(classes):
        found = f"{len(raw.labels)} images" + (f" in {len(np.unique(raw.groups))} groups" if len(raw.groups) else "")
        expected = "enough images for each class in the training and the test set, without splitting a group"
        what = f"{folder}: {METADATA_FILE}: there is no column split, and no test set can be cut"
        raise UserError(what, found=found, expected=expected, do="add a column split with train and test")
    return {"train": take(raw, rest), "test": shuffle(take(raw, test))}, note


def _class_names(raw: RawSplit, classes: Sequence[str]) -> set[str]:
    """Return the names of the classes of a split."""
    return {classes[label] for label in raw.labels}


def _rows_to_split(
    folder: Path, table_rows: Sequence[MetadataRow], classes: Sequence[str], all_rows: Sequence[MetadataRow]
) -> RawSplit:
    """Return rows as a split.

    Groups are numbered over all splits, so that a group in two splits has one number.
    """
    label_numbers = {value: index for index, value in enumerate(classes)}
    group_numbers = {value: index for index, value in enumerate(sorted({row.group for row in all_rows}))}
    groups = np.array([group_numbers[row.group] for row in table_rows if row.group], np.int64)
    labels = np.array([label_numbers[row.label] for row in table_rows], np.int64)
    return RawSplit([folder / row.file for row in table_rows], labels, groups, [row.file for row in table_rows])


def _cut_test_set(raw: RawSplit) -> tuple[np.ndarray, str]:
    """Return the indices of the test images of a table without splits, and a note that says so."""
    order = balanced_order(raw.labels, raw.groups, np.random.default_rng(0))
    size = max(len(order) // TEST_SHARE_DIVISOR, len(np.unique(raw.labels)))
    group_text = ""
    if len(raw.groups):
        chosen = np.unique(raw.groups[order[:size]])
        order = order[np.isin(raw.groups[order], chosen)]
        size, group_text = len(order), f" ({len(chosen)} whole groups)"
    return np.sort(
        order[:size]
    ), f"{METADATA_FILE}: no column split, so {size} of {len(raw.labels)} images{group_text} are the test set"


def _read_table(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Return the header of a table, and its rows with the number of the line on which each ends."""
    expected = "a header with file_name,label and optionally split,group; UTF-8, separated by commas"
    content = path.read_bytes()
    if b"\0" in content:
        raise UserError(
            f"{path}: not a text file in UTF-8", found="a NUL byte", expected=expected, do="save it as CSV in UTF-8"
        )
    try:
        reader = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        lines = [(reader.line_num, line) for line in reader if line]
    except UnicodeDecodeError as error:
        found = f"byte {error.object[error.start]:#04x} at {error.start}"
        raise UserError(f"{path}: not UTF-8", found=found, expected=expected, do="save it as CSV in UTF-8") from error
    except csv.Error as error:
        raise UserError(f"{path}: not a CSV file", found=str(error), expected=expected) from error
    header = [name.strip() for name in lines[0][1]] if lines else []
    missing = [name for name in COLUMNS[:2] if name not in header]
    if missing:
        found = ",".join(header)[:80] or "an empty file"
        do = "separate by commas" if ";" in found or "\t" in found else "or rename the file if you mean class folders"
        raise UserError(f"{path}: no column {' and '.join(missing)}", found=found, expected=expected, do=do)
    repeated = [name for name, count in Counter(header).items() if count > 1]
    if repeated:
        raise UserError(f"{path}: a column twice", found=", ".join(repeated), expected=expected)
    for number, line in lines[1:]:
        if len(line) != len(header):
            found, expected = f"{len(line)} fields: {','.join(line)[:80]}", f"{len(header)} fields, as in the header"
            raise UserError(f"{path}: line {number}", found=found, expected=expected, do="quote a field that holds a comma")
    _check_unique_files(path, [(number, line[header.index("file_name")]) for number, line in lines[1:]])
    _check_groups(path, header, lines[1:])
    return header, lines[1:]


def _check_unique_files(path: Path, names_by_line: Sequence[tuple[int, str]]) -> None:
    """Raise a UserError if a table lists a file twice."""
    line_of: dict[PurePosixPath, int] = {}
    for number, name in names_by_line:
        file = PurePosixPath(name.strip())
        if file in line_of:
            found = f"{name}, first on line {line_of[file]}"
            raise UserError(f"{path}: line {number}: a file twice", found=found, expected="one row for each file")
        line_of[file] = number


def _check_groups(path: Path, header: Sequence[str], lines: Sequence[tuple[int, Sequence[str]]]) -> None:
    """Raise a UserError if some rows have a group and others have none.

    An image without a group could have its group on the other side of a cut.
    """
    if "group" in header:
        column = header.index("group")
        without = [number for number, line in lines if not line[column].strip()]
        if 0 < len(without) < len(lines):
            raise UserError(f"{path}: line {without[0]}: group", found="nothing", expected="a group in every row, or in none")


def _parse_row(path: Path, number: int, fields: dict[str, str], split: str) -> MetadataRow:
    """Check a row and return it."""
    location = f"{path}: line {number}"
    values = {name: fields.get(name, "").strip() for name in COLUMNS}
    file = PurePosixPath(values["file_name"])
    if not values["file_name"] or file.is_absolute() or ".." in file.parts or "\\" in values["file_name"]:
        expected = f"a path with /, relative to {path.parent.name or path.parent} and inside it"
        raise UserError(f"{location}: file_name", found=values["file_name"] or "nothing", expected=expected)
    if not values["label"]:
        raise UserError(f"{location}: label", found="nothing", expected="the class of the image")
    split_name = split or values["split"].lower()
    if not split and "split" in fields and split_name not in SPLITS:
        raise UserError(f"{location}: split", found=values["split"] or "nothing", expected=", ".join(SPLITS))
    return MetadataRow(file=str(PurePosixPath(split) / file), label=values["label"], split=split_name, group=values["group"])
