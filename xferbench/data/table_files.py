"""Read the tables of a dataset, CSV or JSON lines: a header, and a row for each image or text. Reads files.

Columns have the names of Hugging Face's datasets. Names of other tools are accepted where only one column can be meant.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING

from xferbench.core.errors import UserError, suggest
from xferbench.data.listing import list_files

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

LABEL_NAMES = ("class", "target", "category", "class_name", "label_name", "labels")


@dataclass(frozen=True, slots=True, kw_only=True)
class TableForm:
    """The columns of a kind of table.

    Attributes:
        required, optional: the names of the columns.
        aliases: other names of columns, in any case.
        example: what a row is, in one word.
        expected: the columns in words, for messages.
        do: advice for a table without a required column.
        kind: ``csv`` or ``jsonl``; None for the one that the suffix of the file says.
    """

    required: tuple[str, ...]
    optional: tuple[str, ...]
    aliases: Mapping[str, tuple[str, ...]]
    example: str
    expected: str
    do: str
    kind: str | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """The required and the optional columns."""
        return (*self.required, *self.optional)


IMAGE_TABLE = TableForm(
    required=("file_name", "label"),
    optional=("split", "group"),
    aliases={
        "file_name": (
            "filename",
            "file",
            "path",
            "filepath",
            "file_path",
            "image",
            "img",
            "image_path",
            "image_name",
            "image_file",
        ),
        "label": LABEL_NAMES,
    },
    example="image",
    expected="a header with file_name,label and optionally split,group; UTF-8, separated by commas",
    do="or rename the file if you mean class folders",
)
TEXT_TABLE = TableForm(
    required=("text", "label"),
    optional=("text_pair", "split", "group"),
    aliases={
        "text": ("sentence", "content", "review", "question", "sentence1", "premise", "question1", "document"),
        "text_pair": ("sentence2", "hypothesis", "question2"),
        "label": (*LABEL_NAMES, "coarse_label", "sentiment"),
    },
    example="text",
    expected="a header with text,label and optionally text_pair,split,group; UTF-8, separated by commas",
    do="rename the columns",
)
SEVERAL_LABELS = re.compile(r"[^|;]*\S[^|;]*[|;][^|;]*\S.*|\[.*,.*\]", re.DOTALL)  # a|b, a;b, [a, b]
FLAGS = frozenset({"0", "1", "0.0", "1.0", "true", "false", ""})
MAX_LISTED = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """The rows of a table, each with its line, and notes on columns that have another name."""

    header: tuple[str, ...]
    rows: tuple[tuple[int, Mapping[str, str]], ...]
    notes: tuple[str, ...] = ()


def read_table(path: Path, form: TableForm = IMAGE_TABLE) -> Table:
    """Read a table.

    Raises:
        UserError: If it is not a table of one label for each example. The message names the line.
    """
    header, lines = _read_lines(path, form)
    repeated = [name for name, count in Counter(header).items() if count > 1]
    if repeated:
        raise UserError(f"{path}: a column twice", found=", ".join(repeated), expected=form.expected)
    renamed = renamed_columns(header, form)
    names = tuple(renamed.get(name, name) for name in header)
    rows = tuple((number, dict(zip(names, fields, strict=True))) for number, fields in lines)
    if "label" not in names:
        _refuse_flags(path, names, [row for _, row in rows], form)
    missing = [name for name in form.required if name not in names]
    if missing:
        found = ",".join(header)[:80] or "an empty file"
        nearest = "; ".join(f"{name}: {suggest(name, header)}" for name in missing)[:200]
        do = "separate by commas" if ";" in found or "\t" in found else f"{form.do} ({nearest})"
        raise UserError(f"{path}: no column {' and '.join(missing)}", found=found, expected=form.expected, do=do)
    _refuse_several_labels(path, rows, form)
    return Table(
        header=names,
        rows=rows,
        notes=tuple(f"column {name} is read as {column}" for name, column in renamed.items()),
    )


def is_table(path: Path) -> bool:
    """Return whether a file can be read as a table with a column of files."""
    try:
        header, _ = _read_lines(path, IMAGE_TABLE)
    except UserError:
        return False
    return "file_name" in {*header, *renamed_columns(header, IMAGE_TABLE).values()}


def index_files(folder: Path) -> dict[str, list[PurePosixPath]]:
    """Return the files of a folder, relative to it, by their names."""
    index: dict[str, list[PurePosixPath]] = {}
    for path in list_files(folder):
        index.setdefault(path.name, []).append(PurePosixPath(path.relative_to(folder)))
    return index


def resolve_path(name: str, files: Mapping[str, Sequence[PurePosixPath]]) -> PurePosixPath | None:
    """Return the file that a path of another computer means: the one with the longest common end, if it is the only one.

    The result is None if no file, or more than one, can be meant. ``files`` are those of :func:`index_files`.
    """
    parts = PureWindowsPath(name).parts
    parts = parts[1:] if PureWindowsPath(name).anchor else parts
    if not parts or ".." in parts:
        return None
    ends = [PurePosixPath(*parts[start:]) for start in range(len(parts))]
    named = files.get(parts[-1], ())
    if direct := next((end for end in ends if end in named), None):
        return direct
    for end in ends:
        matching = [path for path in named if path.parts[-len(end.parts) :] == end.parts]
        if matching:
            return matching[0] if len(matching) == 1 else None
    return None


def _read_lines(path: Path, form: TableForm) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Return the header of a table, and the fields of its rows with the number of the line on which each ends."""
    text = _read_text(path, form)
    is_json = path.suffix.lower() == ".jsonl" if form.kind is None else form.kind == "jsonl"
    return _read_jsonl(path, text, form) if is_json else _read_csv(path, text, form)


