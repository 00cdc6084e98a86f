"""Every decision table: verdicts of findings, decisions about a change between two runs, outcomes of claims. Pure.

A PASS needs everything to be there: a finite estimate, a working control, a baseline. Whatever is missing leaves the verdict
open or makes it an ERROR.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite
from typing import TYPE_CHECKING

from xferbench.core.comparison import CANNOT_TELL, CRASHED, NOT_WORSE, SKIPPED, WORSE
from xferbench.core.reason import Code, Reason, because

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xferbench.analysis.estimates import ContrastEstimate
    from xferbench.core.run import Estimate

WORKING_CONTROLS = ("detected", "harmless")
DECISION_OF_VERDICT = {"ERROR": CRASHED, "FAIL": WORSE, "INCONCLUSIVE": CANNOT_TELL, "PASS": NOT_WORSE, "SKIPPED": SKIPPED}
RELATIVE_ROUNDING = 1e-6  # relative and absolute tolerance of what an invariant measures


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A verdict, or a decision about a change, with its reason."""

    code: str
    reason: Reason


def control_outcome(judged: ContrastEstimate | None, margin: float) -> str:
    """What a positive control shows: ``detected``, ``harmless`` or ``missed``; ``none`` where there is no control."""
    if judged is None:
        return "none"
    if judged.error or not judged.exposed:  # an induced arm that equals its cure shows nothing
        return "missed"
    if judged.estimate.low > margin:
        return "detected"
    return "harmless" if judged.estimate.high < margin else "missed"


def decide_harm(  # noqa: PLR0911 - a table
    estimate: Estimate | None,
    control: str,
    exposed: bool,
    trust: str,
    baseline: Reason | None,
    *,
    decision: str,
    margin: float,
    error: str = "",
    equal: Reason | None = None,
    selected: bool = False,
    finished: bool = False,
    variant: str = "",
    cost: Estimate | None = None,
) -> Verdict:
    """The verdict on a harm.

    Args:
        estimate: the harm with its bounds.
        control: what the positive control shows, see :func:`control`.
        exposed: whether subject and cure differ.
        trust: what the plugin takes on trust.
        baseline: why there is nothing to compare with, where the baseline learnt nothing.
        decision: of the corrected P-values, see :mod:`xferbench.analysis.sequential`.
        error: a crash of any arm, or of the plugin.
        equal: why subject and cure are equal, where they are.
        selected: whether the cure was selected among candidates, so that a better one may have been missed.
        finished: whether the subject is a finished network: no repair helps a network that learnt nothing.
        variant, cost: the control's name and estimate, for the reason alone.
    """
    if error:
        return _verdict("ERROR", Code.TEXT, text=error)
    if decision == "FAIL":
        return _verdict("FAIL", Code.ABOVE_MARGIN, margin=margin)
    if decision != "PASS" or not is_measured(estimate):
        return Verdict(code="INCONCLUSIVE", reason=_open(estimate, margin))
    if trust:
        return _verdict("INCONCLUSIVE", Code.ON_TRUST, what=trust)
    blind = control not in WORKING_CONTROLS
    if not exposed and ((selected and blind) or (finished and baseline)):
        return _verdict("INCONCLUSIVE", Code.NOT_EXPOSED_NO_CONTROL, why=equal)
    if not exposed:
        return _verdict("PASS", Code.NOT_EXPOSED, why=equal)
    if baseline:
        return Verdict(code="INCONCLUSIVE", reason=baseline)
    if blind:
        return _verdict("INCONCLUSIVE", Code.NO_POWER, margin=margin, variant=variant, cost=cost)
    return _verdict("PASS", Code.BELOW_MARGIN, margin=margin)


