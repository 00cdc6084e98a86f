"""How often the gate is wrong, and what it catches: against itself, at the margin, planted regressions, other computers.

    python tests/benchmarks/gate.py [--store FILE] [--only aa edge verdicts planted places light] [--out reports/benchmarks]

The store keeps the records of all networks: a stopped measurement continues, and a later one judges the same records again
within minutes. The table keeps the rows of the parts that are not measured. The part ``light`` needs ``--python``, an
interpreter with xferbench and without torch.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from collections import Counter
from pathlib import Path
from time import perf_counter

import elsewhere
import numpy as np
import trained
from scipy.stats import binomtest

from xferbench.analysis import compare
from xferbench.core import comparison
from xferbench.report import messages
from xferbench.runner.environment import processor_name

ALPHA, MARGIN = 0.05, 0.02
FULL_TUNING = {"strategy": "full", "lr": 3e-3, "steps": 30, "batch_size": 16}  # exposed to both plugins, and quick
LINEAR_PROBE = {"strategy": "linear-probe", "lr": 1e-2}
REDUCED = {  # the sizes of a planted regression, which replace 200 images or 150 steps
    "images": (20, 30, 40, 50, 60, 80, 100, 120, 150),
    "steps": (12, 14, 16, 18, 20, 25, 30, 40),
}
USUAL = {"images": 200, "steps": 150}
LOSSES = (0.02, 0.05, 0.1)
PILOT_SEEDS, GATE_SEEDS = range(910_000, 910_100), range(20_000, 20_400)
DECISIONS = (comparison.WORSE, comparison.CANNOT_TELL, comparison.NOT_WORSE)
ANY = "any of them"


def compare_runs(accepted, candidate):
    """Return the outcomes of a gate by id."""
    outcomes = messages.write_comparison(compare.compare(accepted, candidate)).outcomes
    return {outcome.id: outcome for outcome in outcomes}


def percent(count, total):
    """Write a share in percent."""
    return f"{100 * count / total:.1f} %"


def decision_shares(decisions):
    """Return how often each decision is taken, the first with its exact 95 % interval."""
    counts = Counter(decisions)
    total = counts.total()
    interval = binomtest(counts[comparison.WORSE], total).proportion_ci()
    shares = {decision: percent(counts[decision], total) for decision in DECISIONS}
    shares[comparison.WORSE] += f" [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
    return shares | {decision: percent(count, total) for decision, count in counts.items() if decision not in DECISIONS}


def lower_accuracy(correct, harm, accuracy, rng, *, fixed=False):
    """Return answers [S, N] whose accuracy is lower by ``harm`` in expectation; a negative harm raises it.

    Args:
        correct: the correctness [S, N] of the answers.
        harm: the loss of accuracy.
        accuracy: the expected accuracy of ``correct``.
        rng: draws the examples whose answers change.
        fixed: whether the same examples change at all seeds.
    """
    uniform = rng.random((1 if fixed else len(correct), correct.shape[1]))
    return correct & (uniform >= harm / accuracy) if harm >= 0 else correct | (uniform < -harm / (1 - accuracy))


# against itself, and at the margin


def full_tuning(store, arguments):
    """Return a pipeline that is exposed to both plugins."""
    target = {"data": "synthetic:near", "train_size": 200, "test_size": 200 if arguments.quick else 1000}
    return trained.open_two_arm_study(FULL_TUNING, target, store)


def self_comparison_seeds(arguments):
    """Return the seeds of the pipeline that is compared with itself, ten for each gate of five."""
    return range(500_000, 500_040) if arguments.quick else range(10 * arguments.gates)


def aa(store, arguments):
    """Compare a pipeline with itself at other seeds."""
    two_arm = full_tuning(store, arguments)
    seeds = self_comparison_seeds(arguments)
    trained.train(two_arm, seeds)
    return self_comparison_rows(two_arm, seeds, 5)


def self_comparison_rows(two_arm, seeds, S):
    """Return the rows of the gates between neighbouring blocks of S seeds."""
    runs = [trained.run(two_arm.at(first, S)) for first in seeds[: len(seeds) // (2 * S) * 2 * S : S]]
    gates = [compare_runs(*pair) for pair in zip(runs[::2], runs[1::2], strict=True)]
    by_interval = percent(sum(any(map(is_worse_by_interval, gate.values())) for gate in gates), len(gates))
    shares = decision_shares(map(overall_decision, gates))
    rows = [{"outcome": ANY, "gates": len(gates)} | shares | {"worse by the interval": by_interval}]
    for name in gates[0]:
        outcomes = [gate[name] for gate in gates]
        changes = 100 * np.array([outcome.estimate.change for outcome in outcomes])
        rows.append(
            {"outcome": name, "gates": len(gates)}
            | decision_shares([outcome.decision for outcome in outcomes])
            | {
                "change in points": f"{changes.mean():+.2f} (sd {changes.std(ddof=1):.2f})",
                "of it in the accepted": f"{100 * np.mean([outcome.estimate.before for outcome in outcomes]):.1f}",
                "worse by the interval": percent(sum(map(is_worse_by_interval, outcomes)), len(gates)),
            }
        )
    return rows


def overall_decision(outcomes):
    """Return the decision of a gate: worse if any outcome is worse, not worse if every outcome is not worse."""
    decisions = [outcome.decision for outcome in outcomes.values()]
    return next((decision for decision in DECISIONS if decision in decisions), decisions[0])


def is_worse_by_interval(outcome):
    """Return whether the interval shows a change above the margin, whatever the verdicts of the runs are."""
    return outcome.estimate.p_worse is not None and outcome.estimate.p_worse < ALPHA


def answers_of_all_seeds(two_arm, arguments):
    """Return the correctness of each answer of a pipeline's networks by arm, after training them."""
    seeds = self_comparison_seeds(arguments)
    trained.train(two_arm, seeds)
    return trained.correct_answers(two_arm, seeds)


