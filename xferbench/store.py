"""Records on disk: SQLite, one writer, one transaction a record; a run that is killed loses what it was computing, no more."""

from __future__ import annotations

import io
import json
import sqlite3
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from xferbench.design import Facts, Preprocessing, Ready, Spectrogram
from xferbench.problem import Problem
from xferbench.record import Predictions, Record, plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

VERSION = 1
ELSEWHERE = "name another file with --store"
PAGE = 100  # records that are read at once, so that no store need fit into memory, nor a run that writes to it wait
LIMIT = 4 * 2**30  # bytes of fitted weights and activations kept beside the store
TABLES = """
create table if not exists records (key text primary key, fit text, seconds real, about text, arrays blob) without rowid;
create table if not exists facts (key text primary key, about text) without rowid;
create table if not exists digests (path text primary key, size integer, time integer, digest text) without rowid;
"""


@contextmanager
def opened(path: Path, elsewhere: str = ELSEWHERE) -> Iterator[sqlite3.Connection]:
    """A store, made where there is none; ``elsewhere`` says how another would be named.

    Raises:
        Problem: where it cannot be written, is no store, is of a newer version, or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, timeout=60, isolation_level=None)
    except (OSError, sqlite3.OperationalError) as error:
        raise Problem(
            f"{path}: no store can be opened there", found=str(error), expected="a file, or room for one", do=elsewhere
        ) from error
    try:
        _check(connection, path, elsewhere)
        connection.executescript(f"begin immediate; {TABLES} pragma user_version = {VERSION}; commit;")
        yield connection
    except sqlite3.DatabaseError as error:
        raise Problem(
            f"{path}: the store cannot be used",
            found=str(error),
            expected="a store written by xferbench, on a disk with room that may be written",
            do=f"free some space, let another run end, or {elsewhere}; what was recorded before is still there",
        ) from error
    finally:
        connection.close()


def _check(connection: sqlite3.Connection, path: Path, elsewhere: str) -> bool:
    """Refuse what is another program's or a newer xferbench's; whether there is anything in it."""
    found = connection.execute("pragma user_version").fetchone()[0]
    tables = {row[0] for row in connection.execute("select name from sqlite_master where type = 'table'")}
    if tables and "records" not in tables:
        expected = "a store written by xferbench, or no file yet"
        raise Problem(
            f"{path}: a database of something else", found=", ".join(sorted(tables)[:6]), expected=expected, do=elsewhere
        )
    if found > VERSION:
        expected = f"at most version {VERSION}"
        do = f"upgrade xferbench, or {elsewhere}"
        raise Problem(f"{path}: a store of a newer xferbench", found=f"version {found}", expected=expected, do=do)
    return bool(tables)


def cache(path: Path) -> Path:
    """The folder beside a store for what can be computed again: decoded images, activations, fitted weights."""
    return path.with_name(path.name + ".cache")


def put(store: sqlite3.Connection, record: Record) -> None:
    """Write one record in a transaction of its own; one that is there already stays.

    Raises:
        ValueError: for a crash, which is no answer and must be asked again.
    """
    if record.error:
        raise ValueError("a crash is not kept")
    about = {f.name: getattr(record, f.name) for f in fields(Record) if f.name not in {"predictions", "key", "fit", "seconds"}}
    packed = b""
    if record.predictions is not None:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **asdict(record.predictions))
        packed = buffer.getvalue()
    row = (record.key, record.fit, record.seconds, json.dumps(plain(about)), packed)
    store.execute("insert or ignore into records values (?, ?, ?, ?, ?)", row)


def get(store: sqlite3.Connection, keys: Iterable[str]) -> dict[str, Record]:
    """The records of the keys that are there."""
    found = {}
    for key in keys:
        row = store.execute("select fit, seconds, about, arrays from records where key = ?", (key,)).fetchone()
        if row is not None:
            found[key] = _record(key, *row)
    return found


def _record(key: str, fit: str, seconds: float, about: str, packed: bytes) -> Record:
    told = json.loads(about)
    told["curve"] = tuple((int(step), _number(loss), _number(score)) for step, loss, score in told["curve"])
    told["scalars"] = {name: _number(value) for name, value in told["scalars"].items()}
    predictions = Predictions(**np.load(io.BytesIO(packed))) if packed else None
    return Record(key=key, fit=fit, seconds=seconds, predictions=predictions, **told)


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def facts(store: sqlite3.Connection, key: str) -> Facts | None:
    """What is known under a key, or None."""
    row = store.execute("select about from facts where key = ?", (key,)).fetchone()
    if row is None:
        return None
    told: dict[str, Any] = _tuples(json.loads(row[0]))
    return Facts(**told | {"preprocessing": _ready(_tuples(told["preprocessing"]))})


def _ready(told: dict[str, Any]) -> Ready:
    """A preprocessing of the kind whose fields these are."""
    spectrogram = told.keys() <= {one.name for one in fields(Spectrogram)}
    return Spectrogram(**told) if spectrogram else Preprocessing(**told)


def _tuples(told: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in told.items()}


def put_facts(store: sqlite3.Connection, key: str, found: Facts) -> None:
    """Keep facts under a key."""
    store.execute("insert or replace into facts values (?, ?)", (key, json.dumps(asdict(found))))


def remembered(store: sqlite3.Connection, compute: Callable[[Path], str]) -> Callable[[Path], str]:
    """A function that digests files, asked again only where path, size or time of change differ."""

    def digest(path: Path) -> str:
        status = path.stat()
        name = str(path.resolve()).encode("utf-8", "backslashreplace").decode()  # a file's name need not be text, SQLite's must
        row = store.execute("select size, time, digest from digests where path = ?", (name,)).fetchone()
        if row is not None and row[:2] == (status.st_size, status.st_mtime_ns):
            return str(row[2])
        found = compute(path)
        store.execute("insert or replace into digests values (?, ?, ?, ?)", (name, status.st_size, status.st_mtime_ns, found))
        return found

    return digest


def trim(folder: Path, limit: int = LIMIT) -> None:
    """Delete the least recently used weights and activations until the cache is within its limit, in bytes."""
    used = []
    for file in (*(folder / "weights").glob("*"), *(folder / "features").glob("*")):
        with suppress(FileNotFoundError):  # another run may be trimming too
            used.append((file.stat().st_mtime, file.stat().st_size, file))
    held = 0
    for _, size, file in sorted(used, reverse=True):
        held += size
        if held > limit:
            file.unlink(missing_ok=True)


RECORDS = "select key, fit, seconds, about, arrays from records where key > ? order by key limit ?"
KNOWN = "select key, about from facts where key > ? order by key limit ?"


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """Records that a store added to another and that were there already; of those, how many are ``differing`` answers."""

    added: int
    known: int
    differing: int


def joined(output: Path, sources: Sequence[Path]) -> Iterator[tuple[Path, Merged]]:
    """Merge stores into one, which is made where there is none; each is told of once it is in.

    Raises:
        Problem: for the output among the sources, and as :func:`opened` and :func:`merge`; all are looked at before any is
            merged.
    """
    for path in sources:
        with _read(path):
            if output.exists() and output.samefile(path):
                expected = "another file: the sources are only read"
                raise Problem(f"{output}: the output is one of the stores to be merged", expected=expected, do="leave it out")
    with opened(output, "name another file with -o") as into:
        for path in sources:
            yield path, merge(into, path)


def merge(into: sqlite3.Connection, path: Path) -> Merged:
    """Add the records and facts of the store at ``path`` that are not there yet, in one transaction; what is there stays.

    Digests of files are of one machine alone, and stay behind.

    Raises:
        Problem: where there is no file, it is no store, or it is one of a newer version.
    """
    added = known = differing = 0
    into.execute("begin immediate")
    try:
        with _read(path) as source:
            for row in _rows(source, path, RECORDS):
                if into.execute("insert or ignore into records values (?, ?, ?, ?, ?)", row).rowcount:
                    added += 1
                else:
                    known += 1
                    there = into.execute("select about, arrays from records where key = ?", row[:1]).fetchone()
                    differing += there != row[3:] and not _same(there, row[3:])
            for row in _rows(source, path, KNOWN):
                into.execute("insert or ignore into facts values (?, ?)", row)
        into.execute("commit")
    finally:
        if into.in_transaction:
            into.execute("rollback")
    return Merged(added=added, known=known, differing=differing)


def _same(one: tuple[str, bytes], other: tuple[str, bytes]) -> bool:
    """Whether two records say the same: predictions and scalars, to the last bit; when and where is another matter."""
    scalars, theirs = (json.loads(about)["scalars"] for about, _ in (one, other))
    arrays, others = (dict(np.load(io.BytesIO(packed))) if packed else {} for _, packed in (one, other))
    alike = arrays.keys() == others.keys() and all(
        array.dtype == others[name].dtype and array.tobytes() == others[name].tobytes() for name, array in arrays.items()
    )
    return alike and bool(scalars == theirs)


def _rows(source: sqlite3.Connection, path: Path, query: str) -> Iterator[tuple[Any, ...]]:
    """The rows of a table by key, a page at a time, so that whoever writes to it is not kept waiting."""
    last = ""
    try:
        while page := source.execute(query, (last, PAGE)).fetchall():
            yield from page
            last = page[-1][0]
    except sqlite3.DatabaseError as error:
        raise _unreadable(path, error) from error


@contextmanager
def _read(path: Path) -> Iterator[sqlite3.Connection]:
    """A store that is only read: neither made, nor changed, nor mended."""
    expected, do = "a store written by `xferbench run SUITE --shard I/N --store FILE`", "check the path"
    if not path.is_file():
        raise Problem(f"{path}: no such store", expected=expected, do=do)
    with path.open("rb") as file:
        logged = file.read(19)[18:] == b"\2"  # a write-ahead log, for which SQLite would make files beside it
    mode = "mode=ro&immutable=1" if logged and not path.with_name(path.name + "-wal").exists() else "mode=ro"
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", uri=True, timeout=60, isolation_level=None)
    try:
        try:
            if not _check(connection, path, "leave it out"):
                raise Problem(f"{path}: an empty file", expected=expected, do=do)
            for query in (RECORDS, KNOWN):
                connection.execute(query, ("", 0))
        except sqlite3.DatabaseError as error:
            raise _unreadable(path, error) from error
        yield connection
    finally:
        connection.close()


def _unreadable(path: Path, error: sqlite3.DatabaseError) -> Problem:
    do = "leave it out; where its run was broken off, start that again, which puts it in order"
    return Problem(f"{path}: the store cannot be read", found=str(error), expected="a store written by xferbench", do=do)
