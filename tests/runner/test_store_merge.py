"""Merging stores."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from factory import make_record
from test_store import PROFILE, assert_equal_records

from xferbench.core.errors import UserError
from xferbench.core.record import Record
from xferbench.runner import store


def make_store(path, **accuracies):
    """Write a store with a record of the accuracy for each key, and the profile under the name of the file."""
    with store.open_store(path) as db:
        for key, accuracy in accuracies.items():
            store.put_record(db, make_record(key, accuracy))
        store.put_profile(db, path.stem, PROFILE)
    return path


def merge_stores(output, *sources):
    return [count for _, count in store.merge_stores(output, sources)]


def test_merging_adds_new_records_and_keeps_existing_ones(tmp_path):
    first, second = make_store(tmp_path / "one.sqlite", a=0.8, b=0.8), make_store(tmp_path / "two.sqlite", b=0.8, c=0.2)
    output = make_store(tmp_path / "all.sqlite", own=0.5)
    assert merge_stores(output, first, second) == [
        store.MergeCount(added=2, existing=0, differing=0),
        store.MergeCount(added=1, existing=1, differing=0),
    ]
    with store.open_store(output) as db:
        records = store.get_records(db, ["a", "b", "c", "own"])
        for key, accuracy in {"a": 0.8, "b": 0.8, "c": 0.2, "own": 0.5}.items():
            assert_equal_records(records[key], make_record(key, accuracy))
        assert [store.get_profile(db, name) for name in ("one", "two", "all")] == [PROFILE] * 3
    assert merge_stores(output, first, second) == [store.MergeCount(added=0, existing=2, differing=0)] * 2


def test_merging_keeps_the_first_of_two_records_and_counts_the_difference(tmp_path):
    record = make_record("k", 0.8, scalars={"drift": 0.5})
    variants = {
        "later": replace(record, seconds=99.0, place="another machine"),
        "scalar": replace(record, scalars={"drift": 0.5000001}),
        "bit": replace(record, predictions=replace(record.predictions, p_max=record.predictions.p_max * np.float32(1.0000001))),
        "none": replace(record, predictions=None),
    }
    for name, record_of_store in {"first": record, **variants}.items():
        with store.open_store(tmp_path / name) as db:
            store.put_record(db, record_of_store)
    counts = merge_stores(tmp_path / "all", tmp_path / "first", *(tmp_path / name for name in variants))
    assert [count.differing for count in counts] == [0, 0, 1, 1, 1]
    with store.open_store(tmp_path / "all") as db:
        assert_equal_records(store.get_records(db, ["k"])["k"], record)


def test_nan_equals_nan_in_a_merge(tmp_path):
    for name in ("one", "two"):
        with store.open_store(tmp_path / name) as db:
            store.put_record(db, Record(key="k", scalars={"loss": float("nan")}, place=name))
    assert [count.differing for count in merge_stores(tmp_path / "all", tmp_path / "one", tmp_path / "two")] == [0, 0]


def test_merging_does_not_copy_the_digests_of_files(tmp_path):
    source = make_store(tmp_path / "one.sqlite", a=0.8)
    with store.open_store(source) as db:
        store.cached_digester(db, lambda _: "digest")(source)
    merge_stores(tmp_path / "all.sqlite", source)
    with store.open_store(tmp_path / "all.sqlite") as db:
        assert db.execute("select count(*) from digests").fetchone() == (0,)


def test_merging_copies_several_pages_of_records(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "PAGE_RECORDS", 3)
    source = make_store(tmp_path / "one.sqlite", **{f"k{number:02}": 0.8 for number in range(10)})
    assert merge_stores(tmp_path / "all.sqlite", source) == [store.MergeCount(added=10, existing=0, differing=0)]


@pytest.mark.parametrize("name", ["a b?mode=rwc#%41;'\".sqlite", "-o", "ünï.sqlite", "file:x"])
def test_a_store_may_have_any_name(tmp_path, name):
    assert merge_stores(tmp_path / "all.sqlite", make_store(tmp_path / name, a=0.8))[0].added == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["all.sqlite", name])


def test_merging_leaves_the_sources_unchanged(tmp_path):
    sources = [make_store(tmp_path / f"{name}.sqlite", a=0.8) for name in ("one", "two")]
    with sqlite3.connect(sources[1]) as connection:
        connection.execute("pragma journal_mode = wal")
    connection.close()
    before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in sources]
    merge_stores(tmp_path / "all.sqlite", *sources)
    assert [(path.read_bytes(), path.stat().st_mtime_ns) for path in sources] == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.sqlite", "one.sqlite", "two.sqlite"]


def test_a_locked_store_can_be_merged(tmp_path):
    source = make_store(tmp_path / "one.sqlite", a=0.8)
    with store.open_store(source) as db:
        db.execute("begin immediate")
        assert merge_stores(tmp_path / "all.sqlite", source)[0].added == 1


def make_newer_store(path):
    with store.open_store(path) as db:
        db.execute(f"pragma user_version = {store.STORE_VERSION + 1}")


def make_foreign_database(path):
    with sqlite3.connect(path) as db:
        db.execute("create table cookies (name text)")
    db.close()


def make_similar_database(path):
    with sqlite3.connect(path) as db:
        db.execute("create table records (name text)")
    db.close()


def make_interrupted_store(path):
    """Write a store whose writer was killed within a transaction."""
    make_store(path, a=0.8)
    code = (
        "import os, sqlite3, sys; db = sqlite3.connect(sys.argv[1]); db.execute('pragma cache_size = 1')\n"
        "for n in range(500): db.execute('insert into facts values (?, ?)', (str(n), 'x' * 500))\n"
        "os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code, path], check=True)
    assert path.with_name(path.name + "-journal").exists()


@pytest.mark.parametrize(
    ("make", "fragment"),
    [
        (lambda _: None, "no such store"),
        (Path.mkdir, "no such store"),
        (Path.touch, "an empty file"),
        (lambda path: path.write_text("results" * 999), "the store cannot be read"),
        (lambda path: path.write_bytes(b"SQLite format 3\0" + bytes(100)), "the store cannot be read"),
        (make_foreign_database, "a database of another program"),
        (make_similar_database, "the store cannot be read"),
        (make_newer_store, "a store of a newer xferbench"),
        (make_interrupted_store, "the store cannot be read"),
    ],
)
def test_an_unusable_source_is_an_error_before_the_merge(tmp_path, make, fragment):
    good, bad, output = make_store(tmp_path / "good.sqlite", a=0.8), tmp_path / "bad.sqlite", tmp_path / "all.sqlite"
    make(bad)
    before = bad.read_bytes() if bad.is_file() else None
    with pytest.raises(UserError, match=fragment) as error:
        merge_stores(output, good, bad)
    assert str(bad) in error.value.what
    assert error.value.do
    assert not output.exists()
    assert (bad.read_bytes() if bad.is_file() else None) == before


def test_a_source_with_a_broken_page_adds_nothing(tmp_path):
    bad = make_store(tmp_path / "bad.sqlite", **{f"k{number}": 0.8 for number in range(40)})
    pages = bytearray(bad.read_bytes())
    pages[len(pages) // 2 :] = b"\xff" * (len(pages) - len(pages) // 2)
    bad.write_bytes(pages)
    output = make_store(tmp_path / "all.sqlite", own=0.5)
    with pytest.raises(UserError, match=r"bad\.sqlite: the store cannot be read"):
        merge_stores(output, bad)
    with store.open_store(output) as db:
        assert db.execute("select key from records").fetchall() == [("own",)]


def test_the_output_must_not_be_a_source(tmp_path):
    source = make_store(tmp_path / "one.sqlite", a=0.8)
    (tmp_path / "link.sqlite").symlink_to(source)
    (tmp_path / "hard.sqlite").hardlink_to(source)
    for output in (source, tmp_path / "link.sqlite", tmp_path / "hard.sqlite", tmp_path / "." / "one.sqlite"):
        with pytest.raises(UserError, match="the output is one of the stores to merge"):
            merge_stores(output, source)


@pytest.mark.parametrize(
    ("make", "fragment"),
    [
        (Path.mkdir, "the store cannot be opened"),
        (lambda path: path.write_text("results" * 999), "the store cannot be used"),
        (make_foreign_database, "a database of another program"),
        (make_newer_store, "a store of a newer xferbench"),
    ],
)
def test_an_output_that_is_not_a_store_is_unchanged(tmp_path, make, fragment):
    source, output = make_store(tmp_path / "one.sqlite", a=0.8), tmp_path / "all.sqlite"
    make(output)
    before = output.read_bytes() if output.is_file() else None
    with pytest.raises(UserError, match=fragment) as error:
        merge_stores(output, source)
    assert "-o" in error.value.do
    assert (output.read_bytes() if output.is_file() else None) == before


def test_an_unwritable_output_is_an_error(tmp_path, monkeypatch):
    source, output = make_store(tmp_path / "one.sqlite", a=0.8), make_store(tmp_path / "all.sqlite", own=0.5)
    connect, before = sqlite3.connect, output.read_bytes()

    def connect_read_only(path, **options):  # as without write permission, which root always has
        return connect(f"{path.as_uri()}?mode=ro", uri=True, **options) if path == output else connect(path, **options)

    monkeypatch.setattr(sqlite3, "connect", connect_read_only)
    with pytest.raises(UserError, match=r"all\.sqlite: the store cannot be used") as error:
        merge_stores(output, source)
    assert "readonly" in error.value.found
    assert output.read_bytes() == before


def test_a_merge_prefers_sound_records(tmp_path):
    sound, damaged, output = (tmp_path / f"{name}.sqlite" for name in ("sound", "damaged", "all"))
    for path in (sound, damaged):
        with store.open_store(path) as db:
            for key in ("k", "other"):
                store.put_record(db, make_record(key, 0.8))
            if path == damaged:
                db.execute("update records set seconds = seconds + 1 where key = 'k'")
    for order in ((damaged, sound), (sound, damaged)):
        counts = dict(store.merge_stores(output, order))
        assert counts[damaged].damaged == 1 and counts[sound].damaged == 0
        with store.open_store(output) as db:
            assert set(store.get_records(db, ["k", "other"])) == {"k", "other"}
            db.execute("update records set fit = 'x' where key = 'k'")  # the next merge replaces it
        assert dict(store.merge_stores(output, [sound]))[sound].added == 1
        output.unlink()
