"""What a suite would ask, before anything is run. Pure."""

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
    """Arms by plugin in words; fits and trials asked and unique up to the first look and up to the last; what is there already.

    ``seconds`` are those of computing what is missing, over all workers. A choice that is not settled yet is counted with
    its costliest candidate.
    """

    arms: Mapping[str, Mapping[str, str]]
    skipped: Mapping[str, str]
    first: Mapping[str, int]
    last: Mapping[str, int]
    seconds: tuple[float, float]
    smallest_margin: float | None


def forecast(study: Study, answers: Mapping[str, Record], workers: int) -> Forecast:
    """Count what a study asks, given what is answered."""
    suite, subject = study.suite, _assumed(study.subject, study, answers)
    asked = looks.tuned("", "subject", study.subject, study)
    cases, told = [], {}
    for plugin in study.plugins:
        skipped, arms = _arms(plugin, study, subject, answers)
        for name, arm in arms.items():
            asked += looks.tuned(plugin.id, name, arm, study)
        settled = {name: Settled(pipeline=_assumed(arm, study, answers)) for name, arm in arms.items()}
        cases.append(looks.Case(plugin=plugin, skipped=skipped, arms=settled))
        asked += looks.sources(cases[-1], study)
        told[plugin.id] = {name: _words(arm, study, answers) for name, arm in arms.items()}
        if arms and isinstance(study.subject, Choice):
            told[plugin.id]["subject"] = _words(study.subject, study, answers)
    counts, seconds = [], []
    for look in (suite.looks[0], suite.looks[-1]):
        seeds = range(suite.seed, suite.seed + look)
        first = range(suite.seed, suite.seed + suite.looks[0])
        new = [
            *(looks.questions(case, seeds, study, {}) for case in cases),
            *(looks.invariants(case, first, study) for case in cases),
        ]
        questions = [*asked, *(one for some in new for one in some)]
        missing = {one.trial.key: one.trial for one in questions if one.trial.key not in answers}
        counts.append(_counted(questions, answers))
        seconds.append(_seconds(missing, study) / workers)
    examples = study.facts.test_groups or study.facts.test
    return Forecast(
        arms={case.plugin.id: told[case.plugin.id] for case in cases if not case.skipped},
        skipped={case.plugin.id: case.skipped for case in cases if case.skipped},
        first=counts[0],
        last=counts[1],
        seconds=(seconds[0], seconds[1]),
        smallest_margin=smallest_margin(suite, examples, [case.plugin for case in cases if not case.skipped]),
    )


def _arms(plugin: Plugin, study: Study, subject: Pipeline, answers: Mapping[str, Record]) -> tuple[str, Mapping[str, Arm]]:
    """Why a plugin is not asked, or its arms."""
    try:
        skipped = plan.inapplicable(plugin, study, subject)
        if skipped:
            return skipped, {}
        arms = plan.arms(plugin, study, subject)
        cured = _assumed(arms["cured"], study, answers)
        skipped = plan.unheard(plugin, study, subject, cured)
        return (skipped, {}) if skipped else ("", arms | plan.induced(plugin, study, cured))
    except Exception as error:  # noqa: BLE001 - a plugin's crash will be its finding, and the others go on
        return f"it crashes: {type(error).__name__}: {error}", {}


def smallest_margin(suite: Suite, examples: int, plugins: Sequence[Plugin]) -> float | None:
    """What a test set of so many examples (or groups) can decide at the last look, after correction for looks and plugins.

    None for metrics other than accuracy, whose variance nobody knows beforehand.
    """
    judged = sum(one.kind == "paired" for plugin in plugins for one in plugin.contrasts)
    if suite.metric != "accuracy" or not judged:
        return None
    alpha = stats.spending(suite.looks, suite.alpha)[-1] / judged
    judged_on = examples // 2 if suite.after else examples  # an audit looks for repairs on the other half
    return stats.smallest_margin(judged_on, suite.looks[-1], alpha=alpha)


def _assumed(arm: Arm, study: Study, answers: Mapping[str, Record]) -> Pipeline:
    settled = plan.settle(arm, study, answers)
    if settled is not None and settled.pipeline is not None:
        return settled.pipeline
    assert isinstance(arm, Choice)
    return max(arm.candidates, key=lambda one: plan.cost(plan.fit(one, 0)))


def _words(arm: Arm, study: Study, answers: Mapping[str, Record]) -> str:
    settled = plan.settle(arm, study, answers)
    if settled is not None and settled.pipeline is not None:
        return _told(settled.pipeline, study)
    assert isinstance(arm, Choice)
    where = "the screened half" if arm.candidates[0].finished else "validation"
    return f"best on {where} of " + " | ".join(one.recipe.name or _told(one, study) for one in arm.candidates)


def _told(one: Pipeline, study: Study) -> str:
    if one.finished:
        return of_pipeline(one, study.facts.preprocessing)
    return words(one.recipe)


def _counted(questions: list[Question], answers: Mapping[str, Record]) -> dict[str, int]:
    trials = {one.trial.key: one.trial for one in questions}
    fits = {one.model.base for one in trials.values()}
    known = {one.model.base for key, one in trials.items() if key in answers}
    return {
        "fits asked": len({(one.plugin, one.arm, one.trial.model.base) for one in questions}),
        "fits unique": len(fits),
        "fits in the store": len(known),
        "trials asked": len(questions),
        "trials unique": len(trials),
        "trials in the store": sum(key in answers for key in trials),
    }


def _seconds(missing: Mapping[str, Trial], study: Study) -> float:
    """One worker's time: training by examples seen, looking by examples scored."""
    facts = study.facts
    fits: dict[Fit, None] = {one.model.base: None for one in missing.values()}
    trained = sum(plan.cost(one) for one in fits) * facts.seconds_step
    half = facts.test // 2
    seen = {"validation": facts.validation, "held-out": HELD_OUT, "screen": half, "confirm": half}
    # The others look at all test images; nobody knows beforehand how many of them have no copy.
    scored = sum(seen.get(one.view.examples, facts.test) for one in missing.values() if one.view.measure == "predictions")
    return trained + scored * facts.seconds_forward
