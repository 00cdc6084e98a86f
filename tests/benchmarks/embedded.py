"""The healthy default under every plugin: five base runs for each target, each compared with the seeds of the other four.

    python tests/benchmarks/embedded.py [--store FILE] [--targets near …] [--shared FOLDER] [--out reports/benchmarks]
    python tests/benchmarks/embedded.py --targets text-near text-letters text-number --name embedded-text

``fashion`` (ResNet-20 of CIFAR-10 to Fashion-MNIST) needs ``--shared``, a folder with ``data`` and ``weights``; it
is skipped without one. The targets with texts have a page of their own.

A base run is a suite of five seeds. Its reference is the other four base runs together, that is, twenty other seeds. A FAIL of
a base run is confirmed if the lower bound of the reference is also above the margin. A control is contradicted if it is
``detected`` and its reference is ``harmless``, or the reverse. The runs share selected recipes and test images.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

from xferbench.analysis import estimates, metrics, verdict
from xferbench.config import loader
from xferbench.report import messages
from xferbench.report.format import format_harm_interval
from xferbench.runner import execute
from xferbench.runner.environment import processor_name
from xferbench.runner.store import cache_folder
from xferbench.study import findings
from xferbench.study.schedule import records_by_term, rules_for

IMAGES = {
    "near": {"data": "synthetic:near"},
    "tinted": {"data": "synthetic:tinted"},
    "sketch": {"data": "synthetic:sketch"},
    "spectra": {"data": "synthetic:spectra"},
    "digits": {"data": "digits", "test_size": 797},
    "fashion": {"data": "npz:data/fashion_mnist.npz", "test_size": 1000},
}
TEXTS = {name: {"data": f"synthetic:{name}"} for name in ("text-near", "text-letters", "text-number")}
TARGETS = IMAGES | TEXTS
BASES, SEEDS = 5, 5
TABLE = {
    "schema": 1,
    "name": "embedded",
    "plugins": ["all"],
    "margin": 0.02,
    "looks": [SEEDS],
    "tuning_seeds": 3,
    "budget": "20h",
    "backbone": {"arch": "tiny-resnet"},
    "source": {"data": "synthetic:source", "keep": True},
    "scratch": {"steps": 250},  # the search of scratch.py
}
CIFAR = {
    "backbone": {"arch": "cifar-resnet20", "weights": "weights/resnet20-12fca82f.th"},
    "source": {"data": "npz:data/cifar10.npz", "keep": True},
}
LANGUAGE = {"backbone": {"arch": "tiny-bert"}, "source": {"data": "synthetic:text-source", "keep": True}}
TABLE_CHANGES = {
    "tinted": {"shifted": {"data": "synthetic:near"}},
    "fashion": CIFAR,
    **dict.fromkeys(TEXTS, LANGUAGE),
}
IMAGES_SETTING = """\
The embedded world: tiny-resnet pretrained on `synthetic:source`, 200 training images, 2000 test images (digits: 797); `tinted`
has `synthetic:near` as its shifted set. `fashion` is ResNet-20 of CIFAR-10 on Fashion-MNIST, 200 training and 1000 test
images."""
TEXTS_SETTING = """\
The embedded language: tiny-bert pretrained on `synthetic:text-source`, 200 training and 2000 test sentences. The classes of
`text-near` are six pairs of topics; `text-letters` has them in another style, and those of `text-number` are the number of the
subject."""
OPPOSITE = {"detected": "harmless", "harmless": "detected"}


def measure(target, shared, store, bases, plugins):
    """Return a row for each contrast and variant on a target."""
    target_table = {"train_size": 200, "test_size": 2000} | TARGETS[target]
    table = TABLE | {"plugins": plugins, "target": target_table} | TABLE_CHANGES.get(target, {})
    suite = loader.parse_suite(table, (shared or Path()).resolve() / "embedded.toml")
    records = {}
    steps = [run_base(suite, SEEDS * number, store, records) for number in range(bases)]
    requests = [request for step in steps for request in step.requests]
    findings_by_run = [
        {finding.id: finding for finding in messages.write_findings(findings.build_findings(suite, step, records))}
        for step in steps
    ]
    return [
        contrast_row(
            target,
            suite,
            state,
            contrast,
            variant,
            findings_by_run,
            records_by_term(requests, state.plugin.id, records),
            bases,
        )
        for state in steps[0].states
        for _, contrast in state.contrasts("paired")
        for variant in state.variants
    ] + [
        unpaired_row(target, steps[0], finding, findings_by_run, bases)
        for finding in findings_by_run[0].values()
        if is_unpaired(steps[0], finding)
    ]


def is_unpaired(step, finding):
    """Return whether a finding is an invariant, or the only finding of a plugin that only measures."""
    state = next(state for state in step.states if state.plugin.id == finding.plugin)
    has_paired_contrast = finding.plugin in {name.partition("/")[0] for name, _ in paired_contrasts(step)}
    return not has_paired_contrast and state.plugin.has_verdict != (finding.verdict == "INFO")


def paired_contrasts(step):
    """Return the contrasts that are compared with the margin."""
    return [contrast for state in step.states for contrast in state.contrasts("paired")]


def unpaired_row(target, step, finding, findings_by_run, bases):
    """Return the row of an invariant or of a measurement, which has no harm to compare with other seeds."""
    repeats, runs = [by_id[finding.id] for by_id in findings_by_run], f"of {bases} runs"
    state = next(state for state in step.states if state.plugin.id == finding.plugin)
    seeds = f"{bases * SEEDS} seeds"
    return {
        "target": target,
        "contrast": finding.id,
        "recipe": state.arms["subject"].pipeline.recipe.name if state.arms else "–",
        f"harm, {seeds}": "an invariant" if state.plugin.has_verdict else "measured only",
        f"verdicts {runs}": write_counts(repeat.verdict for repeat in repeats),
        "FAIL unconfirmed": 0,
        f"induced costs, {seeds}": "–",
        "which is": "–",
        f"controls {runs}": write_counts(repeat.control.outcome for repeat in repeats),
        "controls contradicted": 0,
        "accuracy of subject / cured / induced / scratch": "–",
    }


def run_base(suite, first_seed, store, records):
    """Return the last step of a base run, without the measurements of plugins: the table has verdicts and controls."""
    suite = replace(suite, rules=replace(suite.rules, seed=first_seed))
    with execute.open_study(suite, store, "cpu", None) as (full_study, db, engine):
        study = replace(full_study, plugins=tuple(map(without_measurements, full_study.plugins)))
        submit = partial(execute.submit_group, engine, cache_folder(store))
        return execute.run_to_completion(study, records, db, submit, execute.WorkCounter(), lambda _: None)


def without_measurements(plugin):
    """Return a plugin without the arms and measures that lead to no verdict."""
    needed = {view for contrast in plugin.contrasts if contrast.kind == "exact" for _, view in contrast.weights}
    measures = {name: function for name, function in plugin.measures.items() if name in needed}
    return replace(plugin, extra_arms=None, measures=measures)


def contrast_row(target, suite, state, contrast, variant, findings_by_run, records, bases):
    """Return what the base runs say, and what the reference of each says, in the metric of the contrast."""
    name = f"{state.plugin.id}/{contrast.name}/{variant}"
    repeats = [by_id[name] for by_id in findings_by_run]
    rules = rules_for(contrast, suite.rules)
    margin = rules.margin
    unit = metrics.get_metric(rules.metric).unit
    all_seeds = range(bases * SEEDS)
    seeds, runs = f"{bases * SEEDS} seeds", f"of {bases} runs"
    positive_control = estimates.positive_control(contrast, variant)
    unconfirmed = contradicted = 0
    for number, finding in enumerate(repeats):
        other_seeds = [seed for seed in all_seeds if seed // SEEDS != number]
        harm = estimates.estimate_contrast(contrast, records, other_seeds, rules)
        control = estimates.estimate_contrast(positive_control, records, other_seeds, rules)
        unconfirmed += finding.verdict == "FAIL" and not harm.estimate.low > margin
        contradicted += OPPOSITE.get(finding.control.outcome) == verdict.control_outcome(control, margin)
    harm = estimates.estimate_contrast(contrast, records, all_seeds, rules)
    control = estimates.estimate_contrast(positive_control, records, all_seeds, rules)
    accuracies = [
        estimates.mean_accuracy(records, arm, all_seeds) for arm in ("subject", "cured", f"induced:{variant}", "scratch")
    ]
    return {
        "target": target,
        "contrast": name,
        "recipe": state.arms["subject"].pipeline.recipe.name,
        f"harm, {seeds}": format_harm_interval(harm.estimate, unit) if harm.exposed else "not exposed",
        f"verdicts {runs}": write_counts(repeat.verdict for repeat in repeats),
        "FAIL unconfirmed": unconfirmed,
        f"induced costs, {seeds}": format_harm_interval(control.estimate, unit),
        "which is": {"detected": "more than the margin", "harmless": "less than the margin"}.get(
            verdict.control_outcome(control, margin), "too near the margin to tell"
        ),
        f"controls {runs}": write_counts(repeat.control.outcome for repeat in repeats),
        "controls contradicted": contradicted,
        "accuracy of subject / cured / induced / scratch": " / ".join(
            "–" if accuracy is None else f"{accuracy:.3f}" for accuracy in accuracies
        ),
    }


def other_rows(path, target, plugins):
    """Return the rows of an existing table that belong to other targets or plugins, with their counts as numbers."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    counts = ("FAIL unconfirmed", "controls contradicted")
    return [
        row | {name: int(row[name]) for name in counts}
        for row in rows
        if row["target"] != target or not ("all" in plugins or row["contrast"].split("/")[0] in plugins)
    ]


