"""Whether two runs may be held against each other, and what is different about them. Pure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from xferbench.core.reason import Code, Reason, because
from xferbench.design import SOURCE_KEY_LENGTH
from xferbench.record import plain

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from xferbench.record import Run

UNTOLD = frozenset({"path", "overrides", "allow_code", "command"})  # of a suite's values: places, and words
RULES = ("metric", "margin", "alpha", "looks", "max_duplicates")  # by which trials become verdicts
PLACES = frozenset({"target", "source", "shifted", "weights", "after", "before", "manifest"})


def refusals(accepted: Run, candidate: Run) -> list[str]:
    """What must agree for numbers of two jobs to be comparable, and does not: torch's minor, the device's type, the lab."""
    told: dict[str, list[Any]] = {
        "torch": [_minor(run) for run in (accepted, candidate)],
        "device": [run.environment.get("device") for run in (accepted, candidate)],
        "version of the lab": [run.environment.get("lab") for run in (accepted, candidate)],
    }
    return [f"{name} {old or 'unknown'}, here {new or 'unknown'}" for name, (old, new) in told.items() if not old or old != new]


def rules(accepted: Run, candidate: Run) -> list[str]:
    """By which rules a candidate is judged otherwise than the accepted run was: whoever changes a rule accepts anew."""
    told = ((name, plain(accepted.suite.get(name)), plain(candidate.suite.get(name))) for name in RULES)
    return [f"{name} {_shown(old)}, here {_shown(new)}" for name, old, new in told if old != new]


def _minor(run: Run) -> str:
    return ".".join(str((run.environment.get("packages") or {}).get("torch", "")).split("+")[0].split(".")[:2])


def differences(accepted: Run, candidate: Run) -> tuple[Reason, ...]:
    """What differs and is no reason not to compare: the suite, its inputs, plugins' source, versions, the processor."""
    changes = of_suites(accepted.suite, candidate.suite)
    found = [because(Code.SUITE_DIFFERS, changes=changes)] if changes else []
    inputs = [_inputs(run) for run in (accepted, candidate)]
    other = sorted(key for key in inputs[0].keys() & inputs[1].keys() if inputs[0][key] != inputs[1][key])
    found += [because(Code.INPUTS_DIFFER, keys=other)] if other else []
    found += changed_sources(accepted, candidate)
    for name in ("xferbench", "python", "processor", "instructions"):
        old, new = (run.environment.get(name) for run in (accepted, candidate))
        if old != new:
            found.append(because(Code.VERSION_DIFFERS, name=name, old=old, new=new))
    old, new = (run.environment.get("packages") or {} for run in (accepted, candidate))
    moved = [(name, old.get(name), new.get(name)) for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    return (*found, *([because(Code.PACKAGES_DIFFER, changes=moved)] if moved else []))


def source_of(run: Run, plugin: str) -> str:
    """The start of the digest of a plugin's source in a run, ``built-in`` if no third party wrote it."""
    source = str((run.plugins.get(plugin) or {}).get("source") or "")
    return source[:SOURCE_KEY_LENGTH] or "built-in"


def changed_sources(accepted: Run, candidate: Run) -> list[Reason]:
    """Name the plugins of both runs whose source code differs, with both digests."""
    both = sorted(accepted.plugins.keys() & candidate.plugins.keys())
    sources = [(plugin, source_of(accepted, plugin), source_of(candidate, plugin)) for plugin in both]
    return [because(Code.SOURCE_DIFFERS, plugin=plugin, old=old, new=new) for plugin, old, new in sources if old != new]


def _inputs(run: Run) -> dict[str, str]:
    return {one["key"]: one["digest"] for one in run.evidence.get("inputs") or () if one["key"] != "suite"}


def of_suites(accepted: Mapping[str, Any], candidate: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The keys in which two suites' values differ, as dotted names, with both; of a place its last part counts."""
    old, new = (dict(_flat("", plain(told))) for told in (accepted, candidate))
    named = dict.fromkeys(key for key in (*old, *new) if not key.endswith("recipe.name"))  # what people call it
    keys = [key for key in named if key.partition(".")[0] not in UNTOLD]
    found = [(key, _shown(old.get(key)), _shown(new.get(key))) for key in keys if old.get(key) != new.get(key)]
    if any(key.startswith("recipe.phases.2.") for key in named):
        return found
    return [(key.replace("recipe.phases.1.", "recipe."), then, now) for key, then, now in found]  # as the suite file has it


def _flat(at: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The leaves of a suite's values; None and what is empty are not there."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flat(f"{at}.{key}" if at else key, item)
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for number, item in enumerate(value, start=1):
            yield from _flat(f"{at}.{number}", item)
    elif value not in (None, [], ""):
        yield at, _placeless(value) if at in PLACES else value


def _placeless(word: str) -> str:
    """The kind of a place, where it has one in front, and its last part."""
    kind, colon, rest = word.rpartition(":")
    return f"{kind.partition(':')[0]}{colon}{Path(rest).name}"


def _shown(value: Any) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
