"""A process that computes: it reads calls from its standard input and writes answers to its standard output, until that ends.

A process of its own, and not a fork or a pool, so that neither the caller's main module is imported again nor a killed
caller leaves orphans: the pipe's end ends the worker.
"""

from __future__ import annotations

import importlib
import os
import pickle
import signal
import traceback
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import IO, Any

from xferbench.problem import Problem


def main() -> None:
    """Serve until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What a library prints must not fall among the answers, nor what it reads be a call.
    questions, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    calls: SimpleQueue[bytes] = SimpleQueue()
    Thread(target=_listen, args=(questions, calls), daemon=True).start()
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    torch.backends.cudnn.deterministic = True  # bit-identity is promised per device
    while True:
        answer = _answer(*pickle.loads(calls.get()))
        with suppress(BrokenPipeError):
            send(answers, answer)


def _listen(questions: IO[bytes], calls: SimpleQueue[bytes]) -> None:
    """Take calls in; end the process in the middle of one when the caller is gone, since nobody waits for the answer."""
    while (call := _packed(questions)) is not None:
        calls.put(call)
    os._exit(0)


def _answer(function: str, arguments: tuple[Any, ...]) -> tuple[bool, Any]:
    """Whether a call went well, and its result or what is to be raised where it came from."""
    module, _, name = function.partition(":")
    try:
        return True, getattr(importlib.import_module(module), name)(*arguments)
    except Problem as problem:
        return False, problem
    except OSError as error:
        return False, OSError(str(error))  # plain, for its own class may not be known on the other side
    except Exception as error:  # noqa: BLE001 - likewise
        return False, RuntimeError("".join(traceback.format_exception(error)))


def send(pipe: IO[bytes], value: Any) -> None:
    """Write one value, its length first."""
    packed = pickle.dumps(value, protocol=5)
    pipe.write(len(packed).to_bytes(8, "little") + packed)
    pipe.flush()


def receive(pipe: IO[bytes]) -> Any:
    """Read one value; None where the other end is gone."""
    packed = _packed(pipe)
    return None if packed is None else pickle.loads(packed)


def _packed(pipe: IO[bytes]) -> bytes | None:
    header = pipe.read(8)
    size = int.from_bytes(header, "little")
    packed = pipe.read(size) if len(header) == 8 else b""
    return packed if packed and len(packed) == size else None


if __name__ == "__main__":
    main()
