"""Whether an advocate of training from scratch beats the searched baseline with ten times the search.

    python tests/benchmarks/scratch.py [--tasks sketch tinted …] [--seeds 3] [--times 10] [--store FOLDER] [--out FOLDER]

Both sides select on the same validation images with the same tuning seed. The baseline is the default search with 250 steps.
The advocate draws settings at random from a wider space and trains each of them for all its steps, until it has trained
``--times`` as many images. The winners are trained again with other seeds and scored on test images. Each finished task is a
row of ``scratch.csv``, and ``--store`` keeps each training, so that the script continues where it stopped; ``scratch.md`` is
written from these rows.
"""

from __future__ import annotations

import argparse
import csv
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time
from typing import TYPE_CHECKING

import numpy as np
import torch

from xferbench.analysis import metrics
from xferbench.config.loader import parse_suite
from xferbench.core.interventions import Augmentation
from xferbench.core.pipeline import Phase
from xferbench.core.strategies import from_scratch, scratch_baseline
from xferbench.lab.worker.run_trials import run_trials
from xferbench.runner import execute, store
from xferbench.study import cost, selection
from xferbench.study.feasibility import candidates
from xferbench.study.trials import make_trial

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable

    from xferbench.core.pipeline import Pipeline
    from xferbench.core.record import Record
    from xferbench.core.trial import Trial
    from xferbench.study.study import Study

SHARED = Path(__file__).parents[3] / "shared"
FASHION = {
    "backbone": {"arch": "cifar-resnet20", "weights": str(SHARED / "weights/resnet20-12fca82f.th")},
    "target": {"data": f"npz:{SHARED / 'data/fashion_mnist.npz'}", "train_size": 200, "test_size": 2000},
}
TASKS = {
    **{
        name: {
            "backbone": {"arch": "tiny-resnet"},
            "target": {"data": f"synthetic:{name}", "train_size": 200, "test_size": 2000},
        }
        for name in ("near", "tinted", "sketch", "spectra")
    },
    "digits": {"backbone": {"arch": "tiny-resnet"}, "target": {"data": "digits", "train_size": 200}},
    "fashion": FASHION,
}
STEPS, BATCH = 250, 64
LOWER, UPPER = 1e-3, 1e-1  # rates of the advocate
SPACE = {
    "weight_decay": (0.01, 0.05, 0.1, 0.5),
    "label_smoothing": (0.0, 0.05, 0.1, 0.2),
    "augment": (None, "flip", "crop", "flip+crop"),
    "steps": (125, 250, 500, 1000),
}
FIELDS = (
    "task",
    "searched_accuracy",
    "advocate_accuracy",
    "difference",
    "searched_images",
    "advocate_images",
    "searched_minutes",
    "advocate_minutes",
    "searched_recipe",
    "advocate_recipe",
)


def compute(trial: Trial, db: sqlite3.Connection, path: Path) -> Record:
    """Return the record of a trial with its processor time, from the store or computed in this process."""
    if stored := store.get_records(db, [trial.key]):
        return stored[trial.key]
    start = process_time()
    (record,), _ = run_trials((trial,), frozenset([trial.key]), store.cache_folder(path))
    record = replace(record, seconds=process_time() - start)
    store.put_record(db, record)
    return record


def search_baseline(study: Study, pipeline: Pipeline, compute: Callable[[Trial], Record]) -> tuple[Pipeline, float, float]:
    """Return the baseline that the package selects, the number of images that the search trained, and its seconds."""
    arm, records = scratch_baseline(pipeline, study.search), {}
    while missing := [trial for trial in selection.selection_trials(arm, study, records) if trial.key not in records]:
        records |= {trial.key: compute(trial) for trial in missing}
    specs = {trial.model.base for trial in selection.selection_trials(arm, study, records)}
    selected = selection.select(arm, study, records)
    assert selected is not None and selected.pipeline is not None, selected
    return selected.pipeline, sum(map(cost.training_cost, specs)), sum(record.seconds for record in records.values())


def search_at_random(
    study: Study, pipeline: Pipeline, compute: Callable[[Trial], Record], images: float
) -> tuple[Pipeline, float, float]:
    """Return the best of random settings on validation, the number of images that were trained, and the seconds."""
    rng, trained, seconds, best = np.random.default_rng(0), 0.0, 0.0, (-1.0, pipeline)
    while trained < images:
        drawn = {name: values[rng.integers(len(values))] for name, values in SPACE.items()}
        lr = float(np.exp(rng.uniform(np.log(LOWER), np.log(UPPER))))
        augment = drawn.pop("augment")
        recipe = from_scratch(Phase(lr=lr, schedule="one-cycle", batch_size=BATCH, **drawn))
        candidate = replace(pipeline, recipe=replace(recipe, augment=Augmentation.parse(augment) if augment else None))
        trial = make_trial(candidate, "validation", selection.FIRST_TUNING_SEED, study.context)
        record = compute(trial)
        trained, seconds = trained + cost.training_cost(trial.model.base), seconds + record.seconds
        best = max(best, (accuracy(record), candidate), key=lambda pair: pair[0])
    return best[1], trained, seconds


