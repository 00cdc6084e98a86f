"""What the questions of a suite cost if the loop of the tutorials answers each by itself, in comparison with xferbench.

    python tests/benchmarks/tutorials.py [full] [--seeds 5] [--rounds 3] [--measured SECONDS --store FILE] [--out FOLDER]

The benchmark asks every question of a plugin as if there were no other: a script (tutorial.py) for each arm and seed, and for
each candidate and tuning seed of a selection. It times one script of each shape. The total is counts × times.
"""

from __future__ import annotations

import argparse
import os
import pickle
import platform
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import NamedTuple

from xferbench.config import loader
from xferbench.core.interventions import ALL_LAYERS, Adapters, LoRA
from xferbench.lab.data import datasets
from xferbench.lab.models import backbones
from xferbench.runner import execute, store
from xferbench.runner.environment import processor_name
from xferbench.study import schedule
from xferbench.testing import fake_lab

SCRIPT = Path(__file__).with_name("tutorial.py")
# Without a number of threads: each process uses its own default.
FREE_ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}


class Shape(NamedTuple):
    """What the time of a script depends on: data, number of training images, and kind, steps and batch size of each phase."""

    data: str
    images: int | None
    phases: tuple[tuple[str, int, int], ...]


class ScriptTime(NamedTuple):
    """Median seconds of a script: of the whole process, and since the end of its imports."""

    process: float
    work: float


def main():
    """Count the scripts of a suite, time one of each shape, and write the page."""
    arguments = parse_arguments()
    overrides = [f"looks=[{arguments.seeds}]"]
    suite = loader.load_suite(loader.find_suite(arguments.suite), overrides)
    with tempfile.TemporaryDirectory() as folder:
        store_path = arguments.store or Path(folder) / "store.sqlite"
        run_seconds = arguments.measured or measure_run(arguments.suite, overrides, store_path, Path(folder))
        specs, unknown = requested_specs(suite, store_path)
        by_shape = defaultdict(list)
        for spec in specs:
            by_shape[shape_of(spec)].append(spec)
        times = {}
        for number, (shape, same_shape) in enumerate(by_shape.items(), start=1):
            cache = store.cache_folder(store_path)
            times[shape] = time_script(same_shape[0], suite, cache, Path(folder), arguments.rounds)
            line = f"{len(same_shape)} × {times[shape].process:.2f} s  {describe_shape(shape)}"
            print(f"{number} of {len(by_shape)} shapes: {line}", file=sys.stderr)
    text = page(arguments, run_seconds, unknown, by_shape, times)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / f"{suite.name}.md").write_text(text, encoding="utf-8")
    print(text)


def parse_arguments():
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("suite", nargs="?", default="full" if "full" in loader.shipped_suites() else "quick")
    parser.add_argument("--seeds", type=int, default=5, help="seeds of verdicts, which replace the looks of the suite")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each script")
    parser.add_argument("--measured", type=float, metavar="SECONDS", help="the time of xferbench, which is not run again")
    parser.add_argument(
        "--store", type=Path, metavar="FILE", help="the store of that run, for its selections; default: a new one"
    )
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks"))
    return parser.parse_args()


def measure_run(suite_name, overrides, store_path, folder):
    """Return the wall-clock seconds of ``xferbench run`` with an empty store and its default number of workers."""
    if store_path.exists():
        raise SystemExit(f"{store_path} exists: give a new store, or --measured SECONDS")
    command = [sys.executable, "-m", "xferbench", "run", suite_name, "--store", store_path, "-o", folder / "report"]
    command += [part for override in overrides for part in ("--set", override)]
    start = perf_counter()
    process = subprocess.run(command, env=FREE_ENVIRONMENT, check=False)
    if process.returncode not in {0, 1}:  # 1 means that the run has a FAIL
        raise SystemExit(f"xferbench ended with {process.returncode}")
    return perf_counter() - start


def requested_specs(suite, store_path):
    """Return the training spec of each request, and the number of records that the store lacks; random ones replace them."""
    random_lab = fake_lab.fake_lab(measures=defaultdict(dict, {"": {}}))
    records, unknown = {}, 0
    with execute.open_study(suite, store_path, "cpu", None) as (study, db, _):
        while True:
            step = schedule.next_schedule(study, records)
            missing = {key: trial for key, trial in step.pending.items() if key not in records}
            if not missing:
                break
            stored = store.get_records(db, missing)
            unknown += len(missing) - len(stored)
            records |= {key: stored.get(key) or random_lab(trial) for key, trial in missing.items()}
    requests = dict.fromkeys((request.plugin, request.arm, request.trial.model.base) for request in step.requests)
    specs = [spec for _, _, spec in requests if spec.procedure.phases]  # an initial network needs no script
    return specs, unknown


