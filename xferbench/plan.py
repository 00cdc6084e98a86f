"""From pipelines to trials: the arms of a plugin, the choices among them, and what each is asked. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from xferbench import honours, metrics
from xferbench.design import Arm, Choice, Facts, Fit, Model, Phase, Pipeline, Place, Plugin, Suite, Trial, View
from xferbench.strategies import healthy, scratch
from xferbench.suite import words

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from xferbench.record import Record

TUNING = 1_000_000  # tuning seeds begin here, apart from the judged ones


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """A named way to look at a pipeline's model: edits of the model, and what its view has of its own."""

    edits: tuple[str, ...] = ()
    mode: str | None = None
    examples: str = "test"


VIEWS: Mapping[str, Look] = {
    "test": Look(),
    "validation": Look(examples="validation"),
    "train-mode": Look(mode="train"),
    "restored": Look(edits=("batchnorm:restored",)),
    "recalibrated": Look(edits=("batchnorm:recalibrated",)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """All that a plan is made of: the suite, what is known, what is asked, and where it is computed."""

    suite: Suite
    facts: Facts
    plugins: tuple[Plugin, ...]
    subject: Arm
    place: Place


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """An arm made definite; ``weighed`` has every candidate with its validation score. ``error`` where none could be."""

    pipeline: Pipeline | None
    weighed: tuple[tuple[Pipeline, float], ...] = ()
    error: str = ""

    @property
    def at_edge(self) -> str:
        """Which end of at least three tried rates was chosen, if one was; among recipes of the chosen one's kind."""
        if self.pipeline is None:
            return ""
        chosen = kind(self.pipeline)
        rates = sorted({peak(pipeline) for pipeline, _ in self.weighed if kind(pipeline) == chosen})
        if len(rates) < 3 or peak(self.pipeline) not in {rates[0], rates[-1]}:
            return ""
        return f"lowest rate tried, {rates[0]:g}" if peak(self.pipeline) == rates[0] else f"highest rate tried, {rates[-1]:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A trial with who asks it: one row of a run."""

    plugin: str
    arm: str
    view: str
    seed: int
    trial: Trial


def peak(pipeline: Pipeline) -> float:
    """The rate of a recipe's last phase."""
    return pipeline.recipe.phases[-1].lr


def kind(pipeline: Pipeline) -> tuple[str, ...]:
    """What tells strategies apart: where a recipe starts, and what each phase trains."""
    return (pipeline.recipe.init, *(phase.trainable for phase in pipeline.recipe.phases))


def subject(suite: Suite, pipeline: Pipeline) -> Arm:
    """What the user does today: the suite's recipe, or without one the healthy default."""
    return healthy(pipeline) if suite.recipe is None else replace(pipeline, recipe=suite.recipe)


def fit(pipeline: Pipeline, seed: int) -> Fit:
    """The network that a pipeline trains at one seed; how it is served or stopped is no part of it."""
    recipe = pipeline.recipe
    made_here = recipe.init == "shuffled-source"
    return Fit(
        arch=pipeline.arch,
        init="pretrained" if made_here else recipe.init,
        start=source_fit(pipeline) if made_here else None if recipe.init == "random" else pipeline.weights,
        head=recipe.head,
        phases=recipe.phases,
        data=pipeline.target,
        train_size=pipeline.train_size,
        preprocessing=pipeline.train_preprocessing,
        seed=seed,
        code=pipeline.code,
        training=pipeline.training,
        stop=recipe.stop if pipeline.training else "last",
    )


def source_fit(pipeline: Pipeline) -> Fit:
    """A network pretrained on the pipeline's source with shuffled labels, for as long as scratch is trained."""
    assert pipeline.source is not None, "only a pipeline with a source has such a start"
    grid = pipeline.baseline
    phase = Phase(lr=max(grid.lr), schedule="one-cycle", steps=grid.steps, batch_size=grid.batch_size)
    return Fit(
        arch=pipeline.arch,
        init="random",
        start=None,
        head="random",
        phases=(phase,),
        data=pipeline.source,
        train_size=None,
        preprocessing=pipeline.train_preprocessing,
        seed=0,
        labels="shuffled",
        code=pipeline.code,
    )


def trial(pipeline: Pipeline, view: str, seed: int, place: Place, measure: str = "predictions") -> Trial:
    """One seed of a pipeline, looked at in a named way."""
    look = VIEWS[view]
    seen = View(
        examples=look.examples,
        limit=pipeline.test_size if look.examples == "test" and measure == "predictions" else None,
        preprocessing=pipeline.serve_preprocessing,
        mode=look.mode or pipeline.mode,
        step=pipeline.recipe.stop,
        measure=measure,
    )
    return Trial(model=Model(base=fit(pipeline, seed), edits=look.edits), view=seen, place=place)


def base(one: Trial) -> Fit:
    """The fit that a trial looks at."""
    found = one.model.base
    assert isinstance(found, Fit), "a study asks about fits; finished checkpoints are an audit's"
    return found


def tuning(arm: Arm, study: Study) -> list[Trial]:
    """The validation trials that settle a choice."""
    if isinstance(arm, Pipeline):
        return []
    seeds = range(TUNING, TUNING + study.suite.tuning_seeds)
    return [trial(candidate, "validation", seed, study.place) for candidate in arm.candidates for seed in seeds]


def settle(arm: Arm, study: Study, answers: Mapping[str, Record]) -> Settled | None:
    """A choice made by the mean validation metric over the tuning seeds, the first of equals; None while answers are missing.

    A candidate that crashed leaves nothing to choose: what it would have scored is not known, and without it another might win.
    """
    if isinstance(arm, Pipeline):
        return Settled(pipeline=arm)
    metric, weighed = metrics.named(study.suite.metric), []
    for candidate in arm.candidates:
        asked = tuning(Choice(candidates=(candidate,)), study)
        if any(one.key not in answers for one in asked):
            return None
        records = [answers[one.key] for one in asked]
        for record in records:
            if record.error or record.predictions is None:
                return Settled(
                    pipeline=None, error=f"tuning of {candidate.recipe.name or words(candidate.recipe)}: {record.error}"
                )
        score = float(
            np.mean([metrics.value(one.predictions, study.suite.metric) for one in records if one.predictions is not None])
        )
        weighed.append((candidate, -score if metric.loss else score))
    best = max(range(len(weighed)), key=lambda rank: (np.nan_to_num(weighed[rank][1], nan=-np.inf), -rank))
    if not np.isfinite(weighed[best][1]):
        return Settled(pipeline=None, weighed=tuple(weighed), error=f"no candidate has a {study.suite.metric} on validation")
    return Settled(pipeline=weighed[best][0], weighed=tuple(weighed))


def arms(plugin: Plugin, study: Study, subject: Pipeline) -> dict[str, Arm]:
    """The arms of a plugin that need nothing settled but the subject; in a cure the subject is always a candidate."""
    cured = plugin.cure(subject, study.facts)
    if isinstance(cured, Choice):
        cured = Choice(candidates=tuple(dict.fromkeys((subject, *cured.candidates))))
    found = {"subject": subject, "cured": cured, "scratch": scratch(subject, study.suite.scratch)}
    return honours.arms(found, subject, study.facts.honours)


def induced(plugin: Plugin, study: Study, cured: Pipeline) -> dict[str, Arm]:
    """The induced arms, ``induced:VARIANT``, made from the cured pipeline once that is settled."""
    found = {f"induced:{variant}": arm for variant, arm in plugin.induce(cured, study.facts).items()}
    return honours.arms(found, cured, study.facts.honours)


def unheard(plugin: Plugin, study: Study, subject: Pipeline, cured: Pipeline | None = None) -> str:
    """Why a plugin would ask the user's training code for what that ignores, or ""; with ``cured`` once that is settled."""
    induced = plugin.induce(cured, study.facts).values() if cured else ()
    return honours.unheard(plugin.cure(subject, study.facts), induced, subject, study.facts.honours)


def trials(questions: Sequence[Question]) -> dict[str, Trial]:
    """The unique trials of some questions, by key, in a fixed order."""
    return {one.trial.key: one.trial for one in questions}


def groups(asked: Mapping[str, Trial], size: int, suite: Suite) -> Iterator[tuple[Trial, ...]]:
    """Trials whose fits differ only in their seed and came with the same look, cut into groups of at most ``size`` fits.

    They are cut from all that is asked, and not from what is missing, so that a resumed run forms the same groups. What
    costs most goes first, so that no worker is left alone with it at the end.
    """
    shapes: dict[tuple[Fit, Place, int], dict[Fit, list[Trial]]] = {}
    for one in asked.values():
        fitted = base(one)
        look = sum(fitted.seed - suite.seed >= seeds for seeds in suite.looks)
        shapes.setdefault((replace(fitted, seed=0), one.place, look), {}).setdefault(fitted, []).append(one)
    for fits in sorted(shapes.values(), key=lambda fits: -cost(next(iter(fits)))):
        members = list(fits)
        for start in range(0, len(members), size):
            yield tuple(one for member in members[start : start + size] for one in fits[member])


def cost(one: Fit) -> float:
    """Examples that go through a fit's training, those of a frozen backbone counted at a tenth; for order and estimates."""
    return sum(examples(phase) for phase in one.phases)


def examples(phase: Phase) -> float:
    """A phase's share of :func:`cost`."""
    cheap = phase.trainable == "head" and phase.batchnorm == "eval"
    return phase.steps * phase.batch_size * (0.1 if cheap else 1.0)


def told(arm: Settled) -> dict[str, object]:
    """A settled arm in words, for the report."""
    if arm.pipeline is None:
        return {"recipe": "", "error": arm.error}
    weighed = [
        {"recipe": words(pipeline.recipe), "validation": score, "chosen": pipeline == arm.pipeline}
        for pipeline, score in arm.weighed
    ]
    return {"recipe": words(arm.pipeline.recipe), "weighed": weighed, "edge": arm.at_edge}
