"""The kinds of interventions that a suite may name, built-in or of installed packages, and the rules for their spellings.

Reads entry points of the group ``xferbench.interventions``, which have spellings as names, and imports them only if needed.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, cast

from xferbench.config import validation
from xferbench.core import interventions
from xferbench.core.errors import UserError
from xferbench.core.installed import entry_points

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from xferbench.config.validation import Rule
    from xferbench.core.interventions import Intervention, K

GROUP = "xferbench.interventions"
SPELLING_PATTERN = rf"{interventions.SPELLING}(:[^:]+)*"  # of any kind, because packages add kinds


def spelling_rule(group: type[Intervention], *kinds: type[Intervention]) -> Rule:
    """Return the rule for the spelling of an intervention of some kinds, by default all built-in kinds of a group.

    The value is the intervention.
    """
    kinds = kinds or group.built_in()
    if not any(map(interventions.ranges, kinds)):
        spelling = validation.one_of(*(kind.spelling for kind in kinds))
        return validation.Validator(lambda value: group.parse(spelling(value)), validation.rule_schema(spelling))
    forms = interventions.format_kinds(kinds)
    return validation.typed(str, bool, forms, group.parse, pattern=f"^({interventions.spelling_pattern(kinds)})$")


def extensible_rule(group: type[Intervention]) -> Rule:
    """Return the rule for the spelling of an intervention of a group, of a built-in kind or of one of an installed package."""
    rule = spelling_rule(group)

    def parse_spelling(value: Any) -> Intervention:
        try:
            intervention: Intervention = rule(value)
        except ValueError:
            if not installed(group):
                raise
            return parse(value, group)
        return intervention

    built_in_schema = validation.rule_schema(rule)
    built_in_schema.pop("description", None)
    spellings = "|".join(re.escape(kind.spelling).replace(r"\-", "-") for kind in group.built_in())
    installed_schema = {"type": "string", "pattern": f"^(?!({spellings})(:|$)){SPELLING_PATTERN}$"}
    expected = f"{interventions.format_kinds(group.built_in())}; or a kind of an installed package, see `xferbench ls`"
    return validation.Validator(parse_spelling, {"anyOf": [built_in_schema, installed_schema], "description": expected})


def built_in(group: type[K]) -> tuple[type[K], ...]:
    """Return the built-in kinds of a group."""
    return cast("tuple[type[K], ...]", group.built_in())


def installed(group: type[K]) -> tuple[type[K], ...]:
    """Return the kinds of a group that installed packages add, by their spelling.

    Raises:
        UserError: if an entry point cannot be imported or is not a kind that a package may add.
    """
    loaded = [_load(entry) for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name)]
    return tuple(kind for kind in loaded if issubclass(kind, group))


def kinds(group: type[K]) -> tuple[type[K], ...]:
    """Return all kinds of a group: the built-in ones, then those of installed packages.

    Raises:
        UserError: as :func:`installed`.
    """
    return (*built_in(group), *installed(group))


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
    is_kind = isinstance(kind, type) and issubclass(kind, interventions.EXTENSIBLE_GROUPS)
    if not is_kind or kind.spelling != entry.name or not kind.implementation:
        groups = ", ".join(group.__name__ for group in interventions.EXTENSIBLE_GROUPS)
        expected = f"a subclass of one of {groups} with the spelling {entry.name!r} and an implementation"
        raise UserError(f"the intervention {entry.name}", found=repr(kind), expected=expected)
    return cast("type[Any]", kind)
