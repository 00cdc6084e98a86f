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
from xferbench.core.pipeline import Preprocessing, Spectrogram
from xferbench.core.plugin import DataProfile, ModelProfile, Profile, Timing
from xferbench.core.record import Predictions, Record
from xferbench.runner import store

FACTS = Profile(
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
    with store.open_store(tmp_path / "store.sqlite") as found:
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
    store.put_record(db, record)
    same(store.get_records(db, [record.key])[record.key], record)


def test_a_diverged_curve_comes_back_with_its_nan(db):
    nan, inf = float("nan"), float("inf")
    record = Record(key="k", fit="f", scalars={"loss": nan, "drift": 0.0}, curve=((0, 2.3, 0.1), (10, nan, nan)), place="host")
    store.put_record(db, record)
    same(store.get_records(db, ["k"])["k"], record)
    store.put_record(db, replace(record, key="infinite", scalars={"loss": inf}))
    assert np.isnan(store.get_records(db, ["infinite"])["infinite"].scalars["loss"]), (
        "JSON has no infinity: it is no number, like NaN"
    )


def test_a_record_without_predictions_comes_back_without(db):
    store.put_record(db, Record(key="k", scalars={"drift": 0.5}, seconds=1.5, fit_seconds=4.0))
    found = store.get_records(db, ["k"])["k"]
    assert found.predictions is None
    assert (found.seconds, found.fit_seconds) == (1.5, 4.0)


def test_many_classes_and_groups_come_back_too(db):
    record = make_record("k", 0.5, classes=100)
    record = replace(record, predictions=replace(record.predictions, group=np.arange(200)))
    store.put_record(db, record)
    same(store.get_records(db, ["k"])["k"], record)


def test_the_first_answer_stays(db):
    store.put_record(db, make_record("k", 0.8))
    store.put_record(db, make_record("k", 0.2))
    same(store.get_records(db, ["k"])["k"], make_record("k", 0.8))


def test_a_crash_is_no_answer(db):
    with pytest.raises(ValueError, match="crash"):
        store.put_record(db, Record(key="k", error="RuntimeError: out of memory"))
    assert store.get_records(db, ["k"]) == {}


def test_only_what_is_there_is_found(db):
    store.put_record(db, make_record("k", 0.8))
    assert set(store.get_records(db, ["k", "another"])) == {"k"}


def test_facts_come_back_as_they_went(db):
    store.put_profile(db, "key", FACTS)
    assert store.get_profile(db, "key") == FACTS
    assert store.get_profile(db, "another") is None
    store.put_profile(db, "key", replace(FACTS, data=replace(FACTS.data, test=10)))
    assert store.get_profile(db, "key").data.test == 10
    heard = replace(FACTS, preprocessing=Spectrogram(mean=-30.0, std=12.5))
    store.put_profile(db, "heard", heard)
    assert store.get_profile(db, "heard") == heard


def test_a_store_is_made_with_the_folders_that_it_needs_and_opened_again(tmp_path):
    path = tmp_path / "deep" / "down" / "store.sqlite"
    with store.open_store(path) as db:
        store.put_record(db, make_record("k", 0.8))
    with store.open_store(path) as db:
        assert set(store.get_records(db, ["k"])) == {"k"}


def run(code, *arguments, **more):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True, **more)


KILLED = """
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


def test_a_process_killed_in_the_middle_of_writing_loses_only_that(tmp_path):
    path = tmp_path / "store.sqlite"
    process = run(KILLED, path)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with store.open_store(path) as db:
        keys = [f"k{number}" for number in range(20)]
        assert set(store.get_records(db, [*keys, "half done"])) == set(keys)
        store.put_record(db, make_record("half done", 0.8))
        assert db.execute("pragma integrity_check").fetchone() == ("ok",)


WRITING = """
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


def test_two_processes_may_write_at_once(tmp_path):
    path = tmp_path / "store.sqlite"
    both = [run(WRITING, path, name) for name in ("one", "other")]
    assert [process.wait(60) for process in both] == [0, 0]
    for process in both:
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
def test_what_is_no_store_is_said_to_be_none(tmp_path, make, fragment):
    path = tmp_path / "store.sqlite"
    make(path)
    with pytest.raises(UserError, match=fragment) as told, store.open_store(path):
        pass
    assert str(path) in told.value.what
    assert told.value.found
    assert told.value.expected
    assert "--store" in told.value.do