def shape_of(spec):
    """Return the shape of a spec's script."""
    kind, _, location = spec.data.dataset.spec.partition(":")
    phases = tuple((str(phase.trainable), phase.steps, phase.batch_size) for phase in spec.procedure.phases)
    return Shape(data=f"{kind}:{Path(location).name}", images=spec.data.train_size, phases=phases)


def time_script(spec, suite, cache, folder, rounds):
    """Return the median times of the script of a spec, with the default number of threads of torch."""
    test_size = suite.data.test_size if spec.data.dataset.spec == suite.data.target else None
    dataset = datasets.load_dataset(spec.data.dataset, spec.data.preprocessing, test_size, cache)
    network = backbones.build(spec.network.arch, len(dataset.classes), spec.network.code)
    layout = backbones.layer_layout(network, datasets.input_shape(dataset, spec.data.preprocessing))
    kinds = [ALL_LAYERS if isinstance(phase.trainable, LoRA | Adapters) else phase.trainable for phase in spec.procedure.phases]
    trainable_names = [backbones.trainable_names(layout, network, kind) for kind in kinds]
    task, times = folder / "task.pickle", []
    task.write_bytes(pickle.dumps((spec, trainable_names, layout.head, test_size, cache)))
    for _ in range(rounds):
        start = perf_counter()
        process = subprocess.run(
            [sys.executable, SCRIPT, task], env=FREE_ENVIRONMENT, check=True, capture_output=True, text=True
        )
        times.append((perf_counter() - start, float(process.stdout.split()[0])))
    return ScriptTime(*map(median, zip(*times, strict=True)))


def describe_shape(shape):
    """Write a shape in words."""
    phases = ", then ".join(f"{kind} {steps} × {size}" for kind, steps, size in shape.phases)
    return f"{shape.data}, {shape.images or 'all'} images: {phases}"


def page(arguments, run_seconds, unknown, by_shape, times):
    """Return the page of the tables."""
    counts = {shape: len(specs) for shape, specs in by_shape.items()}
    requested, unique = sum(counts.values()), sum(len(set(specs)) for specs in by_shape.values())
    process_total = sum(count * times[shape].process for shape, count in counts.items())
    work_total = sum(count * times[shape].work for shape, count in counts.items())
    random_note = f"; the store lacks {unknown} records, so some selections are random" if unknown else ""
    source = "given (`--measured`)" if arguments.measured else "measured here, empty store, its default workers"
    rows = [
        ("xferbench, wall-clock", f"{run_seconds:.0f} s", source),
        ("fits asked, once for each question and arm", f"{requested}", f"counted: {arguments.seeds} seeds{random_note}"),
        ("fits that differ, which xferbench trains", f"{unique}", "counted"),
        ("asked for each one trained", f"{requested / unique:.2f}", "counted"),
        ("the tutorials' scripts, one after another", f"{process_total:.0f} s", "extrapolated: counts × times below"),
        ("of that, interpreters and imports", f"{process_total - work_total:.0f} s", "extrapolated likewise"),
        ("**tutorials / xferbench**", f"**{process_total / run_seconds:.1f}**", "extrapolated / wall-clock"),
        (
            "the same without start-up of the scripts",
            f"{work_total / run_seconds:.1f}",
            "extrapolated / wall-clock, its own start-up in it",
        ),
    ]
    slowest_first = sorted(counts, key=lambda shape: -counts[shape] * times[shape].process)
    shapes = [
        f"| {describe_shape(shape)} | {counts[shape]} | {times[shape].process:.2f} | {times[shape].work:.2f} |"
        for shape in slowest_first
    ]
    head = f"""# What the questions of `{arguments.suite}` cost by the tutorials' loop

On {os.cpu_count()} cores ({processor_name()}), no GPU, Python {platform.python_version()}. A question of a plugin consists of
its subject, cured, induced and scratch arms and their tuning. A script is one of them at one seed, in a process of its own with
the default number of threads of torch; each step runs the whole network, and one test follows at the end. The time of the
tutorials excludes decoding and resizing (the arrays exist), terms of the loss, augmentation, adapters (timed as all layers) and
repeated evaluations of one network.

| what | | how it is known |
|---|---:|---|
"""
    table = "\n".join(f"| {what} | {value} | {basis} |" for what, value, basis in rows)
    scripts = (
        f"| script: data, images, what trains, steps × batch | asked | s (median of {arguments.rounds}) | without start-up |"
    )
    again = f"Again: `python tests/benchmarks/tutorials.py {arguments.suite}`."
    return f"{head}{table}\n\n{again}\n\n{scripts}\n|---|---:|---:|---:|\n" + "\n".join(shapes) + "\n"


if __name__ == "__main__":
    main()
