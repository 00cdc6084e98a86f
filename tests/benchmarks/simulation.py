"""How often a verdict is wrong, and how often it is decided, in worlds whose true harm is known.

    python tests/benchmarks/simulation.py [--replicates 2000] [--seed 0] [--workers 1] [--out reports/benchmarks]

Each world draws D[s, i] over random seeds and random test examples, and its expectation is exactly the requested harm. With the
harm at the margin both FAIL and PASS are wrong; each has a level of 5 %. The simulation tests
:func:`xferbench.analysis.intervals.p_values` and :func:`xferbench.analysis.metrics.estimate_metric_contrast` as they are.
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

from xferbench.analysis import intervals, metrics, power
from xferbench.core.record import Predictions

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

RESAMPLED = ((3, 50), (3, 153), (5, 153), (10, 153), (3, 500))  # S, N
LEVELS = (0.05, 0.0125, 0.0025, 0.000625)  # one contrast, its first look of three, and that among five and among twenty
RARE_EXAMPLES = (133, 153, 224, 250, 300, 500, 1000, 2000)
RESAMPLES = 2000  # replicates at most: each is a bootstrap
CONTRASTS = 15
MANY = ("any_wrong_fail", "any_wrong_pass", "all_wrong_pass", "pass_alone", "pass_corrected", "fail_alone", "fail_corrected")
WRONG = ("wrong_fail", "wrong_pass")
LOOKED = ("sequential_wrong_fail", "sequential_wrong_pass")
POWER = ("power_fail", "power_pass")


def predictions(probability: np.ndarray, predicted: np.ndarray, label: np.ndarray) -> Predictions:
    """The parts of a two-class prediction that balanced accuracy and AUROC read."""
    empty = np.empty(0)
    probabilities = np.stack([1 - probability, probability], axis=1).astype(np.float16)
    return Predictions(
        example=empty,
        label=label,
        predicted=predicted,
        group=empty,
        p_true=empty,
        p_max=empty,
        sum_p2=empty,
        probabilities=probabilities,
    )


def two_class(generator: np.random.Generator, S: int, N: int, metric: str, harm: float) -> dict[str, list[Predictions]]:
    """Draw two arms on a task with 30 % positives, the cured one with AUROC .85 or balanced accuracy .80 (recalls .75, .85).

    The score of an example is the mean of its class plus a standard normal. Half of the variance belongs to the example, and a
    fifth to the pair of example and arm. For AUROC the distance of the classes varies over seeds with standard deviation .05,
    so that the mean is Φ(μ / √(2 + .05²)).
    """
    label = (generator.random(N) < 0.3).astype(np.int64)
    shared = np.sqrt(0.5) * generator.standard_normal(N)
    arms: dict[str, list[Predictions]] = {}
    for arm, loss in (("cured", 0.0), ("subject", harm)):
        of_arm = np.sqrt(0.2) * generator.standard_normal(N)
        arms[arm] = []
        for _ in range(S):
            noise = shared + of_arm + np.sqrt(0.3) * generator.standard_normal(N)
            if metric == "auroc":
                distance = np.sqrt(2 + 0.05**2) * quantile(0.85 - loss) + 0.05 * generator.standard_normal()
                score = noise + distance * (label - 0.5)
            else:
                score = noise + np.where(label == 1, quantile(0.75 - loss), -quantile(0.85 - loss))
            arms[arm].append(predictions(1 / (1 + np.exp(-score)), (score > 0).astype(np.int64), label))
    return arms


def resampled(metric: str, S: int, N: int, replicates: int, seed: int) -> dict[str, Any]:
    """Return the rates with a metric that is no mean over examples, at a margin of .05."""
    generator = np.random.default_rng([seed, len(WORLDS), len(metric), S, N])
    counts = dict.fromkeys(("wrong_fail", "wrong_pass", "power_pass", "power_fail"), 0.0)
    for _ in range(replicates):
        for harm, fail, passed in ((0.05, "wrong_fail", "wrong_pass"), (0.0, "", "power_pass"), (0.1, "power_fail", "")):
            arms = two_class(generator, S, N, metric, harm)
            estimate, _ = metrics.estimate_metric_contrast(
                arms, {"cured": 1.0, "subject": -1.0}, metric=metric, margin=0.05, alpha=ALPHA
            )
            for name, p in ((fail, estimate.p_fail), (passed, estimate.p_pass)):
                if name:
                    counts[name] += p < ALPHA
    shares = {name: count / replicates for name, count in counts.items()}
    setting = {"world": "two classes", "metric": metric, "margin": 0.05, "seeds": S, "examples": N, "replicates": replicates}
    return setting | shares


def planned(S: int, N: int, replicates: int, seed: int) -> dict[str, Any]:
    """Return the power of a PASS at a harm of 0 with the smallest margin, which promises a power of .80."""
    generator = np.random.default_rng([seed, len(WORLDS) + 1, S, N])
    _, seeds, examples, rest = (
        part.mean() for part in intervals.mean_squares(probit(generator, (500, 20, 500), [0.0], **ORDINARY)[0])
    )
    item = (examples - rest) / 20
    variances = power.Variances(seed=(seeds - rest) / 500, example=item, residual=rest)
    margin = power.smallest_margin(N, S, alpha=ALPHA, variances=variances)
    passes = 0.0
    for R in batches(replicates, S * N):
        (null,) = probit(generator, (R, S, N), [0.0], **ORDINARY)
        passes += float((intervals.p_values(null, margin)[1] < ALPHA).sum())
    return {
        "world": "planned",
        "metric": "mean",
        "margin": margin,
        "seeds": S,
        "examples": N,
        "replicates": replicates,
        "power_pass": passes / replicates,
    }


def many_contrasts(S: int, N: int, seed_variance: float, replicates: int, seed: int) -> dict[str, Any]:
    """Return the rates of a run of 15 contrasts of one subject with 15 arms, which disagree on a tenth of the examples.

    All arms share the examples. All harms are 0, the margin of .05, or twice the margin. FAIL is corrected by Holm's procedure.
    """
    generator = np.random.default_rng([seed, len(WORLDS) + 2, S, N])
    margin, level, counts = 0.05, ALPHA / CONTRASTS, dict.fromkeys((*MANY, "variance_seed"), 0.0)

    def scores(shared: np.ndarray) -> np.ndarray:
        own = np.sqrt(0.06) * generator.standard_normal((1, N)) + np.sqrt(seed_variance) * generator.standard_normal((S, 1))
        return shared + own + np.sqrt(0.06 - seed_variance) * generator.standard_normal((S, N))

    for _ in range(replicates):
        shared = np.sqrt(0.88) * generator.standard_normal((1, N))
        subject = scores(shared)
        cured = np.stack([scores(shared) for _ in range(CONTRASTS)]) > quantile(0.2)
        tables = [cured - (subject > quantile(0.2 + harm)).astype(np.float64) for harm in (0.0, margin, 2 * margin)]
        null, edge, double = (intervals.p_values(table, margin) for table in tables)
        _, seeds, _, rest = intervals.mean_squares(tables[1])
        counts["variance_seed"] += float((seeds - rest).mean()) / N
        counts["any_wrong_fail"] += edge[0].min() < level
        counts["any_wrong_pass"] += edge[1].min() < ALPHA
        counts["all_wrong_pass"] += edge[1].max() < ALPHA
        counts["pass_alone"] += (null[1] < ALPHA).mean()
        counts["pass_corrected"] += (null[1] < level).mean()
        counts["fail_alone"] += (double[0] < ALPHA).mean()
        counts["fail_corrected"] += (double[0] < level).mean()
    shares = {name: count / replicates for name, count in counts.items()}
    setting = {"world": "many contrasts", "metric": "mean", "margin": margin, "seeds": S, "examples": N}
    return setting | {"replicates": replicates} | shares


def rare_wrong_pass(N: int, level: float) -> float:
    """Return the exact probability of a wrong PASS at a margin of .02, if D is 1 on a binomial number of N examples."""
    from scipy.stats import binom

    harmed = np.arange(N // 10 + 5)
    D = (np.arange(N) < harmed[:, None]).astype(np.float64)[:, None].repeat(2, axis=1)
    return float(binom.pmf(harmed, N, 0.02)[intervals.p_values(D, 0.02)[1] < level].sum())


def call(task: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Compute one cell, in a worker."""
    return task()