def resample(pool, rng, S):
    """Return the answers of two sets of S seeds without a common seed, on test images drawn with replacement."""
    seed_count, N = pool["subject"].shape
    seeds, examples = rng.choice(seed_count, 2 * S, replace=False), rng.integers(N, size=N)
    return tuple({name: correct[half][:, examples] for name, correct in pool.items()} for half in (seeds[:S], seeds[S:]))


def compare_answers(two_arm, S, sides):
    """Return the outcomes of a gate between two sets of S seeds with these answers."""
    return compare_runs(*(trained.run_with_answers(two_arm.at(S * rank, S), side) for rank, side in enumerate(sides)))


def edge(store, arguments):
    """Compare a pipeline with a candidate whose subject is worse by exactly the margin, as are all outcomes."""
    two_arm, rows = full_tuning(store, arguments), []
    pool = answers_of_all_seeds(two_arm, arguments)
    for S, fixed, replicates in ((5, False, 2000), (5, True, 2000), (20, False, 1000), (20, True, 1000)):
        rng, gates = np.random.default_rng([S, fixed]), []
        for _ in range(10 if arguments.quick else replicates):
            accepted, candidate = resample(pool, rng, S)
            candidate["subject"] = lower_accuracy(candidate["subject"], MARGIN, pool["subject"].mean(), rng, fixed=fixed)
            gates.append(compare_answers(two_arm, S, (accepted, candidate)))
        where = "the same images at all seeds" if fixed else "other images at each seed"
        for name in (ANY, *gates[0]):
            outcomes = [[outcome for outcome in gate.values() if name in {outcome.id, ANY}] for gate in gates]
            decisions = [{outcome.decision for outcome in of_gate} for of_gate in outcomes]
            by_interval = sum(any(map(is_worse_by_interval, of_gate)) for of_gate in outcomes)
            rows.append(
                {"answers lost at": where, "S": S, "outcome": name, "gates": len(gates)}
                | {word: percent(sum(word in of_gate for of_gate in decisions), len(gates)) for word in DECISIONS[::2]}
                | {"worse by the interval": percent(by_interval, len(gates))}
            )
    return rows