def test_a_store_below_a_file_cannot_be_opened(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="the store cannot be opened"), store.open_store(tmp_path / "file" / "store.sqlite"):
        pass


def test_a_store_of_a_newer_version_is_left_alone(tmp_path):
    path = tmp_path / "store.sqlite"
    with store.open_store(path) as db:
        db.execute(f"pragma user_version = {store.STORE_VERSION + 1}")
    before = path.read_bytes()
    with pytest.raises(UserError, match="newer xferbench") as told, store.open_store(path):
        pass
    assert told.value.found == f"version {store.STORE_VERSION + 1}"
    assert path.read_bytes() == before


def test_the_database_of_another_program_is_left_alone(tmp_path):
    path = tmp_path / "cookies.sqlite"
    other = sqlite3.connect(path)
    other.execute("create table cookies (name text)")
    other.close()
    before = path.read_bytes()
    with pytest.raises(UserError, match="a database of another program") as told, store.open_store(path):
        pass
    assert told.value.found == "cookies"
    assert path.read_bytes() == before


def test_a_full_disk_is_told_and_loses_nothing(tmp_path):
    path = tmp_path / "store.sqlite"
    with store.open_store(path) as db:
        store.put_record(db, make_record("before", 0.8))
        pages = db.execute("pragma page_count").fetchone()[0]

    def fill():
        with store.open_store(path) as db:
            db.execute(f"pragma max_page_count = {pages + 1}")  # as SQLite meets a disk that has no more room
            for number in range(100):
                store.put_record(db, make_record(f"k{number}", 0.8))

    with pytest.raises(UserError, match="the store cannot be used") as told:
        fill()
    assert "full" in told.value.found
    assert "free some space" in told.value.do
    with store.open_store(path) as db:
        same(store.get_records(db, ["before"])["before"], make_record("before", 0.8))


def test_another_run_that_holds_the_store_for_long_is_named_as_a_cause(tmp_path, monkeypatch):
    path = tmp_path / "store.sqlite"
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda path, **more: connect(path, **more | {"timeout": 0.1}))
    with store.open_store(path) as db:
        db.execute("begin immediate")
        with pytest.raises(UserError, match="the store cannot be used") as told, store.open_store(path):
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
    digest = store.cached_digester(db, compute)
    file.write_text("one")
    assert [digest(file), digest(file), compute.asked] == ["one", "one", 1]
    file.write_text("three")
    assert [digest(file), digest(file), compute.asked] == ["three", "three", 2]
    os.utime(file, ns=(time.time_ns(), time.time_ns() + 1))
    assert [digest(file), digest(file), compute.asked] == ["three", "three", 3]


def test_a_file_is_known_by_its_place_however_it_is_named(db, tmp_path, monkeypatch):
    file, compute = tmp_path / "weights.pth", Digester()
    file.write_text("one")
    digest = store.cached_digester(db, compute)
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
    digest = store.cached_digester(db, compute)
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
    store.trim_cache(folder, limit)
    assert kept(folder) == list(left)
    assert (folder / "data" / "images.npy").is_file(), "decoded images are no part of it"


def test_what_is_used_again_stays(folder):
    os.utime(folder / "features" / "0")
    store.trim_cache(folder, 200)
    assert kept(folder) == [0, 9]


def test_a_cache_that_is_not_there_needs_no_trimming(tmp_path):
    store.trim_cache(tmp_path / "nowhere", 0)
    assert list(tmp_path.iterdir()) == []


def test_two_runs_may_trim_at_once(folder, monkeypatch):
    stat = Path.stat

    def gone(path, **more):
        if path.name == "3":
            raise FileNotFoundError(path)
        return stat(path, **more)

    monkeypatch.setattr(Path, "stat", gone)
    store.trim_cache(folder, 200)
    monkeypatch.undo()
    assert kept(folder) == [3, 8, 9]


def test_the_cache_lies_beside_its_store(tmp_path):
    assert store.cache_folder(tmp_path / "store.sqlite") == tmp_path / "store.sqlite.cache"


# Stores that are joined


