from __future__ import annotations

import errno
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import Future
from contextlib import contextmanager
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from factory import make_run
from invoke import invoke, invoke_process, invoke_without_reader, make_suite

from xferbench.analysis import exit_code
from xferbench.core import progress
from xferbench.core.errors import UserError
from xferbench.core.run import Finding, run_to_json
from xferbench.report import files, html
from xferbench.runner import discovery, execute
from xferbench.runner import run as runner

pytestmark = pytest.mark.usefixtures("isolated")


@pytest.mark.parametrize(
    ("verdicts", "fail_on", "code"),
    [
        (["PASS"], "fail", 0),
        (["PASS", "FAIL"], "fail", 1),
        (["PASS", "FAIL", "ERROR"], "fail", 3),
        (["PASS", "INCONCLUSIVE"], "fail", 0),
        (["PASS", "INCONCLUSIVE"], "inconclusive", 4),
        (["SKIPPED", "INFO"], "fail", 5),
    ],
)
def test_verdicts_determine_the_exit_code(monkeypatch, capsys, tmp_path, verdicts, fail_on, code):
    findings = tuple(
        Finding(id=f"p/{index}", plugin="p", contrast="harm", verdict=verdict) for index, verdict in enumerate(verdicts)
    )
    monkeypatch.setattr(runner, "run", lambda *_, **__: make_run(seeds=2, examples=20, findings=findings))
    assert invoke(capsys, "run", "quick", "-o", tmp_path, "--fail-on", fail_on)[0] == code


def test_json_is_the_only_standard_output(monkeypatch, capsys, tmp_path):
    run = make_run(seeds=2, examples=20)

    def write_run(*_, output, on_progress, **__):
        on_progress(progress.Progress(stage="reading", done=0, running=1, total=1, reused=0, left=None))
        files.write_run(run, output)
        return run

    monkeypatch.setattr(runner, "run", write_run)
    monkeypatch.setattr(html, "render", lambda *_: "<!doctype html>")
    code, out, err = invoke(capsys, "run", "quick", "-o", tmp_path / "out", "--format", "json")
    assert code == exit_code.FAILED
    assert json.loads(out) == run_to_json(run)
    assert str(tmp_path / "out" / "report.html") in err


@pytest.mark.parametrize(
    ("option", "fragments"),
    [
        ("-o", ["cannot be written", "Not a directory", "--output"]),
        ("--store", ["the store cannot be opened", "--store"]),
    ],
)
def test_unwritable_paths_are_refused(capsys, tmp_path, option, fragments):
    suite = make_suite(tmp_path)
    paths = {"-o": tmp_path / "out", "--store": tmp_path / "store.sqlite"} | {option: tmp_path / "noise.npz" / "below"}
    code, out, err = invoke(capsys, "run", suite, *(str(argument) for pair in paths.items() for argument in pair))
    assert (code, out) == (exit_code.USAGE_ERROR, "")
    assert all(fragment in err for fragment in fragments), err


def test_file_that_is_not_a_store_is_refused_and_unchanged(capsys, tmp_path):
    suite = make_suite(tmp_path)
    before = suite.read_bytes()
    code, _, err = invoke(capsys, "run", suite, "-o", tmp_path / "out", "--store", suite)
    assert code == exit_code.USAGE_ERROR
    assert "the store cannot be used\n  found: file is not a database" in err
    assert suite.read_bytes() == before


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """Return the folder and the process of a finished run."""
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("finished")
    return folder, invoke_process("run", make_suite(folder), "-o", folder / "out", "--store", folder / "store.sqlite", "-j", 1)


def results(folder):
    return json.loads((folder / "results.json").read_text())


def test_run_prints_and_writes_its_results(finished_run):
    folder, process = finished_run
    assert process.returncode in {0, 1}, process.stderr
    assert "Traceback" not in process.stderr
    assert "negative-transfer" in process.stdout
    assert results(folder / "out")["cost"]["trials"]["run"] > 0


def rerun_arguments(folder, *options):
    return ["run", folder / "noise.toml", "--store", folder / "store.sqlite", "-j", 1, *options]


def test_second_run_reuses_all_records(finished_run, capsys, tmp_path):
    folder, process = finished_run
    code, out, _ = invoke(capsys, *rerun_arguments(folder, "-o", tmp_path / "out", "--format", "json"))
    first, second = results(folder / "out"), json.loads(out)
    assert code == process.returncode
    assert second["findings"] == first["findings"]
    assert second["cost"]["trials"]["run"] == second["cost"]["fits"]["run"] == 0
    assert second == results(tmp_path / "out")


def test_dry_run_counts_stored_trials(finished_run, capsys):
    folder, _ = finished_run
    code, out, _ = invoke(capsys, *rerun_arguments(folder, "--dry-run", "--format", "json"))
    counts = json.loads(out)["last"]
    assert code == 0
    assert counts["trials in the store"] == counts["trials unique"]
    code, out, _ = invoke(capsys, *rerun_arguments(folder, "--dry-run"))
    assert code == 0
    assert "smallest margin" in out


def test_closed_pipe_keeps_the_exit_code(finished_run, tmp_path):
    folder, process = finished_run
    rerun = invoke_without_reader(*rerun_arguments(folder, "-o", tmp_path / "out", "--format", "json"))
    assert rerun.returncode == process.returncode
    assert "Traceback" not in rerun.stderr
    assert "Exception ignored" not in rerun.stderr


PLUGIN_WITH_BROKEN_CURE = """
from dataclasses import replace
from xferbench.plugins.negative_transfer import plugin as original
plugin = replace(original, id="broken", cure=lambda *_: 1 / 0)
"""


