"""How often healthy runs are called failed, and how often the verdict on the share of failed runs is right, by simulation.

    python tests/benchmarks/seed_failures.py [--replicates 400] [--seed 0] [--out reports/benchmarks]

The accuracies of runs are drawn from a known distribution, and the answers from the accuracies. The classifier of runs, the
exact tests, the looks and their correction are those of the package. The positive control is taken to work.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xferbench.analysis import seed_failures, sequential
from xferbench.core.contrasts import failed_share
from xferbench.core.record import Predictions, Record
from xferbench.core.suite import Rules
from xferbench.study.share import share_looks

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

ALPHA, ALLOWED = 0.05, 0.2
EXAMPLES, CLASSES = 500, 2
MEAN, SPREAD, CURED = 0.80, 0.03, 0.82  # accuracies: of healthy runs, their standard deviation, and the mean of the cured arm
LOOKS = ((5,), (5, 10, 20))  # of a suite; a share has one more where these cannot lead to a PASS
SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.6)
SHARE = failed_share("failed-runs", "share of runs that fail")
HEADER = "| {} | looks | runs called failed | runs missed | FAIL | PASS | seeds |\n|---|---|---:|---:|---:|---:|---:|"


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """A distribution of runs.

    Attributes:
        name: the distribution in words.
        draw: function of a generator and the number of runs; it returns the deviations of healthy runs, in standard deviations.
        failed: the probability that a run fails.
        level: the accuracy of failed runs.
        mean: the mean accuracy of healthy runs.
        spread: the standard deviation of healthy runs.
        cured: the accuracy of the runs of the cured arm.
    """

    name: str
    draw: Callable[[np.random.Generator, int], np.ndarray]
    failed: float = 0.0
    level: float = 1 / CLASSES
    mean: float = MEAN
    spread: float = SPREAD
    cured: float = CURED


def draw_normal(rng: np.random.Generator, runs: int) -> np.ndarray:
    """Draw normal deviations."""
    return rng.standard_normal(runs)


DISTRIBUTIONS: Mapping[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "normal": draw_normal,
    "uniform": lambda rng, runs: np.sqrt(12) * (rng.random(runs) - 0.5),
    "exponential tail below": lambda rng, runs: 1 - rng.exponential(size=runs),
    "exponential tail above": lambda rng, runs: rng.exponential(size=runs) - 1,
    "beta (2, 2)": lambda rng, runs: np.sqrt(20) * (rng.beta(2, 2, runs) - 0.5),
    "Student's t of 3 degrees, not log-concave": lambda rng, runs: rng.standard_t(3, runs) / np.sqrt(3),
}
HEALTHY = (
    *(World(name=name, draw=draw) for name, draw in DISTRIBUTIONS.items()),
    World(name="normal, three times the spread", draw=draw_normal, spread=3 * SPREAD),
    World(name="stable, but 15 points below its cure", draw=draw_normal, mean=CURED - 0.15),
    World(name="nothing learns, the cure neither", draw=draw_normal, mean=1 / CLASSES, spread=0, cured=1 / CLASSES),
)
MIXED = (
    *(
        World(name=f"{100 * share:g} % {name}", draw=draw_normal, failed=share, level=level)
        for name, level in (("learn nothing", 1 / CLASSES), ("end 20 points lower", MEAN - 0.2))
        for share in SHARES
    ),
    World(name="100 % learn nothing", draw=draw_normal, failed=1.0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What happened in the replicates of a world, as shares of the runs or of the replicates.

    Attributes:
        called: share of the healthy runs that are called failed.
        missed: share of the failed runs that are not called failed; None if there are none.
        fail: share of the replicates with FAIL.
        passed: share of the replicates with PASS.
        seeds: mean number of seeds of the subject at its verdict.
    """

    called: float | None
    missed: float | None
    fail: float
    passed: float
    seeds: float


def make_record(rng: np.random.Generator, arm: str, seed: int, accuracy: float) -> Record:
    """Return a record whose answers are right with a probability, independently of those of other runs."""
    example = np.arange(EXAMPLES)
    label, empty = example % CLASSES, np.empty(0)
    predicted = np.where(rng.random(EXAMPLES) < accuracy, label, (label + 1) % CLASSES)
    unread = dict.fromkeys(("group", "p_true", "p_max", "sum_p2", "probabilities"), empty)
    predictions = Predictions(example=example, label=label, predicted=predicted, **unread)
    return Record(key=f"{arm}-{seed}", predictions=predictions)


