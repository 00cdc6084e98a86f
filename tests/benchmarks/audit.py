"""Audits of networks that plain scripts have fine-tuned, carelessly and well: what was planted, and what was flagged.

    python tests/benchmarks/audit.py --shared FOLDER [--keep FOLDER] [--out reports/benchmarks]

FOLDER has ``data`` and ``weights``. The scripts are ordinary PyTorch (a shuffled loader, cross-entropy, an optimizer, and
``.train()``) and do not use the loop of the lab. Their seeds and rates, and what counts as a hit, are the data of this file;
they were written down before the first audit. The suite of an audit states what the author of the script believes: which
weights the network started from, what the script trains, and how it prepares images.

A planted failure is a hit if one of its admissible findings is FAIL. Every other FAIL is unplanted. Each unplanted FAIL and
each admissible finding is measured again on a reference: images that neither the script nor the audit uses, with the arms that
the audit selected. It is confirmed if the lower bound on the reference is also above the margin.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from plain import (
    AUDITED_IMAGES,
    MEAN,
    RESNET,
    SCRIPTS,
    SQUEEZENET,
    STD,
    TRAINING_IMAGES,
    prepare_files,
    train_loop,
    train_networks,
)

from xferbench.analysis import estimates, metrics
from xferbench.config import loader, render
from xferbench.core.pipeline import AuxiliaryDataset
from xferbench.data import inputs
from xferbench.lab.worker import run_trials
from xferbench.report.format import format_harm_interval, unit_scale
from xferbench.runner import build_run, execute
from xferbench.runner.environment import processor_name
from xferbench.runner.store import cache_folder
from xferbench.study import schedule, trials

TWICE = {"mean": [m + s * m for m, s in zip(MEAN, STD, strict=True)], "std": [s * s for s in STD]}
RIGHT = {"resize": 32, "crop": 32, "mean": MEAN, "std": STD}  # of the published CIFAR networks
PHOTO = {"resize": 128, "crop": 128, "mean": MEAN, "std": STD}
HEAD, ALL = "trainable=head,batchnorm=eval", "trainable=all,batchnorm=train"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One audit: what is done to the network or its data, which findings name it, and the tables of the suite.

    Attributes:
        network: the network and its target.
        planted: what is planted.
        admissible: ids of the findings that name it.
        script: the script that trains the network, or "" for a published network.
        data: the name of the dataset.
        tables: tables of the suite, in addition to those of the network.
    """

    network: str
    planted: str
    admissible: tuple[str, ...] = ()
    script: str
    data: str
    tables: dict[str, Any]


# --- what is planted, and what names it ---

