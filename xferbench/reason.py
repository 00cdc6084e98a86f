"""A verdict in words: why it was taken, what would decide an open one, and what to change. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from xferbench import judge, metrics, stats
from xferbench.wording import patched

if TYPE_CHECKING:
    from xferbench.design import Contrast, Suite
    from xferbench.looks import Case, Judgement
    from xferbench.record import Estimate


MOST = 0.05  # of accuracy that a yardstick must have above the most frequent class: a loss's margin has another unit


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A judged contrast with all that its words are about.

    ``tested`` is how many contrasts share the error rate; ``stopped`` says why no more seeds were added, if so.
    """

    suite: Suite
    case: Case
    contrast: Contrast
    judgement: Judgement
    told: judge.Answers
    tested: int = 1
    stopped: str = ""

    @property
    def nothing_learnt(self) -> str:
        """The arm that the subject is compared with, if that learnt nothing and the subject is not shown to be better."""
        suite, seeds = self.suite, self.judgement.seeds
        if self.judgement.harm.estimate.high < -suite.margin:
            return ""
        yardsticks = [term for term, weight in self.contrast.weights.items() if weight > 0]
        dead = (
            arm if arm != "subject" else f"the subject in view {view}"
            for arm, view in yardsticks
            if judge.learnt_nothing(self.told, arm, seeds, min(suite.margin, MOST), view) is not None
        )
        return next(dead, "")

    @property
    def unit(self) -> str:
        """The metric's unit."""
        return metrics.named(self.suite.metric).unit


def shown(value: float, unit: str, *, signed: bool = True) -> str:
    """A number in the unit that people say it in: accuracies in points of a hundred."""
    sign = "+" if signed else ""
    return f"{100 * value:{sign}.1f} points" if unit == "accuracy" else f"{value:{sign}.3f} {unit}"


def interval(estimate: Estimate, unit: str) -> str:
    """Harm with its one-sided bounds."""
    scale, digits = (100, 1) if unit == "accuracy" else (1, 3)
    return f"{shown(estimate.harm, unit)} [{scale * estimate.low:+.{digits}f}, {scale * estimate.high:+.{digits}f}]"


def reason(asked: Asked, variant: str, verdict: str) -> str:
    """One line: why this verdict, and what came to notice."""
    harm, seen = asked.judgement.harm, asked.judgement.controls.get(variant)
    cost = "" if seen is None or seen.error else f"{variant} would cost {interval(seen.estimate, asked.unit)}"
    if asked.case.trust and asked.judgement.verdict == "PASS":
        return f"taken on trust: {asked.case.trust}"
    if not harm.exposed:
        done = _tried(asked) or ("there is nothing to tell apart" if asked.case.exposed else "the cure changes nothing here")
        return (
            f"not exposed: {done}" if verdict == "PASS" else f"{done}, but neither is the induced failure seen to cost anything"
        )
    margin = f"the margin of {shown(asked.suite.margin, asked.unit, signed=False)}"
    if verdict == "FAIL":
        text = f"harm is above {margin}"
    elif verdict == "PASS":
        text = f"harm is below {margin}"
    elif asked.judgement.verdict == "PASS" and asked.nothing_learnt:
        text = f"{asked.nothing_learnt} is no better than the most frequent class: nothing to be compared with"
    elif asked.judgement.verdict == "PASS":
        text = f"no power here: harm is below {margin}, but so might the induced failure be ({cost or 'it was not induced'})"
    else:
        tested, halved = asked.tested, bool(asked.case.arms["cured"].weighed)
        ways = needed(harm, asked.suite, tested=tested, halved=halved)
        text = f"{_open(asked, margin)}; {ways}" + (f"; {asked.stopped}" if asked.stopped else "")
    return text + _confidence(asked) + _better(asked, verdict) + _diverged(asked, variant)


def _tried(asked: Asked) -> str:
    """That none of the candidates of a choice was better than the subject, in its words; "" where there was no choice."""
    others, subject = len(asked.case.arms["cured"].weighed) - 1, asked.case.arms["subject"].pipeline
    if others < 1 or subject is None or asked.case.exposed:
        return ""
    if subject.finished:
        return f"none of {others} repairs did better on the screened half"
    return f"none of {others + 1} recipes did better on validation"


