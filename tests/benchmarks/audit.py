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
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from xferbench import execute, finish, judge, looks, metrics, plan, suite, wording
from xferbench.design import Domain
from xferbench.environment import processor
from xferbench.lab import answer, inputs, reading, small
from xferbench.reason import interval
from xferbench.store import cache

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
TWICE = {"mean": [m + s * m for m, s in zip(MEAN, STD, strict=True)], "std": [s * s for s in STD]}
RIGHT = {"resize": 32, "crop": 32, "mean": MEAN, "std": STD}  # of the published CIFAR networks
PHOTO = {"resize": 128, "crop": 128, "mean": MEAN, "std": STD}
HEAD, ALL = "trainable=head,batchnorm=eval", "trainable=all,batchnorm=train"
RESNET, SQUEEZENET = "weights/resnet20-12fca82f.th", "weights/squeezenet1_0_torchvision_norm.pth"
TRAINED, WATCHED = 1000, 500  # images that a script trains on, and those that it watches
AUDITED = 1000  # test images that the audit is given; the others are the reference


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


# --- the scripts ---


def loop(net, optimizer, images, labels, *, epochs, size, seed, training=True, watched=None, grouped=False):
    """As tutorials write it; with ``watched`` images the best epoch is kept. ``grouped``: batches of one class each."""
    rng, best = torch.Generator().manual_seed(seed), (-1.0, None)
    for _ in range(epochs):
        net.train(training)
        for index in batches(labels, size, rng, grouped):
            optimizer.zero_grad()
            F.cross_entropy(net(images[index]), labels[index]).backward()
            optimizer.step()
        if watched is not None:
            reached = accuracy(net, *watched)
            best = max(best, (reached, {k: v.clone() for k, v in net.state_dict().items()}), key=lambda one: one[0])
    if watched is not None:
        net.load_state_dict(best[1])
    return net


def batches(labels, size, rng, grouped):
    if not grouped:
        return torch.randperm(len(labels), generator=rng).split(size)
    found = [one for label in labels.unique() for one in (labels == label).nonzero().flatten().split(size)]
    return [found[number] for number in torch.randperm(len(found), generator=rng)]


def accuracy(net, images, labels):
    net.eval()
    with torch.no_grad():
        return float((torch.cat([net(part) for part in images.split(256)]).argmax(1) == labels).float().mean())


def resnet(shared, seed):
    """The published network with a fresh head of ten."""
    torch.manual_seed(seed)
    net = small.cifar_resnet(20)
    net.load_state_dict(reading.read(shared / RESNET))
    net.linear = nn.Linear(64, 10)
    return net


def frozen(net, head):
    for parameter in net.parameters():
        parameter.requires_grad = False
    for parameter in head.parameters():
        parameter.requires_grad = True
    return net


def linear_probe(shared, train, watched):
    net = resnet(shared, 1)
    optimizer = torch.optim.Adam(frozen(net, net.linear).linear.parameters(), lr=1e-2)
    return loop(net, optimizer, *train, epochs=12, size=32, seed=1, training=False, watched=watched)


def probe_then_tune(shared, train, watched):
    net = resnet(shared, 2)
    optimizer = torch.optim.Adam(frozen(net, net.linear).linear.parameters(), lr=1e-2)
    loop(net, optimizer, *train, epochs=6, size=32, seed=2, training=False)
    for parameter in net.parameters():
        parameter.requires_grad = True
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    return loop(net, optimizer, *train, epochs=8, size=32, seed=2, watched=watched)


def moving_statistics(shared, train, _):
    net = resnet(shared, 3)
    optimizer = torch.optim.Adam(frozen(net, net.linear).linear.parameters(), lr=1e-3)
    return loop(net, optimizer, *train, epochs=3, size=4, seed=3, grouped=True)


def high_rate(shared, train, _):
    net = resnet(shared, 4)
    return loop(net, torch.optim.Adam(net.parameters(), lr=0.03), *train, epochs=5, size=32, seed=4)