FASHION, ANTS, CIFAR = "ResNet-20 → Fashion-MNIST", "SqueezeNet → ants and bees", "ResNet-20 of CIFAR-10"
FROM_RESNET = {
    "backbone": {"arch": "cifar-resnet20", "preprocessing": RIGHT},
    "source": {"data": "npz:cifar.npz"},
    "checkpoint": {"before": RESNET, "believed": ALL},
}
FROM_SQUEEZENET = {
    "backbone": {"arch": "torchvision:squeezenet1_0", "preprocessing": PHOTO},
    "checkpoint": {"before": SQUEEZENET, "believed": HEAD},
    "margin": 0.05,
}
BELIEVED_HEAD = {"checkpoint": {"before": RESNET, "believed": HEAD}}
CASES = [
    Case(network=FASHION, planted="nothing: a linear probe", script="linear probe", data="fashion", tables=BELIEVED_HEAD),
    Case(network=FASHION, planted="nothing: LP-FT, the best epoch of eight", script="LP-FT", data="fashion", tables={}),
    Case(
        network=FASHION,
        planted="frozen, but .train() and batches of four of one class: BatchNorm's statistics move",
        admissible=("freeze-integrity", "batchnorm-drift"),
        script="moving statistics",
        data="fashion",
        tables=BELIEVED_HEAD,
    ),
    Case(
        network=FASHION,
        planted="LP-FT, served normalised twice (the serving's own mean and std are told)",
        admissible=("train-serve-skew", "preprocessing-mismatch"),
        script="LP-FT",
        data="fashion",
        tables={"recipe": {"serve_preprocessing": RIGHT | TWICE}},
    ),
    Case(
        network=FASHION,
        planted="LP-FT, given 0–255 in the belief that it was trained so",
        admissible=("preprocessing-mismatch",),
        script="LP-FT",
        data="fashion",
        tables={"backbone": FROM_RESNET["backbone"] | {"preprocessing": RIGHT | {"scale": 1.0, "mean": [0.0], "std": [1.0]}}},
    ),
    Case(
        network=FASHION,
        planted="LP-FT, class folders 1 to 10 read as strings",
        admissible=("audit/class-order",),
        script="LP-FT",
        data="fashion-strings",
        tables={},
    ),
    Case(
        network=FASHION,
        planted="all layers at far too high a rate (Adam, 0.03)",
        admissible=("audit/linear-probe", "audit/interpolation", "catastrophic-forgetting", "audit/collapse"),
        script="high rate",
        data="fashion",
        tables={"source": {"data": "npz:cifar.npz", "keep": True}},
    ),
    Case(
        network=FASHION,
        planted="module.requires_grad = False: believed frozen, everything moved",
        admissible=("freeze-integrity",),
        script="wrong attribute",
        data="fashion",
        tables=BELIEVED_HEAD,
    ),
    Case(
        network=FASHION,
        planted="optimizer built before unfreezing: believed trained, only the head and the statistics moved",
        admissible=("freeze-integrity",),
        script="early optimizer",
        data="fashion",
        tables={},
    ),
    Case(
        network=FASHION,
        planted="BatchNorm with momentum 0.001: stale statistics",
        admissible=("batchnorm-drift",),
        script="stale statistics",
        data="fashion",
        tables={},
    ),
    Case(
        network=CIFAR,
        planted="test images that the network was trained on",
        admissible=("data-leakage",),
        script="",
        data="leaked",
        tables={
            "backbone": {"arch": "cifar-resnet20", "preprocessing": RIGHT},
            "source": {"data": "npz:cifar.npz"},
            "checkpoint": {"after": RESNET},
        },
    ),
    Case(network=ANTS, planted="nothing: a head on frozen features", script="photographs", data="ants", tables=FROM_SQUEEZENET),
    Case(
        network=ANTS,
        planted="ants and bees exchanged",
        admissible=("audit/class-order",),
        script="photographs, classes exchanged",
        data="ants",
        tables=FROM_SQUEEZENET,
    ),
    Case(
        network=ANTS,
        planted="test images written as BGR",
        admissible=("preprocessing-mismatch",),
        script="photographs",
        data="ants-bgr",
        tables=FROM_SQUEEZENET,
    ),
    Case(
        network=ANTS,
        planted="weights never loaded (strict=False, another prefix)",
        admissible=("audit/linear-probe", "freeze-integrity"),
        script="photographs, nothing loaded",
        data="ants",
        tables=FROM_SQUEEZENET,
    ),
]
# What an unplanted FAIL is, by script, data and finding; the authors wrote it when they had the tables.
CONSEQUENCE = "true: a consequence of what was planted"
GARBLED = "the number is true, the cause is not: the network answers so badly that another order does better"
JUDGEMENTS = {
    ("linear probe", "fashion", "audit/linear-probe"): "true: this head was not trained to its end, a fitted one does better",
    ("LP-FT", "fashion", "catastrophic-forgetting"): "true of LP-FT itself: all layers moved",
    ("LP-FT", "fashion-strings", "catastrophic-forgetting"): "true of LP-FT itself: all layers moved",
    ("LP-FT", "fashion", "audit/class-order"): GARBLED,
    ("moving statistics", "fashion", "audit/class-order"): GARBLED,
    ("LP-FT", "fashion", "batchnorm-drift"): "true as a cure, not as the cause: statistics of such images mend it, too",
    (
        "LP-FT",
        "fashion-strings",
        "batchnorm-drift",
    ): "the number is true, the cause is not: below chance, whatever changes answers does better",
}
FORMS = {
    "the right form": {},
    "mean and std of 0.5": {"mean": [0.5], "std": [0.5]},
    "no normalisation": {"mean": [0.0], "std": [1.0]},
    "normalised twice": TWICE,
    "BGR": {"channels": "bgr"},
}
NETWORKS = {"20": "resnet20-12fca82f.th", "32": "resnet32-d509ac18.th", "44": "resnet44-014dd654.th"}
PICTURES = {"lossless": "npz:cifar-whole.npz", "JPEG": "npz:jpeg.npz"}


# --- audits and references ---


