"""From pipelines to trials: the arms of a plugin, the choices among them, and what each is asked. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from xferbench import fitting, honours, metrics
from xferbench.core.interventions import HEAD_ONLY, OWN_HEAD, RANDOM_HEAD, ZERO_HEAD, Edit
from xferbench.design import (
    MADE_HERE,
    Arm,
    Choice,
    Domain,
    Facts,
    Finished,
    Fit,
    Model,
    Phase,
    Pipeline,
    Place,
    Plugin,
    Scratch,
    Suite,
    Trial,
    View,
    Weights,
)
from xferbench.strategies import healthy, scratch, teacher
from xferbench.suite import SEEDS
from xferbench.wording import of_pipeline, words

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from xferbench.design import Ready
    from xferbench.record import Record

LEAST_STEPS, MOST_STEPS = 10, 5000  # of a from-scratch baseline on a budget
LONGER = 3  # times scratch's steps, in which a network learns a source: the synthetic one needs some 80 000 examples
TUNING = SEEDS  # tuning seeds begin where the judged ones end


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """A named way to look at a pipeline's model: edits of the model, and what its view has of its own.

    ``domain`` is ``source`` or ``shifted``. ``before`` looks at the network as it starts, which all seeds share; ``trained``
    serves it as it was trained, whatever the pipeline's serving; ``stop`` at that step, whatever the recipe's; ``cued`` puts
    the cue on every image.
    """

    edits: tuple[str, ...] = ()
    mode: str | None = None
    examples: str = "test"
    domain: str = ""
    before: bool = False
    trained: bool = False
    stop: str = ""
    cued: bool = False


TEMPERED = "temperature:fitted@1"  # the edit that calibrates
BEFORE = "interpolated:0"  # the edit that gives what a finished network was made from

VIEWS: Mapping[str, Look] = {
    "test": Look(),
    "whole": Look(examples="whole"),
    "cued": Look(cued=True),
    "validation": Look(examples="validation"),
    "training": Look(examples="training"),
    "best-step": Look(stop="best"),
    "tempered": Look(edits=(TEMPERED,)),
    "train-mode": Look(mode="train"),
    "restored": Look(edits=("batchnorm:restored",)),
    "recalibrated": Look(edits=("batchnorm:recalibrated@2",)),
    "as-trained": Look(examples="whole", trained=True),
    "shifted": Look(domain="shifted"),
    "shifted-as-trained": Look(domain="shifted", trained=True),
    "source": Look(edits=("head:source",), domain="source"),
    "source-restored": Look(edits=("batchnorm:restored", "head:source"), domain="source"),
    "source-held-out": Look(edits=("head:source",), domain="source", examples="held-out"),
    "source-before": Look(edits=("head:source",), domain="source", before=True),
    "source-probe": Look(edits=("head:refit",), domain="source"),
    "source-probe-before": Look(edits=("head:refit",), domain="source", before=True),
}

MODES = {"eval": "eval", "train": "training", "train:class": "training:class"}  # a pipeline's word → its view's


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """All that a plan is made of: the suite, what is known, what is asked, and where it is computed."""

    suite: Suite
    facts: Facts
    plugins: tuple[Plugin, ...]
    subject: Arm
    place: Place


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighed:
    """A candidate of a choice: its score, above which is better; what it is on the view to keep; its mean curve.

    ``curve`` has rows of step and validation accuracy, the mean over tuning seeds; ``diverged`` is the share that did.
    ``confidence`` is how often it is the best where the examples it was chosen on are drawn again; None of what is trained.
    """

    pipeline: Pipeline
    score: float
    keeping: float | None = None
    curve: tuple[tuple[int, float], ...] = ()
    diverged: float = 0.0
    confidence: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """An arm made definite; ``weighed`` has every candidate. ``error`` where none could be chosen."""

    pipeline: Pipeline | None
    weighed: tuple[Weighed, ...] = ()
    error: str = ""

    @property
    def at_edge(self) -> str:
        """Which end of at least three tried rates was chosen, if one was; among recipes of the chosen one's kind."""
        if self.pipeline is None:
            return ""
        chosen = kind(self.pipeline)
        rates = sorted({peak(one.pipeline) for one in self.weighed if kind(one.pipeline) == chosen})
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
    """What tells strategies apart: where they start, what they train on, what holds and what ends them, what phases train."""
    recipe = pipeline.recipe
    held = recipe.regularizer.spelling if recipe.regularizer else ""
    return (
        recipe.init,
        str(recipe.augment or ""),
        held,
        str(recipe.finish or ""),
        *(str(phase.trainable) for phase in recipe.phases),
    )


