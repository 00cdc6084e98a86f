"""What is decided of one thing that two runs have in common: worse, not worse, or it cannot be told. Pure.

A comparison is judged as a harm is: the crossed interval of :mod:`xferbench.stats`, the suite's margin, looks and alpha, Holm's
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

from xferbench import metrics, pairs
from xferbench.reason import needed, shown
from xferbench.record import plain

if TYPE_CHECKING:
    from collections.abc import Mapping

    from xferbench.looks import Judgement
    from xferbench.record import Finding

WORSE, NOT_WORSE, CANNOT_TELL, CRASHED, SKIPPED = DECISIONS = ("worse", "not worse", "cannot tell", "crashed", "skipped")
SUBJECT = "subject"  # the id of the outcome that is about the suite's metric itself
UNJUDGED = ("ERROR", "SKIPPED")
WORST = ("ERROR", "FAIL", "INCONCLUSIVE", "PASS", "SKIPPED")
OWN = {"ERROR": CRASHED, "FAIL": WORSE, "INCONCLUSIVE": CANNOT_TELL, "PASS": NOT_WORSE, "SKIPPED": SKIPPED}
ROUNDING = 1e-6  # of what an invariant measures


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What is decided of one thing that is compared: the subject's metric, or the harm of a plugin's contrast.

    Attributes:
        id: ``subject``, or ``plugin/contrast``. plugin: its id, or its check's; "" of the subject.
        decision: one of ``DECISIONS``; ``worse`` is what fails a gate.
        verdict, accepted: the candidate's own verdict and that of the accepted run; "" where there is none.
        before, now: the subject's metric, or the harm, of the accepted run and of the candidate, in ``unit``.
        change, low, high: how much worse, with unadjusted one-sided bounds; above 0 is worse, for losses too.
        p_worse, p_not_worse: adjusted for looks and for all that is compared; None where nothing was to be tested.
        compared: whether the two were paired; where not, the candidate's own verdict counts.
        flipped: share of the subject's answers that differ, over the pairs of seed and example; None of a harm.
    """

    id: str
    plugin: str
    decision: str
    reason: str
    verdict: str = ""
    accepted: str = ""
    metric: str = "accuracy"
    unit: str = "accuracy"
    margin: float | None = None
    before: float | None = None
    now: float | None = None
    change: float | None = None
    low: float | None = None
    high: float | None = None
    p_worse: float | None = None
    p_not_worse: float | None = None
    seeds: int = 0
    examples: int = 0
    compared: bool = False
    flipped: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What a run says of one contrast of a plugin: its findings, one a variant, the worst verdict among them."""

    id: str
    plugin: str
    contrast: str
    findings: tuple[Finding, ...]

    @property
    def verdict(self) -> str:
        """The worst one: a crash, then FAIL, what is open, PASS, SKIPPED."""
        return min((one.verdict for one in self.findings), key=WORST.index)

    @property
    def worst(self) -> Finding:
        """The first finding with that verdict."""
        return next(one for one in self.findings if one.verdict == self.verdict)

    def excluded(self, alpha: float) -> bool:
        """Whether the harm was shown to be below the margin, though a missed control may have kept it from a PASS."""
        return self.verdict == "PASS" or all(one.p_pass is not None and one.p_pass < alpha for one in self.findings)


def of_subject(one: pairs.Pair, judged: Judgement, tested: int, *, elsewhere: bool) -> Outcome:
    """The suite's metric of the subject; ``elsewhere`` as in :func:`of_contrast`."""
    decision, why = _interval(one, judged, tested, elsewhere=elsewhere and _unchanged(one))
    seeds = len(judged.seeds)
    level = dict.fromkeys(one.weights, 1.0)
    before, now = (pairs.level(one, side, seeds, level) for side in (pairs.OLD, pairs.NEW))
    figures = _figures(one, judged) | {"before": before, "now": now, "flipped": pairs.flipped(one, seeds)}
    return Outcome(id=SUBJECT, plugin="", decision=decision, reason=why, **figures)


def of_contrast(one: About, known: About, held: pairs.Pair, judged: Judgement, tested: int, *, elsewhere: bool) -> Outcome:
    """A harm that both runs have.

    ``elsewhere`` tells that another computer made one of the runs, which alone may then differ where the trials are the same.
    """
    elsewhere = elsewhere and _unchanged(held)
    decision, why = _interval(held, judged, tested, elsewhere=elsewhere)
    if decision != CRASHED:
        decision, why = _with_verdicts(one, known, decision, why, alpha=held.suite.alpha, elsewhere=elsewhere)
    sign = -1.0 if metrics.named(held.suite.metric).loss else 1.0
    harms = [pairs.level(held, side, len(judged.seeds), held.weights) for side in (pairs.OLD, pairs.NEW)]
    before, now = (None if harm is None else sign * harm for harm in harms)
    return _told(one, known, decision, why, _figures(held, judged) | {"before": before, "now": now})


def of_invariant(one: About, known: About) -> Outcome:
    """An invariant has no interval: it is broken anew, or by more than before, or it is not."""
    before, now = (_measured(about) for about in (known, one))
    figures = {"before": before, "now": now, "compared": True, "unit": "count", "metric": one.contrast}
    decision, why = OWN[one.verdict], one.worst.reason
    if one.verdict == "FAIL" and known.verdict != "FAIL":
        why = _new(one, known)
    elif one.verdict == "FAIL" and (before is None or now is None):
        decision, why = CANNOT_TELL, f"the accepted run fails it too, and by how much is not known of both: {why}"
    elif before is not None and now is not None and now <= before * (1 + ROUNDING) + ROUNDING:
        decision = NOT_WORSE if one.verdict == "FAIL" else decision
    elif one.verdict == "FAIL":
        why = f"the accepted run fails it too, but by less: {now:.6g}, accepted {before:.6g}; {why}"
    return _told(one, known, decision, why, figures)


