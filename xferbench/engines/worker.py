"""A process that computes: it reads calls from its standard input and writes answers to its standard output, until that ends.

A process of its own, and not a fork or a pool, so that neither the caller's main module is imported again nor a killed
caller leaves orphans: the pipe's end ends the worker.
"""

from __future__ import annotations

import importlib
import os
import pickle
import signal
import sys
import traceback
from typing import IO, Any

from xferbench.problem import Problem


def main() -> None:
    """Serve until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not fall among the answers
    threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
    import torch

    torch.set_num_threads(threads)
    while (call := receive(sys.stdin.buffer)) is not None:
        function, arguments = call
        module, _, name = function.partition(":")
        try:
            answer = (True, getattr(importlib.import_module(module), name)(*arguments))
        except Problem as problem:
            answer = (False, problem)
        except OSError as error:
            answer = (False, error)
        except Exception as error:  # noqa: BLE001 - it is raised again where the call came from
            answer = (False, RuntimeError("".join(traceback.format_exception(error))))
        send(answers, answer)


def send(pipe: IO[bytes], value: Any) -> None:
    """Write one value, its length first."""
    packed = pickle.dumps(value, protocol=5)
    pipe.write(len(packed).to_bytes(8, "little") + packed)
    pipe.flush()


def receive(pipe: IO[bytes]) -> Any:
    """Read one value; None where the other end is gone."""
    header = pipe.read(8)
    if len(header) < 8:
        return None
    size = int.from_bytes(header, "little")
    packed = pipe.read(size)
    return pickle.loads(packed) if len(packed) == size else None


if __name__ == "__main__":
    main()