def subject(suite: Suite, pipeline: Pipeline) -> Arm:
    """What the user does today: the suite's recipe, or without one the healthy default; or the network that is finished."""
    if pipeline.finished:
        return pipeline
    return healthy(pipeline) if suite.recipe is None else replace(pipeline, recipe=suite.recipe)


def fit(pipeline: Pipeline, seed: int) -> Fit:
    """The network that a pipeline trains at one seed; how it is served or stopped is no part of it."""
    recipe = pipeline.recipe
    made_here = recipe.init in {*MADE_HERE, "target"}
    needs = recipe.regularizer.requires if recipe.regularizer else ()
    needs_source = "source" in needs
    needs_shifted = "shifted" in needs and not pipeline.planted
    needs_teacher = "teacher" in needs and not (pipeline.planted or pipeline.training)
    if pipeline.finished:
        return _finished(pipeline, pipeline.finished)
    return Fit(
        arch=pipeline.arch,
        init="pretrained" if made_here else recipe.init,
        start=_start(pipeline, seed),
        head=recipe.head,
        phases=() if pipeline.planted else recipe.phases,  # what is planted is looked for, and trains nothing
        data=pipeline.target,
        train_size=pipeline.train_size,
        preprocessing=pipeline.train_preprocessing,
        seed=seed,
        regularizer=None if pipeline.planted else recipe.regularizer,
        source=pipeline.source if needs_source else None,
        code=pipeline.code,
        training=None if pipeline.planted else pipeline.training,
        stop=recipe.stop if pipeline.training and not pipeline.planted else "last",
        planted=pipeline.planted,
        augment=None if pipeline.planted else recipe.augment,
        teacher=fit(replace(pipeline, recipe=teacher(recipe)), seed) if needs_teacher else None,
        transferred="all" if recipe.init == "random" else recipe.transferred,
        unlabelled=pipeline.shifted.data if needs_shifted and pipeline.shifted else None,
        interventions=() if pipeline.planted else pipeline.interventions,
    )


def _finished(pipeline: Pipeline, network: Finished) -> Fit:
    """A finished network as the fit of no steps that keeps its own head; all seeds share it."""
    return Fit(
        arch=pipeline.arch,
        init="pretrained",
        start=network.after,
        head=OWN_HEAD,
        phases=(),
        data=pipeline.target,
        train_size=pipeline.train_size,
        preprocessing=pipeline.train_preprocessing,
        seed=0,
        code=pipeline.code,
        before=network.before,
        planted=pipeline.planted,
    )


def _start(pipeline: Pipeline, seed: int) -> Weights | Fit | None:
    if pipeline.recipe.init == "random":
        return None
    if pipeline.recipe.init in MADE_HERE:
        return source_fit(pipeline)
    return target_fit(pipeline, seed) if pipeline.recipe.init == "target" else pipeline.weights


def source_fit(pipeline: Pipeline) -> Fit:
    """A network pretrained on the pipeline's source as the recipe's start says; all seeds share it.

    With shuffled labels for as long as scratch is trained; where it is to learn something, :data:`LONGER` than that.
    """
    assert pipeline.source is not None, "only a pipeline with a source has such a start"
    grid = pipeline.baseline
    steps = grid.steps if pipeline.recipe.init == "shuffled-source" else LONGER * grid.steps
    phase = Phase(lr=max(grid.lr), schedule="one-cycle", steps=steps, batch_size=grid.batch_size)
    return Fit(
        arch=pipeline.arch,
        init="random",
        start=None,
        head=RANDOM_HEAD,
        phases=(phase,),
        data=pipeline.source.data,
        train_size=None,
        preprocessing=pipeline.train_preprocessing,
        seed=0,
        labels="shuffled" if pipeline.recipe.init == "shuffled-source" else "true",
        code=pipeline.code,
        cued=pipeline.recipe.init == "cued-source",
    )


