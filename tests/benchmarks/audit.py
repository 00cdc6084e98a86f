"""Audits of networks that plain scripts have fine-tuned, carelessly and well: what was planted, and what was flagged.

    python tests/benchmarks/audit.py --shared FOLDER [--keep FOLDER] [--out reports/benchmarks]

FOLDER has ``data`` and ``weights``. The scripts are ordinary PyTorch (a shuffled loader, cross-entropy, an optimizer, and
``.train()``), none of the lab's own loop. Their seeds and rates, and what counts as a hit, are the data of this file; they
were written down before the first audit was run. An audit is told what whoever ran the script believes: which weights the
network was made from, what was to be trained, how images are prepared.

A planted failure is a hit where one of its admissible findings is FAIL. Everything else that is FAIL was planted by nobody.
It and each admissible finding are measured again on a reference: images that neither script nor audit has seen, under the
arms that the audit settled. Confirmed is what has its lower bound above the margin there, too.
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
from plain import AUDITED, MEAN, RESNET, SCRIPTS, SQUEEZENET, STD, TRAINED, loop, prepared, trained

from xferbench.analysis import estimates, metrics
from xferbench.config import loader, render
from xferbench.core.pipeline import AuxiliaryDataset
from xferbench.data import inputs
from xferbench.lab.worker import run_trials
from xferbench.report.format import format_harm_interval
from xferbench.runner import build_run, execute
from xferbench.runner.environment import processor_name
from xferbench.runner.store import cache_folder
from xferbench.study import schedule, trials

TWICE = {"mean": [m + s * m for m, s in zip(MEAN, STD, strict=True)], "std": [s * s for s in STD]}
RIGHT = {"resize": 32, "crop": 32, "mean": MEAN, "std": STD}  # of the published CIFAR networks
PHOTO = {"resize": 128, "crop": 128, "mean": MEAN, "std": STD}
HEAD, ALL = "trainable=head,batchnorm=eval", "trainable=all,batchnorm=train"


@dataclass(frozen=True, slots=True, kw_only=True)
class Planted:
    """One audit: what was done to the network or its data, which findings name it, and what the audit is told.

    ``script`` makes the network, ``data`` the name of the dataset; ``told`` are tables of the suite.
    """

    about: str
    planted: str
    admissible: tuple[str, ...] = ()
    script: str
    data: str
    told: dict[str, Any]


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
    Planted(about=FASHION, planted="nothing: a linear probe", script="linear probe", data="fashion", told=BELIEVED_HEAD),
    Planted(about=FASHION, planted="nothing: LP-FT, the best epoch of eight", script="LP-FT", data="fashion", told={}),
    Planted(
        about=FASHION,
        planted="frozen, but .train() and batches of four of one class: BatchNorm's statistics move",
        admissible=("freeze-integrity", "batchnorm-drift"),
        script="moving statistics",
        data="fashion",
        told=BELIEVED_HEAD,
    ),
    Planted(
        about=FASHION,
        planted="LP-FT, served normalised twice (the serving's own mean and std are told)",
        admissible=("train-serve-skew", "preprocessing-mismatch"),
        script="LP-FT",
        data="fashion",
        told={"recipe": {"serve_preprocessing": RIGHT | TWICE}},
    ),
    Planted(
        about=FASHION,
        planted="LP-FT, given 0–255 in the belief that it was trained so",
        admissible=("preprocessing-mismatch",),
        script="LP-FT",
        data="fashion",
        told={"backbone": FROM_RESNET["backbone"] | {"preprocessing": RIGHT | {"scale": 1.0, "mean": [0.0], "std": [1.0]}}},
    ),
    Planted(
        about=FASHION,
        planted="LP-FT, class folders 1 to 10 read as strings",
        admissible=("audit/class-order",),
        script="LP-FT",
        data="fashion-strings",
        told={},
    ),
    Planted(
        about=FASHION,
        planted="all layers at far too high a rate (Adam, 0.03)",
        admissible=("audit/linear-probe", "audit/interpolation", "catastrophic-forgetting", "audit/collapse"),
        script="high rate",
        data="fashion",
        told={},
    ),
    Planted(
        about=FASHION,
        planted="module.requires_grad = False: believed frozen, everything moved",
        admissible=("freeze-integrity",),
        script="wrong attribute",
        data="fashion",
        told=BELIEVED_HEAD,
    ),
    Planted(
        about=FASHION,
        planted="optimizer built before unfreezing: believed trained, only the head and the statistics moved",
        admissible=("freeze-integrity",),
        script="early optimizer",
        data="fashion",
        told={},
    ),
    Planted(
        about=FASHION,
        planted="BatchNorm with momentum 0.001: stale statistics",
        admissible=("batchnorm-drift",),
        script="stale statistics",
        data="fashion",
        told={},
    ),
    Planted(
        about=CIFAR,
        planted="test images that the network was trained on",
        admissible=("data-leakage",),
        script="",
        data="leaked",
        told={
            "backbone": {"arch": "cifar-resnet20", "preprocessing": RIGHT},
            "source": {"data": "npz:cifar.npz"},
            "checkpoint": {"after": RESNET},
        },
    ),
    Planted(about=ANTS, planted="nothing: a head on frozen features", script="photographs", data="ants", told=FROM_SQUEEZENET),
    Planted(
        about=ANTS,
        planted="ants and bees exchanged",
        admissible=("audit/class-order",),
        script="photographs, classes exchanged",
        data="ants",
        told=FROM_SQUEEZENET,
    ),
    Planted(
        about=ANTS,
        planted="test images written as BGR",
        admissible=("preprocessing-mismatch",),
        script="photographs",
        data="ants-bgr",
        told=FROM_SQUEEZENET,
    ),
    Planted(
        about=ANTS,
        planted="weights never loaded (strict=False, another prefix)",
        admissible=("audit/linear-probe", "freeze-integrity"),
        script="photographs, nothing loaded",
        data="ants",
        told=FROM_SQUEEZENET,
    ),
]
# Written after the tables were seen: what an unplanted FAIL is, by script, data and finding.
CONSEQUENCE = "true: a consequence of what was planted"
GARBLED = "the number is true, the cause is not: the network answers so badly that another order does better"
JUDGED = {
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


def told(case, work, shared):
    """The suite of an audit."""
    table = {"schema": 1, "name": "audit", "plugins": ["all"]} | (FROM_RESNET if case.about == FASHION else {}) | case.told
    checkpoint = {"after": str(work / f"{case.script}.pt")} | table["checkpoint"]
    published = {key: str(shared.resolve() / value) for key, value in checkpoint.items() if str(value).startswith("weights/")}
    data = f"folder:{case.data}" if case.data.startswith("ants") else f"npz:{case.data}.npz"
    table |= {"target": {"data": data}, "checkpoint": checkpoint | published}
    return loader.parse_suite(table, work / "audit.toml")


def audited(asked, store):
    """What `xferbench.run` says of a suite, and the study behind it."""
    executed = execute.execute(asked, path=store, workers=1, device="cpu")
    return build_run.build_run(executed), executed


def reference(executed, case, contrast, work, data, store):
    """A contrast's estimate under the arms that an audit settled, on images that it has not seen."""
    unseen = inputs.digest_data(f"folder:{work / data}" if data.startswith("ants") else f"npz:{work / data}.npz")
    source = inputs.digest_data(f"npz:{work / 'cifar-reference.npz'}")
    answers = {}
    for arm, view in contrast.weights:
        seen = case.arms[arm].pipeline
        beside = trials.VIEWS[view].domain == "source"
        if beside:
            seen, name = replace(seen, source=replace(seen.source, data=source)), view
        else:  # what was screened for stays what the audit has found
            classes = tuple(range(executed.study.profile.model.outputs))
            name = "shifted-as-trained" if trials.VIEWS[view].as_trained else "shifted"
            seen = replace(seen, shifted=AuxiliaryDataset(data=unseen, classes=classes))
        trial = trials.make_trial(seen, name, 0, executed.study.context)
        (record,), _ = run_trials.run_trials([trial], frozenset([trial.key]), cache_folder(store))
        assert not record.error, record.error
        answers[arm, view, 0] = record
    return estimates.estimate_contrast(contrast, answers, [0], schedule.rules_for(contrast, executed.study.suite))


