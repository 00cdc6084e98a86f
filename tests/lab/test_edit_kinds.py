"""Kinds of datasets, from a suite file to a verdict, in a very small study."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from test_metadata_csv import make_table_folder
from test_resume import _in_this_process
from test_torchvision_folder import make_mnist

from xferbench.config import loader
from xferbench.core import files
from xferbench.core.interventions import BATCHNORM_EVAL, HEAD_ONLY, PRETRAINED, RANDOM_HEAD
from xferbench.core.pipeline import Phase, WeightsFile
from xferbench.core.transforms import Spectrogram
from xferbench.core.trial import (
    ComputeContext,
    EvaluationSpec,
    InitialNetwork,
    ModelSpec,
    TrainingData,
    TrainingProcedure,
    TrainingSpec,
    Trial,
)
from xferbench.core.version import LAB_VERSION
from xferbench.data import inputs
from xferbench.lab.worker import run_trials
from xferbench.runner import run as runner
from xferbench.runner.engines import local

SUITE = """
schema = 1
name = "kinds"
plugins = ["batchnorm-drift"]
looks = [2]
tuning_seeds = 1
[backbone]
arch = "tiny-resnet"
{preprocessing}
[target]
data = "{data}"
train_size = 16
[recipe]
trainable = "{trainable}"
lr = 1e-2
steps = 3
batch_size = 8
[scratch]
lr = [1e-2]
weight_decay = [0.01]
steps = 3
batch_size = 8
"""


@pytest.fixture(autouse=True)
def run_in_this_process(monkeypatch):
    monkeypatch.setattr(local, "start_workers", _in_this_process)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with contextlib.ExitStack() as stack:
        stack.callback(torch.set_num_threads, before)
        yield


def write_spectrograms(folder, dtype=np.float32):
    """Write tones of two pitches in noise, 24 × 40, in decibels. Return the dataset."""
    rng = np.random.default_rng(0)
    labels = np.arange(72) % 2
    decibels = rng.normal(-60, 5, (72, 24, 40))
    decibels[np.arange(72), 5 + 10 * labels] += 40
    parts = {"train": slice(48), "test": slice(48, None)}
    arrays = {f"{name}_images": decibels[part].astype(dtype) for name, part in parts.items()}
    np.savez(folder / "d.npz", **arrays, **{f"{name}_labels": labels[part] for name, part in parts.items()})
    return "npz:d.npz"


def run_suite(folder, data, preprocessing="", trainable="head"):
    (folder / "suite.toml").write_text(SUITE.format(data=data, preprocessing=preprocessing, trainable=trainable))
    return runner.run(loader.load_suite(folder / "suite.toml"), store=folder / "s.db", device="cpu", workers=1)


def get_verdict(result):
    (verdict,) = {finding.verdict for finding in result.findings} - {"INFO"}
    return verdict


def view_predictions(result):
    return [cell.record.predictions for cell in result.cells if cell.view == "test"]


@pytest.mark.parametrize("trainable", ["head", "all"])
def test_rectangular_spectrograms_reach_a_verdict(trainable, tmp_path):
    preprocessing = 'preprocessing = { kind = "spectrogram", mean = -60, std = 12 }'
    result = run_suite(tmp_path, write_spectrograms(tmp_path), preprocessing, trainable)
    assert get_verdict(result) in {"PASS", "FAIL", "INCONCLUSIVE"}
    assert {len(predictions.label) for predictions in view_predictions(result)} == {24}
    assert not any(cell.record.error for cell in result.cells)


def test_a_linear_probe_learns_the_pitch_of_a_spectrogram(tmp_path):
    preprocessing = Spectrogram(mean=-60.0, std=12.0)
    write_spectrograms(tmp_path, np.float16)
    shipped = inputs.SHIPPED_WEIGHTS_FOLDER / "tiny-resnet-0.safetensors"
    spec = TrainingSpec(
        network=InitialNetwork(
            arch="tiny-resnet",
            init=PRETRAINED,
            start=WeightsFile(digest=files.sha256(shipped), path=str(shipped)),
            head=RANDOM_HEAD,
        ),
        data=TrainingData(dataset=inputs.digest_data(f"npz:{tmp_path / 'd.npz'}"), train_size=32, preprocessing=preprocessing),
        procedure=TrainingProcedure(phases=(Phase(trainable=HEAD_ONLY, batchnorm=BATCHNORM_EVAL, lr=1e-2, steps=60),)),
        seed=0,
    )
    context = ComputeContext(device="cpu", torch="0.0", lab=LAB_VERSION)
    trial = Trial(model=ModelSpec(base=spec), view=EvaluationSpec(preprocessing=preprocessing), context=context)
    (record,), trained = run_trials.run_trials((trial,), frozenset({trial.key}), tmp_path / "cache")
    assert (record.error, trained) == ("", 1)
    assert (record.predictions.predicted == record.predictions.label).mean() > 0.9


def test_groups_of_a_table_reach_records_and_verdict(tmp_path):
    rows = [(f"{split}{i}.png", "ab"[i % 2], split, f"{split}{i // 4}") for split in ("train", "test") for i in range(32)]
    make_table_folder(tmp_path / "d", [("file_name", "label", "split", "group"), *rows])
    (tmp_path / "d" / "test0.png").write_bytes(b"no image")
    result = run_suite(tmp_path, "folder:d", "preprocessing = { resize = 16, crop = 16, mean = [0.5], std = [0.25] }")
    assert get_verdict(result) in {"PASS", "FAIL", "INCONCLUSIVE"}
    counts = {(len(predictions.label), len(np.unique(predictions.group))) for predictions in view_predictions(result)}
    assert counts == {(31, 8)}
    assert any("test0.png: cannot identify" in note for note in result.notes)


def test_a_torchvision_dataset_reaches_a_verdict(tmp_path):
    pytest.importorskip("torchvision")
    make_mnist(tmp_path / "held")
    result = run_suite(
        tmp_path, "torchvision:MNIST:held", "preprocessing = { resize = 16, crop = 16, mean = [0.5], std = [0.25] }"
    )
    assert get_verdict(result) in {"PASS", "FAIL", "INCONCLUSIVE"}
    assert {predictions.probabilities.shape for predictions in view_predictions(result)} == {(20, 10)}
