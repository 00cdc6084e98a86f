"""Worker processes: their results, their deaths, and that none survives its caller.

The workers start with a stand-in for torch, so that they are ready at once; tests/lab/test_run_trials.py uses the real torch.
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

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes under /proc")

STAND_IN = """
class backends:
    class cudnn:
        deterministic = False


def set_num_threads(count):
    pass
"""


@pytest.fixture(autouse=True)
def stand_in(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def is_there(pid):
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone_soon(pids, seconds=10.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end and any(map(is_there, pids)):
        time.sleep(0.02)
    return not any(map(is_there, pids))


def test_answers_come_back_from_processes_side_by_side():
    with local.start_workers(2) as call:
        futures = [call("time:sleep", 0.3), call("time:sleep", 0.3)]
        begun = time.monotonic()
        assert [request.result() for request in futures] == [None, None]
        assert time.monotonic() - begun < 5
        pids = {call("os:getpid").result() for _ in range(8)}
        assert len(pids) <= 2
        assert os.getpid() not in pids
        assert [call("os:getenv", name).result() for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")] == ["1", "1"]
    assert gone_soon(pids, 1)


def test_much_goes_through_the_pipe_in_both_directions():
    with local.start_workers(1) as call:
        load = os.urandom(20_000_000)
        assert call("copy:copy", load).result() == load


def test_a_calls_exception_is_raised_where_it_came_from():
    with local.start_workers(1) as call:
        with pytest.raises(UserError, match="unknown kind") as caught:
            call("xferbench.data.inputs:split_spec", "cloud:x").result()
        assert caught.value.found == "cloud:x"
        with pytest.raises(OSError, match=r"No such file.*/no/such"):
            call("os:stat", "/no/such").result()
        with pytest.raises(RuntimeError, match="ValueError"):
            call("math:sqrt", -1.0).result()
        with pytest.raises(RuntimeError, match="no_such_module"):
            call("no_such_module:f").result()
        assert call("math:sqrt", 4.0).result() == 2.0


def test_an_exception_that_only_the_worker_knows_comes_back_as_a_plain_one(stand_in):
    (stand_in / "peculiar.py").write_text(
        "class Odd(OSError):\n    def __init__(self, a, b): super().__init__(a + b)\n\n\ndef fail(): raise Odd('no ', 'room')\n"
    )
    with local.start_workers(1) as call:
        with pytest.raises(OSError, match="no room"):
            call("peculiar:fail").result()
        assert call("math:sqrt", 4.0).result() == 2.0


@pytest.mark.parametrize(("function", "argument", "status"), [("os:_exit", 7, 7), ("signal:raise_signal", signal.SIGKILL, -9)])
def test_a_worker_that_dies_in_a_call_is_told_and_the_next_call_works(function, argument, status):
    with local.start_workers(1) as call:
        first = call("os:getpid").result()
        with pytest.raises(local.WorkerDied, match=f"exit status {status} "):
            call(function, argument).result()
        assert call("os:getpid").result() != first


@pytest.fixture
def started(monkeypatch):
    """The processes that workers() starts, in their order."""
    found, real = [], local._start_process
    monkeypatch.setattr(local, "_start_process", lambda: found.append(real()) or found[-1])
    return found


def test_a_worker_that_is_killed_from_outside_takes_nobody_with_it(started):
    with local.start_workers(2) as call:
        doomed, other = call("time:sleep", 60), call("time:sleep", 1)
        started[0].kill()
        with pytest.raises(local.WorkerDied, match="-9"):
            doomed.result(timeout=20)
        assert other.result() is None
        assert [call("math:sqrt", 9.0).result() for _ in range(4)] == [3.0] * 4
    assert len(started) == 3


def test_what_cannot_be_sent_or_understood_costs_one_call_and_no_more(stand_in):
    (stand_in / "stranger.py").write_text("class Thing: pass\n")
    with local.start_workers(1) as call:
        with pytest.raises((AttributeError, TypeError, OSError), match=r"pickle|local object"):
            call("copy:copy", lambda: None).result()
        with pytest.raises(ModuleNotFoundError, match="stranger"):
            call("stranger:Thing").result()
        with pytest.raises(local.WorkerDied):
            call("builtins:memoryview", b"x").result()
        assert call("math:sqrt", 4.0).result() == 2.0


def test_what_a_library_prints_or_reads_does_not_meet_the_calls():
    with local.start_workers(1) as call:
        call("builtins:print", "x" * 100_000).result()
        assert call("os:write", 1, b"raw").result() == 3
        assert call("os:system", "echo from a child").result() == 0
        assert call("os:read", 0, 10).result() == b""
        assert call("os:system", "cat").result() == 0
        assert call("math:sqrt", 4.0).result() == 2.0


def _left_early(futures):
    with local.start_workers(2) as call:
        futures.extend(call("time:sleep", 60) for _ in range(5))
        raise KeyboardInterrupt


def test_leaving_early_ends_workers_in_the_middle_of_calls_and_drops_what_waits(started):
    futures, begun = [], time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        _left_early(futures)
    assert time.monotonic() - begun < 20
    assert all(process.returncode is not None for process in started)
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
        # A process started in the background by a shell ignores the keyboard; this one is to hear it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    timer = threading.Timer(60, process.kill)
    timer.start()
    with process:
        yield SimpleNamespace(process=process, workers=[int(pid) for pid in process.stdout.readline().split()])
        process.kill()
    timer.cancel()


def test_workers_end_when_their_caller_is_killed_busy_or_idle(caller):
    assert len(caller.workers) == 2
    assert all(map(is_there, caller.workers))
    caller.process.kill()
    assert gone_soon(caller.workers, 5)
    assert caller.process.stderr.read() == ""


def test_an_interrupt_from_the_keyboard_is_the_callers_alone(caller):
    for pid in caller.workers:
        os.kill(pid, signal.SIGINT)  # as a terminal would send it to them, were they in its group
    os.killpg(caller.process.pid, signal.SIGINT)
    _, errors = caller.process.communicate(timeout=30)
    assert errors.count("Traceback") == 1
    assert errors.strip().endswith("KeyboardInterrupt")
    assert gone_soon(caller.workers, 1)


def test_half_a_message_is_no_message(tmp_path):
    file = tmp_path / "pipe"
    with file.open("wb") as pipe:
        worker_process.send_value(pipe, {"a": 1})
    whole = file.read_bytes()
    with file.open("rb") as pipe:
        assert worker_process.receive_value(pipe) == {"a": 1}
        assert worker_process.receive_value(pipe) is None
    for cut in (0, 5, 8, len(whole) - 1):
        file.write_bytes(whole[:cut])
        with file.open("rb") as pipe:
            assert worker_process.receive_value(pipe) is None


def test_there_is_at_least_one_core():
    assert local.available_cores() >= 1
