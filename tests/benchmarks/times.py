"""How long things take, each several times; the table is committed, and no test asserts an absolute time.

python tests/benchmarks/times.py [--rounds 3] [--out reports/benchmarks]
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

import report

from xferbench.runner.environment import processor_name

PROBE = """
import sys, torch
from time import perf_counter
from pathlib import Path
from xferbench import plan, suite
from xferbench.core.pipeline import Pipeline, Place, Preprocessing
from xferbench.lab import VERSION, answer, fit, inputs
torch.set_num_threads(1)
table = {"schema": 1, "name": "probe", "plugins": ["all"], "backbone": {"arch": "tiny-resnet"},
         "target": {"data": "synthetic:near", "train_size": 800}, "recipe": {"strategy": "linear-probe", "lr": 1e-2}}
asked = suite.parse(table, Path("probe.toml"))
ready = Preprocessing()
pipeline = Pipeline(arch=asked.arch, weights=inputs.weights(asked), target=inputs.data(asked.target), train_size=800,
                    test_size=None, recipe=asked.recipe, train_preprocessing=ready, serve_preprocessing=ready)
one = plan.fit(pipeline, 0)
trial = plan.trial(pipeline, "test", 0, Place(device="cpu", torch="", lab=VERSION))
dataset, network = answer.material(one, trial, Path(sys.argv[1]))
starts = [answer.start(one, network, trial, Path(sys.argv[1]))]
fit.train([one], network, starts, dataset)
for _ in range(int(sys.argv[2])):
    begun = perf_counter()
    fit.train([one], network, starts, dataset)
    print(perf_counter() - begun)
"""
GENERATE = """
import sys
from time import perf_counter
from xferbench.lab import synthetic
for _ in range(int(sys.argv[1])):
    begun = perf_counter()
    synthetic.generate("source", "train", 10_000)
    print(perf_counter() - begun)
"""


def seconds(*command, rounds=1, **more):
    """Wall-clock seconds of a whole process, each round."""
    times = []
    for _ in range(rounds):
        begun = perf_counter()
        subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **more)
        times.append(perf_counter() - begun)
    return times


def printed(code, *arguments):
    """The numbers that a program prints."""
    told = subprocess.run(
        [sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True, env=one_thread()
    )
    return [float(line) for line in told.stdout.split()]


def one_thread():
    return os.environ | {"OMP_NUM_THREADS": "1"}


def main():
    parser = argparse.ArgumentParser(description="Measure how long things take.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks"))
    arguments = parser.parse_args()
    rounds, cli = arguments.rounds, ("-m", "xferbench")
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        first, second = [], []
        for number in range(rounds):
            how = (*cli, "run", "quick", "--store", f"{folder}/{number}.sqlite", "-o", f"{folder}/{number}")
            first += seconds(*how)
            second += seconds(*how)
        rows["`xferbench run quick`, nothing in the store"] = (first, "at most 120 s")
        rows["the same again, nothing trained"] = (second, "at most 8 s")
        rows["a linear probe on 800 images, embeddings cached, 150 steps of 32"] = (
            printed(PROBE, folder, str(rounds + 2)),
            "below 1 s",
        )
    rows["`xferbench --help`"] = (seconds(*cli, "--help", rounds=rounds + 2), "at most 0.3 s")
    rows["`python -c pass`, for comparison"] = (seconds("-c", "pass", rounds=rounds + 2), "")
    rows["10 000 synthetic images, one core"] = (printed(GENERATE, str(rounds)), "about 2 s")
    rendered = list(zip(*(report.measured(*report.made(8, 20, 2000)) for _ in range(rounds)), strict=True))
    rows["report of 8 plugins × 20 seeds, 2000 test images"] = (rendered[0], "at most 5 s")
    rows["the same report again"] = (rendered[1], "at most 1 s")
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "times.md").write_text(page(rows), encoding="utf-8")


def page(rows):
    """The committed table."""
    head = f"""# How long things take

Whole processes unless said, on {os.cpu_count()} cores ({processor_name()}), no GPU, Python {platform.python_version()}.
The machine is shared and noisy: read the median. Again: `python tests/benchmarks/times.py`.

| what | median s | least | most | runs | wanted |
|---|---|---|---|---|---|
"""
    lines = [
        f"| {what} | {median(times):.2f} | {min(times):.2f} | {max(times):.2f} | {len(times)} | {wanted} |"
        for what, (times, wanted) in rows.items()
    ]
    return head + "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
