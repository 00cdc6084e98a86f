"""The arguments of a module's forward pass by name. Imports torch."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn


def argument_names(module: nn.Module) -> Sequence[str]:
    """Return the names of the arguments of a module's forward pass; none if it has no signature, as some compiled ones."""
    try:
        return tuple(inspect.signature(module.forward).parameters)
    except (TypeError, ValueError):
        return ()


def named_arguments(module: nn.Module, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call by name."""
    return {**dict(zip(argument_names(module), arguments, strict=False)), **named}
