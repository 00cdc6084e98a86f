"""Numbers that a few small fits have always had.

``python tests/test_golden.py`` computes them anew, which is right only together with a higher VERSION.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from test_loop import make_fit, make_trial, make_world

from xferbench.core.interventions import HEAD_ONLY, ZERO_HEAD, Trainable
from xferbench.core.pipeline import Phase
from xferbench.core.trial import ModelSpec, Trial
from xferbench.core.version import LAB_VERSION
from xferbench.lab.worker import run_trials

FILE = Path(__file__).with_name("golden.json")
STEP = {"steps": 5, "batch_size": 16}
FITS = {
    "full fine-tuning": {"phases": (Phase(warmup=1, **STEP),)},
    "LP-FT, discriminative": {
        "phases": (
            Phase(trainable=HEAD_ONLY, batchnorm="eval", lr=1e-2, **STEP),
            Phase(batchnorm="eval", head_lr=1e-2, layer_decay=0.5, **STEP),
        )
    },
    "top groups, ghost batches, SGD": {
        "phases": (
            Phase(trainable=Trainable.parse("top:2"), batchnorm="ghost:8", optimizer="sgd", lr=1e-2, order="class", **STEP),
        )
    },
    "permuted, norm, stale": {
        "init": "permuted",
        "head": ZERO_HEAD,
        "phases": (Phase(trainable=Trainable.parse("norm"), batchnorm="momentum:0.01", schedule="constant", **STEP),),
    },
    "scratch": {"init": "random", "phases": (Phase(schedule="one-cycle", lr=1e-2, weight_decay=0.1, **STEP),)},
}
LOOKS = {
    "test": {},
    "validation": {"examples": "validation"},
    "train-mode": {"mode": "training"},
    "restored": {"edits": ("batchnorm:restored",)},
    "recalibrated": {"edits": ("batchnorm:recalibrated@2",)},
}


def numbers(folder):
    """Training losses of each fit, and the mean probability of the true class in each of its views."""
    torch.set_num_threads(1)
    world, found = make_world(folder), {}
    for name, recipe in FITS.items():
        phases = recipe["phases"]
        one = make_fit(world, *phases, **{key: value for key, value in recipe.items() if key != "phases"})
        trials = [_trial(one, **look) for look in LOOKS.values()]
        records, _ = run_trials.run_trials(trials, frozenset(trial.key for trial in trials), world.cache)
        assert not any(record.error for record in records), records
        views = {look: float(record.predictions.p_true.mean()) for look, record in zip(LOOKS, records, strict=True)}
        found[name] = {"losses": [loss for _, loss, _ in records[0].curve]} | views
    return found


def _trial(one, *, edits=(), **view):
    trial = make_trial(one, **view)
    return Trial(model=ModelSpec(base=one, edits=edits), view=trial.view, place=trial.place)


def test_the_lab_computes_what_this_version_of_it_has_always_computed(tmp_path):
    kept, found = json.loads(FILE.read_text()), numbers(tmp_path)
    hint = "numbers changed: raise VERSION in xferbench/lab/__init__.py and regenerate with `python tests/test_golden.py`"
    assert kept["version"] == LAB_VERSION, hint
    for name, told in found.items():
        for what, value in told.items():
            assert value == pytest.approx(kept["fits"][name][what], abs=1e-3), f"{name}, {what}: {hint}"
    assert kept["fits"].keys() == found.keys()


def rounded(value):
    return [round(one, 4) for one in value] if isinstance(value, list) else round(value, 4)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        fits = {fit: {what: rounded(value) for what, value in told.items()} for fit, told in numbers(Path(name)).items()}
    FILE.write_text(json.dumps({"version": LAB_VERSION, "fits": fits}, indent=1) + "\n")
