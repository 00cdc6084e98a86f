from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from factory import make_record

from xferbench.core.errors import UserError
from xferbench.core.plugin import DataProfile, ModelProfile, Profile, Timing
from xferbench.core.record import Predictions, Record
from xferbench.core.transforms import Preprocessing, Spectrogram
from xferbench.runner import store

PROFILE = Profile(
    model=ModelProfile(
        parameters=11_000_000, groups=("conv1", "layer1", "layer2"), head="fc", batchnorm=("bn1", "layer1.0.bn1")
    ),
    data=DataProfile(
        classes=("ants", "bees"),
        train=200,
        validation=44,
        test=153,
        test_groups=None,
        dropped_examples=("train/ants/imgs.txt: not an image file", "train/ants/\udcff.png: truncated"),
    ),
    timing=Timing(seconds_forward=0.02, seconds_step=0.07),
    preprocessing=Preprocessing(resize=256, crop=224, mean=(0.485, 0.456, 0.406)),
    trust=("preprocessing: recorded nowhere",),
)


@pytest.fixture
def db(tmp_path):
    with store.open_store(tmp_path / "store.sqlite") as connection:
        yield connection


def assert_equal_records(left, right):
    """Assert that two records are equal; NaN equals NaN, and arrays have equal values and types."""
    for field in fields(left):
        left_value, right_value = getattr(left, field.name), getattr(right, field.name)
        if isinstance(left_value, Predictions):
            assert_equal_records(left_value, right_value)
        elif isinstance(left_value, np.ndarray):
            assert left_value.dtype == right_value.dtype, field.name
            np.testing.assert_array_equal(left_value, right_value)
        else:
            np.testing.assert_equal(left_value, right_value, err_msg=field.name)


def test_a_record_is_read_back(db):
    record = make_record("a" * 64, 0.8, scalars={"diverged": 1.0, "drift/bn1": 0.123456789})
    store.put_record(db, record)
    assert_equal_records(store.get_records(db, [record.key])[record.key], record)


def test_a_diverged_curve_is_read_back_with_its_nan(db):
    nan, inf = float("nan"), float("inf")
    record = Record(key="k", fit="f", scalars={"loss": nan, "drift": 0.0}, curve=((0, 2.3, 0.1), (10, nan, nan)), place="host")
    store.put_record(db, record)
    assert_equal_records(store.get_records(db, ["k"])["k"], record)
    store.put_record(db, replace(record, key="infinite", scalars={"loss": inf}))
    assert np.isnan(store.get_records(db, ["infinite"])["infinite"].scalars["loss"]), "JSON has no infinity, so it becomes NaN"


def test_a_record_without_predictions_is_read_back(db):
    store.put_record(db, Record(key="k", scalars={"drift": 0.5}, seconds=1.5, fit_seconds=4.0))
    record = store.get_records(db, ["k"])["k"]
    assert record.predictions is None
    assert (record.seconds, record.fit_seconds) == (1.5, 4.0)


def test_many_classes_and_groups_are_read_back(db):
    record = make_record("k", 0.5, classes=100)
    record = replace(record, predictions=replace(record.predictions, group=np.arange(200)))
    store.put_record(db, record)
    assert_equal_records(store.get_records(db, ["k"])["k"], record)


def test_the_first_record_of_a_key_stays(db):
    store.put_record(db, make_record("k", 0.8))
    store.put_record(db, make_record("k", 0.2))
    assert_equal_records(store.get_records(db, ["k"])["k"], make_record("k", 0.8))


def test_a_crash_is_not_stored(db):
    with pytest.raises(ValueError, match="crash"):
        store.put_record(db, Record(key="k", error="RuntimeError: out of memory"))
    assert store.get_records(db, ["k"]) == {}


def test_unknown_keys_have_no_record(db):
    store.put_record(db, make_record("k", 0.8))
    assert set(store.get_records(db, ["k", "another"])) == {"k"}


