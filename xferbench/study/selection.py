"""Selection of an arm: the best of several candidates on validation. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from xferbench.analysis import metrics
from xferbench.config.loader import SELECTION_SEED_START
from xferbench.config.render import describe_recipe
from xferbench.core.interventions import FitClassBias
from xferbench.core.pipeline import Arm, Pipeline, Selection
from xferbench.core.strategies import candidates_beyond, shorten
from xferbench.study.trials import VIEWS, make_trial

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from xferbench.core.record import Record
    from xferbench.core.trial import Trial
    from xferbench.study.study import Study


FIRST_TUNING_SEED = SELECTION_SEED_START  # tuning seeds follow the seeds of verdicts


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateScore:
    """A candidate of a selection with its scores.

    Attributes:
        pipeline: the candidate.
        score: mean score over tuning seeds; higher is better, for losses too.
        keeping: mean score in the view of :attr:`xferbench.core.pipeline.Selection.keeping`, or None.
        curve: rows of step and validation accuracy, the mean over tuning seeds.
        diverged: share of the tuning seeds that diverged.
        confidence: how often the candidate is the best if the examples are resampled; None for candidates that are trained.
    """

    pipeline: Pipeline
    score: float
    keeping: float | None = None
    curve: tuple[tuple[int, float], ...] = ()
    diverged: float = 0.0
    confidence: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedArm:
    """An arm whose selection is made.

    Attributes:
        pipeline: the selected pipeline, or None if no candidate could be selected.
        candidates: every candidate with its scores; empty for an arm without a selection.
        error: why no candidate could be selected, or "".
        is_alternative: whether the pipeline is the best of the candidates other than the subject, which was selected.
    """

    pipeline: Pipeline | None
    candidates: tuple[CandidateScore, ...] = ()
    error: str = ""
    is_alternative: bool = False
    is_cut: bool = False

    @property
    def at_edge(self) -> str:
        """The end of the range of rates that was selected, in words, or ""; among at least three rates of the same strategy."""
        if self.pipeline is None:
            return ""
        strategy = strategy_key(self.pipeline)
        pipelines = [candidate.pipeline for candidate in self.candidates]
        rates = sorted({peak_lr(pipeline) for pipeline in pipelines if strategy_key(pipeline) == strategy})
        if len(rates) < 3 or peak_lr(self.pipeline) not in {rates[0], rates[-1]}:
            return ""
        is_lowest = peak_lr(self.pipeline) == rates[0]
        return f"lowest rate tried, {rates[0]:g}" if is_lowest else f"highest rate tried, {rates[-1]:g}"


def peak_lr(pipeline: Pipeline) -> float:
    """Return the peak learning rate of the recipe's last phase."""
    return pipeline.recipe.phases[-1].lr


