"""The number of seeds or test examples that would decide an open contrast. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xferbench.analysis import intervals
from xferbench.core.reason import Code, Reason, because

if TYPE_CHECKING:
    from xferbench.analysis.sequential import SequentialDecision
    from xferbench.core.suite import Rules


def required_sizes(decision: SequentialDecision, rules: Rules, *, halved: bool = False) -> Reason:
    """Return the number of seeds or test examples that would decide a contrast at the last look.

    The level is that of the last look, divided among all contrasts that share alpha.

    Args:
        decision: the decision so far.
        rules: the rules, with the contrast's own margin.
        halved: whether only half of the test examples scored the contrast, because the other half selected a repair.
    """
    harm = decision.harm
    groups = harm.groups if len(harm.groups) else None
    alpha = intervals.alpha_spending(rules.looks, rules.alpha)[-1] / max(1, decision.hypotheses)
    seeds, examples = intervals.required_sizes(harm.difference, margin=rules.margin, alpha=alpha, groups=groups, span=harm.span)
    is_single = rules.looks == (1,)
    return because(
        Code.TO_DECIDE,
        seeds=seeds,
        examples=None if examples is None else (2 if halved and is_single else 1) * examples,
        grouped=groups is not None,
        at_these_seeds=not is_single,
    )