def test_a_profile_is_read_back(db):
    store.put_profile(db, "key", PROFILE)
    assert store.get_profile(db, "key") == PROFILE
    assert store.get_profile(db, "another") is None
    store.put_profile(db, "key", replace(PROFILE, data=replace(PROFILE.data, test=10)))
    assert store.get_profile(db, "key").data.test == 10
    spectrogram_profile = replace(PROFILE, preprocessing=Spectrogram(mean=-30.0, std=12.5))
    store.put_profile(db, "heard", spectrogram_profile)
    assert store.get_profile(db, "heard") == spectrogram_profile


def test_a_new_store_creates_its_folders_and_opens_again(tmp_path):
    path = tmp_path / "deep" / "down" / "store.sqlite"
    with store.open_store(path) as db:
        store.put_record(db, make_record("k", 0.8))
    with store.open_store(path) as db:
        assert set(store.get_records(db, ["k"])) == {"k"}


def run_process(code, *arguments, **options):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True, **options)


KILLED_WRITER = """
import sys, time
from pathlib import Path
from factory import make_record
from xferbench.runner import store
with store.open_store(Path(sys.argv[1])) as db:
    for number in range(20):
        store.put_record(db, make_record(f"k{number}", 0.8))
    db.execute("begin immediate")
    store.put_record(db, make_record("half done", 0.8))
    print("ready", flush=True)
    time.sleep(60)
"""


def test_a_process_killed_while_writing_loses_only_its_last_record(tmp_path):
    path = tmp_path / "store.sqlite"
    process = run_process(KILLED_WRITER, path)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with store.open_store(path) as db:
        keys = [f"k{number}" for number in range(20)]
        assert set(store.get_records(db, [*keys, "half done"])) == set(keys)
        store.put_record(db, make_record("half done", 0.8))
        assert db.execute("pragma integrity_check").fetchone() == ("ok",)


WRITER = """
import sys
from pathlib import Path
from factory import make_record
from xferbench.runner import store
path, name = Path(sys.argv[1]), sys.argv[2]
for number in range(15):
    with store.open_store(path) as db:
        store.put_record(db, make_record(f"{name} {number}", 0.8))
        store.put_record(db, make_record(f"both {number}", 0.8))
"""


def test_two_processes_write_at_the_same_time(tmp_path):
    path = tmp_path / "store.sqlite"
    processes = [run_process(WRITER, path, name) for name in ("one", "other")]
    assert [process.wait(60) for process in processes] == [0, 0]
    for process in processes:
        process.stdout.close()
    with store.open_store(path) as db:
        assert db.execute("select count(*) from records").fetchone() == (45,)


@pytest.mark.parametrize(
    ("make", "fragment"),
    [
        (lambda path: path.mkdir(), "the store cannot be opened"),
        (lambda path: path.write_text("results"), "the store cannot be used"),
        (lambda path: path.write_bytes(b"SQLite format 3\0" + bytes(100)), "the store cannot be used"),
        pytest.param(
            lambda path: path.symlink_to("/dev/full"),
            "the store cannot be used",
            marks=pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full"),
        ),
    ],
)
def test_a_file_that_is_not_a_store_is_an_error(tmp_path, make, fragment):
    path = tmp_path / "store.sqlite"
    make(path)
    with pytest.raises(UserError, match=fragment) as error, store.open_store(path):
        pass
    assert str(path) in error.value.what
    assert error.value.found
    assert error.value.expected
    assert "--store" in error.value.do


def test_a_store_below_a_file_cannot_be_opened(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="the store cannot be opened"), store.open_store(tmp_path / "file" / "store.sqlite"):
        pass


def test_a_store_of_a_newer_version_is_unchanged(tmp_path):
    path = tmp_path / "store.sqlite"
    with store.open_store(path) as db:
        db.execute(f"pragma user_version = {store.STORE_VERSION + 1}")
    before = path.read_bytes()
    with pytest.raises(UserError, match="newer xferbench") as error, store.open_store(path):
        pass
    assert error.value.found == f"version {store.STORE_VERSION + 1}"
    assert path.read_bytes() == before


