"""Shares of failed runs in a study: their looks, and their decision at a look. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from xferbench.analysis import estimates, multiplicity, seed_failures, sequential
from xferbench.config.loader import SELECTION_SEED_START

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xferbench.analysis.sequential import SequentialDecision
    from xferbench.core.plugin import Contrast
    from xferbench.core.suite import Rules
    from xferbench.study.plugin_state import PluginState


def share_looks(contrast: Contrast, rules: Rules) -> tuple[int, ...]:
    """Return the looks at a share of failed runs: those of the suite, and one more if their seeds cannot lead to a PASS.

    The additional look has as many seeds as show that the share is below the allowed one if no run fails. It costs trainings of
    one arm only. There is none if the seeds would reach those of selections.
    """
    looks, allowed = rules.looks, getattr(rules, contrast.allowed)
    if (1 - allowed) ** looks[-1] < multiplicity.look_levels(looks, rules.alpha)[-1]:
        return looks
    seeds = max(looks[-1] + 1, seed_failures.seeds_to_pass(allowed, rules.alpha))
    while rules.seed + seeds <= SELECTION_SEED_START:
        if (1 - allowed) ** seeds < multiplicity.look_levels((*looks, seeds), rules.alpha)[-1]:
            return (*looks, seeds)
        seeds += 1
    return looks


def extra_looks(states: Sequence[PluginState], rules: Rules) -> tuple[int, ...]:
    """Return the additional looks of all shares of failed runs, in increasing order."""
    last = {share_looks(contrast, rules)[-1] for state in states for _, contrast in state.contrasts("share")}
    return tuple(sorted(last - {*rules.looks}))


def decide_share(
    state: PluginState,
    contrast: Contrast,
    previous: SequentialDecision | None,
    records: estimates.RecordsByTerm,
    seeds: tuple[int, ...],
    rules: Rules,
) -> SequentialDecision:
    """Return the decision on a share of failed runs after one more look; it has no verdict yet.

    A decided share keeps its numbers, but controls that are still missing are estimated again, at the looks of the suite.
    """
    allowed, looks = getattr(rules, contrast.allowed), share_looks(contrast, rules)

    def estimate(share: Contrast) -> estimates.ContrastEstimate:
        return seed_failures.estimate_failed_share(share, records, seeds, allowed=allowed, alpha=rules.alpha)

    decision = previous
    if decision is None or decision.is_open:
        decision = sequential.add_look(_without_skipped(previous, looks, seeds), estimate(contrast), seeds, looks)
    controls = {
        variant: estimate(estimates.positive_control(contrast, variant))
        if previous is None or (previous.lacks(variant, allowed) and len(seeds) in rules.looks)
        else previous.controls[variant]
        for variant in state.variants
    }
    return replace(decision, controls=controls)


def _without_skipped(
    previous: SequentialDecision | None, looks: tuple[int, ...], seeds: tuple[int, ...]
) -> SequentialDecision | None:
    """Return a decision with p-values of 1 at the looks that a budget skipped, so that each look keeps its level."""
    if previous is None:
        return None
    skipped = (1.0,) * (looks.index(len(seeds)) - len(previous.p_fail))
    return replace(previous, p_fail=(*previous.p_fail, *skipped), p_pass=(*previous.p_pass, *skipped))