def accuracy(record: Record) -> float:
    """Return the accuracy of a record; a training that diverged scores 0."""
    return 0.0 if record.predictions is None else metrics.metric_value(record.predictions, "accuracy")


def judge(study: Study, pipeline: Pipeline, compute: Callable[[Trial], Record], seeds: int) -> float:
    """Return the mean test accuracy over seeds that no search has seen."""
    trials = (make_trial(pipeline, "test", seed, study.context) for seed in range(seeds))
    return float(np.mean([accuracy(compute(trial)) for trial in trials]))


def describe(pipeline: Pipeline) -> str:
    """Return the settings of a baseline."""
    (phase,), augment = pipeline.recipe.phases, pipeline.recipe.augment
    settings = f"lr {phase.lr:.2g}, decay {phase.weight_decay:g}, smoothing {phase.label_smoothing:g}"
    return f"{settings}, {phase.steps} × {phase.batch_size}, {augment or 'no augmentation'}"


def run_task(name: str, seeds: int, times: float, folder: Path) -> dict[str, object]:
    """Search both sides of a task, and score the two winners."""
    table = {"schema": 1, "name": name, "plugins": ["negative-transfer"], "looks": [seeds], "tuning_seeds": 1, "budget": "99h"}
    suite = parse_suite({**table, **TASKS[name], "scratch": {"steps": STEPS, "batch_size": BATCH}}, folder / f"{name}.toml")
    path = folder / f"{name}.sqlite"
    with execute.open_study(suite, path, "cpu", 1) as (study, db, _):
        pipeline, compute_one = candidates(study.subject)[0], partial(compute, db=db, path=path)
        searched, searched_images, searched_seconds = search_baseline(study, pipeline, compute_one)
        advocate, advocate_images, advocate_seconds = search_at_random(study, pipeline, compute_one, times * searched_images)
        scores = [judge(study, candidate, compute_one, seeds) for candidate in (searched, advocate)]
    return {
        "task": name,
        "searched_accuracy": scores[0],
        "advocate_accuracy": scores[1],
        "difference": scores[1] - scores[0],
        "searched_images": searched_images,
        "advocate_images": advocate_images,
        "searched_minutes": searched_seconds / 60,
        "advocate_minutes": advocate_seconds / 60,
        "searched_recipe": describe(searched),
        "advocate_recipe": describe(advocate),
    }


def page(rows: list[dict[str, str]]) -> str:
    """Return the table, with what the figures mean."""
    columns = (
        "task",
        "searched",
        "advocate",
        "advocate − searched",
        "images trained (thousands)",
        "minutes of one core",
        "searched recipe",
        "recipe of the advocate",
    )
    lines = [
        "# The searched baseline and an advocate with ten times the search",
        "",
        (__doc__ or "").split("\n\n", 2)[2].strip(),
        "",
        f"Test accuracy in %, the mean of three seeds; 200 training images. {machine()}.",
        "",
        f"| {' | '.join(columns)} |",
        f"|{'---|' * len(columns)}",
    ]
    for row in rows:
        accuracies = [f"{100 * float(row[name]):.1f}" for name in ("searched_accuracy", "advocate_accuracy")]
        images = " and ".join(f"{float(row[name]) / 1000:.0f}" for name in ("searched_images", "advocate_images"))
        minutes = " and ".join(f"{float(row[name]):.1f}" for name in ("searched_minutes", "advocate_minutes"))
        cells = [row["task"], *accuracies, f"{100 * float(row['difference']):+.1f}", images, minutes]
        lines.append(f"| {' | '.join([*cells, row['searched_recipe'], row['advocate_recipe']])} |")
    return "\n".join(lines) + "\n"


def machine() -> str:
    """Return the processor and the version of torch."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return f"{names[0] if names else 'unknown processor'}, one core, torch {torch.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--times", type=float, default=10.0)
    parser.add_argument("--store", type=Path, help="folder that keeps each training")
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    table = arguments.out / "scratch.csv"
    rows = list(csv.DictReader(table.open(encoding="utf-8"))) if table.exists() else []
    for name in arguments.tasks:
        if any(row["task"] == name for row in rows):
            continue
        with TemporaryDirectory() as folder:
            row = run_task(name, arguments.seeds, arguments.times, arguments.store or Path(folder))
        rows.append({key: str(value) for key, value in row.items()})
        with table.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        (arguments.out / "scratch.md").write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
