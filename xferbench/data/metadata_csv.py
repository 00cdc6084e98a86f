"""Read image datasets that a table lists: one for the folder, or one in each of ``train/``, ``val/`` and ``test/``.

The table is that of Hugging Face's image folders (https://huggingface.co/docs/datasets/image_dataset), ``metadata.csv`` or
``metadata.jsonl``: ``file_name`` relative to the table's folder, here with ``label`` and optionally ``split`` and ``group``.
Another table is read if it is the only one and there are no class folders. Reads files.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from xferbench.core.errors import UserError
from xferbench.data.class_folders import TABLE_SUFFIXES, find_splits, split_role
from xferbench.data.listing import is_visible, list_folders
from xferbench.data.raw import DatasetParts, RawSplit
from xferbench.data.table_files import IMAGE_TABLE, Table, index_files, is_table, read_table, resolve_path
from xferbench.data.table_splits import EXPECTED_SPLIT, check_split_names, cut_test_set, divide

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

METADATA_FILE = "metadata.csv"
METADATA_FILES = (METADATA_FILE, "metadata.jsonl")
GROUP_NAME = re.compile(r"(patient|subject|case|person|participant)s?([ _-]?(id|no|nr|number|code|name))?", re.IGNORECASE)


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
    for name in METADATA_FILES:
        if (folder / name).is_file():
            return {"": folder / name}
        tables = {path.name: path / name for path in list_folders(folder) if split_role(path.name)}
        is_complete = bool(tables) and all(path.is_file() for path in tables.values())
        if is_complete or (name == METADATA_FILE and (folder / "train" / name).is_file()):
            return tables
    table = _only_table(folder)
    return {"": table} if table else {}


def _only_table(folder: Path) -> Path | None:
    """Return a table with another name if the images are not in class folders.

    Raises:
        UserError: If there are several.
    """
    candidates = [path for path in sorted(folder.iterdir()) if path.suffix in TABLE_SUFFIXES and is_visible(path.name)]
    if not candidates or len(list_folders(folder)) > 1 or find_splits(folder):
        return None
    tables = [path for path in candidates if path.is_file() and is_table(path)]
    if len(tables) > 1:
        do = f"join them in {METADATA_FILE}, with a column split"
        raise UserError(f"{folder}: several tables", found=", ".join(path.name for path in tables[:6]), expected="one", do=do)
    return tables[0] if tables else None


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
        table = read_table(path)
        used_columns = [name for name in IMAGE_TABLE.columns if not split or name != "split"]
        name = path.relative_to(folder).as_posix()
        questions += [f"{name}: {question}" for question in group_questions(table.header)]
        numbered_rows, resolved = _parse_rows(path, table, split)
        unused += [f"{name}: {note}" for note in (*table.notes, *resolved)]
        unused += [f"{name}: column {column} is not used" for column in table.header if column not in used_columns]
        table_rows += [row for _, row in numbered_rows]
    split_names = {row.split for row in table_rows} if metadata_files(folder) else {""}
    if "" not in split_names:
        check_split_names(f"{folder}: {METADATA_FILE}", split_names)
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
    raw = _rows_to_split(folder, present_rows, classes)
    if not present_rows[0].split:
        (table,) = metadata_files(folder).values()
        splits, note = cut_test_set(raw, classes, table, "images")
        return classes, splits, (note, *notes, *absent)
    known = {row.split for row in listed_rows}
    splits = divide(raw, [row.split for row in present_rows], known, classes, f"{folder}: {METADATA_FILE}")
    return classes, splits, (*notes, *absent)


def _rows_to_split(folder: Path, rows: Sequence[MetadataRow], classes: Sequence[str]) -> RawSplit:
    """Return all rows as one split, so that a group in two splits has one number."""
    label_numbers = {value: index for index, value in enumerate(classes)}
    group_numbers = {value: index for index, value in enumerate(sorted({row.group for row in rows}))}
    groups = np.array([group_numbers[row.group] for row in rows if row.group], np.int64)
    labels = np.array([label_numbers[row.label] for row in rows], np.int64)
    return RawSplit([folder / row.file for row in rows], labels, groups, [row.file for row in rows])


def _check_unique_files(path: Path, table_rows: Sequence[tuple[int, MetadataRow]]) -> None:
    """Raise a UserError if a table lists a file twice."""
    line_of: dict[str, int] = {}
    for number, row in table_rows:
        if row.file in line_of:
            found = f"{row.file}, first on line {line_of[row.file]}"
            raise UserError(f"{path}: line {number}: a file twice", found=found, expected="one row for each file")
        line_of[row.file] = number


def _check_groups(path: Path, table_rows: Sequence[tuple[int, MetadataRow]]) -> None:
    """Raise a UserError if some rows have a group and others have none.

    An image without a group could have its group on the other side of a cut.
    """
    without = [number for number, row in table_rows if not row.group]
    if 0 < len(without) < len(table_rows):
        raise UserError(f"{path}: line {without[0]}: group", found="nothing", expected="a group in every row, or in none")


def is_foreign(name: str) -> bool:
    """Return whether a path is one of another computer: absolute, or with backslashes."""
    return "\\" in name or PurePosixPath(name).is_absolute()


def _parse_rows(path: Path, table: Table, split: str) -> tuple[list[tuple[int, MetadataRow]], list[str]]:
    """Check the rows of a table. Return them with their lines, and a note if paths of another computer were resolved."""
    has_foreign = any(is_foreign(fields["file_name"].strip()) for _, fields in table.rows)
    files = index_files(path.parent) if has_foreign else {}
    numbered_rows = [(number, _parse_row(path, number, fields, split, files)) for number, fields in table.rows]
    _check_unique_files(path, numbered_rows)
    _check_groups(path, numbered_rows)
    foreign = [
        (fields["file_name"], row.file)
        for (_, fields), (_, row) in zip(table.rows, numbered_rows, strict=True)
        if is_foreign(fields["file_name"].strip())
    ]
    if not foreign:
        return numbered_rows, []
    name, file = foreign[0]
    return numbered_rows, [f"{len(foreign)} paths of another computer are resolved by their ends: {name} is {file}"]


def _parse_row(
    path: Path, number: int, fields: Mapping[str, str], split: str, files: Mapping[str, Sequence[PurePosixPath]]
) -> MetadataRow:
    """Check a row and return it."""
    location = f"{path}: line {number}"
    values = {name: fields.get(name, "").strip() for name in IMAGE_TABLE.columns}
    file: PurePosixPath | None = PurePosixPath(values["file_name"])
    if is_foreign(values["file_name"]):
        file = resolve_path(values["file_name"], files)
    if not values["file_name"] or file is None or ".." in file.parts:
        expected = f"a path with /, relative to {path.parent.name or path.parent} and inside it"
        do = "write such a path; its end must be that of one file only" if values["file_name"] else ""
        raise UserError(f"{location}: file_name", found=values["file_name"] or "nothing", expected=expected, do=do)
    if not values["label"]:
        do = "write the class, or remove the row"
        raise UserError(f"{location}: label", found="nothing", expected="the class of the image", do=do)
    split_name = split or values["split"].lower()
    if not split and "split" in fields and not split_role(split_name):
        raise UserError(f"{location}: split", found=values["split"] or "nothing", expected=EXPECTED_SPLIT)
    return MetadataRow(file=str(PurePosixPath(split) / file), label=values["label"], split=split_name, group=values["group"])
