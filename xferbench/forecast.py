"""The forecast of a dry run: arms, numbers of trials and computing time. Pure. Nothing is run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from xferbench import looks, plan, stats
from xferbench.design import HELD_OUT, Arm, Choice, Fit, Pipeline, Plugin, Suite, Trial
from xferbench.plan import Question, Settled, Study
from xferbench.wording import of_pipeline, words

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from xferbench.record import Record


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What a study would run.

    A selection that is still open is counted with its most expensive candidate.

    Attributes:
        arms: a description of each arm, by plugin.
        skipped: why plugins are skipped.
        first: numbers of fits and trials up to the first look: requested, unique, and in the store.
        last: the same numbers up to the last look.
        seconds: time of the missing trials up to the first and up to the last look, divided by the number of workers.
        smallest_margin: the smallest margin that the test set can decide, or None.
    """

    arms: Mapping[str, Mapping[str, str]]
    skipped: Mapping[str, str]
    first: Mapping[str, int]
    last: Mapping[str, int]
    seconds: tuple[float, float]
    smallest_margin: float | None


def forecast(study: Study, answers: Mapping[str, Record], workers: int) -> Forecast:
    """Count what a study requests, and how much of it is in ``answers``."""
    suite, subject = study.suite, _assumed_pipeline(study.subject, study, answers)
    requests = looks.tuned("", "subject", study.subject, study)
    cases, descriptions = [], {}
    for plugin in study.plugins:
        skipped, arms = _feasible_arms(plugin, study, subject, answers)
        for name, arm in arms.items():
            requests += looks.tuned(plugin.id, name, arm, study)
        settled = {name: Settled(pipeline=_assumed_pipeline(arm, study, answers)) for name, arm in arms.items()}
        cases.append(looks.Case(plugin=plugin, skipped=skipped, arms=settled))
        requests += looks.sources(cases[-1], range(suite.seed, suite.seed + suite.looks[0]), study)
        descriptions[plugin.id] = {name: _describe_arm(arm, study, answers) for name, arm in arms.items()}
        if arms and isinstance(study.subject, Choice):
            descriptions[plugin.id]["subject"] = _describe_arm(study.subject, study, answers)
    counts, seconds = [], []
    for look in (suite.looks[0], suite.looks[-1]):
        all_requests = [*requests, *_look_requests(look, cases, study)]
        missing = {request.trial.key: request.trial for request in all_requests if request.trial.key not in answers}
        counts.append(_count(all_requests, answers))
        seconds.append(_worker_seconds(missing, study) / workers)
    examples = study.facts.test_groups or study.facts.test
    return Forecast(
        arms={case.plugin.id: descriptions[case.plugin.id] for case in cases if not case.skipped},
        skipped={case.plugin.id: case.skipped for case in cases if case.skipped},
        first=counts[0],
        last=counts[1],
        seconds=(seconds[0], seconds[1]),
        smallest_margin=smallest_margin(suite, examples, [case.plugin for case in cases if not case.skipped]),
    )


def _look_requests(look: int, cases: Sequence[looks.Case], study: Study) -> list[Question]:
    """Return the requests of contrasts up to a look, and those of invariants, which need only the seeds of the first look."""
    suite = study.suite
    seeds = range(suite.seed, suite.seed + look)
    first_seeds = range(suite.seed, suite.seed + suite.looks[0])
    contrasts = [request for case in cases for request in looks.questions(case, seeds, study, {})]
    return contrasts + [request for case in cases for request in looks.invariants(case, first_seeds, study)]


def _feasible_arms(
    plugin: Plugin, study: Study, subject: Pipeline, answers: Mapping[str, Record]
) -> tuple[str, Mapping[str, Arm]]:
    """Return why a plugin is skipped, or "", and its arms."""
    try:
        skipped = plan.inapplicable(plugin, study, subject)
        if skipped:
            return skipped, {}
        arms = plan.arms(plugin, study, subject)
        cured = _assumed_pipeline(arms["cured"], study, answers)
        skipped = plan.unheard(plugin, study, subject, cured)
        return (skipped, {}) if skipped else ("", arms | plan.induced(plugin, study, cured))
    except Exception as error:  # noqa: BLE001 - the crash becomes the plugin's finding, and other plugins continue
        return f"it crashes: {type(error).__name__}: {error}", {}


def smallest_margin(suite: Suite, examples: int, plugins: Sequence[Plugin]) -> float | None:
    """Return the smallest margin that a test set of so many examples (or groups) can decide at the last look.

    The margin is corrected for the number of looks and of judged contrasts. It is None for metrics other than accuracy,
    because their variance is not known in advance.
    """
    judged = sum(contrast.kind == "paired" for plugin in plugins for contrast in plugin.contrasts)
    if suite.metric != "accuracy" or not judged:
        return None
    alpha = stats.spending(suite.looks, suite.alpha)[-1] / judged
    judged_examples = examples // 2 if suite.after else examples  # an audit screens repairs on the other half
    return stats.smallest_margin(judged_examples, suite.looks[-1], alpha=alpha)


def _assumed_pipeline(arm: Arm, study: Study, answers: Mapping[str, Record]) -> Pipeline:
    settled = plan.settle(arm, study, answers)
    if settled is not None and settled.pipeline is not None:
        return settled.pipeline
    assert isinstance(arm, Choice)
    return max(arm.candidates, key=lambda candidate: plan.cost(plan.fit(candidate, 0)))


def _describe_arm(arm: Arm, study: Study, answers: Mapping[str, Record]) -> str:
    settled = plan.settle(arm, study, answers)
    if settled is not None and settled.pipeline is not None:
        return _describe_pipeline(settled.pipeline, study)
    assert isinstance(arm, Choice)
    where = "the screened half" if arm.candidates[0].finished else "validation"
    return f"best on {where} of " + " | ".join(
        candidate.recipe.name or _describe_pipeline(candidate, study) for candidate in arm.candidates
    )


def _describe_pipeline(pipeline: Pipeline, study: Study) -> str:
    if pipeline.finished:
        return of_pipeline(pipeline, study.facts.preprocessing)
    return words(pipeline.recipe)


def _count(requests: list[Question], answers: Mapping[str, Record]) -> dict[str, int]:
    trials = {request.trial.key: request.trial for request in requests}
    fits = {trial.model.base for trial in trials.values()}
    stored_fits = {trial.model.base for key, trial in trials.items() if key in answers}
    return {
        "fits asked": len({(request.plugin, request.arm, request.trial.model.base) for request in requests}),
        "fits unique": len(fits),
        "fits in the store": len(stored_fits),
        "trials asked": len(requests),
        "trials unique": len(trials),
        "trials in the store": sum(key in answers for key in trials),
    }


def _worker_seconds(missing: Mapping[str, Trial], study: Study) -> float:
    """Return the time of one worker: training by examples seen, evaluation by examples scored."""
    facts = study.facts
    fits: dict[Fit, None] = {trial.model.base: None for trial in missing.values()}
    training_seconds = sum(plan.cost(fit) for fit in fits) * facts.seconds_step
    half = facts.test // 2
    sizes = {"validation": facts.validation, "held-out": HELD_OUT, "screen": half, "confirm": half}
    # Other evaluations are counted with all test images: how many have no copy is not known in advance.
    views = [trial.view for trial in missing.values() if trial.view.measure == "predictions"]
    scored_examples = sum(sizes.get(view.examples, facts.test) for view in views)
    return training_seconds + scored_examples * facts.seconds_forward