def target_fit(pipeline: Pipeline, seed: int) -> Fit:
    """A network trained from scratch on a seed's own training images, as a candidate of the baseline is."""
    grid = pipeline.baseline
    decay = grid.weight_decay[0]
    phase = Phase(lr=max(grid.lr), weight_decay=decay, schedule="one-cycle", steps=grid.steps, batch_size=grid.batch_size)
    return Fit(
        arch=pipeline.arch,
        init="random",
        start=None,
        head=RANDOM_HEAD,
        phases=(phase,),
        data=pipeline.target,
        train_size=pipeline.train_size,
        preprocessing=pipeline.train_preprocessing,
        seed=seed,
        code=pipeline.code,
        interventions=pipeline.interventions,
    )


def trial(
    pipeline: Pipeline,
    view: str,
    seed: int,
    place: Place,
    measure: str = "predictions",
    *,
    function: str = "",
    compares: bool = False,
    given: str = "",
) -> Trial:
    """One seed of a pipeline, looked at in a named way.

    Args:
        measure: what sees it. function: where that is computed. compares: whether that compares test images with others.
        given: the domain that a measure is told of, ``source``, if there is one.
    """
    look = VIEWS[view]
    if look.stop:  # of the recipe, for code of the user's own is told at which step to stop
        pipeline = replace(pipeline, recipe=replace(pipeline.recipe, stop=look.stop))
    bounded = look.examples in {"test", "whole"} and (measure == "predictions" or compares) and not look.domain
    beside = domain(pipeline, look.domain) if look.domain else pipeline.source if given == "source" else None
    own = beside.preprocessing if beside else None  # what the source taught is asked as the source was learnt
    own = pipeline.train_preprocessing if look.trained else own
    examples = look.examples
    edits = (*pipeline.edits, *(edit for edit in look.edits if edit not in pipeline.edits))
    if pipeline.recipe.finish and measure == "predictions" and not (look.before or pipeline.finished or pipeline.planted):
        edits = (str(pipeline.recipe.finish), *edits)
    if look.examples == "whole" or (compares and pipeline.judged == "confirm"):
        examples = "test"
    elif bounded:
        examples = pipeline.judged
    elif pipeline.finished and look.examples == "validation":
        examples = "screen"
    if pipeline.finished and look.before:
        edits = (BEFORE, *look.edits)
    seen = View(
        examples=examples,
        limit=pipeline.test_size if bounded or examples == "screen" else None,
        preprocessing=own or pipeline.serve_preprocessing,
        mode="eval" if own else MODES[look.mode or pipeline.mode],
        step="last" if look.before else pipeline.recipe.stop,
        measure=measure,
        function=function,
        domain=beside,
        believed=pipeline.believed if measure != "predictions" else None,
        beside=pipeline.pretraining if compares or examples == "unique" else (),
        cued=look.cued,
    )
    looked_at = untrained(pipeline) if look.before and not pipeline.finished else fit(pipeline, seed)
    return Trial(model=Model(base=looked_at, edits=edits), view=seen, place=place)


def untrained(pipeline: Pipeline) -> Fit:
    """The zero-step fit: the network that a pipeline starts from, the same at every seed as far as the source's task goes."""
    start = replace(pipeline.recipe, phases=(), regularizer=None, augment=None, head=ZERO_HEAD, transferred="all")
    return replace(fit(replace(pipeline, recipe=start), 0), train_size=None, training=None, stop="last", interventions=())


def domain(pipeline: Pipeline, role: str) -> Domain:
    """A pipeline's source or shifted set.

    Raises:
        ValueError: where there is none, or nobody knows its classes: the plugin should not have asked.
    """
    found = {"source": pipeline.source, "shifted": pipeline.shifted}[role]
    if found is None or not found.classes:
        raise ValueError(f"the suite has no [{role}] whose classes are known")
    return found


def tuning(arm: Arm, study: Study) -> list[Trial]:
    """The trials that settle a choice: of each candidate in turn, the views that it is chosen by, all tuning seeds."""
    if isinstance(arm, Pipeline):
        return []
    seeds = range(TUNING, TUNING + study.suite.tuning_seeds)
    views = [view for view in (arm.by, arm.keeping) if view]
    return [trial(one, view, seed, study.place) for one in arm.candidates for view in views for seed in seeds]


