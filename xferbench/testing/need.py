"""How a check fails, and how it calls a plugin. Imports no torch."""

from __future__ import annotations

import re
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from xferbench.core.errors import UserError
from xferbench.testing.fake_lab import Scenario, scenarios

if TYPE_CHECKING:
    from xferbench.core.plugin import Plugin

ID_PATTERN = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


def need(condition: object, what: str, *, found: object = "", expected: str = "", do: str = "") -> None:
    """Raise an AssertionError with what was found, what was expected and what to do, unless a condition holds."""
    if not condition:
        raise AssertionError(str(UserError(what, found=str(found), expected=expected, do=do)))


def applicable_scenarios(plugin: Plugin) -> list[Scenario]:
    """Return the scenarios to which the plugin applies."""
    return [scenario for scenario in scenarios() if not call_twice(plugin, "applies", scenario)]


def call_twice(plugin: Plugin, name: str, scenario: Scenario) -> Any:
    """Return the result of a function of the plugin, called twice with a scenario."""
    arguments = deepcopy((scenario.pipeline, scenario.profile))
    what = f"{name} of {scenario.name}"
    try:
        result, again = (getattr(plugin, name)(*arguments) for _ in range(2))
    except Exception as error:
        is_mistake = isinstance(error, TypeError)  # such as the spelling of an intervention in the place of its value
        do = "correct the function" if is_mistake else "return the reason in applies, or handle this pipeline"
        raise AssertionError(str(UserError(f"{what} crashes", found=f"{type(error).__name__}: {error}", do=do))) from error
    need(result == again, what, found="another result the second time", expected="a pure function: the same result each time")
    unchanged = arguments == (scenario.pipeline, scenario.profile)
    need(unchanged, what, found="a changed pipeline or profile", expected="arguments that stay unchanged")
    if name == "applies":
        text = isinstance(result, str) and "\n" not in result
        need(text, what, found=repr(result), expected='the reason in one line, or "" if it applies')
    return result
