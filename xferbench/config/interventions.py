"""The kinds of interventions that a suite may name: the built-in ones and those that installed packages bring.

Reads entry points of the group ``xferbench.interventions``, whose names are spellings, and imports only those that are needed.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, cast

from xferbench.core import interventions
from xferbench.core.errors import UserError
from xferbench.core.interventions import BUILT_IN, K

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "xferbench.interventions"


def built_in(group: type[K]) -> tuple[type[K], ...]:
    """Return the built-in kinds of a group."""
    return cast("tuple[type[K], ...]", BUILT_IN[group])


def kinds(group: type[K]) -> tuple[type[K], ...]:
    """Return all kinds of a group: the built-in ones, then those of installed packages by their spelling.

    Raises:
        UserError: for an entry point that cannot be imported or is no kind of intervention.
    """
    installed = [_load(entry) for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name)]
    return (*built_in(group), *(kind for kind in installed if issubclass(kind, group)))


def parse(text: Any, group: type[K]) -> K:
    """Return the value of a group that a text spells.

    Raises:
        ValueError: for any other value, with what was expected. UserError: for an installed kind that cannot be imported.
    """
    known = built_in(group)
    if interventions.find_kind(str(text), known) is None:
        known = kinds(group)
    if not isinstance(text, str):
        raise ValueError(" or ".join(map(interventions.format_spelling, known)))  # noqa: TRY004 - what a rule raises
    return interventions.parse(text, known)


def _load(entry: EntryPoint) -> type[Any]:
    try:
        kind = entry.load()
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
        do = f"mend or remove the package that installs {entry.value}"
        raise UserError(f"the intervention {entry.name} cannot be imported", found=found, do=do) from error
    if not (isinstance(kind, type) and issubclass(kind, interventions.Intervention) and kind.spelling == entry.name):
        expected = f"a subclass of xferbench.core.interventions.Intervention whose spelling is {entry.name!r}"
        raise UserError(f"the intervention {entry.name}", found=repr(kind), expected=expected)
    return kind