def settle(arm: Arm, study: Study, answers: Mapping[str, Record]) -> Settled | None:
    """A choice made by its mean metric over the tuning seeds, the first of equals; None while answers are missing.

    A candidate that crashed leaves nothing to choose: what it would have scored is not known, and without it another might win.
    """
    if isinstance(arm, Pipeline):
        return Settled(pipeline=arm)
    weighed, told = [], []
    for candidate in arm.candidates:
        asked = tuning(replace(arm, candidates=(candidate,)), study)
        if any(one.key not in answers for one in asked):
            return None
        records = [answers[one.key] for one in asked]
        error = next((one.error or "no predictions" for one in records if one.error or one.predictions is None), "")
        if error:
            said = ", ".join(candidate.edits) if candidate.finished else candidate.recipe.name or words(candidate.recipe)
            return Settled(pipeline=None, error=f"{'screening' if candidate.finished else 'tuning'} of {said or 'it'}: {error}")
        weighed.append(_weighed(candidate, arm, records, study.suite.metric))
        told.append(records[0].predictions)
    fitted = any(Edit.parse(edit).screened for one in arm.candidates for edit in one.edits)
    if arm.candidates[0].finished and arm.by == "validation" and not fitted:
        shares = metrics.best_of([one for one in told if one is not None], study.suite.metric)
        weighed = [replace(one, confidence=share) for one, share in zip(weighed, shares, strict=True)]
    least = -np.inf if weighed[0].keeping is None else weighed[0].keeping - study.suite.margin
    kept = [one for one in weighed if one.keeping is None or one.keeping >= least]  # none where the first one's is NaN
    sign = -1.0 if arm.worst else 1.0
    best = max(kept, key=lambda one: np.nan_to_num(sign * one.score, nan=-np.inf), default=None)
    if best is None or not np.isfinite(best.score):
        return Settled(pipeline=None, weighed=tuple(weighed), error=f"no candidate has a {study.suite.metric} on validation")
    return Settled(pipeline=best.pipeline, weighed=tuple(weighed))


def _weighed(candidate: Pipeline, arm: Choice, records: Sequence[Record], metric: str) -> Weighed:
    """A candidate by its records: those of the view it is chosen by, then those of the one to keep, by tuning seed."""
    seeds = len(records) // (2 if arm.keeping else 1)
    own = [scored(metric, (arm.by,))] * seeds + [metric] * seeds
    told = [
        (-1.0 if metrics.named(name).loss else 1.0) * metrics.value(one.predictions, name)
        for name, one in zip(own, records, strict=False)
        if one.predictions is not None
    ]
    curves = [one.curve for one in records[:seeds]]
    return Weighed(
        pipeline=candidate,
        score=float(np.mean(told[:seeds])),
        keeping=float(np.mean(told[seeds:])) if arm.keeping else None,
        curve=tuple((rows[0][0], float(np.mean([score for _, _, score in rows]))) for rows in zip(*curves, strict=True)),
        diverged=float(np.mean([one.scalars.get("diverged", 0.0) > 0 for one in records[:seeds]])),
    )


def scored(metric: str, views: Iterable[str]) -> str:
    """The metric by which some views are scored: what is about a positive class says nothing of a source's classes."""
    beside = any(VIEWS[view].domain == "source" for view in views if view in VIEWS)
    return "accuracy" if beside and not metrics.named(metric).everywhere else metric


def arms(plugin: Plugin, study: Study, subject: Pipeline) -> dict[str, Arm]:
    """The arms of a plugin that need nothing settled but the subject; in a cure the subject is always a candidate."""
    cured = plugin.cure(subject, study.facts)
    if isinstance(cured, Choice):
        cured = replace(cured, candidates=tuple(dict.fromkeys((subject, *cured.candidates))))
    found = {"subject": subject, "cured": cured}
    if plugin.beside:
        found |= {f"beside:{name}": arm for name, arm in plugin.beside(subject, study.facts).items()}
    weighed = any(arm == "scratch" for one in plugin.contrasts for arm, _ in one.weights)
    judged = any(one.kind == "paired" for one in plugin.contrasts)  # an invariant has no use for a baseline
    if (judged or weighed) and (subject.finished is None or study.suite.scratch_budget is not None):
        found["scratch"] = scratch(subject, grid(study))
    return honours.arms(fitting.arms(found, study.facts), subject, study.facts.honours)


