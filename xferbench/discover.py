"""Plugins, found through the entry-point group ``xferbench.plugins``, and the checks of finished networks, likewise."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from xferbench.design import Facts, Pipeline, Plugin, Suite
from xferbench.problem import Problem, nearest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.metadata import EntryPoint

    from xferbench.record import Run

OF_AUDIT = "audit/"  # begins the id of a check that is no plugin's
GROUP, CHECKS = "xferbench.plugins", "xferbench.checks"


def names(group: str = GROUP) -> tuple[str, ...]:
    """Identifiers of all plugins that are installed."""
    return tuple(sorted(entry.name for entry in entry_points(group=group)))


def of(suite: Suite) -> tuple[Plugin, ...]:
    """What a suite asks: its plugins, or of a finished network its checks.

    Raises:
        Problem: for a name that is not installed.
    """
    return plugins(suite.plugins, CHECKS if suite.after else GROUP)


def known(run: Run) -> tuple[Plugin, ...]:
    """The plugins, or checks, that a finished run tells of and that are installed here."""
    group = CHECKS if run.suite.get("after") else GROUP
    told = {name for one in run.findings for name in (one.plugin, one.contrast)}  # a check of no plugin is audit/NAME
    return plugins(sorted(told & set(names(group))), group)


def plugins(wanted: Sequence[str], group: str = GROUP) -> tuple[Plugin, ...]:
    """The plugins of a suite's list, in its order; ``all`` stands for every one that is installed.

    One that cannot be imported becomes a plugin whose every question is that crash, so that the others go on.

    Raises:
        Problem: for a name that is not installed.
    """
    found = {entry.name: entry for entry in entry_points(group=group)}
    told = (word.removeprefix(OF_AUDIT) if group == CHECKS else word for word in wanted)  # reports print their ids
    chosen = dict.fromkeys(name for word in told for name in (sorted(found) if word == "all" else [word]))
    for name in chosen:
        if name not in found:
            raise Problem(f"plugins: unknown plugin {name!r}", expected=nearest(name, found), do="`xferbench ls` lists them")
    return tuple(_loaded(found[name]) for name in chosen)


def _loaded(entry: EntryPoint) -> Plugin:
    try:
        plugin = entry.load()
        if not isinstance(plugin, Plugin) or plugin.id.removeprefix(OF_AUDIT) != entry.name:
            return _broken(entry, TypeError(f"{entry.value} is no xferbench.design.Plugin with the id {entry.name!r}"))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - raised again where the plugin is asked, it becomes its finding
        return _broken(entry, error)
    return plugin


def _broken(entry: EntryPoint, error: BaseException) -> Plugin:
    told = f"the plugin cannot be imported: {type(error).__name__}: {error}"

    def crash(_: Pipeline, __: Facts) -> str:
        raise ImportError(told) from error

    return Plugin(
        id=entry.name,
        version=0,
        question=told,
        page="",
        applies=crash,
        cure=lambda pipeline, _: pipeline,
        induce=lambda *_: {},
        remedy="",
    )
