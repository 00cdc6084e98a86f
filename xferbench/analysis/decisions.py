"""What is decided of one thing that two runs have in common: worse, not worse, or it cannot be told. Pure.

A comparison is judged as a harm is: the crossed interval of :mod:`xferbench.analysis.intervals`, the suite's margin, looks and
alpha, Holm's
correction over all that is compared, worse and not worse apart. Whatever is missing decides nothing.

Three things decide together: the interval of the change, the candidate's own verdict, and that of the accepted run. A FAIL is
new, and worse whatever the interval says, where the accepted run had shown the harm to be below the margin; where that run had
left it open, the interval decides. For of two verdicts on the same harm one must be wrong to be PASS and then FAIL, which is so
in at most a share alpha; to be left open and then FAIL, none must be: of a pipeline with a true harm of 5 to 8 points, held
against itself under other seeds, one in five would be called worse so. A PASS is not worse, whatever the harm was before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from xferbench.analysis import metrics, pairing, power
from xferbench.analysis.verdict import (
    decide_change,
    decide_harm_change,
    decide_invariant_change,
    no_longer_tested,
    own_decision,
)
from xferbench.core.comparison import SUBJECT, Outcome
from xferbench.core.record import json_values

if TYPE_CHECKING:
    from collections.abc import Mapping

    from xferbench.analysis.sequential import SequentialDecision
    from xferbench.analysis.verdict import Verdict
    from xferbench.core.reason import Reason
    from xferbench.core.run import Finding

UNDECIDED_VERDICTS = ("ERROR", "SKIPPED")
WORST_FIRST = ("ERROR", "FAIL", "INCONCLUSIVE", "PASS", "SKIPPED")


@dataclass(frozen=True, slots=True, kw_only=True)
class ContrastFindings:
    """What a run says of one contrast of a plugin: its findings, one a variant, the worst verdict among them."""

    id: str
    plugin: str
    contrast: str
    findings: tuple[Finding, ...]

    @property
    def verdict(self) -> str:
        """The worst one: a crash, then FAIL, what is open, PASS, SKIPPED."""
        return min((one.verdict for one in self.findings), key=WORST_FIRST.index)

    @property
    def worst(self) -> Finding:
        """The first finding with that verdict."""
        return next(one for one in self.findings if one.verdict == self.verdict)

    def excluded(self, alpha: float) -> bool:
        """Whether the harm was shown to be below the margin, though a missed control may have kept it from a PASS."""
        return self.verdict == "PASS" or all(one.p_pass is not None and one.p_pass < alpha for one in self.findings)


def decide_subject(pair: pairing.PairedContrast, judgement: SequentialDecision, *, elsewhere: bool) -> tuple[Outcome, Reason]:
    """The suite's metric of the subject; ``elsewhere`` as in :func:`of_contrast`."""
    decided = _change(pair, judgement, elsewhere=elsewhere and _unchanged(pair))
    seeds = len(judgement.seeds)
    level = dict.fromkeys(pair.weights, 1.0)
    before, now = (pairing.mean_level(pair, side, seeds, level) for side in (pairing.ACCEPTED, pairing.CANDIDATE))
    figures = _figures(pair, judgement) | {"before": before, "now": now, "flipped": pairing.flipped_share(pair, seeds)}
    return Outcome(id=SUBJECT, plugin="", decision=decided.code, reason="", **figures), decided.reason


def decide_contrast(
    about: ContrastFindings,
    accepted: ContrastFindings,
    pair: pairing.PairedContrast,
    judgement: SequentialDecision,
    *,
    elsewhere: bool,
) -> tuple[Outcome, Reason]:
    """A harm that both runs have.

    ``elsewhere`` tells that another computer made one of the runs, which alone may then differ where the trials are the same.
    """
    elsewhere = elsewhere and _unchanged(pair)
    decided = decide_harm_change(
        _change(pair, judgement, elsewhere=elsewhere),
        about.verdict,
        accepted.verdict,
        excluded=accepted.excluded(pair.suite.alpha),
        elsewhere=elsewhere,
        text=about.worst.reason,
    )
    sign = -1.0 if metrics.get_metric(pair.suite.metric).loss else 1.0
    harms = [
        pairing.mean_level(pair, side, len(judgement.seeds), pair.weights) for side in (pairing.ACCEPTED, pairing.CANDIDATE)
    ]
    before, now = (None if harm is None else sign * harm for harm in harms)
    return _outcome(about, accepted, decided, _figures(pair, judgement) | {"before": before, "now": now})