def filled(path, **accuracies):
    """A store with a record for each key, of that accuracy, and the facts of this module under a key of its name."""
    with store.open_store(path) as db:
        for key, accuracy in accuracies.items():
            store.put_record(db, make_record(key, accuracy))
        store.put_profile(db, path.stem, FACTS)
    return path


def joined(output, *sources):
    return [told for _, told in store.merge_stores(output, sources)]


def test_what_is_not_there_is_added_and_what_is_there_stays(tmp_path):
    one, two = filled(tmp_path / "one.sqlite", a=0.8, b=0.8), filled(tmp_path / "two.sqlite", b=0.8, c=0.2)
    output = filled(tmp_path / "all.sqlite", own=0.5)
    assert joined(output, one, two) == [
        store.MergeCount(added=2, existing=0, differing=0),
        store.MergeCount(added=1, existing=1, differing=0),
    ]
    with store.open_store(output) as db:
        found = store.get_records(db, ["a", "b", "c", "own"])
        for key, accuracy in {"a": 0.8, "b": 0.8, "c": 0.2, "own": 0.5}.items():
            same(found[key], make_record(key, accuracy))
        assert [store.get_profile(db, name) for name in ("one", "two", "all")] == [FACTS] * 3
    assert joined(output, one, two) == [store.MergeCount(added=0, existing=2, differing=0)] * 2


def test_of_two_answers_the_first_stays_and_the_other_is_counted(tmp_path):
    record = make_record("k", 0.8, scalars={"drift": 0.5})
    others = {
        "later": replace(record, seconds=99.0, place="another machine"),
        "scalar": replace(record, scalars={"drift": 0.5000001}),
        "bit": replace(record, predictions=replace(record.predictions, p_max=record.predictions.p_max * np.float32(1.0000001))),
        "none": replace(record, predictions=None),
    }
    for name, other in {"first": record, **others}.items():
        with store.open_store(tmp_path / name) as db:
            store.put_record(db, other)
    told = joined(tmp_path / "all", tmp_path / "first", *(tmp_path / name for name in others))
    assert [one.differing for one in told] == [0, 0, 1, 1, 1]
    with store.open_store(tmp_path / "all") as db:
        same(store.get_records(db, ["k"])["k"], record)


def test_a_number_that_is_none_is_the_same_in_both(tmp_path):
    for name in ("one", "two"):
        with store.open_store(tmp_path / name) as db:
            store.put_record(db, Record(key="k", scalars={"loss": float("nan")}, place=name))
    assert [one.differing for one in joined(tmp_path / "all", tmp_path / "one", tmp_path / "two")] == [0, 0]


def test_what_is_remembered_of_files_stays_on_its_machine(tmp_path):
    source = filled(tmp_path / "one.sqlite", a=0.8)
    with store.open_store(source) as db:
        store.cached_digester(db, lambda _: "digest")(source)
    joined(tmp_path / "all.sqlite", source)
    with store.open_store(tmp_path / "all.sqlite") as db:
        assert db.execute("select count(*) from digests").fetchone() == (0,)


def test_more_records_than_are_read_at_once_all_arrive(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "PAGE_RECORDS", 3)
    source = filled(tmp_path / "one.sqlite", **{f"k{number:02}": 0.8 for number in range(10)})
    assert joined(tmp_path / "all.sqlite", source) == [store.MergeCount(added=10, existing=0, differing=0)]


@pytest.mark.parametrize("name", ["a b?mode=rwc#%41;'\".sqlite", "-o", "ünï.sqlite", "file:x"])
def test_a_store_may_have_any_name(tmp_path, name):
    assert joined(tmp_path / "all.sqlite", filled(tmp_path / name, a=0.8))[0].added == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["all.sqlite", name])


def test_the_sources_are_left_as_they_are(tmp_path):
    sources = [filled(tmp_path / f"{name}.sqlite", a=0.8) for name in ("one", "two")]
    with sqlite3.connect(sources[1]) as logged:
        logged.execute("pragma journal_mode = wal")
    logged.close()
    before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in sources]
    joined(tmp_path / "all.sqlite", *sources)
    assert [(path.read_bytes(), path.stat().st_mtime_ns) for path in sources] == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.sqlite", "one.sqlite", "two.sqlite"]


