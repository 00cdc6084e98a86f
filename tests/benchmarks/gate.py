"""How often the gate is wrong, and what it catches: against itself, at the margin, planted regressions, other computers.

    python tests/benchmarks/gate.py [--store FILE] [--only aa edge verdicts planted places light] [--out reports/benchmarks]

Networks are kept in the store by their content: who is stopped goes on, and a later gate judges the same records again within
minutes. Parts that are not asked for keep their rows of the table that is there. ``light`` is asked for by ``--python``, an
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
TUNED = {"strategy": "full", "lr": 3e-3, "steps": 30, "batch_size": 16}  # exposed to both plugins, and quick
PROBE = {"strategy": "linear-probe", "lr": 1e-2}
WEAKER = {  # what a regression is made of: these in the place of 200 images, and of 150 steps
    "images": (20, 30, 40, 50, 60, 80, 100, 120, 150),
    "steps": (12, 14, 16, 18, 20, 25, 30, 40),
}
USUAL = {"images": 200, "steps": 150}
MEANT = (0.02, 0.05, 0.1)
WORDS = (comparison.WORSE, comparison.CANNOT_TELL, comparison.NOT_WORSE)
ANY = "any of them"


def decided(accepted, candidate):
    """The outcomes of a gate by id."""
    return {one.id: one for one in messages.write_comparison(compare.compare(accepted, candidate)).outcomes}


def percent(count, total):
    """A share in words."""
    return f"{100 * count / total:.1f} %"


def shares(words):
    """How often each decision was taken, the first with its exact 95 % interval."""
    counts = Counter(words)
    total = counts.total()
    interval = binomtest(counts[comparison.WORSE], total).proportion_ci()
    told = {word: percent(counts[word], total) for word in WORDS}
    told[comparison.WORSE] += f" [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
    others = {word: percent(count, total) for word, count in counts.items() if word not in WORDS}
    return told | others


def moved(right, harm, accuracy, rng, *, fixed=False):
    """Answers [S, N] of a known mean accuracy, worse by ``harm`` in expectation (below 0 better), at random by example.

    With ``fixed`` the same examples are concerned at all seeds.
    """
    drawn = rng.random((1 if fixed else len(right), right.shape[1]))
    return right & (drawn >= harm / accuracy) if harm >= 0 else right | (drawn < -harm / (1 - accuracy))


# against itself, and at the margin


def tuned(store, given):
    """A pipeline that is exposed to both plugins."""
    target = {"data": "synthetic:near", "train_size": 200, "test_size": 200 if given.quick else 1000}
    return trained.asked(TUNED, target, store)


def lots(given):
    """The seeds of the pipeline that is held against itself, ten a gate of five."""
    return range(500_000, 500_040) if given.quick else range(10 * given.gates)


def aa(store, given):
    """A pipeline against itself under other seeds."""
    one = tuned(store, given)
    trained.train(one, lots(given))
    return itself(one, lots(given), 5)


def itself(one, seeds, S):
    """The outcomes of gates between neighbouring lots of S seeds."""
    runs = [trained.run(one.at(first, S)) for first in seeds[: len(seeds) // (2 * S) * 2 * S : S]]
    found = [decided(*pair) for pair in zip(runs[::2], runs[1::2], strict=True)]
    shown = percent(sum(any(map(by_interval, one.values())) for one in found), len(found))
    rows = [{"outcome": ANY, "gates": len(found)} | shares(map(altogether, found)) | {"worse by the interval": shown}]
    for name in found[0]:
        changes = 100 * np.array([one[name].change for one in found])
        told = {"change in points": f"{changes.mean():+.2f} (sd {changes.std(ddof=1):.2f})"}
        told["of it in the accepted"] = f"{100 * np.mean([one[name].before for one in found]):.1f}"
        told["worse by the interval"] = percent(sum(by_interval(one[name]) for one in found), len(found))
        rows.append({"outcome": name, "gates": len(found)} | shares([one[name].decision for one in found]) | told)
    return rows


def altogether(outcomes):
    """What a gate says in all: worse where anything is, not worse where everything is."""
    words = [one.decision for one in outcomes.values()]
    return next((word for word in WORDS if word in words), words[0])


def by_interval(outcome):
    """Whether the interval itself shows a change above the margin, whatever the runs' own verdicts are."""
    return outcome.p_worse is not None and outcome.p_worse < ALPHA