def audit_suite(case, work, shared):
    """Return the suite of an audit."""
    table = {"schema": 1, "name": "audit", "plugins": ["all"]}
    table |= (FROM_RESNET if case.network == FASHION else {}) | case.tables
    checkpoint = {"after": str(work / f"{case.script}.pt")} | table["checkpoint"]
    published = {key: str(shared.resolve() / value) for key, value in checkpoint.items() if str(value).startswith("weights/")}
    table |= {"target": {"data": data_spec(case.data)}, "checkpoint": checkpoint | published}
    return loader.parse_suite(table, work / "audit.toml")


def data_spec(name, folder=None):
    """Return the spelling of a dataset of the work folder, with ``folder`` before its name."""
    path = folder / name if folder else name
    return f"folder:{path}" if name.startswith("ants") else f"npz:{path}.npz"


def run_audit(suite, store):
    """Return the run of a suite and its executed study."""
    executed = execute.execute(suite, path=store, workers=1, device="cpu")
    return build_run.build_run(executed), executed


def reference_estimate(executed, state, contrast, work, data, store):
    """Return the estimate of a contrast with the arms that an audit selected, on images that the audit does not use."""
    target = inputs.digest_data(data_spec(data, work))
    records = {}
    for arm, view in contrast.weights:
        pipeline, named_view = state.arms[arm].pipeline, trials.VIEWS[view]
        if named_view.domain == "source":
            source = inputs.digest_data(data_spec("cifar-reference", work))
            view_name, changes = view, {"source": replace(pipeline.data.source, data=source)}
        else:  # as a shifted set, so that the arms keep what the audit selected on the target
            view_name = "shifted-as-trained" if named_view.as_trained else "shifted"
            classes = tuple(range(executed.study.profile.model.outputs))
            changes = {"shifted": AuxiliaryDataset(data=target, classes=classes)}
        pipeline = replace(pipeline, data=replace(pipeline.data, **changes))
        trial = trials.make_trial(pipeline, view_name, 0, executed.study.context)
        (record,), _ = run_trials.run_trials([trial], frozenset([trial.key]), cache_folder(store))
        assert not record.error, record.error
        records[arm, view, 0] = record
    rules = schedule.rules_for(contrast, executed.study.suite.rules)
    return estimates.estimate_contrast(contrast, records, [0], rules).estimate


def short_id(finding):
    """Return the id of a finding without the variant of its control, and without the name of a plugin's only contrast."""
    return finding.id.removesuffix(f"/{finding.control.variant}" if finding.control.variant else "").removesuffix("/harm")


def id_and_harm(finding):
    """Write the id of a finding and its harm."""
    return f"{short_id(finding)} {harm_interval(finding)}"


def harm_interval(finding):
    """Write the harm of a finding with its bounds."""
    if finding.estimate.harm is None:
        return "(exact)" if finding.verdict == "FAIL" else f"({finding.verdict})"
    scale, digits = unit_scale(finding.estimate.unit)
    harm, low, high = (f"{scale * value:+.{digits}f}" for value in finding.estimate.bounds)
    return f"{harm} [{low}, {high}]"


def findings_by_id(run, *verdicts):
    """Return the findings with these verdicts by short id; of findings that differ only in their control, the first."""
    return {short_id(finding): finding for finding in reversed(run.findings) if finding.verdict in verdicts}


def is_admissible(name, admissible):
    """Return whether a finding is one of the admissible ones."""
    return any(name == plugin or name.startswith(f"{plugin}/") for plugin in admissible)


def case_rows(case, work, shared, store):
    """Return the row of an audit, and a row for each finding that is measured again."""
    run, executed = run_audit(audit_suite(case, work, shared), store)
    failures = findings_by_id(run, "FAIL")
    hits = {name: finding for name, finding in failures.items() if is_admissible(name, case.admissible)}
    others = {name: finding for name, finding in failures.items() if name not in hits}
    reference_rows = list(measure_again(case, executed, run, work, store)) if case.script in SCRIPTS else []
    row = {
        "network": case.network,
        "planted": case.planted,
        "admissible": join(case.admissible),
        "flagged": join(map(id_and_harm, hits.values())),
        "in words": join(dict.fromkeys(filter(None, map(explanation, hits.values())))).replace(f"{work}/", ""),
        "also flagged": join(map(id_and_harm, others.values())),
        "undecided": join(map(id_and_harm, findings_by_id(run, "INCONCLUSIVE", "ERROR").values())),
        "outcome": outcome(case, hits, others, reference_rows),
        "seconds": f"{run.cost['seconds']['total']:.0f}",
    }
    print(row["network"], "|", row["planted"], "|", row["flagged"], "|", row["also flagged"], "|", row["outcome"], flush=True)
    return row, reference_rows


