"""The checks that every kind of intervention must pass. Imports no torch."""

from __future__ import annotations

import importlib.util
import re
from itertools import product
from typing import TYPE_CHECKING

from xferbench.core import interventions
from xferbench.core.interventions import parse
from xferbench.testing.need import need

if TYPE_CHECKING:
    from xferbench.core.interventions import Intervention

NUMBERS = (0.0, 0.001, 0.25, 0.5, 1.0, 2.0, 8.0)  # tested for each field of an intervention


def intervention_conforms(kind: type[Intervention]) -> None:
    """Check a kind of intervention: spelling, words, range and, unless the lab finds it by its type, group and implementation.

    Raises:
        AssertionError: At the first check that fails, with what was found, what was expected and what to do.
    """
    what = f"intervention {kind.__name__}"
    need(
        re.fullmatch(interventions.SPELLING, kind.spelling),
        what,
        found=kind.spelling,
        expected="lower-case words, as label-noise",
    )
    need(kind.__doc__ and (kind.__doc__.strip().partition("\n")[0]), what, found="no docstring", expected="one line for lists")
    for value in _examples(kind):
        again = parse(str(value), [kind])
        need(again == value, what, found=f"{value} read as {again!r}", expected="a spelling that parses to its value")
        need(
            re.fullmatch(interventions.spelling_pattern([kind]), str(value)),
            what,
            found=value,
            expected="a spelling of its pattern",
        )
        words = value.describe()
        need(words and "\n" not in words, f"words of {value}", found=repr(words), expected="one line")
    if kind.implementation or interventions.kind_source(kind):
        groups = interventions.EXTENSIBLE_GROUPS
        expected = f"a subclass of {' or '.join(group.__name__ for group in groups)}"
        need(issubclass(kind, groups), what, found=", ".join(base.__name__ for base in kind.__bases__), expected=expected)
        module, _, function = kind.implementation.partition(":")
        expected = "module:function of a module that is installed"
        is_installed = module and function and importlib.util.find_spec(module)
        need(is_installed, what, found=repr(kind.implementation), expected=expected)
        needs_start = issubclass(kind, interventions.Regularizer) and "pretrained" not in kind.requires
        need(not needs_start, f"requires of {what}", found=kind.requires, expected="pretrained, whose weights it is given")


def _examples(kind: type[Intervention]) -> list[Intervention]:
    """Return values of a kind with numbers near the ends of each range."""
    limits = interventions.ranges(kind)
    numbers = {name: [int(n) if limit.whole else n for n in NUMBERS] for name, limit in limits.items()}
    valid = {name: dict.fromkeys(n for n in row if n in limits[name]) for name, row in numbers.items()}
    return [kind(**dict(zip(valid, values, strict=True))) for values in product(*valid.values())]