def wrong_attribute(shared, train, _):
    net = resnet(shared, 5)
    for module in net.modules():
        module.requires_grad = False  # of a module, where nothing reads it
    net.linear.requires_grad = True
    return loop(net, torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9), *train, epochs=5, size=32, seed=5)


def early_optimizer(shared, train, _):
    net = resnet(shared, 6)
    frozen(net, net.linear)
    optimizer = torch.optim.SGD([one for one in net.parameters() if one.requires_grad], lr=0.01, momentum=0.9)
    loop(net, optimizer, *train, epochs=3, size=32, seed=6)
    for parameter in net.parameters():
        parameter.requires_grad = True  # which the optimizer never hears of
    return loop(net, optimizer, *train, epochs=4, size=32, seed=7)


def stale_statistics(shared, train, _):
    net = resnet(shared, 8)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.001
    return loop(net, torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9), *train, epochs=8, size=32, seed=8)


def squeezenet(shared, seed, *, loaded=True):
    """torchvision's with a fresh head of two; where not ``loaded``, all names have a prefix that the network lacks."""
    import torchvision

    torch.manual_seed(seed)
    net = torchvision.models.squeezenet1_0()
    state = reading.read(shared / SQUEEZENET)
    net.load_state_dict(state if loaded else {f"module.{name}": one for name, one in state.items()}, strict=loaded)
    net.classifier[1] = nn.Conv2d(512, 2, 1)
    return frozen(net, net.classifier)


def photographs(shared, train, _, *, seed=11, **how):
    """A head on frozen features, which are computed once."""
    net, (images, labels) = squeezenet(shared, seed, **how), train
    net.eval()
    with torch.no_grad():
        known = torch.cat([net.features(part) for part in images.split(16)])
    optimizer = torch.optim.Adam(net.classifier.parameters(), lr=1e-3)
    loop(nn.Sequential(net.classifier, nn.Flatten()), optimizer, known, labels, epochs=20, size=16, seed=seed)
    return net


SCRIPTS = {
    "linear probe": linear_probe,
    "LP-FT": probe_then_tune,
    "moving statistics": moving_statistics,
    "high rate": high_rate,
    "wrong attribute": wrong_attribute,
    "early optimizer": early_optimizer,
    "stale statistics": stale_statistics,
    "photographs": photographs,
    "photographs, classes exchanged": lambda shared, train, _: photographs(shared, (train[0], 1 - train[1]), _, seed=12),
    "photographs, nothing loaded": lambda shared, train, _: photographs(shared, train, _, seed=13, loaded=False),
}


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
FORMS = {
    "the right form": {},
    "mean and std of 0.5": {"mean": [0.5], "std": [0.5]},
    "no normalisation": {"mean": [0.0], "std": [1.0]},
    "normalised twice": TWICE,
    "BGR": {"channels": "bgr"},
}
NETWORKS = {"20": "resnet20-12fca82f.th", "32": "resnet32-d509ac18.th", "44": "resnet44-014dd654.th"}
PICTURES = {"lossless": "npz:cifar-whole.npz", "JPEG": "npz:jpeg.npz"}


# --- the data ---


