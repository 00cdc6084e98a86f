"""A plan frozen before anything is looked at: all that a verdict depends on, as content, with one hash over it.

What a machine adds (its processor, the version of torch, how many workers) is no part of it; the report tells that.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from xferbench.core.canonical import canonical
from xferbench.core.canonical import digest as digest_
from xferbench.core.errors import UserError
from xferbench.core.files import refuse_existing, replace_atomically
from xferbench.core.version import __version__
from xferbench.runner.environment import source_digest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from xferbench.core.plugin import Plugin
    from xferbench.core.suite import Suite

PLAN_SCHEMA = 1
MAX_LISTED_FILES = 10_000  # files of one input beyond which only their number, their bytes and their common digest are told
MAX_LISTED_DIFFERENCES = 6  # differences that a refusal names
# What a suite has of places and words, or as digests in its inputs; a verdict depends on none of it.
UNPLANNED_FIELDS = frozenset({"name", "path", "overrides", "allow_code", "command", "plugins"})
INPUT_FIELDS = frozenset({"target", "source", "shifted", "weights", "after", "before", "manifest"})
NEW_PLAN_ADVICE = "write a new plan with --freeze, before looking; or put back what was changed"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileDigest:
    """A file of an input: its place below the input's, its size in bytes, its SHA-256."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InputDigest:
    """What a suite names by a key: the word for it, the digest of its content, and the files that it consists of.

    The digest is that of one file, or over all of them: :func:`xferbench.data.inputs.digest_data` and
    :func:`xferbench.data.user_code.find_callable` say how. ``counts`` tells whether a verdict depends on it
    beyond the checked suite.
    """

    key: str
    given: str
    digest: str
    files: tuple[FileDigest, ...] = ()
    counts: bool = True


def input_to_json(one: InputDigest, *, listed: bool) -> dict[str, Any]:
    """An input as JSON's types, with its files where they are wanted and not too many."""
    about = {"key": one.key, "given": one.given, "digest": one.digest, "files": len(one.files)}
    about |= {"bytes": sum(file.size for file in one.files)}
    if listed and len(one.files) <= MAX_LISTED_FILES:
        about["listed"] = [[file.sha256, file.size, file.name] for file in one.files]
    return about


def plan_content(suite: Suite, inputs: Sequence[InputDigest], plugins: Sequence[Plugin]) -> dict[str, Any]:
    """All that a verdict depends on, by key: the checked suite's values, digests of its inputs, versions."""
    values = {one.name: getattr(suite, one.name) for one in fields(suite) if one.name not in UNPLANNED_FIELDS | INPUT_FIELDS}
    found = values | {
        "plugins": {one.id: one.version for one in plugins},
        "plugin_sources": plugin_sources(plugins),
        "inputs": {one.key: one.digest for one in inputs if one.counts},
        "xferbench": f"{__version__}, code {source_digest()}",
    }
    plain: dict[str, Any] = canonical(found)
    return plain


def plugin_sources(plugins: Sequence[Plugin]) -> dict[str, str]:
    """Digests of the source of third-party plugins, by id; the digest of xferbench's own code covers the others."""
    return {plugin.id: plugin.source for plugin in plugins if plugin.source}


def plan_to_json(suite: Suite, inputs: Sequence[InputDigest], plugins: Sequence[Plugin], written: str) -> str:
    """The file of a plan; ``written`` is when, in UTC."""
    asked = plan_content(suite, inputs, plugins)
    about = {"schema": PLAN_SCHEMA, "suite": suite.name, "hash": digest_(asked), "written": written}
    return json.dumps(about | {"plan": asked, "inputs": [input_to_json(one, listed=True) for one in inputs]}, indent=1) + "\n"


def write_plan(path: Path, told_: str, *, force: bool = False) -> None:
    """Write a plan's file, whole or not at all.

    Raises:
        UserError: where a file is in the way.
    """
    refuse_overwrite(path, force=force)
    with replace_atomically(path) as part:
        part.write_text(told_, encoding="utf-8", newline="\n")


