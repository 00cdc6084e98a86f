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

from xferbench.config import loader
from xferbench.core.pipeline import Backbone, Pipeline, PipelineData, Serving
from xferbench.core.transforms import Preprocessing
from xferbench.core.trial import ComputeContext
from xferbench.core.version import LAB_VERSION
from xferbench.data import inputs, synthetic
from xferbench.runner.environment import processor_name
from xferbench.study.trials import make_trial

LINEAR_PROBE = {
    "schema": 1,
    "name": "probe",
    "plugins": ["all"],
    "backbone": {"arch": "tiny-resnet"},
    "target": {"data": "synthetic:near", "train_size": 800},
    "recipe": {"strategy": "linear-probe", "lr": 1e-2},
}


def linear_probe_seconds(folder, rounds):
    """Return the seconds of each training of a linear probe, after a first one that fills the cache of embeddings."""
    import torch

    from xferbench.lab.training import loop
    from xferbench.lab.worker import run_trials

    torch.set_num_threads(1)
    suite = loader.parse_suite(LINEAR_PROBE, Path("probe.toml"))
    preprocessing = Preprocessing()
    pipeline = Pipeline(
        backbone=Backbone(arch=suite.backbone.arch, weights=inputs.digest_weights(suite)),
        data=PipelineData(
            target=inputs.digest_data(suite.data.target),
            train_preprocessing=preprocessing,
            train_size=suite.data.train_size,
            test_size=suite.data.test_size,
        ),
        recipe=suite.recipe,
        serving=Serving(preprocessing=preprocessing),
    )
    trial = make_trial(pipeline, "test", 0, ComputeContext(device="cpu", torch="", lab=LAB_VERSION))
    spec = trial.model.base
    dataset, network = run_trials.training_inputs(spec, trial, folder)
    starts = [run_trials.start_tensors(spec, network, trial, folder)]
    loop.train([spec], network, starts, dataset)
    return [call_seconds(loop.train, [spec], network, starts, dataset) for _ in range(rounds)]


def synthetic_seconds(_, rounds):
    """Return the seconds of each generation of 10 000 synthetic images."""
    return [call_seconds(synthetic.generate, "source", "train", 10_000) for _ in range(rounds)]


PROBES = {"linear-probe": linear_probe_seconds, "synthetic": synthetic_seconds}


def call_seconds(function, *arguments):
    """Return the wall-clock seconds of a call."""
    start = perf_counter()
    function(*arguments)
    return perf_counter() - start


def process_seconds(*command, rounds=1):
    """Return the wall-clock seconds of a whole process, for each round."""
    python_command = [sys.executable, *command]
    output = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return [call_seconds(lambda: subprocess.run(python_command, check=True, **output)) for _ in range(rounds)]


def probe_seconds(name, folder, rounds):
    """Return the seconds that a probe measures in a process of its own, with one thread."""
    command = [sys.executable, __file__, "--probe", name, str(folder), "--rounds", str(rounds)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.run(command, check=True, capture_output=True, text=True, env=env)
    return [float(line) for line in process.stdout.split()]


def main():
    parser = argparse.ArgumentParser(description="Measure how long things take.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks"))
    parser.add_argument("--probe", nargs=2, help=argparse.SUPPRESS)  # a key of PROBES, and a folder for its cache
    arguments = parser.parse_args()
    if arguments.probe:
        name, folder = arguments.probe
        print(*PROBES[name](Path(folder), arguments.rounds), sep="\n")
        return
    rows = measure(arguments.rounds)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "times.md").write_text(page(rows), encoding="utf-8")


def measure(rounds):
    """Return the seconds of each round and the target of each row of the table."""
    rows, cli = {}, ("-m", "xferbench")
    with tempfile.TemporaryDirectory() as folder:
        for suite, target in (("quick", "at most 8 s"), ("text-quick", "at most 5 s")):
            first, second = [], []
            for number in range(rounds):
                place = f"{folder}/{suite}-{number}"
                command = (*cli, "run", suite, "--store", f"{place}.sqlite", "-o", place)
                first += process_seconds(*command)
                second += process_seconds(*command)
            rows[f"`xferbench run {suite}`, nothing in the store"] = (first, "at most 120 s")
            rows[f"`xferbench run {suite}` again, nothing trained"] = (second, target)
        rows["a linear probe on 800 images, embeddings cached, 150 steps of 32"] = (
            probe_seconds("linear-probe", folder, rounds + 2),
            "below 1 s",
        )
        rows["`xferbench --help`"] = (process_seconds(*cli, "--help", rounds=rounds + 2), "at most 0.3 s")
        rows["`python -c pass`, for comparison"] = (process_seconds("-c", "pass", rounds=rounds + 2), "")
        rows["10 000 synthetic images, one core"] = (probe_seconds("synthetic", folder, rounds), "about 2 s")
    times = [report.render_seconds(*report.make_large_run(8, 20, 2000)) for _ in range(rounds)]
    first_renders, second_renders = zip(*times, strict=True)
    rows["report of 8 plugins × 20 seeds, 2000 test images"] = (first_renders, "at most 5 s")
    rows["the same report again"] = (second_renders, "at most 1 s")
    return rows


def page(rows):
    """Return the page of the table."""
    machine = f"{os.cpu_count()} cores ({processor_name()}), no GPU, Python {platform.python_version()}"
    head = f"""# How long things take

Times are of whole processes unless the row says otherwise, on {machine}.
The machine is shared and noisy: read the median. Again: `python tests/benchmarks/times.py`.

| what | median s | least | most | runs | wanted |
|---|---|---|---|---|---|
"""
    lines = [
        f"| {what} | {median(times):.2f} | {min(times):.2f} | {max(times):.2f} | {len(times)} | {target} |"
        for what, (times, target) in rows.items()
    ]
    return head + "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
