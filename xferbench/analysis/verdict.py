"""All decision tables: verdicts of findings, decisions about a change between two runs, outcomes of claims. Pure.

A PASS requires a finite estimate, a working control and a baseline. If any of them is missing, the verdict is open or an
ERROR.
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
NOT_APPLICABLE = frozenset({Code.NO_GROUPS})  # obstacles by which a question does not apply
UNDECIDED = frozenset({Code.UNAFFORDABLE})  # reasons without trials that leave a question open
RELATIVE_ROUNDING = 1e-6  # relative and absolute tolerance of the size of an invariant


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A verdict, or a decision about a change, with its reason."""

    code: str
    reason: Reason


def control_outcome(control: ContrastEstimate | None, margin: float) -> str:
    """Return what a positive control shows: ``detected``, ``harmless``, ``missed``, or ``none`` if there is no control."""
    if control is None:
        return "none"
    if control.error or not control.exposed:  # an induced arm that equals its cure shows nothing
        return "missed"
    if control.estimate.low > margin:
        return "detected"
    return "harmless" if control.estimate.high < margin else "missed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What a verdict on a harm depends on besides the harm.

    Attributes:
        control: the outcome of the positive control, as :func:`control_outcome` returns it.
        exposed: whether subject and cure differ.
        trust: an assumption of the plugin that no measurement checks, or "".
        baseline: why the baseline is no reference, for example because it learned nothing; None if it is one.
        error: the crash of an arm or of the plugin, or None.
        equal: why subject and cure are equal, if they are.
        selected: whether the cure was selected among candidates. A better candidate may then have been missed.
        finished: whether the subject is a finished network. No repair helps a network that learned nothing.
        control_improves: whether the induced arm is better than the cured arm by more than the margin. Then something that it
            changes is not as stated.
        may_understate, may_overstate: an arm whose search was cut by a budget, if a better arm would mean more, or less, harm;
            else "".
        seeds_apart: whether a few seeds are far worse than the others, and there are few seeds.
        failures: why failed runs leave open whether the mean harm is below the margin, or None.
        variant: name of the control, for the reason.
        cost: estimate of the control, for the reason.
    """

    control: str
    exposed: bool = True
    trust: str = ""
    baseline: Reason | None = None
    error: Reason | None = None
    equal: Reason | None = None
    selected: bool = False
    finished: bool = False
    control_improves: bool = False
    may_understate: str = ""
    may_overstate: str = ""
    seeds_apart: bool = False
    failures: Reason | None = None
    variant: str = ""
    cost: Estimate | None = None


def decide_harm(  # noqa: PLR0911 - a table
    estimate: Estimate | None, evidence: Evidence, *, decision: str, margin: float
) -> Verdict:
    """Return the verdict on a harm.

    Args:
        estimate: the harm with its bounds.
        evidence: what the verdict depends on besides the harm.
        decision: the decision by the corrected p-values, see :mod:`xferbench.analysis.sequential`.
        margin: the margin, in the metric's unit.
    """
    if evidence.error:
        return Verdict(code="ERROR", reason=evidence.error)
    if decision == "FAIL":
        if evidence.may_overstate:
            return _verdict("INCONCLUSIVE", Code.SEARCH_CUT, arm=evidence.may_overstate)
        return _verdict("FAIL", Code.ABOVE_MARGIN, margin=margin)
    if decision != "PASS" or estimate is None or not is_measured(estimate):
        return Verdict(code="INCONCLUSIVE", reason=_open_reason(estimate, margin))
    if obstacle := _why_no_pass(estimate, evidence, margin):
        return Verdict(code="INCONCLUSIVE", reason=obstacle)
    if not evidence.exposed:
        return _verdict("PASS", Code.NOT_EXPOSED, why=evidence.equal)
    return _verdict("PASS", Code.BELOW_MARGIN, margin=margin)


def _why_no_pass(  # noqa: PLR0911 - a table
    estimate: Estimate, evidence: Evidence, margin: float
) -> Reason | None:
    """Return why a harm below the margin is not a PASS, or None.

    No control is needed if the subject is better by more than the margin, because no failure can be hidden then.
    """
    lacks_control = evidence.control not in WORKING_CONTROLS
    if evidence.trust:
        return because(Code.ON_TRUST, what=evidence.trust)
    if evidence.exposed and evidence.baseline:
        return evidence.baseline
    if evidence.may_understate:
        return because(Code.SEARCH_CUT, arm=evidence.may_understate)
    if evidence.control_improves:
        return because(Code.CONTROL_IMPROVES, variant=evidence.variant, cost=evidence.cost)
    if not evidence.exposed:
        is_doubtful = (evidence.selected and lacks_control) or (evidence.finished and evidence.baseline)
        return because(Code.NOT_EXPOSED_NO_CONTROL, why=evidence.equal) if is_doubtful else None
    if evidence.seeds_apart:
        return because(Code.SEEDS_APART, seeds=estimate.seeds)
    if evidence.failures:
        return evidence.failures
    if lacks_control and not estimate.high < -margin:
        return because(Code.NO_POWER, margin=margin, variant=evidence.variant, cost=evidence.cost)
    return None


def decide_share(  # noqa: PLR0911 - a table
    estimate: Estimate,
    *,
    decision: str,
    allowed: float,
    control: str,
    variant: str,
    cost: Estimate | None,
    has_reference: bool,
    error: Reason | None = None,
    trust: str = "",
) -> Verdict:
    """Return the verdict on the share of runs that fail.

    Args:
        estimate: the share with its bounds.
        decision: the decision by the corrected p-values.
        allowed: the allowed share.
        control: the outcome of the positive control.
        variant: name of the control, for the reason.
        cost: estimate of the control, for the reason; None if there is none.
        has_reference: whether any run learned, so that a run without learning is a failed one.
        error: the crash of an arm or of the plugin, or None.
        trust: an assumption of the plugin that no measurement checks, or "".
    """
    if error:
        return Verdict(code="ERROR", reason=error)
    if decision == "FAIL":
        return _verdict("FAIL", Code.SHARE_ABOVE, allowed=allowed)
    if not has_reference:
        return _verdict("INCONCLUSIVE", Code.SHARE_WITHOUT_REFERENCE)
    if decision != "PASS" or not is_measured(estimate):
        return _verdict("INCONCLUSIVE", Code.SHARE_OPEN, allowed=allowed, estimate=estimate)
    if trust:
        return _verdict("INCONCLUSIVE", Code.ON_TRUST, what=trust)
    if control not in WORKING_CONTROLS:
        return _verdict("INCONCLUSIVE", Code.SHARE_WITHOUT_POWER, allowed=allowed, variant=variant, cost=cost)
    return _verdict("PASS", Code.SHARE_BELOW, allowed=allowed)


def decide_invariant(  # noqa: PLR0911 - a table
    values: Sequence[float],
    diverged: Sequence[bool],
    *,
    allowed: float,
    meaning: str,
    error: Reason | None = None,
    trust: str = "",
    comparable: bool = True,
    obstacle: Reason | None = None,
) -> Verdict:
    """Return the verdict on an invariant; a single seed beyond ``allowed`` breaks it.

    Args:
        values: values of the subject, one for each seed. A value may be non-finite only if the subject diverged.
        diverged: whether the subject diverged, for each seed.
        allowed: largest absolute value that does not break the invariant.
        meaning: what the invariant states, for the reason.
        error: the crash of an arm or of the plugin, or None.
        trust: an assumption of the plugin that no measurement checks, or "".
        comparable: whether there is a reference for the value.
        obstacle: why the plugin does not let an invariant that holds pass, or None.
    """
    excuses = [bool(has_diverged) for value, has_diverged in zip(values, diverged, strict=True) if not isfinite(value)]
    violations = sum(isfinite(value) and abs(value) > allowed for value in values)
    if error:
        return Verdict(code="ERROR", reason=error)
    if not values or not all(excuses) or not isfinite(allowed):
        return _verdict("ERROR", Code.NOT_MEASURED)
    if violations:
        return _verdict("FAIL", Code.BROKEN, meaning=meaning, count=violations, seeds=len(values))
    if excuses:
        return _verdict("INCONCLUSIVE", Code.SUBJECT_DIVERGED, count=len(excuses), seeds=len(values))
    if trust and not comparable:
        return _verdict("SKIPPED", Code.TEXT, text=trust)
    if trust:
        return _verdict("INCONCLUSIVE", Code.ON_TRUST, what=trust)
    if obstacle:
        return Verdict(code="SKIPPED" if obstacle.code in NOT_APPLICABLE else "INCONCLUSIVE", reason=obstacle)
    return _verdict("PASS", Code.HOLDS, meaning=meaning, seeds=len(values))


def decide_measurement(*, meaning: str, failure: Reason | None, error: Reason | None, crashed: bool, seeds: int) -> Verdict:
    """Return INFO for a contrast that is only measured, or why there is no number.

    Args:
        meaning: what the number states.
        failure: the crash of the plugin itself, or None.
        error: why there is no estimate, or None.
        crashed: whether an arm crashed.
        seeds: number of seeds.
    """
    if failure:
        return Verdict(code="ERROR", reason=failure)
    if error:
        return Verdict(code="ERROR" if crashed or not seeds else "SKIPPED", reason=error)
    return _verdict("INFO", Code.TEXT, text=meaning)


def decide_without_trials(skipped: Reason | None, error: str) -> Verdict:
    """Return the verdict on a plugin without trials: SKIPPED or INCONCLUSIVE with the reason, or ERROR with the crash."""
    if skipped is None:
        return _verdict("ERROR", Code.TEXT, text=error)
    return Verdict(code="INCONCLUSIVE" if skipped.code in UNDECIDED else "SKIPPED", reason=skipped)


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
    """Return the decision about a change between two runs, from its interval alone.

    Args:
        harm: the change, where positive values are worse.
        decision: the decision by the corrected p-values.
        margin: the margin, in the metric's unit.
        crashed: whether the candidate crashed.
        same: whether the paired trials have the same content.
        elsewhere: whether the use of another computer is the only possible cause of a difference.
        one_pair_of: larger number of seeds of the two runs, if only one pair exists although a run has more seeds; else 0.
        to_decide: the sizes that would decide an open change.
    """
    if harm.error:
        return Verdict(code=CRASHED if crashed else CANNOT_TELL, reason=harm.error)
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
    change: Verdict, candidate: str, accepted: str, *, was_below_margin: bool, elsewhere: bool, text: str
) -> Verdict:
    """Return the decision about a harm that two runs have, from its interval and the verdicts of both runs.

    Args:
        change: the decision from the interval, as :func:`decide_change` returns it.
        candidate: the verdict of the candidate.
        accepted: the verdict of the accepted run.
        was_below_margin: whether the accepted run showed the harm to be below the margin.
        elsewhere: as in :func:`decide_change`.
        text: the reason of the candidate's verdict.
    """
    if change.code == CRASHED:
        return change
    if candidate == "FAIL" and accepted != "FAIL":
        if elsewhere and change.code != WORSE:
            return _verdict(CANNOT_TELL, Code.FAIL_ELSEWHERE, accepted=accepted)
        if change.code == WORSE or was_below_margin:
            return _verdict(WORSE, Code.NEW_FAIL, accepted=accepted, text=text)
        return _verdict(change.code, Code.FAIL_LEFT_OPEN, why=change.reason)
    if candidate == "FAIL" and change.code == WORSE:
        return _verdict(WORSE, Code.FAIL_GREW, why=change.reason)
    if candidate == "PASS" and change.code != NOT_WORSE:
        return _verdict(NOT_WORSE, Code.PASSES_NOW, text=text)
    return change


def decide_invariant_change(candidate: str, accepted: str, before: float | None, now: float | None, *, text: str) -> Verdict:
    """Return the decision about an invariant of two runs: worse if it is newly broken, or broken by more than before.

    Args:
        candidate: the verdict of the candidate.
        accepted: the verdict of the accepted run.
        before: size of the violation in the accepted run, or None.
        now: size of the violation in the candidate, or None.
        text: the reason of the candidate's verdict.
    """
    if candidate == "FAIL" and accepted != "FAIL":
        return _verdict(WORSE, Code.NEW_FAIL, accepted=accepted, text=text)
    if candidate != "FAIL":
        return _verdict(DECISION_OF_VERDICT[candidate], Code.TEXT, text=text)
    if before is None or now is None:
        return _verdict(CANNOT_TELL, Code.SIZE_UNKNOWN, text=text)
    if now <= before * (1 + RELATIVE_ROUNDING) + RELATIVE_ROUNDING:
        return _verdict(NOT_WORSE, Code.TEXT, text=text)
    return _verdict(WORSE, Code.SIZE_GREW, before=before, now=now, text=text)


def decide_without_pair(candidate: str, accepted: str, obstacle: Reason | None, *, text: str) -> Verdict:
    """Return the decision about a contrast that cannot be compared; the candidate's verdict counts.

    Args:
        candidate: the verdict of the candidate.
        accepted: the verdict of the accepted run, or "" if it has none.
        obstacle: why the two runs cannot be compared.
        text: the reason of the candidate's verdict.
    """
    if candidate == "SKIPPED" and accepted:
        return _verdict(CANNOT_TELL, Code.NO_LONGER_JUDGED, accepted=accepted, text=text)
    if obstacle:
        return _verdict(DECISION_OF_VERDICT[candidate], Code.OWN_VERDICT, why=obstacle, verdict=candidate, text=text)
    return _verdict(DECISION_OF_VERDICT[candidate], Code.TEXT, text=text)


def decide_untested(accepted: str) -> Verdict:
    """Return the decision about a contrast that only the accepted run tested; nothing shows whether it became worse."""
    return _verdict(CANNOT_TELL, Code.NO_LONGER_TESTED, accepted=accepted)


def decide_difference(low: float, high: float, margin: float, error: Reason | None) -> str:
    """Compare two recipes: ``better`` or ``worse`` by more than the margin, ``equal`` within the margin, else ``open``."""
    if error:
        return "open"
    if low > margin:
        return "better"
    if high < -margin:
        return "worse"
    return "equal" if -margin < low and high < margin else "open"


def decide_claim(number: tuple[float, float, float], at_least: float | None, at_most: float | None, why: Reason | None) -> str:
    """Compare a claim with a measurement: ``agrees``, ``disagrees``, ``inconclusive`` or ``not measured``.

    The claim agrees or disagrees only if the whole interval is on one side of its limits.

    Args:
        number: the mean with its lower and upper bound.
        at_least: claimed lower limit, or None.
        at_most: claimed upper limit, or None.
        why: why there is no number, or None.
    """
    mean, low, high = number
    if why or not all(map(isfinite, (mean, low, high))):
        return "not measured"
    least, most = (-inf if at_least is None else at_least), (inf if at_most is None else at_most)
    if least < low and high < most:
        return "agrees"
    return "disagrees" if high < least or low > most else "inconclusive"


def is_measured(estimate: Estimate | None) -> bool:
    """Return whether a harm and its bounds are all finite."""
    return estimate is not None and all(map(isfinite, (estimate.harm, estimate.low, estimate.high)))


def _open_reason(estimate: Estimate | None, margin: float) -> Reason:
    """Return why a harm is not decided."""
    if estimate is None or not (isfinite(estimate.low) and isfinite(estimate.high)):
        return because(Code.NOT_ESTIMATED)
    if estimate.low <= margin <= estimate.high:
        return because(Code.MARGIN_WITHIN_INTERVAL, margin=margin)
    is_above = estimate.low > margin
    return because(Code.ABOVE_BEFORE_CORRECTION if is_above else Code.BELOW_BEFORE_CORRECTION, margin=margin)


def _verdict(code: str, reason: Code, **values: object) -> Verdict:
    return Verdict(code=code, reason=because(reason, **values))
