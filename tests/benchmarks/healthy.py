"""Audits of healthy networks of families that no check was tuned on: every FAIL that other images do not confirm is false.

    python tests/benchmarks/healthy.py --shared FOLDER [--keep FOLDER] [--networks NAME …] [--out reports/benchmarks]

Each network has random weights, BatchNorm statistics of the training images, and a head that a plain script fits to its end on
frozen features. The statistics and the head are right by construction. Each network is audited twice: with the ten classes of
CIFAR-10, and as "airplane or not", where one image in ten is an airplane and the metric is balanced accuracy. A FAIL is
measured again on images that the audit does not use. SqueezeNet is left out: a ReLU follows its head, so that the fitted
regression is not what the network computes. Each finished audit is a row of ``healthy.csv``, so that the script
continues where it stopped; ``healthy.md`` is written from these rows.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from pathlib import Path

import numpy as np
import torch
from audit import Case, audit_suite, counts, findings_by_id, id_and_harm, join, measure_again, outcome, run_audit, table_lines
from PIL import Image
from plain import MEAN, STD, transform_images
from torch.nn import functional as F

from xferbench.analysis.intervals import proportion_lower_bound
from xferbench.core.errors import UserError
from xferbench.lab.models import backbones
from xferbench.runner.environment import processor_name

NETWORKS = (
    *("timm:lcnet_035", "timm:test_byobnet", "timm:test_convnext", "timm:test_efficientnet_gn", "timm:test_mambaout"),
    *("timm:test_nfnet", "timm:test_vit3", "timm:ghostnet_050", "timm:edgenext_xx_small"),
    *("torchvision:shufflenet_v2_x0_5", "torchvision:mobilenet_v3_small", "torchvision:mnasnet0_5"),
    *("torchvision:mobilenet_v2", "torchvision:regnet_y_400mf", "torchvision:resnet18"),
)
SIDES = (64, 96, 128, 160, 224)  # pixels; the first that a network accepts
TASKS = {"ten classes": "accuracy", "airplane or not": "balanced_accuracy"}  # with their metrics
TRAINING_IMAGES, AUDITED_IMAGES = 600, 600
L2_PENALTY = 1e-3  # factor of the squared weights of the head, on standardized features
FIELDS = ("network", "task", "images px", "accuracy", "flagged", "undecided", "outcome")


def prepare_data(shared, work):
    """Write the images of the audits, and of their references, once for each task."""
    cifar = np.load(shared / "data" / "cifar10.npz")
    images = np.concatenate([cifar["train_images"], cifar["test_images"]])
    labels = np.concatenate([cifar["train_labels"], cifar["test_labels"]]).astype(np.int64)
    order = np.random.default_rng(0).permutation(len(labels))
    train, test, reference = np.split(order, [TRAINING_IMAGES, TRAINING_IMAGES + AUDITED_IMAGES])
    for task in TASKS:
        targets = labels if task == "ten classes" else (labels != 0).astype(np.int64)
        for name, part in {task: test, f"{task}-reference": reference[:AUDITED_IMAGES]}.items():
            arrays = {"train_images": images[train], "train_labels": targets[train]}
            np.savez(work / f"{name}.npz", **arrays, test_images=images[part], test_labels=targets[part])


def first_side(arch):
    """Return the first size that a network accepts."""
    for side in SIDES:
        try:
            backbones.layer_layout(backbones.build(arch, 2), side)
        except UserError:
            continue
        return side
    raise SystemExit(f"{arch} accepts none of {SIDES} pixels")


def train_network(arch, side, task, work):
    """Save the network before and after a plain script has fitted its head."""
    data = np.load(work / f"{task}.npz")
    images = transform_images([Image.fromarray(image) for image in data["train_images"]], side)
    labels = torch.from_numpy(data["train_labels"])
    torch.manual_seed(0)
    net = backbones.build(arch, int(labels.max()) + 1)
    for module in net.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = None  # the mean over all batches
    with torch.no_grad():
        net.train()
        for batch in images.split(100):
            net(batch)
    net.eval()
    torch.save(net.state_dict(), work / f"{file_name(arch, task)}-before.pt")
    head = net.get_submodule(backbones.layer_layout(net, side).head)
    fit_head(net, head, images, labels)
    torch.save(net.state_dict(), work / f"{file_name(arch, task)}.pt")


def file_name(arch, task):
    return f"{arch}, {task}".replace(":", " ")


def fit_head(net, head, images, labels):
    """Fit the head to its end on frozen features: logistic regression on standardized features."""
    features = []
    hook = head.register_forward_pre_hook(lambda _module, inputs: features.append(inputs[0].detach()))
    with torch.no_grad():
        for batch in images.split(100):
            net(batch)
    hook.remove()
    x = torch.cat(features)
    x = x.mean((2, 3)) if x.ndim == 4 else x
    mean, std = x.mean(0), x.std(0).clamp_min(1e-6)
    weight = torch.zeros(int(labels.max()) + 1, x.shape[1], requires_grad=True)
    bias = torch.zeros(len(weight), requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=500, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = F.cross_entropy(((x - mean) / std) @ weight.T + bias, labels) + L2_PENALTY * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    with torch.no_grad():
        folded = weight / std
        head.weight.copy_(folded.view_as(head.weight))
        head.bias.copy_(bias - folded @ mean)


def audit_row(arch, task, work, shared):
    """Return the row of an audit."""
    side, name = first_side(arch), file_name(arch, task)
    if not (work / f"{name}.pt").exists():
        train_network(arch, side, task, work)
    form = {"resize": side, "crop": side, "mean": MEAN, "std": STD}
    case = Case(
        network=arch,
        planted="nothing",
        script=name,
        data=task,
        tables={
            "backbone": {"arch": arch, "preprocessing": form},
            "checkpoint": {"before": str(work / f"{name}-before.pt"), "believed": "trainable=head,batchnorm=eval"},
            "metric": TASKS[task],
        },
    )
    store = work / "healthy.sqlite"
    run, executed = run_audit(audit_suite(case, work, shared), store)
    failures = findings_by_id(run, "FAIL")
    accuracy = next(finding.accuracy["subject"] for finding in run.findings if "subject" in finding.accuracy)
    return {
        "network": arch,
        "task": task,
        "images px": str(side),
        "accuracy": f"{100 * accuracy:.1f}",
        "flagged": join(map(id_and_harm, failures.values())),
        "undecided": join(map(id_and_harm, findings_by_id(run, "INCONCLUSIVE", "ERROR").values())),
        "outcome": outcome(case, {}, failures, list(measure_again(case, executed, run, work, store))),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shared", type=Path, required=True, help="the folder with data and weights")
    parser.add_argument("--keep", type=Path, help="a folder for networks, data and records, which a later call reuses")
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "healthy.csv"
    rows = list(csv.DictReader(path.open(encoding="utf-8"))) if path.exists() else []
    with tempfile.TemporaryDirectory() as folder:
        work = (arguments.keep or Path(folder)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        prepare_data(arguments.shared.resolve(), work)
        for arch in arguments.networks:
            for task in TASKS:
                if (arch, task) in {(row["network"], row["task"]) for row in rows}:
                    continue
                rows.append(audit_row(arch, task, work, arguments.shared))
                print(" | ".join(rows[-1].values()), flush=True)
                write(rows, arguments.out)


def write(rows, out):
    """Write all rows and the page."""
    with (out / "healthy.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(rows)
    (out / "healthy.md").write_text(page(rows), encoding="utf-8")


def page(rows):
    """Return the page of the table."""
    false_alarms = sum(row["outcome"] == "false alarm" for row in rows)
    # The lower bound of the share of audits without a false alarm is the complement of the upper bound of that with one.
    bound = 1 - proportion_lower_bound(len(rows) - false_alarms, len(rows), 0.05)
    networks = len({row["network"] for row in rows})
    return f"""# Audits of healthy networks

{networks} networks of torchvision and timm with random weights, BatchNorm statistics of the {TRAINING_IMAGES} training images,
and a head that a plain script fits to its end on frozen features. All checks, {AUDITED_IMAGES} test images of CIFAR-10, margin
2 points, alpha 5 %. "Airplane or not" has one airplane in ten images, and its metric is balanced accuracy. "Confirmed side
effects" means that {AUDITED_IMAGES} other images confirm every FAIL; "false alarm" means that they do not confirm one of them.
On a CPU ({processor_name()}), one process. Again:
`python tests/benchmarks/healthy.py --shared FOLDER`.

{len(rows)} audits: {counts(row["outcome"] for row in rows)}. The upper 95 % bound of the share of false alarms is {bound:.0%}.

{table_lines(rows)}
"""


if __name__ == "__main__":
    main()