def refuse_overwrite(path: Path, *, force: bool = False) -> None:
    """Refuse a path where a file is already.

    Raises:
        UserError: where one is, and it may not be overwritten.
    """
    do = "give another name, or --force to overwrite it: what was frozen before is then lost"
    refuse_existing(path, force=force, do=do)


def read_plan(path: Path) -> dict[str, Any]:
    """A plan from its file, with ``file``, the SHA-256 of that.

    Raises:
        UserError: where it is missing, no plan, of a newer schema, or was changed after it was written.
    """
    expected = "a file written by `xferbench validate SUITE --freeze FILE`"
    try:
        data = path.read_bytes()
        found = json.loads(data)
        schema, its_hash, asked = found["schema"], found["hash"], found["plan"]
        _ = found["written"], {one["key"]: one for one in found["inputs"]}, asked["inputs"], found["suite"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        said = error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        raise UserError(f"{path}: no frozen plan can be read", found=str(said)[:200], expected=expected) from error
    if schema != PLAN_SCHEMA:
        what = f"{path}: a plan of another xferbench"
        raise UserError(what, found=f"schema {schema}", expected=f"schema {PLAN_SCHEMA}", do="use the version that wrote it")
    if _hash(asked) != its_hash:
        what = f"{path}: its hash is not that of the plan in it"
        raise UserError(what, found=f"{_hash(asked)}", expected=f"{its_hash}", do="use the file as it was written")
    return dict(found) | {"file": hashlib.sha256(data).hexdigest()}


def _hash(asked: object) -> str:
    try:
        return digest_(asked)
    except TypeError:
        return "no canonical form"


def check_plan(
    frozen: Mapping[str, Any], path: Path, suite: Suite, inputs: Sequence[InputDigest], plugins: Sequence[Plugin]
) -> None:
    """Refuse to carry out what is not what was frozen.

    Raises:
        UserError: naming each key and file that differs.
    """
    asked = plan_content(suite, inputs, plugins)
    if digest_(asked) == frozen["hash"]:
        return
    named = _differing(frozen["plan"], asked)
    listed = {one["key"]: one.get("listed") for one in frozen["inputs"]}
    named += [line for one in inputs for line in _files(one, listed.get(one.key)) if one.counts]
    more = f"; and {len(named) - MAX_LISTED_DIFFERENCES} more" if len(named) > MAX_LISTED_DIFFERENCES else ""
    raise UserError(
        f"{path}: what is to be carried out is not what was frozen",
        found="; ".join(named[:MAX_LISTED_DIFFERENCES]) + more,
        expected=f"the plan {frozen['hash'][:16]}…, frozen on {frozen['written']}",
        do=NEW_PLAN_ADVICE,
    )


def _differing(then: Mapping[str, Any], now: Mapping[str, Any], above: str = "") -> list[str]:
    """One line for each key whose value is another, tables looked into."""
    lines = []
    for key in sorted({*then, *now}):
        old, new = _numbered(then.get(key)), _numbered(now.get(key))
        if isinstance(old, dict) and isinstance(new, dict):
            lines += _differing(old, new, f"{above}{key}: ")
        elif old != new or (key in then) != (key in now):
            lines.append(f"{above}{key}: {_shown(old)} was frozen, {_shown(new)} now")
    return lines


def _numbered(value: Any) -> Any:
    """A list of tables as a table, so that it can be looked into."""
    tables = isinstance(value, list) and all(isinstance(one, dict) for one in value)
    return {str(number): one for number, one in enumerate(value, start=1)} if tables and value else value


def _shown(value: object) -> str:
    if isinstance(value, str) and len(value) == 64:
        return f"{value[:12]}…"
    return "nothing" if value is None else json.dumps(value)[:60]


def _files(one: InputDigest, listed: Sequence[Sequence[Any]] | None) -> list[str]:
    """The files of an input that are other than they were."""
    if listed is None or len(one.files) < 2:
        return []
    then = {name: sha256 for sha256, _, name in listed}
    now = {file.name: file.sha256 for file in one.files}
    words = {name: "is gone" if name not in now else "is new" if name not in then else "was changed" for name in {*then, *now}}
    return [f"{one.key}: {name} {words[name]}" for name in sorted(words) if then.get(name) != now.get(name)]
