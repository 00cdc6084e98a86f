"""How often a verdict is wrong, and how often it is reached, in worlds whose true harm is known.

    python tests/benchmarks/simulation.py [--replicates 2000] [--seed 0] [--workers 1] [--out reports/benchmarks]

Each world draws D[s, i] over random seeds and random test examples so that its expectation is exactly the harm asked for.
With the harm at the margin both FAIL and PASS are wrong; each is given a level of 5 %. What is tested is
:func:`xferbench.analysis.intervals.p_values`, :func:`xferbench.analysis.intervals.crossed_interval` and
:func:`xferbench.analysis.metrics.estimate_metric_contrast` as they are.
"""

from __future__ import annotations

import argparse
import csv
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from worlds import ALPHA, EXAMPLES, LOOKS, ORDINARY, SEEDS, WORLDS, batches, cell, probit, quantile

from xferbench.analysis import intervals, metrics
from xferbench.core.record import Predictions

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

RESAMPLED = ((3, 50), (3, 153), (5, 153), (10, 153), (3, 500))  # S, N
LEVELS = (0.05, 0.0125, 0.0025, 0.000625)  # one contrast, its first look of three, and that among five and among twenty
RARELY = (133, 153, 224, 250, 300, 500, 1000, 2000)
RESAMPLES = 2000  # replicates at most: each is a bootstrap
WRONG = ("wrong_fail", "wrong_pass")
LOOKED = ("sequential_wrong_fail", "sequential_wrong_pass")
POWER = ("power_fail", "power_pass")


def predictions(probability: np.ndarray, predicted: np.ndarray, label: np.ndarray) -> Predictions:
    """The parts of a two-class prediction that balanced accuracy and AUROC read."""
    none = np.empty(0)
    both = np.stack([1 - probability, probability], axis=1).astype(np.float16)
    return Predictions(
        example=none, label=label, predicted=predicted, group=none, p_true=none, p_max=none, sum_p2=none, probabilities=both
    )


def two_class(generator: np.random.Generator, S: int, N: int, metric: str, harm: float) -> dict[str, list[Predictions]]:
    """Draw two arms on a task with 30 % positives, the cured one with AUROC .85 or balanced accuracy .80 (recalls .75, .85).

    An example's score is its class's mean plus a standard normal, half of it the example's own and a fifth the arm's own on
    it. For AUROC the distance of the classes varies over seeds with standard deviation .05: Φ(μ / √(2 + .05²)) is the mean.
    """
    label = (generator.random(N) < 0.3).astype(np.int64)
    shared = np.sqrt(0.5) * generator.standard_normal(N)
    arms: dict[str, list[Predictions]] = {}
    for arm, less in (("cured", 0.0), ("subject", harm)):
        own = np.sqrt(0.2) * generator.standard_normal(N)
        arms[arm] = []
        for _ in range(S):
            noise = shared + own + np.sqrt(0.3) * generator.standard_normal(N)
            if metric == "auroc":
                distance = np.sqrt(2 + 0.05**2) * quantile(0.85 - less) + 0.05 * generator.standard_normal()
                score = noise + distance * (label - 0.5)
            else:
                score = noise + np.where(label == 1, quantile(0.75 - less), -quantile(0.85 - less))
            arms[arm].append(predictions(1 / (1 + np.exp(-score)), (score > 0).astype(np.int64), label))
    return arms


def resampled(metric: str, S: int, N: int, replicates: int, seed: int) -> dict[str, Any]:
    """Rates with a metric that is no mean over examples, at a margin of .05."""
    generator = np.random.default_rng([seed, len(WORLDS), len(metric), S, N])
    met = dict.fromkeys(("wrong_fail", "wrong_pass", "power_pass", "power_fail"), 0.0)
    for _ in range(replicates):
        for harm, fail, passed in ((0.05, "wrong_fail", "wrong_pass"), (0.0, "", "power_pass"), (0.1, "power_fail", "")):
            arms = two_class(generator, S, N, metric, harm)
            estimate, _ = metrics.estimate_metric_contrast(
                arms, {"cured": 1.0, "subject": -1.0}, metric=metric, margin=0.05, alpha=ALPHA
            )
            for name, p in ((fail, estimate.p_fail), (passed, estimate.p_pass)):
                if name:
                    met[name] += p < ALPHA
    met = {name: number / replicates for name, number in met.items()}
    return {"world": "two classes", "metric": metric, "margin": 0.05, "seeds": S, "examples": N, "replicates": replicates} | met