BROKEN_PLUGINS = [("cannot be imported", "1 / 0"), ("ZeroDivisionError", PLUGIN_WITH_BROKEN_CURE)]


@pytest.mark.parametrize(("message", "source"), BROKEN_PLUGINS)
def test_broken_plugin_is_an_error_and_the_others_run(finished_run, capsys, monkeypatch, tmp_path, message, source):
    folder, _ = finished_run
    (tmp_path / "of_a_test.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "of_a_test", raising=False)
    entries = [entry for entry in discovery.entry_points(group=discovery.PLUGIN_GROUP) if entry.name == "negative-transfer"]
    broken = EntryPoint(name="broken", value="of_a_test:plugin", group=discovery.PLUGIN_GROUP)
    monkeypatch.setattr(discovery, "entry_points", lambda **_: [*entries, broken])
    suite = make_suite(tmp_path, plugins='["broken", "negative-transfer"]')
    arguments = ["run", suite, "--store", folder / "store.sqlite", "-j", 1]
    code, out, err = invoke(capsys, *arguments, "-o", tmp_path / "out", "--format", "json")
    verdicts = {finding["plugin"]: finding for finding in json.loads(out)["findings"]}
    assert code == exit_code.CRASHED
    assert "Traceback" not in err
    assert verdicts["broken"]["verdict"] == "ERROR"
    assert message in verdicts["broken"]["reason"]
    assert verdicts["negative-transfer"]["verdict"] in {"PASS", "FAIL", "INCONCLUSIVE"}
    code, out, _ = invoke(capsys, *arguments, "--dry-run")
    assert code == 0
    assert "broken: skipped, it crashes: " in out


def test_unwritable_report_keeps_the_store(finished_run, capsys, monkeypatch, tmp_path):
    folder, process = finished_run

    def fail_on_full_disk(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail_on_full_disk)
    code, _, err = invoke(capsys, *rerun_arguments(folder, "-o", tmp_path / "out"))
    assert code == exit_code.USAGE_ERROR
    assert "cannot be written\n  found: No space left on device" in err
    monkeypatch.undo()
    assert invoke(capsys, *rerun_arguments(folder, "-o", tmp_path / "out"))[0] == process.returncode


class CodeRunningPickle:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_pickle_that_runs_code_is_refused(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"conv1.weight": CodeRunningPickle(tmp_path / "it ran")}, tmp_path / "evil.pth")
    suite = make_suite(tmp_path, backbone='weights = "evil.pth"')
    process = invoke_process("run", suite, "-o", tmp_path / "out", "-j", 1)
    assert process.returncode == exit_code.USAGE_ERROR, process.stderr
    assert "noise.toml: " in process.stderr
    assert "evil.pth: refused, since opening it in full would run code" in process.stderr
    assert "Traceback" not in process.stderr
    assert not (tmp_path / "it ran").exists()


@pytest.mark.parametrize(
    ("error", "code", "fragments"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/cache/images.npy"), 2, ["/cache/images.npy", "free some space"]),
        (UserError("the backbone has no head", do="name it"), 2, ["noise.toml: the backbone has no head\n  do: name it"]),
        (RuntimeError("Traceback:\n  line\nKeyError: 'fc'"), 3, ["crashed: RuntimeError: KeyError: 'fc'"]),
    ],
)
def test_errors_of_a_worker_are_reported(monkeypatch, capsys, tmp_path, error, code, fragments):
    pytest.importorskip("torch")

    @contextmanager
    def workers(_):
        failed_call = Future()
        failed_call.set_exception(error)
        yield lambda *_: failed_call

    monkeypatch.setattr(execute.local, "start_workers", workers)
    arguments = ["run", make_suite(tmp_path), "-o", tmp_path / "out", "--store", tmp_path / "store.sqlite", "--device", "cpu"]
    actual_code, out, err = invoke(capsys, *arguments)
    assert (actual_code, out) == (code, "")
    assert all(fragment in err for fragment in fragments), err
    assert "Traceback" not in err


def restore_interrupts():
    """Let the process receive interrupts, which a background process of a shell ignores."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.mark.skipif(sys.platform == "win32", reason="signals need POSIX")
@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted_run_keeps_records_and_leaves_no_worker(tmp_path, signal_number):
    pytest.importorskip("torch")
    suite, store = make_suite(tmp_path, looks="[2, 2000]"), tmp_path / "store.sqlite"
    command = [sys.executable, "-m", "xferbench", "run", suite, "-o", tmp_path / "out", "--store", store, "-j", "1"]
    process = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True, preexec_fn=restore_interrupts)
    deadline = time.monotonic() + 100
    while (record_count := count_records(store)) < 3 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.1)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split() if sys.platform == "linux" else []
    process.send_signal(signal_number)
    _, err = process.communicate(timeout=60)
    assert record_count >= 3, err
    assert process.returncode == exit_code.SIGNALLED + signal_number
    assert "Traceback" not in err
    kept = count_records(store)
    assert kept >= record_count
    by = "" if signal_number == signal.SIGINT else f" by {signal_number.name}"
    assert (
        f"xferbench: interrupted{by}; {kept} finished results are kept\n  do: to continue, run xferbench run {suite} -o " in err
    )
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]


def count_records(store):
    if not store.is_file():
        return 0
    db = sqlite3.connect(store, timeout=60)
    try:
        return db.execute("select count(*) from records").fetchone()[0]
    except sqlite3.OperationalError:
        return 0  # the table does not exist yet
    finally:
        db.close()
