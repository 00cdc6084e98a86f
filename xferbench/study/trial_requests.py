"""The trials that the arms of a plugin request: for selections, teachers, initial networks, contrasts and invariants. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from xferbench.analysis import estimates
from xferbench.core.canonical import measure_key
from xferbench.core.trial import EvaluationSpec, ModelSpec, TrainingSpec, Trial
from xferbench.study import selection, trials
from xferbench.study.share import share_looks
from xferbench.study.study import TrialRequest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from xferbench.analysis.sequential import SequentialDecision
    from xferbench.core.pipeline import Arm
    from xferbench.core.plugin import Contrast
    from xferbench.core.record import Record
    from xferbench.core.suite import Rules
    from xferbench.core.trial import ComputeContext
    from xferbench.study.plugin_state import PluginState
    from xferbench.study.study import Study


def selection_requests(
    plugin: str, name: str, arm: Arm, study: Study, records: Mapping[str, Record], *, assume: bool = False
) -> list[TrialRequest]:
    """Return the requests of an arm's selection, after those of its teachers; see :func:`selection.selection_trials`."""
    requests = [
        TrialRequest(plugin=plugin, arm=name, view="validation", seed=trial.model.base.seed, trial=trial)
        for trial in selection.selection_trials(arm, study, records, assume=assume)
    ]
    return [*teacher_requests(requests), *requests]


def teacher_requests(requests: Sequence[TrialRequest]) -> list[TrialRequest]:
    """Return a request for each teacher, so that no two workers train the same one."""
    by_teacher = {}
    for request in requests:
        if (teacher := request.trial.model.base.procedure.teacher) is not None:
            trial = _validation_trial(teacher, request.trial.context)
            by_teacher[request.plugin, request.arm, teacher] = replace(request, view="validation", trial=trial)
    return list(by_teacher.values())


def _validation_trial(spec: TrainingSpec, context: ComputeContext) -> Trial:
    view = EvaluationSpec(examples="validation", preprocessing=spec.data.preprocessing)
    return Trial(model=ModelSpec(base=spec), view=view, context=context)


def start_requests(state: PluginState, seeds: Sequence[int], study: Study) -> list[TrialRequest]:
    """Return a request for each network that an arm of a plugin starts from, so that no two workers train the same one."""
    by_start = {}
    for name, arm in state.arms.items():
        for start in () if arm.pipeline is None else (trials.training_spec(arm.pipeline, seed).network.start for seed in seeds):
            if isinstance(start, TrainingSpec):
                trial = _validation_trial(start, study.context)
                by_start[name, start] = TrialRequest(
                    plugin=state.plugin.id, arm=name, view="validation", seed=start.seed, trial=trial
                )
    return list(by_start.values())


def contrast_requests(
    state: PluginState, seeds: Sequence[int], study: Study, decisions: Mapping[str, SequentialDecision]
) -> list[TrialRequest]:
    """Return the requests of paired contrasts at a look.

    An open contrast needs all arms of the plugin. A decided contrast without a control needs only the arms of the control.
    """
    terms: dict[tuple[str, str], None] = {}
    for name, contrast in state.contrasts("paired"):
        decision = decisions.get(name)
        if decision is None or decision.is_open:
            terms |= dict.fromkeys(_open_contrast_terms(state, contrast))
        for variant in state.variants:
            if decision is None or decision.lacks(variant, contrast_margin(contrast, study.suite.rules)):
                arm = f"induced:{variant}"
                terms |= dict.fromkeys([*estimates.positive_control(contrast, variant).weights, (arm, "test")])
                terms |= dict.fromkeys((arm, measure) for measure in state.plugin.measures)
    existing = [term for term in terms if term[0] in state.arms]  # a finished network may have no scratch arm
    return _term_requests(state, existing, seeds, study)


def share_requests(
    state: PluginState, seeds: Sequence[int], study: Study, decisions: Mapping[str, SequentialDecision]
) -> list[TrialRequest]:
    """Return the requests of shares of failed runs at a look: the subject and the cure if the share is open, and its controls.

    There is no baseline from scratch: a run is compared with other runs of the pretrained network.
    """
    terms: dict[tuple[str, str], None] = {}
    for name, contrast in state.contrasts("share"):
        decision = decisions.get(name)
        if decision is None or decision.is_open:
            terms |= dict.fromkeys((arm, view) for _, view in contrast.weights for arm in ("subject", "cured"))
            terms |= dict.fromkeys(("subject", measure) for measure in state.plugin.measures)
        for variant in state.variants:
            if decision is None or decision.lacks(variant, getattr(study.suite.rules, contrast.allowed)):
                terms |= dict.fromkeys(
                    term
                    for arm in ("cured", f"induced:{variant}")
                    for term in estimates.swap_arm(contrast, "subject", arm).weights
                )
    return _term_requests(state, terms, seeds, study)


