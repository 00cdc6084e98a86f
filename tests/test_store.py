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

from xferbench import store
from xferbench.design import Facts, Preprocessing, Spectrogram
from xferbench.problem import Problem
from xferbench.record import Predictions, Record

FACTS = Facts(
    parameters=11_000_000,
    groups=("conv1", "layer1", "layer2"),
    head="fc",
    batchnorm=("bn1", "layer1.0.bn1"),
    classes=("ants", "bees"),
    train=200,
    validation=44,
    test=153,
    test_groups=None,
    preprocessing=Preprocessing(resize=256, crop=224, mean=(0.485, 0.456, 0.406)),
    trust=("preprocessing: recorded nowhere",),
    left_out=("train/ants/imgs.txt: not an image's ending", "train/ants/\udcff.png: truncated"),
    seconds_forward=0.02,
    seconds_step=0.07,
)


@pytest.fixture
def db(tmp_path):
    with store.opened(tmp_path / "store.sqlite") as found:
        yield found


def same(left, right):
    """Whether two records are equal, NaN to NaN, arrays by value and type."""
    for field in fields(left):
        one, other = getattr(left, field.name), getattr(right, field.name)
        if isinstance(one, Predictions):
            same(one, other)
        elif isinstance(one, np.ndarray):
            assert one.dtype == other.dtype, field.name
            np.testing.assert_array_equal(one, other)
        else:
            np.testing.assert_equal(one, other, err_msg=field.name)


def test_a_record_comes_back_as_it_went(db):
    record = make_record("a" * 64, 0.8, scalars={"diverged": 1.0, "drift/bn1": 0.123456789})
    store.put(db, record)
    same(store.get(db, [record.key])[record.key], record)


def test_a_diverged_curve_comes_back_with_its_nan(db):
    nan, inf = float("nan"), float("inf")
    record = Record(key="k", fit="f", scalars={"loss": nan, "drift": 0.0}, curve=((0, 2.3, 0.1), (10, nan, nan)), place="host")
    store.put(db, record)
    same(store.get(db, ["k"])["k"], record)
    store.put(db, replace(record, key="infinite", scalars={"loss": inf}))
    assert np.isnan(store.get(db, ["infinite"])["infinite"].scalars["loss"]), "JSON has no infinity: it is no number, like NaN"


def test_a_record_without_predictions_comes_back_without(db):
    store.put(db, Record(key="k", scalars={"drift": 0.5}, seconds=1.5, fit_seconds=4.0))
    found = store.get(db, ["k"])["k"]
    assert found.predictions is None
    assert (found.seconds, found.fit_seconds) == (1.5, 4.0)


def test_many_classes_and_groups_come_back_too(db):
    record = make_record("k", 0.5, classes=100)
    record = replace(record, predictions=replace(record.predictions, group=np.arange(200)))
    store.put(db, record)
    same(store.get(db, ["k"])["k"], record)


def test_the_first_answer_stays(db):
    store.put(db, make_record("k", 0.8))
    store.put(db, make_record("k", 0.2))
    same(store.get(db, ["k"])["k"], make_record("k", 0.8))


def test_a_crash_is_no_answer(db):
    with pytest.raises(ValueError, match="crash"):
        store.put(db, Record(key="k", error="RuntimeError: out of memory"))
    assert store.get(db, ["k"]) == {}


def test_only_what_is_there_is_found(db):
    store.put(db, make_record("k", 0.8))
    assert set(store.get(db, ["k", "another"])) == {"k"}


def test_facts_come_back_as_they_went(db):
    store.put_facts(db, "key", FACTS)
    assert store.facts(db, "key") == FACTS
    assert store.facts(db, "another") is None
    store.put_facts(db, "key", replace(FACTS, test=10))
    assert store.facts(db, "key").test == 10
    heard = replace(FACTS, preprocessing=Spectrogram(mean=-30.0, std=12.5))
    store.put_facts(db, "heard", heard)
    assert store.facts(db, "heard") == heard