def _confidence(asked: Asked) -> str:
    """How sure the screened half was of the candidate that was chosen there, where that was asked."""
    cured = asked.case.arms["cured"]
    share = next((one.confidence for one in cured.weighed if one.pipeline == cured.pipeline), None)
    return "" if share is None else f"; chosen among {len(cured.weighed)} with a confidence of {share:.0%}"


def _better(asked: Asked, verdict: str) -> str:
    """What the cured recipe would gain, where that is not the harm that is judged and nobody would say it otherwise."""
    if verdict == "FAIL" or any(arm == "cured" for arm, _ in asked.contrast.weights):
        return ""
    subject = asked.case.arms["subject"].pipeline
    if subject is None or subject.finished:  # its cures are judged by audits of their own
        return ""
    cured, own = (judge.accuracy(asked.told, arm, asked.judgement.seeds) for arm in ("cured", "subject"))
    if cured is None or own is None or cured - own <= asked.suite.margin:
        return ""
    return f"; another recipe reaches {100 * cured:.1f} % where this one has {100 * own:.1f} % (arm cured in the report)"


def _open(asked: Asked, margin: str) -> str:
    estimate = asked.judgement.harm.estimate
    if not np.isfinite([estimate.low, estimate.high]).all():
        return "the harm could not be estimated"
    margin_ = asked.suite.margin
    within = estimate.low <= margin_ <= estimate.high
    return (
        f"{margin} lies within the interval"
        if within
        else f"harm is {'above' if estimate.low > margin_ else 'below'} {margin}, but not once corrected for looks and plugins"
    )


def needed(harm: judge.Judged, suite: Suite, *, tested: int, halved: bool = False) -> str:
    """The seeds or test examples that would decide what is open, at the last look, among ``tested`` contrasts.

    ``halved`` tells that a finished network's choice has taken half of the test examples.
    """
    groups = harm.groups if len(harm.groups) else None
    alpha = stats.spending(suite.looks, suite.alpha)[-1] / tested
    seeds, examples = stats.needed(harm.difference, margin=suite.margin, alpha=alpha, groups=groups, span=harm.span)
    what = "groups of test examples" if groups is not None else "test examples"
    twice = 2 if halved and suite.looks == (1,) else 1
    many = f"about {twice * (examples or 0)} {what}" + (" at these seeds" if suite.looks != (1,) else "")
    ways = [f"about {seeds} seeds"] * (seeds is not None) + [many] * (examples is not None)
    return f"to decide it: {' or '.join(ways)}" if ways else "no affordable number of seeds or examples would decide it"


def _diverged(asked: Asked, variant: str) -> str:
    seeds = asked.judgement.seeds
    arms = sorted({arm for arm, _ in asked.contrast.weights} | {f"induced:{variant}"})
    counts = {arm: judge.diverged(asked.told, arm, seeds) for arm in arms}
    return "".join(f"; {arm} diverged at {count} of {len(seeds)} seeds" for arm, count in counts.items() if count)


def remedy(asked: Asked, verdict: str) -> dict[str, Any] | None:
    """For a FAIL: what to change, as lines of the suite file, and whether the cured arm is shown to be free of the harm."""
    before, after = asked.case.arms["subject"].pipeline, asked.case.arms["cured"].pipeline
    if verdict != "FAIL":
        return None
    if before is None or after is None or before == after:
        return change(asked.case, verified=False)
    mended = judge.replace_arm(asked.contrast, "subject", "cured")
    seen = judge.judge(mended, asked.told, asked.judgement.seeds, asked.suite)
    verified = not seen.error and bool(seen.estimate.high < asked.suite.margin)
    left = "" if verified or seen.error else f"; with it the harm is {interval(seen.estimate, asked.unit)}"
    return change(asked.case, verified=verified, left=left)


def change(case: Case, *, verified: bool, left: str = "") -> dict[str, Any] | None:
    """The remedy of a plugin and what of the suite file it changes; without lines where the cure changes nothing."""
    before, after = case.arms["subject"].pipeline, case.arms["cured"].pipeline
    if before is None or after is None:
        return None
    if before == after:  # nothing that was tried helps: the advice alone is left
        return {"text": case.plugin.remedy, "patch": [], "verified": False}
    return {"text": case.plugin.remedy + left, "patch": patched(before, after, case.recorded), "verified": verified}