def pooled(one, given):
    """Whether each network of a pipeline answered each test image rightly, by arm."""
    trained.train(one, lots(given))
    return trained.right(one, lots(given))


def drawn(pool, rng, S):
    """Answers of two lots of S seeds that share none, on as many test images as there are, drawn with replacement."""
    seeds, N = pool["subject"].shape
    taken, examples = rng.choice(seeds, 2 * S, replace=False), rng.integers(N, size=N)
    return tuple({name: right[part][:, examples] for name, right in pool.items()} for part in (taken[:S], taken[S:]))


def held(one, S, sides):
    """The outcomes of a gate between two lots of S drawn seeds."""
    return decided(*(trained.imagined(one.at(S * rank, S), side) for rank, side in enumerate(sides)))


def edge(store, given):
    """The same with a harm of exactly the margin put into the candidate's subject, so that all outcomes lie at the margin."""
    one, rows = tuned(store, given), []
    pool = pooled(one, given)
    for S, fixed, replicates in ((5, False, 2000), (5, True, 2000), (20, False, 1000), (20, True, 1000)):
        rng, found = np.random.default_rng([S, fixed]), []
        for _ in range(10 if given.quick else replicates):
            accepted, candidate = drawn(pool, rng, S)
            candidate["subject"] = moved(candidate["subject"], MARGIN, pool["subject"].mean(), rng, fixed=fixed)
            found.append(held(one, S, (accepted, candidate)))
        where = "the same images at all seeds" if fixed else "other images at each seed"
        for name in (ANY, *found[0]):
            own = [[each for each in of.values() if name in {each.id, ANY}] for of in found]
            said = [{each.decision for each in each_of} for each_of in own]
            rows.append(
                {"answers lost at": where, "S": S, "outcome": name, "gates": len(found)}
                | {word: percent(sum(word in words for words in said), len(found)) for word in WORDS[::2]}
                | {"worse by the interval": percent(sum(any(map(by_interval, each)) for each in own), len(found))}
            )
    return rows


def verdicts(store, given):
    """An unchanged pipeline whose own verdict of head-shock is open: how often is it failed for that?"""
    one, S, name, rows = tuned(store, given), 5, "head-shock/harm", []
    pool = pooled(one, given)
    cured = pool["head-shock"].mean()
    for harm in (0.0, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08):
        rng, found = np.random.default_rng([S, round(1000 * harm)]), []
        for _ in range(10 if given.quick else 500):
            sides = drawn(pool, rng, S)
            for side in sides:
                side["head-shock"] = moved(side["head-shock"], cured - pool["subject"].mean() - harm, cured, rng)
            found.append(held(one, S, sides)[name])
        rows.append(
            {
                "harm of both, in points": f"{100 * harm:g}",
                "gates": len(found),
                "own verdict FAIL": percent(sum(each.verdict == "FAIL" for each in found), len(found)),
                "worse": percent(sum(each.decision == comparison.WORSE for each in found), len(found)),
                "worse by the interval": percent(sum(map(by_interval, found)), len(found)),
            }
        )
    return rows


# planted regressions


def probe(store, *, test, images=USUAL["images"], steps=USUAL["steps"]):
    """A linear probe on so many images for so many steps, tested on so many images."""
    return trained.asked(PROBE | {"steps": steps}, {"data": "synthetic:near", "train_size": images, "test_size": test}, store)


