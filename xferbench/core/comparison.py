"""The result of a comparison of two runs: one outcome for each thing that both have. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

WORSE, NOT_WORSE, CANNOT_TELL, CRASHED, SKIPPED = DECISIONS = ("worse", "not worse", "cannot tell", "crashed", "skipped")
SUBJECT = "subject"  # the id of the outcome that is about the suite's metric itself


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
class Comparison:
    """A candidate held against an accepted run.

    Attributes:
        accepted: whom it was held against: ``name`` of the suite, ``file``, ``xferbench``, ``git``, ``ended``.
        outcomes: the subject's first. notes: what differs between the two runs and is no reason not to compare them.
    """

    accepted: Mapping[str, Any] = field(default_factory=dict)
    outcomes: tuple[Outcome, ...] = ()
    notes: tuple[str, ...] = ()