def strategy_key(pipeline: Pipeline) -> tuple[str, ...]:
    """Return what distinguishes strategies: init, augmentation, kind of regularizer, finish, and what the phases train."""
    recipe = pipeline.recipe
    regularizer = recipe.regularizer.spelling if recipe.regularizer else ""
    return (
        str(recipe.init),
        str(recipe.augment or ""),
        regularizer,
        str(recipe.finish or ""),
        *(str(phase.trainable) for phase in recipe.phases),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """The candidates that a selection trains in a round, with so many tuning seeds."""

    candidates: tuple[Pipeline, ...]
    seeds: int


def selection_trials(arm: Arm, study: Study, records: Mapping[str, Record], *, assume: bool = False) -> list[Trial]:
    """Return the trials of a selection as far as its candidates are known: each candidate, view and tuning seed of each round.

    Args:
        arm: a pipeline, which has no such trials, or a selection.
        study: the study.
        records: records by key.
        assume: whether the first candidates are taken to win a round whose records are missing, for a forecast.
    """
    if isinstance(arm, Pipeline):
        return []
    trials = (
        trial
        for tried in search_rounds(arm, study, records, assume=assume)
        for candidate in tried.candidates
        for trial in _candidate_trials(arm, candidate, study, tried.seeds)
    )
    return list({trial.key: trial for trial in trials}.values())


def search_rounds(arm: Selection, study: Study, records: Mapping[str, Record], *, assume: bool = False) -> Iterator[Round]:
    """Yield the rounds of a selection, until the records of a round are missing or have a crash.

    The rounds of successive halving have one tuning seed, because each of them only leaves out the worse half. The last round
    has the other candidates at all their steps, and those beyond an edge of the search if there was a halving. Refinements
    follow it, and each of their rounds keeps the earlier candidates.
    """
    for tried in _halving_rounds(arm, study, records, assume=assume):
        yield tried
    yield from _refining_rounds(arm, tried, study, records, assume=assume) if arm.refine else ()


def _halving_rounds(arm: Selection, study: Study, records: Mapping[str, Record], *, assume: bool) -> Iterator[Round]:
    """Yield the rounds of successive halving and the round with all steps, as far as their candidates are known."""
    candidates, seeds = arm.candidates, study.suite.rules.tuning_seeds
    for halving in range(arm.halvings, 0, -1):
        tried = Round(candidates=tuple(shorten(candidate, 2**halving) for candidate in candidates), seeds=1)
        yield tried
        scores = _round_scores(arm, tried, study, records)
        if isinstance(scores, str) or (scores is None and not assume):
            return
        ranks = _ranks(scores) if scores else list(range(len(candidates)))
        candidates = tuple(candidates[index] for index in sorted(ranks[: -(-len(candidates) // 2)]))
    last = Round(candidates=candidates, seeds=seeds)
    scores = _round_scores(arm, last, study, records) if arm.halvings else None
    if isinstance(scores, str) or not arm.halvings or (scores is None and not assume):
        yield last
        return
    best = _best_candidate(scores, study.suite.rules.margin, worst=arm.worst) if scores else None
    winner = candidates[-1] if best is None else best.pipeline  # the last of a grid has its highest rate and all its steps
    yield replace(last, candidates=(*candidates, *candidates_beyond(winner, arm.candidates)))


def _refining_rounds(
    arm: Selection, first: Round, study: Study, records: Mapping[str, Record], *, assume: bool
) -> Iterator[Round]:
    """Yield rounds that add variants of the best candidate so far, until there is no new one."""
    assert arm.refine is not None, "the caller refines"
    tried = first
    while True:
        scores = _round_scores(arm, tried, study, records)
        if isinstance(scores, str) or (scores is None and not assume):
            return
        best = _best_candidate(scores, study.suite.rules.margin, worst=arm.worst) if scores else None
        variants = arm.refine(tried.candidates[0] if best is None else best.pipeline, study.profile)
        new = tuple(variant for variant in dict.fromkeys(variants) if variant not in tried.candidates)
        if not new:
            return
        tried = replace(tried, candidates=(*tried.candidates, *new))
        yield tried


def _ranks(scores: Sequence[CandidateScore]) -> list[int]:
    """Return the indices of candidates from the best to the worst; the first of equal candidates comes first."""
    return sorted(range(len(scores)), key=lambda index: -np.nan_to_num(scores[index].score, nan=-np.inf))


def _candidate_trials(arm: Selection, candidate: Pipeline, study: Study, count: int) -> list[Trial]:
    """Return the trials of a candidate: one for each view of the selection and each of some tuning seeds."""
    first = FIRST_TUNING_SEED + study.suite.rules.seed  # another seed of the suite repeats the selection too
    views = [view for view in (arm.by, arm.keeping) if view]
    return [make_trial(candidate, view, seed, study.context) for view in views for seed in range(first, first + count)]


def _round_scores(
    arm: Selection, tried: Round, study: Study, records: Mapping[str, Record]
) -> list[CandidateScore] | str | None:
    """Return the scores of candidates; None while records are missing, and the crash of a candidate if there is one."""
    scores = []
    for candidate in tried.candidates:
        keys = [trial.key for trial in _candidate_trials(arm, candidate, study, tried.seeds)]
        if any(key not in records for key in keys):
            return None
        candidate_records = [records[key] for key in keys]
        if error := _selection_error(candidate, candidate_records):
            return error
        scores.append(_candidate_score(candidate, arm, candidate_records, study.suite.rules.metric))
    return scores


def select(arm: Arm, study: Study, records: Mapping[str, Record]) -> ResolvedArm | None:
    """Return the selected pipeline of an arm, or None while records are missing.

    The selection is by the mean metric over the tuning seeds; the first of equal candidates wins. If a candidate crashed,
    nothing is selected: its score is not known, and without it another candidate might win.

    Args:
        arm: a pipeline, which is returned, or a selection.
        study: the study.
        records: records by key.
    """
    if isinstance(arm, Pipeline):
        return ResolvedArm(pipeline=arm)
    metric = study.suite.rules.metric
    rounds = list(search_rounds(arm, study, records))
    scored = [_round_scores(arm, tried, study, records) for tried in rounds]
    error = next((scores for scores in scored if isinstance(scores, str)), "")
    if error:
        return ResolvedArm(pipeline=None, error=error)
    if any(scores is None for scores in scored):
        return None
    *earlier, scores = [scores for scores in scored if isinstance(scores, list)]
    firsts = (_candidate_trials(arm, candidate, study, 1)[0] for candidate in rounds[-1].candidates)
    predictions = [records[trial.key].predictions for trial in firsts]
    is_screened = any(edit.screened for candidate in arm.candidates for edit in candidate.edits)
    if arm.candidates[0].checkpoint and VIEWS[arm.by].examples == "validation" and not is_screened:
        shares = metrics.selection_frequencies([values for values in predictions if values is not None], metric)
        scores = [replace(score, confidence=share) for score, share in zip(scores, shares, strict=True)]
    best = _best_candidate(scores, study.suite.rules.margin, worst=arm.worst)
    if best is None or not np.isfinite(best.score):
        return ResolvedArm(pipeline=None, candidates=tuple(scores), error=f"no candidate has a {metric} on validation")
    last_candidates = {score.pipeline for score in scores}
    left = (score for scores in earlier for score in scores if score.pipeline not in last_candidates)
    return ResolvedArm(pipeline=best.pipeline, candidates=(*scores, *left), is_cut=arm.is_cut)


def best_alternative(selected: ResolvedArm, subject: Pipeline, study: Study) -> ResolvedArm:
    """Return the best candidate of a selection other than the subject, if the selection is the subject.

    A harm of 0 against itself would hide that validation may have missed a better candidate. If no other candidate has a score,
    or keeps the score of the first one, the selection is returned.
    """
    if selected.pipeline != subject or not selected.candidates:
        return selected
    others = [score for score in _eligible(selected.candidates, study.suite.rules.margin) if score.pipeline != subject]
    best = _best_score(others, worst=False)
    if best is None or not np.isfinite(best.score):
        return selected
    return replace(selected, pipeline=best.pipeline, is_alternative=True)


def _selection_error(candidate: Pipeline, records: Sequence[Record]) -> str:
    """Return the first crash among the records of a candidate, with its name, or ""."""
    errors = (record.error or "no predictions" for record in records if record.error or record.predictions is None)
    error = next(errors, "")
    if not error:
        return ""
    if candidate.checkpoint:
        return f"screening of {', '.join(map(str, candidate.edits)) or 'it'}: {error}"
    return f"tuning of {candidate.recipe.name or describe_recipe(candidate.recipe) or 'it'}: {error}"


def _best_candidate(scores: Sequence[CandidateScore], margin: float, *, worst: bool) -> CandidateScore | None:
    """Return the first candidate with the best (or worst) score among those that keep the score of the first candidate."""
    return _best_score(_eligible(scores, margin), worst=worst)


def _eligible(scores: Sequence[CandidateScore], margin: float) -> list[CandidateScore]:
    """Return the candidates that keep the score of the first candidate within the margin; none if that score is NaN."""
    first = scores[0].keeping
    lowest = -np.inf if first is None else first - margin
    return [score for score in scores if score.keeping is None or score.keeping >= lowest]


def _best_score(scores: Sequence[CandidateScore], *, worst: bool) -> CandidateScore | None:
    """Return the first candidate with the best (or worst) score; one without a score is last."""
    sign = -1.0 if worst else 1.0
    return max(scores, key=lambda score: np.nan_to_num(sign * score.score, nan=-np.inf), default=None)


def _candidate_score(candidate: Pipeline, arm: Selection, records: Sequence[Record], metric: str) -> CandidateScore:
    """Return the scores of a candidate.

    Args:
        candidate: the candidate.
        arm: the selection.
        records: records in the view of the selection, then those in its ``keeping`` view, by tuning seed.
        metric: the metric of the suite.
    """
    seeds = len(records) // (2 if arm.keeping else 1)
    names = [metric_for_views(metric, (arm.by,))] * seeds + [metric] * seeds
    values = [
        (-1.0 if metrics.get_metric(name).loss else 1.0) * metrics.metric_value(record.predictions, name)
        for name, record in zip(names, records, strict=False)
        if record.predictions is not None
    ]
    curves = [record.curve for record in records[:seeds]]
    return CandidateScore(
        pipeline=candidate,
        score=float(np.mean(values[:seeds])),
        keeping=float(np.mean(values[seeds:])) if arm.keeping else None,
        curve=tuple((rows[0][0], float(np.mean([score for _, _, score in rows]))) for rows in zip(*curves, strict=True)),
        diverged=float(np.mean([record.scalars.get("diverged", 0.0) > 0 for record in records[:seeds]])),
    )


def metric_for_views(metric: str, views: Iterable[str]) -> str:
    """Return the metric for views, if the metric is about the target's positive class.

    It is accuracy for the source. Where the bias of each class is fitted, sensitivity and specificity only say where the bias
    puts the threshold, so balanced accuracy replaces them.
    """
    named = [VIEWS[view] for view in views if view in VIEWS]
    if any(view.domain == "source" for view in named) and not metrics.get_metric(metric).everywhere:
        return "accuracy"
    has_fitted_bias = any(FitClassBias() in view.edits for view in named)
    return "balanced_accuracy" if has_fitted_bias and metric in {"sensitivity", "specificity"} else metric
