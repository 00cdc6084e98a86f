"""The store of trial records: an SQLite file with one writer and one transaction for each record. Reads and writes files.

A killed run loses only the trial that it was computing.
"""

from __future__ import annotations

import io
import json
import sqlite3
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np

from xferbench.core.cached_files import sweep_leftovers
from xferbench.core.errors import UserError
from xferbench.core.finished_head import FinishedHead, HeadLayer
from xferbench.core.interventions import as_dict
from xferbench.core.plugin import Profile
from xferbench.core.record import Predictions, Record, json_values
from xferbench.core.sections import from_flat
from xferbench.core.transforms import InputTransform, transform_class

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

STORE_VERSION = 1
CHECKSUM = "checksum"  # key of the checksum in the JSON of a row
PER_EXAMPLE = ("example", "label", "predicted", "p_true", "p_max", "sum_p2", "probabilities")  # arrays of predictions
STORE_ADVICE = "name another file with --store"
PAGE_RECORDS = 100  # records read at once: a store need not fit into memory, and a concurrent writer does not wait long
MAX_CACHE_BYTES = 4 * 2**30  # bytes of trained weights and activations in the cache folder
CREATE_TABLES = """
create table if not exists records (key text primary key, fit text, seconds real, about text, arrays blob) without rowid;
create table if not exists facts (key text primary key, about text) without rowid;
create table if not exists digests (path text primary key, size integer, time integer, digest text) without rowid;
"""