def verdicts(store, arguments):
    """Measure how often an unchanged pipeline is worse because its own verdict of head-shock is open."""
    two_arm, S, name, rows = full_tuning(store, arguments), 5, "head-shock/harm", []
    pool = answers_of_all_seeds(two_arm, arguments)
    cured_accuracy = pool["head-shock"].mean()
    for harm in (0.0, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08):
        rng, outcomes = np.random.default_rng([S, round(1000 * harm)]), []
        for _ in range(10 if arguments.quick else 500):
            sides = resample(pool, rng, S)
            for side in sides:
                loss = cured_accuracy - pool["subject"].mean() - harm
                side["head-shock"] = lower_accuracy(side["head-shock"], loss, cured_accuracy, rng)
            outcomes.append(compare_answers(two_arm, S, sides)[name])
        rows.append(
            {
                "harm of both, in points": f"{100 * harm:g}",
                "gates": len(outcomes),
                "own verdict FAIL": percent(sum(outcome.verdict == "FAIL" for outcome in outcomes), len(outcomes)),
                "worse": percent(sum(outcome.decision == comparison.WORSE for outcome in outcomes), len(outcomes)),
                "worse by the interval": percent(sum(map(is_worse_by_interval, outcomes)), len(outcomes)),
            }
        )
    return rows


# planted regressions


def linear_probe(store, *, test, images=USUAL["images"], steps=USUAL["steps"]):
    """Return a linear probe with these numbers of test images, training images and steps."""
    target = {"data": "synthetic:near", "train_size": images, "test_size": test}
    return trained.open_two_arm_study(LINEAR_PROBE | {"steps": steps}, target, store)


def subject_answers(two_arm, seeds):
    """Return the correctness [seeds, N] of each answer of the subject."""
    return trained.correct_answers(two_arm, seeds)["subject"]


def planted(store, arguments):
    """Plant regressions of about 2, 5 and 10 points by less training; and of exactly so much, by resampling these networks."""
    test, pilot_seeds, gate_seeds = 4000, PILOT_SEEDS, GATE_SEEDS
    if arguments.quick:
        test, pilot_seeds, gate_seeds = 200, range(510_000, 510_002), range(520_000, 520_020)
    usual, rows = linear_probe(store, test=test), []
    trained.train(usual, pilot_seeds)
    trained.train(usual, gate_seeds)
    accuracy = subject_answers(usual, pilot_seeds).mean()
    candidates = {}
    for kind, sizes in REDUCED.items():
        loss_by_size = {}
        for size in sizes:
            candidate = linear_probe(store, test=test, **{kind: size})
            trained.train(candidate, pilot_seeds)
            loss_by_size[size] = accuracy - subject_answers(candidate, pilot_seeds).mean()
        for loss in LOSSES:
            size = min(sizes, key=lambda size: abs(loss_by_size[size] - loss))
            candidates[loss] = linear_probe(store, test=test, **{kind: size})
            trained.train(candidates[loss], gate_seeds)
            description = f"{size} {kind} in the place of {USUAL[kind]}"
            rows += less_training_rows(usual, candidates[loss], gate_seeds, description, loss)
        rows += resampled_rows(usual, candidates, gate_seeds, kind, 10 if arguments.quick else 1000)
    return rows