def named(finding):
    """A finding's id without the variant that was its control, and without the word for a plugin's only contrast."""
    return finding.id.removesuffix(f"/{finding.variant}" if finding.variant else "").removesuffix("/harm")


def counted(finding):
    """A finding with its number."""
    return f"{named(finding)} {number(finding)}"


def number(finding):
    if finding.harm is None:
        return "(exact)" if finding.verdict == "FAIL" else f"({finding.verdict})"
    scale, digits = (100, 1) if finding.unit == "accuracy" else (1, 3)
    harm, low, high = (f"{scale * value:+.{digits}f}" for value in (finding.harm, finding.low, finding.high))
    return f"{harm} [{low}, {high}]"


def of_verdicts(run, *verdicts):
    """Findings of some verdicts by name; of those that differ in their control alone, the first."""
    return {named(one): one for one in reversed(run.findings) if one.verdict in verdicts}


def is_of(name, admissible):
    return any(name == one or name.startswith(f"{one}/") for one in admissible)


def rows(case, work, shared, store):
    """An audit's row of the table, and one for each finding that was measured again."""
    run, executed = audited(told(case, work, shared), store)
    failed = of_verdicts(run, "FAIL")
    hits = {name: one for name, one in failed.items() if is_of(name, case.admissible)}
    others = {name: one for name, one in failed.items() if name not in hits}
    again = list(remeasured(case, executed, run, work, store)) if case.script in SCRIPTS else []
    row = {
        "network": case.about,
        "planted": case.planted,
        "admissible": listed(case.admissible),
        "flagged": listed(map(counted, hits.values())),
        "in words": listed(dict.fromkeys(filter(None, map(said, hits.values())))).replace(f"{work}/", ""),
        "also flagged": listed(map(counted, others.values())),
        "undecided": listed(map(counted, of_verdicts(run, "INCONCLUSIVE", "ERROR").values())),
        "outcome": outcome(case, hits, others, again),
        "seconds": f"{run.cost['seconds']['total']:.0f}",
    }
    print(row["network"], "|", row["planted"], "|", row["flagged"], "|", row["also flagged"], "|", row["outcome"], flush=True)
    return row, again