def test_the_database_of_another_program_is_unchanged(tmp_path):
    path = tmp_path / "cookies.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("create table cookies (name text)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(UserError, match="a database of another program") as error, store.open_store(path):
        pass
    assert error.value.found == "cookies"
    assert path.read_bytes() == before


def test_a_full_disk_is_an_error_and_loses_no_record(tmp_path):
    path = tmp_path / "store.sqlite"
    with store.open_store(path) as db:
        store.put_record(db, make_record("before", 0.8))
        pages = db.execute("pragma page_count").fetchone()[0]

    def fill():
        with store.open_store(path) as db:
            db.execute(f"pragma max_page_count = {pages + 1}")  # as on a full disk
            for number in range(100):
                store.put_record(db, make_record(f"k{number}", 0.8))

    with pytest.raises(UserError, match="the store cannot be used") as error:
        fill()
    assert "full" in error.value.found
    assert "free some space" in error.value.do
    with store.open_store(path) as db:
        assert_equal_records(store.get_records(db, ["before"])["before"], make_record("before", 0.8))


def test_the_error_of_a_locked_store_names_another_run(tmp_path, monkeypatch):
    path = tmp_path / "store.sqlite"
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda path, **options: connect(path, **options | {"timeout": 0.1}))
    with store.open_store(path) as db:
        db.execute("begin immediate")
        with pytest.raises(UserError, match="the store cannot be used") as error, store.open_store(path):
            pass
    assert "locked" in error.value.found
    assert "let another run end" in error.value.do


