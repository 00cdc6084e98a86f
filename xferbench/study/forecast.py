"""The forecast of a dry run: arms, numbers of trials and computing time. Pure. Nothing is run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from xferbench.analysis import power
from xferbench.config.render import describe_pipeline, describe_recipe
from xferbench.core.pipeline import Arm, Pipeline, Selection
from xferbench.core.reason import Code, Reason, because
from xferbench.study import cost, plugin_state, selection, share, trial_requests
from xferbench.study.arms import induced_arms, plugin_arms, why_not, why_not_supported
from xferbench.study.selection import ResolvedArm
from xferbench.study.study import describe_cut, why_unaffordable
from xferbench.study.trials import training_spec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from xferbench.core.plugin import Plugin
    from xferbench.core.record import Record
    from xferbench.core.suite import Suite
    from xferbench.study.study import Study, TrialRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What a study would run.

    A selection that is still open is counted with its most expensive candidate.

    Attributes:
        arms: a description of each arm, by plugin.
        skipped: why plugins are skipped.
        first: numbers of trained networks and trials up to the first look: requested, unique, and in the store.
        last: the same numbers up to the last look.
        seconds: time of the missing trials up to the first and up to the last look, divided by the number of workers.
        power: what the test set can decide, or None.
        lacking: why nothing would be run, if the budget does not pay for the first look; else None.
        search: what the budget affords of the search of scratch, if it is not the whole one; else None.
    """

    arms: Mapping[str, Mapping[str, str]]
    skipped: Mapping[str, Reason]
    first: Mapping[str, int]
    last: Mapping[str, int]
    seconds: tuple[float, float]
    power: power.DecisionPower | None
    lacking: Reason | None = None
    search: Reason | None = None


def forecast_study(study: Study, records: Mapping[str, Record], workers: int) -> Forecast:
    """Return the forecast of a study: the trials that it requests, and how many of them are in ``records``."""
    suite = study.suite
    states, requests, descriptions = _plan(study, records)
    counts, seconds = [], []
    first_look, last_look = ([*requests, *_look_requests(suite.rules.looks[index], states, study)] for index in (0, -1))
    for look in share.extra_looks(states, suite.rules):
        last_look += [request for state in states for request in trial_requests.extra_share_requests(state, look, study, {})]
    for all_requests in (first_look, last_look):
        missing = {request.trial.key: request.trial for request in all_requests if request.trial.key not in records}
        counts.append(_count(all_requests, records))
        seconds.append(cost.planned_seconds(missing.values(), study.profile) / workers)
    examples = study.profile.data.test_groups or study.profile.data.test
    return Forecast(
        arms={state.plugin.id: descriptions[state.plugin.id] for state in states if not state.skipped},
        skipped={state.plugin.id: state.skipped for state in states if state.skipped is not None},
        first=counts[0],
        last=counts[1],
        seconds=(seconds[0], seconds[1]),
        power=decision_power(suite, examples, [state.plugin for state in states if not state.skipped]),
        lacking=why_unaffordable(study),
        search=describe_cut(study),
    )


def first_look_requests(study: Study) -> list[TrialRequest]:
    """Return what a study requests up to its first look, as if nothing were stored."""
    states, requests, _ = _plan(study, {})
    return [*requests, *_look_requests(study.suite.rules.looks[0], states, study)]


def _plan(
    study: Study, records: Mapping[str, Record]
) -> tuple[list[plugin_state.PluginState], list[TrialRequest], dict[str, dict[str, str]]]:
    """Return the states of the plugins, the requests before the first look, and a description of each arm by plugin."""
    suite, subject = study.suite, _assumed_pipeline(study.subject, study, records)
    requests = trial_requests.selection_requests("", "subject", study.subject, study, records, assume=True)
    states, descriptions = [], {}
    for plugin in study.plugins:
        skipped, arms = _feasible_arms(plugin, study, subject, records)
        for name, arm in arms.items():
            requests += trial_requests.selection_requests(plugin.id, name, arm, study, records, assume=True)
        resolved = {name: ResolvedArm(pipeline=_assumed_pipeline(arm, study, records)) for name, arm in arms.items()}
        states.append(_with_crash(plugin_state.PluginState(plugin=plugin, skipped=skipped, arms=resolved), study))
        first_seeds = range(suite.rules.seed, suite.rules.seed + suite.rules.looks[0])
        requests += trial_requests.start_requests(states[-1], first_seeds, study)
        descriptions[plugin.id] = {name: _describe_arm(arm, study, records) for name, arm in arms.items()}
        if arms and isinstance(study.subject, Selection):
            descriptions[plugin.id]["subject"] = _describe_arm(study.subject, study, records)
    return states, requests, descriptions


