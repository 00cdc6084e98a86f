"""How many seeds or test examples would decide an open contrast. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xferbench.analysis import intervals
from xferbench.core.reason import Code, Reason, because

if TYPE_CHECKING:
    from xferbench.analysis.sequential import SequentialDecision
    from xferbench.core.suite import Suite


def to_decide(judgement: SequentialDecision, suite: Suite, *, halved: bool = False) -> Reason:
    """The seeds or test examples that would decide a contrast at the last look, among all contrasts that share alpha.

    Args:
        halved: whether the choice of a repair took half of the test examples.
    """
    harm = judgement.harm
    groups = harm.groups if len(harm.groups) else None
    alpha = intervals.alpha_spending(suite.looks, suite.alpha)[-1] / max(1, judgement.hypotheses)
    seeds, examples = intervals.required_sizes(harm.difference, margin=suite.margin, alpha=alpha, groups=groups, span=harm.span)
    single = suite.looks == (1,)
    return because(
        Code.TO_DECIDE,
        seeds=seeds,
        examples=None if examples is None else (2 if halved and single else 1) * examples,
        grouped=groups is not None,
        at_these_seeds=not single,
    )
