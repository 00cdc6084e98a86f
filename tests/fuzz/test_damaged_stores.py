"""Damaged stores and caches: a run on each ends with the same findings, or with an error that says what to do."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
from contextlib import closing

import pytest

torch = pytest.importorskip("torch")

from test_resume import findings_json, in_this_process, one_thread, run, suite

from xferbench.core.errors import UserError
from xferbench.runner import store

__all__ = ["in_this_process", "one_thread", "suite"]  # fixtures
CASES = 2  # of each kind at least


@pytest.fixture(scope="module")
def sound(suite, tmp_path_factory):
    """Return the folder of a complete store, which a run in this process has filled."""
    return tmp_path_factory.mktemp("sound")


@pytest.fixture
def expected(sound, suite, in_this_process):
    return findings_json(run(suite, sound / "store.sqlite"))


def flip_bits(folder, rng):
    path = folder / "store.sqlite"
    content = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 1, 1, 8])):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def overwrite_page(folder, rng):
    path = folder / "store.sqlite"
    content = bytearray(path.read_bytes())
    start = rng.randrange(0, len(content), 4096)
    content[start : start + 4096] = rng.choice([bytes(4096), rng.randbytes(4096)])
    path.write_bytes(content)


def cut_store(folder, rng):
    path = folder / "store.sqlite"
    os.truncate(path, rng.choice([0, 50, rng.randrange(path.stat().st_size)]))


def change_digit(folder, rng):
    """Change one digit inside a record, which SQLite cannot notice."""
    with closing(sqlite3.connect(folder / "store.sqlite")) as db, db:
        key, text = rng.choice(db.execute("select key, about from records order by key").fetchall())
        place = rng.choice([match.start() for match in re.finditer(r"\d", text)])
        digit = str((int(text[place]) + rng.randrange(1, 10)) % 10)
        db.execute("update records set about = ? where key = ?", (text[:place] + digit + text[place + 1 :], key))


STATEMENTS = (
    "update records set about = null where rowid_",
    "update records set about = '{}' where rowid_",
    "update records set arrays = substr(arrays, 1, abs(random()) % 200) where rowid_",
    "update records set arrays = x'00' where rowid_",
    "update records set seconds = 'long' where rowid_",
    "update records set fit = null where rowid_",
    "delete from records where rowid_",
    "update facts set about = '{}'",
    "update facts set about = null",
    "delete from facts",
    "update digests set digest = null",
    "drop table records",
    "drop table facts",
    "alter table records drop column seconds",
    "pragma user_version = 99",
    "pragma user_version = -5",
    "create trigger gone after insert on records begin delete from records; end",
)


def change_by_sql(folder, rng):
    with closing(sqlite3.connect(folder / "store.sqlite")) as db, db:
        keys = [key for (key,) in db.execute("select key from records order by key")]
        chosen = ", ".join(f"'{key}'" for key in rng.sample(keys, rng.choice([1, 3, len(keys)])))
        db.execute(rng.choice(STATEMENTS).replace("rowid_", f"key in ({chosen})"))


def cut_cache(folder, rng):
    """Cut files of the cache; the store knows fewer records, so that they are read."""
    files = sorted(path for path in store.cache_folder(folder / "store.sqlite").rglob("*") if path.is_file())
    for path in rng.sample(files, rng.choice([1, len(files) // 2, len(files)])):
        os.truncate(path, rng.randrange(path.stat().st_size))
    with closing(sqlite3.connect(folder / "store.sqlite")) as db, db:
        db.execute("delete from records where abs(random()) % 4 = 0")


DAMAGES_OF_THE_FILE = {flip_bits, overwrite_page, cut_store, change_by_sql}  # SQLite may refuse the whole file


def findings_or_error(suite, folder):
    try:
        return findings_json(run(suite, folder / "store.sqlite")), None
    except UserError as error:
        return None, error


@pytest.mark.parametrize("damage", [flip_bits, overwrite_page, cut_store, change_digit, change_by_sql, cut_cache])
def test_a_damaged_store_changes_no_finding(expected, sound, suite, tmp_path, fuzz_factor, fuzz_rng, damage, record_property):
    if fuzz_factor == 1 and damage is not change_digit:
        pytest.skip("a run on each damaged store takes seconds: run with --fuzz 100; tests/runner/test_store.py has the kinds")
    count, refused = max(CASES, 35 * fuzz_factor // 100), 0
    for number in range(count):
        folder = tmp_path / str(number)
        shutil.copytree(sound, folder)
        damage(folder, fuzz_rng)
        findings, error = findings_or_error(suite, folder)
        assert error is None or (damage in DAMAGES_OF_THE_FILE and error.what and error.found and error.do), (
            f"{number}: {error}"
        )
        assert error is not None or findings == expected, number
        refused += error is not None
        shutil.rmtree(folder)
    record_property("inputs", count)
    record_property("refused", refused)
