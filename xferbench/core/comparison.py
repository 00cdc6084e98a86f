"""The result of a comparison of two runs: one outcome for each item that is compared. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

WORSE, NOT_WORSE, CANNOT_TELL, CRASHED, SKIPPED = DECISIONS = ("worse", "not worse", "cannot tell", "crashed", "skipped")
SUBJECT = "subject"  # the id of the outcome for the suite's metric


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The decision on one compared item: the subject's metric, or the harm of a plugin's contrast.

    Attributes:
        id: ``subject``, or ``plugin/contrast``.
        plugin: the id of the plugin, or "" for the subject.
        decision: one of ``DECISIONS``; a gate fails at ``worse``.
        verdict: the verdict of the candidate, or "" if there is none.
        accepted: the verdict of the accepted run, or "" if there is none.
        before: the subject's metric, or the harm, of the accepted run, in ``unit``.
        now: the same number of the candidate.
        change: how much worse the candidate is; a value above 0 is worse, for losses too.
        low, high: unadjusted one-sided bounds of ``change``.
        p_worse, p_not_worse: p-values, adjusted for looks and for the number of comparisons; None if nothing was tested.
        compared: whether the two runs were paired. If not, the candidate's own verdict decides.
        flipped: share of the subject's predictions that differ, over the pairs of seed and example; None for a harm.
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
class Comparison:
    """A candidate compared with an accepted run.

    Attributes:
        accepted: the accepted run: ``name`` of the suite, ``file``, ``xferbench``, ``git``, ``ended``.
        outcomes: the outcomes; the first is that of the subject.
        notes: differences between the two runs that do not prevent a comparison.
    """

    accepted: Mapping[str, Any] = field(default_factory=dict)
    outcomes: tuple[Outcome, ...] = ()
    notes: tuple[str, ...] = ()
