"""Arms that are the best of several candidates on validation. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from xferbench.analysis import metrics
from xferbench.config.loader import SELECTION_SEED_START
from xferbench.config.render import describe_recipe
from xferbench.core.interventions import Edit
from xferbench.core.pipeline import Arm, Pipeline, Selection
from xferbench.study.trials import VIEWS, make_trial

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from xferbench.core.record import Record
    from xferbench.core.trial import Trial
    from xferbench.study.study import Study


FIRST_TUNING_SEED = SELECTION_SEED_START  # tuning seeds begin where the judged ones end


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateScore:
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
class ResolvedArm:
    """An arm made definite; ``weighed`` has every candidate. ``error`` where none could be chosen."""

    pipeline: Pipeline | None
    weighed: tuple[CandidateScore, ...] = ()
    error: str = ""

    @property
    def at_edge(self) -> str:
        """Which end of at least three tried rates was chosen, if one was; among recipes of the chosen one's kind."""
        if self.pipeline is None:
            return ""
        chosen = strategy_key(self.pipeline)
        rates = sorted({peak_lr(one.pipeline) for one in self.weighed if strategy_key(one.pipeline) == chosen})
        if len(rates) < 3 or peak_lr(self.pipeline) not in {rates[0], rates[-1]}:
            return ""
        return (
            f"lowest rate tried, {rates[0]:g}" if peak_lr(self.pipeline) == rates[0] else f"highest rate tried, {rates[-1]:g}"
        )


def peak_lr(pipeline: Pipeline) -> float:
    """The rate of a recipe's last phase."""
    return pipeline.recipe.phases[-1].lr


def strategy_key(pipeline: Pipeline) -> tuple[str, ...]:
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


def selection_trials(arm: Arm, study: Study) -> list[Trial]:
    """The trials that settle a choice: of each candidate in turn, the views that it is chosen by, all tuning seeds."""
    if isinstance(arm, Pipeline):
        return []
    seeds = range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + study.suite.tuning_seeds)
    views = [view for view in (arm.by, arm.keeping) if view]
    return [make_trial(one, view, seed, study.place) for one in arm.candidates for view in views for seed in seeds]


def select(arm: Arm, study: Study, answers: Mapping[str, Record]) -> ResolvedArm | None:
    """A choice made by its mean metric over the tuning seeds, the first of equals; None while answers are missing.

    A candidate that crashed leaves nothing to choose: what it would have scored is not known, and without it another might win.
    """
    if isinstance(arm, Pipeline):
        return ResolvedArm(pipeline=arm)
    weighed, told = [], []
    for candidate in arm.candidates:
        asked = selection_trials(replace(arm, candidates=(candidate,)), study)
        if any(one.key not in answers for one in asked):
            return None
        records = [answers[one.key] for one in asked]
        error = next((one.error or "no predictions" for one in records if one.error or one.predictions is None), "")
        if error:
            said = (
                ", ".join(candidate.edits) if candidate.finished else candidate.recipe.name or describe_recipe(candidate.recipe)
            )
            return ResolvedArm(
                pipeline=None, error=f"{'screening' if candidate.finished else 'tuning'} of {said or 'it'}: {error}"
            )
        weighed.append(_candidate_score(candidate, arm, records, study.suite.metric))
        told.append(records[0].predictions)
    fitted = any(Edit.parse(edit).screened for one in arm.candidates for edit in one.edits)
    if arm.candidates[0].finished and arm.by == "validation" and not fitted:
        shares = metrics.selection_frequencies([one for one in told if one is not None], study.suite.metric)
        weighed = [replace(one, confidence=share) for one, share in zip(weighed, shares, strict=True)]
    least = -np.inf if weighed[0].keeping is None else weighed[0].keeping - study.suite.margin
    kept = [one for one in weighed if one.keeping is None or one.keeping >= least]  # none where the first one's is NaN
    sign = -1.0 if arm.worst else 1.0
    best = max(kept, key=lambda one: np.nan_to_num(sign * one.score, nan=-np.inf), default=None)
    if best is None or not np.isfinite(best.score):
        return ResolvedArm(
            pipeline=None, weighed=tuple(weighed), error=f"no candidate has a {study.suite.metric} on validation"
        )
    return ResolvedArm(pipeline=best.pipeline, weighed=tuple(weighed))


def _candidate_score(candidate: Pipeline, arm: Selection, records: Sequence[Record], metric: str) -> CandidateScore:
    """A candidate by its records: those of the view it is chosen by, then those of the one to keep, by tuning seed."""
    seeds = len(records) // (2 if arm.keeping else 1)
    own = [metric_for_views(metric, (arm.by,))] * seeds + [metric] * seeds
    told = [
        (-1.0 if metrics.get_metric(name).loss else 1.0) * metrics.metric_value(one.predictions, name)
        for name, one in zip(own, records, strict=False)
        if one.predictions is not None
    ]
    curves = [one.curve for one in records[:seeds]]
    return CandidateScore(
        pipeline=candidate,
        score=float(np.mean(told[:seeds])),
        keeping=float(np.mean(told[seeds:])) if arm.keeping else None,
        curve=tuple((rows[0][0], float(np.mean([score for _, _, score in rows]))) for rows in zip(*curves, strict=True)),
        diverged=float(np.mean([one.scalars.get("diverged", 0.0) > 0 for one in records[:seeds]])),
    )


def metric_for_views(metric: str, views: Iterable[str]) -> str:
    """The metric by which some views are scored: what is about a positive class says nothing of a source's classes."""
    beside = any(VIEWS[view].domain == "source" for view in views if view in VIEWS)
    return "accuracy" if beside and not metrics.get_metric(metric).everywhere else metric