def prepared(shared, work):
    """The files of all audits and references, written to a folder; the photographs as links."""
    fashion, cifar = mixed(shared), np.load(shared / "data" / "cifar10.npz")
    train = {f"train_{name}": fashion[f"train_{name}"][:TRAINED] for name in ("images", "labels")}
    for name, part in {"fashion": slice(AUDITED), "fashion-reference": slice(AUDITED, None)}.items():
        test = {f"test_{key}": fashion[f"test_{key}"][part] for key in ("images", "labels")}
        np.savez(work / f"{name}.npz", **train, **test)
        as_strings = np.argsort(sorted(range(10), key=lambda label: str(label + 1)))  # 1, 10, 2, 3 …
        labels = {key: as_strings[value] for key, value in (train | test).items() if key.endswith("labels")}
        np.savez(work / f"{name.replace('fashion', 'fashion-strings')}.npz", **(train | test | labels))
    for name, part in {"cifar": slice(500), "cifar-reference": slice(500, None)}.items():
        np.savez(
            work / f"{name}.npz", **dict(cifar) | {f"test_{key}": cifar[f"test_{key}"][part] for key in ("images", "labels")}
        )
    for name, source in {"cifar-whole": "cifar10", "jpeg": "cifar10_jpeg"}.items():
        (work / f"{name}.npz").symlink_to(shared.resolve() / "data" / f"{source}.npz")
    np.savez(work / "leaked.npz", test_images=cifar["train_images"][:AUDITED], test_labels=cifar["train_labels"][:AUDITED])
    whole = shared.resolve() / "data" / "hymenoptera"
    for kind in ("ants", "bees"):
        for number, path in enumerate(sorted((whole / "train" / kind).iterdir())):
            for name in ("ants", "ants-bgr", "ants-reference", "ants-bgr-reference"):
                unseen = number % 2
                if not unseen or name.endswith("reference"):
                    _ = placed(work / name / ("val" if unseen else "train") / kind, path, swapped=unseen and "bgr" in name)
        for path in sorted((whole / "val" / kind).iterdir()):
            for name in ("ants", "ants-bgr"):
                placed(work / name / "val" / kind, path, swapped="bgr" in name)


def mixed(shared):
    """Fashion-MNIST in a random order, since the file is sorted by class."""
    whole = np.load(shared / "data" / "fashion_mnist.npz")
    order = {kind: np.random.default_rng(0).permutation(len(whole[f"{kind}_labels"])) for kind in ("train", "test")}
    return {f"{kind}_{name}": whole[f"{kind}_{name}"][order[kind]] for kind in order for name in ("images", "labels")}


def placed(folder, path, *, swapped):
    """A link to a photograph, or the photograph with its channels the other way round; what is none is linked as it is."""
    from PIL import Image, UnidentifiedImageError

    folder.mkdir(parents=True, exist_ok=True)
    if swapped:
        try:
            Image.fromarray(np.asarray(Image.open(path).convert("RGB"))[:, :, ::-1].copy()).save(folder / f"{path.stem}.png")
        except UnidentifiedImageError:
            return
    else:
        (folder / path.name).symlink_to(path)


def tensors(images, size):
    """Images as a script's transforms make them."""
    from torchvision import transforms

    normal = transforms.Normalize(MEAN, STD)
    made = transforms.Compose([transforms.Resize(size), transforms.CenterCrop(size), transforms.ToTensor(), normal])
    return torch.stack([made(one.convert("RGB")) for one in images])


def training(shared, work, data):
    """What a script trains on and what it watches: images and labels of each."""
    from PIL import Image

    if data == "fashion":
        whole = mixed(shared)
        images = tensors([Image.fromarray(one) for one in whole["train_images"][: TRAINED + WATCHED]], 32)
        labels = torch.from_numpy(whole["train_labels"][: TRAINED + WATCHED]).long()
        return (images[:TRAINED], labels[:TRAINED]), (images[TRAINED:], labels[TRAINED:])
    paths = [
        (path, label)
        for label, kind in enumerate(("ants", "bees"))
        for path in sorted((work / data / "train" / kind).iterdir())
    ]
    return (tensors([Image.open(path) for path, _ in paths], 128), torch.tensor([label for _, label in paths])), None


# --- audits and references ---