def decide_invariant(  # noqa: PLR0911 - a table
    values: Sequence[float],
    diverged: Sequence[bool],
    *,
    allowed: float,
    meaning: str,
    error: str = "",
    trust: str = "",
    comparable: bool = True,
) -> Verdict:
    """The verdict on an invariant: one seed beyond ``allowed`` breaks it.

    Args:
        values: of the subject, by seed; one that is not finite is excused only where the subject diverged.
        diverged: whether the subject diverged, by seed.
        comparable: whether there is anything that the value may be compared with.
    """
    unknown = [bool(dead) for value, dead in zip(values, diverged, strict=True) if not isfinite(value)]
    broken = sum(isfinite(value) and abs(value) > allowed for value in values)
    if error:
        return _verdict("ERROR", Code.TEXT, text=error)
    if not values or not all(unknown) or not isfinite(allowed):
        return _verdict("ERROR", Code.NOT_MEASURED)
    if broken:
        return _verdict("FAIL", Code.BROKEN, meaning=meaning, count=broken, seeds=len(values))
    if unknown:
        return _verdict("INCONCLUSIVE", Code.SUBJECT_DIVERGED, count=len(unknown), seeds=len(values))
    if trust and not comparable:
        return _verdict("SKIPPED", Code.TEXT, text=trust)
    if trust:
        return _verdict("INCONCLUSIVE", Code.ON_TRUST, what=trust)
    return _verdict("PASS", Code.HOLDS, meaning=meaning, seeds=len(values))


def decide_measurement(*, meaning: str, failure: str, error: str, crashed: bool, seeds: int) -> Verdict:
    """What is only measured is never judged: INFO, or why there is no number.

    Args:
        failure: a crash of the plugin itself. error: why there is no estimate. crashed: whether an arm crashed.
    """
    if failure:
        return _verdict("ERROR", Code.TEXT, text=failure)
    if error:
        return _verdict("ERROR" if crashed or not seeds else "SKIPPED", Code.TEXT, text=error)
    return _verdict("INFO", Code.TEXT, text=meaning)


def decide_without_trials(skipped: str, error: str) -> Verdict:
    """The verdict on a plugin that asks for no trials: why it is skipped, or what broke."""
    return _verdict("SKIPPED" if skipped else "ERROR", Code.TEXT, text=skipped or error)


def decide_change(  # noqa: PLR0911 - a table
    harm: ContrastEstimate,
    decision: str,
    *,
    margin: float,
    crashed: bool,
    same: bool,
    elsewhere: bool,
    one_pair_of: int,
    to_decide: Reason | None,
) -> Verdict:
    """The decision about a change between two runs, from its interval alone.

    Args:
        crashed: whether the candidate crashed. same: whether the paired trials are the same by content.
        elsewhere: whether another computer alone can have made the difference.
        one_pair_of: the seeds of a run of which only one could be paired; 0 where more were paired, or one is all there is.
        to_decide: what would decide an open change.
    """
    if harm.error:
        return _verdict(CRASHED if crashed else CANNOT_TELL, Code.TEXT, text=harm.error)
    if not harm.exposed:
        return _verdict(NOT_WORSE, Code.SAME_ANSWERS if same else Code.SAME_ZERO_HARM)
    if one_pair_of:
        return _verdict(CANNOT_TELL, Code.ONE_PAIR, seeds=one_pair_of)
    if decision == "FAIL":
        return _verdict(WORSE, Code.WORSE_THAN_MARGIN, margin=margin)
    if elsewhere:
        return _verdict(NOT_WORSE, Code.SAME_TRIALS_ELSEWHERE)
    if decision == "PASS":
        return _verdict(NOT_WORSE, Code.WORSE_BY_LESS, margin=margin)
    return _verdict(CANNOT_TELL, Code.CHANGE_OPEN, margin=margin, same=same, to_decide=to_decide)


def decide_harm_change(  # noqa: PLR0911 - a table
    change: Verdict, own: str, accepted: str, *, excluded: bool, elsewhere: bool, text: str
) -> Verdict:
    """The decision about a harm of two runs: its interval, and the verdicts of both runs.

    Args:
        change: from :func:`change`. own, accepted: the verdicts.
        excluded: whether the accepted run showed the harm to be below the margin.
        text: the reason of the candidate's own verdict.
    """
    if change.code == CRASHED:
        return change
    if own == "FAIL" and accepted != "FAIL":
        if elsewhere and change.code != WORSE:
            return _verdict(CANNOT_TELL, Code.FAIL_ELSEWHERE, accepted=accepted)
        if change.code == WORSE or excluded:
            return _verdict(WORSE, Code.NEW_FAIL, accepted=accepted, text=text)
        return _verdict(change.code, Code.FAIL_LEFT_OPEN, why=change.reason)
    if own == "FAIL" and change.code == WORSE:
        return _verdict(WORSE, Code.FAIL_GREW, why=change.reason)
    if own == "PASS" and change.code != NOT_WORSE:
        return _verdict(NOT_WORSE, Code.PASSES_NOW, text=text)
    return change


