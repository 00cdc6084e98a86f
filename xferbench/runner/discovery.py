"""Find plugins through the entry-point group ``xferbench.plugins``. Imports the modules that a suite names.

An entry point names the module of a failure mode, which exports ``plugin`` (the experiment on a pipeline), ``audit`` (the
measurement of a finished checkpoint) or both; an entry point ``module:plugin`` names only an experiment.
"""

from __future__ import annotations

from dataclasses import fields, replace
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING

from xferbench.core.errors import UserError, suggest
from xferbench.core.installed import entry_points
from xferbench.core.plugin import Plugin, Profile
from xferbench.core.requirements import plugin_for_suite
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
    """Return the names of all installed failure modes, without importing them."""
    return tuple(sorted(_entries()))


def plugin_kinds(name: str) -> dict[str, Plugin]:
    """Return the ``experiment`` and the ``audit`` of an installed failure mode; its module may export only one of them."""
    return _load(_entries()[name])


def suite_plugins(suite: Suite) -> tuple[Plugin, ...]:
    """Return the plugins of a suite: audits if it names a finished checkpoint, experiments otherwise.

    Raises:
        UserError: if a name is not installed, or if it has no plugin of this kind.
    """
    plugins = load_plugins(suite.plugins, "audit" if suite.is_audit else "experiment")
    return tuple(plugin_for_suite(plugin, suite) for plugin in plugins)


def run_plugins(run: Run) -> tuple[Plugin, ...]:
    """Return the installed plugins of a finished run."""
    kind, entries = "audit" if run.suite.get("after") else "experiment", _entries()
    names = sorted({finding.plugin.removeprefix(AUDIT) for finding in run.findings} & set(entries))
    loaded = [_load(entries[name]) for name in names]
    return tuple(by_kind[kind] for by_kind in loaded if kind in by_kind)


def load_plugins(names: Sequence[str], kind: str = "experiment") -> tuple[Plugin, ...]:
    """Return the plugins of one kind, in the order of their names; ``all`` means every plugin of that kind.

    A module that cannot be imported becomes a plugin whose functions raise that error, so that the other plugins still run.

    Args:
        names: names of failure modes.
        kind: ``experiment`` or ``audit``.

    Raises:
        UserError: if a name is not installed, or if it has no plugin of this kind.
    """
    entries = _entries()
    listed = [name.removeprefix(AUDIT) if kind == "audit" else name for name in names]  # reports show audit/NAME
    plugins = []
    for name in dict.fromkeys(name for entry in listed for name in (sorted(entries) if entry == "all" else [entry])):
        if name not in entries:
            raise UserError(
                f"plugins: unknown plugin {name!r}", expected=suggest(name, entries), do="`xferbench ls` lists them"
            )
        by_kind = _load(entries[name])
        if kind in by_kind:
            plugins.append(by_kind[kind])
        elif name in listed:
            raise UserError(
                f"plugins: {name!r}", found=f"only an {next(iter(by_kind))}", expected=f"an {kind}", do=OTHER_KIND_ADVICE[kind]
            )
    return tuple(plugins)


def describe_origin(plugin: Plugin) -> dict[str, str]:
    """Describe where an installed plugin comes from: version, distribution, file, and the source of a third party.

    An unknown value is an empty string.
    """
    entry = _entries()[plugin.id.removeprefix(AUDIT)]
    try:
        spec = find_spec(entry.module)
    except Exception:  # noqa: BLE001 - a parent package cannot be imported; the plugin's question names the error
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
    """Return the plugins of an entry point by kind."""
    kinds = ["experiment"] if entry.attr else list(EXPORTS)
    try:
        loaded = entry.load()
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the plugin's functions raise it again, and it becomes a finding
        return dict.fromkeys(kinds, _broken_plugin(entry, error))
    if not isinstance(loaded, ModuleType):
        return {"experiment": _check_plugin(entry, "experiment", loaded)}
    values = {kind: getattr(loaded, EXPORTS[kind], None) for kind in kinds}
    if not any(values.values()):
        return dict.fromkeys(kinds, _broken_plugin(entry, TypeError(f"{entry.value} exports neither `plugin` nor `audit`")))
    return {kind: _check_plugin(entry, kind, value) for kind, value in values.items() if value is not None}


def _check_plugin(entry: EntryPoint, kind: str, value: object) -> Plugin:
    ids = {entry.name, f"{AUDIT}{entry.name}"} if kind == "audit" else {entry.name}
    if not isinstance(value, Plugin) or value.id not in ids:
        return _broken_plugin(
            entry, TypeError(f"{entry.value} is not an xferbench.core.plugin.Plugin with the id {entry.name!r}")
        )
    try:
        source = _plugin_source(entry, value)
    except Exception as error:  # noqa: BLE001 - the plugin's functions raise it again, and it becomes a finding
        return _broken_plugin(entry, error)
    return value if value.source == source else replace(value, source=source)


def _plugin_source(entry: EntryPoint, plugin: Plugin) -> str:
    """Return a digest of the third-party modules of a plugin, its functions and its measures; "" for a built-in plugin."""
    if not is_third_party(entry.module):
        return ""
    values = [getattr(plugin, field.name) for field in fields(plugin)]
    modules = {str(getattr(value, "__module__", "")) for value in values if callable(value)}
    modules |= {reference.partition(":")[0] for reference in plugin.measures.values()}
    return digest_source({entry.module, *(module for module in modules if module and is_third_party(module))})


def _broken_plugin(entry: EntryPoint, error: BaseException) -> Plugin:
    message = f"the plugin cannot be imported: {type(error).__name__}: {error}"

    def crash(_: Pipeline, __: Profile) -> str:
        raise ImportError(message) from error

    return Plugin(
        id=entry.name,
        version=0,
        question=message,
        doc="",
        applies=crash,
        cure=lambda pipeline, _: pipeline,
        induce=lambda *_: {},
        remedy="",
    )
