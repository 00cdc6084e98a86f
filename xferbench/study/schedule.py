"""The replay: given the answers so far, what a study asks next, or its judgements. Pure, so a killed run resumes by itself.

Choices are settled first, the subject's before all others; then the looks go in order, each with only its own seeds. What
is decided closes, and seeds are asked only for what is open.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from xferbench.analysis import estimates, sequential
from xferbench.core.canonical import measure_key
from xferbench.core.pipeline import InputTransform, Preprocessing
from xferbench.core.reason import Code, Reason, because
from xferbench.core.trial import EvaluationSpec, ModelSpec, TrainingSpec, Trial
from xferbench.study import batching, selection, trials
from xferbench.study.arms import induced_arms, plugin_arms, why_not, why_not_supported
from xferbench.study.study import Study, TrialRequest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from xferbench.analysis.sequential import SequentialDecision
    from xferbench.core.pipeline import Arm, Pipeline
    from xferbench.core.plugin import Contrast, Plugin
    from xferbench.core.record import Record
    from xferbench.core.suite import Suite
    from xferbench.study.selection import ResolvedArm


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginState:
    """A plugin in a study: why it is not asked, what broke, or its settled arms.

    ``trust`` is what its answer takes on trust; ``recorded`` the preprocessing that a suite need not state.
    """

    plugin: Plugin
    skipped: str = ""
    error: str = ""
    trust: str = ""
    recorded: InputTransform = field(default_factory=Preprocessing)
    arms: Mapping[str, ResolvedArm] = field(default_factory=dict)

    @property
    def variants(self) -> tuple[str, ...]:
        """The induced variants' names."""
        return tuple(arm.removeprefix("induced:") for arm in self.arms if arm.startswith("induced:"))

    @property
    def exposed(self) -> bool:
        """Whether the cure changes anything."""
        return self.arms["subject"].pipeline != self.arms["cured"].pipeline

    def contrasts(self, kind: str) -> Iterator[tuple[str, Contrast]]:
        """The contrasts of a kind, by plugin/contrast; none where the plugin is not asked."""
        if not self.skipped and not self.error:
            yield from ((f"{self.plugin.id}/{one.name}", one) for one in self.plugin.contrasts if one.kind == kind)

    def measured(self) -> Iterator[Contrast]:
        """The measurements that can be had, and say more than that subject and cure are one."""
        judged = [{arm for arm, _ in one.weights} for _, one in self.contrasts("paired")]
        apart = not self.plugin.has_verdict or any("cured" not in arms for arms in judged)  # harm is no distance from the cure
        for _, one in self.contrasts("info"):
            arms = {arm for arm, _ in one.weights}
            if (self.exposed or apart or arms - {"subject", "cured"}) and all(arm in self.arms for arm in arms):
                yield one

    @property
    def beside(self) -> tuple[str, ...]:
        """The arms that are only measured."""
        return tuple(arm for arm in self.arms if arm.startswith("beside:"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Where a study stands: ``wanted`` is all that the present stage asks, answered or not; at the end it is empty.

    ``asked`` has every question so far, those of tuning too. ``judgements`` are by plugin/contrast.
    """

    stage: str = ""
    wanted: Mapping[str, Trial] = field(default_factory=dict)
    asked: tuple[TrialRequest, ...] = ()
    cases: tuple[PluginState, ...] = ()
    subject: ResolvedArm | None = None
    judgements: Mapping[str, SequentialDecision] = field(default_factory=dict)
    stopped: Reason | None = None


def next_step(study: Study, answers: Mapping[str, Record]) -> Schedule:
    """What is to be asked next, given all answers so far; of what learns from another fit, that fit first."""
    found = _step(study, answers)
    asked = {one.model.base.teacher for one in found.wanted.values()}
    first = {key: one for key, one in found.wanted.items() if one.model.base in asked}
    return replace(found, stage="training teachers", wanted=first) if first.keys() - answers.keys() else found


def _step(study: Study, answers: Mapping[str, Record]) -> Schedule:
    """What the present stage asks, those that teach among it."""
    if study.facts.crash:
        return Schedule(cases=tuple(PluginState(plugin=plugin, error=study.facts.crash) for plugin in study.plugins))
    asked = selection_requests("", "subject", study.subject, study)
    subject = selection.select(study.subject, study, answers)
    if subject is None:
        return Schedule(stage="choosing the default recipe", wanted=batching.unique_trials(asked), asked=tuple(asked))
    if subject.pipeline is None:
        cases = tuple(PluginState(plugin=plugin, error=f"subject: {subject.error}") for plugin in study.plugins)
        return Schedule(asked=tuple(asked), cases=cases, subject=subject)
    found = [_case(plugin, study, subject.pipeline, answers) for plugin in study.plugins]
    tuning = [question for _, new in found for question in new]
    asked += tuning
    if any(one.trial.key not in answers for one in tuning):
        stage = "looking for repairs" if subject.pipeline.finished else "tuning cures and scratch"
        return Schedule(stage=stage, wanted=batching.unique_trials(tuning), asked=tuple(asked), subject=subject)
    cases = tuple(case for case, _ in found)
    first = range(study.suite.seed, study.suite.seed + study.suite.looks[0])
    origins = [question for case in cases for question in start_requests(case, first, study)]
    asked += origins
    if any(one.trial.key not in answers for one in origins):
        return Schedule(
            stage="training what others start from", wanted=batching.unique_trials(origins), asked=tuple(asked), subject=subject
        )
    return _looked(study, Schedule(asked=tuple(asked), cases=cases, subject=subject), answers)


def selection_requests(plugin: str, name: str, arm: Arm, study: Study) -> list[TrialRequest]:
    """What has to be asked to settle an arm."""
    found = [
        TrialRequest(plugin=plugin, arm=name, view="validation", seed=one.model.base.seed, trial=one)
        for one in selection.selection_trials(arm, study)
    ]
    return [*teacher_requests(found), *found]


def teacher_requests(asked: Sequence[TrialRequest]) -> list[TrialRequest]:
    """The fits that others learn from, each asked for once and by itself, so that no two workers train the same one."""
    found = {}
    for one in asked:
        if (teacher := one.trial.model.base.teacher) is not None:
            view = EvaluationSpec(examples="validation", preprocessing=teacher.preprocessing)
            trial = Trial(model=ModelSpec(base=teacher), view=view, place=one.trial.place)
            found[one.plugin, one.arm, teacher] = replace(one, view="validation", trial=trial)
    return list(found.values())


def _case(
    plugin: Plugin, study: Study, subject: Pipeline, answers: Mapping[str, Record]
) -> tuple[PluginState, list[TrialRequest]]:
    """A plugin's arms as far as they can be settled, and what their choices ask."""
    asked: list[TrialRequest] = []
    settled: dict[str, ResolvedArm] = {}
    pending: list[str] = []

    def settle(arms: Mapping[str, Arm]) -> None:
        for name, arm in arms.items():
            asked.extend(selection_requests(plugin.id, name, arm, study))
            found = selection.select(arm, study, answers)
            if found is None:
                pending.append(name)
            else:
                settled[name] = found

    try:
        skipped = why_not(plugin, study, subject)
        if skipped:
            return PluginState(plugin=plugin, skipped=skipped), []
        settle(plugin_arms(plugin, study, subject))
        trust = plugin.trust(subject, study.facts) if plugin.trust else ""
        if "cured" in settled and (cured := settled["cured"].pipeline) is not None:
            if skipped := why_not_supported(plugin, study, subject, cured):
                return PluginState(plugin=plugin, skipped=skipped), []
            settle(induced_arms(plugin, study, cured))
        broken = [f"{name}: {one.error}" for name, one in settled.items() if one.error]
        case = PluginState(plugin=plugin, error=broken[0] if broken else "", trust=trust, arms=settled)
        if not pending:  # a contrast of views that are not there is a crash of this plugin alone
            contrast_requests(case, (study.suite.seed,), study, {})
            invariant_requests(case, (study.suite.seed,), study)
    except Exception as error:  # noqa: BLE001 - a plugin's crash is its finding, and the others go on
        return PluginState(plugin=plugin, error=f"{type(error).__name__}: {error}"), []
    return replace(case, recorded=study.facts.preprocessing), asked


def start_requests(case: PluginState, seeds: Sequence[int], study: Study) -> list[TrialRequest]:
    """The fits that arms of a plugin start from, asked for by themselves, so that no two workers train the same one."""
    found = {}
    for name, arm in case.arms.items():
        for start in () if arm.pipeline is None else (trials.training_spec(arm.pipeline, seed).start for seed in seeds):
            if isinstance(start, TrainingSpec):
                view = EvaluationSpec(examples="validation", preprocessing=start.preprocessing)
                trial = Trial(model=ModelSpec(base=start), view=view, place=study.place)
                found[name, start] = TrialRequest(
                    plugin=case.plugin.id, arm=name, view="validation", seed=start.seed, trial=trial
                )
    return list(found.values())


def _looked(study: Study, so_far: Schedule, answers: Mapping[str, Record]) -> Schedule:
    """Go through the looks as far as the answers reach."""
    suite, reached = study.suite, so_far
    stopped: Reason | None = None

    def observe(look: int, judgements: Mapping[str, SequentialDecision]) -> Mapping[str, SequentialDecision] | None:
        nonlocal reached, stopped
        number = suite.looks.index(look) + 1
        if number > 1:
            before = suite.looks[number - 2]
            if not any(contrast_requests(case, _seeds(suite, before), study, judgements) for case in so_far.cases):
                return None
            if recorded_seconds(reached.asked, answers) >= suite.budget:
                stopped = because(Code.BUDGET_SPENT, budget=suite.budget, seeds=before, planned=suite.looks[-1])
                return None
        seeds = _seeds(suite, look)
        reached = replace(so_far, **_requests(study, reached, seeds, judgements, answers, number))
        return None if reached.wanted else _observed(study, reached, seeds, judgements, answers)

    judgements = sequential.run_looks(suite.looks, suite.alpha, observe)
    return reached if reached.wanted else replace(reached, judgements=judgements, stopped=stopped)


def _seeds(suite: Suite, look: int) -> tuple[int, ...]:
    return tuple(range(suite.seed, suite.seed + look))


def _requests(
    study: Study,
    reached: Schedule,
    seeds: tuple[int, ...],
    judgements: Mapping[str, SequentialDecision],
    answers: Mapping[str, Record],
    number: int,
) -> dict[str, Any]:
    """The fields of a step at a look: all questions so far, and the trials of this look where one lacks its record."""
    suite = study.suite
    new = [question for case in reached.cases for question in contrast_requests(case, seeds, study, judgements)]
    if number == 1:  # an invariant that holds at a few seeds by construction holds at all
        new += [question for case in reached.cases for question in invariant_requests(case, seeds, study)]
    asked = {(one.plugin, one.arm, one.view, one.seed, one.trial.key): one for one in (*reached.asked, *new)}
    fields: dict[str, Any] = {"asked": tuple(asked.values())}
    if any(question.trial.key not in answers for question in new):
        stage = f"look {number} of {len(suite.looks)}: {len(seeds)} seeds" if suite.after is None else "judging"
        fields |= {"stage": stage, "wanted": batching.unique_trials(new)}
    return fields


def _observed(
    study: Study,
    reached: Schedule,
    seeds: tuple[int, ...],
    judgements: Mapping[str, SequentialDecision],
    answers: Mapping[str, Record],
) -> dict[str, SequentialDecision]:
    """The judgements with one look's estimates."""
    observed = dict(judgements)
    for case in reached.cases:
        records = records_by_term(reached.asked, case.plugin.id, answers)
        for name, contrast in case.contrasts("paired"):
            observed[name] = _judged(case, contrast, judgements.get(name), records, seeds, study)
    return observed


def records_by_term(
    asked: Sequence[TrialRequest], plugin: str, answers: Mapping[str, Record]
) -> dict[tuple[str, str, int], Record]:
    """A plugin's records by arm, view and seed; those of tuning belong to candidates and to no arm."""
    own = [one for one in asked if one.plugin == plugin and one.view != "validation"]
    return {(one.arm, one.view, one.seed): answers[one.trial.key] for one in own}


def contrast_requests(
    case: PluginState, seeds: Sequence[int], study: Study, judgements: Mapping[str, SequentialDecision]
) -> list[TrialRequest]:
    """What a plugin asks at a look: all its arms while a contrast is open, only the control's while only that is."""
    terms: dict[tuple[str, str], None] = {}
    for name, contrast in case.contrasts("paired"):
        known = judgements.get(name)
        if known is None or known.is_open:
            terms |= dict.fromkeys([*contrast.weights, ("subject", "test"), ("cured", "test"), ("scratch", "test")])
            terms |= dict.fromkeys(estimates.swap_arm(contrast, "subject", "cured").weights)  # is the remedy one?
            terms |= dict.fromkeys(term for info in case.measured() for term in info.weights if term[0] not in case.beside)
            terms |= dict.fromkeys(("subject", measure) for measure in case.plugin.measures)
        for variant in case.variants:
            if known is None or known.lacks(variant, rules_for(contrast, study.suite).margin):
                terms |= dict.fromkeys([*estimates.positive_control(contrast, variant).weights, (f"induced:{variant}", "test")])
                terms |= dict.fromkeys((f"induced:{variant}", measure) for measure in case.plugin.measures)
    there = {term: None for term in terms if term[0] in case.arms}  # of a finished network there may be no scratch
    return _asked(case, there, seeds, study)


def invariant_requests(case: PluginState, seeds: Sequence[int], study: Study) -> list[TrialRequest]:
    """What a plugin's exact contrasts ask: their measures of the subject, of the cure, and of what is induced.

    What is only measured beside is asked here too, and all measurements where no contrast is judged against the margin.
    """
    induced = [f"induced:{variant}" for variant in case.variants]
    terms = {
        (arm, view): None
        for _, exact in case.contrasts("exact")
        for _, view in exact.weights
        for arm in ("subject", "cured", *(induced if exact.controlled else ()))
    }
    if not any(case.contrasts("paired")):
        terms |= dict.fromkeys(term for info in case.measured() for term in info.weights)
    if not case.plugin.has_verdict and any(case.contrasts("info")):
        terms |= dict.fromkeys(("subject", measure) for measure in case.plugin.measures)
    terms |= {(arm, "test"): None for arm in case.beside if not case.skipped and not case.error}
    return _asked(case, terms, seeds, study)


def _asked(case: PluginState, terms: Iterable[tuple[str, str]], seeds: Sequence[int], study: Study) -> list[TrialRequest]:
    found = [
        TrialRequest(plugin=case.plugin.id, arm=arm, view=view, seed=seed, trial=_trial(case, arm, view, seed, study))
        for arm, view in terms
        for seed in seeds
    ]
    return [*teacher_requests(found), *found]


def _trial(case: PluginState, arm: str, view: str, seed: int, study: Study) -> Trial:
    pipeline = case.arms[arm].pipeline
    assert pipeline is not None, "a case with an arm that could not be settled asks nothing"
    if view in case.plugin.measures:
        plugin = case.plugin
        reference = plugin.measures[view]
        measure = measure_key(plugin.id, view, reference, plugin.source)
        return trials.make_trial(
            pipeline,
            "test",
            seed,
            study.place,
            measure,
            function=reference,
            needs_pretraining_data=plugin.needs_pretraining_data,
            domain=plugin.domain,
        )
    return trials.make_trial(pipeline, view, seed, study.place)


def rules_for(contrast: Contrast, suite: Suite) -> Suite:
    """A suite with the metric by which a contrast's views are scored, and the margin that goes with it."""
    metric = contrast.metric or selection.metric_for_views(suite.metric, [view for _, view in contrast.weights])
    margin = suite.margin if contrast.margin is None or contrast.metric == suite.metric else contrast.margin
    return replace(suite, metric=metric, margin=margin)


def _judged(
    case: PluginState,
    contrast: Contrast,
    known: SequentialDecision | None,
    told: estimates.RecordsByTerm,
    seeds: tuple[int, ...],
    study: Study,
) -> SequentialDecision:
    """A contrast after one more look; a closed one keeps its numbers, its missing controls are looked at again."""
    after = known
    if after is None or after.is_open:
        after = sequential.add_look(
            known, estimates.estimate_contrast(contrast, told, seeds, rules_for(contrast, study.suite)), seeds
        )
    controls = {
        variant: estimates.estimate_contrast(
            estimates.positive_control(contrast, variant), told, seeds, rules_for(contrast, study.suite)
        )
        if known is None or known.lacks(variant, rules_for(contrast, study.suite).margin)
        else known.controls[variant]
        for variant in case.variants
    }
    return replace(after, controls=controls)


def recorded_seconds(asked: Sequence[TrialRequest], answers: Mapping[str, Record]) -> float:
    """Recorded seconds of all that was asked, each trial and each fit once, whether computed now or earlier."""
    records = [answers[key] for key in dict.fromkeys(one.trial.key for one in asked) if key in answers]
    return sum(record.seconds for record in records) + training_seconds(asked, answers)


def training_seconds(asked: Sequence[TrialRequest], answers: Mapping[str, Record]) -> float:
    """Recorded seconds of training, each fit once: a teacher's are in its students' too, and count once where it was asked."""
    found: dict[TrainingSpec, float] = {}
    for key, one in batching.unique_trials(asked).items():
        if key in answers:
            found[one.model.base] = max(found.get(one.model.base, 0.0), answers[key].fit_seconds)
    taught = {one: found.get(one.teacher, 0.0) if one.teacher else 0.0 for one in found}
    return sum(max(0.0, seconds - taught[one]) for one, seconds in found.items())