def decide_invariant(about: ContrastFindings, accepted: ContrastFindings) -> tuple[Outcome, Reason]:
    """An invariant has no interval: it is newly broken, or broken by more than before, or it is not."""
    before, now = _measured(accepted), _measured(about)
    figures = {"before": before, "now": now, "compared": True, "unit": "count", "metric": about.contrast}
    decided = decide_invariant_change(about.verdict, accepted.verdict, before, now, text=about.worst.reason)
    return _outcome(about, accepted, decided, figures)


def decide_unpaired(about: ContrastFindings, accepted: ContrastFindings | None, apart: Reason | None) -> tuple[Outcome, Reason]:
    """What has nothing to be compared with counts by its own verdict; ``apart`` says why it has nothing."""
    worst, before = about.worst, accepted.verdict if accepted and accepted.verdict not in UNDECIDED_VERDICTS else ""
    decided = own_decision(about.verdict, before, apart, text=worst.reason)
    figures = {name: getattr(worst, name) for name in ("metric", "unit", "margin", "seeds", "examples")}
    return _outcome(about, accepted, decided, figures | {"now": worst.harm})


def decide_dropped(accepted: ContrastFindings) -> tuple[Outcome, Reason]:
    """What the accepted run was judged on and the candidate does not test."""
    decided, worst = no_longer_tested(accepted.verdict), accepted.worst
    figures = {name: getattr(worst, name) for name in ("metric", "unit", "margin")}
    outcome = Outcome(
        id=accepted.id,
        plugin=accepted.plugin,
        decision=decided.code,
        reason="",
        accepted=accepted.verdict,
        before=worst.harm,
        **figures,
    )
    return outcome, decided.reason


def _unchanged(one: pairing.PairedContrast) -> bool:
    """Whether all of two runs' trials are the same by content, so that only the computer can differ."""
    return one.same and one.seeds[0] == one.seeds[1]


def _change(pair: pairing.PairedContrast, judgement: SequentialDecision, *, elsewhere: bool) -> Verdict:
    """What the interval says."""
    seeds = max(pair.seeds)
    return decide_change(
        judgement.harm,
        judgement.verdict,
        margin=pair.suite.margin,
        crashed=any(record.error for (arm, _, _), record in pair.answers.items() if arm.startswith(pairing.CANDIDATE)),
        same=pair.same,
        elsewhere=elsewhere,
        one_pair_of=seeds if pair.count == 1 < seeds and not pair.suite.after else 0,
        to_decide=power.to_decide(judgement, pair.suite) if judgement.is_open else None,
    )


def _measured(one: ContrastFindings) -> float | None:
    """What an invariant's subject measured, the mean of its size over seeds; None where that is not known."""
    found = one.worst.measures.get(f"{SUBJECT}/{one.contrast}")
    return None if found is None or not np.isfinite(found) else abs(found)


def _outcome(
    about: ContrastFindings, accepted: ContrastFindings | None, decided: Verdict, figures: Mapping[str, Any]
) -> tuple[Outcome, Reason]:
    outcome = Outcome(
        id=about.id,
        plugin=about.plugin,
        decision=decided.code,
        reason="",
        verdict=about.verdict,
        accepted=accepted.verdict if accepted else "",
        **figures,
    )
    return outcome, decided.reason


def _figures(one: pairing.PairedContrast, judged: SequentialDecision) -> dict[str, Any]:
    estimate, tested = judged.harm.estimate, judged.harm.exposed and not judged.harm.error
    return {
        "metric": one.suite.metric,
        "unit": metrics.get_metric(one.suite.metric).unit,
        "margin": one.suite.margin,
        "change": json_values(estimate.harm),
        "low": json_values(estimate.low),
        "high": json_values(estimate.high),
        "p_worse": judged.adjusted[0] if tested else None,
        "p_not_worse": judged.adjusted[1] if tested else None,
        "seeds": len(judged.seeds),
        "examples": estimate.examples,
        "compared": True,
    }
