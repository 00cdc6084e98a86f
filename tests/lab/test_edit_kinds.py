"""Every kind of dataset, from a suite file to a verdict, on a very small study."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from test_metadata_csv import make
from test_resume import _in_this_process
from test_torchvision_folder import mnist

from xferbench.config import loader
from xferbench.core import files
from xferbench.core.interventions import HEAD_ONLY, RANDOM_HEAD
from xferbench.core.pipeline import Phase, Spectrogram, WeightsFile
from xferbench.core.trial import ComputeContext, EvaluationSpec, ModelSpec, TrainingSpec, Trial
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
def here(monkeypatch):
    monkeypatch.setattr(local, "start_workers", _in_this_process)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with contextlib.ExitStack() as stack:
        stack.callback(torch.set_num_threads, before)
        yield


def spectrograms(folder, dtype=np.float32):
    """Tones of two pitches in noise, 24 × 40, in decibels."""
    rng = np.random.default_rng(0)
    labels = np.arange(72) % 2
    heard = rng.normal(-60, 5, (72, 24, 40))
    heard[np.arange(72), 5 + 10 * labels] += 40
    parts = {"train": slice(48), "test": slice(48, None)}
    arrays = {f"{name}_images": heard[part].astype(dtype) for name, part in parts.items()}
    np.savez(folder / "d.npz", **arrays, **{f"{name}_labels": labels[part] for name, part in parts.items()})
    return "npz:d.npz"


def run(folder, data, preprocessing="", trainable="head"):
    (folder / "suite.toml").write_text(SUITE.format(data=data, preprocessing=preprocessing, trainable=trainable))
    return runner.run(loader.load_suite(folder / "suite.toml"), store=folder / "s.db", device="cpu", workers=1)


def verdict(finished):
    (judged,) = {finding.verdict for finding in finished.findings} - {"INFO"}
    return judged


def predicted(finished):
    return [cell.record.predictions for cell in finished.cells if cell.view == "test"]


@pytest.mark.parametrize("trainable", ["head", "all"])
def test_spectrograms_that_are_not_square_come_to_a_verdict(trainable, tmp_path):
    heard = 'preprocessing = { kind = "spectrogram", mean = -60, std = 12 }'
    finished = run(tmp_path, spectrograms(tmp_path), heard, trainable)
    assert verdict(finished) in {"PASS", "FAIL", "INCONCLUSIVE"}
    assert {len(told.label) for told in predicted(finished)} == {24}
    assert not any(cell.record.error for cell in finished.cells)


def test_a_probe_learns_the_pitch_of_a_spectrogram(tmp_path):
    ready = Spectrogram(mean=-60.0, std=12.0)
    spectrograms(tmp_path, np.float16)
    shipped = inputs.SHIPPED_WEIGHTS_FOLDER / "tiny-resnet-0.safetensors"
    one = TrainingSpec(
        arch="tiny-resnet",
        init="pretrained",
        start=WeightsFile(digest=files.sha256(shipped), path=str(shipped)),
        head=RANDOM_HEAD,
        phases=(Phase(trainable=HEAD_ONLY, batchnorm="eval", lr=1e-2, steps=60),),
        data=inputs.digest_data(f"npz:{tmp_path / 'd.npz'}"),
        train_size=32,
        preprocessing=ready,
        seed=0,
    )
    place = ComputeContext(device="cpu", torch="0.0", lab=LAB_VERSION)
    trial = Trial(model=ModelSpec(base=one), view=EvaluationSpec(preprocessing=ready), place=place)
    (record,), trained = run_trials.run_trials((trial,), frozenset({trial.key}), tmp_path / "cache")
    assert (record.error, trained) == ("", 1)
    assert (record.predictions.predicted == record.predictions.label).mean() > 0.9


def test_the_groups_of_a_table_reach_the_records_and_the_verdict(tmp_path):
    rows = [(f"{split}{i}.png", "ab"[i % 2], split, f"{split}{i // 4}") for split in ("train", "test") for i in range(32)]
    make(tmp_path / "d", [("file_name", "label", "split", "group"), *rows])
    (tmp_path / "d" / "test0.png").write_bytes(b"no image")
    finished = run(tmp_path, "folder:d", "preprocessing = { resize = 16, crop = 16, mean = [0.5], std = [0.25] }")
    assert verdict(finished) in {"PASS", "FAIL", "INCONCLUSIVE"}
    assert {(len(told.label), len(np.unique(told.group))) for told in predicted(finished)} == {(31, 8)}
    assert any("test0.png: cannot identify" in note for note in finished.notes)


def test_a_dataset_of_torchvisions_comes_to_a_verdict(tmp_path):
    pytest.importorskip("torchvision")
    mnist(tmp_path / "held")
    finished = run(tmp_path, "torchvision:MNIST:held", "preprocessing = { resize = 16, crop = 16, mean = [0.5], std = [0.25] }")
    assert verdict(finished) in {"PASS", "FAIL", "INCONCLUSIVE"}
    assert {told.probabilities.shape for told in predicted(finished)} == {(20, 10)}
