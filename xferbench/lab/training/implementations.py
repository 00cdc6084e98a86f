"""Import the functions that interventions name. Pure, except that it imports their modules."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from xferbench.core.interventions import Intervention


def load_implementation(intervention: Intervention) -> Callable[..., Any]:
    """Import and return the function that applies an intervention; its group documents the arguments."""
    module, _, name = intervention.implementation.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function