def told(case, work, shared):
    """The suite of an audit."""
    table = {"schema": 1, "name": "audit", "plugins": ["all"]} | (FROM_RESNET if case.about == FASHION else {}) | case.told
    checkpoint = {"after": str(work / f"{case.script}.pt")} | table["checkpoint"]
    published = {key: str(shared.resolve() / value) for key, value in checkpoint.items() if str(value).startswith("weights/")}
    data = f"folder:{case.data}" if case.data.startswith("ants") else f"npz:{case.data}.npz"
    table |= {"target": {"data": data}, "checkpoint": checkpoint | published}
    return suite.parse(table, work / "audit.toml")


def audited(asked, store):
    """What `xferbench.run` says of a suite, and the study behind it."""
    executed = execute.execute(asked, path=store, workers=1, device="cpu")
    return finish.finished(executed), executed


def reference(executed, case, contrast, work, data, store):
    """A contrast's estimate under the arms that an audit settled, on images that it has not seen."""
    unseen = inputs.data(f"folder:{work / data}" if data.startswith("ants") else f"npz:{work / data}.npz")
    source = inputs.data(f"npz:{work / 'cifar-reference.npz'}")
    answers = {}
    for arm, view in contrast.weights:
        seen = case.arms[arm].pipeline
        beside = plan.VIEWS[view].domain == "source"
        if beside:
            seen, name = replace(seen, source=replace(seen.source, data=source)), view
        elif "head:refit" in seen.edits:  # fitted on the same training images, which lie beside the unseen ones
            seen, name = replace(seen, target=unseen, test_size=None, judged="test"), "test"
        else:  # what was screened for stays what the audit has found
            classes = tuple(range(executed.study.facts.outputs))
            seen, name = replace(seen, shifted=Domain(data=unseen, classes=classes)), "shifted"
        trial = plan.trial(seen, name, 0, executed.study.place)
        (record,), _ = answer.answer([trial], frozenset([trial.key]), cache(store))
        assert not record.error, record.error
        answers[arm, view, 0] = record
    return judge.judge(contrast, answers, [0], looks.of(contrast, executed.study.suite))


def named(finding):
    """A finding's id without the variant that was its control, and without the word for a plugin's only contrast."""
    return finding.id.removesuffix(f"/{finding.variant}" if finding.variant else "").removesuffix("/harm")


def counted(finding):
    """A finding with its number."""
    return f"{named(finding)} {number(finding)}"


def number(finding):
    if finding.harm is None:
        return "(exact)" if finding.p_fail is None else "(no number)"
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
        "in words": listed(dict.fromkeys(one.reason.partition("; harm is ")[0] for one in hits.values() if "; " in one.reason)),
        "also flagged": listed(map(counted, others.values())),
        "undecided": listed(map(counted, of_verdicts(run, "INCONCLUSIVE", "ERROR").values())),
        "outcome": outcome(case, hits, others, again),
        "seconds": f"{run.cost['seconds']['total']:.0f}",
    }
    print(row["network"], "|", row["planted"], "|", row["flagged"], "|", row["also flagged"], "|", row["outcome"], flush=True)
    return row, again


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
    return "side effects, confirmed" if others else "clean"