def said(finding):
    """What a finding tells beyond its number."""
    return re.split(r"(?:; )?(?:harm is above|broken: )", finding.reason)[0]


def listed(parts):
    return "; ".join(parts) or "–"


def outcome(case, hits, others, again):
    """A hit or a miss; of a healthy run, whether what was flagged is confirmed."""
    if case.admissible and hits:
        return "hit"
    if case.admissible:
        harmless = [one for one in again if one["planted"] == "yes"]
        refuted = harmless and all(one["on the reference"] == "refuted" for one in harmless)
        return "not flagged, and harmless" if refuted else "miss"
    confirmed = {one["finding"] for one in again if one["on the reference"] == "confirmed"}
    if set(others) - confirmed:
        return "false alarm"
    return "confirmed side effects" if others else "clean"


def remeasured(case, executed, run, work, store):
    """What is measured again: every FAIL of a contrast with a margin, and what the planted failure was to be named by."""
    verdicts = {named(one): one for one in reversed(run.findings)}
    for one in executed.step.states:
        for name, contrast in one.contrasts("paired"):
            short = name.removesuffix("/harm")
            planted = is_of(short, case.admissible)
            if verdicts[short].verdict != "FAIL" and not planted:
                continue
            limit = schedule.rules_for(contrast, executed.study.suite)
            seen = reference(executed, one, contrast, work, f"{case.data}-reference", store).estimate
            yield {
                "network": case.about,
                "what was planted": case.planted,
                "finding": short,
                "planted": "yes" if planted else "no",
                "verdict": verdicts[short].verdict,
                "audit": number(verdicts[short]),
                "reference": format_harm_interval(seen, metrics.get_metric(limit.metric).unit),
                "judgement": "–" if planted else JUDGED.get((case.script, case.data, short), CONSEQUENCE),
                "on the reference": "confirmed"
                if seen.low > limit.margin
                else "refuted"
                if seen.high < limit.margin
                else "open",
            }


# --- published networks, told their form or another ---


def autopsies():
    """Networks, pictures and forms: the right one on lossless images under all checks, others under the autopsy alone."""
    for depth in NETWORKS:
        for pictures in PICTURES:
            for form in FORMS:
                if pictures == "lossless" or form in ("the right form", "mean and std of 0.5"):
                    yield depth, pictures, form