def _read_text(path: Path, form: TableForm) -> str:
    content = path.read_bytes()
    if b"\0" in content:
        do = "save it as CSV in UTF-8"
        raise UserError(f"{path}: not a text file in UTF-8", found="a NUL byte", expected=form.expected, do=do)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        found, do = f"byte {error.object[error.start]:#04x} at {error.start}", "save it as CSV in UTF-8"
        raise UserError(f"{path}: not UTF-8", found=found, expected=form.expected, do=do) from error


def _read_csv(path: Path, text: str, form: TableForm) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Return the header of a table, and its rows with the number of the line on which each ends."""
    limit = csv.field_size_limit(max(len(text), csv.field_size_limit()))  # a document may be longer than the default
    try:
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        lines = [(reader.line_num, line) for line in reader if line]
    except csv.Error as error:
        raise UserError(f"{path}: not a CSV file", found=str(error), expected=form.expected) from error
    finally:
        csv.field_size_limit(limit)
    header = [name.strip() for name in lines[0][1]] if lines else []
    for number, line in lines[1:]:
        if len(line) != len(header):
            found, expected = f"{len(line)} fields: {','.join(line)[:80]}", f"{len(header)} fields, as in the header"
            raise UserError(f"{path}: line {number}", found=found, expected=expected, do="quote a field that holds a comma")
    return header, lines[1:]


def _read_jsonl(path: Path, text: str, form: TableForm) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Return the keys of all lines of a file of JSON objects, and the values of each line as text."""
    objects: list[tuple[int, dict[str, object]]] = []
    for number, line in enumerate(text.split("\n"), 1):  # a text may contain other characters that separate lines
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: line {number}: not JSON", found=str(error)[:80], expected="one object a line") from error
        if not isinstance(value, dict):
            raise UserError(f"{path}: line {number}", found=line[:80], expected=f"an object with {' and '.join(form.required)}")
        objects.append((number, value))
    header = list(dict.fromkeys(str(name) for _, value in objects for name in value))
    return header, [(number, [_as_text(value.get(name)) for name in header]) for number, value in objects]


def _as_text(value: object) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)


def renamed_columns(header: Sequence[str], form: TableForm) -> dict[str, str]:
    """Return the column that each other name stands for, if exactly one name can be meant."""
    renamed = {}
    for column, aliases in form.aliases.items():
        likely = [name for name in header if name.casefold() in {column, *aliases}]
        if column not in header and len(likely) == 1:
            renamed[likely[0]] = column
    return renamed


def _refuse_flags(path: Path, header: Sequence[str], rows: Sequence[Mapping[str, str]], form: TableForm) -> None:
    """Raise a UserError for a table with a column of zeros and ones for each class."""
    flags = [name for name in header if name not in form.columns and all(row[name].strip().lower() in FLAGS for row in rows)]
    if rows and len(flags) > 1:
        found = f"a column of 0 and 1 for each of {', '.join(flags[:MAX_LISTED])}"
        do = f"if each {form.example} has one class, write its name into a column label and remove the other columns"
        raise UserError(
            f"{path}: multi-label is not supported", found=found, expected=f"one label for each {form.example}", do=do
        )


def _refuse_several_labels(path: Path, rows: Sequence[tuple[int, Mapping[str, str]]], form: TableForm) -> None:
    """Raise a UserError if a label has several names. A comma separates names only if each of them is a label too."""
    labels = {row["label"].strip() for _, row in rows}
    for number, row in rows:
        names = [name.strip() for name in row["label"].split(",")]
        if SEVERAL_LABELS.fullmatch(row["label"].strip()) or (len(names) > 1 and labels.issuperset(names)):
            do = f"keep one label for each {form.example}; if this is a single name, write it without these characters"
            raise UserError(
                f"{path}: line {number}: multi-label is not supported", found=row["label"][:80], expected="one label", do=do
            )
