"""Freeze a plan: everything that a verdict depends on, and its hash, before any result is known. Reads and writes files.

Properties of the machine (processor, version of torch, number of workers) are not part of the plan; the report lists them.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from xferbench.core.canonical import canonical
from xferbench.core.canonical import digest as canonical_digest
from xferbench.core.errors import UserError
from xferbench.core.files import refuse_existing, replace_atomically
from xferbench.core.interventions import find_interventions, kind_source
from xferbench.core.sections import flat_values
from xferbench.core.version import __version__
from xferbench.runner.environment import package_source_digest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from xferbench.core.plugin import Plugin
    from xferbench.core.suite import Suite

PLAN_SCHEMA = 1
MAX_LISTED_FILES = 10_000  # an input with more files is described by their number, total size and common digest only
MAX_LISTED_DIFFERENCES = 6  # differences that an error message names
# Fields of a suite that do not change a verdict, and fields that the plan contains as digests of the inputs.
UNPLANNED_FIELDS = frozenset({"name", "path", "overrides", "allow_code", "command", "plugins"})
INPUT_FIELDS = frozenset({"target", "source", "shifted", "weights", "after", "before", "manifest"})
NEW_PLAN_ADVICE = "write a new plan with --freeze before any result is known, or undo the changes"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileDigest:
    """A file of an input: its path relative to the input, its size in bytes, and its SHA-256."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InputDigest:
    """An input of a suite: its key, its value in the suite, the digest of its content, and its files.

    The digest is that of one file or of all files, see :func:`xferbench.data.inputs.digest_data` and
    :func:`xferbench.data.user_code.find_callable`. ``counts`` is False for the suite file itself, because the plan contains the
    parsed suite.
    """

    key: str
    value: str
    digest: str
    files: tuple[FileDigest, ...] = ()
    counts: bool = True


def input_to_json(entry: InputDigest, *, listed: bool) -> dict[str, Any]:
    """Return an input as JSON types, with a list of its files if ``listed`` is True and they are not too many."""
    values = {"key": entry.key, "given": entry.value, "digest": entry.digest, "files": len(entry.files)}
    values |= {"bytes": sum(file.size for file in entry.files)}
    if listed and len(entry.files) <= MAX_LISTED_FILES:
        values["listed"] = [[file.sha256, file.size, file.name] for file in entry.files]
    return values


def plan_content(suite: Suite, inputs: Sequence[InputDigest], plugins: Sequence[Plugin]) -> dict[str, Any]:
    """Return everything that a verdict depends on, by key: the fields of the suite, digests of its inputs, and versions."""
    excluded = UNPLANNED_FIELDS | INPUT_FIELDS
    values = {name: value for name, value in flat_values(suite).items() if name not in excluded}
    values |= {
        "plugins": {plugin.id: plugin.version for plugin in plugins},
        "plugin_sources": plugin_sources(plugins),
        "intervention_sources": intervention_sources(suite),
        "inputs": {entry.key: entry.digest for entry in inputs if entry.counts},
        "xferbench": f"{__version__}, code {package_source_digest()}",
    }
    content: dict[str, Any] = canonical(values)
    return content


def plugin_sources(plugins: Sequence[Plugin]) -> dict[str, str]:
    """Return digests of the source of third-party plugins, by id; the digest of xferbench covers the others."""
    return {plugin.id: plugin.source for plugin in plugins if plugin.source}


def intervention_sources(*values: object) -> dict[str, str]:
    """Return digests of the source of the third-party interventions within some values, by spelling of their kind."""
    kinds = {type(intervention) for intervention in find_interventions(values)}
    sources = {kind.spelling: kind_source(kind) for kind in sorted(kinds, key=lambda kind: kind.spelling)}
    return {spelling: source for spelling, source in sources.items() if source}


def plan_to_json(suite: Suite, inputs: Sequence[InputDigest], plugins: Sequence[Plugin], written: str) -> str:
    """Return the content of a plan's file; ``written`` is the time in UTC."""
    content = plan_content(suite, inputs, plugins)
    plan = {"schema": PLAN_SCHEMA, "suite": suite.name, "hash": canonical_digest(content), "written": written, "plan": content}
    plan["inputs"] = [input_to_json(entry, listed=True) for entry in inputs]
    return json.dumps(plan, indent=1) + "\n"


def write_plan(path: Path, text: str, *, force: bool = False) -> None:
    """Write a plan's file atomically.

    Raises:
        UserError: if the file exists and ``force`` is False.
    """
    refuse_overwrite(path, force=force)
    with replace_atomically(path) as part:
        part.write_text(text, encoding="utf-8", newline="\n")


