"""Read datasets of texts or images that Hugging Face's datasets saved, or that the hub lays out as Parquet files. Reads files.

The columns have the names of :mod:`xferbench.data.table_files`. The splits are those of the names of files and folders, such as
``train-00000-of-00001.parquet`` or ``train/data-00000-of-00001.arrow``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from xferbench.core.errors import UserError
from xferbench.data import columnar
from xferbench.data.class_folders import split_role
from xferbench.data.listing import IMAGE_SUFFIXES, list_files
from xferbench.data.metadata_csv import group_questions
from xferbench.data.raw import DatasetParts, RawExample, RawSplit, TextExample, shuffle
from xferbench.data.table_files import LABEL_NAMES, TEXT_TABLE, TableForm, renamed_columns
from xferbench.data.table_splits import check_split_names, cut_test_set, divide

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

IMAGE_COLUMNS = replace(
    TEXT_TABLE,
    required=("image", "label"),
    optional=("group",),
    aliases={"image": ("img", "picture"), "label": LABEL_NAMES},
    example="image",
)
TEXT_COLUMNS = replace(TEXT_TABLE, optional=("text_pair", "group"))
SHARD = re.compile(r"(.+?)-\d+-of-\d+")  # train-00000-of-00001
CACHE_PREFIX = "cache-"  # of files that datasets leaves in a saved folder, which are not a part of it
NO_CLASS = -1  # the label of examples whose class is kept secret, as in the test sets of GLUE
MAX_LISTED = 6
EXAMPLES = {"text": "texts", "image": "images"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """An example with its label as it is saved; ``group`` is "" if there are no groups, and ``name`` is for messages."""

    example: RawExample
    label: Any
    group: str
    split: str
    name: str


def table_files(path: Path) -> list[Path]:
    """Return the files of a saved dataset: a file alone, or the Parquet files of a folder, or else its Arrow files.

    Raises:
        UserError: If there are none, or they are too large.
    """
    files = [path] if path.is_file() else [file for file in list_files(path) if not file.name.startswith(CACHE_PREFIX)]
    by_suffix = ([file for file in files if file.suffix.lower() == suffix] for suffix in columnar.SUFFIXES)
    tables = next(filter(None, by_suffix), [])
    if not tables:
        raise UserError(f"{path}: no table", found=f"{len(files)} other files", expected=columnar.EXPECTED)
    if (size := sum(file.stat().st_size for file in tables)) > columnar.MAX_BYTES:
        found, expected = f"{size / 2**30:.0f} GiB", f"at most {columnar.MAX_BYTES // 2**30} GiB, which must fit into memory"
        raise UserError(f"{path}: too large", found=found, expected=expected, do="export the images to class folders")
    return tables


def is_saved(path: Path) -> bool:
    """Return whether a path is a Parquet or Arrow file, or a folder that has one and no image files."""
    suffixes = {file.suffix.lower() for file in (list_files(path) if path.is_dir() else [path])}
    return not suffixes.isdisjoint(columnar.SUFFIXES) and suffixes.isdisjoint(IMAGE_SUFFIXES)


def check_tables(path: Path) -> None:
    """Check the columns of a saved dataset, without reading their values.

    Raises:
        UserError: If it is not a dataset of one label for each text or image.
    """
    _common_schema(path, table_files(path))


def has_texts(path: Path) -> bool:
    """Return whether the examples of a saved dataset are texts. Its values are not read.

    Raises:
        UserError: If it is not a dataset of one label for each text or image.
    """
    return _common_schema(path, table_files(path))[1] is TEXT_COLUMNS


def split_of(file: Path) -> str:
    """Return the name of the split of a file, from its own name or its folder's; "" if neither names one."""
    shard = SHARD.fullmatch(file.stem)
    own = shard.group(1) if shard else file.stem
    return own if split_role(own) else file.parent.name if split_role(file.parent.name) else ""


def read_saved(path: Path) -> tuple[DatasetParts, tuple[str, ...]]:
    """Read a saved dataset.

    The classes are the recorded class names, in their order, or else the sorted labels. Files that no split has are left out if
    others have one, and so is a split whose classes are kept secret. Of a single split that is not for testing, a fifth is the
    test set. Notes say so.

    Returns:
        The classes, the splits and a note for each image without its bytes; and notes on how the files were understood.

    Raises:
        UserError: If it is not a dataset of one label for each text or image.
    """
    split_by_file = {file: split_of(file) for file in table_files(path)}
    has_splits = any(split_by_file.values())
    used = {file: split for file, split in split_by_file.items() if split or not has_splits}
    unused = [file.name for file in split_by_file if file not in used]
    listed = ", ".join(unused[:MAX_LISTED]) + ", …" * (len(unused) > MAX_LISTED)
    notes = [f"files that name no split and are not used: {listed}"] * bool(unused)
    schema, form = _common_schema(path, list(used))
    renamed = renamed_columns(schema.columns, form)
    original = {renamed.get(column, column): column for column in schema.columns}
    rows, missing = _read_rows(path, used, {name: original[name] for name in form.columns if name in original})
    secret = _secret_splits(rows)
    notes += [f"the split {split} has no classes (label {NO_CLASS}) and is not used" for split in secret]
    notes += [f"column {old} is read as {new}" for old, new in renamed.items()] + list(group_questions(tuple(original)))
    rows = [row for row in rows if row.split not in secret]
    classes, labels = _labels(path, rows, schema.class_names.get(original["label"], ()))
    names = sorted({row.group for row in rows})
    groups = np.searchsorted(names, [row.group for row in rows]) if "group" in original else np.empty(0)
    raw = RawSplit([row.example for row in rows], labels, groups.astype(np.int64), [row.name for row in rows])
    known = {row.split for row in rows}
    if {split_role(name) for name in known} == {"test"}:
        splits = {"test": shuffle(raw)}
    elif len(known) > 1:
        check_split_names(path, known)
        splits = divide(raw, [row.split for row in rows], known, classes, path)
    else:
        splits, note = cut_test_set(raw, classes, path, EXAMPLES[form.required[0]], without="a single split")
        notes.insert(0, note)
    return (classes, splits, tuple(missing)), tuple(notes)


