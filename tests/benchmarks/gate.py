"""How often the gate is wrong, and what it catches: against itself, at the margin, with planted regressions, on other machines.

    python tests/benchmarks/gate.py [--store FILE] [--only aa edge planted places light] [--out reports/benchmarks]

All networks are trained at first and kept in the store by their content: a run that was stopped goes on, and a later gate judges
the same records again in seconds. ``--train`` does no more than that. Parts that are not measured keep their rows of the table
that is there. ``light`` needs ``--python``, an interpreter with xferbench and without torch.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import trained
from scipy.stats import binomtest

sys.path.insert(0, str(Path(__file__).parents[1]))

from factory import make_told

from xferbench import compared
from xferbench.record import Cell, Record

ALPHA, MARGIN = 0.05, 0.02
NEAR = {"data": "synthetic:near", "train_size": 200}
TUNED = {"strategy": "full", "lr": 3e-3, "steps": 30, "batch_size": 16}  # exposed to both plugins, and quick
PROBE = {"strategy": "linear-probe", "lr": 1e-2}
SIZES = (20, 30, 40, 50, 60, 70, 80, 100, 120, 140, 160, 180)  # training images among which a regression is looked for
PILOT = range(910_000, 910_100)
WORDS = (compared.WORSE, compared.CANNOT_TELL, compared.NOT_WORSE)


# one gate


def decided(accepted, candidate):
    """The outcomes of a gate by id."""
    return {one.id: one for one in compared.compare(accepted, candidate).outcomes}


def imagined(template, first, arms):
    """A run whose arms, ``subject`` and each plugin's cure, answer as told: [S, N] each, at the seeds from ``first`` on."""
    seeds = len(arms["subject"])
    told = {
        (name, seed): Record(key=f"{id(right)}/{name}/{seed}", predictions=make_told(right[seed]))
        for name, right in arms.items()
        for seed in range(seeds)
    }
    cells = tuple(
        Cell(plugin=plugin, arm=arm, variant="", view="test", seed=first + seed, record=told[name, seed], recipe="")
        for plugin in trained.PLUGINS
        for arm, name in (("subject", "subject"), ("cured", plugin if plugin in arms else "subject"))
        for seed in range(seeds)
    )
    return replace(template, cells=cells, suite={**template.suite, "looks": (seeds,), "seed": first})


def lost(right, share, rng, *, fixed):
    """Right answers [S, N] turned wrong with a probability: for all seeds alike (``fixed``), or at each afresh."""
    return right & ~(rng.random((1 if fixed else len(right), right.shape[1])) < share)


def moved(right, harm, accuracy, rng):
    """Answers [S, N] of a known mean accuracy, made worse by ``harm`` in expectation; below 0 better."""
    flipped = rng.random(right.shape)
    return right & (flipped >= harm / accuracy) if harm >= 0 else right | (flipped < -harm / (1 - accuracy))


# the parts


def aa(store, quick):
    """A pipeline held against itself under other seeds."""
    gates, S, one = (4 if quick else 200), 5, tuned(store, quick)
    trained.train(one, range(2 * S * gates))
    found = [
        decided(trained.run(one.at(2 * S * at, S)), trained.run(one.at(2 * S * at + S, S))) for at in range(gates)
    ]
    rows = []
    for name in ("any of them", *found[0]):
        words = [any_of(one) if name == "any of them" else one[name].decision for one in found]
        changes = [100 * one[name].change for one in found] if name in found[0] else []
        rows.append(
            {"outcome": name, "gates": gates}
            | shares(words)
            | {
                "change in points, mean and sd over gates": f"{np.mean(changes):+.2f}, {np.std(changes):.2f}" if changes else "–",
                "accepted": f"{np.mean([one[name].before for one in found]):.3f}" if changes else "–",
            }
        )
    return rows


def any_of(outcomes):
    """What a gate says in all: worse where anything is, not worse where everything is."""
    words = [one.decision for one in outcomes.values()]
    return next((word for word in WORDS if word in words), words[0])


def shares(words):
    """How often each decision was taken, as a share with an exact 95 % interval of the first."""
    counts, total = Counter(words), len(words)
    interval = binomtest(counts[compared.WORSE], total).proportion_ci()
    told = f"{percent(counts[compared.WORSE], total)} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
    rest = {word: percent(counts[word], total) for word in WORDS[1:]}
    others = total - sum(counts[word] for word in WORDS)
    return {"worse": told} | rest | ({"others": str(others)} if others else {})


def percent(count, total):
    """A share in words."""
    return f"{100 * count / total:.1f} %"


def tuned(store, quick):
    """The exposed pipeline of the first part."""
    return trained.asked(TUNED, NEAR | {"test_size": 200 if quick else 1000}, store)