def test_a_store_is_made_with_the_folders_that_it_needs_and_opened_again(tmp_path):
    path = tmp_path / "deep" / "down" / "store.sqlite"
    with store.opened(path) as db:
        store.put(db, make_record("k", 0.8))
    with store.opened(path) as db:
        assert set(store.get(db, ["k"])) == {"k"}


def run(code, *arguments, **more):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True, **more)


KILLED = """
import sys, time
from pathlib import Path
from factory import make_record
from xferbench import store
with store.opened(Path(sys.argv[1])) as db:
    for number in range(20):
        store.put(db, make_record(f"k{number}", 0.8))
    db.execute("begin immediate")
    store.put(db, make_record("half done", 0.8))
    print("ready", flush=True)
    time.sleep(60)
"""


def test_a_process_killed_in_the_middle_of_writing_loses_only_that(tmp_path):
    path = tmp_path / "store.sqlite"
    process = run(KILLED, path)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with store.opened(path) as db:
        keys = [f"k{number}" for number in range(20)]
        assert set(store.get(db, [*keys, "half done"])) == set(keys)
        store.put(db, make_record("half done", 0.8))
        assert db.execute("pragma integrity_check").fetchone() == ("ok",)


WRITING = """
import sys
from pathlib import Path
from factory import make_record
from xferbench import store
path, name = Path(sys.argv[1]), sys.argv[2]
for number in range(15):
    with store.opened(path) as db:
        store.put(db, make_record(f"{name} {number}", 0.8))
        store.put(db, make_record(f"both {number}", 0.8))
"""


def test_two_processes_may_write_at_once(tmp_path):
    path = tmp_path / "store.sqlite"
    both = [run(WRITING, path, name) for name in ("one", "other")]
    assert [process.wait(60) for process in both] == [0, 0]
    for process in both:
        process.stdout.close()
    with store.opened(path) as db:
        assert db.execute("select count(*) from records").fetchone() == (45,)


@pytest.mark.parametrize(
    ("make", "fragment"),
    [
        (lambda path: path.mkdir(), "no store can be opened there"),
        (lambda path: path.write_text("results"), "the store cannot be used"),
        (lambda path: path.write_bytes(b"SQLite format 3\0" + bytes(100)), "the store cannot be used"),
        pytest.param(
            lambda path: path.symlink_to("/dev/full"),
            "the store cannot be used",
            marks=pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full"),
        ),
    ],
)
def test_what_is_no_store_is_said_to_be_none(tmp_path, make, fragment):
    path = tmp_path / "store.sqlite"
    make(path)
    with pytest.raises(Problem, match=fragment) as told, store.opened(path):
        pass
    assert str(path) in told.value.what
    assert told.value.found
    assert told.value.expected
    assert "--store" in told.value.do


def test_a_store_below_a_file_cannot_be_opened(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Problem, match="no store can be opened there"), store.opened(tmp_path / "file" / "store.sqlite"):
        pass


def test_a_store_of_a_newer_version_is_left_alone(tmp_path):
    path = tmp_path / "store.sqlite"
    with store.opened(path) as db:
        db.execute(f"pragma user_version = {store.VERSION + 1}")
    before = path.read_bytes()
    with pytest.raises(Problem, match="newer xferbench") as told, store.opened(path):
        pass
    assert told.value.found == f"version {store.VERSION + 1}"
    assert path.read_bytes() == before


def test_the_database_of_another_program_is_left_alone(tmp_path):
    path = tmp_path / "cookies.sqlite"
    other = sqlite3.connect(path)
    other.execute("create table cookies (name text)")
    other.close()
    before = path.read_bytes()
    with pytest.raises(Problem, match="a database of something else") as told, store.opened(path):
        pass
    assert told.value.found == "cookies"
    assert path.read_bytes() == before


def test_a_full_disk_is_told_and_loses_nothing(tmp_path):
    path = tmp_path / "store.sqlite"
    with store.opened(path) as db:
        store.put(db, make_record("before", 0.8))
        pages = db.execute("pragma page_count").fetchone()[0]

    def fill():
        with store.opened(path) as db:
            db.execute(f"pragma max_page_count = {pages + 1}")  # as SQLite meets a disk that has no more room
            for number in range(100):
                store.put(db, make_record(f"k{number}", 0.8))

    with pytest.raises(Problem, match="the store cannot be used") as told:
        fill()
    assert "full" in told.value.found
    assert "free some space" in told.value.do
    with store.opened(path) as db:
        same(store.get(db, ["before"])["before"], make_record("before", 0.8))


