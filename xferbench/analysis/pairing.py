"""Pair the records of two runs by seed and test example, and estimate their difference. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from xferbench.analysis import estimates, metrics, sequential
from xferbench.core.errors import UserError
from xferbench.core.plugin import Contrast

if TYPE_CHECKING:
    from collections.abc import Mapping

    from xferbench.analysis.estimates import RecordsByTerm
    from xferbench.analysis.sequential import SequentialDecision
    from xferbench.core.record import Predictions, Record
    from xferbench.core.run import Run
    from xferbench.core.suite import Rules

    Weights: TypeAlias = Mapping[tuple[str, str], float]  # by arm and view, as in a contrast

ACCEPTED, CANDIDATE = "accepted", "candidate"


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedContrast:
    """A contrast of two runs: the candidate's value minus the accepted one, so that positive values are worse.

    Attributes:
        contrast: the change, with the arms of both runs as its terms.
        records: records of the arms of both runs; the index of the pair takes the place of the seed.
        weights: weights of the contrast within one run.
        count: number of pairs.
        seeds: number of seeds of the accepted run and of the candidate.
        rules: the rules, with the contrast's own metric and margin.
        same: whether the paired trials have the same content.
        by_rank: whether the runs have different seeds and are paired by the order of their seeds.
        is_audit: whether the runs audit a finished network.
    """

    contrast: Contrast
    records: RecordsByTerm
    weights: Weights
    count: int
    seeds: tuple[int, int]
    rules: Rules
    same: bool
    by_rank: bool
    is_audit: bool


def plugin_records(run: Run, plugin: str) -> dict[tuple[str, str, int], Record]:
    """Return the records of a plugin by arm (``induced:VARIANT`` for a variant), view and seed."""
    cells = (cell for cell in run.cells if cell.plugin == plugin)
    return {(f"{cell.arm}:{cell.variant}" if cell.variant else cell.arm, cell.view, cell.seed): cell.record for cell in cells}


def subject_records(run: Run, view: str) -> dict[tuple[str, str, int], Record]:
    """Return the records of the subject in a view, from all plugins."""
    return {("subject", view, cell.seed): cell.record for cell in run.cells if cell.arm == "subject" and cell.view == view}


def pair_contrast(
    weights: Weights, accepted: RecordsByTerm, candidate: RecordsByTerm, rules: Rules, *, is_audit: bool = False
) -> PairedContrast:
    """Pair the records of a contrast in two runs.

    Equal seeds are paired if one run has all seeds of the other. Otherwise the runs are independent trainings, and their
    seeds are paired by rank; each pair is still an unbiased sample of the difference, with a larger variance. Pairing only
    the seeds in common would leave too few of them.

    Args:
        weights: weights of the contrast within one run.
        accepted: records of the accepted run.
        candidate: records of the candidate.
        rules: the rules, with the contrast's own metric and margin.
        is_audit: whether the runs audit a finished network.

    Raises:
        UserError: if the runs were scored on different test examples.
    """
    accepted_seeds, candidate_seeds = (_complete_seeds(weights, records) for records in (accepted, candidate))
    common = sorted({*accepted_seeds} & {*candidate_seeds})
    by_rank = len(common) < min(len(accepted_seeds), len(candidate_seeds))
    pairs = list(zip(accepted_seeds, candidate_seeds, strict=False) if by_rank else zip(common, common, strict=True))
    records: dict[tuple[str, str, int], Record] = {}
    same = bool(pairs)
    for index, (accepted_seed, candidate_seed) in enumerate(pairs):
        for arm, view in weights:
            old, new = accepted[arm, view, accepted_seed], candidate[arm, view, candidate_seed]
            _check_same_examples(old, new)
            same = same and old.key == new.key
            if old.key == new.key and not _has_same_scores(old, new, rules.metric):
                old = replace(old, key=f"{old.key} elsewhere")  # records with equal keys would cancel in the contrast
            records |= {(f"{ACCEPTED} {arm}", view, index): old, (f"{CANDIDATE} {arm}", view, index): new}
    change = {(f"{CANDIDATE} {arm}", view): weight for (arm, view), weight in weights.items()}
    change |= {(f"{ACCEPTED} {arm}", view): -weight for (arm, view), weight in weights.items()}
    return PairedContrast(
        contrast=Contrast(name="change", weights=change),
        records=records,
        weights=weights,
        count=len(pairs),
        seeds=(len(accepted_seeds), len(candidate_seeds)),
        rules=rules,
        same=same,
        by_rank=by_rank,
        is_audit=is_audit,
    )


def _complete_seeds(weights: Weights, records: RecordsByTerm) -> list[int]:
    """Return the seeds at which every term has a record."""
    return sorted(seed for seed in {seed for _, _, seed in records} if all((*term, seed) in records for term in weights))


def _check_same_examples(accepted: Record, candidate: Record) -> None:
    """Refuse two records with different test examples, labels or groups; a crash has none and is reported elsewhere.

    Raises:
        UserError: if they differ.
    """
    if accepted.predictions is None or candidate.predictions is None:
        return
    old, new = accepted.predictions, candidate.predictions
    same_examples, same_labels = np.array_equal(old.example, new.example), np.array_equal(old.label, new.label)
    same_groups = np.array_equal(_group_ranks(old.group), _group_ranks(new.group))
    if same_examples and same_labels and same_groups:
        return
    shared = len(np.intersect1d(old.example, new.example))
    difference = "" if not same_examples else ", with different labels" if not same_labels else ", in different groups"
    raise UserError(
        "the two runs were scored on different test examples",
        found=f"{len(new.example)} examples; {shared} of them are among the {len(old.example)} of the accepted run{difference}",
        expected="the same examples with the same labels and groups, in the same order",
        do="restore the test set, or accept a run on the new one: xferbench gate SUITE --accept FILE",
    )


def _group_ranks(groups: np.ndarray) -> np.ndarray:
    """Return groups [N], numbered by their first occurrence; the original numbers may differ between runs."""
    _, first, member = np.unique(groups, return_index=True, return_inverse=True)
    ranks: np.ndarray = np.argsort(np.argsort(first))[member]
    return ranks


def _has_same_scores(accepted: Record, candidate: Record, metric: str) -> bool:
    """Return whether two records have the same scores by example, or the same error."""
    old, new = accepted.predictions, candidate.predictions
    if old is None or new is None:
        return accepted.error == candidate.error
    return np.array_equal(metrics.example_scores(old, metric)[1], metrics.example_scores(new, metric)[1])


def decide_pairs(pairs: Mapping[str, PairedContrast], rules: Rules) -> dict[str, SequentialDecision]:
    """Decide all pairs look by look, as verdicts are decided; each look uses only its own number of pairs."""

    def observe(look: int, decisions: Mapping[str, SequentialDecision]) -> Mapping[str, SequentialDecision]:
        observed = dict(decisions)
        for name, pair in pairs.items():
            previous, size = decisions.get(name), min(look, pair.count)
            if previous is None or (previous.is_open and size > len(previous.seeds)):
                indices = tuple(range(size))
                harm = estimates.estimate_contrast(pair.contrast, pair.records, indices, pair.rules)
                observed[name] = sequential.add_look(previous, harm, indices)
        return observed

    return sequential.run_looks(rules.looks, rules.alpha, observe)


def mean_level(pair: PairedContrast, side: str, count: int, weights: Weights) -> float | None:
    """Return the mean over the first pairs of a weighted sum of one run's metrics; None if a value is missing.

    Args:
        pair: the paired contrast.
        side: :data:`ACCEPTED` or :data:`CANDIDATE`.
        count: number of pairs.
        weights: weights by arm and view.
    """

    def value(predictions: Predictions | None) -> float:
        return metrics.metric_value(predictions, pair.rules.metric) if predictions else np.nan

    values = [
        sum(weight * value(pair.records[f"{side} {arm}", view, index].predictions) for (arm, view), weight in weights.items())
        for index in range(count)
    ]
    mean = float(np.mean(values)) if values else np.nan
    return mean if np.isfinite(mean) else None


def flipped_share(pair: PairedContrast, count: int) -> float | None:
    """Return the share of predictions that differ between the two runs in the first pairs; None if there are none."""
    shares = []
    for (arm, view, index), record in pair.records.items():
        if arm.startswith(ACCEPTED) and index < count:
            old, new = record.predictions, pair.records[arm.replace(ACCEPTED, CANDIDATE, 1), view, index].predictions
            if old is not None and new is not None:
                shares.append(float((old.predicted != new.predicted).mean()))
    return float(np.mean(shares)) if shares else None
