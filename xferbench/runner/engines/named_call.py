"""A call of a function by its name, which any executor can run.

The caller does not import the function, because its module may need torch.
"""

from __future__ import annotations

import os
import traceback
from importlib import import_module
from threading import Lock
from typing import Any

from xferbench.core.errors import UserError

# The random stream and the number of threads of torch belong to the process, so a process computes one call at a time.
_turn = Lock()


class CallError(RuntimeError):
    """An unexpected exception of a call, as the text of its traceback: its class may be unknown to the caller."""


def call_by_name(function: str, *arguments: Any) -> Any:
    """Return the result of ``module:function``.

    Raises:
        UserError: if the input of the user is wrong.
        OSError: if a file cannot be read or written.
        CallError: if the call raises anything else.
    """
    with _turn:
        try:
            import_module("xferbench.lab.worker.determinism").configure(threads=int(os.environ.get("OMP_NUM_THREADS", "1")))
            module, _, name = function.partition(":")
            return getattr(import_module(module), name)(*arguments)
        except UserError:
            raise
        except OSError as error:
            raise OSError(str(error)) from None  # a subclass may be unknown to the caller
        except Exception as error:  # noqa: BLE001 - raised again, with its whole text
            raise CallError("".join(traceback.format_exception(error))) from None