@contextmanager
def open_store(path: Path, advice: str = STORE_ADVICE) -> Iterator[sqlite3.Connection]:
    """Open a store, and create it if it does not exist; ``advice`` says how to name another file.

    Raises:
        UserError: if the file cannot be written, is not a store, is of a newer version, or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, timeout=60, isolation_level=None)
    except (OSError, sqlite3.OperationalError) as error:
        raise UserError(
            f"{path}: the store cannot be opened",
            found=str(error),
            expected="a file, or a folder that may be written",
            do=advice,
        ) from error
    try:
        has_tables = _check_schema(connection, path, advice)
        try:
            connection.executescript(f"begin immediate; {CREATE_TABLES} pragma user_version = {STORE_VERSION}; commit;")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_READONLY or not has_tables:
                raise
            if connection.in_transaction:
                connection.execute("rollback")
            # A complete store on a read-only disk can still be read.
        yield connection
    except sqlite3.DatabaseError as error:
        raise UserError(
            f"{path}: the store cannot be used",
            found=str(error),
            expected="a store written by xferbench, on a writable disk with free space",
            do=f"free some space, let another run end, or {advice}; existing records are kept",
        ) from error
    finally:
        connection.close()


def _check_schema(connection: sqlite3.Connection, path: Path, advice: str) -> bool:
    """Return whether a database has any tables; refuse one of another program or of a newer xferbench."""
    version = connection.execute("pragma user_version").fetchone()[0]
    tables = {row[0] for row in connection.execute("select name from sqlite_master where type = 'table'")}
    if tables and "records" not in tables:
        expected = "a store written by xferbench, or no file yet"
        raise UserError(
            f"{path}: a database of another program", found=", ".join(sorted(tables)[:6]), expected=expected, do=advice
        )
    if version > STORE_VERSION:
        expected = f"at most version {STORE_VERSION}"
        do = f"upgrade xferbench, or {advice}"
        raise UserError(f"{path}: a store of a newer xferbench", found=f"version {version}", expected=expected, do=do)
    return bool(tables)


def cache_folder(path: Path) -> Path:
    """Return the folder next to a store for data that can be recomputed: decoded images, activations, trained weights."""
    return path.with_name(path.name + ".cache")


def put_record(store: sqlite3.Connection, record: Record) -> None:
    """Write one record in its own transaction; an existing record is kept.

    Raises:
        ValueError: for a crashed trial, which is never stored and must be run again.
    """
    if record.error:
        raise ValueError("a crashed trial is never stored")
    fields_json = {
        field.name: getattr(record, field.name)
        for field in fields(Record)
        if field.name not in {"predictions", "key", "fit", "seconds"}
    }
    arrays = b""
    if record.predictions is not None:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **asdict(record.predictions))
        arrays = buffer.getvalue()
    text = json.dumps(json_values(fields_json))
    checksum = _checksum(record.key, record.fit, record.seconds, text, arrays)
    row = (record.key, record.fit, record.seconds, json.dumps(json.loads(text) | {CHECKSUM: checksum}), arrays)
    store.execute("insert or ignore into records values (?, ?, ?, ?, ?)", row)


def get_records(
    store: sqlite3.Connection, keys: Iterable[str], on_damage: Callable[[str], None] = lambda _: None
) -> dict[str, Record]:
    """Return the stored records among the given keys; a damaged one is deleted, so that its trial is computed again.

    Args:
        store: the open store.
        keys: keys of trials.
        on_damage: called with the key of each damaged record.
    """
    records = {}
    for key in keys:
        row = store.execute("select fit, seconds, about, arrays from records where key = ?", (key,)).fetchone()
        if row is None:
            continue
        record = _read_record(key, *row)
        if record is None:
            on_damage(key)
            _write(store, "delete from records where key = ?", (key,))
        else:
            records[key] = record
    return records


def _read_record(key: str, *row: Any) -> Record | None:
    """Return the record of a row, or None if the row is damaged, which may raise any exception."""
    try:
        return _record_from_row(key, *row)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - see above
        return None


def _write(store: sqlite3.Connection, statement: str, values: tuple[object, ...]) -> None:
    """Write what can be computed again; a store on a read-only disk stays as it is."""
    try:
        store.execute(statement, values)
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_READONLY:
            raise


def _checksum(*values: object) -> str:
    """Return a digest of values of a row, because SQLite does not notice a changed digit."""
    return blake2b(repr(values).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _verify(values: dict[str, Any], *other_values: object, arrays: bytes = b"") -> dict[str, Any]:
    """Return the values of a row without its checksum, which rows of earlier versions lack.

    Raises:
        ValueError: if the row is not as it was written.
    """
    expected = values.pop(CHECKSUM, None)
    if expected not in {None, _checksum(*other_values, json.dumps(values), arrays)}:
        raise ValueError("the row differs from its checksum")
    return values


def _record_from_row(key: str, fit: Any, seconds: Any, fields_json: Any, arrays: Any) -> Record:
    values = _verify(json.loads(fields_json), key, fit, seconds, arrays=arrays)
    if not (isinstance(fit, str) and isinstance(seconds, float | int) and isinstance(arrays, bytes)):
        raise TypeError("a column of another type")
    values["curve"] = tuple((int(step), _float_or_nan(loss), _float_or_nan(score)) for step, loss, score in values["curve"])
    values["scalars"] = {name: _float_or_nan(value) for name, value in values["scalars"].items()}
    predictions = Predictions(**np.load(io.BytesIO(arrays))) if arrays else None
    if predictions is not None and len({len(getattr(predictions, name)) for name in PER_EXAMPLE}) > 1:
        raise ValueError("arrays of different lengths")
    return Record(key=key, fit=fit, seconds=seconds, predictions=predictions, **values)


def _float_or_nan(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def get_profile(store: sqlite3.Connection, key: str) -> Profile | None:
    """Return the stored profile of a key; None if there is none, or a damaged one, which is deleted."""
    row = store.execute("select about from facts where key = ?", (key,)).fetchone()
    if row is None:
        return None
    profile = _read_profile(key, row[0])
    if profile is None:
        _write(store, "delete from facts where key = ?", (key,))
    return profile


def _read_profile(key: str, text: str) -> Profile | None:
    """Return the profile of a row, or None if the row is damaged, which may raise any exception."""
    try:
        return _profile_from_row(key, text)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - see above
        return None


def _profile_from_row(key: str, text: str) -> Profile:
    values: dict[str, Any] = _tuples(_verify(json.loads(text), key))
    preprocessing = _preprocessing_from(_tuples(values["preprocessing"]))
    finished_head = _finished_head_from(values.get("finished_head"))
    return from_flat(Profile, values | {"preprocessing": preprocessing, "finished_head": finished_head})


def _preprocessing_from(values: dict[str, Any]) -> InputTransform:
    """Return the preprocessing of the kind that has these fields."""
    return transform_class(values)(**values)


def _finished_head_from(values: dict[str, Any] | None) -> FinishedHead | None:
    if values is None:
        return None
    return FinishedHead(**values | {"layers": tuple(HeadLayer(**_tuples(layer)) for layer in values["layers"])})


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def put_profile(store: sqlite3.Connection, key: str, profile: Profile) -> None:
    """Store a profile under a key."""
    text = json.dumps(as_dict(profile))
    values = json.loads(text) | {CHECKSUM: _checksum(key, text, b"")}
    _write(store, "insert or replace into facts values (?, ?)", (key, json.dumps(values)))


def cached_digester(store: sqlite3.Connection, compute: Callable[[Path], str]) -> Callable[[Path], str]:
    """Return a function that digests a file, and recomputes the digest only if path, size or modification time differ."""

    def digest(path: Path) -> str:
        status = path.stat()
        # A file name may be invalid UTF-8, but SQLite needs text.
        name = str(path.resolve()).encode("utf-8", "backslashreplace").decode()
        row = store.execute("select size, time, digest from digests where path = ?", (name,)).fetchone()
        if row is not None and row[:2] == (status.st_size, status.st_mtime_ns) and isinstance(row[2], str):
            return row[2]
        computed = compute(path)
        values = (name, status.st_size, status.st_mtime_ns, computed)
        _write(store, "insert or replace into digests values (?, ?, ?, ?)", values)
        return computed

    return digest


def trim_cache(folder: Path, limit: int = MAX_CACHE_BYTES) -> None:
    """Delete the least recently used weights and activations until the cache is within its limit, in bytes.

    What killed runs left in the cache is deleted too.
    """
    sweep_leftovers(folder)
    files = []
    for file in (*(folder / "weights").glob("*"), *(folder / "features").glob("*")):
        with suppress(FileNotFoundError):  # another run may be trimming too
            files.append((file.stat().st_mtime, file.stat().st_size, file))
    total = 0
    for _, size, file in sorted(files, reverse=True):
        total += size
        if total > limit:
            with suppress(OSError):  # a store may lie on a read-only disk
                file.unlink(missing_ok=True)


SELECT_RECORDS = "select key, fit, seconds, about, arrays from records where key > ? order by key limit ?"
SELECT_RECORD = "select key, fit, seconds, about, arrays from records where key = ?"
SELECT_PROFILES = "select key, about from facts where key > ? order by key limit ?"


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeCount:
    """The numbers of records that a merge added and that existed already.

    ``differing`` ones existed with different results. ``damaged`` ones could not be read in the source and were left out.
    """

    added: int
    existing: int
    differing: int
    damaged: int = 0


def merge_stores(output: Path, sources: Sequence[Path]) -> Iterator[tuple[Path, MergeCount]]:
    """Merge stores into one, which is created if it does not exist; yield each source after it is merged.

    All sources are checked before the first one is merged.

    Raises:
        UserError: if the output is one of the sources, and as for :func:`open_store` and :func:`merge_store`.
    """
    for path in sources:
        with _open_read_only(path):
            if output.exists() and output.samefile(path):
                expected = "another file, because the sources are only read"
                raise UserError(f"{output}: the output is one of the stores to merge", expected=expected, do="leave it out")
    with open_store(output, "name another file with -o") as target:
        for path in sources:
            yield path, merge_store(target, path)


def merge_store(target: sqlite3.Connection, path: Path) -> MergeCount:
    """Add the missing records and profiles of the store at ``path`` in one transaction; existing ones are kept.

    A damaged record is neither added nor kept where the other store has a sound one.

    File digests are not merged, because they are valid on one machine only.

    Raises:
        UserError: if there is no file, if it is not a store, or if it is of a newer version.
    """
    added = existing = differing = damaged = 0
    target.execute("begin immediate")
    try:
        with _open_read_only(path) as source:
            for row in _read_rows(source, path, SELECT_RECORDS):
                if _read_record(*row) is None:
                    damaged += 1
                    continue
                stored = target.execute(
                    "select key, fit, seconds, about, arrays from records where key = ?", row[:1]
                ).fetchone()
                if stored is None or _read_record(*stored) is None:
                    target.execute("insert or replace into records values (?, ?, ?, ?, ?)", row)
                    added += 1
                else:
                    existing += 1
                    differing += stored[3:] != row[3:] and not _same_results(stored[3:], row[3:])
            for row in _read_rows(source, path, SELECT_PROFILES):
                if _read_profile(*row) is not None and get_profile(target, row[0]) is None:
                    target.execute("insert or replace into facts values (?, ?)", row)
        target.execute("commit")
    finally:
        if target.in_transaction:
            target.execute("rollback")
    return MergeCount(added=added, existing=existing, differing=differing, damaged=damaged)


def _same_results(first: tuple[str, bytes], second: tuple[str, bytes]) -> bool:
    """Return whether two records have bit-identical predictions and scalars; times and machines may differ."""
    scalars, other_scalars = (json.loads(fields_json)["scalars"] for fields_json, _ in (first, second))
    arrays, other_arrays = (dict(np.load(io.BytesIO(array_bytes))) if array_bytes else {} for _, array_bytes in (first, second))
    same_arrays = arrays.keys() == other_arrays.keys() and all(
        array.dtype == other_arrays[name].dtype and array.tobytes() == other_arrays[name].tobytes()
        for name, array in arrays.items()
    )
    return same_arrays and bool(scalars == other_scalars)


def _read_rows(source: sqlite3.Connection, path: Path, query: str) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of a table by key, one page at a time, so that a concurrent writer does not wait long."""
    last = ""
    try:
        while page := source.execute(query, (last, PAGE_RECORDS)).fetchall():
            yield from page
            last = page[-1][0]
    except sqlite3.DatabaseError as error:
        raise _unreadable_error(path, error) from error


@contextmanager
def _open_read_only(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a store for reading only; it is neither created, changed nor repaired."""
    expected, do = "a store written by `xferbench run SUITE --shard I/N --store FILE`", "check the path"
    if not path.is_file():
        raise UserError(f"{path}: no such store", expected=expected, do=do)
    with path.open("rb") as file:
        logged = file.read(19)[18:] == b"\2"  # SQLite would create files next to a store with a write-ahead log
    mode = "mode=ro&immutable=1" if logged and not path.with_name(path.name + "-wal").exists() else "mode=ro"
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", uri=True, timeout=60, isolation_level=None)
    try:
        try:
            if not _check_schema(connection, path, "leave it out"):
                raise UserError(f"{path}: an empty file", expected=expected, do=do)
            for query in (SELECT_RECORDS, SELECT_PROFILES):
                connection.execute(query, ("", 0))
        except sqlite3.DatabaseError as error:
            raise _unreadable_error(path, error) from error
        yield connection
    finally:
        connection.close()


def _unreadable_error(path: Path, error: sqlite3.DatabaseError) -> UserError:
    do = "leave it out; if its run was interrupted, run it again, which repairs the store"
    return UserError(f"{path}: the store cannot be read", found=str(error), expected="a store written by xferbench", do=do)
