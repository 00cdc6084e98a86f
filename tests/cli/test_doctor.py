from __future__ import annotations

import json
import os
import sqlite3
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from invoke import invoke

from xferbench.analysis import exit_code
from xferbench.cli import installation_checks, machine
from xferbench.cli.installation_checks import FAIL, OK, WARN
from xferbench.runner import discovery, store

GIB = 1 << 30


@pytest.fixture(autouse=True)
def _at_home(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def pretend(monkeypatch, folder, **packages):
    """Packages of that name and source stand before the real ones in the process that looks."""
    for name, source in packages.items():
        (folder / f"{name}.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *(one for one in sys.path if one)]))


def torch(version, devices=""):
    """A torch that only has a version, and no device."""
    return f"""
__version__ = {version!r}
class cuda:
    is_available = staticmethod(lambda: False)
class backends:
    class mps:
        is_available = staticmethod(lambda: False)
{devices}
"""


def by(found):
    return {line.check: line for line in found}


def looked():
    return by(installation_checks.check_torch(*installation_checks.installation_report()))


def test_a_sound_installation(capsys, tmp_path, monkeypatch):
    pretend(monkeypatch, tmp_path, torch=torch("2.9.1+cu128"), torchvision="__version__ = '0.24.1'")
    monkeypatch.setattr(installation_checks, "requires", lambda _: None)
    code, out, err = invoke(capsys, "doctor", "--format", "json")
    found = {line["check"]: line for line in json.loads(out)}
    assert (code, err) == (0, "")
    assert {found[name]["state"] for name in ("xferbench", "python", "torch", "torchvision", "pair", "plugins", "store")} == {
        OK
    }
    assert found["torch"]["found"] == "2.9.1+cu128"
    assert "none yet" in found["store"]["found"]
    assert not (tmp_path / "cache" / "xferbench").exists(), "to look makes nothing"


def test_the_text_has_a_line_a_check(capsys, monkeypatch, tmp_path):
    pretend(monkeypatch, tmp_path, torch="raise ImportError('no such\\nsymbol')")
    code, out, _ = invoke(capsys, "doctor")
    assert code == exit_code.USAGE_ERROR
    assert "FAIL  torch        ImportError: no such symbol\n                   do: reinstall torch" in out
    assert all(line.split()[0] in {OK, WARN, FAIL, "do:"} for line in out.splitlines())


def test_real_torch_is_told():
    pytest.importorskip("torchvision")
    found = looked()
    assert {found[name].state for name in ("torch", "torchvision", "pair")} == {OK}
    assert "device" in found


def test_no_torch_is_no_failure_since_reports_can_still_be_written(monkeypatch, tmp_path):
    pretend(monkeypatch, tmp_path, torch="""raise ModuleNotFoundError("No module named 'torch'")""")
    line = looked()["torch"]
    assert line.state == WARN
    assert "pip install 'xferbench[torch]'" in line.do


def test_a_torch_that_lacks_a_part_of_itself_is_a_failure(monkeypatch, tmp_path):
    pretend(monkeypatch, tmp_path, torch="import torch_C_that_is_not_there")
    assert looked()["torch"].state == FAIL


@pytest.mark.skipif(sys.platform == "win32", reason="signals are of POSIX")
@pytest.mark.parametrize(
    ("packages", "check"),
    [
        ({"torch": "import os; os.kill(os.getpid(), 11)"}, "torch"),
        ({"torch": torch("2.6.0"), "torchvision": "import os; os.kill(os.getpid(), 11)"}, "torchvision"),
        (
            {"torch": torch("2.6.0", "cuda.is_available = lambda: __import__('os').kill(__import__('os').getpid(), 11)")},
            "devices",
        ),
    ],
)
def test_one_that_ends_its_process_is_a_line_with_the_signal(monkeypatch, tmp_path, packages, check):
    pretend(monkeypatch, tmp_path, **{"torchvision": "__version__ = '0.21'"} | packages)
    line = looked()[check]
    assert line.state == FAIL
    assert "ended by SIGSEGV" in line.found
    assert line.do.startswith("reinstall ")


def test_one_that_ends_python_or_says_something_is_told(monkeypatch, tmp_path):
    pretend(monkeypatch, tmp_path, torch="print('hello'); print('[1]'); raise SystemExit(3)", torchvision="__version__ = '1'")
    assert looked()["torch"].found == "SystemExit: 3"


def test_one_that_takes_for_ever_is_told(monkeypatch, tmp_path):
    pretend(monkeypatch, tmp_path, torch="import time; time.sleep(60)")
    monkeypatch.setattr(installation_checks, "TIMEOUT_SECONDS", 2.0)
    line = looked()["torch"]
    assert line.state == FAIL
    assert "took more than 2 s" in line.found


def test_devices(monkeypatch, tmp_path):
    cuda = """
import warnings
class About: name, total_memory = "H200", 139 << 30
class Tensor:
    add_ = lambda self, _: self
    item = lambda self: 1
zeros = lambda *_, **__: Tensor()
cuda.is_available = lambda: warnings.warn("driver too old\\nmore") or True
cuda.device_count = lambda: 1
cuda.get_device_properties = lambda _: About
"""
    pretend(monkeypatch, tmp_path, torch=torch("2.6.0", cuda), torchvision="__version__ = '0.21.0'")
    told = [
        line for line in installation_checks.check_torch(*installation_checks.installation_report()) if line.check == "device"
    ]
    assert [(line.state, line.found) for line in told] == [(OK, "cuda: H200, 139.0 GiB"), (WARN, "driver too old")]


def test_a_torch_that_is_too_old_is_a_failure(monkeypatch, tmp_path):
    pretend(monkeypatch, tmp_path, torch=torch("2.5.1"), torchvision="__version__ = '0.20.1'")
    assert looked()["torch"].state == FAIL
    assert "CVE-2025-32434" in looked()["torch"].do


@pytest.mark.parametrize(
    ("pair", "wanted", "state"),
    [
        (("2.6.0+cu124", "0.21.0+cu124"), "torch (==2.6.0)", OK),
        (("2.6.1", "0.21.0"), "torch==2.6.0", WARN),
        (("2.15.0", "0.29.2"), "torch (>=2.14.0)", OK),
        (("2.13.9", "0.29.2"), "torch>=2.14.0", WARN),
        (("2.6.0", "0.21.0"), "", OK),
        (("2.6.0", "0.20.1"), "", WARN),
        (("2.9.0a0+git1", "0.24.0a0"), "", OK),
        (("3.0", "1.0"), "torch", OK),
    ],
)
def test_which_torchvision_belongs_to_which_torch(pair, wanted, state):
    line = installation_checks.check_torchvision(*pair, wanted)
    assert line.state == state
    assert bool(line.do) == (state == WARN)


@pytest.mark.parametrize(
    ("cores", "memory", "quota", "limit", "states"),
    [
        (4, 16 * GIB, None, None, [OK, OK]),
        (4, None, None, None, [OK, OK]),
        (4, 16 * GIB, 4.0, 8 * GIB, [OK, OK]),
        (64, 512 * GIB, 2.0, None, [WARN, OK]),
        (8, 64 * GIB, None, 2 * GIB, [OK, WARN]),
        (4, GIB // 2, None, None, [OK, WARN]),
    ],
)
def test_resources(cores, memory, quota, limit, states):
    found = list(installation_checks.check_resources(cores, memory, quota, limit))
    assert [line.state for line in found] == states
    assert all(("use -j " in line.do) == (line.state == WARN) for line in found)


def test_a_plugin_that_cannot_be_loaded_is_a_failure(monkeypatch):
    good = [entry for entry in discovery.entry_points(group=discovery.PLUGIN_GROUP) if entry.name == "negative-transfer"]
    broken = EntryPoint(name="broken", value="nowhere_to_be_found:plugin", group=discovery.PLUGIN_GROUP)
    monkeypatch.setattr(discovery, "entry_points", lambda **_: [*good, broken])
    found = by(installation_checks.check_plugins())
    assert (found["plugins"].state, found["plugins"].found) == (OK, "negative-transfer")
    assert found["broken"].state == FAIL
    assert "ModuleNotFoundError" in found["broken"].found


def test_no_plugin_at_all_is_a_failure(monkeypatch):
    monkeypatch.setattr(discovery, "entry_points", lambda **_: [])
    assert by(installation_checks.check_plugins())["plugins"].state == FAIL


def test_a_store_is_told_and_stays_as_it_is(tmp_path):
    path = tmp_path / "a store#?.sqlite"
    with store.open_store(path):
        pass
    before = path.read_bytes()
    line = by(installation_checks.check_store(path))["store"]
    assert line.state == OK
    assert (
        f"0 records, {installation_checks.format_bytes(len(before))} and 0.0 MiB of cache, schema {store.STORE_VERSION}"
        in line.found
    )
    assert path.read_bytes() == before


def no_store(path):
    path.write_text("schema = 1, and more than the hundred bytes that a header has " * 9)


def newer(path):
    with store.open_store(path) as db:
        db.execute(f"pragma user_version = {store.STORE_VERSION + 1}")


def other(path):
    db = sqlite3.connect(path)
    db.execute("create table people (name text)")
    db.close()


@pytest.mark.parametrize("make", [no_store, newer, other, Path.mkdir])
def test_a_store_that_cannot_be_used_is_a_failure(tmp_path, make):
    make(tmp_path / "s.sqlite")
    line = by(installation_checks.check_store(tmp_path / "s.sqlite"))["store"]
    assert line.state == FAIL
    assert "--store" in line.do


def test_an_empty_file_is_no_store_yet(tmp_path):
    (tmp_path / "s.sqlite").touch()
    assert by(installation_checks.check_store(tmp_path / "s.sqlite"))["store"].state == OK


def test_a_cache_that_cannot_be_written_is_a_failure(capsys, tmp_path):
    (tmp_path / "file").touch()
    line = by(installation_checks.check_store(tmp_path / "file" / "below" / "s.sqlite"))["cache"]
    assert (line.state, "Not a directory" in line.found) == (FAIL, True)
    assert "--store" in line.do
    code, out, _ = invoke(capsys, "doctor", "--store", tmp_path / "file" / "below")
    assert code == exit_code.USAGE_ERROR
    assert "FAIL  cache" in out


def test_a_disk_over_the_network_is_warned_of(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "file_system", lambda _: "nfs4")
    line = by(installation_checks.check_store(tmp_path / "s.sqlite"))["file system"]
    assert line.state == WARN
    assert "SQLite is not safe" in line.found
    assert "--store" in line.do


@pytest.mark.parametrize(("free", "state"), [(0, FAIL), (GIB, WARN), (9 * GIB, OK)])
def test_room_on_the_disk(monkeypatch, tmp_path, free, state):
    monkeypatch.setattr(installation_checks.shutil, "disk_usage", lambda _: type("Usage", (), {"free": free}))
    assert by(installation_checks.check_store(tmp_path / "s.sqlite"))["disk"].state == state


def test_every_line_that_is_not_sound_says_what_to_do(monkeypatch, tmp_path):
    pretend(monkeypatch, tmp_path, torch="1 / 0")
    assert all(bool(line.do) == (line.state != OK) for line in installation_checks.run_checks(tmp_path / "s.sqlite"))


def test_the_users_name_is_left_out(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    assert installation_checks.hide_home(Path("/home/ann/.cache/x")) == "~/.cache/x"
    assert installation_checks.hide_home(Path("/home/annabel/x")) == "/home/annabel/x"
    monkeypatch.setenv("HOME", "/")
    assert installation_checks.hide_home(Path("/x")) == "/x"
