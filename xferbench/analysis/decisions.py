"""Decide for each contrast of two runs whether the candidate is worse, not worse, or cannot be compared. Pure.

The candidate's own verdict counts as well as the interval of the change; a PASS is never worse.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from xferbench.analysis import metrics, pairing, power
from xferbench.analysis.verdict import (
    decide_change,
    decide_harm_change,
    decide_invariant_change,
    decide_untested,
    decide_without_pair,
)
from xferbench.core.comparison import SUBJECT, ChangeEstimate, Outcome
from xferbench.core.record import json_values

if TYPE_CHECKING:
    from xferbench.analysis.sequential import SequentialDecision
    from xferbench.analysis.verdict import Verdict
    from xferbench.core.reason import Reason
    from xferbench.core.run import Finding

UNDECIDED_VERDICTS = ("ERROR", "SKIPPED")
WORST_FIRST = ("ERROR", "FAIL", "INCONCLUSIVE", "PASS", "SKIPPED")


@dataclass(frozen=True, slots=True, kw_only=True)
class ContrastFindings:
    """The findings of a run about one contrast of a plugin, one for each variant."""

    id: str
    plugin: str
    contrast: str
    findings: tuple[Finding, ...]

    @property
    def verdict(self) -> str:
        """The worst verdict of the findings, in the order of :data:`WORST_FIRST`."""
        return min((finding.verdict for finding in self.findings), key=WORST_FIRST.index)

    @property
    def worst(self) -> Finding:
        """The first finding with the worst verdict."""
        return next(finding for finding in self.findings if finding.verdict == self.verdict)

    def is_below_margin(self, alpha: float) -> bool:
        """Return whether the harm was shown to be below the margin, even if a missed control prevented a PASS."""
        p_values = [finding.estimate.p_pass for finding in self.findings]
        return self.verdict == "PASS" or all(p_value is not None and p_value < alpha for p_value in p_values)


def decide_subject(pair: pairing.PairedContrast, decision: SequentialDecision, *, elsewhere: bool) -> tuple[Outcome, Reason]:
    """Return the outcome of the suite's metric of the subject, with its reason.

    ``elsewhere`` is as in :func:`decide_contrast`.
    """
    result = _decide_change(pair, decision, elsewhere=elsewhere and _has_same_trials(pair))
    count = len(decision.seeds)
    weights = dict.fromkeys(pair.weights, 1.0)
    before, now = (pairing.mean_level(pair, side, count, weights) for side in (pairing.ACCEPTED, pairing.CANDIDATE))
    outcome = Outcome(
        id=SUBJECT,
        plugin="",
        decision=result.code,
        reason="",
        estimate=_change_estimate(pair, decision, before, now),
        compared=True,
        flipped=pairing.flipped_share(pair, count),
    )
    return outcome, result.reason


def decide_contrast(
    candidate: ContrastFindings,
    accepted: ContrastFindings,
    pair: pairing.PairedContrast,
    decision: SequentialDecision,
    *,
    elsewhere: bool,
) -> tuple[Outcome, Reason]:
    """Return the outcome of a harm that both runs have, with its reason.

    A change is tested as a harm is: with the crossed interval of :mod:`xferbench.analysis.intervals`, the suite's margin,
    looks and alpha, and Holm's correction over all comparisons, separately for worse and not worse. Missing data decides
    nothing.

    The decision combines the interval of the change, the verdict of the candidate and that of the accepted run. If the
    accepted run showed the harm to be below the margin, a FAIL is new and therefore worse, independently of the interval. If
    the accepted run left the harm open, the interval decides. The reason is that a PASS and a FAIL on the same harm contradict
    each other, so one of them is wrong, which happens with a probability of at most alpha. An open verdict and a FAIL do not
    contradict each other: if a pipeline with a true harm of 5 to 8 points were compared with itself under other seeds, one
    comparison in five would be called worse.

    Args:
        candidate: findings of the candidate.
        accepted: findings of the accepted run.
        pair: the paired contrast.
        decision: the decision about its change.
        elsewhere: whether the runs were computed on different computers. Equal trials then differ for this reason only.
    """
    elsewhere = elsewhere and _has_same_trials(pair)
    result = decide_harm_change(
        _decide_change(pair, decision, elsewhere=elsewhere),
        candidate.verdict,
        accepted.verdict,
        was_below_margin=accepted.is_below_margin(pair.rules.alpha),
        elsewhere=elsewhere,
        text=candidate.worst.reason,
    )
    sign = -1.0 if metrics.get_metric(pair.rules.metric).loss else 1.0
    levels = [
        pairing.mean_level(pair, side, len(decision.seeds), pair.weights) for side in (pairing.ACCEPTED, pairing.CANDIDATE)
    ]
    before, now = (None if level is None else sign * level for level in levels)
    return _build_outcome(candidate, accepted, result, _change_estimate(pair, decision, before, now), compared=True)


def decide_invariant(candidate: ContrastFindings, accepted: ContrastFindings) -> tuple[Outcome, Reason]:
    """Return the outcome of an invariant, with its reason. It has no interval; only the sizes of both runs are compared."""
    before, now = _invariant_size(accepted), _invariant_size(candidate)
    estimate = ChangeEstimate(metric=candidate.contrast, unit="count", before=before, now=now)
    result = decide_invariant_change(candidate.verdict, accepted.verdict, before, now, text=candidate.worst.reason)
    return _build_outcome(candidate, accepted, result, estimate, compared=True)


def decide_unpaired(
    candidate: ContrastFindings, accepted: ContrastFindings | None, obstacle: Reason | None
) -> tuple[Outcome, Reason]:
    """Return the outcome of a contrast without a counterpart, with its reason; the candidate's verdict counts.

    ``obstacle`` is why the two runs cannot be compared.
    """
    worst = candidate.worst
    accepted_verdict = accepted.verdict if accepted and accepted.verdict not in UNDECIDED_VERDICTS else ""
    result = decide_without_pair(candidate.verdict, accepted_verdict, obstacle, text=worst.reason)
    harm = worst.estimate
    estimate = ChangeEstimate(
        metric=harm.metric, unit=harm.unit, margin=harm.margin, now=harm.harm, seeds=harm.seeds, examples=harm.examples
    )
    return _build_outcome(candidate, accepted, result, estimate, compared=False)


def decide_dropped(accepted: ContrastFindings) -> tuple[Outcome, Reason]:
    """Return the outcome of a contrast that only the accepted run tested, with its reason."""
    result, harm = decide_untested(accepted.verdict), accepted.worst.estimate
    outcome = Outcome(
        id=accepted.id,
        plugin=accepted.plugin,
        decision=result.code,
        reason="",
        accepted=accepted.verdict,
        estimate=ChangeEstimate(metric=harm.metric, unit=harm.unit, margin=harm.margin, before=harm.harm),
    )
    return outcome, result.reason


def _has_same_trials(pair: pairing.PairedContrast) -> bool:
    """Return whether all trials of two runs have the same content, so that only the computer can differ."""
    return pair.same and pair.seeds[0] == pair.seeds[1]


def _decide_change(pair: pairing.PairedContrast, decision: SequentialDecision, *, elsewhere: bool) -> Verdict:
    """Return the decision from the interval alone."""
    seeds = max(pair.seeds)
    return decide_change(
        decision.harm,
        decision.verdict,
        margin=pair.rules.margin,
        crashed=any(record.error for (arm, _, _), record in pair.records.items() if arm.startswith(pairing.CANDIDATE)),
        same=pair.same,
        elsewhere=elsewhere,
        one_pair_of=seeds if pair.count == 1 < seeds and not pair.is_audit else 0,
        to_decide=power.explain_required_sizes(decision, pair.rules) if decision.is_open else None,
    )


def _invariant_size(findings: ContrastFindings) -> float | None:
    """Return the absolute value of an invariant, averaged over seeds; None if it is unknown."""
    value = findings.worst.measures.get(f"{SUBJECT}/{findings.contrast}")
    return None if value is None or not np.isfinite(value) else abs(value)


def _build_outcome(
    candidate: ContrastFindings,
    accepted: ContrastFindings | None,
    result: Verdict,
    estimate: ChangeEstimate,
    *,
    compared: bool,
) -> tuple[Outcome, Reason]:
    outcome = Outcome(
        id=candidate.id,
        plugin=candidate.plugin,
        decision=result.code,
        reason="",
        verdict=candidate.verdict,
        accepted=accepted.verdict if accepted else "",
        estimate=estimate,
        compared=compared,
    )
    return outcome, result.reason


def _change_estimate(
    pair: pairing.PairedContrast, decision: SequentialDecision, before: float | None, now: float | None
) -> ChangeEstimate:
    """Return the change of a paired contrast. Its p-values are None if nothing was tested."""
    estimate, is_tested = decision.harm.estimate, decision.harm.exposed and not decision.harm.error
    return ChangeEstimate(
        metric=pair.rules.metric,
        unit=metrics.get_metric(pair.rules.metric).unit,
        margin=pair.rules.margin,
        before=before,
        now=now,
        change=json_values(estimate.harm),
        low=json_values(estimate.low),
        high=json_values(estimate.high),
        p_worse=decision.adjusted[0] if is_tested else None,
        p_not_worse=decision.adjusted[1] if is_tested else None,
        seeds=len(decision.seeds),
        examples=estimate.examples,
    )
