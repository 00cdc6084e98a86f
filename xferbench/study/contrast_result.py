"""A decided contrast with its records, and the parts of its finding besides the verdict. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from xferbench.analysis import estimates, failed_runs
from xferbench.config.render import pipeline_patch
from xferbench.core.reason import Code, Reason, because
from xferbench.core.run import FailedRuns

if TYPE_CHECKING:
    import numpy as np

    from xferbench.analysis.sequential import SequentialDecision
    from xferbench.core.plugin import Contrast
    from xferbench.core.run import Estimate
    from xferbench.core.suite import Rules
    from xferbench.study.plugin_state import PluginState

MAX_BASELINE_MARGIN = 0.05  # required accuracy of a baseline above the majority class; a loss's margin has another unit


@dataclass(frozen=True, slots=True, kw_only=True)
class ContrastResult:
    """A decided contrast with everything that its finding depends on.

    Attributes:
        rules: the rules, with the metric and the margin of the contrast.
        state: the state of the plugin.
        contrast: the contrast.
        decision: the decision.
        records: the plugin's records by arm, view and seed.
    """

    rules: Rules
    state: PluginState
    contrast: Contrast
    decision: SequentialDecision
    records: estimates.RecordsByTerm

    @property
    def baseline_failure(self) -> Reason | None:
        """The arm that the subject is compared with, if it did not learn.

        A baseline from scratch that did not learn is a reference if the subject is shown to be better by more than the margin.
        """
        rules, seeds = self.rules, self.decision.seeds
        is_better = self.decision.harm.estimate.high < -rules.margin
        baselines = [
            (arm, view)
            for (arm, view), weight in self.contrast.weights.items()
            if weight > 0 and not (arm == "scratch" and is_better)
        ]
        margin = min(rules.margin, MAX_BASELINE_MARGIN)
        failures = (
            because(Code.NO_BASELINE, arm=arm, view=view)
            for arm, view in baselines
            if estimates.majority_baseline_share(self.records, arm, seeds, margin, view) is not None
        )
        return next(failures, None)

    def cut_arm(self, sign: float) -> str:
        """Return an arm whose weight has a sign and whose search was cut by a budget, or ""."""
        arms = (arm for (arm, _), weight in self.contrast.weights.items() if weight * sign > 0)
        return next((arm for arm in arms if arm in self.state.arms and self.state.arms[arm].is_cut), "")

    @property
    def failed_seeds(self) -> np.ndarray | None:
        """Whether the run of the judged arm failed, [seeds]; None for a finished network or without its records."""
        margin = min(self.rules.margin, MAX_BASELINE_MARGIN)
        if self.is_finished or self.decision.harm.error:
            return None
        judged = estimates.judged_arm(self.contrast)
        terms = [(arm, view) for (arm, view), weight in self.contrast.weights.items() if arm == judged and weight < 0]
        return failed_runs.failed_seeds(terms, self.records, self.decision.seeds, margin)

    @property
    def failures(self) -> FailedRuns:
        """The failed runs of the judged arm and the bounds of the share of runs that fail."""
        failed = self.failed_seeds
        return FailedRuns() if failed is None else failed_runs.failed_share(failed, self.rules.alpha)

    @property
    def failure_obstacle(self) -> Reason | None:
        """Why failed runs leave open whether the mean harm is below the margin, or None."""
        failed, margin = self.failed_seeds, self.rules.margin
        if failed is None:
            return None
        share = failed_runs.failed_share(failed, self.rules.alpha).high or 0.0
        if not failed_runs.leave_open(self.decision.harm.difference.mean(1), failed, share, margin):
            return None
        return because(Code.FAILURES_LEAVE_OPEN, margin=margin, share=share)

    @property
    def compares_with_cure(self) -> bool:
        """Whether the subject is compared with the cured arm, and not with another arm such as scratch."""
        return all(arm == "cured" for (arm, _), weight in self.contrast.weights.items() if weight > 0)

    @property
    def is_selected(self) -> bool:
        """Whether the cure was selected among candidates."""
        return bool(self.state.arms["cured"].candidates)

    @property
    def is_finished(self) -> bool:
        """Whether the subject is a finished network."""
        subject = self.state.arms["subject"].pipeline
        return subject is not None and subject.checkpoint is not None


def why_equal(result: ContrastResult) -> Reason:
    """Return why subject and cure are equal: no candidate was better, or the cure changes nothing."""
    others, subject = len(result.state.arms["cured"].candidates) - 1, result.state.arms["subject"].pipeline
    if result.state.exposed:
        return because(Code.SIDES_ARE_EQUAL)
    if others < 1 or subject is None:
        return because(Code.CURE_CHANGES_NOTHING)
    if subject.checkpoint:
        return because(Code.NO_BETTER_REPAIR, count=others)
    return because(Code.NO_BETTER_RECIPE, count=others + 1)


def remarks(result: ContrastResult, variant: str, verdict: str) -> tuple[Reason, ...]:
    """Return the additional reasons of a finding: confidence of the selection, a better recipe, runs that failed."""
    return (
        *_alternative_remark(result),
        *_selection_remark(result),
        *_better_recipe_remark(result, verdict),
        *_cause_remark(result, verdict),
        *_failure_remarks(result, variant),
    )


def _alternative_remark(result: ContrastResult) -> list[Reason]:
    cured = result.state.arms["cured"]
    if not cured.is_alternative or not result.compares_with_cure:
        return []
    return [because(Code.BEST_ALTERNATIVE, count=len(cured.candidates))]


def _selection_remark(result: ContrastResult) -> list[Reason]:
    cured = result.state.arms["cured"]
    confidences = (candidate.confidence for candidate in cured.candidates if candidate.pipeline == cured.pipeline)
    confidence = next(confidences, None)
    return [] if confidence is None else [because(Code.CHOSEN, count=len(cured.candidates), confidence=confidence)]


def _better_recipe_remark(result: ContrastResult, verdict: str) -> list[Reason]:
    """Return a remark on the gain of the cured recipe, unless the contrast measures this gain."""
    if verdict == "FAIL" or any(arm == "cured" for arm, _ in result.contrast.weights):
        return []
    if result.state.arms["subject"].pipeline is None or result.is_finished:  # its cures have separate findings
        return []
    cured, subject = (estimates.mean_accuracy(result.records, arm, result.decision.seeds) for arm in ("cured", "subject"))
    if cured is None or subject is None or cured - subject <= result.rules.margin:
        return []
    return [because(Code.BETTER_RECIPE, cured=cured, subject=subject)]


def _cause_remark(result: ContrastResult, verdict: str) -> list[Reason]:
    """Return whether the recipe or the pretraining is why scratch is better than the subject, as far as that is shown."""
    arms, weighed = result.state.arms, {arm for arm, _ in result.contrast.weights}
    if verdict != "FAIL" or weighed != {"scratch", "subject"} or result.is_finished:
        return []
    pretraining = estimates.swap_arm(result.contrast, "subject", "cured")
    harm = estimates.estimate_contrast(pretraining, result.records, result.decision.seeds, result.rules)
    if harm.error:
        return []
    if harm.estimate.high < result.rules.margin:
        return [because(Code.RECIPE_IS_CAUSE, estimate=harm.estimate)]
    if harm.estimate.low > result.rules.margin and not arms["cured"].is_cut:
        return [because(Code.PRETRAINING_IS_CAUSE, estimate=harm.estimate)]
    return []


def _failure_remarks(result: ContrastResult, variant: str) -> list[Reason]:
    """Return the share of runs of the judged arm that fail, and how often the other arms diverged."""
    seeds, failures = result.decision.seeds, result.failures
    judged = estimates.judged_arm(result.contrast)
    arms = {arm for arm, _ in result.contrast.weights} | {f"induced:{variant}"}
    counts = {arm: estimates.count_diverged(result.records, arm, seeds) for arm in sorted(arms)}
    remarks = []
    if failures.count:
        counts.pop(judged)
        remarks.append(failed_runs_remark(judged, failures, len(seeds)))
    return remarks + [because(Code.DIVERGED, arm=arm, count=count, seeds=len(seeds)) for arm, count in counts.items() if count]


def failed_runs_remark(arm: str, failures: FailedRuns, seeds: int) -> Reason:
    """Return how many runs of an arm failed, with the bounds of the share of runs that fail."""
    return because(Code.FAILED_RUNS, arm=arm, count=failures.count, seeds=seeds, low=failures.low, high=failures.high)


def remedy(result: ContrastResult, verdict: str) -> tuple[dict[str, Any] | None, Estimate | None]:
    """Return the remedy of a FAIL, and the harm that remains after it unless that is shown to be below the margin."""
    before, after = result.state.arms["subject"].pipeline, result.state.arms["cured"].pipeline
    if verdict != "FAIL":
        return None, None
    if before is None or after is None:
        return None, None
    repaired = estimates.swap_arm(result.contrast, "subject", "cured")
    remaining = estimates.estimate_contrast(repaired, result.records, result.decision.seeds, result.rules)
    verified = before != after and not remaining.error and bool(remaining.estimate.high < result.rules.margin)
    scratch = result.state.arms["scratch"].pipeline if "scratch" in result.state.arms else None
    if not verified and scratch is not None and any(arm == "scratch" for arm, _ in result.contrast.weights):
        patch = pipeline_patch(before, scratch, result.state.recorded)  # the harm is measured against scratch itself
        return {"text": result.state.plugin.remedy, "patch": patch, "verified": True}, None
    has_remainder = before != after and not verified and not remaining.error
    return describe_patch(result.state, verified=verified), remaining.estimate if has_remainder else None


def describe_patch(state: PluginState, *, verified: bool) -> dict[str, Any] | None:
    """Return the remedy of a plugin and its patch of the suite file, which is empty if the cure changes nothing."""
    before, after = state.arms["subject"].pipeline, state.arms["cured"].pipeline
    if before is None or after is None:
        return None
    if before == after:  # no candidate helps, so that only the advice remains
        return {"text": state.plugin.remedy, "patch": [], "verified": False}
    return {"text": state.plugin.remedy, "patch": pipeline_patch(before, after, state.recorded), "verified": verified}
