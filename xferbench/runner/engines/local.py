"""Worker processes on this machine: one thread each on a CPU, or a single worker with an accelerator. Starts processes."""

from __future__ import annotations

import os
import signal
import subprocess
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from xferbench.core.errors import MEMORY_ADVICE
from xferbench.runner.engines.child_process import child_command, child_environment
from xferbench.runner.engines.worker_process import receive_value, send_value

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Call = Callable[..., Future[Any]]


# glibc returns large blocks to the system immediately, and every layer of a network allocates them again. This took a third
# of the time of a ResNet-18 on images of 224 px. Other C libraries ignore these variables.
MALLOC_VARIABLES = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**32)}
WORKER_SHUTDOWN_SECONDS = 5.0  # time for a worker without a caller to exit by itself


class WorkerDied(RuntimeError):  # noqa: N818 - the name says what happened
    """A worker process ended during a call: it was killed, ran out of memory, or crashed in native code."""


def available_cores() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start_process() -> subprocess.Popen[bytes]:
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    return subprocess.Popen(
        child_command("xferbench.runner.engines.worker_process"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=MALLOC_VARIABLES | child_environment() | threads,
        start_new_session=True,
    )


def _call(process: subprocess.Popen[bytes], function: str, arguments: tuple[Any, ...]) -> Any:
    """Return the worker's result, or None if the worker is dead."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        send_value(process.stdin, (function, arguments))
    except BrokenPipeError:
        return None
    return receive_value(process.stdout)


def _explain_exit(code: int) -> str:
    """Return why a process ended: the system kills the one that needs too much memory."""
    return f"killed, probably out of memory: {MEMORY_ADVICE}" if code == -signal.SIGKILL else "a native crash, or killed"


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Close a worker's pipes, which ends it, and wait for its exit."""
    assert process.stdin is not None
    assert process.stdout is not None
    with suppress(BrokenPipeError):
        process.stdin.close()
    process.stdout.close()
    try:
        process.wait(WORKER_SHUTDOWN_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def start_workers(count: int) -> Iterator[Call]:
    """Start worker processes and yield ``call("module:function", *arguments) -> Future``.

    The workers start immediately, so that they import torch while the caller prepares its work, and are killed at the end.

    Raises:
        WorkerDied: in the future, if the worker dies during the call.
    """
    idle: SimpleQueue[subprocess.Popen[bytes] | None] = SimpleQueue()  # None means that a dead worker needs a replacement
    alive: dict[int, subprocess.Popen[bytes]] = {}

    def start() -> subprocess.Popen[bytes]:
        process = _start_process()
        alive[process.pid] = process
        return process

    def run(function: str, *arguments: Any) -> Any:
        process, response = idle.get() or start(), None
        try:
            response = _call(process, function, arguments)
        finally:
            if response is None:
                _stop(alive.pop(process.pid))
                idle.put(None)
        if response is None:
            code = process.returncode
            raise WorkerDied(f"a worker process ended with exit status {code} ({_explain_exit(code)})")
        idle.put(process)
        succeeded, value = response
        if not succeeded:
            raise value
        return value

    pool = ThreadPoolExecutor(count)
    try:
        for _ in range(count):
            idle.put(start())
        yield lambda function, *arguments: pool.submit(run, function, *arguments)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list(alive.values()):
            process.kill()
        pool.shutdown(wait=True)
        for process in alive.values():
            process.kill()
            _stop(process)