def explanation(finding):
    """Return the reason of a finding without its number."""
    return re.split(r"(?:; )?(?:harm is above|does not hold: )", finding.reason)[0]


def join(parts):
    """Write the parts in one cell of a table."""
    return "; ".join(parts) or "–"


def outcome(case, hits, others, reference_rows):
    """Return whether a planted failure is a hit or a miss; for a healthy network, whether its FAILs are confirmed."""
    if case.admissible and hits:
        return "hit"
    if case.admissible:
        planted = [row for row in reference_rows if row["planted"] == "yes"]
        refuted = planted and all(row["on the reference"] == "refuted" for row in planted)
        return "not flagged, and harmless" if refuted else "miss"
    confirmed = {row["finding"] for row in reference_rows if row["on the reference"] == "confirmed"}
    if set(others) - confirmed:
        return "false alarm"
    return "confirmed side effects" if others else "clean"


def measure_again(case, executed, run, work, store):
    """Yield a row for each FAIL of a contrast with a margin, and for each admissible finding."""
    findings = {short_id(finding): finding for finding in reversed(run.findings)}
    for state in executed.step.states:
        for contrast_id, contrast in state.contrasts("paired"):
            name = contrast_id.removesuffix("/harm")
            finding, planted = findings[name], is_admissible(name, case.admissible)
            if finding.verdict != "FAIL" and not planted:
                continue
            rules = schedule.rules_for(contrast, executed.study.suite.rules)
            estimate = reference_estimate(executed, state, contrast, work, f"{case.data}-reference", store)
            yield {
                "network": case.network,
                "what was planted": case.planted,
                "finding": name,
                "planted": "yes" if planted else "no",
                "verdict": finding.verdict,
                "audit": harm_interval(finding),
                "reference": format_harm_interval(estimate, metrics.get_metric(rules.metric).unit),
                "judgement": "–" if planted else JUDGEMENTS.get((case.script, case.data, name), CONSEQUENCE),
                "on the reference": "confirmed"
                if estimate.low > rules.margin
                else "refuted"
                if estimate.high < rules.margin
                else "open",
            }


# --- published networks, with the right form of their images or another ---


def autopsy_settings():
    """Yield network, pictures and form. The right form on lossless images runs all checks, others the autopsy alone."""
    for depth in NETWORKS:
        for pictures in PICTURES:
            for form in FORMS:
                if pictures == "lossless" or form in ("the right form", "mean and std of 0.5"):
                    yield depth, pictures, form


def autopsy_row(depth, pictures, form, work, shared, store):
    """Return the row of a published network whose suite states ``form``: whether the audit finds the right form."""
    table = {
        "schema": 1,
        "name": "autopsy",
        "plugins": ["all"] if (pictures, form) == ("lossless", "the right form") else ["preprocessing-mismatch"],
        "backbone": {"arch": f"cifar-resnet{depth}", "preprocessing": RIGHT | FORMS[form]},
        "target": {"data": PICTURES[pictures]},
        "checkpoint": {"after": str(shared.resolve() / "weights" / NETWORKS[depth])},
    }
    run, executed = run_audit(loader.parse_suite(table, work / "autopsy.toml"), store)
    finding = findings_by_id(run, "FAIL", "PASS", "INCONCLUSIVE", "ERROR")["preprocessing-mismatch"]
    state = next(state for state in executed.step.states if state.plugin.id == "preprocessing-mismatch")
    cured = state.arms["cured"]
    right_table = table | {"backbone": table["backbone"] | {"preprocessing": RIGHT}}
    right = loader.parse_suite(right_table, work / "autopsy.toml").backbone.preprocessing
    selected = cured.pipeline.serving.preprocessing
    confidence = next(candidate.confidence for candidate in cured.candidates if candidate.pipeline == cured.pipeline)
    others = {name: other for name, other in findings_by_id(run, "FAIL").items() if name != "preprocessing-mismatch"}
    row = {
        "network": f"ResNet-{depth}",
        "images": pictures,
        "told": form,
        "accuracy as told": percent(finding, "subject"),
        "with what was named": percent(finding, "cured"),
        "named": "the right form" if is_same_form(selected, right) else render.describe_preprocessing(selected, right),
        "confidence": f"{confidence:.2f}",
        "verdict": finding.verdict,
        "harm": harm_interval(finding),
        "also flagged": join(map(id_and_harm, others.values())),
        "seconds": f"{run.cost['seconds']['total']:.0f}",
    }
    print(" | ".join(row.values()), flush=True)
    return row


