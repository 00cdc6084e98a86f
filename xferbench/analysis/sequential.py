"""The group-sequential decision over increasing numbers of seeds, with p-values corrected for looks and contrasts. Pure.

A run and a gate both use this loop. A contrast that is decided stays decided and keeps the numbers of that look.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeAlias

from xferbench.analysis import multiplicity
from xferbench.analysis.verdict import control_outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from xferbench.analysis.estimates import ContrastEstimate

    Observe: TypeAlias = Callable[[int, Mapping[str, "SequentialDecision"]], Mapping[str, "SequentialDecision"] | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class SequentialDecision:
    """The state of a contrast after one or more looks.

    Attributes:
        harm: the estimate at the last look that included the contrast.
        seeds: the seeds of that estimate.
        p_fail: p-values of ``harm ≤ margin``, one for each look.
        p_pass: p-values of ``harm ≥ margin``, one for each look.
        controls: estimates of the positive controls, by variant.
        verdict: ``FAIL``, ``PASS``, ``INCONCLUSIVE`` or ``ERROR``.
        adjusted: the p-value of FAIL after the corrections for looks and contrasts, and that of PASS after that for looks.
        hypotheses: number of contrasts that share alpha.
        looks: the looks of the contrast, if they are not those of the suite; else ().
    """

    harm: ContrastEstimate
    seeds: tuple[int, ...]
    p_fail: tuple[float, ...]
    p_pass: tuple[float, ...]
    controls: Mapping[str, ContrastEstimate] = field(default_factory=dict)
    verdict: str = "INCONCLUSIVE"
    adjusted: tuple[float, float] = (1.0, 1.0)
    hypotheses: int = 0
    looks: tuple[int, ...] = ()

    @property
    def is_open(self) -> bool:
        """Whether more seeds can still decide the contrast."""
        return self.verdict == "INCONCLUSIVE" and not self.harm.error

    def lacks(self, variant: str, margin: float) -> bool:
        """Return whether the verdict needs a control that is missing or has not worked so far.

        A PASS needs a working control, unless the subject is better by more than the margin. An open verdict may become a PASS
        and need one later.
        """
        control = self.controls.get(variant)
        if control is None:
            return True
        is_better = self.harm.estimate.high < -margin
        matters = self.harm.exposed and self.verdict != "FAIL" and not (is_better or self.harm.error or control.error)
        return matters and control_outcome(control, margin) == "missed"


def run_looks(looks: Sequence[int], alpha: float, observe: Observe, extra: Sequence[int] = ()) -> dict[str, SequentialDecision]:
    """Decide after each look, until there are no more looks or ``observe`` returns None.

    Args:
        looks: cumulative numbers of seeds.
        alpha: level that all looks and contrasts share.
        observe: function of the number of seeds of a look and the decisions so far. It returns the decisions with the
            estimates of this look added by :func:`add_look`.
        extra: additional looks, at contrasts with looks of their own.
    """
    decisions: dict[str, SequentialDecision] = {}
    for look in (*looks, *extra):
        observed = observe(look, decisions)
        if observed is None:
            break
        decisions = decide(observed, looks, alpha)
    return decisions


def add_look(
    previous: SequentialDecision | None, harm: ContrastEstimate, seeds: tuple[int, ...], looks: tuple[int, ...] = ()
) -> SequentialDecision:
    """Return a decision with the estimate and p-values of one more look added; the verdict is not updated."""
    decision = previous or SequentialDecision(harm=harm, seeds=seeds, p_fail=(), p_pass=(), looks=looks)
    p_fail, p_pass = (*decision.p_fail, harm.estimate.p_fail), (*decision.p_pass, harm.estimate.p_pass)
    return replace(decision, harm=harm, seeds=seeds, p_fail=p_fail, p_pass=p_pass)


def decide(decisions: Mapping[str, SequentialDecision], looks: Sequence[int], alpha: float) -> dict[str, SequentialDecision]:
    """Decide all planned contrasts by sequential p-values, and for FAIL by Holm's procedure over the contrasts.

    If subject and cure are equal, the harm is exactly 0; this is not a hypothesis and needs no correction. A crash counts as
    a hypothesis that no data can decide.
    """
    names = [name for name, decision in decisions.items() if decision.harm.exposed]
    own_looks = {name: decisions[name].looks or looks for name in names}
    p_fail = multiplicity.holm_adjusted([multiplicity.sequential_p(decisions[name].p_fail, own_looks[name]) for name in names])
    p_pass = [multiplicity.sequential_p(decisions[name].p_pass, own_looks[name]) for name in names]
    adjusted = {name: (float(p_fail[index]), float(p_pass[index])) for index, name in enumerate(names)}
    results = {}
    for name, decision in decisions.items():
        if decision.harm.error:
            result = replace(decision, verdict="ERROR")
        elif not decision.harm.exposed:
            result = replace(decision, verdict="PASS", adjusted=(1.0, 0.0))
        else:
            result = replace(decision, verdict=multiplicity.decide(*adjusted[name], alpha), adjusted=adjusted[name])
        results[name] = replace(result, hypotheses=len(names))
    return results
