"""Audits of text classifiers that plain scripts have fine-tuned with transformers and peft: what was planted and named.

    python tests/benchmarks/audit_text.py --encoder FOLDER --texts FOLDER [--cases NAME …] [--keep FOLDER]
        [--out reports/benchmarks]

``--encoder`` is a folder of transformers; the table has all-MiniLM-L6-v2. ``--texts`` has TREC's questions and the movie
reviews, as in text.py. A script trains on 600 texts, and the audit receives its folder, the encoder that it started from, the
training texts and 500 test texts. The scripts (plain_text.py) use nothing of this package. What is planted, and which findings
name it, was written down before the first audit.

A planted fault is a hit if one of its admissible findings is FAIL. Every other FAIL is listed, and so are the findings that
stay INCONCLUSIVE. A healthy network is clean if nothing is FAIL. If something is, the audit is repeated on 500 texts that
neither the script nor the first audit has seen: the outcome is a confirmed side effect if every FAIL is FAIL there too, and
else a false alarm. Margin 5 points of accuracy. Each finished case is a row of ``audit-text.csv``, so that the script continues
where it stopped.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from time import process_time

import numpy as np
import torch
from plain_text import train_network
from text import read_lines

import xferbench
from xferbench.config import loader
from xferbench.report.format import unit_scale
from xferbench.runner.environment import processor_name

TRAIN, TEST = 600, 500
HEAD, ALL = "trainable=head,batchnorm=eval", "trainable=all,batchnorm=train"
COLUMNS = ("case", "task", "planted", "admissible", "named by", "also flagged", "undecided", "accuracy", "outcome", "seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One audit.

    Attributes:
        script: the script that trains the network.
        task: ``trec`` or ``reviews``.
        planted: what is planted, or "" for a healthy network.
        admissible: the findings that name it.
        believed: what the author of the script believes that it trains, or "" for nothing stated.
        recipe: the table [recipe] of the suite, as the author states the serving.
        tokenizer: changes of ``tokenizer_config.json`` and of the normalizer in ``tokenizer.json`` of the saved folder.
        leaks: number of test texts that are also in training.
    """

    script: str
    task: str
    planted: str = ""
    admissible: tuple[str, ...] = ()
    believed: str = ALL
    recipe: dict[str, object] = field(default_factory=dict)
    tokenizer: dict[str, object] = field(default_factory=dict)
    leaks: int = 0


FORM, SERVED = ("preprocessing-mismatch",), ("train-serve-skew", "preprocessing-mismatch")
UNLEARNED = ("audit/linear-probe", "audit/collapse")


def served(**tokens):
    """Return a table [recipe] that states a serving of texts."""
    return {"serve_preprocessing": {"kind": "text", **tokens}}