def autopsy(depth, pictures, form, work, shared, store):
    """Whether the form in which a published network expects its images is found, when another was told."""
    table = {
        "schema": 1,
        "name": "autopsy",
        "plugins": ["all"] if (pictures, form) == ("lossless", "the right form") else ["preprocessing-mismatch"],
        "backbone": {"arch": f"cifar-resnet{depth}", "preprocessing": RIGHT | FORMS[form]},
        "target": {"data": PICTURES[pictures]},
        "checkpoint": {"after": str(shared.resolve() / "weights" / NETWORKS[depth])},
    }
    run, executed = audited(loader.parse_suite(table, work / "autopsy.toml"), store)
    found = of_verdicts(run, "FAIL", "PASS", "INCONCLUSIVE", "ERROR")["preprocessing-mismatch"]
    case = next(one for one in executed.step.states if one.plugin.id == "preprocessing-mismatch")
    served, right = case.arms["cured"].pipeline.serving.preprocessing, loader.parse_suite(
        table | {"backbone": table["backbone"] | {"preprocessing": RIGHT}}, work / "autopsy.toml"
    ).backbone.preprocessing  # fmt: skip
    confidence = next(one.confidence for one in case.arms["cured"].candidates if one.pipeline == case.arms["cured"].pipeline)
    others = {name: one for name, one in of_verdicts(run, "FAIL").items() if name != "preprocessing-mismatch"}
    row = {
        "network": f"ResNet-{depth}",
        "images": pictures,
        "told": form,
        "accuracy as told": percent(found, "subject"),
        "with what was named": percent(found, "cured"),
        "named": "the right form" if same(served, right) else render.describe_preprocessing(served, right),
        "confidence": f"{confidence:.2f}",
        "verdict": found.verdict,
        "harm": number(found),
        "also flagged": listed(map(counted, others.values())),
        "seconds": f"{run.cost['seconds']['total']:.0f}",
    }
    print(" | ".join(row.values()), flush=True)
    return row


def same(one, other):
    """Whether two forms give the same images: numbers may differ in their last digit."""
    close = np.allclose([*one.mean, *one.std, one.scale], [*other.mean, *other.std, other.scale], rtol=1e-4)
    return close and replace(one, mean=other.mean, std=other.std, scale=other.scale) == other


def percent(finding, arm):
    return f"{100 * finding.accuracy[arm]:.1f}"


# --- how long it takes ---


def timed(work, shared, rounds):
    """The wall clock of whole commands, an empty store each; recorded seconds by check, as the last one has them; the load."""
    import torchvision

    torch.manual_seed(0)
    net = torchvision.models.resnet18()
    net.fc = torch.nn.Linear(512, 2)
    torch.save(net.state_dict(), work / "resnet18-before.pt")
    images, labels = torch.randn(16, 3, 64, 64), torch.arange(16) % 2
    loop(net, torch.optim.SGD(net.parameters(), lr=0.01), images, labels, epochs=1, size=16, seed=0)
    torch.save(net.state_dict(), work / "resnet18-after.pt")
    data = f"folder:{shared.resolve() / 'data' / 'hymenoptera'}"
    command = [sys.executable, "-m", "xferbench", "audit", "--arch", "torchvision:resnet18", "--data", data]
    command += [
        "--before",
        str(work / "resnet18-before.pt"),
        "--after",
        str(work / "resnet18-after.pt"),
        "-o",
        str(work / "timed"),
    ]
    walls = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            begun = perf_counter()
            subprocess.run([*command, "--store", f"{folder}/store.sqlite"], check=False, capture_output=True)
            walls.append(perf_counter() - begun)
    split = json.loads((work / "timed" / "results.json").read_text(encoding="utf-8"))["cost"]["checks"]
    return walls, split, os.getloadavg()[0]


# --- the page ---


def main():
    parser = argparse.ArgumentParser(description="Audit networks that were fine-tuned carelessly, and well.")
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--keep", type=Path, help="an empty or former folder for networks, data and records")
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks"))
    parser.add_argument("--rounds", type=int, default=3, help="of the command that is timed")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        work, shared = (arguments.keep or Path(folder)).resolve(), arguments.shared
        if not (work / "fashion.npz").exists():
            work.mkdir(parents=True, exist_ok=True)
            prepared(shared, work)
        trained(work, shared)
        store = work / "store.sqlite"
        found = [rows(case, work, shared, store) for case in CASES]
        forms = [autopsy(*which, work, shared, work / "forms.sqlite") for which in autopsies()]
        times = timed(work, shared, arguments.rounds)
    audits, again = [row for row, _ in found], [one for _, several in found for one in several]
    with (arguments.out / "audit.csv").open("w", newline="", encoding="utf-8") as file:
        columns = dict.fromkeys(name for row in (*audits, *again, *forms) for name in row)
        writer = csv.DictWriter(file, ["table", *columns], restval="")
        writer.writeheader()
        for name, table in {"planted": audits, "measured again": again, "published networks": forms}.items():
            writer.writerows({"table": name} | row for row in table)
    (arguments.out / "audit.md").write_text(page(audits, again, forms, times), encoding="utf-8")