class Digester:
    """Return the content of a file as its digest, and count the calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, path):
        self.calls += 1
        return path.read_text()


def test_a_file_is_digested_again_only_after_a_change(db, tmp_path):
    file, compute = tmp_path / "weights.pth", Digester()
    digest = store.cached_digester(db, compute)
    file.write_text("one")
    assert [digest(file), digest(file), compute.calls] == ["one", "one", 1]
    file.write_text("three")
    assert [digest(file), digest(file), compute.calls] == ["three", "three", 2]
    os.utime(file, ns=(time.time_ns(), time.time_ns() + 1))
    assert [digest(file), digest(file), compute.calls] == ["three", "three", 3]


def test_the_digest_of_a_file_is_cached_by_its_resolved_path(db, tmp_path, monkeypatch):
    file, compute = tmp_path / "weights.pth", Digester()
    file.write_text("one")
    digest = store.cached_digester(db, compute)
    digest(file)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link.pth").symlink_to(file)
    assert [digest(Path("weights.pth")), digest(Path("link.pth")), compute.calls] == ["one", "one", 1]
    (tmp_path / "other.pth").write_text("other")
    assert digest(Path("other.pth")) == "other"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every file's name is text")
def test_a_file_name_that_is_not_text_has_a_cached_digest(db, tmp_path):
    file, compute = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")), Digester()
    file.write_text("one")
    digest = store.cached_digester(db, compute)
    assert [digest(file), digest(file), compute.calls] == ["one", "one", 1]


@pytest.fixture
def folder(tmp_path):
    """Return a cache of ten files of 100 bytes; the first is the oldest."""
    for number in range(10):
        file = tmp_path / ("weights" if number % 2 else "features") / f"{number}"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(bytes(100))
        os.utime(file, (1e9 + number, 1e9 + number))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "images.npy").write_bytes(bytes(10_000))
    return tmp_path


def remaining_files(folder):
    return sorted(int(file.name) for kind in ("weights", "features") for file in (folder / kind).iterdir())


@pytest.mark.parametrize(("limit", "remaining"), [(1000, range(10)), (999, range(1, 10)), (350, range(7, 10)), (99, ())])
def test_the_newest_files_of_the_cache_stay_within_the_limit(folder, limit, remaining):
    store.trim_cache(folder, limit)
    assert remaining_files(folder) == list(remaining)
    assert (folder / "data" / "images.npy").is_file(), "decoded images are not trimmed"


def test_a_file_used_again_stays_in_the_cache(folder):
    os.utime(folder / "features" / "0")
    store.trim_cache(folder, 200)
    assert remaining_files(folder) == [0, 9]


def test_a_missing_cache_needs_no_trimming(tmp_path):
    store.trim_cache(tmp_path / "nowhere", 0)
    assert list(tmp_path.iterdir()) == []


def test_two_runs_trim_the_cache_at_the_same_time(folder, monkeypatch):
    stat = Path.stat

    def stat_without_file_3(path, **options):
        if path.name == "3":
            raise FileNotFoundError(path)
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", stat_without_file_3)
    store.trim_cache(folder, 200)
    monkeypatch.undo()
    assert remaining_files(folder) == [3, 8, 9]


def test_the_cache_is_next_to_its_store(tmp_path):
    assert store.cache_folder(tmp_path / "store.sqlite") == tmp_path / "store.sqlite.cache"


DAMAGES = [
    "update records set about = null",
    "update records set about = 'x'",
    "update records set about = '[]'",
    "update records set about = replace(about, '0.8', '0.9')",
    "update records set about = json_set(about, '$.more', 1)",
    "update records set arrays = substr(arrays, 1, 100)",
    "update records set arrays = x''",
    "update records set seconds = 'a'",
    "update records set seconds = seconds + 1",
    "update records set fit = 'another'",
    "update records set key = 'k', arrays = (select arrays from records where key = 'other') where key = 'k'",
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_record_is_reported_and_deleted(db, damage):
    store.put_record(db, make_record("k", 0.8, scalars={"score": 0.8}))
    store.put_record(db, make_record("other", 0.3))
    db.execute(damage if "where" in damage else f"{damage} where key = 'k'")
    damaged = []
    assert set(store.get_records(db, ["k", "other", "none"], damaged.append)) == {"other"}
    assert damaged == ["k"]
    store.put_record(db, make_record("k", 0.8))
    assert_equal_records(store.get_records(db, ["k"])["k"], make_record("k", 0.8))


def test_a_record_of_an_earlier_version_has_no_checksum_and_is_read(db):
    store.put_record(db, make_record("k", 0.8))
    db.execute("update records set about = json_remove(about, '$.checksum')")
    assert_equal_records(store.get_records(db, ["k"])["k"], make_record("k", 0.8))


@pytest.mark.parametrize("change", ["'{}'", "'x'", "null", "replace(about, '153', '154')", "json_remove(about, '$.groups')"])
def test_a_damaged_profile_is_computed_again(db, change):
    store.put_profile(db, "key", PROFILE)
    db.execute(f"update facts set about = {change}")
    assert store.get_profile(db, "key") is None
    store.put_profile(db, "key", PROFILE)
    assert store.get_profile(db, "key") == PROFILE


def test_a_digest_that_is_no_text_is_computed_again(db, tmp_path):
    file, compute = tmp_path / "weights.pth", Digester()
    file.write_text("one")
    digest = store.cached_digester(db, compute)
    digest(file)
    db.execute("update digests set digest = null")
    assert (digest(file), compute.calls) == ("one", 2)


def test_a_complete_store_on_a_read_only_disk_is_read(tmp_path, monkeypatch):
    path = tmp_path / "store.sqlite"
    with store.open_store(path) as db:
        store.put_record(db, make_record("k", 0.8))
        store.put_record(db, make_record("damaged", 0.8))
        db.execute("update records set seconds = 7 where key = 'damaged'")
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda path, **options: connect(f"file:{path}?mode=ro", uri=True, **options))
    with store.open_store(path) as db:
        assert set(store.get_records(db, ["k", "damaged"])) == {"k"}
        store.put_profile(db, "key", PROFILE)
        file = tmp_path / "weights.pth"
        file.write_text("one")
        assert store.cached_digester(db, Digester())(file) == "one"
    with pytest.raises(UserError, match="cannot be used") as error, store.open_store(path) as db:
        store.put_record(db, make_record("new", 0.8))
    assert "readonly" in error.value.found and str(path) in error.value.what
    empty = tmp_path / "empty.sqlite"
    empty.write_bytes(b"")
    with pytest.raises(UserError, match="cannot be used"), store.open_store(empty):
        pass