CASES = {
    "healthy: full": Case(script="full", task="trec"),
    "healthy: full, reviews": Case(script="full", task="reviews"),
    "healthy: linear probe": Case(script="linear probe", task="trec", believed=HEAD),
    "healthy: LP-FT": Case(script="LP-FT", task="trec"),
    "healthy: LP-FT, reviews": Case(script="LP-FT", task="reviews"),
    "healthy: LoRA": Case(script="LoRA", task="trec", believed=""),
    "cased": Case(
        script="full",
        task="trec",
        planted="the saved tokenizer keeps upper case; the network was trained in lower case",
        admissible=FORM,
        tokenizer={"do_lower_case": False},
    ),
    "no special tokens": Case(
        script="without special tokens",
        task="trec",
        planted="trained without [CLS] and [SEP]; the saved tokenizer adds them",
        admissible=FORM,
    ),
    "padding side": Case(
        script="left-padded",
        task="trec",
        planted="trained padded on the left; the saved tokenizer pads on the right",
        admissible=FORM,
    ),
    "unmasked": Case(
        script="full",
        task="trec",
        planted="served with 32 more tokens of padding and without the attention mask",
        admissible=SERVED,
        recipe=served(masked=False, extra_padding=32),
    ),
    "truncated": Case(
        script="full", task="trec", planted="served with the first 5 tokens", admissible=SERVED, recipe=served(max_length=5)
    ),
    "train mode": Case(
        script="full",
        task="trec",
        planted="served in train mode, with dropout",
        admissible=("train-serve-skew",),
        recipe={"serve_mode": "train"},
    ),
    "label order": Case(
        script="swapped labels", task="trec", planted="classes numbered by first appearance", admissible=("audit/class-order",)
    ),
    "adapter without head": Case(
        script="LoRA without head",
        task="trec",
        planted="a merged adapter whose head was drawn again",
        admissible=(*UNLEARNED, "freeze-integrity"),
        believed="",
    ),
    "frozen in name only": Case(
        script="frozen in name only",
        task="trec",
        planted="model.requires_grad = False: believed frozen, everything moved",
        admissible=("freeze-integrity",),
        believed=HEAD,
    ),
    "early optimizer": Case(
        script="early optimizer",
        task="trec",
        planted="optimizer built before unfreezing: believed trained, only the head moved",
        admissible=("freeze-integrity",),
    ),
    "never loaded": Case(
        script="never loaded",
        task="trec",
        planted="built from the configuration: the pretrained weights were never loaded",
        admissible=("freeze-integrity", *UNLEARNED),
    ),
    "shuffled labels": Case(
        script="shuffled labels", task="trec", planted="labels in another order than the texts", admissible=UNLEARNED
    ),
    "high rate": Case(script="high rate", task="trec", planted="all layers at 2e-3", admissible=UNLEARNED),
    "low rate": Case(script="low rate", task="trec", planted="all layers at 2e-5 for 76 steps", admissible=UNLEARNED),
    "leak": Case(
        script="full", task="reviews", planted="50 test texts are in training too", admissible=("data-leakage",), leaks=50
    ),
}


def task_rows(texts, task):
    """Return the training rows, the test rows and the reference rows of a task, each a text and its class."""
    if task == "trec":
        splits = [read_lines(texts / f"TREC.{split}.all", split) for split in ("train", "test")]
    else:
        rows = read_lines(texts / "rt-polarity.all", "")
        splits = [[row for row in rows if row[2] == split] for split in ("train", "test")]
    rng = np.random.default_rng(0)  # the reviews are sorted by class
    splits = [[rows[index] for index in rng.permutation(len(rows))] for rows in splits]
    parts = splits[0][:TRAIN], splits[1][:TEST], splits[0][TRAIN : TRAIN + TEST]
    return tuple([row[:2] for row in part] for part in parts)


def write_table(path, train, test):
    """Write a table of texts with both splits."""
    rows = [(*row, "train") for row in train] + [(*row, "test") for row in test]
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label", "split"), *rows])


def change_tokenizer(source, folder, changes):
    """Copy a saved folder, and change its tokenizer."""
    shutil.copytree(source, folder, dirs_exist_ok=True)
    for name in ("tokenizer_config.json", "tokenizer.json"):
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        if name == "tokenizer_config.json":
            content |= changes
        else:
            content["normalizer"]["lowercase"] = changes["do_lower_case"]
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder


def audit_case(name, encoder, texts, work):
    """Train the network of a case, audit it, and return a row."""
    case = CASES[name]
    train, test, reference = task_rows(texts, case.task)
    table, other_table = work / f"{case.task}-{case.leaks}.csv", work / f"{case.task}-reference.csv"
    write_table(table, train[case.leaks :] + test[: case.leaks], test)
    write_table(other_table, train, reference)
    classes = sorted({label for _, label in train})
    after = work / f"{case.script}-{case.task}".replace(" ", "-")
    rows = [text for text, _ in train], [classes.index(label) for _, label in train]
    train_network(case.script, encoder, after, len(classes), *rows)
    if case.tokenizer:
        after = change_tokenizer(after, work / f"{after.name}-changed", case.tokenizer)
    start = process_time()
    run = run_audit(case, after, encoder, table, work)
    seconds = process_time() - start
    failed = findings_with(run, "FAIL")
    if failed and not case.planted:
        again = {finding.id for finding in findings_with(run_audit(case, after, encoder, other_table, work), "FAIL")}
        return row_of(name, case, run, seconds, confirmed=again.issuperset(finding.id for finding in failed))
    return row_of(name, case, run, seconds)


