"""Finds plugins through the entry-point group ``xferbench.plugins``. Imports the modules that a suite names.

An entry point names the module of a failure mode, which exports ``plugin`` (the experiment on a pipeline), ``audit`` (what is
measured of a finished checkpoint) or both; an entry point ``module:plugin`` names an experiment alone.
"""

from __future__ import annotations

from dataclasses import fields, replace
from importlib.metadata import entry_points
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING

from xferbench.core.errors import UserError, suggest
from xferbench.core.plugin import Plugin, Profile
from xferbench.core.run import AUDIT
from xferbench.data.module_source import digest_source, is_third_party

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.metadata import EntryPoint

    from xferbench.core.pipeline import Pipeline
    from xferbench.core.run import Run
    from xferbench.core.suite import Suite

PLUGIN_GROUP = "xferbench.plugins"
EXPORTS = {"experiment": "plugin", "audit": "audit"}  # kind of plugin → name that a module exports it by
OTHER_KIND_ADVICE = {
    "experiment": "leave it out; `xferbench audit` measures it on a finished checkpoint",
    "audit": "leave it out; `xferbench run` measures it on a pipeline that is trained",
}


def plugin_names() -> tuple[str, ...]:
    """Names of all failure modes that are installed, without importing them."""
    return tuple(sorted(_entries()))


def plugin_kinds(name: str) -> dict[str, Plugin]:
    """The ``experiment`` and the ``audit`` of an installed failure mode, as far as its module exports them."""
    return _load(_entries()[name])


def suite_plugins(suite: Suite) -> tuple[Plugin, ...]:
    """The plugins of a suite: audits where it names a finished checkpoint, experiments otherwise.

    Raises:
        UserError: for a name that is not installed, or that has no plugin of this kind.
    """
    return load_plugins(suite.plugins, "audit" if suite.after else "experiment")


def run_plugins(run: Run) -> tuple[Plugin, ...]:
    """The plugins of a finished run that are installed here."""
    kind, entries = "audit" if run.suite.get("after") else "experiment", _entries()
    names = sorted({finding.plugin.removeprefix(AUDIT) for finding in run.findings} & set(entries))
    loaded = [_load(entries[name]) for name in names]
    return tuple(own[kind] for own in loaded if kind in own)


def load_plugins(wanted: Sequence[str], kind: str = "experiment") -> tuple[Plugin, ...]:
    """The plugins of one kind of a suite's list, in its order; ``all`` stands for every plugin of that kind.

    A module that cannot be imported becomes a plugin whose functions raise that error, so that the other plugins go on.

    Args:
        wanted: names of failure modes. kind: ``experiment`` or ``audit``.

    Raises:
        UserError: for a name that is not installed, or that has no plugin of this kind.
    """
    entries = _entries()
    listed = [word.removeprefix(AUDIT) if kind == "audit" else word for word in wanted]  # reports show audit/NAME
    chosen = dict.fromkeys(name for word in listed for name in (sorted(entries) if word == "all" else [word]))
    found = []
    for name in chosen:
        if name not in entries:
            raise UserError(
                f"plugins: unknown plugin {name!r}", expected=suggest(name, entries), do="`xferbench ls` lists them"
            )
        own = _load(entries[name])
        if kind in own:
            found.append(own[kind])
        elif name in listed:
            raise UserError(
                f"plugins: {name!r}", found=f"an {next(iter(own))} only", expected=f"an {kind}", do=OTHER_KIND_ADVICE[kind]
            )
    return tuple(found)


def describe_origin(plugin: Plugin) -> dict[str, str]:
    """Describe where an installed plugin comes from: version, distribution, file, and the source of a third party.

    A value that cannot be found out is "".
    """
    entry = _entries()[plugin.id.removeprefix(AUDIT)]
    try:
        spec = find_spec(entry.module)
    except Exception:  # noqa: BLE001 - a package above that cannot be imported; the plugin's question names the crash
        spec = None
    return {
        "version": str(plugin.version or ""),
        "distribution": f"{entry.dist.name} {entry.dist.version}" if entry.dist else "",
        "file": (spec.origin or "") if spec else "",
        "source": plugin.source,
    }


def _entries() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=PLUGIN_GROUP)}


def _load(entry: EntryPoint) -> dict[str, Plugin]:
    """The plugins of an entry point by kind."""
    kinds = ["experiment"] if entry.attr else list(EXPORTS)
    try:
        loaded = entry.load()
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the plugin's functions raise it again, it becomes a finding
        return dict.fromkeys(kinds, _broken(entry, error))
    if not isinstance(loaded, ModuleType):
        return {"experiment": _checked(entry, "experiment", loaded)}
    values = {kind: getattr(loaded, EXPORTS[kind], None) for kind in kinds}
    if not any(values.values()):
        return dict.fromkeys(kinds, _broken(entry, TypeError(f"{entry.value} exports neither `plugin` nor `audit`")))
    return {kind: _checked(entry, kind, value) for kind, value in values.items() if value is not None}


def _checked(entry: EntryPoint, kind: str, value: object) -> Plugin:
    ids = {entry.name, f"{AUDIT}{entry.name}"} if kind == "audit" else {entry.name}
    if not isinstance(value, Plugin) or value.id not in ids:
        return _broken(entry, TypeError(f"{entry.value} is no xferbench.core.plugin.Plugin with the id {entry.name!r}"))
    try:
        source = _source(entry, value)
    except Exception as error:  # noqa: BLE001 - the plugin's functions raise it again, it becomes a finding
        return _broken(entry, error)
    return value if value.source == source else replace(value, source=source)


def _source(entry: EntryPoint, plugin: Plugin) -> str:
    """Digest of the modules of a third party that hold a plugin, its functions and its measures; "" of a built-in plugin."""
    if not is_third_party(entry.module):
        return ""
    values = [getattr(plugin, field.name) for field in fields(plugin)]
    modules = {str(getattr(value, "__module__", "")) for value in values if callable(value)}
    modules |= {reference.partition(":")[0] for reference in plugin.measures.values()}
    return digest_source({entry.module, *(module for module in modules if module and is_third_party(module))})


def _broken(entry: EntryPoint, error: BaseException) -> Plugin:
    said = f"the plugin cannot be imported: {type(error).__name__}: {error}"

    def crash(_: Pipeline, __: Profile) -> str:
        raise ImportError(said) from error

    return Plugin(
        id=entry.name,
        version=0,
        question=said,
        doc="",
        applies=crash,
        cure=lambda pipeline, _: pipeline,
        induce=lambda *_: {},
        remedy="",
    )