def is_same_form(form, other):
    """Return whether two forms give the same images: numbers may differ in their last digit."""
    close = np.allclose([*form.mean, *form.std, form.scale], [*other.mean, *other.std, other.scale], rtol=1e-4)
    return close and replace(form, mean=other.mean, std=other.std, scale=other.scale) == other


def percent(finding, arm):
    """Write the accuracy of an arm in percent."""
    return f"{100 * finding.accuracy[arm]:.1f}"


# --- how long it takes ---


def command_seconds(work, shared, rounds):
    """Return the wall-clock seconds of whole commands with an empty store, the last one's seconds by check, and the load."""
    import torchvision

    torch.manual_seed(0)
    net = torchvision.models.resnet18()
    net.fc = torch.nn.Linear(512, 2)
    before, after, report = work / "resnet18-before.pt", work / "resnet18-after.pt", work / "timed"
    torch.save(net.state_dict(), before)
    images, labels = torch.randn(16, 3, 64, 64), torch.arange(16) % 2
    train_loop(net, torch.optim.SGD(net.parameters(), lr=0.01), images, labels, epochs=1, size=16, seed=0)
    torch.save(net.state_dict(), after)
    data = f"folder:{shared.resolve() / 'data' / 'hymenoptera'}"
    command = [sys.executable, "-m", "xferbench", "audit", "--arch", "torchvision:resnet18", "--data", data]
    command += ["--before", str(before), "--after", str(after), "-o", str(report)]
    seconds = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            start = perf_counter()
            subprocess.run([*command, "--store", f"{folder}/store.sqlite"], check=False, capture_output=True)
            seconds.append(perf_counter() - start)
    results = json.loads((report / "results.json").read_text(encoding="utf-8"))
    return seconds, results["cost"]["checks"], os.getloadavg()[0]


# --- the page ---


def main():
    parser = argparse.ArgumentParser(description="Audit networks that were fine-tuned carelessly, and well.")
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--keep", type=Path, help="a folder for networks, data and records, which a later call reuses")
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks"))
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the timed command")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        work, shared = (arguments.keep or Path(folder)).resolve(), arguments.shared
        if not (work / "fashion.npz").exists():
            work.mkdir(parents=True, exist_ok=True)
            prepare_files(shared, work)
        train_networks(work, shared)
        results = [case_rows(case, work, shared, work / "store.sqlite") for case in CASES]
        forms = [autopsy_row(*setting, work, shared, work / "forms.sqlite") for setting in autopsy_settings()]
        times = command_seconds(work, shared, arguments.rounds)
    audits, references = [row for row, _ in results], [row for _, reference_rows in results for row in reference_rows]
    arguments.out.mkdir(parents=True, exist_ok=True)
    with (arguments.out / "audit.csv").open("w", newline="", encoding="utf-8") as file:
        columns = dict.fromkeys(name for row in (*audits, *references, *forms) for name in row)
        writer = csv.DictWriter(file, ["table", *columns], restval="")
        writer.writeheader()
        for name, table in {"planted": audits, "measured again": references, "published networks": forms}.items():
            writer.writerows({"table": name} | row for row in table)
    (arguments.out / "audit.md").write_text(page(audits, references, forms, times), encoding="utf-8")