def write_counts(words):
    """Write how often each word occurs."""
    return ", ".join(f"{count} {word}" for word, count in Counter(words).most_common())


def main():
    parser = argparse.ArgumentParser(description="Measure the healthy default on the embedded world.")
    parser.add_argument("--store", type=Path)
    parser.add_argument("--shared", type=Path)
    parser.add_argument("--bases", type=int, default=BASES, help="base runs of five seeds")
    parser.add_argument("--name", default="embedded", help="name of the table")
    parser.add_argument("--plugins", nargs="+", default=["all"], help="ids of plugins; default: all")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(IMAGES))
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / f"{arguments.name}.csv"
    with tempfile.TemporaryDirectory() as folder:
        for target in arguments.targets:
            if target == "fashion" and not arguments.shared:
                print("fashion is skipped: no --shared")
                continue
            store = arguments.store or Path(folder) / "store.sqlite"
            measured = measure(target, arguments.shared, store, arguments.bases, arguments.plugins)
            others = other_rows(file, target, arguments.plugins)
            rows = sorted([*others, *measured], key=lambda row: list(TARGETS).index(row["target"]))
            with file.open("w", newline="", encoding="utf-8") as stream:
                writer = csv.DictWriter(stream, rows[0], lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
            file.with_suffix(".md").write_text(page(rows, arguments.bases), encoding="utf-8")
            print(target, "done", flush=True)


def page(rows, bases):
    """Return the page of the table."""
    has_texts = {row["target"] for row in rows} <= set(TEXTS)
    head = f"""# The healthy default under every plugin, and whether {SEEDS * (bases - 1)} other seeds agree

{TEXTS_SETTING if has_texts else IMAGES_SETTING}
Margin 2 points of accuracy, alpha 5 %. There are {bases} runs of five seeds each: 0–4, 5–9 and so on. The reference of a run
consists of the {SEEDS * (bases - 1)} seeds of the other runs. The subject is the default recipe: of a linear probe and LP-FT at
two rates, the best on validation. Measured on a CPU ({processor_name()}), one thread a worker. Again:
`python tests/benchmarks/embedded.py {f"--targets {' '.join(TEXTS)}" if has_texts else "--shared FOLDER"}`.

"FAIL unconfirmed" counts the runs with a FAIL whose reference has its lower bound at or below the margin. "Controls
contradicted" counts the runs with a control that is `detected` while their reference is `harmless`, or the reverse; a control
that is `missed` is neither. Harm is in points of accuracy, with one-sided 95 % bounds.
"""
    columns = list(rows[0])
    lines = [
        " | ".join(columns),
        " | ".join("---" for _ in columns),
        *(" | ".join(str(row[name]) for name in columns) for row in rows),
    ]
    controls = {cost: Counter() for cost in dict.fromkeys(row["which is"] for row in rows) if cost != "–"}
    for row in rows:
        if row["which is"] == "–":
            continue
        for part in row[f"controls of {bases} runs"].split(", "):
            count, _, outcome = part.partition(" ")
            controls[row["which is"]][outcome] += int(count)
    unconfirmed, contradicted = (sum(row[name] for row in rows) for name in ("FAIL unconfirmed", "controls contradicted"))
    totals = [
        f"FAIL unconfirmed in all: {unconfirmed}; controls contradicted in all: {contradicted}.",
        *(f"Where an induced failure costs {cost}: {shares(outcomes)} of the runs." for cost, outcomes in controls.items()),
    ]
    return head + "\n" + "\n".join(f"| {line} |" for line in lines) + "\n\n" + "\n".join(totals) + "\n"


def shares(outcomes):
    """Write in how many runs each outcome occurs, the most frequent first."""
    return ", ".join(f"{outcome} in {count}" for outcome, count in outcomes.most_common())


if __name__ == "__main__":
    main()