def _with_crash(state: plugin_state.PluginState, study: Study) -> plugin_state.PluginState:
    """Return a state with the error of a contrast whose views do not exist. Such a plugin requests nothing more."""
    try:
        trial_requests.check_views(state, study)
    except Exception as error:  # noqa: BLE001 - the crash becomes the plugin's finding, and other plugins continue
        return replace(state, error=f"{type(error).__name__}: {error}")
    return state


def _look_requests(look: int, states: Sequence[plugin_state.PluginState], study: Study) -> list[TrialRequest]:
    """Return the requests of contrasts up to a look, and those of invariants, which need only the seeds of the first look."""
    suite = study.suite
    seeds = range(suite.rules.seed, suite.rules.seed + look)
    first_seeds = range(suite.rules.seed, suite.rules.seed + suite.rules.looks[0])
    contrasts = [request for state in states for request in trial_requests.contrast_requests(state, seeds, study, {})]
    contrasts += [request for state in states for request in trial_requests.share_requests(state, seeds, study, {})]
    return contrasts + [request for state in states for request in trial_requests.invariant_requests(state, first_seeds, study)]


def _feasible_arms(
    plugin: Plugin, study: Study, subject: Pipeline, records: Mapping[str, Record]
) -> tuple[Reason | None, Mapping[str, Arm]]:
    """Return why a plugin is skipped, or None, and its arms."""
    try:
        skipped = why_not(plugin, study, subject)
        if skipped:
            return skipped, {}
        arms = plugin_arms(plugin, study, subject)
        cured = _assumed_pipeline(arms["cured"], study, records)
        skipped = why_not_supported(plugin, study, subject, cured)
        return (skipped, {}) if skipped else (None, arms | induced_arms(plugin, study, cured))
    except Exception as error:  # noqa: BLE001 - the crash becomes the plugin's finding, and other plugins continue
        return because(Code.PLUGIN_CRASHED, error=f"{type(error).__name__}: {error}"), {}


def decision_power(suite: Suite, examples: int, plugins: Sequence[Plugin]) -> power.DecisionPower | None:
    """Return what a test set of so many examples (or groups) can decide at the last look.

    It is None for metrics other than accuracy, because their variance is not known in advance.
    """
    kinds = [contrast.kind for plugin in plugins for contrast in plugin.contrasts]
    if suite.rules.metric != "accuracy" or "paired" not in kinds:
        return None
    scored_examples = examples // 2 if suite.is_audit else examples  # an audit screens repairs on the other half
    return power.decision_power(scored_examples, suite.rules, kinds.count("paired") + kinds.count("share"))


def _assumed_pipeline(arm: Arm, study: Study, records: Mapping[str, Record]) -> Pipeline:
    """Return the pipeline of an arm, or the most expensive candidate of a selection that is still open."""
    resolved = selection.select(arm, study, records)
    if resolved is not None and resolved.pipeline is not None:
        return resolved.pipeline
    assert isinstance(arm, Selection)
    *_, last = selection.search_rounds(arm, study, records, assume=True)
    return max(last.candidates, key=lambda candidate: cost.training_cost(training_spec(candidate, 0)))


def _describe_arm(arm: Arm, study: Study, records: Mapping[str, Record]) -> str:
    resolved = selection.select(arm, study, records)
    if resolved is not None and resolved.pipeline is not None:
        return _describe_pipeline(resolved.pipeline, study)
    assert isinstance(arm, Selection)
    examples = "the screened half" if arm.candidates[0].checkpoint else "validation"
    return f"best on {examples} of " + " | ".join(
        candidate.recipe.name or _describe_pipeline(candidate, study) for candidate in arm.candidates
    )


def _describe_pipeline(pipeline: Pipeline, study: Study) -> str:
    if pipeline.checkpoint:
        return describe_pipeline(pipeline, study.profile.preprocessing)
    return describe_recipe(pipeline.recipe)


def _count(requests: list[TrialRequest], records: Mapping[str, Record]) -> dict[str, int]:
    trials = {request.trial.key: request.trial for request in requests}
    specs = {trial.model.base for trial in trials.values()}
    stored_specs = {trial.model.base for key, trial in trials.items() if key in records}
    return {
        "fits asked": len({(request.plugin, request.arm, request.trial.model.base) for request in requests}),
        "fits unique": len(specs),
        "fits in the store": len(stored_specs),
        "trials asked": len(requests),
        "trials unique": len(trials),
        "trials in the store": sum(key in records for key in trials),
    }