def page(audits, again, forms, times):
    """The committed tables."""
    head = f"""# What audits find in networks that plain scripts have fine-tuned

Ordinary PyTorch (`tests/benchmarks/plain.py`), none of the lab's own loop: ResNet-20 of CIFAR-10 to Fashion-MNIST on
{TRAINED} images, SqueezeNet of ImageNet to ants and bees on 123. The audit gets the weights, those of before, the training
images, {AUDITED} test images (153 of ants and bees), and what whoever ran the script believes. Margin 2 points of accuracy
(ants and bees: 5), alpha 5 %; half of the test images screen repairs, the other half judges. What was planted, and which
findings count as naming it (admissible), was written down before the first audit was run, and so were seeds and rates. On a
CPU ({processor_name()}), one process; seconds are those recorded for all that an audit looks at, on a shared and busy machine.
Again: `python tests/benchmarks/audit.py --shared FOLDER`.

Harm in points of accuracy (calibration: nats) with one-sided 95 % bounds. A hit: an admissible finding is FAIL. On a healthy
run, "confirmed side effects" are FAILs that the reference below confirms, "false alarm" means that it does not confirm one.

{summary(audits, again)}

Five things to know. The miss is INCONCLUSIVE at +16.9 points: 77 images and the correction for several checks leave it open,
and the reference leaves it open, too. Forgetting is flagged of every network whose layers or statistics moved, of the healthy
LP-FT too, so that the high rate's only hit is none that tells it from LP-FT. One fault is flagged several times, for what was
planted comes with its consequences; a report says of each whether it is gone once the largest is mended, which the table
does not show. Where the answers are near chance or below, `class-order` and `batchnorm-drift` find a repair that is real and
small, and name a cause that is not there. The healthy linear probe is told, truly, that its head was not trained to its end.

## What was planted, and what was flagged
"""
    words = """
## Measured again on images that no audit has seen

Every FAIL with a margin, and what a planted failure was to be named by: the same contrast under the arms that the audit
settled, on Fashion-MNIST's other 1000 test images, on photographs of the training folder that no script has seen, and for
forgetting on the other 500 test images of CIFAR-10. Confirmed: its lower bound, too, is above the margin; refuted: its upper
bound is below it. The judgement was written by hand, of what nobody planted.
"""
    autopsies_ = """
## Published networks, told the right form of their images or another

ResNet-20, -32 and -44 on CIFAR-10's first 1000 test images, without loss and after lossy JPEG; no weights of before. The
right form is one normalisation with ImageNet's mean and standard deviation; CIFAR-10's own, which is named at times, differs by
a few hundredths of the range. What is named was screened on one half; both accuracies are of the other half. With lossless
images in the right form all checks are asked. The copy that `data-leakage` then finds is one: a horse of the test set that
lies in the training set, shifted by a pixel.
"""
    tables = (head, tabled(audits), words, tabled(again), autopsies_, tabled(forms), "", timetable(times))
    return "\n".join(tables) + "\n"


def summary(audits, again):
    """Hits, misses and what was flagged beside them, counted."""
    planted = [one["outcome"] for one in audits if one["admissible"] != "–"]
    healthy = [one["outcome"] for one in audits if one["admissible"] == "–"]
    beside = Counter(one["on the reference"] for one in again if one["planted"] == "no")
    told = ", ".join(f"{count} {word}" for word, count in beside.most_common())
    return (
        f"Planted: {len(planted)}; {counts(planted)}. Healthy: {len(healthy)}; {counts(healthy)}. FAILs with a margin that "
        f"nobody planted: {sum(beside.values())}, by their reference {told}."
    )


def counts(words):
    return ", ".join(f"{count} {word}" for word, count in Counter(words).most_common())


def tabled(rows_):
    lines = [" | ".join(rows_[0]), " | ".join("---" for _ in rows_[0]), *(" | ".join(one.values()) for one in rows_)]
    return "\n".join(f"| {line} |" for line in lines)


def timetable(times):
    """How long the command takes, and what of it goes to which check."""
    walls, split, load = times
    shown = ", ".join(f"{name} {value:.1f}" for name, value in sorted(split.items(), key=lambda one: -one[1]) if value >= 0.05)
    told = ", ".join(f"{value:.0f}" for value in sorted(walls))
    return f"""
## How long it takes

`xferbench audit` of torchvision's ResNet-18 (random weights, one step apart), 244 training and 153 test photographs at 224
pixels, an empty store, one process a core: median {median(walls):.0f} s of {len(walls)} runs ({told}), with a load of
{load:.1f} on {os.cpu_count()} cores. Recorded seconds by check, what several ask counted with the first: {shown}."""


if __name__ == "__main__":
    main()