def planned(S: int, N: int, replicates: int, seed: int) -> dict[str, Any]:
    """Power of a PASS at a harm of 0, and :func:`xferbench.analysis.intervals.smallest_margin`, which promises .80."""
    generator = np.random.default_rng([seed, len(WORLDS) + 1, S, N])
    _, seeds, examples, rest = (
        part.mean() for part in intervals.mean_squares(probit(generator, (500, 20, 500), [0.0], **ORDINARY)[0])
    )
    item = (examples - rest) / 20
    margin = intervals.smallest_margin(
        N, S, alpha=ALPHA, disagree=item + rest, persistent=item / (item + rest), seed_sd=np.sqrt((seeds - rest) / 500)
    )
    met = 0.0
    for R in batches(replicates, S * N):
        (null,) = probit(generator, (R, S, N), [0.0], **ORDINARY)
        met += float((intervals.p_values(null, margin)[1] < ALPHA).sum())
    return {
        "world": "planned",
        "metric": "mean",
        "margin": margin,
        "seeds": S,
        "examples": N,
        "replicates": replicates,
        "power_pass": met / replicates,
    }


def rarely(N: int, level: float) -> float:
    """Probability of a wrong PASS, without simulation, where D is 1 on a binomial number of N examples, at a margin of .02."""
    from scipy.stats import binom

    harmed = np.arange(N // 10 + 5)
    D = (np.arange(N) < harmed[:, None]).astype(np.float64)[:, None].repeat(2, axis=1)
    return float(binom.pmf(harmed, N, 0.02)[intervals.p_values(D, 0.02)[1] < level].sum())


def call(task: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Compute one cell, in a worker."""
    return task()


def simulate(replicates: int, seed: int, workers: int) -> list[dict[str, Any]]:
    """All cells; the same numbers whatever the number of workers."""
    ends = {"replicates": replicates, "seed": seed}
    tasks = [partial(cell, number, S, N, **ends) for number, world in enumerate(WORLDS) for S in world.seeds for N in EXAMPLES]
    fewer = ends | {"replicates": min(replicates, RESAMPLES)}
    tasks += [partial(resampled, metric, S, N, **fewer) for metric in ("balanced_accuracy", "auroc") for S, N in RESAMPLED]
    tasks += [partial(planned, S, N, **ends) for S in SEEDS for N in EXAMPLES]
    with ProcessPoolExecutor(workers) as pool:
        return list(pool.map(call, tasks))


def parts(rows: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """The cells where the assumptions hold, those of them with three seeds or more, and those of the other metrics."""
    within = {world.name for world in WORLDS if not world.apart}
    main = [row for row in rows if row["world"] in within]
    return main, [row for row in main if row["seeds"] >= 3], [row for row in rows if row["metric"] != "mean"]


def rates(row: dict[str, Any], names: tuple[str, str]) -> str:
    """Two rates in percent; wrong ones above the target in bold."""
    told = [f"{100 * row[name]:.1f}" for name in names]
    return " / ".join(
        f"**{one}**" if names != POWER and row[name] > 0.065 else one for name, one in zip(names, told, strict=True)
    )


def grid(rows: Sequence[dict[str, Any]], names: tuple[str, str]) -> list[str]:
    """Two rates as a table of worlds and seeds against examples."""
    at = {(row["world"], row["seeds"], row["examples"]): rates(row, names) for row in rows}
    lines = ["| world | S | " + " | ".join(f"N = {N}" for N in EXAMPLES) + " |", "|---|---|" + "---|" * len(EXAMPLES)]
    for world, S in dict.fromkeys((row["world"], row["seeds"]) for row in rows):
        lines.append(f"| {world} | {S} | " + " | ".join(at[world, S, N] for N in EXAMPLES) + " |")
    return lines


def described(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The worlds as a table, with their variances as met in the largest cell."""
    lines = ["| world | what it is | margin | variance of D in a seed | same at all seeds | sd of the harm over seeds |"]
    lines.append("|---|---|---|---|---|---|")
    largest = {row["world"]: row for row in rows if (row["seeds"], row["examples"]) == (SEEDS[-1], EXAMPLES[-1])}
    for world in WORLDS:
        row = largest[world.name]
        within = row["variance_item"] + row["variance_rest"]
        figures = f"{within:.3f} | {max(row['variance_item'], 0) / within:.2f} | {max(row['variance_seed'], 0) ** 0.5:.3f}"
        lines.append(f"| {world.name} | {world.says} | {world.margin:g} | {figures} |")
    return lines


def worst(rows: Sequence[dict[str, Any]], names: tuple[str, str]) -> str:
    """The highest of some rates, with its cell."""
    rate, name, row = max(((row[name], name, row) for row in rows for name in names), key=lambda one: one[0])
    verdict = name.rsplit("_", 1)[-1].upper()
    return f"{100 * rate:.1f} % ({verdict}, {row['world']}, S = {row['seeds']}, N = {row['examples']})"


def summary(rows: Sequence[dict[str, Any]], replicates: int, seed: int) -> list[str]:
    """What was simulated, how to do it again, and the highest rates."""
    main, several, others = parts(rows)
    over = sum(row[name] > 0.065 for row in several for name in WRONG)
    single, looked = [row for row in main if row["seeds"] == 1], [row for row in main if LOOKED[0] in row]
    error = 100 * (ALPHA * (1 - ALPHA) / replicates) ** 0.5
    return [
        "# Wrong verdicts and power, by simulation",
        "",
        f"Each cell is {replicates} simulated experiments of S seeds on N test examples, drawn anew from a world whose true",
        "harm H is known exactly: its expectation over random seeds and random examples. Verdicts have a level of 5 % a side.",
        "Tables give two rates in percent. With H at the margin both verdicts are wrong; the target is at most 6.5 % each",
        f"where S ≥ 3; higher rates are bold. The Monte-Carlo standard error of a rate of 5 % is {error:.2f} points.",
        "To regenerate:",
        "",
        f"    python tests/benchmarks/simulation.py --replicates {replicates} --seed {seed}",
        "",
        f"- S ≥ 3: {over} of {2 * len(several)} rates are above 6.5 %; the highest is {worst(several, WRONG)}.",
        f"- S = 1: the highest is {worst(single, WRONG)}. Its interval is for that seed alone;",
        "  the rate is over seeds as well.",
        f"- Three looks: the highest is {worst(looked, LOOKED)}.",
        f"- Balanced accuracy and AUROC: the highest is {worst(others, WRONG)}.",
        "- Apart, at the end: what no interval over a few seeds can know.",
    ]


def page(rows: Sequence[dict[str, Any]], replicates: int, seed: int) -> str:
    """The tables as Markdown."""
    main, _, others = parts(rows)
    apart = [row for row in rows if row["world"] in {world.name for world in WORLDS if world.apart}]
    looked = [row for row in main if LOOKED[0] in row]
    sections = {
        "Worlds": described(rows),
        "Wrong FAIL / wrong PASS, harm exactly at the margin": grid(main, WRONG),
        f"Wrong FAIL / wrong PASS at any of the looks at {', '.join(map(str, LOOKS))} seeds": grid(looked, LOOKED),
        "Power: FAIL at twice the margin / PASS at a harm of 0": grid(main, POWER),
        "Wrong PASS at the lower levels of looks and many contrasts, where D is 1 on a share of .02, exactly": [
            "| level | " + " | ".join(f"N = {N}" for N in RARELY) + " |",
            "|---|" + "---|" * len(RARELY),
            *(f"| {100 * level:g} | " + " | ".join(f"{100 * rarely(N, level):.4f}" for N in RARELY) + " |" for level in LEVELS),
        ],
        f"Balanced accuracy and AUROC, margin .05, {min(replicates, RESAMPLES)} replicates": [
            "| metric | S | N | wrong FAIL / wrong PASS | power: FAIL at .10 / PASS at 0 |",
            "|---|---|---|---|---|",
            *(
                f"| {row['metric']} | {row['seeds']} | {row['examples']} | {rates(row, WRONG)} | {rates(row, POWER)} |"
                for row in others
            ),
        ],
        "Planning: the smallest margin as announced, and the power of a PASS there (80 % is promised)": [
            "| S | N | smallest margin | power |",
            "|---|---|---|---|",
            *(
                f"| {row['seeds']} | {row['examples']} | {row['margin']:.4f} | {100 * row['power_pass']:.1f} |"
                for row in rows
                if row["world"] == "planned"
            ),
        ],
        "Apart: wrong FAIL / wrong PASS where the assumptions do not hold": [
            "Groups that are ignored; and rare divergence, where most sets of a few seeds have not seen the event in which the",
            "harm lies, and look better than they are. No interval can know of it: where none of S seeds diverged, the rate of",
            "divergence may still be 1 − .05^(1/S), which is .63 for 3 seeds, .45 for 5, .14 for 20.",
            "",
            *grid(apart, WRONG),
            "",
            "At any of the looks:",
            "",
            *grid([row for row in apart if LOOKED[0] in row], LOOKED),
        ],
    }
    text = [line for title, lines in sections.items() for line in ("", f"## {title}", "", *lines)]
    return "\n".join([*summary(rows, replicates, seed), *text, ""])


def main() -> None:
    """Simulate, and write simulation.md and simulation.csv."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicates", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks"))
    given = parser.parse_args()
    rows = simulate(given.replicates, given.seed, given.workers)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "simulation.md").write_text(page(rows, given.replicates, given.seed), encoding="utf-8")
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with (given.out / "simulation.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: f"{one:.5g}" if isinstance(one, float) else one for name, one in row.items()} for row in rows)


if __name__ == "__main__":
    main()