def simulate(world: World, looks: tuple[int, ...], replicates: int, seed: int) -> Rates:
    """Return the rates of a world at the looks of a suite."""
    rules, rng = Rules(looks=looks, alpha=ALPHA, max_failed_runs=ALLOWED), np.random.default_rng(seed)
    all_looks = share_looks(SHARE, rules)
    verdicts, seeds = [], []
    wrong, healthy, missed, broken = 0, 0, 0, 0
    for _ in range(replicates):
        failed = rng.random(all_looks[-1]) < world.failed
        accuracy = np.clip(world.mean + world.spread * world.draw(rng, all_looks[-1]), 0, 1)
        accuracy = np.where(failed, world.level, accuracy)
        records = {("subject", "test", run): make_record(rng, "subject", run, value) for run, value in enumerate(accuracy)}
        cured = np.clip(world.cured + (0.02 if world.spread else 0) * rng.standard_normal(looks[0]), 0, 1)
        records |= {("cured", "test", run): make_record(rng, "cured", run, value) for run, value in enumerate(cured)}
        decision = decide(records, all_looks, rules)
        verdicts.append(decision.verdict)
        seeds.append(len(decision.seeds))
        called, planted = decision.harm.difference[:, 0] > 0, failed[: len(decision.seeds)]
        wrong, healthy = wrong + int(called[~planted].sum()), healthy + int((~planted).sum())
        missed, broken = missed + int((~called[planted]).sum()), broken + int(planted.sum())
    return Rates(
        called=wrong / healthy if healthy else None,
        missed=missed / broken if broken else None,
        fail=verdicts.count("FAIL") / replicates,
        passed=verdicts.count("PASS") / replicates,
        seeds=float(np.mean(seeds)),
    )


def decide(
    records: Mapping[tuple[str, str, int], Record], looks: tuple[int, ...], rules: Rules
) -> sequential.SequentialDecision:
    """Return the decision after the look that decides the share, or the last one."""

    def observe(look: int, decisions: Mapping[str, sequential.SequentialDecision]) -> dict[str, sequential.SequentialDecision]:
        previous = decisions.get(SHARE.name)
        if previous is not None and not previous.is_open:
            return dict(decisions)
        options = {"allowed": rules.max_failed_runs, "alpha": rules.alpha}
        harm = seed_failures.estimate_failed_share(SHARE, records, range(look), **options)
        return {SHARE.name: sequential.add_look(previous, harm, tuple(range(look)))}

    return sequential.run_looks(looks, rules.alpha, observe)[SHARE.name]


def table(title: str, worlds: Sequence[World], replicates: int, seed: int) -> tuple[list[str], list[Rates]]:
    """Return the lines of a table of worlds, and its rates."""
    lines, rates = [HEADER.format(title)], []
    for number, world in enumerate(worlds):
        for looks in LOOKS:
            rate = simulate(world, looks, replicates, seed + number)
            rates.append(rate)
            called, missed = ("–" if value is None else f"{100 * value:.1f}" for value in (rate.called, rate.missed))
            looked = ", ".join(map(str, share_looks(SHARE, Rules(looks=looks, max_failed_runs=ALLOWED))))
            verdicts = f"{100 * rate.fail:.1f} | {100 * rate.passed:.1f} | {rate.seeds:.1f}"
            lines.append(f"| {world.name} | {looked} | {called} | {missed} | {verdicts} |")
    return lines, rates


def make_page(replicates: int, seed: int) -> str:
    """Return the page with all tables."""
    healthy_lines, healthy = table("healthy runs", HEALTHY, replicates, seed)
    mixed_lines, mixed = table("runs", MIXED, replicates, seed + len(HEALTHY))
    worlds = [world for world in MIXED for _ in LOOKS]
    bad = [rate.passed for world, rate in zip(worlds, mixed, strict=True) if world.failed >= ALLOWED]
    alarms = [rate.fail for world, rate in zip(worlds, mixed, strict=True) if world.failed <= ALLOWED]
    error = 100 * np.sqrt(ALPHA * (1 - ALPHA) / replicates)
    return "\n".join(
        [
            "# Failed runs: which are found, and how often their share is misjudged",
            "",
            f"Each row has {replicates} simulated experiments with {EXAMPLES} test examples of {CLASSES} balanced classes.",
            f"Healthy runs have a mean accuracy of {MEAN:.2f} and a standard deviation of {SPREAD:.2f}. The cured arm has as",
            f"many runs as the first look has seeds. The allowed share is {100 * ALLOWED:g} %, and alpha is {ALPHA:g}. The",
            "last look of the first suite is an additional one of the subject alone. Answers of runs are drawn independently.",
            "Numbers are in percent, but for the mean number of seeds at the verdict.",
            f"The Monte-Carlo standard error of a rate of 5 % is {error:.1f} points. To regenerate:",
            "",
            f"    python tests/benchmarks/seed_failures.py --replicates {replicates} --seed {seed}",
            "",
            f"- Healthy runs: at most {100 * max(rate.fail for rate in healthy):.1f} % of the verdicts are FAIL.",
            f"- A share of {100 * ALLOWED:g} % or less: at most {100 * max(alarms):.1f} % of the verdicts are FAIL.",
            f"- A share of {100 * ALLOWED:g} % or more: at most {100 * max(bad):.1f} % of the verdicts are PASS.",
            "",
            "## Recipes without failures",
            "",
            *healthy_lines,
            "",
            "A recipe that is stable and worse passes: that it is worse is a question of other plugins. With three times the",
            "spread, the lowest runs learn less than half of what the median run does, and do count as failed.",
            "",
            "## Recipes with failed runs",
            "",
            *mixed_lines,
            "",
        ]
    )


def main() -> None:
    """Simulate and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicates", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks"))
    arguments = parser.parse_args()
    (arguments.out / "seed-failures.md").write_text(make_page(arguments.replicates, arguments.seed), encoding="utf-8")


if __name__ == "__main__":
    main()
