"""Decide whether two runs may be compared, and list their differences. Pure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from xferbench.core.canonical import SOURCE_KEY_LENGTH
from xferbench.core.reason import Code, Reason, because
from xferbench.core.record import json_values
from xferbench.core.suite import LOCATION_KEYS, Rules

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from xferbench.core.run import Run

IRRELEVANT_KEYS = frozenset({"path", "overrides", "allow_code", "command"})  # keys of a suite that do not affect results
RULE_KEYS = (  # keys that turn trials into verdicts
    "metric",
    "margin",
    "alpha",
    "looks",
    "max_duplicates",
    "unsearched_copies",
    "max_failed_runs",
)


def refusals(accepted: Run, candidate: Run) -> list[str]:
    """Return what prevents a comparison of two runs: different torch minor versions, device types or lab versions."""
    values: dict[str, list[Any]] = {
        "torch": [_torch_minor(run) for run in (accepted, candidate)],
        "device": [run.provenance.environment.get("device") for run in (accepted, candidate)],
        "version of the lab": [run.provenance.environment.get("lab") for run in (accepted, candidate)],
    }
    return [
        f"{name} {old or 'unknown'}, here {new or 'unknown'}" for name, (old, new) in values.items() if not old or old != new
    ]


def changed_rules(accepted: Run, candidate: Run) -> list[str]:
    """Return the decision rules in which the candidate differs from the accepted run.

    A changed rule requires a new accepted run.
    """
    defaults = {"unsearched_copies": (), "max_failed_runs": Rules().max_failed_runs}  # for accepted runs without the key
    suites = ({**defaults, **run.suite} for run in (accepted, candidate))
    old_rules, new_rules = ({name: json_values(suite.get(name)) for name in RULE_KEYS} for suite in suites)
    values = ((name, old_rules[name], new_rules[name]) for name in RULE_KEYS)
    return [f"{name} {_format(old)}, here {_format(new)}" for name, old, new in values if old != new]


def _torch_minor(run: Run) -> str:
    return ".".join(str((run.provenance.environment.get("packages") or {}).get("torch", "")).split("+")[0].split(".")[:2])


def differences(accepted: Run, candidate: Run) -> tuple[Reason, ...]:
    """Return differences that do not prevent a comparison.

    They concern the suite, the content of its inputs, the source of plugins and interventions, versions and the processor.
    """
    changes = suite_differences(accepted.suite, candidate.suite)
    reasons = [because(Code.SUITE_DIFFERS, changes=changes)] if changes else []
    inputs = [_input_digests(run) for run in (accepted, candidate)]
    changed_inputs = sorted(key for key in inputs[0].keys() & inputs[1].keys() if inputs[0][key] != inputs[1][key])
    reasons += [because(Code.INPUTS_DIFFER, keys=changed_inputs)] if changed_inputs else []
    reasons += changed_sources(accepted, candidate)
    for name in ("xferbench", "python", "processor", "instructions"):
        old, new = (run.provenance.environment.get(name) for run in (accepted, candidate))
        if old != new:
            reasons.append(because(Code.VERSION_DIFFERS, name=name, old=old, new=new))
    old, new = (run.provenance.environment.get("packages") or {} for run in (accepted, candidate))
    changed_packages = [
        (name, old.get(name), new.get(name)) for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)
    ]
    return (*reasons, *([because(Code.PACKAGES_DIFFER, changes=changed_packages)] if changed_packages else []))


def plugin_source(run: Run, plugin: str) -> str:
    """Return the start of the digest of a plugin's source in a run, or ``built-in`` if no third party wrote it."""
    source = str((run.provenance.plugins.get(plugin) or {}).get("source") or "")
    return source[:SOURCE_KEY_LENGTH] or "built-in"


def changed_sources(accepted: Run, candidate: Run) -> list[Reason]:
    """Return a reason for each plugin and each intervention of both runs whose source code differs, with both digests."""
    plugins = [{plugin: plugin_source(run, plugin) for plugin in run.provenance.plugins} for run in (accepted, candidate)]
    interventions = [run.provenance.evidence.get("intervention_sources") or {} for run in (accepted, candidate)]
    return [
        because(Code.SOURCE_DIFFERS, kind=kind, name=name, old=old[name], new=new[name])
        for kind, (old, new) in (("plugin", plugins), ("intervention", interventions))
        for name in sorted(old.keys() & new.keys())
        if old[name] != new[name]
    ]


def _input_digests(run: Run) -> dict[str, str]:
    return {entry["key"]: entry["digest"] for entry in run.provenance.evidence.get("inputs") or () if entry["key"] != "suite"}


def suite_differences(accepted: Mapping[str, Any], candidate: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return the dotted keys in which two suites differ, with both values; only the last part of a path counts."""
    old, new = (dict(_leaves("", json_values(suite))) for suite in (accepted, candidate))
    keys = dict.fromkeys(key for key in (*old, *new) if not key.endswith("recipe.name"))  # only a label
    relevant_keys = [key for key in keys if key.partition(".")[0] not in IRRELEVANT_KEYS]
    changed = [(key, _format(old.get(key)), _format(new.get(key))) for key in relevant_keys if old.get(key) != new.get(key)]
    if any(key.startswith("recipe.phases.2.") for key in keys):
        return changed
    return [
        (key.replace("recipe.phases.1.", "recipe."), before, after) for key, before, after in changed
    ]  # the suite file's spelling


def _leaves(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the leaves of a suite's values with their dotted keys; None and empty values are skipped."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(f"{prefix}.{key}" if prefix else key, item)
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for number, item in enumerate(value, start=1):
            yield from _leaves(f"{prefix}.{number}", item)
    elif value not in (None, [], ""):
        yield prefix, _last_part(value) if prefix in LOCATION_KEYS else value


def _last_part(location: str) -> str:
    """Return the last part of a path, with the kind of dataset in front if there is one."""
    kind, colon, rest = location.rpartition(":")
    return f"{kind.partition(':')[0]}{colon}{Path(rest).name}"


def _format(value: Any) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
