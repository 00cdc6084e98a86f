"""The records of two runs beside each other, by seed and test example, and what the interval says of them. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from xferbench.analysis import estimates, metrics, sequential
from xferbench.core.errors import UserError
from xferbench.core.plugin import Contrast

if TYPE_CHECKING:
    from collections.abc import Mapping

    from xferbench.analysis.sequential import SequentialDecision
    from xferbench.core.record import Record
    from xferbench.core.run import Run
    from xferbench.core.suite import Suite

    Told: TypeAlias = Mapping[tuple[str, str, int], Record]  # by arm, view and seed, of one run
    Weights: TypeAlias = Mapping[tuple[str, str], float]  # by arm and view, as a contrast has them

ACCEPTED, CANDIDATE = "accepted", "candidate"


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedContrast:
    """One contrast of two runs: the candidate's less the accepted one's, above 0 being worse.

    Attributes:
        answers: of both runs' arms, by the rank of the pair in the place of the seed. weights: of the contrast in one run.
        count: pairs. seeds: how many each of the two runs has.
        suite: with the contrast's own metric and margin.
        same: whether the trials that are paired are the same by content.
        by_rank: whether the two differ in their seeds, and are paired as they come.
    """

    contrast: Contrast
    answers: estimates.RecordsByTerm
    weights: Weights
    count: int
    seeds: tuple[int, int]
    suite: Suite
    same: bool
    by_rank: bool


def plugin_records(run: Run, plugin: str) -> dict[tuple[str, str, int], Record]:
    """A plugin's records by arm (``induced:VARIANT``), view and seed."""
    own = (one for one in run.cells if one.plugin == plugin)
    return {(f"{one.arm}:{one.variant}" if one.variant else one.arm, one.view, one.seed): one.record for one in own}


def subject_records(run: Run, view: str) -> dict[tuple[str, str, int], Record]:
    """The subject's records in a view, whichever plugin asked for them."""
    return {("subject", view, one.seed): one.record for one in run.cells if one.arm == "subject" and one.view == view}


def pair_contrast(weights: Weights, before: Told, now: Told, suite: Suite) -> PairedContrast:
    """Put two runs' records of a contrast beside each other, seed by seed where one run has all of the other's.

    Otherwise they are two independent trainings: paired as they come, each row is still a fair draw of the difference, only a
    wider one. What a few seeds in common would say, without the others, is not used: that is too few seeds to tell.

    Raises:
        UserError: where the two were scored on other test examples.
    """
    old, new = (_seeds(weights, records) for records in (before, now))
    common = sorted({*old} & {*new})
    paired = len(common) == min(len(old), len(new))
    seeds = list(zip(common, common, strict=True)) if paired else list(zip(old, new, strict=False))
    answers: dict[tuple[str, str, int], Record] = {}
    same = bool(seeds)
    for rank, (then, later) in enumerate(seeds):
        for arm, view in weights:
            first, second = before[arm, view, then], now[arm, view, later]
            _on_the_same(first, second)
            same = same and first.key == second.key
            if first.key == second.key and not _alike(first, second, suite.metric):
                first = replace(first, key=f"{first.key} elsewhere")  # else the two would cancel unseen
            answers |= {(f"{ACCEPTED} {arm}", view, rank): first, (f"{CANDIDATE} {arm}", view, rank): second}
    change = {(f"{CANDIDATE} {arm}", view): weight for (arm, view), weight in weights.items()}
    change |= {(f"{ACCEPTED} {arm}", view): -weight for (arm, view), weight in weights.items()}
    contrast = Contrast(name="change", weights=change)
    return PairedContrast(
        contrast=contrast,
        answers=answers,
        weights=weights,
        count=len(seeds),
        seeds=(len(old), len(new)),
        suite=suite,
        same=same,
        by_rank=not paired,
    )


def _seeds(weights: Weights, records: Told) -> list[int]:
    """The seeds at which every term was measured."""
    return sorted(seed for seed in {seed for _, _, seed in records} if all((*term, seed) in records for term in weights))


def _on_the_same(first: Record, second: Record) -> None:
    if first.predictions is None or second.predictions is None:
        return  # a crash, which is told by itself
    old, new = first.predictions, second.predictions
    same = np.array_equal(old.example, new.example)
    labels, groups = np.array_equal(old.label, new.label), np.array_equal(_numbered(old.group), _numbered(new.group))
    if same and labels and groups:
        return
    shared = len(np.intersect1d(old.example, new.example))
    other = "" if not same else " with other labels" if not labels else " in other groups"
    raise UserError(
        "the two runs were scored on other test examples",
        found=f"{len(new.example)}, of which {shared} are among the {len(old.example)} of the accepted run{other}",
        expected="the same examples with the same labels and groups, in the same order",
        do="put the test set back, or accept a run on this one, if that is meant: xferbench gate SUITE --accept FILE",
    )


def _numbered(groups: np.ndarray) -> np.ndarray:
    """Groups [N] by the order in which they first come; what numbers they have is each run's own affair."""
    _, first, member = np.unique(groups, return_index=True, return_inverse=True)
    numbers: np.ndarray = np.argsort(np.argsort(first))[member]
    return numbers


def _alike(first: Record, second: Record, metric: str) -> bool:
    if first.predictions is None or second.predictions is None:
        return first.error == second.error
    return np.array_equal(
        metrics.example_scores(first.predictions, metric)[1], metrics.example_scores(second.predictions, metric)[1]
    )


def decide_pairs(pairs: Mapping[str, PairedContrast], suite: Suite) -> dict[str, SequentialDecision]:
    """Judge all pairs as verdicts are judged: look by look, each with only its own seeds, what is decided closing."""

    def observe(look: int, judgements: Mapping[str, SequentialDecision]) -> Mapping[str, SequentialDecision]:
        observed = dict(judgements)
        for name, pair in pairs.items():
            known, size = judgements.get(name), min(look, pair.count)
            if known is None or (known.is_open and size > len(known.seeds)):
                ranks = tuple(range(size))
                harm = estimates.estimate_contrast(pair.contrast, pair.answers, ranks, pair.suite)
                observed[name] = sequential.add_look(known, harm, ranks)
        return observed

    return sequential.run_looks(suite.looks, suite.alpha, observe)


def mean_level(one: PairedContrast, side: str, seeds: int, weights: Weights) -> float | None:
    """Mean over the first pairs of a weighted sum of one run's metrics; None where it cannot be had."""
    told = {
        (term, rank): one.answers[f"{side} {term[0]}", term[1], rank].predictions for term in weights for rank in range(seeds)
    }
    values = [
        sum(
            weight * metrics.metric_value(known, one.suite.metric) if (known := told[term, rank]) else np.nan
            for term, weight in weights.items()
        )
        for rank in range(seeds)
    ]
    mean = float(np.mean(values)) if values else np.nan
    return mean if np.isfinite(mean) else None


def flipped_share(one: PairedContrast, seeds: int) -> float | None:
    """Share of answers that differ between the two runs, over the first pairs; None where none can be compared."""
    found = []
    for (arm, view, rank), record in one.answers.items():
        if arm.startswith(ACCEPTED) and rank < seeds:
            first, second = record.predictions, one.answers[arm.replace(ACCEPTED, CANDIDATE, 1), view, rank].predictions
            if first is not None and second is not None:
                found.append(float((first.predicted != second.predicted).mean()))
    return float(np.mean(found)) if found else None
