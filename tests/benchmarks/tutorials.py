"""What the same questions cost when each is asked by the tutorials' loop: what xferbench's own wall-clock is held against.

    python tests/benchmarks/tutorials.py [full] [--seeds 5] [--rounds 3] [--measured SECONDS --store FILE] [--out FOLDER]

Every plugin's question is asked as if there were no other: a script (tutorial.py) for each arm and seed, and for each candidate
and tuning seed of what is tuned. Scripts of one shape are timed, not all are run: the total is counts × times.
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
FREE = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}  # each its own default


class Shape(NamedTuple):
    """What a script's time depends on: the images, how many are trained on, and each phase's kind, steps and batch size."""

    data: str
    images: int | None
    phases: tuple[tuple[str, int, int], ...]


class Timed(NamedTuple):
    """Median seconds of a script, as a whole process and from the end of its imports on."""

    whole: float
    inside: float


def main():
    """Ask, time, count, write."""
    arguments = parsed()
    words = [f"looks=[{arguments.seeds}]"]
    asked_suite = loader.load_suite(loader.find_suite(arguments.suite), words)
    with tempfile.TemporaryDirectory() as folder:
        place = arguments.store or Path(folder) / "store.sqlite"
        own = arguments.measured or measured(arguments.suite, words, place, Path(folder))
        asked, unknown = questions(asked_suite, place)
        by_shape = defaultdict(list)
        for fit in asked:
            by_shape[shape(fit)].append(fit)
        times = {}
        for number, (one, fits) in enumerate(by_shape.items(), start=1):
            times[one] = timed(fits[0], asked_suite, store.cache_folder(place), Path(folder), arguments.rounds)
            print(f"{number} of {len(by_shape)} shapes: {len(fits)} × {times[one].whole:.2f} s  {told(one)}", file=sys.stderr)
    text = page(arguments, own, unknown, by_shape, times)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / f"{asked_suite.name}.md").write_text(text, encoding="utf-8")
    print(text)


def parsed():
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("suite", nargs="?", default="full" if "full" in loader.shipped_suites() else "quick")
    parser.add_argument("--seeds", type=int, default=5, help="judged seeds, in the place of the suite's looks")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each script")
    parser.add_argument("--measured", type=float, metavar="SECONDS", help="what xferbench took; it is not run again")
    parser.add_argument(
        "--store", type=Path, metavar="FILE", help="its store, from which choices are read; default: a fresh one"
    )
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks"))
    return parser.parse_args()


def measured(word, words, place, folder):
    """Wall-clock seconds of ``xferbench run`` on a fresh store, with as many workers as it takes by itself."""
    if place.exists():
        raise SystemExit(f"{place} is there already: a fresh store is needed, or --measured SECONDS")
    command = [sys.executable, "-m", "xferbench", "run", word, "--store", place, "-o", folder / "report"]
    begun = perf_counter()
    done = subprocess.run([*command, *(part for one in words for part in ("--set", one))], env=FREE, check=False)
    if done.returncode not in {0, 1}:  # 1 says that a failure was found
        raise SystemExit(f"xferbench ended with {done.returncode}")
    return perf_counter() - begun


def questions(asked_suite, place):
    """All that is asked, with what the store answers; where it has no answer, a choice falls as by lot."""
    lot = fake_lab.fake_lab(measures=defaultdict(dict, {"": {}}))
    answers, unknown = {}, 0
    with execute.open_study(asked_suite, place, "cpu", None) as (study, db, _):
        while True:
            step = schedule.next_schedule(study, answers)
            missing = {key: trial for key, trial in step.pending.items() if key not in answers}
            if not missing:
                break
            found = store.get_records(db, missing)
            unknown += len(missing) - len(found)
            answers |= {key: found.get(key) or lot(trial) for key, trial in missing.items()}
    each = dict.fromkeys((one.plugin, one.arm, one.trial.model.base) for one in step.requests)
    fits = [fit for _, _, fit in each if fit.phases]  # a network that is only looked at takes no script
    return fits, unknown


def shape(fit):
    """What tells a fit's script from others, as far as it costs time."""
    kind, _, place = fit.data.spec.partition(":")
    phases = tuple((phase.trainable, phase.steps, phase.batch_size) for phase in fit.phases)
    return Shape(data=f"{kind}:{Path(place).name}", images=fit.train_size, phases=phases)