def refuse_overwrite(path: Path, *, force: bool = False) -> None:
    """Refuse to overwrite an existing plan.

    Raises:
        UserError: if the file exists and ``force`` is False.
    """
    do = "name another file, or use --force to overwrite it; the frozen plan in it is then lost"
    refuse_existing(path, force=force, do=do)


def read_plan(path: Path) -> dict[str, Any]:
    """Return a plan from its file; the key ``file`` holds the SHA-256 of the file.

    Raises:
        UserError: if the file is missing or not a plan, has another schema, or was changed after it was written.
    """
    expected = "a file written by `xferbench validate SUITE --freeze FILE`"
    try:
        data = path.read_bytes()
        plan = json.loads(data)
        schema, plan_hash, content = plan["schema"], plan["hash"], plan["plan"]
        _ = plan["written"], {entry["key"]: entry for entry in plan["inputs"]}, content["inputs"], plan["suite"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        message = error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        raise UserError(f"{path}: cannot be read as a frozen plan", found=str(message)[:200], expected=expected) from error
    if schema != PLAN_SCHEMA:
        what = f"{path}: a plan of another version of xferbench"
        raise UserError(what, found=f"schema {schema}", expected=f"schema {PLAN_SCHEMA}", do="use the version that wrote it")
    if (actual := _content_hash(content)) != plan_hash:
        what = f"{path}: the plan does not match its hash"
        raise UserError(what, found=actual, expected=f"{plan_hash}", do="use the file as it was written")
    return dict(plan) | {"file": hashlib.sha256(data).hexdigest()}


def _content_hash(content: object) -> str:
    try:
        return canonical_digest(content)
    except TypeError:
        return "no canonical form"


def check_plan(
    frozen: Mapping[str, Any], path: Path, suite: Suite, inputs: Sequence[InputDigest], plugins: Sequence[Plugin]
) -> None:
    """Refuse a suite that differs from a frozen plan.

    Raises:
        UserError: that names each key and file that differs.
    """
    content = plan_content(suite, inputs, plugins)
    if canonical_digest(content) == frozen["hash"]:
        return
    differences = _value_differences(frozen["plan"], content)
    listed = {entry["key"]: entry.get("listed") for entry in frozen["inputs"]}
    differences += [line for entry in inputs if entry.counts for line in _file_differences(entry, listed.get(entry.key))]
    count = len(differences) - MAX_LISTED_DIFFERENCES
    raise UserError(
        f"{path}: the suite differs from the frozen plan",
        found="; ".join(differences[:MAX_LISTED_DIFFERENCES]) + (f"; and {count} more" if count > 0 else ""),
        expected=f"the plan {frozen['hash'][:16]}…, frozen on {frozen['written']}",
        do=NEW_PLAN_ADVICE,
    )


def _value_differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return a line for each key whose value differs; tables are compared key by key."""
    lines = []
    for key in sorted({*old, *new}):
        old_value, new_value = _as_table(old.get(key)), _as_table(new.get(key))
        if isinstance(old_value, dict) and isinstance(new_value, dict):
            lines += _value_differences(old_value, new_value, f"{prefix}{key}: ")
        elif old_value != new_value or (key in old) != (key in new):
            lines.append(f"{prefix}{key}: {_format_value(old_value)} was frozen, {_format_value(new_value)} now")
    return lines


def _as_table(value: Any) -> Any:
    """Return a list of tables as one table with numbers as keys, and any other value unchanged."""
    is_table_list = isinstance(value, list) and value and all(isinstance(table, dict) for table in value)
    return {str(number): table for number, table in enumerate(value, start=1)} if is_table_list else value


def _format_value(value: object) -> str:
    if isinstance(value, str) and len(value) == 64:
        return f"{value[:12]}…"
    return "nothing" if value is None else json.dumps(value)[:60]


def _file_differences(entry: InputDigest, listed: Sequence[Sequence[Any]] | None) -> list[str]:
    """Return a line for each file of an input that differs from the plan's list; none for an input of one file."""
    if listed is None or len(entry.files) < 2:
        return []
    old = {name: sha256 for sha256, _, name in listed}
    new = {file.name: file.sha256 for file in entry.files}
    lines = []
    for name in sorted({*old, *new}):
        change = "is gone" if name not in new else "is new" if name not in old else "was changed"
        if old.get(name) != new.get(name):
            lines.append(f"{entry.key}: {name} {change}")
    return lines