def run_audit(case, after, encoder, table, work):
    """Audit a folder with the texts of a table, and return the run."""
    checkpoint = {"after": str(after), "before": str(encoder)} | ({"believed": case.believed} if case.believed else {})
    suite = {
        "schema": 1,
        "name": "audit-text",
        "plugins": ["all"],
        "margin": 0.05,
        "backbone": {"arch": f"transformers:{after}"},
        "target": {"data": f"csv:{table}", "test_size": TEST},
        "checkpoint": checkpoint,
        **({"recipe": case.recipe} if case.recipe else {}),
    }
    return xferbench.run(loader.parse_suite(suite, work / "audit.toml"), store=work / "store.sqlite", device="cpu")


def findings_with(run, verdict):
    """Return the findings with a verdict."""
    return [finding for finding in run.findings if finding.verdict == verdict]


def row_of(name, case, run, seconds, *, confirmed=False):
    """Return the row of an audit."""
    failed = findings_with(run, "FAIL")
    named = [finding for finding in failed if short_id(finding) in case.admissible]
    others = [finding for finding in failed if finding not in named]
    undecided = findings_with(run, "INCONCLUSIVE")
    accuracy = next((finding.accuracy["subject"] for finding in run.findings if "subject" in finding.accuracy), float("nan"))
    healthy = "clean" if not failed else "confirmed side effect" if confirmed else "false alarm"
    outcome = ("hit" if named else "miss") if case.planted else healthy
    return {
        "case": name,
        "task": case.task,
        "planted": case.planted or "nothing",
        "admissible": "; ".join(case.admissible) or "–",
        "named by": list_findings(named),
        "also flagged": list_findings(others),
        "undecided": list_findings(undecided),
        "accuracy": f"{accuracy:.3f}",
        "outcome": outcome,
        "seconds": f"{seconds:.0f}",
    }


def short_id(finding):
    """Return the plugin of a finding; checks of audits alone have the prefix audit/."""
    return finding.plugin


def list_findings(findings):
    """Return findings in words; those that differ only in the variant of their control are one."""
    return "; ".join(dict.fromkeys(map(describe, findings))) or "–"


def describe(finding):
    """Return a finding with its harm and bounds, in the unit of its metric."""
    name = finding.id.removesuffix(f"/{finding.control.variant}" if finding.control.variant else "").removesuffix("/harm")
    if finding.estimate.harm is None:
        return f"{name} (exact)"
    scale, digits = unit_scale(finding.estimate.unit)
    harm, low, high = (f"{scale * value:+.{digits}f}" for value in finding.estimate.bounds)
    return f"{name} {harm} [{low}, {high}]"


def page(rows):
    """Return the table."""
    planted = [row for row in rows if row["planted"] != "nothing"]
    healthy = [row for row in rows if row["planted"] == "nothing"]
    lines = ["# What audits find in text classifiers that plain scripts have fine-tuned", ""]
    lines += [(__doc__ or "").split("\n\n", 2)[2].strip().replace("``", "`"), ""]
    hits, clean = (sum(row["outcome"] == word for row in rows) for word in ("hit", "clean"))
    lines += [
        f"Planted: {len(planted)}; {hits} hit. Healthy: {len(healthy)}; {clean} clean. Harm is in points of accuracy.",
        f"{processor_name()}, torch {torch.__version__.partition('+')[0]}. Seconds: processor time of the parent process.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"|{'---|' * len(COLUMNS)}",
    ]
    return "\n".join([*lines, *(f"| {' | '.join(row[name] for name in COLUMNS)} |" for row in rows)]) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", type=Path, required=True)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--keep", type=Path, help="folder of the trained networks, for another run")
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    table = options.out / "audit-text.csv"
    rows = list(csv.DictReader(table.open(encoding="utf-8"))) if table.exists() else []
    with tempfile.TemporaryDirectory() as temporary:
        work = options.keep or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        for name in options.cases:
            if any(row["case"] == name for row in rows):
                continue
            rows.append(audit_case(name, options.encoder.resolve(), options.texts, work.resolve()))
            print(*(f"{key}: {value}" for key, value in rows[-1].items()), sep="\n  ", flush=True)
            with table.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
            (options.out / "audit-text.md").write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
