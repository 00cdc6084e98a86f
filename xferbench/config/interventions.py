"""The kinds of interventions that a suite may name: the built-in ones and those of installed packages.

Reads entry points of the group ``xferbench.interventions``, which have spellings as names, and imports them only if needed.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, cast

from xferbench.core import interventions
from xferbench.core.errors import UserError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from xferbench.core.interventions import K

GROUP = "xferbench.interventions"


def built_in(group: type[K]) -> tuple[type[K], ...]:
    """Return the built-in kinds of a group."""
    return cast("tuple[type[K], ...]", group.built_in())


def kinds(group: type[K]) -> tuple[type[K], ...]:
    """Return all kinds of a group: the built-in ones, then those of installed packages by their spelling.

    Raises:
        UserError: if an entry point cannot be imported or is not a kind of intervention.
    """
    installed = [_load(entry) for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name)]
    return (*built_in(group), *(kind for kind in installed if issubclass(kind, group)))


def parse(text: Any, group: type[K]) -> K:
    """Return the value of a group that a text spells.

    Raises:
        ValueError: for any other value, with the expected form.
        UserError: if an installed kind cannot be imported.
    """
    candidates = built_in(group)
    if interventions.find_kind(str(text), candidates) is None:
        candidates = kinds(group)
    if not isinstance(text, str):
        raise ValueError(interventions.format_kinds(candidates))  # noqa: TRY004 - rules raise ValueError
    return interventions.parse(text, candidates)


def _load(entry: EntryPoint) -> type[Any]:
    """Import the kind of an entry point and check it."""
    try:
        kind = entry.load()
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
        do = f"repair or remove the package that installs {entry.value}"
        raise UserError(f"the intervention {entry.name} cannot be imported", found=found, do=do) from error
    if not (isinstance(kind, type) and issubclass(kind, interventions.Intervention) and kind.spelling == entry.name):
        expected = f"a subclass of xferbench.core.interventions.Intervention whose spelling is {entry.name!r}"
        raise UserError(f"the intervention {entry.name}", found=repr(kind), expected=expected)
    return kind
