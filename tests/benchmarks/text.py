"""What adapts a sentence encoder to 200 labeled texts, and what it costs to serve it wrongly.

    python tests/benchmarks/text.py --encoder FOLDER --texts FOLDER [--tasks trec reviews] [--parts servings recipes]
        [--store FILE] [--out reports/benchmarks]

``--encoder`` is a folder of transformers; the table has all-MiniLM-L6-v2 (BERT, 6 layers of width 384). ``--texts`` has TREC's
questions and Pang and Lee's movie reviews as ``TREC.train.all``, ``TREC.test.all`` and ``rt-polarity.all``: the label, then the
text. Each part uses three seeds; a store makes the script continue where it stopped.

Servings: the linear probe, served with one mistake. Recipes: 75 steps of 16 examples, 150 for the linear probe, at the rates in
their names.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from pathlib import Path

import numpy as np

import xferbench
from xferbench.config import loader
from xferbench.runner.environment import processor_name

SEEDS, TRAIN, TEST = 3, 200, 500
TREC_NAMES = ("description", "entity", "abbreviation", "human", "number", "location")
STEPS = {"steps": 75, "batch_size": 16}
RECIPES = (
    {"name": "linear-probe", "strategy": "linear-probe", "lr": 1e-2, "steps": 150, "batch_size": 16},
    *({"name": f"full-{lr:g}", "strategy": "full", "lr": lr, "head_lr": 1e-3, **STEPS} for lr in (2e-5, 1e-4, 3e-4, 2e-3)),
    {"name": "lp-ft-1e-4", "strategy": "lp-ft", "lr": 1e-4, **STEPS},
    {"name": "lora-1e-3", "strategy": "lora", "lr": 1e-3, **STEPS},
    *({"name": f"prompt-tuning-{lr:g}", "strategy": "prompt-tuning", "lr": lr, **STEPS} for lr in (1e-2, 3e-2)),
    *({"name": f"prefix-tuning-{lr:g}", "strategy": "prefix-tuning", "lr": lr, **STEPS} for lr in (1e-2, 3e-2)),
    *({"name": f"scratch-{lr:g}", "strategy": "scratch", "lr": lr, **STEPS} for lr in (1e-4, 5e-4, 2e-3)),
)


def read_lines(file, split):
    """Return the rows of a file whose lines are a label and a text; a file without splits is divided at random."""
    lines = [line.split(" ", 1) for line in file.read_text(encoding="latin-1").split("\n") if line.strip()]
    if split:
        return [(text.strip(), TREC_NAMES[int(label)], split) for label, text in lines]
    is_test = np.random.default_rng(0).permutation(len(lines)) < 2000
    names = ("negative", "positive")
    return [
        (text.strip(), names[int(label)], "test" if test else "train")
        for (label, text), test in zip(lines, is_test, strict=True)
    ]


def write_tables(texts, folder):
    """Write the tables of both tasks, and return their paths by name."""
    rows = {
        "trec": [row for split in ("train", "test") for row in read_lines(texts / f"TREC.{split}.all", split)],
        "reviews": read_lines(texts / "rt-polarity.all", ""),
    }
    paths = {name: folder / f"{name}.csv" for name in rows}
    for name, path in paths.items():
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("text", "label", "split"), *rows[name]])
    return paths


def suite_table(encoder, **keys):
    """Return the table of a suite with the encoder."""
    backbone = {"arch": f"transformers:{encoder}", "weights": str(encoder)}
    common = {"schema": 1, "looks": [SEEDS], "tuning_seeds": 1, "budget": "50h", "margin": 0.05, "backbone": backbone}
    return common | {"scratch": {"lr": [5e-4], "label_smoothing": [0.0], "halvings": 0, **STEPS}} | keys


def measure_servings(task, table, encoder, store):
    """Yield a row for each mistake in serving the linear probe."""
    recipe = {key: value for key, value in RECIPES[0].items() if key != "name"}
    target = {"data": f"csv:{table}", "train_size": TRAIN, "test_size": TEST}
    keys = {"plugins": ["preprocessing-mismatch", "train-serve-skew"], "target": target, "recipe": recipe}
    suite = loader.parse_suite(suite_table(encoder, name=f"{task}-servings", **keys), Path("servings.toml").resolve())
    run = xferbench.run(suite, store=store, device="cpu")
    seen = set()
    for finding in run.findings:
        variant = finding.control.variant
        if variant and variant not in seen and finding.control.harm is not None:
            seen.add(variant)
            yield {
                "task": task,
                "part": "servings",
                "name": variant,
                "accuracy": finding.accuracy["subject"] - finding.control.harm,
                "right": finding.accuracy["subject"],
                "cost": finding.control.harm,
                "low": finding.control.low,
                "high": finding.control.high,
            }


def measure_recipes(task, table, encoder, store):
    """Yield a row for each recipe."""
    matrix = {"targets": [{"name": task, "data": f"csv:{table}", "test_size": TEST}], "train_sizes": [TRAIN]}
    suite = suite_table(encoder, name=f"{task}-recipes", plugins=[], matrix=matrix | {"recipes": list(RECIPES)})
    frame = xferbench.cross(loader.parse_suite(suite, Path("recipes.toml").resolve()), store=store, device="cpu").to_frame()
    for name, rows in frame.groupby("recipe", sort=False):
        accuracy = rows["accuracy"]
        yield {
            "task": task,
            "part": "recipes",
            "name": name,
            "accuracy": accuracy.mean(),
            "low": accuracy.min(),
            "high": accuracy.max(),
        }


def page(rows):
    """Return the tables."""
    lines = ["# A sentence encoder with 200 labeled texts", "", (__doc__ or "").split("\n\n", 2)[2].strip(), ""]
    lines += [f"{TRAIN} training and at most {TEST} test texts, {SEEDS} seeds. {processor_name()}, two cores.", ""]
    if servings := [row for row in rows if row["part"] == "servings"]:
        lines += ["| task | served | accuracy | right | cost in points [95 % bounds] |", "|---|---|---|---|---|"]
        lines += [
            f"| {row['task']} | {row['name']} | {percent(row['accuracy'])} | {percent(row['right'])} | "
            f"{100 * float(row['cost']):+.1f} [{100 * float(row['low']):+.1f}, {100 * float(row['high']):+.1f}] |"
            for row in servings
        ]
        lines += [""]
    if recipes := [row for row in rows if row["part"] == "recipes"]:
        lines += ["| task | recipe | accuracy | of the seeds |", "|---|---|---|---|"]
        lines += [
            f"| {row['task']} | {row['name']} | {percent(row['accuracy'])} | {percent(row['low'])} to {percent(row['high'])} |"
            for row in recipes
        ]
    return "\n".join(lines) + "\n"


def percent(share):
    """Return a share in percent, or a dash."""
    return "–" if share in {None, ""} else f"{100 * float(share):.1f}"


MEASURES = {"servings": measure_servings, "recipes": measure_recipes}
FIELDS = ("task", "part", "name", "accuracy", "right", "cost", "low", "high")


def main():
    parser = argparse.ArgumentParser(description="Measure recipes and wrong servings of a sentence encoder.")
    parser.add_argument("--encoder", type=Path, required=True)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", choices=("trec", "reviews"), default=["trec", "reviews"])
    parser.add_argument("--parts", nargs="+", choices=MEASURES, default=list(MEASURES))
    parser.add_argument("--store", type=Path)
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks"))
    arguments = parser.parse_args()
    file = arguments.out / "text.csv"
    rows = list(csv.DictReader(file.open(encoding="utf-8"))) if file.exists() else []
    with tempfile.TemporaryDirectory() as folder:
        tables = write_tables(arguments.texts, Path(folder))
        for part in arguments.parts:
            for task in arguments.tasks:
                store = arguments.store or Path(folder) / "store.sqlite"
                rows = [row for row in rows if (row["task"], row["part"]) != (task, part)]
                rows += MEASURES[part](task, tables[task], arguments.encoder.resolve(), store)
                with file.open("w", encoding="utf-8", newline="") as stream:
                    writer = csv.DictWriter(stream, FIELDS, lineterminator="\n")
                    writer.writeheader()
                    writer.writerows(rows)
                (arguments.out / "text.md").write_text(page(rows), encoding="utf-8")
                print(task, part, "done", flush=True)


if __name__ == "__main__":
    main()
