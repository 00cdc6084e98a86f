"""What watching a loop costs: steps with and without, interleaved; the table is committed.

python tests/benchmarks/watch.py [--rounds 12] [--out reports/benchmarks]
"""

from __future__ import annotations

import argparse
import os
import platform
from pathlib import Path
from statistics import median
from time import process_time

import torch
import torchvision
from torch import nn
from torch.nn import functional as F

import xferbench
from xferbench.lab.models import small_resnets
from xferbench.runner.environment import processor_name

EVERY = 10
HEAD_ONLY = {"trainable": "head", "batchnorm": "eval"}


def tiny(classes):
    body = [nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*body, nn.Linear(8, classes))


NETS = {  # with the blocks of steps that are timed
    "ResNet-18, 64 pixels, batches of 16": (lambda: torchvision.models.resnet18(num_classes=10), 64, 16, 8),
    "tiny-resnet, 32 pixels, batches of 32": (lambda: small_resnets.tiny_resnet(10), 32, 32, 60),
    "one convolution and a head, 16 pixels, batches of 16": (lambda: tiny(10), 16, 16, 600),
}


def looped(make, side, batch, *, probe):
    """A model, its optimizer, and a function that takes one step and gives its seconds of processor time."""
    torch.manual_seed(0)
    model = make()
    if probe:
        model.eval().requires_grad_(False)
        list(model.modules())[-1].requires_grad_(True)
    optimizer = torch.optim.AdamW([tensor for tensor in model.parameters() if tensor.requires_grad], lr=1e-5)
    x, y = torch.randn(batch, 3, side, side), torch.randint(10, (batch,))

    def step(watch=None):
        begun = process_time()
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        if watch is not None:
            watch.step(loss)
        return process_time() - begun

    return model, optimizer, step


def measured(make, side, batch, blocks, *, probe):
    """Seconds of a step without, what a watched one takes longer for each block, and the seconds of entering and leaving.

    Two copies of a loop, one watched, take turns step by step. A block is as many steps of each as lie between two checks, so
    that it holds one.
    """
    (_, _, bare), (model, optimizer, step) = (looped(make, side, batch, probe=probe) for _ in range(2))
    begun = process_time()
    with xferbench.watch(model, optimizer, recipe=HEAD_ONLY if probe else None, on_event="raise", every=EVERY) as watch:
        around = process_time() - begun
        for _ in range(EVERY):  # the first steps are checked more often, once in a training
            bare(), step(watch)
        pairs = [[(bare(), step(watch)) for _ in range(EVERY)] for _ in range(blocks)]
        begun = process_time()
    around += process_time() - begun
    without = [sum(one for one, _ in block) / EVERY for block in pairs]
    longer = [sum(other for _, other in block) / EVERY - one for one, block in zip(without, pairs, strict=True)]
    return median(without), longer, around


def main():
    parser = argparse.ArgumentParser(description="Measure what watching a training loop costs.")
    parser.add_argument("--rounds", type=int, default=1, help="times as many blocks")
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = {}
    for name, (make, side, batch, blocks) in NETS.items():
        for probe in (False, True):
            how = "linear probe" if probe else "full fine-tuning"
            rows[name, how] = measured(make, side, batch, blocks * arguments.rounds, probe=probe)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "watch.md").write_text(page(rows), encoding="utf-8")


def page(rows):
    """The committed table."""
    machine = f"{os.cpu_count()} cores ({processor_name()}), no GPU"
    head = f"""# What watching a loop costs

`xferbench.watch` around a training loop, all checks at every {EVERY}th step (the default), losses told. One thread on
{machine}, Python {platform.python_version()}, PyTorch {torch.__version__}.
Two copies of a loop, one of them watched, take turns step by step; each block of {EVERY} steps, which holds one check, gives
a difference, of which the median is told, with the middle half of all. Times are the process's own, not the clock's, since
the machine is shared; it is noisy even so. Entering and leaving is paid once a training. Wanted: below 5 % for ResNet-18.
Where a step takes a few milliseconds, raise `every`. Again: `python tests/benchmarks/watch.py`.

| loop | trained | a step, ms | longer by, ms | longer by | middle half | blocks | entering and leaving, ms |
|---|---|---|---|---|---|---|---|
"""
    lines = []
    for (name, how), (step, longer, around) in rows.items():
        low, middle, high = (quantile(longer, share) for share in (0.25, 0.5, 0.75))
        half = f"{percent(low / step)} to {percent(high / step)}"
        told = f"{1000 * step:.2f} | {1000 * middle:.3f} | {percent(middle / step)} | {half} | {len(longer)}"
        lines.append(f"| {name} | {how} | {told} | {1000 * around:.1f} |")
    return head + "\n".join(lines) + "\n"


def quantile(values, share):
    return sorted(values)[round(share * (len(values) - 1))]


def percent(ratio):
    return f"{100 * ratio:+.1f} %"


if __name__ == "__main__":
    main()
