"""A judged contrast with its case and records, and what its finding says besides the verdict. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from xferbench.analysis import estimates
from xferbench.config.render import pipeline_patch
from xferbench.core.reason import Code, Reason, because

if TYPE_CHECKING:
    from xferbench.analysis.sequential import SequentialDecision
    from xferbench.core.plugin import Contrast
    from xferbench.core.run import Estimate
    from xferbench.core.suite import Suite
    from xferbench.study.schedule import PluginState

MAX_BASELINE_MARGIN = 0.05  # accuracy that a baseline must have above the most frequent class: a loss's margin has another unit


@dataclass(frozen=True, slots=True, kw_only=True)
class ContrastResult:
    """A judged contrast with all that its finding is about; ``suite`` has the contrast's metric and margin."""

    suite: Suite
    case: PluginState
    contrast: Contrast
    judgement: SequentialDecision
    records: estimates.RecordsByTerm

    @property
    def dead_baseline(self) -> Reason | None:
        """The arm that the subject is compared with, if it learnt nothing and the subject is not shown to be better."""
        suite, seeds = self.suite, self.judgement.seeds
        if self.judgement.harm.estimate.high < -suite.margin:
            return None
        baselines = [term for term, weight in self.contrast.weights.items() if weight > 0]
        margin = min(suite.margin, MAX_BASELINE_MARGIN)
        dead = (
            because(Code.NO_BASELINE, arm=arm, view=view)
            for arm, view in baselines
            if estimates.majority_baseline_share(self.records, arm, seeds, margin, view) is not None
        )
        return next(dead, None)

    @property
    def selected(self) -> bool:
        """Whether the cure was selected among candidates."""
        return bool(self.case.arms["cured"].weighed)

    @property
    def finished(self) -> bool:
        """Whether the subject is a finished network."""
        subject = self.case.arms["subject"].pipeline
        return subject is not None and subject.finished is not None


def why_equal(result: ContrastResult) -> Reason:
    """Why subject and cure are equal: no candidate was better, or the cure changes nothing."""
    others, subject = len(result.case.arms["cured"].weighed) - 1, result.case.arms["subject"].pipeline
    if result.case.exposed:
        return because(Code.SIDES_ARE_EQUAL)
    if others < 1 or subject is None:
        return because(Code.CURE_CHANGES_NOTHING)
    return (
        because(Code.NO_BETTER_REPAIR, count=others) if subject.finished else because(Code.NO_BETTER_RECIPE, count=others + 1)
    )


def remarks(result: ContrastResult, variant: str, verdict: str) -> tuple[Reason, ...]:
    """What else the finding says: how sure the selection was, a better recipe, training that diverged."""
    return (*_selection(result), *_better_recipe(result, verdict), *_diverged(result, variant))


def _selection(result: ContrastResult) -> list[Reason]:
    cured = result.case.arms["cured"]
    shares = (candidate.confidence for candidate in cured.weighed if candidate.pipeline == cured.pipeline)
    share = next(shares, None)
    return [] if share is None else [because(Code.CHOSEN, count=len(cured.weighed), confidence=share)]


def _better_recipe(result: ContrastResult, verdict: str) -> list[Reason]:
    """What the cured recipe would gain, where that is not the harm that is judged."""
    if verdict == "FAIL" or any(arm == "cured" for arm, _ in result.contrast.weights):
        return []
    if result.case.arms["subject"].pipeline is None or result.finished:  # its cures have findings of their own
        return []
    cured, subject = (estimates.mean_accuracy(result.records, arm, result.judgement.seeds) for arm in ("cured", "subject"))
    if cured is None or subject is None or cured - subject <= result.suite.margin:
        return []
    return [because(Code.BETTER_RECIPE, cured=cured, subject=subject)]


def _diverged(result: ContrastResult, variant: str) -> list[Reason]:
    seeds = result.judgement.seeds
    arms = sorted({arm for arm, _ in result.contrast.weights} | {f"induced:{variant}"})
    counts = {arm: estimates.count_diverged(result.records, arm, seeds) for arm in arms}
    return [because(Code.DIVERGED, arm=arm, count=count, seeds=len(seeds)) for arm, count in counts.items() if count]


def remedy(result: ContrastResult, verdict: str) -> tuple[dict[str, Any] | None, Estimate | None]:
    """For a FAIL: the remedy, and the harm that it leaves where that is not shown to be below the margin."""
    before, after = result.case.arms["subject"].pipeline, result.case.arms["cured"].pipeline
    if verdict != "FAIL":
        return None, None
    if before is None or after is None or before == after:
        return describe_patch(result.case, verified=False), None
    repaired = estimates.swap_arm(result.contrast, "subject", "cured")
    left = estimates.estimate_contrast(repaired, result.records, result.judgement.seeds, result.suite)
    verified = not left.error and bool(left.estimate.high < result.suite.margin)
    return describe_patch(result.case, verified=verified), None if verified or left.error else left.estimate


def describe_patch(case: PluginState, *, verified: bool) -> dict[str, Any] | None:
    """The remedy of a plugin and what of the suite file it changes; without lines where the cure changes nothing."""
    before, after = case.arms["subject"].pipeline, case.arms["cured"].pipeline
    if before is None or after is None:
        return None
    if before == after:  # no candidate helps: only the advice is left
        return {"text": case.plugin.remedy, "patch": [], "verified": False}
    return {"text": case.plugin.remedy, "patch": pipeline_patch(before, after, case.recorded), "verified": verified}
