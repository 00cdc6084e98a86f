"""Worker processes on this machine, of one thread each on a CPU; one where there is an accelerator."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from xferbench.engines.worker import receive, send

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Call = Callable[..., Future[Any]]


# glibc gives large blocks back to the system at once, and every layer of a network asks for them anew: a third of the time
# of a ResNet-18 on images of 224 px went into that. Elsewhere these words mean nothing.
MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**32)}
PATIENCE = 5.0  # seconds that a worker without a caller has to end by itself


class WorkerDied(RuntimeError):  # noqa: N818 - what happened, not whose error it was
    """A worker process ended in the middle of a call: killed, out of memory, or crashed in native code."""


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _started() -> subprocess.Popen[bytes]:
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    command = [sys.executable, "-m", "xferbench.engines.worker"]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=MEMORY | os.environ | threads, start_new_session=True
    )


def _asked(process: subprocess.Popen[bytes], function: str, arguments: tuple[Any, ...]) -> Any:
    """The worker's answer; None where it is gone."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        send(process.stdin, (function, arguments))
    except BrokenPipeError:
        return None
    return receive(process.stdout)


def _ended(process: subprocess.Popen[bytes]) -> None:
    """Close a worker's pipes, which ends it, and wait for it."""
    assert process.stdin is not None
    assert process.stdout is not None
    with suppress(BrokenPipeError):
        process.stdin.close()
    process.stdout.close()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def workers(count: int) -> Iterator[Call]:
    """Start processes; yields ``call("module:function", *arguments) -> Future``. A call whose worker dies raises WorkerDied.

    They are started at once, so that importing torch runs beside whatever comes first, and killed at the end.
    """
    idle: SimpleQueue[subprocess.Popen[bytes] | None] = SimpleQueue()  # None: one that is to be started in a dead one's place
    alive: dict[int, subprocess.Popen[bytes]] = {}

    def begun() -> subprocess.Popen[bytes]:
        process = _started()
        alive[process.pid] = process
        return process

    def carried_out(function: str, *arguments: Any) -> Any:
        process, answer = idle.get() or begun(), None
        try:
            answer = _asked(process, function, arguments)
        finally:
            if answer is None:
                _ended(alive.pop(process.pid))
                idle.put(None)
        if answer is None:
            code = process.returncode
            raise WorkerDied(f"a worker process ended with exit status {code} (out of memory, killed, or a native crash)")
        idle.put(process)
        good, value = answer
        if not good:
            raise value
        return value

    pool = ThreadPoolExecutor(count)
    try:
        for _ in range(count):
            idle.put(begun())
        yield lambda function, *arguments: pool.submit(carried_out, function, *arguments)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list(alive.values()):
            process.kill()
        pool.shutdown(wait=True)
        for process in alive.values():
            process.kill()
            _ended(process)