def decide_invariant_change(own: str, accepted: str, before: float | None, now: float | None, *, text: str) -> Verdict:
    """The decision about an invariant of two runs: newly broken, or broken by more than before."""
    if own == "FAIL" and accepted != "FAIL":
        return _verdict(WORSE, Code.NEW_FAIL, accepted=accepted, text=text)
    if own != "FAIL":
        return _verdict(DECISION_OF_VERDICT[own], Code.TEXT, text=text)
    if before is None or now is None:
        return _verdict(CANNOT_TELL, Code.SIZE_UNKNOWN, text=text)
    if now <= before * (1 + RELATIVE_ROUNDING) + RELATIVE_ROUNDING:
        return _verdict(NOT_WORSE, Code.TEXT, text=text)
    return _verdict(WORSE, Code.SIZE_GREW, before=before, now=now, text=text)


def own_decision(own: str, accepted: str, apart: Reason | None, *, text: str) -> Verdict:
    """The decision about what cannot be compared: the candidate's own verdict counts.

    Args:
        accepted: the accepted run's verdict, where it reached one. apart: why the two cannot be compared.
    """
    if own == "SKIPPED" and accepted:
        return _verdict(CANNOT_TELL, Code.NO_LONGER_JUDGED, accepted=accepted, text=text)
    if apart:
        return _verdict(DECISION_OF_VERDICT[own], Code.OWN_VERDICT, why=apart, verdict=own, text=text)
    return _verdict(DECISION_OF_VERDICT[own], Code.TEXT, text=text)


def no_longer_tested(accepted: str) -> Verdict:
    """The decision about what the accepted run tested and the candidate does not: nobody could see it become worse."""
    return _verdict(CANNOT_TELL, Code.NO_LONGER_TESTED, accepted=accepted)


def decide_difference(low: float, high: float, margin: float, error: str) -> str:
    """Of two recipes: ``better`` or ``worse`` by more than the margin, ``equal`` within it, else ``open``."""
    if error:
        return "open"
    if low > margin:
        return "better"
    if high < -margin:
        return "worse"
    return "equal" if -margin < low and high < margin else "open"


def decide_claim(number: tuple[float, float, float], at_least: float | None, at_most: float | None, why: str) -> str:
    """Of a claim: only where the whole interval is on one side, it ``agrees`` or ``disagrees``.

    Args:
        number: the mean with its bounds. why: there is no number, or "".
    """
    mean, low, high = number
    if why or not all(map(isfinite, (mean, low, high))):
        return "not measured"
    least, most = (-inf if at_least is None else at_least), (inf if at_most is None else at_most)
    if least < low and high < most:
        return "agrees"
    return "disagrees" if high < least or low > most else "inconclusive"


def is_measured(estimate: Estimate | None) -> bool:
    """Whether a harm and its bounds are all finite."""
    return estimate is not None and all(map(isfinite, (estimate.harm, estimate.low, estimate.high)))


def _open(estimate: Estimate | None, margin: float) -> Reason:
    if estimate is None or not (isfinite(estimate.low) and isfinite(estimate.high)):
        return because(Code.NOT_ESTIMATED)
    if estimate.low <= margin <= estimate.high:
        return because(Code.MARGIN_WITHIN_INTERVAL, margin=margin)
    above = estimate.low > margin
    return because(Code.ABOVE_BEFORE_CORRECTION if above else Code.BELOW_BEFORE_CORRECTION, margin=margin)


def _verdict(code: str, reason: Code, **values: object) -> Verdict:
    return Verdict(code=code, reason=because(reason, **values))