def test_another_run_that_holds_the_store_for_long_is_named_as_a_cause(tmp_path, monkeypatch):
    path = tmp_path / "store.sqlite"
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda path, **more: connect(path, **more | {"timeout": 0.1}))
    with store.opened(path) as db:
        db.execute("begin immediate")
        with pytest.raises(Problem, match="the store cannot be used") as told, store.opened(path):
            pass
    assert "locked" in told.value.found
    assert "let another run end" in told.value.do


class Digester:
    """Digests by content, and counts how often it was asked."""

    def __init__(self):
        self.asked = 0

    def __call__(self, path):
        self.asked += 1
        return path.read_text()


def test_a_file_is_digested_again_only_where_it_changed(db, tmp_path):
    file, compute = tmp_path / "weights.pth", Digester()
    digest = store.remembered(db, compute)
    file.write_text("one")
    assert [digest(file), digest(file), compute.asked] == ["one", "one", 1]
    file.write_text("three")
    assert [digest(file), digest(file), compute.asked] == ["three", "three", 2]
    os.utime(file, ns=(time.time_ns(), time.time_ns() + 1))
    assert [digest(file), digest(file), compute.asked] == ["three", "three", 3]


def test_a_file_is_known_by_its_place_however_it_is_named(db, tmp_path, monkeypatch):
    file, compute = tmp_path / "weights.pth", Digester()
    file.write_text("one")
    digest = store.remembered(db, compute)
    digest(file)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link.pth").symlink_to(file)
    assert [digest(Path("weights.pth")), digest(Path("link.pth")), compute.asked] == ["one", "one", 1]
    (tmp_path / "other.pth").write_text("other")
    assert digest(Path("other.pth")) == "other"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every file's name is text")
def test_a_file_whose_name_is_no_text_can_be_remembered(db, tmp_path):
    file, compute = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")), Digester()
    file.write_text("one")
    digest = store.remembered(db, compute)
    assert [digest(file), digest(file), compute.asked] == ["one", "one", 1]


@pytest.fixture
def folder(tmp_path):
    """A cache of ten files of 100 bytes, the first used longest ago."""
    for number in range(10):
        file = tmp_path / ("weights" if number % 2 else "features") / f"{number}"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(bytes(100))
        os.utime(file, (1e9 + number, 1e9 + number))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "images.npy").write_bytes(bytes(10_000))
    return tmp_path


def kept(folder):
    return sorted(int(file.name) for part in ("weights", "features") for file in (folder / part).iterdir())


@pytest.mark.parametrize(("limit", "left"), [(1000, range(10)), (999, range(1, 10)), (350, range(7, 10)), (99, ())])
def test_what_was_used_last_stays_within_the_limit(folder, limit, left):
    store.trim(folder, limit)
    assert kept(folder) == list(left)
    assert (folder / "data" / "images.npy").is_file(), "decoded images are no part of it"


def test_what_is_used_again_stays(folder):
    os.utime(folder / "features" / "0")
    store.trim(folder, 200)
    assert kept(folder) == [0, 9]


def test_a_cache_that_is_not_there_needs_no_trimming(tmp_path):
    store.trim(tmp_path / "nowhere", 0)
    assert list(tmp_path.iterdir()) == []


def test_two_runs_may_trim_at_once(folder, monkeypatch):
    stat = Path.stat

    def gone(path, **more):
        if path.name == "3":
            raise FileNotFoundError(path)
        return stat(path, **more)

    monkeypatch.setattr(Path, "stat", gone)
    store.trim(folder, 200)
    monkeypatch.undo()
    assert kept(folder) == [3, 8, 9]


def test_the_cache_lies_beside_its_store(tmp_path):
    assert store.cache(tmp_path / "store.sqlite") == tmp_path / "store.sqlite.cache"
