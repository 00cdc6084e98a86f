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
def _temporary_home(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def install_fakes(monkeypatch, folder, **packages):
    """Write fake packages that the checking process imports instead of the real ones."""
    for name, source in packages.items():
        (folder / f"{name}.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *(path for path in sys.path if path)]))


def fake_torch(version, devices=""):
    """Return the source of a fake torch with a version and without devices."""
    return f"""
__version__ = {version!r}
class cuda:
    is_available = staticmethod(lambda: False)
class backends:
    class mps:
        is_available = staticmethod(lambda: False)
{devices}
"""


def by_check(lines):
    return {line.check: line for line in lines}


def check_torch():
    return by_check(installation_checks.check_torch(*installation_checks.installation_report()))


def test_a_sound_installation_passes_all_checks(capsys, tmp_path, monkeypatch):
    install_fakes(monkeypatch, tmp_path, torch=fake_torch("2.9.1+cu128"), torchvision="__version__ = '0.24.1'")
    monkeypatch.setattr(installation_checks, "requires", lambda _: None)
    code, out, err = invoke(capsys, "doctor", "--format", "json")
    lines = {line["check"]: line for line in json.loads(out)}
    assert (code, err) == (0, "")
    assert {lines[name]["state"] for name in ("xferbench", "python", "torch", "torchvision", "pair", "plugins", "store")} == {
        OK
    }
    assert lines["torch"]["found"] == "2.9.1+cu128"
    assert "none yet" in lines["store"]["found"]
    assert not (tmp_path / "cache" / "xferbench").exists(), "the checks create no file"


def test_the_text_has_a_line_for_each_check(capsys, monkeypatch, tmp_path):
    install_fakes(monkeypatch, tmp_path, torch="raise ImportError('no such\\nsymbol')")
    code, out, _ = invoke(capsys, "doctor")
    assert code == exit_code.USAGE_ERROR
    assert "FAIL  torch        ImportError: no such symbol\n                   do: reinstall torch" in out
    assert all(line.split()[0] in {OK, WARN, FAIL, "do:"} for line in out.splitlines())


def test_real_torch_passes():
    pytest.importorskip("torchvision")
    lines = check_torch()
    assert {lines[name].state for name in ("torch", "torchvision", "pair")} == {OK}
    assert "device" in lines


def test_a_missing_torch_is_a_warning(monkeypatch, tmp_path):
    install_fakes(monkeypatch, tmp_path, torch="""raise ModuleNotFoundError("No module named 'torch'")""")
    line = check_torch()["torch"]
    assert line.state == WARN
    assert "pip install 'xferbench[torch]'" in line.do


def test_an_incomplete_torch_is_a_failure(monkeypatch, tmp_path):
    install_fakes(monkeypatch, tmp_path, torch="import torch_C_that_is_not_there")
    assert check_torch()["torch"].state == FAIL


@pytest.mark.skipif(sys.platform == "win32", reason="signals need POSIX")
@pytest.mark.parametrize(
    ("packages", "check"),
    [
        ({"torch": "import os; os.kill(os.getpid(), 11)"}, "torch"),
        ({"torch": fake_torch("2.6.0"), "torchvision": "import os; os.kill(os.getpid(), 11)"}, "torchvision"),
        (
            {"torch": fake_torch("2.6.0", "cuda.is_available = lambda: __import__('os').kill(__import__('os').getpid(), 11)")},
            "devices",
        ),
    ],
)
def test_a_package_that_kills_the_process_is_a_failure_with_the_signal(monkeypatch, tmp_path, packages, check):
    install_fakes(monkeypatch, tmp_path, **{"torchvision": "__version__ = '0.21'"} | packages)
    line = check_torch()[check]
    assert line.state == FAIL
    assert "ended by SIGSEGV" in line.found
    assert line.do.startswith("reinstall ")


def test_a_package_that_exits_python_is_a_failure(monkeypatch, tmp_path):
    install_fakes(
        monkeypatch, tmp_path, torch="print('hello'); print('[1]'); raise SystemExit(3)", torchvision="__version__ = '1'"
    )
    assert check_torch()["torch"].found == "SystemExit: 3"


def test_a_package_that_hangs_is_a_failure(monkeypatch, tmp_path):
    install_fakes(monkeypatch, tmp_path, torch="import time; time.sleep(60)")
    monkeypatch.setattr(installation_checks, "TIMEOUT_SECONDS", 2.0)
    line = check_torch()["torch"]
    assert line.state == WARN
    assert line.found == "could not tell: the process that imports it took more than 2 s"
    assert "reinstall" not in line.do


def test_each_device_has_a_line(monkeypatch, tmp_path):
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
    install_fakes(monkeypatch, tmp_path, torch=fake_torch("2.6.0", cuda), torchvision="__version__ = '0.21.0'")
    lines = [
        line for line in installation_checks.check_torch(*installation_checks.installation_report()) if line.check == "device"
    ]
    assert [(line.state, line.found) for line in lines] == [(OK, "cuda: H200, 139.0 GiB"), (WARN, "driver too old")]


def test_an_old_torch_is_a_failure(monkeypatch, tmp_path):
    install_fakes(monkeypatch, tmp_path, torch=fake_torch("2.5.1"), torchvision="__version__ = '0.20.1'")
    assert check_torch()["torch"].state == FAIL
    assert "CVE-2025-32434" in check_torch()["torch"].do


@pytest.mark.parametrize(
    ("pair", "requirement", "state"),
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
def test_versions_of_torchvision_and_torch_must_match(pair, requirement, state):
    line = installation_checks.check_torchvision(*pair, requirement)
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
def test_few_cores_or_little_memory_is_a_warning(cores, memory, quota, limit, states):
    lines = list(installation_checks.check_resources(cores, memory, quota, limit))
    assert [line.state for line in lines] == states
    assert all(("use -j " in line.do) == (line.state == WARN) for line in lines)


def test_a_plugin_that_cannot_be_imported_is_a_failure(monkeypatch):
    working = [entry for entry in discovery.entry_points(group=discovery.PLUGIN_GROUP) if entry.name == "negative-transfer"]
    broken = EntryPoint(name="broken", value="nowhere_to_be_found:plugin", group=discovery.PLUGIN_GROUP)
    monkeypatch.setattr(discovery, "entry_points", lambda **_: [*working, broken])
    lines = by_check(installation_checks.check_plugins())
    assert (lines["plugins"].state, lines["plugins"].found) == (OK, "negative-transfer")
    assert lines["broken"].state == FAIL
    assert "ModuleNotFoundError" in lines["broken"].found


def test_a_missing_plugin_group_is_a_failure(monkeypatch):
    monkeypatch.setattr(discovery, "entry_points", lambda **_: [])
    assert by_check(installation_checks.check_plugins())["plugins"].state == FAIL


def test_a_store_is_described_and_unchanged(tmp_path):
    path = tmp_path / "a store#?.sqlite"
    with store.open_store(path):
        pass
    before = path.read_bytes()
    line = by_check(installation_checks.check_store(path))["store"]
    assert line.state == OK
    assert (
        f"0 records, {installation_checks.format_bytes(len(before))} and 0.0 MiB of cache, schema {store.STORE_VERSION}"
        in line.found
    )
    assert path.read_bytes() == before


def write_text_file(path):
    path.write_text("schema = 1, and more than the hundred bytes that a header has " * 9)


def make_newer_store(path):
    with store.open_store(path) as db:
        db.execute(f"pragma user_version = {store.STORE_VERSION + 1}")


def make_foreign_database(path):
    db = sqlite3.connect(path)
    db.execute("create table people (name text)")
    db.close()


@pytest.mark.parametrize("make", [write_text_file, make_newer_store, make_foreign_database, Path.mkdir])
def test_an_unusable_store_is_a_failure(tmp_path, make):
    make(tmp_path / "s.sqlite")
    line = by_check(installation_checks.check_store(tmp_path / "s.sqlite"))["store"]
    assert line.state == FAIL
    assert "--store" in line.do


def test_an_empty_file_is_a_store_without_records(tmp_path):
    (tmp_path / "s.sqlite").touch()
    assert by_check(installation_checks.check_store(tmp_path / "s.sqlite"))["store"].state == OK


def test_an_unwritable_cache_is_a_failure(capsys, tmp_path):
    (tmp_path / "file").touch()
    line = by_check(installation_checks.check_store(tmp_path / "file" / "below" / "s.sqlite"))["cache"]
    assert (line.state, "Not a directory" in line.found) == (FAIL, True)
    assert "--store" in line.do
    code, out, _ = invoke(capsys, "doctor", "--store", tmp_path / "file" / "below")
    assert code == exit_code.USAGE_ERROR
    assert "FAIL  cache" in out


def test_a_network_file_system_is_a_warning(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "file_system", lambda _: "nfs4")
    line = by_check(installation_checks.check_store(tmp_path / "s.sqlite"))["file system"]
    assert line.state == WARN
    assert "SQLite is not safe" in line.found
    assert "--store" in line.do


@pytest.mark.parametrize(("free", "state"), [(0, FAIL), (GIB, WARN), (9 * GIB, OK)])
def test_little_disk_space_is_a_warning_or_failure(monkeypatch, tmp_path, free, state):
    monkeypatch.setattr(installation_checks.shutil, "disk_usage", lambda _: type("Usage", (), {"free": free}))
    assert by_check(installation_checks.check_store(tmp_path / "s.sqlite"))["disk"].state == state


def test_every_line_that_is_not_ok_has_advice(monkeypatch, tmp_path):
    install_fakes(monkeypatch, tmp_path, torch="1 / 0")
    assert all(bool(line.do) == (line.state != OK) for line in installation_checks.run_checks(tmp_path / "s.sqlite"))


def test_the_home_folder_is_hidden(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    assert installation_checks.hide_home(Path("/home/ann/.cache/x")) == "~/.cache/x"
    assert installation_checks.hide_home(Path("/home/annabel/x")) == "/home/annabel/x"
    monkeypatch.setenv("HOME", "/")
    assert installation_checks.hide_home(Path("/x")) == "/x"