def simulate(replicates: int, seed: int, workers: int) -> list[dict[str, Any]]:
    """Return all cells; the numbers do not depend on the number of workers."""
    settings = {"replicates": replicates, "seed": seed}
    tasks = [
        partial(cell, number, S, N, **settings) for number, world in enumerate(WORLDS) for S in world.seeds for N in EXAMPLES
    ]
    fewer = settings | {"replicates": min(replicates, RESAMPLES)}
    tasks += [partial(resampled, metric, S, N, **fewer) for metric in ("balanced_accuracy", "auroc") for S, N in RESAMPLED]
    tasks += [partial(planned, S, N, **settings) for S in SEEDS for N in EXAMPLES]
    tasks += [
        partial(many_contrasts, S, N, variance, **fewer) for S in (3, 5, 10) for N in (150, 500) for variance in (0.002, 0.02)
    ]
    with ProcessPoolExecutor(workers) as pool:
        return list(pool.map(call, tasks))


def parts(rows: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the cells whose assumptions hold, those of them with three seeds or more, and the cells of other metrics."""
    within = {world.name for world in WORLDS if not world.apart}
    main = [row for row in rows if row["world"] in within]
    return main, [row for row in main if row["seeds"] >= 3], [row for row in rows if row["metric"] != "mean"]


def rates(row: dict[str, Any], names: tuple[str, str]) -> str:
    """Write two rates in percent; rates of wrong verdicts above the target are bold."""
    percents = [f"{100 * row[name]:.1f}" for name in names]
    return " / ".join(
        f"**{percent}**" if names != POWER and row[name] > 0.065 else percent
        for name, percent in zip(names, percents, strict=True)
    )


def grid(rows: Sequence[dict[str, Any]], names: tuple[str, str]) -> list[str]:
    """Write two rates as a table: a row for each world and number of seeds, a column for each number of examples."""
    at = {(row["world"], row["seeds"], row["examples"]): rates(row, names) for row in rows}
    lines = ["| world | S | " + " | ".join(f"N = {N}" for N in EXAMPLES) + " |", "|---|---|" + "---|" * len(EXAMPLES)]
    for world, S in dict.fromkeys((row["world"], row["seeds"]) for row in rows):
        lines.append(f"| {world} | {S} | " + " | ".join(at[world, S, N] for N in EXAMPLES) + " |")
    return lines


def world_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Write the worlds as a table, with their variances in the largest cell."""
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
    """Write the highest of some rates with its cell."""
    rate, name, row = max(((row[name], name, row) for row in rows for name in names), key=lambda candidate: candidate[0])
    verdict = name.rsplit("_", 1)[-1].upper()
    return f"{100 * rate:.1f} % ({verdict}, {row['world']}, S = {row['seeds']}, N = {row['examples']})"


def summary(rows: Sequence[dict[str, Any]], replicates: int, seed: int) -> list[str]:
    """Write what is simulated, how to repeat it, and the highest rates."""
    main, several, others = parts(rows)
    over = sum(row[name] > 0.065 for row in several for name in WRONG)
    single, looked = [row for row in main if row["seeds"] == 1], [row for row in main if LOOKED[0] in row]
    error = 100 * (ALPHA * (1 - ALPHA) / replicates) ** 0.5
    return [
        "# Wrong verdicts and power, by simulation",
        "",
        f"Each cell has {replicates} simulated experiments of S seeds on N test examples. Each is a new sample of a world",
        "whose true harm H, its expectation over random seeds and random examples, is known exactly. Verdicts have a level of",
        "5 % on each side. The tables have two rates in percent. With H at the margin both verdicts are wrong; the target for",
        "each is at most 6.5 % if S ≥ 3, and higher rates are bold. The Monte-Carlo standard error of a rate of 5 % is",
        f"{error:.2f} points.",
        "To regenerate:",
        "",
        f"    python tests/benchmarks/simulation.py --replicates {replicates} --seed {seed}",
        "",
        f"- S ≥ 3: {over} of {2 * len(several)} rates are above 6.5 %; the highest is {worst(several, WRONG)}.",
        f"- S = 1: the highest is {worst(single, WRONG)}. Its interval is for that seed alone;",
        "  the rate is over seeds as well.",
        f"- Three looks: the highest is {worst(looked, LOOKED)}.",
        f"- Balanced accuracy and AUROC: the highest is {worst(others, WRONG)}.",
        "- The last section has worlds that no interval over a few seeds can detect.",
    ]


def page(rows: Sequence[dict[str, Any]], replicates: int, seed: int) -> str:
    """Return the page of the tables."""
    main, _, others = parts(rows)
    apart = [row for row in rows if row["world"] in {world.name for world in WORLDS if world.apart}]
    looked = [row for row in main if LOOKED[0] in row]
    sections = {
        "Worlds": world_lines(rows),
        "Wrong FAIL / wrong PASS, harm exactly at the margin": grid(main, WRONG),
        f"Wrong FAIL / wrong PASS at any of the looks at {', '.join(map(str, LOOKS))} seeds": grid(looked, LOOKED),
        "Power: FAIL at twice the margin / PASS at a harm of 0": grid(main, POWER),
        "Wrong PASS at the lower levels of looks and many contrasts, where D is 1 on a share of .02, exactly": [
            "| level | " + " | ".join(f"N = {N}" for N in RARE_EXAMPLES) + " |",
            "|---|" + "---|" * len(RARE_EXAMPLES),
            *(
                f"| {100 * level:g} | " + " | ".join(f"{100 * rare_wrong_pass(N, level):.4f}" for N in RARE_EXAMPLES) + " |"
                for level in LEVELS
            ),
        ],
        f"Balanced accuracy and AUROC, margin .05, {min(replicates, RESAMPLES)} replicates": [
            "| metric | S | N | wrong FAIL / wrong PASS | power: FAIL at .10 / PASS at 0 |",
            "|---|---|---|---|---|",
            *(
                f"| {row['metric']} | {row['seeds']} | {row['examples']} | {rates(row, WRONG)} | {rates(row, POWER)} |"
                for row in others
            ),
        ],
        f"One subject and {CONTRASTS} contrasts, margin .05: wrong verdicts of a run, and power of a contrast": [
            "With all harms at the margin, a run is wrong if any contrast is a FAIL (corrected by Holm's procedure), or if all",
            "contrasts are a PASS (not corrected). The last columns are the shares of contrasts that PASS at a harm of 0 and",
            "FAIL at twice the margin, without and with a correction. Verdicts use the bold ones.",
            "",
            "| S | N | sd over seeds | any FAIL | any PASS | all PASS | **PASS** | corrected | FAIL | **corrected** |",
            "|---|---|---|---|---|---|---|---|---|---|",
            *(
                f"| {row['seeds']} | {row['examples']} | {row['variance_seed'] ** 0.5:.3f} | "
                + " | ".join(f"{100 * row[name]:.1f}" for name in MANY)
                + " |"
                for row in rows
                if row["world"] == "many contrasts"
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
            "The first world ignores groups. In the others seeds diverge rarely: most sets of a few seeds do not contain the",
            "event that causes the harm, and look better than they are. No interval can detect it: if none of S seeds",
            "diverges, the rate of divergence may still be 1 − .05^(1/S), which is .63 for 3 seeds, .45 for 5 and .14 for 20.",
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
    arguments = parser.parse_args()
    rows = simulate(arguments.replicates, arguments.seed, arguments.workers)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "simulation.md").write_text(page(rows, arguments.replicates, arguments.seed), encoding="utf-8")
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with (arguments.out / "simulation.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {name: f"{value:.5g}" if isinstance(value, float) else value for name, value in row.items()} for row in rows
        )


if __name__ == "__main__":
    main()