def less_training_rows(usual, candidate, gate_seeds, description, loss):
    """Return the rows of gates on blocks of the seeds, the same ones for both sides."""
    by_seed = 100 * (subject_answers(usual, gate_seeds).mean(1) - subject_answers(candidate, gate_seeds).mean(1))
    error = by_seed.std(ddof=1) / len(by_seed) ** 0.5
    rows = []
    for S in (5, 20):
        outcomes = [
            compare_runs(trained.run(usual.at(first, S)), trained.run(candidate.at(first, S)))["subject"]
            for first in gate_seeds[: len(gate_seeds) // S * S : S]
        ]
        rows.append(
            {"candidate": description, "meant": f"{0 - 100 * loss:g}"}
            | {"true change": f"{-by_seed.mean():.2f} ± {error:.2f}", "S": S}
            | {"sd over seeds": f"{by_seed.std(ddof=1):.2f}", "gates": len(outcomes)}
            | decision_shares([outcome.decision for outcome in outcomes])
        )
    return rows


def resampled_rows(usual, candidates, gate_seeds, kind, replicates):
    """Return the rows of gates on resampled seeds and test images, with the candidate's answers changed to an exact loss."""
    usual_answers, rows = subject_answers(usual, gate_seeds), []
    for loss in (0.0, *LOSSES):
        weaker = candidates[max(loss, LOSSES[0])]
        weaker_answers = subject_answers(weaker, gate_seeds)
        further_loss, accuracy = loss - (usual_answers.mean() - weaker_answers.mean()), weaker_answers.mean()
        for S in (5, 20):
            rng, decisions = np.random.default_rng([S, round(1000 * loss), len(kind)]), []
            accepted, candidate = (trained.run(two_arm.at(gate_seeds.start, S)) for two_arm in (usual, weaker))
            seed_count, N = usual_answers.shape
            for _ in range(replicates):
                seeds, examples = rng.choice(seed_count, S, replace=False), rng.integers(N, size=N)
                lowered = lower_accuracy(weaker_answers[seeds][:, examples], further_loss, accuracy, rng)
                sides = (
                    trained.replace_answers(accepted, usual_answers[seeds][:, examples]),
                    trained.replace_answers(candidate, lowered),
                )
                decisions.append(compare_runs(*sides)["subject"].decision)
            rows.append(
                {"candidate": f"drawn, by {kind}", "meant": f"{0 - 100 * loss:g}", "true change": f"{0 - 100 * loss:.2f}"}
                | {"S": S, "gates": replicates}
                | decision_shares(decisions)
            )
    return rows


# the table

PARTS = {
    "aa": aa,
    "edge": edge,
    "verdicts": verdicts,
    "planted": planted,
    "places": elsewhere.places,
    "light": elsewhere.light,
}
HEAD = """# How far the gate can be trusted

The embedded world: tiny-resnet pretrained on `synthetic:source`, on `synthetic:near`; plugins batchnorm-drift and head-shock,
margin 2 points of accuracy, alpha 5 %, one look, Holm over the subject's accuracy and both harms. The benchmark trains only
the arms that a comparison reads, subject and cured. There is no baseline from scratch and no control, so a PASS of an exposed
pipeline is INCONCLUSIVE. Pipelines, trainings, verdicts and comparisons are those of the package. Brackets contain exact 95 %
intervals; changes are in points of accuracy."""
SECTIONS = {
    "aa": """A pipeline against itself

Full fine-tuning from a random head (all layers, rate 0.003, 30 steps of 16, BatchNorm in train mode) on 200 images. The cures
of both plugins change this pipeline. Accepted and candidate differ only in their seeds: 0–4 and 5–9, then 10–14 and 15–19, and
so on; no seed occurs twice. S = 5, N = 1000, paired by rank. Every decision "worse" is a false alarm; the target is at most
5 % of the gates. The interval or the candidate's own verdict (below) can lead to "worse".""",
    "edge": """At the margin

Each gate draws two sets of S seeds of the networks above, and 1000 of their test images with replacement. So many of the
candidate's correct answers become wrong that its accuracy is lower by exactly 2 points in expectation, and both harms are
higher by as much. Here "worse" and "not worse" are both wrong; the target for each, for any of the three outcomes, is at most
5 % of the gates.""",
    "verdicts": """The same pipeline, where its own verdict is open

A FAIL is also "worse" if the accepted run showed that the harm is below the margin. The gates draw seeds and images as above,
from the same networks for both sides. The accuracy of head-shock's cured arm is lowered until the harm has the value of the
first column; S = 5. There is no change to detect. (If a FAIL were also "worse" where the accepted run leaves the harm open,
10 to 21 % of the gates would be "worse" at 4 to 8 points. An earlier version had this rule.)""",
    "planted": """Planted regressions

A linear probe (rate 0.01, 150 steps of 32, 200 images) is accepted; the candidate has fewer images or fewer steps, and the same
seeds. N = 4000. The number of images or steps is the one of a fixed list whose loss, over 100 separate seeds, is nearest to 2,
5 or 10 points. The gates use blocks of 400 other seeds, whose mean is the true change (± its standard error). Rows "drawn" use
seeds and test images (with replacement) of the same networks; random answers of the candidate change until the true change is
exact in expectation. For a change of 0, the candidate is the one that lost about 2 points. "Worse" catches a regression, "not
worse" misses it; the target is to catch 95 % of the changes of 10 points.""",
    "places": """The same commit on other computers

The accepted run has one thread, one worker and the instructions that torch, oneDNN and MKL select here; each other run has an
empty store. "Answers that differ" are those of the subject, over all seeds and test images. The largest change is that of any
outcome.""",
    "light": """Without PyTorch

The gate compares a finished run with an accepted one in an environment without torch. Times are wall-clock times of whole
processes, with the report.""",
}


# the first columns of a table, which describe the gates of a row
SETTING_COLUMNS = (
    *("suite gate", "computer", "what", "answers lost at", "harm of both, in points", "candidate", "meant", "true change"),
    *("sd over seeds", "S", "outcome", "gates"),
)


def page(rows):
    """Return the page of the tables."""
    lines = [HEAD, f"Measured on a CPU ({processor_name()}), one thread. Again: `python tests/benchmarks/gate.py`."]
    for part, section in SECTIONS.items():
        of_part = [
            {name: value for name, value in row.items() if name != "part" and value} for row in rows if row["part"] == part
        ]
        if of_part:
            columns = ordered_columns(of_part)
            lines += ["", f"## {section}", "", f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
            lines += [f"| {' | '.join(row.get(name, '–') for name in columns)} |" for row in of_part]
    return "\n".join(lines) + "\n"


def ordered_columns(rows):
    """Return the columns of some rows: those of the setting, then those of the results."""
    columns = dict.fromkeys(name for row in sorted(rows, key=len, reverse=True) for name in row)
    return sorted(columns, key=lambda name: SETTING_COLUMNS.index(name) if name in SETTING_COLUMNS else len(SETTING_COLUMNS))


def write_part(out, part, rows):
    """Replace the rows of a part in gate.csv, and write gate.csv and gate.md."""
    path = out / "gate.csv"
    existing = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines())) if path.is_file() else []
    rows = [{"part": part} | {name: str(value) for name, value in row.items()} for row in rows]
    rows = [*(row for row in existing if row["part"] != part), *rows]
    rows.sort(key=lambda row: list(SECTIONS).index(row["part"]))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    (out / "gate.md").write_text(page(rows), encoding="utf-8")


def main():
    """Measure the selected parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--only", nargs="+", choices=PARTS)
    parser.add_argument("--python", type=Path, help="an interpreter without torch, for the part light")
    parser.add_argument("--gates", type=int, default=200, help="gates of a pipeline against itself, ten networks of each arm")
    parser.add_argument("--quick", action="store_true", help="a trial of the script: a few gates at other seeds")
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for part in arguments.only or [part for part in PARTS if part != "light" or arguments.python]:
            start = perf_counter()
            rows = PARTS[part](arguments.store or Path(folder) / "store.sqlite", arguments)
            write_part(arguments.out, part, rows)
            print(part, f"{perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
