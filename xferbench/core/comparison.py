"""The result of a comparison of two runs: one outcome for each item that is compared. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from xferbench.core.sections import flat_values, section_field

if TYPE_CHECKING:
    from collections.abc import Mapping

WORSE, NOT_WORSE, CANNOT_TELL, CRASHED, SKIPPED = DECISIONS = ("worse", "not worse", "cannot tell", "crashed", "skipped")
SUBJECT = "subject"  # the id of the outcome for the suite's metric


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeEstimate:
    """The change of a number between two runs next to its margin; a number that cannot be computed is None.

    Attributes:
        metric, unit: the metric and its unit.
        margin: the margin in the unit of the metric.
        before: the subject's metric, or the harm, of the accepted run.
        now: the same number of the candidate.
        change: how much worse the candidate is; a value above 0 is worse, for losses too.
        low, high: unadjusted one-sided bounds of ``change``.
        p_worse, p_not_worse: p-values, adjusted for looks and for the number of comparisons; None if nothing was tested.
        seeds, examples: numbers of seeds and of test examples (or groups).
    """

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

    @property
    def bounds(self) -> tuple[float | None, float | None, float | None]:
        """The change, its lower and its upper bound."""
        return self.change, self.low, self.high


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The decision on one compared item: the subject's metric, or the harm of a plugin's contrast.

    Its flat form is an entry of the ``outcomes`` of ``gate`` in ``results.json``.

    Attributes:
        id: ``subject``, or ``plugin/contrast``.
        plugin: the id of the plugin, or "" for the subject.
        decision: one of ``DECISIONS``; a gate fails at ``worse``.
        reason: the sentences of the outcome.
        verdict: the verdict of the candidate, or "" if there is none.
        accepted: the verdict of the accepted run, or "" if there is none.
        estimate: the change next to its margin.
        compared: whether the two runs were paired. If not, the candidate's own verdict decides.
        flipped: share of the subject's predictions that differ, over the pairs of seed and example; None for a harm.
    """

    id: str
    plugin: str
    decision: str
    reason: str
    verdict: str = ""
    accepted: str = ""
    estimate: ChangeEstimate = section_field(ChangeEstimate, default=ChangeEstimate())
    compared: bool = False
    flipped: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A candidate compared with an accepted run.

    Attributes:
        accepted: the accepted run: ``name`` of the suite, ``file``, ``xferbench``, ``git``, ``ended``.
        outcomes: the outcomes; the first is that of the subject.
        notes: differences between the two runs that do not prevent a comparison.
        has_too_few_seeds: whether the candidate has fewer seeds than the accepted run, for example because of a small budget.
    """

    accepted: Mapping[str, Any] = field(default_factory=dict)
    outcomes: tuple[Outcome, ...] = ()
    notes: tuple[str, ...] = ()
    has_too_few_seeds: bool = False


def comparison_to_json(comparison: Comparison) -> dict[str, Any]:
    """Return the ``gate`` of ``results.json``."""
    outcomes = [flat_values(outcome) for outcome in comparison.outcomes]
    short = {"has_too_few_seeds": True} if comparison.has_too_few_seeds else {}
    return {"accepted": comparison.accepted, "outcomes": outcomes, "notes": comparison.notes} | short
