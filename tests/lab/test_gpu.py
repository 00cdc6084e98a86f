"""Trainings on a CUDA device: close to those on the CPU, deterministic, and equal alone and in a group.

tests/lab/test_loop.py runs bfloat16 and groups on the CPU.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from test_loop import make_spec, make_trial, make_workspace

from xferbench.core.interventions import BATCHNORM_EVAL, HEAD_ONLY, TRAIN_MODE, Edit, GhostBatchNorm, Trainable
from xferbench.core.pipeline import Phase
from xferbench.core.trial import ModelSpec, Trial
from xferbench.lab.worker import profile, run_trials
from xferbench.runner.engines import local

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

STEP = {"steps": 5, "batch_size": 16}
RECIPES = {
    "full": (Phase(**STEP),),
    "LP-FT": (
        Phase(trainable=HEAD_ONLY, batchnorm=BATCHNORM_EVAL, lr=1e-2, **STEP),
        Phase(batchnorm=BATCHNORM_EVAL, layer_decay=0.5, **STEP),
    ),
    "LoRA": (Phase(trainable=Trainable.parse("lora:4"), batchnorm=BATCHNORM_EVAL, lr=1e-2, **STEP),),
    "adapters": (Phase(trainable=Trainable.parse("adapter:4"), batchnorm=BATCHNORM_EVAL, lr=1e-2, **STEP),),
    "ghost": (
        Phase(batchnorm=GhostBatchNorm(examples=8), trainable=Trainable.parse("top:2"), optimizer="sgd", lr=1e-2, **STEP),
    ),
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return make_workspace(tmp_path_factory.mktemp("workspace"))


@pytest.fixture(autouse=True)
def deterministic(monkeypatch):
    """Set what a worker process sets."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)


def make_device_trial(device, spec, *, edits=(), **view):
    trial = make_trial(spec, **view)
    return Trial(model=ModelSpec(base=spec, edits=edits), view=trial.view, context=replace(trial.context, device=device))


def get_records(workspace, cache, *trials):
    records, _ = run_trials.run_trials(trials, frozenset(trial.key for trial in trials), workspace.cache / cache)
    assert not any(record.error for record in records), [record.error for record in records]
    return records


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_training_is_close_to_that_on_the_cpu(recipe, workspace):
    spec = make_spec(workspace, *RECIPES[recipe])
    cpu, cuda = (get_records(workspace, "near", make_device_trial(device, spec))[0] for device in ("cpu", "cuda"))
    assert cpu.key != cuda.key
    np.testing.assert_allclose([row[1] for row in cuda.curve], [row[1] for row in cpu.curve], rtol=0.1)
    assert cuda.predictions.p_true.mean() == pytest.approx(cpu.predictions.p_true.mean(), abs=0.05)
    assert (cuda.predictions.example == cpu.predictions.example).all()


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_group_is_deterministic_and_close_to_its_members_alone(recipe, workspace):
    trials = [make_device_trial("cuda", make_spec(workspace, *RECIPES[recipe], seed=seed)) for seed in range(3)]
    first, repeated = get_records(workspace, "first", *trials), get_records(workspace, "again", *trials)
    for record, other in zip(first, repeated, strict=True):
        assert np.array_equal(record.predictions.p_true, other.predictions.p_true)
        assert record.curve == other.curve
    for trial, record in zip(trials, first, strict=True):
        (alone,) = get_records(workspace, "alone", trial)
        np.testing.assert_allclose([row[1] for row in record.curve], [row[1] for row in alone.curve], rtol=0.1)


@pytest.mark.parametrize(
    "changes",
    [
        {"mode": TRAIN_MODE},
        {"examples": "validation"},
        {"step": "best"},
        {"edits": (Edit.parse("batchnorm:restored"),)},
        {"edits": (Edit.parse("batchnorm:recalibrated@2"),)},
    ],
    ids=str,
)
def test_every_view_is_close_to_that_on_the_cpu(changes, workspace):
    spec = make_spec(workspace, *RECIPES["full"])
    cpu, cuda = (get_records(workspace, "views", make_device_trial(device, spec, **changes))[0] for device in ("cpu", "cuda"))
    assert cuda.predictions.p_true.mean() == pytest.approx(cpu.predictions.p_true.mean(), abs=0.05)


def test_a_worker_uses_the_device(workspace, tmp_path):
    trial = make_device_trial("cuda", make_spec(workspace, *RECIPES["LP-FT"]))
    with local.start_workers(1) as call:
        (from_worker,), trained = call(
            "xferbench.lab.worker.run_trials:run_trials", (trial,), frozenset({trial.key}), tmp_path
        ).result()
        assert call("xferbench.lab.worker.profile:resolve_device", "auto").result() == profile.resolve_device("auto") == "cuda"
    assert trained == 1
    (expected,) = get_records(workspace, "here", trial)
    assert np.array_equal(from_worker.predictions.p_true, expected.predictions.p_true)
