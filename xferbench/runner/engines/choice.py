"""Where the work of a run is computed: in worker processes on this machine, or by an executor of the user."""

from __future__ import annotations

from concurrent.futures import Executor
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

from xferbench.core.errors import UserError
from xferbench.data.user_code import CALLABLE_PATTERN
from xferbench.runner.engines import local
from xferbench.runner.engines.named_call import call_by_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future

    Call = Callable[..., Future[Any]]

LOCAL = "local"


@contextmanager
def open_engine(engine: str | Executor, workers: int) -> Iterator[Call]:
    """Yield ``call("module:function", *arguments) -> Future``.

    An executor that a factory made is shut down at the end; one that the caller gave stays open.

    Args:
        engine: ``local``, ``python:module:factory`` where the factory returns an executor, or an executor.
        workers: number of worker processes on this machine.

    Raises:
        UserError: if there is no such engine.
    """
    if isinstance(engine, Executor):
        yield _call_of(engine)
    elif engine == LOCAL:
        with local.start_workers(workers) as call:
            yield call
    else:
        with _make_executor(engine) as executor:
            yield _call_of(executor)


def _call_of(executor: Executor) -> Call:
    return lambda function, *arguments: executor.submit(call_by_name, function, *arguments)


def _make_executor(engine: str) -> Executor:
    """Return the executor of ``python:module:factory``. The module is searched on Python's path."""
    match = CALLABLE_PATTERN.fullmatch(engine)
    if match is None:
        raise UserError("--engine: unknown", found=engine, expected=f"{LOCAL}, or python:module:factory")
    try:
        executor = getattr(import_module(match[1]), match[2])()
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
        do = "correct the factory, or put its folder on PYTHONPATH"
        raise UserError(f"--engine {engine}: no executor", found=found, do=do) from error
    if not isinstance(executor, Executor):
        expected = "a concurrent.futures.Executor"
        raise UserError(f"--engine {engine}: no executor", found=f"a {type(executor).__name__}", expected=expected)
    return executor
