"""What watching a loop costs: steps with and without a watch in turn; the table is committed.

python tests/benchmarks/watch.py [--rounds 1] [--out reports/benchmarks]
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


def tiny_net(classes):
    """Return a network of one convolution and a head."""
    body = [nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*body, nn.Linear(8, classes))


NETS = {  # name: builder, side of the images, batch size, blocks of steps that are timed
    "ResNet-18, 64 pixels, batches of 16": (lambda: torchvision.models.resnet18(num_classes=10), 64, 16, 8),
    "tiny-resnet, 32 pixels, batches of 32": (lambda: small_resnets.tiny_resnet(10), 32, 32, 60),
    "one convolution and a head, 16 pixels, batches of 16": (lambda: tiny_net(10), 16, 16, 600),
}


def make_loop(make, side, batch, *, probe):
    """Return a model, its optimizer, and a function that takes one step and returns its seconds of processor time."""
    torch.manual_seed(0)
    model = make()
    if probe:
        model.eval().requires_grad_(False)
        list(model.modules())[-1].requires_grad_(True)
    optimizer = torch.optim.AdamW([tensor for tensor in model.parameters() if tensor.requires_grad], lr=1e-5)
    x, y = torch.randn(batch, 3, side, side), torch.randint(10, (batch,))

    def step(watch=None):
        start = process_time()
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        if watch is not None:
            watch.step(loss)
        return process_time() - start

    return model, optimizer, step


def measure(make, side, batch, blocks, *, probe):
    """Return the seconds of a step without a watch, the additional seconds with it by block, and those of entry and exit.

    Two copies of a loop take turns step by step; one of them is watched. A block has the steps between two checks, so it
    contains one check.
    """
    (_, _, plain_step), (model, optimizer, step) = (make_loop(make, side, batch, probe=probe) for _ in range(2))
    start = process_time()
    with xferbench.watch(model, optimizer, recipe=HEAD_ONLY if probe else None, on_event="raise", every=EVERY) as watch:
        entry_and_exit = process_time() - start
        for _ in range(EVERY):  # the first steps of a training have more checks
            plain_step(), step(watch)
        pairs = [[(plain_step(), step(watch)) for _ in range(EVERY)] for _ in range(blocks)]
        start = process_time()
    entry_and_exit += process_time() - start
    plain = [sum(seconds for seconds, _ in block) / EVERY for block in pairs]
    watched = [sum(seconds for _, seconds in block) / EVERY for block in pairs]
    additional = [after - before for before, after in zip(plain, watched, strict=True)]
    return median(plain), additional, entry_and_exit


def main():
    parser = argparse.ArgumentParser(description="Measure what watching a training loop costs.")
    parser.add_argument("--rounds", type=int, default=1, help="factor on the number of blocks")
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = {}
    for name, (make, side, batch, blocks) in NETS.items():
        for probe in (False, True):
            how = "linear probe" if probe else "full fine-tuning"
            rows[name, how] = measure(make, side, batch, blocks * arguments.rounds, probe=probe)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "watch.md").write_text(page(rows), encoding="utf-8")


def page(rows):
    """Return the page of the table."""
    machine = f"{os.cpu_count()} cores ({processor_name()}), no GPU"
    head = f"""# What watching a loop costs

`xferbench.watch` around a training loop, all checks at every {EVERY}th step (the default), losses reported. One thread on
{machine}, Python {platform.python_version()}, PyTorch {torch.__version__}.
Two copies of a loop take turns step by step; one of them is watched. Each block of {EVERY} steps has one check and gives one
difference; the table has the median of the differences and their middle half. Times are processor times, because the machine
is shared; they are noisy even so. Each training enters and leaves the watch once. Target: below 5 % for ResNet-18. If a step
takes a few milliseconds, raise `every`. Again: `python tests/benchmarks/watch.py`.

| loop | trained | a step, ms | longer by, ms | longer by | middle half | blocks | entering and leaving, ms |
|---|---|---|---|---|---|---|---|
"""
    lines = []
    for (name, how), (step, additional, entry_and_exit) in rows.items():
        low, middle, high = (quantile(additional, share) for share in (0.25, 0.5, 0.75))
        half = f"{percent(low / step)} to {percent(high / step)}"
        times = f"{1000 * step:.2f} | {1000 * middle:.3f} | {percent(middle / step)} | {half} | {len(additional)}"
        lines.append(f"| {name} | {how} | {times} | {1000 * entry_and_exit:.1f} |")
    return head + "\n".join(lines) + "\n"


def quantile(values, share):
    """Return an empirical quantile."""
    return sorted(values)[round(share * (len(values) - 1))]


def percent(ratio):
    """Write a ratio in percent with its sign."""
    return f"{100 * ratio:+.1f} %"


if __name__ == "__main__":
    main()
