"""The parts of the finding of a share of failed runs, besides those that every finding has. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from xferbench.analysis import estimates, failed_runs, multiplicity, seed_failures
from xferbench.core.reason import Code, Reason, because
from xferbench.core.run import FailedRuns

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xferbench.analysis.estimates import ContrastEstimate
    from xferbench.analysis.sequential import SequentialDecision
    from xferbench.core.plugin import Contrast
    from xferbench.core.suite import Rules


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareResult:
    """A decided share of failed runs with everything that its finding depends on.

    Attributes:
        rules: the rules of the suite.
        contrast: the contrast.
        decision: the decision.
        records: the plugin's records by arm, view and seed.
    """

    rules: Rules
    contrast: Contrast
    decision: SequentialDecision
    records: estimates.RecordsByTerm

    @property
    def allowed(self) -> float:
        """The allowed share."""
        return float(getattr(self.rules, self.contrast.allowed))

    @property
    def failures(self) -> FailedRuns:
        """The failed runs with the exact two-sided bounds of the share of runs that fail."""
        if self.decision.harm.error:
            return FailedRuns()
        return failed_runs.failed_share(self.decision.harm.difference[:, 0] > 0, self.rules.alpha)

    @property
    def has_reference(self) -> bool:
        """Whether any run of the subject or of the cure learned."""
        runs, _ = seed_failures.run_failures(self.contrast, self.records, self.decision.seeds, self.rules.alpha)
        return runs is not None and runs.has_reference

    @property
    def cured_seeds(self) -> tuple[int, ...]:
        """The seeds of the cured arm, which may be more or fewer than those of the subject."""
        (term,) = self._cured_contrast.weights
        return tuple(sorted(seed for arm, view, seed in self.records if (arm, view) == term))

    @property
    def cured(self) -> ContrastEstimate:
        """The share of the runs of the cured arm that fail, over all its seeds."""
        return seed_failures.estimate_failed_share(
            self._cured_contrast, self.records, self.cured_seeds, allowed=self.allowed, alpha=self.rules.alpha
        )

    @property
    def _cured_contrast(self) -> Contrast:
        return estimates.swap_arm(self.contrast, "subject", "cured")

    def measures(self) -> dict[str, float]:
        """Return the shares of failed runs of the subject and of the cured arm."""
        shares = {"subject": self.decision.harm.estimate.harm, "cured": self.cured.estimate.harm}
        return {f"{arm}/{self.contrast.name}": share for arm, share in shares.items() if np.isfinite(share)}

    def remarks(self) -> Iterator[Reason]:
        """Yield how the runs of the subject failed, how those of the cure did at the same seeds, and what would decide."""
        seeds = self.decision.seeds
        runs, _ = seed_failures.run_failures(self.contrast, self.records, seeds, self.rules.alpha)
        if runs is None:
            return
        if runs.failed.any():
            ways = {
                "diverged": runs.diverged,
                "learned nothing or too little": runs.unlearned,
                "in a lower mode": runs.lower_mode,
            }
            failures = {way: tuple(np.array(seeds)[failed].tolist()) for way, failed in ways.items()}
            yield because(Code.RUN_FAILURES, arm="subject", seeds=len(seeds), failures=failures)
            yield from self._comparison_with_cure(runs.failed)
        if runs.doubtful.any():
            yield because(Code.DOUBTFUL_RUNS, arm="subject", seeds=tuple(np.array(seeds)[runs.doubtful].tolist()))
        elif self.decision.is_open and runs.has_reference:
            yield self._required_seeds(int(runs.failed.sum()))

    def _comparison_with_cure(self, failed: np.ndarray) -> Iterator[Reason]:
        """Yield the failed runs of subject and cure at the seeds that both have, if the subject failed at any of them."""
        common = [seed for seed in self.decision.seeds if seed in self.cured_seeds]
        cured, subject_failed = self.cured, failed[[self.decision.seeds.index(seed) for seed in common]]
        if cured.error or not subject_failed.any():
            return
        cured_failed = cured.difference[[self.cured_seeds.index(seed) for seed in common], 0] > 0
        yield because(
            Code.CURED_RUN_FAILURES,
            count=int(cured_failed.sum()),
            subject=int(subject_failed.sum()),
            seeds=len(common),
            p_value=seed_failures.fewer_failures_p(subject_failed, cured_failed),
        )

    def _required_seeds(self, count: int) -> Reason:
        """Return the number of seeds that would decide a share with so many failed runs, at the level of the last look."""
        decision, seeds = self.decision, len(self.decision.seeds)
        level = multiplicity.look_levels(decision.looks or self.rules.looks, self.rules.alpha)[-1]
        needed = seed_failures.required_seeds(
            count, seeds, allowed=self.allowed, alpha_pass=level, alpha_fail=level / max(1, decision.hypotheses)
        )
        below = count <= self.allowed * seeds
        return because(Code.SHARE_TO_DECIDE, allowed=self.allowed, seeds=needed, count=count, below=below)
