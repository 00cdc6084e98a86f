"""Read columns of Parquet and Arrow files as Hugging Face's datasets write them. Reads files; needs pyarrow.

No code of a dataset runs, and nothing is downloaded.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from xferbench.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SUFFIXES = (".parquet", ".arrow")
FEATURES_KEY = b"huggingface"  # of the metadata of a schema, where datasets records the classes
MAX_METADATA = 2**24  # bytes of the features that are read
MAX_ROWS = 20_000_000  # of a file
MAX_BYTES = 8 * 2**30  # of the values of a file, and of all files of a dataset
EXPECTED = "Parquet or Arrow files, as save_to_disk or the Hugging Face hub writes them"


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """The columns of a file.

    Attributes:
        columns: their names.
        kinds: for each column ``integer``, ``boolean``, ``float``, ``text``, ``bytes``, ``image`` (a structure of bytes and
            path), ``list`` or ``other``.
        class_names: the recorded class names of the columns that have some, in the order of the labels.
    """

    columns: tuple[str, ...]
    kinds: dict[str, str]
    class_names: dict[str, tuple[str, ...]]


def read_schema(file: Path) -> Schema:
    """Read the columns of a file, without their values.

    Raises:
        UserError: If pyarrow is not installed, or the file is damaged.
    """
    schema = _open(file, None)
    kinds = {field.name: _kind(field.type) for field in schema}
    return Schema(columns=tuple(kinds), kinds=kinds, class_names=_class_names(schema.metadata or {}))


def read_columns(file: Path, columns: Sequence[str]) -> dict[str, list[Any]]:
    """Read the values of some columns of a file.

    Raises:
        UserError: If pyarrow is not installed, or the file is damaged.
    """
    values: dict[str, list[Any]] = _open(file, list(columns))
    return values


def _open(file: Path, columns: list[str] | None) -> Any:
    """Return the schema of a file, or the values of some columns."""
    if find_spec("pyarrow") is None:
        do = "pip install 'xferbench[datasets]'"
        raise UserError(f"{file}: Parquet and Arrow files need pyarrow", found="not installed", do=do)
    import pyarrow as pa
    from pyarrow import ipc, parquet

    try:
        if file.suffix.lower() == ".parquet":
            with parquet.ParquetFile(file) as opened:
                _check_size(file, opened.metadata)
                return opened.schema_arrow if columns is None else opened.read(columns=columns).to_pydict()
        with pa.OSFile(str(file)) as stream:
            reader = _open_arrow(ipc, stream, pa.ArrowInvalid)
            return reader.schema if columns is None else reader.read_all().select(columns).to_pydict()
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        found = str(error).splitlines()[0][:80] if str(error) else type(error).__name__
        raise UserError(f"{file}: damaged", found=found, expected=EXPECTED, do="download or save the dataset again") from error


def _check_size(file: Path, metadata: Any) -> None:
    """Raise a UserError for a small file that would need much memory, which repeated values make possible."""
    size = sum(metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups))
    if metadata.num_rows > MAX_ROWS or size > MAX_BYTES:
        found = f"{metadata.num_rows:,} rows of {size / 2**30:.1f} GiB"
        expected = f"at most {MAX_ROWS:,} rows of {MAX_BYTES / 2**30:.0f} GiB"
        raise UserError(f"{file}: too large", found=found, expected=expected, do="save a part of the dataset")


def _open_arrow(ipc: Any, stream: Any, invalid: type[Exception]) -> Any:
    """Open the stream format, which datasets writes, or the file format."""
    try:
        return ipc.open_stream(stream)
    except invalid:
        stream.seek(0)
        return ipc.open_file(stream)


def _kind(type_: Any) -> str:
    from pyarrow import types

    if types.is_struct(type_):
        names = {type_.field(index).name for index in range(type_.num_fields)}
        return "image" if "bytes" in names else "other"
    tests = {
        "integer": types.is_integer,
        "boolean": types.is_boolean,
        "float": types.is_floating,
        "text": lambda value: types.is_string(value) or types.is_large_string(value),
        "bytes": lambda value: types.is_binary(value) or types.is_large_binary(value),
        "list": lambda value: types.is_list(value) or types.is_large_list(value) or types.is_fixed_size_list(value),
    }
    return next((kind for kind, test in tests.items() if test(type_)), "other")


def _class_names(metadata: dict[bytes, bytes]) -> dict[str, tuple[str, ...]]:
    """Return the class names that datasets records; other metadata have none."""
    content = metadata.get(FEATURES_KEY, b"")
    try:
        features = json.loads(content)["info"]["features"] if len(content) <= MAX_METADATA else {}
        return {
            str(column): tuple(feature["names"])
            for column, feature in features.items()
            if isinstance(feature, dict) and _is_names(feature.get("names"))
        }
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}


def _is_names(value: object) -> bool:
    """Return whether a value is a list of different class names."""
    return isinstance(value, list) and all(isinstance(name, str) for name in value) and len(set(value)) == len(value)