def planted(store, given):
    """Regressions of about 2, 5 and 10 points by less training; and, drawn from these networks, of exactly so much."""
    test, pilot, judged = (200, range(510_000, 510_002), range(520_000, 520_020)) if given.quick else (4000, PILOT, JUDGED)
    usual, rows = probe(store, test=test), []
    trained.train(usual, pilot)
    trained.train(usual, judged)
    level = trained.right(usual, pilot)["subject"].mean()
    pools = {}
    for kind, sizes in WEAKER.items():
        loss = {}
        for size in sizes:
            one = probe(store, test=test, **{kind: size})
            trained.train(one, pilot)
            loss[size] = level - trained.right(one, pilot)["subject"].mean()
        for meant in MEANT:
            size = min(sizes, key=lambda size: abs(loss[size] - meant))
            one = probe(store, test=test, **{kind: size})
            trained.train(one, judged)
            pools[meant] = one
            rows += by_training(usual, one, judged, f"{size} {kind} in the place of {USUAL[kind]}", meant)
        rows += by_drawing(usual, pools, judged, kind, 10 if given.quick else 1000)
    return rows


PILOT, JUDGED = range(910_000, 910_100), range(20_000, 20_400)


def by_training(usual, one, judged, how, meant):
    """Gates on blocks of the judged seeds, the same ones for both sides."""
    by_seed = 100 * (trained.right(usual, judged)["subject"].mean(1) - trained.right(one, judged)["subject"].mean(1))
    rows = []
    for S in (5, 20):
        firsts = judged[: len(judged) // S * S : S]
        found = [decided(trained.run(usual.at(at, S)), trained.run(one.at(at, S)))["subject"] for at in firsts]
        error = by_seed.std(ddof=1) / len(by_seed) ** 0.5
        rows.append(
            {"candidate": how, "meant": f"{0 - 100 * meant:g}", "true change": f"{-by_seed.mean():.2f} ± {error:.2f}", "S": S}
            | {"sd over seeds": f"{by_seed.std(ddof=1):.2f}", "gates": len(found)}
            | shares([each.decision for each in found])
        )
    return rows


def by_drawing(usual, pools, judged, kind, replicates):
    """Gates on seeds and test images drawn from those networks, the candidate's answers moved so that the change is exact."""
    own, rows = trained.right(usual, judged)["subject"], []
    for meant in (0.0, *MEANT):
        weaker = trained.right(pools[max(meant, MEANT[0])], judged)["subject"]
        more, level = meant - (own.mean() - weaker.mean()), weaker.mean()
        for S in (5, 20):
            rng, found = np.random.default_rng([S, round(1000 * meant), len(kind)]), []
            accepted, candidate = (trained.run(one.at(judged.start, S)) for one in (usual, pools[max(meant, MEANT[0])]))
            for _ in range(replicates):
                seeds, examples = rng.choice(len(own), S, replace=False), rng.integers(own.shape[1], size=own.shape[1])
                less = moved(weaker[seeds][:, examples], more, level, rng)
                sides = trained.answering(accepted, own[seeds][:, examples]), trained.answering(candidate, less)
                found.append(decided(*sides)["subject"].decision)
            rows.append(
                {
                    "candidate": f"drawn, by {kind}",
                    "meant": f"{0 - 100 * meant:g}",
                    "true change": f"{0 - 100 * meant:.2f}",
                    "S": S,
                }
                | {"gates": replicates}
                | shares(found)
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
margin 2 points of accuracy, alpha 5 %, one look, Holm over the subject's accuracy and both harms. Only the arms subject and
cured are trained, which is all that a comparison reads: no baseline from scratch and no controls, so that a run's own PASS of
what is exposed is called INCONCLUSIVE. Pipelines, trainings, verdicts and comparisons are the package's own. In brackets exact
95 % intervals; changes in points of accuracy."""
SAID = {
    "aa": """A pipeline against itself

Full fine-tuning from a random head (all layers, rate 0.003, 30 steps of 16, BatchNorm in train mode) on 200 images, which both
plugins' cures change; accepted and candidate differ in nothing but their seeds, 0–4 and 5–9, then 10–14 and 15–19, and so on,
none used twice. S = 5, N = 1000, paired by rank. Whatever is called worse is a false alarm, and at most 5 % of the gates may
have one. Worse is what the interval shows, or what a verdict of its own says (below).""",
    "edge": """At the margin

Drawn from the networks above: twice S of their seeds, and 1000 of their test images with replacement. Of the candidate's
right answers so many are turned wrong that it is worse by exactly 2 points in expectation, and both harms larger by as much.
There, worse and not worse are both wrong, and either may be said of one or more of the three at most 5 % of the time.""",
    "verdicts": """The same pipeline, where its own verdict is open

A FAIL where the accepted run had shown the harm to be below the margin is called worse, too. Drawn likewise, both sides alike,
head-shock's cured arm made so much worse that the harm is as told; S = 5. There is no change to be found. (Were a FAIL that the
accepted run had left open called worse as well, 10 to 21 % would be at 4 to 8 points: so it was at first, and was changed.)""",
    "planted": """Planted regressions

A linear probe (rate 0.01, 150 steps of 32, 200 images) is accepted; the candidate has fewer images or fewer steps, and the same
seeds. N = 4000. How many is taken from a list: that whose loss over 100 seeds apart was nearest to 2, 5 and 10 points. Gates
take blocks of 400 other seeds, whose mean is the true change (± its standard error). Drawn: seeds and test images (with
replacement) of the same networks, the candidate's answers then moved at random until the change is exact in expectation; for 0
those of the candidate that lost about 2. Worse is caught, not worse is missed; of a change of 10, 95 % are to be caught.""",
    "places": """The same commit on other computers

Accepted with one thread, one worker and the instructions that torch, oneDNN and MKL choose here; each other run has an empty
store. Answers that differ: of the subject, over all seeds and test images. The largest change is that of any outcome.""",
    "light": """Without PyTorch

A finished run held against an accepted one, in an environment without torch: whole processes, wall clock, report written.""",
}


ASKED = (
    *("suite gate", "computer", "what", "answers lost at", "harm of both, in points", "candidate", "meant", "true change"),
    *("sd over seeds", "S", "outcome", "gates"),
)


def page(rows):
    """The committed tables."""
    lines = [HEAD, f"Measured on a CPU ({processor_name()}), one thread. Again: `python tests/benchmarks/gate.py`."]
    for part, said in SAID.items():
        own = [{name: value for name, value in row.items() if name != "part" and value} for row in rows if row["part"] == part]
        if own:
            columns = ordered(own)
            lines += ["", f"## {said}", "", f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
            lines += [f"| {' | '.join(row.get(name, '–') for name in columns)} |" for row in own]
    return "\n".join(lines) + "\n"


def ordered(rows):
    """Columns of some rows: what was asked, how often, and what was found."""
    found = dict.fromkeys(name for row in sorted(rows, key=len, reverse=True) for name in row)
    return sorted(found, key=lambda name: ASKED.index(name) if name in ASKED else len(ASKED))


def written(out, part, rows):
    """Put the rows of a part in the place of those that are there, and write gate.csv and gate.md."""
    file = out / "gate.csv"
    there = list(csv.DictReader(file.read_text(encoding="utf-8").splitlines())) if file.is_file() else []
    rows = [{"part": part} | {name: str(value) for name, value in row.items()} for row in rows]
    rows = sorted([*(row for row in there if row["part"] != part), *rows], key=lambda row: list(SAID).index(row["part"]))
    with file.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.DictWriter(opened, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    (out / "gate.md").write_text(page(rows), encoding="utf-8")


def main():
    """Measure what is asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--only", nargs="+", choices=PARTS)
    parser.add_argument("--python", type=Path, help="an interpreter without torch, for the part light")
    parser.add_argument("--gates", type=int, default=200, help="of a pipeline against itself, ten networks of each arm a gate")
    parser.add_argument("--quick", action="store_true", help="a few of each on other seeds, to see that it works")
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for part in given.only or [part for part in PARTS if part != "light" or given.python]:
            begun = perf_counter()
            written(
                given.out,
                part,
                PARTS[part](given.store or Path(folder) / "store.sqlite", given),
            )
            print(part, f"{perf_counter() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    main()