def by_itself(one: About, known: About | None, apart: str) -> Outcome:
    """What has nothing to be held against counts by its own verdict; ``apart`` says why it has nothing."""
    worst, decision = one.worst, OWN[one.verdict]
    why = f"{apart}, so its own verdict counts: {one.verdict}, {worst.reason}" if apart else worst.reason
    if one.verdict == "SKIPPED" and known is not None and known.verdict not in UNJUDGED:
        decision, why = CANNOT_TELL, f"no longer judged (accepted: {known.verdict}): {worst.reason}"
    figures = {name: getattr(worst, name) for name in ("metric", "unit", "margin", "seeds", "examples")}
    return _told(one, known, decision, why, figures | {"now": worst.harm})


def dropped(known: About) -> Outcome:
    """What the accepted run was judged on and the candidate does not ask any more: nobody could see it become worse."""
    why = f"no longer asked (accepted: {known.verdict}); accept a run without it, if that is meant"
    worst = known.worst
    figures = {name: getattr(worst, name) for name in ("metric", "unit", "margin")}
    return Outcome(
        id=known.id,
        plugin=known.plugin,
        decision=CANNOT_TELL,
        reason=why,
        accepted=known.verdict,
        before=worst.harm,
        **figures,
    )


def _unchanged(one: pairs.Pair) -> bool:
    """Whether all of two runs' trials are the same by content, so that only the computer can differ."""
    return one.same and one.seeds[0] == one.seeds[1]


def _interval(one: pairs.Pair, judged: Judgement, tested: int, *, elsewhere: bool) -> tuple[str, str]:
    """What the interval says, in a word and in a sentence."""
    harm, unit = judged.harm, metrics.named(one.suite.metric).unit
    if harm.error:
        crashed = any(record.error for (arm, _, _), record in one.answers.items() if arm.startswith(pairs.NEW))
        return (CRASHED if crashed else CANNOT_TELL), harm.error
    if not harm.exposed:
        alike = "unchanged: the same trials with the same answers"
        return NOT_WORSE, alike if one.same else "exactly 0, as it was: the cure changes nothing"
    margin, seeds = f"the margin of {shown(one.suite.margin, unit, signed=False)}", max(one.seeds)
    if one.count == 1 < seeds and not one.suite.after:
        decision, why = CANNOT_TELL, f"one pair knows nothing of other seeds, of which one of the runs has {seeds}"
    elif judged.verdict == "FAIL":
        decision, why = WORSE, f"worse by more than {margin}"
    elif elsewhere:
        decision, why = (
            NOT_WORSE,
            "unchanged: the same trials, and what another computer makes of them is not shown to be worse",
        )
    elif judged.verdict == "PASS":
        decision, why = NOT_WORSE, f"worse by less than {margin}, if at all"
    else:
        odd = "the same trials on the same computer gave other answers; " if one.same else ""
        open_ = f"{odd}neither worse by {margin} nor by less is shown"
        decision, why = CANNOT_TELL, f"{open_}; {needed(harm, one.suite, tested=tested)}"
    return decision, why


def _with_verdicts(one: About, known: About, decision: str, why: str, *, alpha: float, elsewhere: bool) -> tuple[str, str]:
    """What the two runs' own verdicts say beside the interval."""
    if one.verdict == "FAIL" and known.verdict != "FAIL":
        if elsewhere and decision != WORSE:
            return CANNOT_TELL, f"the same trials, of which another computer makes a FAIL (accepted: {known.verdict})"
        if decision == WORSE or known.excluded(alpha):
            return WORSE, _new(one, known)
        return decision, f"a FAIL that the accepted run had left open; that the harm has grown is another question: {why}"
    if one.verdict == "FAIL" and decision == WORSE:
        return decision, f"the accepted run fails it too, but this is {why}"
    if one.verdict == "PASS" and decision != NOT_WORSE:
        return NOT_WORSE, f"whatever it was before, {one.worst.reason}"
    return decision, why


def _new(one: About, known: About) -> str:
    return f"a FAIL that the accepted run has not (there {known.verdict}): {one.worst.reason}"


def _measured(one: About) -> float | None:
    """What an invariant's subject measured, the mean of its size over seeds; None where that is not known."""
    found = one.worst.measures.get(f"{SUBJECT}/{one.contrast}")
    return None if found is None or not np.isfinite(found) else abs(found)


def _told(one: About, known: About | None, decision: str, why: str, figures: Mapping[str, Any]) -> Outcome:
    accepted = known.verdict if known else ""
    return Outcome(
        id=one.id, plugin=one.plugin, decision=decision, reason=why, verdict=one.verdict, accepted=accepted, **figures
    )


def _figures(one: pairs.Pair, judged: Judgement) -> dict[str, Any]:
    estimate, tested = judged.harm.estimate, judged.harm.exposed and not judged.harm.error
    return {
        "metric": one.suite.metric,
        "unit": metrics.named(one.suite.metric).unit,
        "margin": one.suite.margin,
        "change": plain(estimate.harm),
        "low": plain(estimate.low),
        "high": plain(estimate.high),
        "p_worse": judged.adjusted[0] if tested else None,
        "p_not_worse": judged.adjusted[1] if tested else None,
        "seeds": len(judged.seeds),
        "examples": estimate.examples,
        "compared": True,
    }