def test_a_store_is_merged_while_a_run_holds_a_lock_on_it(tmp_path):
    source = filled(tmp_path / "one.sqlite", a=0.8)
    with store.open_store(source) as db:
        db.execute("begin immediate")
        assert joined(tmp_path / "all.sqlite", source)[0].added == 1


def newer(path):
    with store.open_store(path) as db:
        db.execute(f"pragma user_version = {store.STORE_VERSION + 1}")


def others(path):
    with sqlite3.connect(path) as db:
        db.execute("create table cookies (name text)")
    db.close()


def alike(path):
    with sqlite3.connect(path) as db:
        db.execute("create table records (name text)")
    db.close()


def half_written(path):
    """A store whose writer was killed in the middle of a transaction that had reached the file."""
    filled(path, a=0.8)
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
        (others, "a database of another program"),
        (alike, "the store cannot be read"),
        (newer, "a store of a newer xferbench"),
        (half_written, "the store cannot be read"),
    ],
)
def test_a_bad_source_is_told_before_anything_is_merged(tmp_path, make, fragment):
    good, bad, output = filled(tmp_path / "good.sqlite", a=0.8), tmp_path / "bad.sqlite", tmp_path / "all.sqlite"
    make(bad)
    before = bad.read_bytes() if bad.is_file() else None
    with pytest.raises(UserError, match=fragment) as told:
        joined(output, good, bad)
    assert str(bad) in told.value.what
    assert told.value.do
    assert not output.exists()
    assert (bad.read_bytes() if bad.is_file() else None) == before


def test_a_source_that_is_broken_further_in_adds_nothing(tmp_path):
    bad = filled(tmp_path / "bad.sqlite", **{f"k{number}": 0.8 for number in range(40)})
    pages = bytearray(bad.read_bytes())
    pages[len(pages) // 2 :] = b"\xff" * (len(pages) - len(pages) // 2)
    bad.write_bytes(pages)
    output = filled(tmp_path / "all.sqlite", own=0.5)
    with pytest.raises(UserError, match=r"bad\.sqlite: the store cannot be read"):
        joined(output, bad)
    with store.open_store(output) as db:
        assert db.execute("select key from records").fetchall() == [("own",)]


def test_the_output_is_none_of_the_sources_however_it_is_named(tmp_path):
    one = filled(tmp_path / "one.sqlite", a=0.8)
    (tmp_path / "link.sqlite").symlink_to(one)
    (tmp_path / "hard.sqlite").hardlink_to(one)
    for output in (one, tmp_path / "link.sqlite", tmp_path / "hard.sqlite", tmp_path / "." / "one.sqlite"):
        with pytest.raises(UserError, match="the output is one of the stores to merge"):
            joined(output, one)


@pytest.mark.parametrize(
    ("make", "fragment"),
    [
        (Path.mkdir, "the store cannot be opened"),
        (lambda path: path.write_text("results" * 999), "the store cannot be used"),
        (others, "a database of another program"),
        (newer, "a store of a newer xferbench"),
    ],
)
def test_an_output_that_is_no_store_stays_as_it_is(tmp_path, make, fragment):
    one, output = filled(tmp_path / "one.sqlite", a=0.8), tmp_path / "all.sqlite"
    make(output)
    before = output.read_bytes() if output.is_file() else None
    with pytest.raises(UserError, match=fragment) as told:
        joined(output, one)
    assert "-o" in told.value.do
    assert (output.read_bytes() if output.is_file() else None) == before


def test_an_output_that_may_not_be_written_is_told(tmp_path, monkeypatch):
    one, output = filled(tmp_path / "one.sqlite", a=0.8), filled(tmp_path / "all.sqlite", own=0.5)
    connect, before = sqlite3.connect, output.read_bytes()

    def read_only(path, **more):  # as for whoever lacks the right; root, who may run this, lacks none
        return connect(f"{path.as_uri()}?mode=ro", uri=True, **more) if path == output else connect(path, **more)

    monkeypatch.setattr(sqlite3, "connect", read_only)
    with pytest.raises(UserError, match=r"all\.sqlite: the store cannot be used") as told:
        joined(output, one)
    assert "readonly" in told.value.found
    assert output.read_bytes() == before
