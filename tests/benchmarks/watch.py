"""What watching a loop costs: steps with and without, interleaved; the table is committed.

python tests/benchmarks/watch.py [--rounds 12] [--out reports/benchmarks]
"""

from __future__ import annotations

import argparse
import os
import platform
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
import torchvision
from torch import nn
from torch.nn import functional as F

import xferbench
from xferbench.environment import processor
from xferbench.lab import small

EVERY = 10
HEAD_ONLY = {"trainable": "head", "batchnorm": "eval"}


def tiny(classes):
    body = [nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*body, nn.Linear(8, classes))


NETS = {
    "ResNet-18, 64 pixels, batches of 16": (lambda: torchvision.models.resnet18(num_classes=10), 64, 16, 1),
    "tiny-resnet, 32 pixels, batches of 32": (lambda: small.tiny_resnet(10), 32, 32, 4),
    "one convolution and a head, 16 pixels, batches of 16": (lambda: tiny(10), 16, 16, 40),
}


def prepared(make, side, batch, probe):
    """A function that takes a number of steps, and the model and optimizer that it steps."""
    torch.manual_seed(0)
    model = make()
    if probe:
        model.eval().requires_grad_(False)
        list(model.modules())[-1].requires_grad_(True)
    optimizer = torch.optim.AdamW([tensor for tensor in model.parameters() if tensor.requires_grad], lr=1e-5)
    x, y = torch.randn(batch, 3, side, side), torch.randint(10, (batch,))

    def steps(count, watch=None):
        begun = perf_counter()
        for _ in range(count):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            if watch is not None:
                watch.step(loss)
        return (perf_counter() - begun) / count

    return steps, model, optimizer


def measured(make, side, batch, many, rounds, *, probe):
    """Median seconds of a step without, the ratios of each pair of stretches, and the seconds of entering and leaving.

    A stretch is ``many`` times as many steps as lie between two checks, so that each holds its share of them. Which of a pair
    comes first changes from pair to pair.
    """
    steps, model, optimizer = prepared(make, side, batch, probe)
    steps(EVERY)
    bare, ratios, around = [], [], []
    for number in range(rounds):
        pair = {}
        for watching in ((False, True), (True, False))[number % 2]:
            if not watching:
                pair[False] = steps(EVERY * many)
                continue
            begun = perf_counter()
            with xferbench.watch(model, optimizer, recipe=HEAD_ONLY if probe else None, on_event="raise", every=EVERY) as watch:
                entered = perf_counter() - begun
                steps(EVERY, watch)  # the first steps are checked more often, once in a training
                pair[True] = steps(EVERY * many, watch)
                begun = perf_counter()
            around.append(entered + perf_counter() - begun)
        bare.append(pair[False])
        ratios.append(pair[True] / pair[False])
    return median(bare), ratios, median(around)


def main():
    parser = argparse.ArgumentParser(description="Measure what watching a training loop costs.")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = {}
    for name, (make, side, batch, many) in NETS.items():
        for probe in (False, True):
            how = "linear probe" if probe else "full fine-tuning"
            rows[name, how] = measured(make, side, batch, many, arguments.rounds, probe=probe)
            print(name, how, rows[name, how])
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "watch.md").write_text(page(rows, arguments.rounds), encoding="utf-8")


def page(rows, rounds):
    """The committed table."""
    head = f"""# What watching a loop costs

`xferbench.watch` around a training loop, everything checked at every {EVERY}th step (the default), losses told; one thread
of {processor()}, {os.cpu_count()} of them, no GPU, Python {platform.python_version()}, PyTorch {torch.__version__}. Stretches of steps with and without are interleaved,
{rounds} pairs; the ratio is that of a pair, its median with the least and the most. Entering and leaving is paid once a
training. Wanted: below 5 % of a step of ResNet-18. Again: `python tests/benchmarks/watch.py`.

| loop | trained | step without, ms | a step costs more by | least | most | entering and leaving, ms |
|---|---|---|---|---|---|---|
"""
    lines = [
        f"| {name} | {how} | {1000 * step:.2f} | {percent(median(ratios))} | {percent(min(ratios))} | {percent(max(ratios))} "
        f"| {1000 * around:.1f} |"
        for (name, how), (step, ratios, around) in rows.items()
    ]
    return head + "\n".join(lines) + "\n"


def percent(ratio):
    return f"{100 * (ratio - 1):+.1f} %"


if __name__ == "__main__":
    main()
