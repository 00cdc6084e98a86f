"""Read texts with their labels from a table, CSV or JSON lines. Reads files.

The columns are ``text`` and ``label``, and optionally ``text_pair``, ``split`` and ``group``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from xferbench.core.errors import UserError
from xferbench.data.class_folders import split_role
from xferbench.data.metadata_csv import group_questions
from xferbench.data.raw import DatasetParts, RawSplit, TextExample
from xferbench.data.table_files import TEXT_TABLE, Table, read_table
from xferbench.data.table_splits import EXPECTED_SPLIT, check_split_names, cut_test_set, divide

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

MAX_EXCERPT = 40  # characters of a text in a message


def read_texts(path: Path, kind: str) -> DatasetParts:
    """Read the classes of a table of texts, its splits, and notes on its columns.

    The classes are the sorted labels; labels that are whole numbers are sorted as numbers. Without a column ``split``, a fifth
    of the texts is the test set, and a note says so. Halves of a surrogate pair become question marks.

    Args:
        path: The table.
        kind: ``csv`` or ``jsonl``.

    Raises:
        UserError: If the table cannot be used. The message names the line.
    """
    table = read_table(path, replace(TEXT_TABLE, kind=kind))
    _check_rows(path, table)
    rows = [row for _, row in table.rows]
    classes = _class_names(path, rows)
    raw = RawSplit(
        [_text_example(row) for row in rows],
        np.array([classes.index(row["label"].strip()) for row in rows], np.int64),
        _group_numbers(rows),
        [f"{path.name}: line {number}" for number, _ in table.rows],
    )
    notes = tuple(_notes(path, table))
    if "split" not in table.header:
        splits, note = cut_test_set(raw, classes, path, "texts")
        return classes, splits, (note, *notes)
    names = [row["split"].strip() for row in rows]
    check_split_names(path, set(names))
    return classes, divide(raw, names, set(names), classes, path), notes


def _text_example(row: Mapping[str, str]) -> TextExample:
    first, second = (row.get(name, "").strip().encode("utf-8", "replace").decode() for name in ("text", "text_pair"))
    return TextExample(first, second)


def _check_rows(path: Path, table: Table) -> None:
    """Raise a UserError for a row without a text or a label, with an unknown split, or without the group that others have."""
    has_groups = any(row.get("group", "").strip() for _, row in table.rows)
    for number, row in table.rows:
        for name, expected in (("text", "a text"), ("label", "the class of the text")):
            if not row[name].strip():
                do = "fill it in, or remove the row"
                raise UserError(f"{path}: line {number}: {name}", found="nothing", expected=expected, do=do)
        if "split" in row and not split_role(row["split"].strip()):
            raise UserError(f"{path}: line {number}: split", found=row["split"] or "nothing", expected=EXPECTED_SPLIT)
        if has_groups and not row["group"].strip():
            raise UserError(f"{path}: line {number}: group", found="nothing", expected="a group in every row, or in none")


def _class_names(path: Path, rows: Sequence[Mapping[str, str]]) -> tuple[str, ...]:
    labels = {row["label"].strip() for row in rows}
    if len(labels) < 2:
        found = f"{len(labels)} among {len(rows)} rows"
        raise UserError(f"{path}: too few labels", found=found, expected="at least two", do="check the column label")
    are_numbers = all(label.removeprefix("-").isdecimal() for label in labels)
    return tuple(sorted(labels, key=lambda label: (int(label), label) if are_numbers else (0, label)))


def _group_numbers(rows: Sequence[Mapping[str, str]]) -> np.ndarray:
    groups = [row.get("group", "").strip() for row in rows]
    number = {name: index for index, name in enumerate(sorted(set(groups)))}
    return np.array([number[name] for name in groups if name], np.int64)


def _notes(path: Path, table: Table) -> Iterator[str]:
    """Yield notes on columns that may be the group, have another name or are not used, and on a text with two labels."""
    for question in group_questions(table.header):
        yield f"{path.name}: {question}"
    for note in table.notes:
        yield f"{path.name}: {note}"
    for column in table.header:
        if column not in TEXT_TABLE.columns:
            yield f"{path.name}: column {column} is not used"
    labels: dict[TextExample, str] = {}
    for number, row in table.rows:
        example = _text_example(row)
        if labels.setdefault(example, row["label"].strip()) != row["label"].strip():
            excerpt = example.text[:MAX_EXCERPT] + ("…" if len(example.text) > MAX_EXCERPT else "")
            yield f"{path.name}: line {number}: a text with two labels ({excerpt})"
            return
