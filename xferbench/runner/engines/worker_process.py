"""A worker process: it reads calls from standard input and writes results to standard output. Imports torch.

It is a separate process instead of a fork or a pool. The caller's main module is therefore not imported again, and a killed
caller leaves no orphans: the end of the pipe ends the worker.
"""

from __future__ import annotations

import os
import pickle
import signal
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import IO, Any

from xferbench.core.errors import UserError
from xferbench.core.guarded_output import guard_output
from xferbench.runner.engines.named_call import CallError, call_by_name


def main() -> None:
    """Serve calls until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A library must neither print into the results nor read a call.
    requests, results = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    with guard_output():  # a library's warning may contain a name too
        _serve(requests, results)


def _serve(requests: IO[bytes], results: IO[bytes]) -> None:
    calls: SimpleQueue[bytes] = SimpleQueue()
    Thread(target=_listen, args=(requests, calls), daemon=True).start()
    import_module("xferbench.lab.worker.determinism").configure(threads=int(os.environ.get("OMP_NUM_THREADS", "1")))
    while True:
        result = _run_call(*pickle.loads(calls.get()))
        with suppress(BrokenPipeError):
            send_value(results, result)


def _listen(requests: IO[bytes], calls: SimpleQueue[bytes]) -> None:
    """Read calls; end the process, even during a call, if the caller is gone, because the result is not needed."""
    while (call := _read_bytes(requests)) is not None:
        calls.put(call)
    os._exit(0)


def _run_call(function: str, arguments: tuple[Any, ...]) -> tuple[bool, Any]:
    """Return whether a call succeeded, and its result or the exception to raise in the caller."""
    try:
        return True, call_by_name(function, *arguments)
    except (UserError, OSError, CallError) as problem:
        return False, problem


def send_value(pipe: IO[bytes], value: Any) -> None:
    """Write one value, preceded by its length."""
    packed = pickle.dumps(value, protocol=5)
    pipe.write(len(packed).to_bytes(8, "little") + packed)
    pipe.flush()


def receive_value(pipe: IO[bytes]) -> Any:
    """Read one value; None if the other end is closed."""
    packed = _read_bytes(pipe)
    return None if packed is None else pickle.loads(packed)


def _read_bytes(pipe: IO[bytes]) -> bytes | None:
    header = pipe.read(8)
    size = int.from_bytes(header, "little")
    packed = pipe.read(size) if len(header) == 8 else b""
    return packed if packed and len(packed) == size else None


if __name__ == "__main__":
    main()
