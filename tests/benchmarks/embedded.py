"""The healthy default under every plugin: five base seeds a target, each judged against twenty seeds it has not seen.

    python tests/benchmarks/embedded.py [--store FILE] [--targets near …] [--shared FOLDER] [--out reports/benchmarks]

``fashion`` (ResNet-20 of CIFAR-10 to Fashion-MNIST) needs ``--shared``, a folder with ``data`` and ``weights``; without one
it is left out.

A base run is a suite of five seeds. Its reference is the other four base runs together: twenty seeds, none of its own. A FAIL
of a base run is confirmed where its reference, too, has its lower bound above the margin; a control is contradicted where it
says ``detected`` and its reference ``harmless``, or the other way round. Runs share tuned choices and test images.
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

TARGETS = {
    "near": {"data": "synthetic:near"},
    "tinted": {"data": "synthetic:tinted"},
    "sketch": {"data": "synthetic:sketch"},
    "spectra": {"data": "synthetic:spectra"},
    "digits": {"data": "digits", "test_size": 797},
    "fashion": {"data": "npz:data/fashion_mnist.npz", "test_size": 1000},
}
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
    "source": {"data": "synthetic:source"},
    "scratch": {"lr": [3e-3, 1e-2], "weight_decay": [0.01], "steps": 300, "batch_size": 64},
}
CIFAR = {
    "backbone": {"arch": "cifar-resnet20", "weights": "weights/resnet20-12fca82f.th"},
    "source": {"data": "npz:data/cifar10.npz"},
    "scratch": {"lr": [3e-3], "weight_decay": [0.01], "steps": 150, "batch_size": 32},
}
MORE = {"tinted": {"shifted": {"data": "synthetic:near"}}, "fashion": CIFAR}
ARMS = ("subject", "cured", "induced", "scratch")
OPPOSITE = {"detected": "harmless", "harmless": "detected"}


def measure(target, shared, store, bases, plugins):
    """One row for each contrast and variant on a target."""
    given = {"train_size": 200, "test_size": 2000} | TARGETS[target]
    table = TABLE | {"plugins": plugins, "target": given} | MORE.get(target, {})
    base = loader.parse_suite(table, (shared or Path()).resolve() / "embedded.toml")
    answers = {}
    steps = [answered(replace(base, seed=SEEDS * number), store, answers) for number in range(bases)]
    asked = [one for step in steps for one in step.requests]
    found = [{one.id: one for one in messages.write_findings(findings.build_findings(base, step, answers))} for step in steps]
    return [
        row(target, base, case, contrast, variant, found, records_by_term(asked, case.plugin.id, answers), bases)
        for case in steps[0].states
        for _, contrast in case.contrasts("paired")
        for variant in case.variants
    ] + [plain(target, steps[0], one, found, bases) for one in found[0].values() if unjudged(steps[0], one)]


def unjudged(step, finding):
    """Whether a finding is an invariant, or all that there is of a plugin that only measures."""
    case = next(case for case in step.states if case.plugin.id == finding.plugin)
    judged_apart = finding.plugin in {name.partition("/")[0] for name, _ in paired(step)}
    return not judged_apart and case.plugin.has_verdict != (finding.verdict == "INFO")


def paired(step):
    """The contrasts that are judged against the margin."""
    return [one for case in step.states for one in case.contrasts("paired")]


def plain(target, step, finding, found, bases):
    """What the runs say of an invariant, or of what is only measured: there is no harm to be held against other seeds."""
    own, runs = [one[finding.id] for one in found], f"of {bases} runs"
    case = next(case for case in step.states if case.plugin.id == finding.plugin)
    seeds = f"{bases * SEEDS} seeds"
    return {
        "target": target,
        "contrast": finding.id,
        "recipe": case.arms["subject"].pipeline.recipe.name if case.arms else "–",
        f"harm, {seeds}": "an invariant" if case.plugin.has_verdict else "measured only",
        f"verdicts {runs}": counted(one.verdict for one in own),
        "FAIL unconfirmed": 0,
        f"induced costs, {seeds}": "–",
        "which is": "–",
        f"controls {runs}": counted(one.control for one in own),
        "controls contradicted": 0,
        "accuracy of subject / cured / induced / scratch": "–",
    }


def answered(base, store, answers):
    """A suite carried out, but for what its plugins only measure beside: the table has verdicts and controls."""
    with execute.open_study(base, store, "cpu", None) as (study, db, engine):
        plain = replace(study, plugins=tuple(map(judged, study.plugins)))
        ask = partial(execute.submit_group, engine, cache_folder(store))
        return execute.run_to_completion(plain, answers, db, ask, execute.WorkCounter(), lambda _: None)


def judged(plugin):
    """A plugin without what it only measures."""
    needed = {view for one in plugin.contrasts if one.kind == "exact" for _, view in one.weights}
    return replace(plugin, beside=None, measures={name: one for name, one in plugin.measures.items() if name in needed})


def row(target, base, case, contrast, variant, found, told, bases):
    """What the base runs said, and what the reference of each says, in the contrast's own metric."""
    name = f"{case.plugin.id}/{contrast.name}/{variant}"
    own = [one[name] for one in found]
    suite_ = rules_for(contrast, base)
    unit = metrics.get_metric(suite_.metric).unit
    everything = range(bases * SEEDS)
    seeds, runs = f"{bases * SEEDS} seeds", f"of {bases} runs"
    unconfirmed = contradicted = 0
    for number, finding in enumerate(own):
        others = [seed for seed in everything if seed // SEEDS != number]
        harm = estimates.estimate_contrast(contrast, told, others, suite_)
        control = estimates.estimate_contrast(estimates.positive_control(contrast, variant), told, others, suite_)
        unconfirmed += finding.verdict == "FAIL" and not harm.estimate.low > suite_.margin
        contradicted += OPPOSITE.get(finding.control) == verdict.control_outcome(control, suite_.margin)
    harm = estimates.estimate_contrast(contrast, told, everything, suite_)
    control = estimates.estimate_contrast(estimates.positive_control(contrast, variant), told, everything, suite_)
    names = ["subject", "cured", f"induced:{variant}", "scratch"]
    return {
        "target": target,
        "contrast": name,
        "recipe": case.arms["subject"].pipeline.recipe.name,
        f"harm, {seeds}": format_harm_interval(harm.estimate, unit) if harm.exposed else "not exposed",
        f"verdicts {runs}": counted(one.verdict for one in own),
        "FAIL unconfirmed": unconfirmed,
        f"induced costs, {seeds}": format_harm_interval(control.estimate, unit),
        "which is": {"detected": "more than the margin", "harmless": "less than the margin"}.get(
            verdict.control_outcome(control, suite_.margin), "too near the margin to tell"
        ),
        f"controls {runs}": counted(one.control for one in own),
        "controls contradicted": contradicted,
        "accuracy of subject / cured / induced / scratch": " / ".join(
            "–" if (mean := estimates.mean_accuracy(told, arm, everything)) is None else f"{mean:.3f}" for arm in names
        ),
    }


def kept(path, plugins):
    """Rows of a committed table that are of other plugins than those asked, their counts as numbers again."""
    if "all" in plugins or not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    numbers = ("FAIL unconfirmed", "controls contradicted")
    return [one | {name: int(one[name]) for name in numbers} for one in rows if one["contrast"].split("/")[0] not in plugins]


def counted(words):
    """Words with how often each occurs."""
    return ", ".join(f"{count} {word}" for word, count in Counter(words).most_common())


def main():
    parser = argparse.ArgumentParser(description="Measure the healthy default on the embedded world.")
    parser.add_argument("--store", type=Path)
    parser.add_argument("--shared", type=Path)
    parser.add_argument("--bases", type=int, default=BASES, help="base runs of five seeds")
    parser.add_argument("--name", default="embedded", help="of the table")
    parser.add_argument("--plugins", nargs="+", default=["all"], help="ids, where it is not all of them")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks"))
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for target in arguments.targets:
            if target == "fashion" and not arguments.shared:
                print("fashion left out: no --shared")
                continue
            store = arguments.store or Path(folder) / "store.sqlite"
            rows += measure(target, arguments.shared, store, arguments.bases, arguments.plugins)
            print(target, "done", flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    before = kept(arguments.out / f"{arguments.name}.csv", arguments.plugins)
    rows = sorted([*before, *rows], key=lambda one: list(TARGETS).index(one["target"]))
    with (arguments.out / f"{arguments.name}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    (arguments.out / f"{arguments.name}.md").write_text(page(rows, arguments.bases), encoding="utf-8")


def page(rows, bases):
    """The committed table."""
    head = f"""# The healthy default under every plugin, and whether {SEEDS * (bases - 1)} other seeds agree

The embedded world: tiny-resnet pretrained on `synthetic:source`, 200 training images, 2000 test images (digits: 797); `tinted`
has `synthetic:near` as its shifted set. `fashion` is ResNet-20 of CIFAR-10 on Fashion-MNIST, 200 training and 1000 test images.
Margin 2 points of accuracy, alpha 5 %. A run has five seeds; there are {bases}, on seeds 0–4, 5–9 and so on. The reference of
a run is the {SEEDS * (bases - 1)} seeds of the others. The subject is the default recipe: the best on validation of a linear
probe and LP-FT at two rates. Measured on a CPU ({processor_name()}), one thread a worker. Again:
`python tests/benchmarks/embedded.py --shared FOLDER`.

FAIL unconfirmed: runs that said FAIL where their reference's lower bound is not above the margin. Controls contradicted: runs
that said `detected` where their reference says `harmless`, or the other way round; a control that is `missed` is neither. Harm
in points of accuracy with one-sided 95 % bounds.
"""
    columns = list(rows[0])
    lines = [
        " | ".join(columns),
        " | ".join("---" for _ in columns),
        *(" | ".join(str(one[name]) for name in columns) for one in rows),
    ]
    costly = [one for one in rows if one["which is"] != "–"]
    said = {truth: Counter() for truth in dict.fromkeys(one["which is"] for one in costly)}
    for one in costly:
        for part in one[f"controls of {bases} runs"].split(", "):
            count, _, word = part.partition(" ")
            said[one["which is"]][word] += int(count)
    wrong = [sum(one[name] for one in rows) for name in ("FAIL unconfirmed", "controls contradicted")]
    totals = [
        f"FAIL unconfirmed in all: {wrong[0]}; controls contradicted in all: {wrong[1]}.",
        *(f"Where an induced failure costs {truth}: {counted_of(words)} of the runs." for truth, words in said.items()),
    ]
    return head + "\n" + "\n".join(f"| {line} |" for line in lines) + "\n\n" + "\n".join(totals) + "\n"


def counted_of(words):
    """Counts in words, the most frequent first."""
    return ", ".join(f"{word} in {count}" for word, count in words.most_common())


if __name__ == "__main__":
    main()