def remeasured(case, executed, run, work, store):
    """What is measured again: every FAIL of a contrast with a margin, and what the planted failure was to be named by."""
    verdicts = {named(one): one for one in reversed(run.findings)}
    for one in executed.step.cases:
        for name, contrast in one.contrasts("paired"):
            short = name.removesuffix("/harm")
            planted = is_of(short, case.admissible)
            if verdicts[short].verdict != "FAIL" and not planted:
                continue
            limit = looks.of(contrast, executed.study.suite)
            seen = reference(executed, one, contrast, work, f"{case.data}-reference", store).estimate
            yield {
                "network": case.about,
                "what was planted": case.planted,
                "finding": short,
                "planted": "yes" if planted else "no",
                "verdict": verdicts[short].verdict,
                "audit": number(verdicts[short]),
                "reference": interval(seen, metrics.named(limit.metric).unit),
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
    run, executed = audited(suite.parse(table, work / "autopsy.toml"), store)
    found = of_verdicts(run, "FAIL", "PASS", "INCONCLUSIVE", "ERROR")["preprocessing-mismatch"]
    case = next(one for one in executed.step.cases if one.plugin.id == "preprocessing-mismatch")
    served, right = case.arms["cured"].pipeline.serve_preprocessing, suite.parse(
        table | {"backbone": table["backbone"] | {"preprocessing": RIGHT}}, work / "autopsy.toml"
    ).preprocessing  # fmt: skip
    others = {name: one for name, one in of_verdicts(run, "FAIL").items() if name != "preprocessing-mismatch"}
    row = {
        "network": f"ResNet-{depth}",
        "images": pictures,
        "told": form,
        "accuracy as told": percent(found, "subject"),
        "with what was named": percent(found, "cured"),
        "named": "the right form" if same(served, right) else wording.differences(served, right),
        "confidence": listed(f"{value:.2f}" for name, value in found.measures.items() if "confidence" in name),
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
    """The wall clock of whole commands, an empty store each, and the recorded seconds of the last one by check."""
    import torchvision

    torch.manual_seed(0)
    net = torchvision.models.resnet18(num_classes=2)
    torch.save(net.state_dict(), work / "resnet18-before.pt")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    loop(net, optimizer, torch.randn(32, 3, 64, 64), torch.arange(32) % 2, epochs=1, size=16, seed=0)
    torch.save(net.state_dict(), work / "resnet18-after.pt")
    data = f"folder:{shared.resolve() / 'data' / 'hymenoptera'}"
    command = [sys.executable, "-m", "xferbench", "audit", "--arch", "torchvision:resnet18", "--data", data]
    command += ["--before", str(work / "resnet18-before.pt"), "--after", str(work / "resnet18-after.pt")]
    walls = []
    for number_ in range(rounds):
        how = ["-o", str(work / "timed"), "--store", str(work / f"timed-{number_}.sqlite")]
        begun = perf_counter()
        subprocess.run([*command, *how], check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        walls.append(perf_counter() - begun)
    cost = json.loads((work / "timed" / "results.json").read_text())["cost"]
    return walls, cost, os.getloadavg()[0]


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
        forms = [autopsy(*which, work, shared, store) for which in autopsies()]
        times = timed(work, shared, arguments.rounds)
    audits, again = [row for row, _ in found], [one for _, several in found for one in several]
    with (arguments.out / "audit.csv").open("w", newline="", encoding="utf-8") as file:
        columns = dict.fromkeys(name for row in (*audits, *again, *forms) for name in row)
        writer = csv.DictWriter(file, ["table", *columns], restval="")
        writer.writeheader()
        for name, table in {"planted": audits, "measured again": again, "published networks": forms}.items():
            writer.writerows({"table": name} | row for row in table)
    (arguments.out / "audit.md").write_text(page(audits, again, forms, times), encoding="utf-8")


def trained(work, shared):
    """The networks of all scripts, as they save them."""
    for data in ("fashion", "ants"):
        missing = {case.script for case in CASES if case.data.startswith(data)} & SCRIPTS.keys()
        missing = [name for name in sorted(missing) if not (work / f"{name}.pt").exists()]
        given = training(shared, work, data) if missing else ()
        for name in missing:
            torch.save(SCRIPTS[name](shared, *given).state_dict(), work / f"{name}.pt")


HEAD_OF_PAGE = """# What audits find in networks that plain scripts have fine-tuned
"""


def page(audits, again, forms, times):
    """The committed tables."""
    del times
    return HEAD_OF_PAGE + "\n\n".join(map(tabled, (audits, again, forms))) + "\n"


def tabled(rows_):
    lines = [" | ".join(rows_[0]), " | ".join("---" for _ in rows_[0]), *(" | ".join(one.values()) for one in rows_)]
    return "\n".join(f"| {line} |" for line in lines)


if __name__ == "__main__":
    main()
