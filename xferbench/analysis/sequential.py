"""The group-sequential decision: looks with more and more seeds, P-values corrected for looks and contrasts. Pure.

A run and a gate both decide here. What is decided closes, and keeps the numbers of the look that decided it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeAlias

from xferbench.analysis import intervals
from xferbench.analysis.verdict import control_outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from xferbench.analysis.estimates import ContrastEstimate

    Observe: TypeAlias = Callable[[int, Mapping[str, "SequentialDecision"]], Mapping[str, "SequentialDecision"] | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class SequentialDecision:
    """A judged contrast: its seeds, the P-values of each look, the decision, each variant's control.

    ``hypotheses`` is how many contrasts share alpha.
    """

    harm: ContrastEstimate
    seeds: tuple[int, ...]
    p_fail: tuple[float, ...]
    p_pass: tuple[float, ...]
    controls: Mapping[str, ContrastEstimate] = field(default_factory=dict)
    verdict: str = "INCONCLUSIVE"
    adjusted: tuple[float, float] = (1.0, 1.0)
    hypotheses: int = 0

    @property
    def is_open(self) -> bool:
        """Whether more seeds may yet decide it."""
        return self.verdict == "INCONCLUSIVE" and not self.harm.error

    def lacks(self, variant: str, margin: float) -> bool:
        """Whether a PASS still waits for a control, or an open verdict may come to need it."""
        judged = self.controls.get(variant)
        if judged is None:
            return True
        matters = self.harm.exposed and self.verdict != "FAIL" and not (self.harm.error or judged.error)
        return matters and control_outcome(judged, margin) == "missed"


def run_looks(looks: Sequence[int], alpha: float, observe: Observe) -> dict[str, SequentialDecision]:
    """Judge look by look until all looks are taken or ``observe`` returns None.

    Args:
        looks: cumulative numbers of seeds.
        observe: from the look's number of seeds and the judgements so far, the judgements with this look's estimates.
    """
    judgements: dict[str, SequentialDecision] = {}
    for look in looks:
        observed = observe(look, judgements)
        if observed is None:
            break
        judgements = decide(observed, looks, alpha)
    return judgements


def add_look(known: SequentialDecision | None, judged: ContrastEstimate, seeds: tuple[int, ...]) -> SequentialDecision:
    """A judgement with one more look's estimate and P-values; it is not decided yet."""
    before = known or SequentialDecision(harm=judged, seeds=seeds, p_fail=(), p_pass=())
    p_fail, p_pass = (*before.p_fail, judged.estimate.p_fail), (*before.p_pass, judged.estimate.p_pass)
    return replace(before, harm=judged, seeds=seeds, p_fail=p_fail, p_pass=p_pass)


def decide(judgements: Mapping[str, SequentialDecision], looks: Sequence[int], alpha: float) -> dict[str, SequentialDecision]:
    """Decide all planned contrasts: sequential P-values, then Holm over all of them, FAIL and PASS apart.

    A harm that is exactly 0 because subject and cure are equal is no hypothesis and needs no correction. A crash is a
    hypothesis that nothing can decide.
    """
    tested = [name for name, judgement in judgements.items() if judgement.harm.exposed]
    p_fail, p_pass = (
        intervals.holm_adjusted([intervals.sequential_p(getattr(judgements[name], way), looks, alpha) for name in tested])
        for way in ("p_fail", "p_pass")
    )
    adjusted = {name: (float(p_fail[rank]), float(p_pass[rank])) for rank, name in enumerate(tested)}
    decided = {}
    for name, judgement in judgements.items():
        if judgement.harm.error:
            outcome = replace(judgement, verdict="ERROR")
        elif not judgement.harm.exposed:
            outcome = replace(judgement, verdict="PASS", adjusted=(1.0, 0.0))
        else:
            outcome = replace(judgement, verdict=intervals.decide(*adjusted[name], alpha), adjusted=adjusted[name])
        decided[name] = replace(outcome, hypotheses=len(tested))
    return decided
