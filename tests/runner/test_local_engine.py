"""Worker processes return results, report deaths, and never outlive their caller.

The workers start with a fake torch, which is fast; tests/lab/test_run_trials.py uses the real torch.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from xferbench.core.errors import UserError
from xferbench.runner.engines import local, worker_process

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads processes under /proc")

FAKE_TORCH = """
class backends:
    class cudnn:
        deterministic = False


def set_num_threads(count):
    pass
"""


@pytest.fixture(autouse=True)
def fake_torch(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text(FAKE_TORCH)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def is_running(pid):
    """Return whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(pids, seconds=10.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end and any(map(is_running, pids)):
        time.sleep(0.02)
    return not any(map(is_running, pids))


def test_results_come_from_parallel_processes():
    with local.start_workers(2) as call:
        futures = [call("time:sleep", 0.3), call("time:sleep", 0.3)]
        start = time.monotonic()
        assert [request.result() for request in futures] == [None, None]
        assert time.monotonic() - start < 5
        pids = {call("os:getpid").result() for _ in range(8)}
        assert len(pids) <= 2
        assert os.getpid() not in pids
        assert [call("os:getenv", name).result() for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")] == ["1", "1"]
    assert wait_until_gone(pids, 1)


def test_large_values_pass_the_pipe_in_both_directions():
    with local.start_workers(1) as call:
        load = os.urandom(20_000_000)
        assert call("copy:copy", load).result() == load


def test_an_exception_of_a_call_is_raised_in_the_caller():
    with local.start_workers(1) as call:
        with pytest.raises(UserError, match="unknown kind") as error:
            call("xferbench.data.inputs:split_spec", "cloud:x").result()
        assert error.value.found == "cloud:x"
        with pytest.raises(OSError, match=r"No such file.*/no/such"):
            call("os:stat", "/no/such").result()
        with pytest.raises(RuntimeError, match="ValueError"):
            call("math:sqrt", -1.0).result()
        with pytest.raises(RuntimeError, match="no_such_module"):
            call("no_such_module:f").result()
        assert call("math:sqrt", 4.0).result() == 2.0


def test_an_exception_class_of_the_worker_becomes_a_built_in_one(fake_torch):
    (fake_torch / "peculiar.py").write_text(
        "class Odd(OSError):\n    def __init__(self, a, b): super().__init__(a + b)\n\n\ndef fail(): raise Odd('no ', 'room')\n"
    )
    with local.start_workers(1) as call:
        with pytest.raises(OSError, match="no room"):
            call("peculiar:fail").result()
        assert call("math:sqrt", 4.0).result() == 2.0


@pytest.mark.parametrize(("function", "argument", "status"), [("os:_exit", 7, 7), ("signal:raise_signal", signal.SIGKILL, -9)])
def test_a_worker_that_dies_raises_and_the_next_call_works(function, argument, status):
    with local.start_workers(1) as call:
        first = call("os:getpid").result()
        with pytest.raises(local.WorkerDied, match=f"exit status {status} "):
            call(function, argument).result()
        assert call("os:getpid").result() != first


@pytest.fixture
def started_processes(monkeypatch):
    """Return the list of processes that start_workers() starts."""
    processes, start_process = [], local._start_process
    monkeypatch.setattr(local, "_start_process", lambda: processes.append(start_process()) or processes[-1])
    return processes


def test_a_killed_worker_fails_only_its_own_call(started_processes):
    with local.start_workers(2) as call:
        killed_call, surviving_call = call("time:sleep", 60), call("time:sleep", 1)
        started_processes[0].kill()
        with pytest.raises(local.WorkerDied, match="-9"):
            killed_call.result(timeout=20)
        assert surviving_call.result() is None
        assert [call("math:sqrt", 9.0).result() for _ in range(4)] == [3.0] * 4
    assert len(started_processes) == 3


def test_a_value_that_cannot_be_sent_fails_only_its_own_call(fake_torch):
    (fake_torch / "stranger.py").write_text("class Thing: pass\n")
    with local.start_workers(1) as call:
        with pytest.raises((AttributeError, TypeError, OSError), match=r"pickle|local object"):
            call("copy:copy", lambda: None).result()
        with pytest.raises(ModuleNotFoundError, match="stranger"):
            call("stranger:Thing").result()
        with pytest.raises(local.WorkerDied):
            call("builtins:memoryview", b"x").result()
        assert call("math:sqrt", 4.0).result() == 2.0


def test_output_and_input_of_a_library_do_not_disturb_the_calls():
    with local.start_workers(1) as call:
        call("builtins:print", "x" * 100_000).result()
        assert call("os:write", 1, b"raw").result() == 3
        assert call("os:system", "echo from a child").result() == 0
        assert call("os:read", 0, 10).result() == b""
        assert call("os:system", "cat").result() == 0
        assert call("math:sqrt", 4.0).result() == 2.0


def _interrupt_workers(futures):
    with local.start_workers(2) as call:
        futures.extend(call("time:sleep", 60) for _ in range(5))
        raise KeyboardInterrupt


def test_leaving_early_ends_busy_workers_and_drops_waiting_calls(started_processes):
    futures, start = [], time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        _interrupt_workers(futures)
    assert time.monotonic() - start < 20
    assert all(process.returncode is not None for process in started_processes)
    assert all(request.done() for request in futures)


CALLER = """
import sys, time
from xferbench.runner.engines import local
with local.start_workers(2) as call:
    pids = set()
    while len(pids) < 2:
        pids |= {one.result() for one in [call("os:getpid"), call("os:getpid")]}
    call("time:sleep", 60)
    print(*pids, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def caller():
    process = subprocess.Popen(
        [sys.executable, "-c", CALLER],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A background process of a shell ignores interrupts; this one must receive them.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    timer = threading.Timer(60, process.kill)
    timer.start()
    with process:
        yield SimpleNamespace(process=process, workers=[int(pid) for pid in process.stdout.readline().split()])
        process.kill()
    timer.cancel()


def test_workers_end_when_their_caller_is_killed(caller):
    assert len(caller.workers) == 2
    assert all(map(is_running, caller.workers))
    caller.process.kill()
    assert wait_until_gone(caller.workers, 5)
    assert caller.process.stderr.read() == ""


def test_workers_ignore_an_interrupt_from_the_keyboard(caller):
    for pid in caller.workers:
        os.kill(pid, signal.SIGINT)  # as a terminal sends it to a process in its group
    os.killpg(caller.process.pid, signal.SIGINT)
    _, errors = caller.process.communicate(timeout=30)
    assert errors.count("Traceback") == 1
    assert errors.strip().endswith("KeyboardInterrupt")
    assert wait_until_gone(caller.workers, 1)


def test_a_truncated_message_is_none(tmp_path):
    file = tmp_path / "pipe"
    with file.open("wb") as pipe:
        worker_process.send_value(pipe, {"a": 1})
    content = file.read_bytes()
    with file.open("rb") as pipe:
        assert worker_process.receive_value(pipe) == {"a": 1}
        assert worker_process.receive_value(pipe) is None
    for length in (0, 5, 8, len(content) - 1):
        file.write_bytes(content[:length])
        with file.open("rb") as pipe:
            assert worker_process.receive_value(pipe) is None


def test_there_is_at_least_one_core():
    assert local.available_cores() >= 1