def extra_share_requests(
    state: PluginState, look: int, study: Study, decisions: Mapping[str, SequentialDecision]
) -> list[TrialRequest]:
    """Return the requests of an additional look at shares of failed runs, after the looks of the suite.

    It has more seeds of a single arm: of the subject if the share is open, and of the cure if the subject failed, because so
    many runs without a failure show that the cure keeps to the allowed share.
    """
    terms: dict[tuple[str, str], None] = {}
    for name, contrast in state.contrasts("share"):
        decision = decisions.get(name)
        if look != share_looks(contrast, study.suite.rules)[-1]:
            continue
        if decision is None or decision.is_open:
            terms |= dict.fromkeys(contrast.weights)
        elif decision.verdict == "FAIL":
            terms |= dict.fromkeys(estimates.swap_arm(contrast, "subject", "cured").weights)
    return _term_requests(state, terms, range(study.suite.rules.seed, study.suite.rules.seed + look), study)


def check_views(state: PluginState, study: Study) -> None:
    """Raise the exception of a contrast whose views do not exist, before anything is trained."""
    contrast_requests(state, (study.suite.rules.seed,), study, {})
    share_requests(state, (study.suite.rules.seed,), study, {})
    invariant_requests(state, (study.suite.rules.seed,), study)


def _open_contrast_terms(state: PluginState, contrast: Contrast) -> Iterator[tuple[str, str]]:
    """Yield the terms of an open contrast: those of its estimate, of its remedy, of measurements and of measures."""
    yield from (*contrast.weights, ("subject", "test"), ("cured", "test"), ("scratch", "test"))
    yield from estimates.swap_arm(contrast, "subject", "cured").weights
    for measurement in state.measurements():
        yield from (term for term in measurement.weights if term[0] not in state.extra_arms)
    yield from (("subject", measure) for measure in state.plugin.measures)


def contrast_margin(contrast: Contrast, rules: Rules) -> float:
    """Return the margin of a contrast, in the unit of its metric."""
    return rules.margin if contrast.margin is None or contrast.metric == rules.metric else contrast.margin


def invariant_requests(state: PluginState, seeds: Sequence[int], study: Study) -> list[TrialRequest]:
    """Return the requests of a plugin's exact contrasts: their measures for the subject, the cure and the induced arms.

    The extra arms are requested here too, and all measurements if no contrast is compared with the margin.
    """
    induced = [f"induced:{variant}" for variant in state.variants]
    terms = {
        (arm, view): None
        for _, contrast in state.contrasts("exact")
        for _, view in contrast.weights
        for arm in ("subject", "cured", *(induced if contrast.controlled else ()))
    }
    if not any(state.contrasts("paired")):
        terms |= dict.fromkeys(term for contrast in state.measurements() for term in contrast.weights)
    if not state.plugin.has_verdict and any(state.contrasts("info")):
        terms |= dict.fromkeys(("subject", measure) for measure in state.plugin.measures)
    terms |= {(arm, "test"): None for arm in state.extra_arms if not state.skipped and not state.error}
    return _term_requests(state, terms, seeds, study)


def _term_requests(
    state: PluginState, terms: Iterable[tuple[str, str]], seeds: Sequence[int], study: Study
) -> list[TrialRequest]:
    requests = [
        TrialRequest(plugin=state.plugin.id, arm=arm, view=view, seed=seed, trial=_term_trial(state, arm, view, seed, study))
        for arm, view in terms
        for seed in seeds
    ]
    return [*teacher_requests(requests), *requests]


def _term_trial(state: PluginState, arm: str, view: str, seed: int, study: Study) -> Trial:
    """Return the trial of an arm in a view, or of one of the plugin's measures."""
    pipeline, plugin = state.arms[arm].pipeline, state.plugin
    assert pipeline is not None, "a plugin with an arm that is not resolved makes no requests"
    if view not in plugin.measures:
        return trials.make_trial(pipeline, view, seed, study.context)
    reference = plugin.measures[view]
    return trials.make_trial(
        pipeline,
        "test",
        seed,
        study.context,
        measure_key(plugin.id, view, reference, plugin.source),
        function=reference,
        needs_pretraining_data=plugin.needs_pretraining_data,
        domain=plugin.domain,
    )