def timed(fit, asked_suite, cache, folder, rounds):
    """The median of some runs of one fit's script, one after another, with torch's own number of threads."""
    test_size = asked_suite.test_size if fit.data.spec == asked_suite.target else None
    dataset = datasets.load_dataset(fit.data, fit.preprocessing, test_size, cache)
    network = backbones.build(fit.arch, len(dataset.classes), fit.code)
    layout = backbones.layer_layout(network, datasets.input_shape(dataset, fit.preprocessing))
    values = [ALL_LAYERS if isinstance(one.trainable, LoRA | Adapters) else one.trainable for one in fit.phases]
    trained = [backbones.trainable_names(layout, network, value) for value in values]
    file, found = folder / "asked.pickle", []
    file.write_bytes(pickle.dumps((fit, trained, layout.head, test_size, cache)))
    for _ in range(rounds):
        begun = perf_counter()
        done = subprocess.run([sys.executable, SCRIPT, file], env=FREE, check=True, capture_output=True, text=True)
        found.append((perf_counter() - begun, float(done.stdout.split()[0])))
    return Timed(*map(median, zip(*found, strict=True)))


def told(one):
    """A shape in words."""
    phases = ", then ".join(f"{kind} {steps} × {size}" for kind, steps, size in one.phases)
    return f"{one.data}, {one.images or 'all'} images: {phases}"


def page(arguments, own, unknown, by_shape, times):
    """The committed table."""
    counts = {one: len(fits) for one, fits in by_shape.items()}
    asked, unique = sum(counts.values()), sum(len(set(fits)) for fits in by_shape.values())
    whole, inside = (sum(count * getattr(times[one], name) for one, count in counts.items()) for name in Timed._fields)
    lots = f"; {unknown} answers were not in the store, so that choices fell as by lot" if unknown else ""
    how = "as given (`--measured`)" if arguments.measured else "measured here, fresh store, its default workers"
    rows = [
        ("xferbench, wall-clock", f"{own:.0f} s", how),
        ("fits asked, once for each question and arm", f"{asked}", f"counted: {arguments.seeds} seeds{lots}"),
        ("fits that differ, which xferbench trains", f"{unique}", "counted"),
        ("asked for each one trained", f"{asked / unique:.2f}", "counted"),
        ("the tutorials' scripts, one after another", f"{whole:.0f} s", "extrapolated: counts × times below"),
        ("of that, interpreters and imports", f"{whole - inside:.0f} s", "extrapolated likewise"),
        ("**tutorials / xferbench**", f"**{whole / own:.1f}**", "extrapolated / wall-clock"),
        (
            "the same without start-up of the scripts",
            f"{inside / own:.1f}",
            "extrapolated / wall-clock, its own start-up in it",
        ),
    ]
    slow = sorted(counts, key=lambda one: -counts[one] * times[one].whole)
    shapes = [f"| {told(one)} | {counts[one]} | {times[one].whole:.2f} | {times[one].inside:.2f} |" for one in slow]
    head = f"""# What the questions of `{arguments.suite}` cost by the tutorials' loop

On {os.cpu_count()} cores ({processor_name()}), no GPU, Python {platform.python_version()}. A question of a plugin is its
subject,
cured, induced and scratch arms and their tuning; a script is one of them at one seed, in a process of its own with torch's own
number of threads, with the whole network run at every step and one test at the end. Not in the tutorials' time: decoding and
resizing (the arrays lie ready), terms of the loss, augmentation, adapters (timed as all layers), several looks at one network.

| what | | how it is known |
|---|---:|---|
"""
    table = "\n".join(f"| {what} | {value} | {known} |" for what, value, known in rows)
    scripts = (
        f"| script: data, images, what trains, steps × batch | asked | s (median of {arguments.rounds}) | without start-up |"
    )
    again = f"Again: `python tests/benchmarks/tutorials.py {arguments.suite}`."
    return f"{head}{table}\n\n{again}\n\n{scripts}\n|---|---:|---:|---:|\n" + "\n".join(shapes) + "\n"


if __name__ == "__main__":
    main()