def page(audits, references, forms, times):
    """Return the page of the tables."""
    head = f"""# What audits find in networks that plain scripts have fine-tuned

The scripts are ordinary PyTorch (`tests/benchmarks/plain.py`) and do not use the loop of the lab: ResNet-20 of CIFAR-10 to
Fashion-MNIST on {TRAINING_IMAGES} images, SqueezeNet of ImageNet to ants and bees on 123. The audit receives the weights after
and before training, the training images, {AUDITED_IMAGES} test images (153 of ants and bees), and what the author of the script
believes. Margin 2 points of accuracy (ants and bees: 5), alpha 5 %; one half of the test images selects repairs, the other half
leads to the verdict. The planted failures, the findings that count as naming them (admissible), the seeds and the rates were
written down before the first audit. On a CPU ({processor_name()}), one process; the seconds are the recorded ones of the whole
audit, on a shared and busy machine. Again: `python tests/benchmarks/audit.py --shared FOLDER`.

Harm is in points of accuracy (calibration: nats), with one-sided 95 % bounds. An audit is a hit if an admissible finding is
FAIL. For a healthy network, "confirmed side effects" means that the reference below confirms all FAILs, and "false alarm" that
it does not confirm one of them.

{summary(audits, references)}

Five notes. The miss is INCONCLUSIVE at +16.9 points: 77 images and the correction for several checks leave it open, and the
reference leaves it open too. Forgetting is flagged for every network whose layers or statistics moved, also for the healthy
LP-FT; the only hit of the high rate therefore does not distinguish it from LP-FT. One fault is flagged several times, because
a planted failure has consequences; a report says for each of them whether it disappears with the cure of the largest one, which
the table does not show. If the answers are near chance or below, `class-order` and `batchnorm-drift` find a repair that is real
and small, but the cause that they name is absent. The finding about the healthy linear probe is true: the training of its head
stopped too early.

## What was planted, and what was flagged
"""
    reference_head = """
## Measured again on images that no audit has seen

The table has every FAIL with a margin, and every admissible finding. The contrast and the arms are those of the audit; the
images are the other 1000 test images of Fashion-MNIST, photographs of the training folder that no script uses, and, for
forgetting, the other 500 test images of CIFAR-10. A finding is confirmed if its lower bound is above the margin here too, and
refuted if its upper bound is below the margin. The judgements of unplanted findings are written by hand.
"""
    forms_head = """
## Published networks, told the right form of their images or another

ResNet-20, -32 and -44 on the first 1000 test images of CIFAR-10, without loss and after lossy JPEG; no weights before training.
The right form is one normalisation with the mean and standard deviation of ImageNet. The audit sometimes names those of
CIFAR-10, which differ by a few hundredths of the range. One half of the images selects the form; both accuracies are of the
other half. Lossless images in the right form run all checks. The copy that `data-leakage` finds there is real: a horse of the
test set is also in the training set, shifted by a pixel.
"""
    parts = (
        head,
        table_lines(audits),
        reference_head,
        table_lines(references),
        forms_head,
        table_lines(forms),
        "",
        times_section(times),
    )
    return "\n".join(parts) + "\n"


def summary(audits, references):
    """Write the numbers of hits, misses and unplanted FAILs."""
    planted = [row["outcome"] for row in audits if row["admissible"] != "–"]
    healthy = [row["outcome"] for row in audits if row["admissible"] == "–"]
    unplanted = [row["on the reference"] for row in references if row["planted"] == "no"]
    return (
        f"Planted: {len(planted)}; {counts(planted)}. Healthy: {len(healthy)}; {counts(healthy)}. FAILs with a margin that "
        f"nobody planted: {len(unplanted)}, by their reference {counts(unplanted)}."
    )


def counts(words):
    """Write how often each word occurs."""
    return ", ".join(f"{count} {word}" for word, count in Counter(words).most_common())


def table_lines(rows):
    """Write rows as a table."""
    lines = [" | ".join(rows[0]), " | ".join("---" for _ in rows[0]), *(" | ".join(row.values()) for row in rows)]
    return "\n".join(f"| {line} |" for line in lines)


def times_section(times):
    """Write how long the command takes, and how the seconds divide among the checks."""
    seconds, seconds_by_check, load = times
    longest_first = sorted(seconds_by_check.items(), key=lambda item: -item[1])
    by_check = ", ".join(f"{name} {value:.1f}" for name, value in longest_first if value >= 0.05)
    by_round = ", ".join(f"{value:.0f}" for value in sorted(seconds))
    return f"""
## How long it takes

`xferbench audit` of torchvision's ResNet-18 (random weights, one step apart), 244 training and 153 test photographs at 224
pixels, an empty store, one process a core: median {median(seconds):.0f} s of {len(seconds)} runs ({by_round}), with a load of
{load:.1f} on {os.cpu_count()} cores. Recorded seconds by check; a shared evaluation counts for the first check: {by_check}."""


if __name__ == "__main__":
    main()
