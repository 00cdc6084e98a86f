"""Print forecasts: the work and time that a suite needs, and the smallest margin that its test set can decide."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xferbench.report.messages import write_sentence

if TYPE_CHECKING:
    from collections.abc import Mapping

    from xferbench.analysis.power import DecisionPower
    from xferbench.core.suite import Suite
    from xferbench.study.forecast import Forecast


def print_matrix_forecast(suite: Suite, counts: Mapping[str, Mapping[str, float]]) -> None:
    """Print the work and the minutes of each task at its last look."""
    recipes = len(suite.matrix.compared) if suite.matrix else 0
    names = dict.fromkeys(name for task_counts in counts.values() for name in task_counts if name != "seconds")
    print(f"suite {suite.name}: {recipes} recipes on {len(counts)} tasks, {suite.rules.looks[0]} seeds each")
    width = max(map(len, names), default=0) + 2
    print("".join([f"{'':<24}", *(f"{name:>{width}}" for name in names), f"{'minutes':>10}"]))
    for task, task_counts in counts.items():
        minutes = f"{task_counts['seconds'] / 60:>10.1f}"
        print("".join([f"{task:<24}", *(f"{task_counts.get(name, 0):>{width}.0f}" for name in names), minutes]))
    total = sum(task_counts["seconds"] for task_counts in counts.values()) / 60
    print(f"minutes in total: {total:.1f}, an upper bound, because tasks may share computations")


def print_forecast(suite: Suite, forecast: Forecast) -> None:
    """Print the arms, the work and the minutes of a suite of one task, and the margin that it can decide."""
    looks = "one finished network" if suite.is_audit else f"looks at {', '.join(map(str, suite.rules.looks))} seeds"
    print(f"suite {suite.name}: {suite.rules.metric}, margin {suite.rules.margin:g}, {looks}")
    for plugin, arms in forecast.arms.items():
        print(f"\n{plugin}")
        for name, text in arms.items():
            print(f"  {name:<28} {text}")
    for plugin, reason in forecast.skipped.items():
        print(f"\n{plugin}: skipped, {write_sentence(reason)}")
    print(f"\n{'':<22} first look  last look")
    for name in forecast.first:
        print(f"{name:<22} {forecast.first[name]:>10} {forecast.last[name]:>10}")
    print(f"{'minutes to compute':<22} {forecast.seconds[0] / 60:>10.1f} {forecast.seconds[1] / 60:>10.1f}")
    if forecast.lacking:
        print(write_sentence(forecast.lacking))
    elif forecast.search:
        print(write_sentence(forecast.search))
    print_power(suite, forecast.power)


def print_power(suite: Suite, power: DecisionPower | None) -> None:
    """Print the smallest margin that the test set can decide, and the chances of a decision; None if they are not known."""
    if power is None:
        print(f"the smallest margin that this test set can decide is not known in advance for {suite.rules.metric}")
        return
    seeds = "" if suite.is_audit else f" with {power.seeds} seeds"
    is_possible = power.smallest_margin < 1
    smallest = f"about {power.smallest_margin:.3f}" if is_possible else "none"
    hint = "; expect INCONCLUSIVE" if power.smallest_margin > suite.rules.margin else ""
    print(f"smallest margin that this test set can decide{seeds}: {smallest} (the suite's: {suite.rules.margin:g}){hint}")
    print(
        f"chances at the suite's margin: {power.pass_chance:.0%} of a PASS without harm, "
        f"{power.fail_chance:.0%} of a FAIL at twice the margin"
    )