def edge(store, quick):
    """The same with a harm of exactly the margin put into the candidate's subject, so that all outcomes lie at the margin."""
    replicates, one = (20 if quick else 2000), tuned(store, quick)
    pool = trained.right(one, range(40 if quick else 2000))
    template, share, rows = trained.run(one.at(0, 5)), MARGIN / pool["subject"].mean(), []
    for S, fixed in ((5, False), (5, True), (20, False), (20, True)):
        rng, found = np.random.default_rng([S, fixed]), []
        for _ in range(replicates):
            accepted, candidate = drawn(pool, rng, S)
            candidate["subject"] = lost(candidate["subject"], share, rng, fixed=fixed)
            found.append(decided(imagined(template, 0, accepted), imagined(template, S, candidate)))
        for name in ("any of them", *found[0]):
            said = [{one[name].decision} if name in one else {each.decision for each in one.values()} for one in found]
            rows.append(
                {"harm put in": "the same examples at all seeds" if fixed else "other examples at each seed", "S": S}
                | {"outcome": name, "replicates": replicates}
                | {f"called {word}": percent(sum(word in words for words in said), replicates) for word in WORDS[::2]}
            )
    return rows


def drawn(pool, rng, S):
    """Answers of two lots of S seeds that share none, on as many examples as there are, drawn with replacement."""
    seeds, N = pool["subject"].shape
    seeds, examples = rng.choice(seeds, 2 * S, replace=False), rng.integers(N, size=N)
    return tuple({name: right[part][:, examples] for name, right in pool.items()} for part in (seeds[:S], seeds[S:]))


def planted(store, quick):
    """Regressions of about 2, 5 and 10 points by fewer training images; and, drawn from these networks, of exactly so much."""
    test, judged = (200, range(20_000, 20_020)) if quick else (4000, range(20_000, 20_400))
    pilot, wanted = PILOT[: 2 if quick else 100], (0.02, 0.05, 0.1)
    one = probe(store, 200, test)
    trained.train(one, pilot)
    trained.train(one, judged)
    drops = {}
    for size in SIZES:
        trained.train(probe(store, size, test), pilot)
        drops[size] = trained.right(one, pilot)["subject"].mean() - trained.right(probe(store, size, test), pilot)["subject"].mean()
    taken = {harm: min(SIZES, key=lambda size: abs(drops[size] - harm)) for harm in wanted}
    for size in taken.values():
        trained.train(probe(store, size, test), judged)
    return [*by_training(one, taken, judged, store, test), *by_drawing(one, taken, judged, store, test, 10 if quick else 1000)]


def probe(store, size, test):
    """A linear probe on so many images, judged on so many."""
    return trained.asked(PROBE, {"data": "synthetic:near", "train_size": size, "test_size": test}, store)


def by_training(one, taken, judged, store, test):
    """Gates on blocks of the judged seeds, the same ones for both sides."""
    rows, base = [], trained.right(one, judged)["subject"]
    for harm, size in taken.items():
        other = probe(store, size, test)
        by_seed = (base.astype(float) - trained.right(other, judged)["subject"]).mean(1)
        for S in (5, 20):
            blocks = range(judged.start, judged.stop - S + 1, S)
            found = [decided(trained.run(one.at(at, S)), trained.run(other.at(at, S)))["subject"].decision for at in blocks]
            rows.append(
                {
                    "how": f"trained: {size} images in the place of 200",
                    "meant": f"−{100 * harm:g}",
                    "true change in points": f"−{100 * by_seed.mean():.2f} ± {100 * by_seed.std(ddof=1) / len(by_seed) ** 0.5:.2f}",
                    "S": S,
                    "gates": len(found),
                }
                | regressed(found)
            )
    return rows


def by_drawing(one, taken, judged, store, test, replicates):
    """Gates on networks and test images drawn from those, the candidate's answers moved so that the change is exact."""
    base, rows = trained.right(one, judged)["subject"], []
    template = trained.run(one.at(judged.start, 5))
    for harm in (0.0, *taken):
        near = min(taken, key=lambda has: abs(has - harm))
        other = trained.right(probe(store, taken[near], test), judged)["subject"]
        own, there = harm - (base.mean() - other.mean()), other.mean()
        for S in (5, 20):
            rng, found = np.random.default_rng([S, round(1000 * harm)]), []
            for _ in range(replicates):
                seeds, examples = rng.choice(len(base), S, replace=False), rng.integers(test, size=test)
                candidate = moved(other[seeds][:, examples], own, there, rng)
                runs = (imagined(template, 0, {"subject": right}) for right in (base[seeds][:, examples], candidate))
                found.append(decided(*runs)["subject"].decision)
            rows.append(
                {
                    "how": f"drawn from the networks on 200 and on {taken[near]} images",
                    "meant": f"−{100 * harm:g}" if harm else "0",
                    "true change in points": f"−{100 * harm:.2f}" if harm else "0",
                    "S": S,
                    "gates": replicates,
                }
                | regressed(found)
            )
    return rows


def regressed(words):
    """Decisions as shares."""
    told = shares(words)
    return {"worse (caught)": told.pop("worse"), "cannot tell": told.pop(WORDS[1]), "not worse (missed)": told.pop(WORDS[2])} | told


PARTS = {"aa": aa, "edge": edge, "planted": planted}