def _common_schema(path: Path, files: Sequence[Path]) -> tuple[columnar.Schema, TableForm]:
    """Return the columns of the files, which must be the same, and whether they are texts or images."""
    first = columnar.read_schema(files[0])
    if other := next((file for file in files[1:] if columnar.read_schema(file).kinds != first.kinds), None):
        found = f"{files[0].relative_to(path)} and {other.relative_to(path)}"
        do = "name the folder of one of them"
        raise UserError(f"{path}: tables with different columns", found=found, expected="one table in parts", do=do)
    kinds = {column.casefold(): kind for column, kind in first.kinds.items()}
    is_image = any(kinds.get(name) in {"image", "bytes"} for name in ("image", *IMAGE_COLUMNS.aliases["image"]))
    form = IMAGE_COLUMNS if is_image else TEXT_COLUMNS
    renamed = renamed_columns(first.columns, form)
    names = {renamed.get(column, column) for column in first.columns}
    if absent := [name for name in form.required if name not in names]:
        found, expected = ", ".join(first.columns)[:80], "the columns text and label, or image and label"
        do = "rename the columns and save the dataset again"
        raise UserError(f"{path}: no column {' and '.join(absent)}", found=found, expected=expected, do=do)
    label = next(column for column in first.columns if renamed.get(column, column) == "label")
    _check_label(path, first.kinds[label])
    return first, form


def _check_label(path: Path, kind: str) -> None:
    """Raise a UserError unless the column of labels can have one class for each example."""
    if kind == "list":
        found = "a list of labels for each example"
        raise UserError(f"{path}: multi-label is not supported", found=found, expected="one label for each example")
    if kind not in {"integer", "boolean", "text"}:
        raise UserError(f"{path}: label", found=f"a column of {kind}", expected="classes: whole numbers or texts")


def _read_rows(path: Path, files: Mapping[Path, str], columns: Mapping[str, str]) -> tuple[list[_Row], list[str]]:
    """Read the examples of files with their splits. Return them, and a note for each image without its bytes.

    Args:
        path: the dataset, for messages.
        files: the split of each file.
        columns: the column of a file for each name that this package uses.
    """
    rows, missing = [], []
    for file, split in files.items():
        values = columnar.read_columns(file, list(columns.values()))
        for index in range(len(values[columns["label"]])):
            row = {name: values[column][index] for name, column in columns.items()}
            name = f"{file.name}: row {index}"
            example = _text(row, f"{path}: {name}") if "text" in columns else _image(row["image"])
            if example is None:
                missing.append(f"{name}: an image without its bytes")
                continue
            group = row.get("group", "")
            if group is None:
                raise UserError(f"{path}: {name}: group", found="nothing", expected="a group in every row")
            rows.append(_Row(example=example, label=row["label"], group=str(group), split=split, name=name))
    if not rows:
        raise UserError(f"{path}: no example", found=(*missing, "no rows")[0], expected=columnar.EXPECTED)
    return rows, missing


def _text(row: Mapping[str, Any], name: str) -> TextExample:
    first, second = (row.get(column) or "" for column in ("text", "text_pair"))
    if not isinstance(first, str) or not isinstance(second, str) or not first.strip():
        found = "nothing" if first == "" else str(first)[:80]
        raise UserError(f"{name}: text", found=found, expected="a text", do="fill it in, or remove the row")
    return TextExample(first.strip(), second.strip())


def _image(value: Any) -> bytes | None:
    content = value.get("bytes") if isinstance(value, dict) else value
    return content if isinstance(content, bytes) else None


def _secret_splits(rows: Sequence[_Row]) -> list[str]:
    """Return the splits without any class."""
    splits = dict.fromkeys(row.split for row in rows)
    labeled = {row.split for row in rows if row.label is not None and row.label != NO_CLASS}
    return [split for split in splits if split not in labeled and len(splits) > 1]


def _labels(path: Path, rows: Sequence[_Row], recorded: tuple[str, ...]) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the names of the classes that occur, and the index [n] of each example's class."""
    for row in rows:
        if row.label is None or (recorded and row.label not in range(len(recorded))):
            expected = f"0 to {len(recorded) - 1}" if recorded else "a class"
            do = "remove the row, or label it"
            raise UserError(f"{path}: {row.name}: label", found=str(row.label), expected=expected, do=do)
    used = sorted({row.label for row in rows})
    if len(used) < 2:
        raise UserError(f"{path}: too few labels", found=", ".join(map(str, used)), expected="at least two")
    number = {label: index for index, label in enumerate(used)}
    labels = np.array([number[row.label] for row in rows], np.int64)
    return tuple(recorded[label] if recorded else str(label) for label in used), labels
