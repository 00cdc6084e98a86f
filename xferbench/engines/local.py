"""Worker processes on this machine, of one thread each on a CPU; one where there is an accelerator."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from xferbench.engines.worker import receive, send

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Call = Callable[..., Future[Any]]


class WorkerDied(RuntimeError):  # noqa: N818 - what happened, not whose error it was
    """A worker process ended in the middle of a call: killed, out of memory, or crashed in native code."""


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _started() -> subprocess.Popen[bytes]:
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    command = [sys.executable, "-m", "xferbench.engines.worker"]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | threads, start_new_session=True
    )


@contextmanager
def workers(count: int) -> Iterator[Call]:
    """Start processes; yields ``call("module:function", *arguments) -> Future``. A call whose worker dies raises WorkerDied.

    They are started at once, so that importing torch runs beside whatever comes first, and killed at the end.
    """
    idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
    alive = {process.pid: process for process in (_started() for _ in range(count))}
    for process in alive.values():
        idle.put(process)

    def carried_out(function: str, *arguments: Any) -> Any:
        process = idle.get()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            send(process.stdin, (function, arguments))
            answer = receive(process.stdout)
        except BrokenPipeError:
            answer = None
        if answer is None:
            code = process.wait()
            del alive[process.pid]
            fresh = _started()
            alive[fresh.pid] = fresh
            idle.put(fresh)
            raise WorkerDied(f"a worker process ended with exit status {code} (out of memory, killed, or a native crash)")
        idle.put(process)
        good, value = answer
        if not good:
            raise value
        return value

    pool = ThreadPoolExecutor(count)
    try:
        yield lambda function, *arguments: pool.submit(carried_out, function, *arguments)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list(alive.values()):
            process.kill()
            process.wait()
        pool.shutdown(wait=True)