def inapplicable(plugin: Plugin, study: Study, subject: Pipeline) -> str:
    """Why a plugin cannot be asked here, or ""."""
    unscratched = subject.finished is not None and study.suite.scratch_budget is None
    if unscratched and any(arm == "scratch" for one in plugin.contrasts for arm, _ in one.weights):
        return "no from-scratch baseline was asked for (--scratch BUDGET)"
    reason = unfit(plugin, study, subject) or plugin.applies(subject, study.facts)
    return reason or fitting.reason(plugin.cure(subject, study.facts), subject, study.facts) or unheard(plugin, study, subject)


def unfit(plugin: Plugin, study: Study, subject: Pipeline) -> str:
    """Why a finished network cannot be scored on the labels at all, or "" where it can, or nothing is scored."""
    outputs, classes = study.facts.outputs, len(study.facts.classes)
    if subject.finished is None or outputs >= classes or all(one.kind == "exact" for one in plugin.contrasts):
        return ""
    return f"the head has {outputs} outputs and the data {classes} classes (audit/head-size)"


def grid(study: Study) -> Scratch:
    """The grid of the from-scratch baseline: the suite's, or for a finished network what its budget pays for on one worker."""
    budget, found = study.suite.scratch_budget, study.suite.scratch
    if budget is None:
        return found
    found = replace(found, weight_decay=found.weight_decay[:1], batch_size=32)
    fits = len(found.lr) + 1  # each rate once, then the best one with the judged seed
    steps = budget / (fits * found.batch_size * max(study.facts.seconds_step, 1e-6))
    return replace(found, steps=int(min(max(steps // 10 * 10, LEAST_STEPS), MOST_STEPS)))


def induced(plugin: Plugin, study: Study, cured: Pipeline) -> dict[str, Arm]:
    """The induced arms, ``induced:VARIANT``, made from the cured pipeline once that is settled."""
    found = {f"induced:{variant}": arm for variant, arm in plugin.induce(cured, study.facts).items()}
    return honours.arms(fitting.arms(found, study.facts), cured, study.facts.honours)


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
    alone = []
    for one in asked.values():
        fitted = one.model.base
        if fitted.head == OWN_HEAD:  # nothing is trained together: each view may have a worker of its own
            alone.append((one,))
            continue
        look = sum(fitted.seed - suite.seed >= seeds for seeds in suite.looks)
        shapes.setdefault((_shape(fitted), one.place, look), {}).setdefault(fitted, []).append(one)
    for fits in sorted(shapes.values(), key=lambda fits: -cost(next(iter(fits)))):
        members = list(fits)
        for start in range(0, len(members), size):
            yield tuple(one for member in members[start : start + size] for one in fits[member])
    yield from alone


def _shape(one: Fit) -> Fit:
    """What fits that are trained together have in common: all but the seed, their own and their teachers'."""
    return replace(one, seed=0, teacher=replace(one.teacher, seed=0) if one.teacher else None)


def cost(one: Fit) -> float:
    """Examples that go through a fit's training, those of a frozen backbone counted at a tenth; for order and estimates."""
    times = 3 if one.unlabelled else 1  # what is told apart are the batch, once more, and as many images of another domain
    return times * sum(phase.steps * phase.batch_size if one.augment else examples(phase) for phase in one.phases)


def examples(phase: Phase) -> float:
    """A phase's share of :func:`cost`."""
    cheap = phase.trainable == HEAD_ONLY and phase.batchnorm == "eval"
    return phase.steps * phase.batch_size * (0.1 if cheap else 1.0)


def told(arm: Settled, recorded: Ready) -> dict[str, object]:
    """A settled arm in words, for the report; ``recorded`` is the preprocessing that needs none."""
    if arm.pipeline is None:
        return {"recipe": "", "error": arm.error}
    weighed = [
        {
            "recipe": of_pipeline(one.pipeline, recorded) if one.pipeline.finished else words(one.pipeline.recipe),
            "rate": peak(one.pipeline),
            "validation": one.score,
            "kept": one.keeping,
            "diverged": one.diverged,
            "confidence": one.confidence,
            "curve": one.curve,
            "chosen": one.pipeline == arm.pipeline,
        }
        for one in arm.weighed
    ]
    return {"recipe": of_pipeline(arm.pipeline, recorded), "weighed": weighed, "edge": arm.at_edge}
