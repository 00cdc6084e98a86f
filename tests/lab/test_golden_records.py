"""Numbers of a few small trainings, compared with those in a file.

``python tests/lab/test_golden_records.py`` computes the file again, which requires a higher ``LAB_VERSION``.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from test_loop import make_spec, make_trial, make_workspace

from xferbench.core.interventions import (
    BATCHNORM_EVAL,
    HEAD_ONLY,
    RANDOM,
    TRAIN_MODE,
    ZERO_HEAD,
    BatchNormMomentum,
    Edit,
    GhostBatchNorm,
    PermutedWeights,
    Trainable,
)
from xferbench.core.pipeline import Phase
from xferbench.core.trial import ModelSpec, Trial
from xferbench.core.version import LAB_VERSION
from xferbench.lab.worker import run_trials

FILE = Path(__file__).with_name("golden.json")
STEP = {"steps": 5, "batch_size": 16}
RECIPES = {
    "full fine-tuning": {"phases": (Phase(warmup=1, **STEP),)},
    "LP-FT, discriminative": {
        "phases": (
            Phase(trainable=HEAD_ONLY, batchnorm=BATCHNORM_EVAL, lr=1e-2, **STEP),
            Phase(batchnorm=BATCHNORM_EVAL, head_lr=1e-2, layer_decay=0.5, **STEP),
        )
    },
    "top groups, ghost batches, SGD": {
        "phases": (
            Phase(
                trainable=Trainable.parse("top:2"),
                batchnorm=GhostBatchNorm(examples=8),
                optimizer="sgd",
                lr=1e-2,
                order="class",
                **STEP,
            ),
        )
    },
    "permuted, norm, stale": {
        "init": PermutedWeights(),
        "head": ZERO_HEAD,
        "phases": (
            Phase(trainable=Trainable.parse("norm"), batchnorm=BatchNormMomentum(momentum=0.01), schedule="constant", **STEP),
        ),
    },
    "scratch": {"init": RANDOM, "phases": (Phase(schedule="one-cycle", lr=1e-2, weight_decay=0.1, **STEP),)},
}
VIEWS = {
    "test": {},
    "validation": {"examples": "validation"},
    "train-mode": {"mode": TRAIN_MODE},
    "restored": {"edits": (Edit.parse("batchnorm:restored"),)},
    "recalibrated": {"edits": (Edit.parse("batchnorm:recalibrated@2"),)},
}


def compute_numbers(folder):
    """Compute the losses of each training, and the mean probability of the true class in each of its views."""
    torch.set_num_threads(1)
    workspace, values = make_workspace(folder), {}
    for name, recipe in RECIPES.items():
        phases = recipe["phases"]
        spec = make_spec(workspace, *phases, **{key: value for key, value in recipe.items() if key != "phases"})
        trials = [make_edited_trial(spec, **view) for view in VIEWS.values()]
        records, _ = run_trials.run_trials(trials, frozenset(trial.key for trial in trials), workspace.cache)
        assert not any(record.error for record in records), records
        views = {view: float(record.predictions.p_true.mean()) for view, record in zip(VIEWS, records, strict=True)}
        values[name] = {"losses": [loss for _, loss, _ in records[0].curve]} | views
    return values


def make_edited_trial(spec, *, edits=(), **view):
    trial = make_trial(spec, **view)
    return Trial(model=ModelSpec(base=spec, edits=edits), view=trial.view, context=trial.context)


def test_the_lab_computes_the_numbers_of_its_version(tmp_path):
    golden, values = json.loads(FILE.read_text()), compute_numbers(tmp_path)
    hint = "numbers changed: raise LAB_VERSION in xferbench/core/version.py and run `python tests/lab/test_golden_records.py`"
    assert golden["version"] == LAB_VERSION, hint
    for name, numbers_by_view in values.items():
        for quantity, value in numbers_by_view.items():
            assert value == pytest.approx(golden["fits"][name][quantity], abs=1e-3), f"{name}, {quantity}: {hint}"
    assert golden["fits"].keys() == values.keys()


def round_numbers(value):
    return [round(number, 4) for number in value] if isinstance(value, list) else round(value, 4)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        results = {
            recipe: {quantity: round_numbers(value) for quantity, value in numbers_by_view.items()}
            for recipe, numbers_by_view in compute_numbers(Path(name)).items()
        }
    FILE.write_text(json.dumps({"version": LAB_VERSION, "fits": results}, indent=1) + "\n")
