"""Runs that are killed at random moments: what a resumed run finds equals the undisturbed run, bit for bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from test_datasets import make_npz
from test_resume import SUITE

from xferbench.report import files

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")
KILLS = 1  # at factor 1: each takes three runs
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
CODES = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129, signal.SIGKILL: -signal.SIGKILL}


def restore_signals():
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def start(folder, output):
    arguments = ["run", folder / "suite.toml", "-j", 1, "--device", "cpu", "--store", folder / "store.sqlite", "-o", output]
    return subprocess.Popen(
        [sys.executable, "-m", "xferbench", *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=restore_signals,
    )


def results(output):
    """Return the findings and, for each trial, its predictions as bytes."""
    run = files.read_run(output)
    records = {cell.record.key: cell.record for cell in run.cells}
    predictions = {
        key: [getattr(record.predictions, name).tobytes() for name in ("example", "predicted", "p_true", "probabilities")]
        for key, record in records.items()
        if record.predictions is not None
    }
    return json.loads((output / "results.json").read_text())["findings"], predictions


def children(process):
    try:
        return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    except OSError:
        return []


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Return a folder with a suite, its undisturbed results, and the seconds of that run."""
    folder = tmp_path_factory.mktemp("killed")
    make_npz(folder / "d.npz", train=80, test=40)
    (folder / "suite.toml").write_text(SUITE)
    begin = time.monotonic()
    _, err = (process := start(folder, folder / "out")).communicate(timeout=600)
    assert process.returncode in {0, 1}, err
    expected = results(folder / "out")
    for path in (folder / "out", folder / "store.sqlite.cache"):
        shutil.rmtree(path)
    (folder / "store.sqlite").unlink()
    return folder, expected, time.monotonic() - begin


def test_a_killed_run_resumes_to_the_same_bits(undisturbed, tmp_path, fuzz_factor, fuzz_rng, record_property):
    (folder, expected, seconds), kills, resumed_runs = undisturbed, max(KILLS, fuzz_factor), 0
    for number in range(kills):
        process = start(folder, tmp_path / "out")
        time.sleep(fuzz_rng.uniform(0.1, 1.0) * seconds)
        target, how = fuzz_rng.choice(["parent", "worker", "all"]), fuzz_rng.choice(SIGNALS)
        workers = children(process)
        victims = {"parent": [process.pid], "worker": workers, "all": [process.pid, *workers]}[target]
        for pid in victims:
            try:
                os.kill(pid, how)
            except ProcessLookupError:
                continue
        _, err = process.communicate(timeout=600)
        assert "Traceback" not in err, (number, target, how)
        # A run may have ended before, or its worker may have died: 0, 1 or 3. Before Python handles signals, they just kill.
        assert process.returncode in {0, 1, 3, CODES[how], -how}, (number, target, how, err)
        end = time.monotonic() + 30
        while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < end:
            time.sleep(0.1)
        assert not any(Path(f"/proc/{pid}").exists() for pid in workers), "a worker outlives its caller"
        if fuzz_rng.random() < 0.3 or number == kills - 1:
            _, err = (resumed := start(folder, tmp_path / "out")).communicate(timeout=600)
            assert resumed.returncode in {0, 1}, (number, target, how, err)
            assert results(tmp_path / "out") == expected, (number, target, how)
            resumed_runs += 1
            shutil.rmtree(tmp_path / "out")
            shutil.rmtree(folder / "store.sqlite.cache")
            (folder / "store.sqlite").unlink()
    record_property("inputs", kills)
    record_property("resumed", resumed_runs)
