"""A modality that the package does not know: one value and three functions, and networks take mappings of tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from test_datasets import make_npz
from test_loop import CONTEXT

from xferbench.core import files
from xferbench.core.interventions import ALL_LAYERS, HEAD_ONLY, RANDOM, RANDOM_HEAD
from xferbench.core.pipeline import Phase
from xferbench.core.trial import EvaluationSpec, InitialNetwork, ModelSpec, TrainingData, TrainingProcedure, TrainingSpec, Trial
from xferbench.data import user_code
from xferbench.lab.data import preprocessing
from xferbench.lab.worker import run_trials

LENGTH = 12
NETWORK = """
import torch

class Words(torch.nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.embedding = torch.nn.Embedding(256, 16)
        self.norm = torch.nn.LayerNorm(16)
        self.head = torch.nn.Linear(16, classes)

    def forward(self, batch):
        mask = batch["mask"].unsqueeze(-1)
        mean = (self.embedding(batch["ids"]) * mask).sum(1) / mask.sum(1).clamp_min(1)
        return self.head(self.norm(mean))

def build(classes):
    return Words(classes)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """Token ids, 0 being padding."""

    tag: ClassVar[str] = "Tokens"
    length: int


@pytest.fixture
def token_preprocessing():
    for function, implementation in (
        (preprocessing.geometry_key, lambda tokens: tokens),
        (preprocessing.store_example, lambda tokens, example: np.asarray(example)[0, : tokens.length].astype(np.int64)),
        (preprocessing.prepare_batch, lambda _, batch: {"ids": batch, "mask": (batch > 0).float()}),
    ):
        function.register(Tokens, implementation)


@pytest.mark.usefixtures("token_preprocessing")
def test_token_ids_and_their_mask_go_from_a_file_to_predictions(tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=120)
    ids = rng.integers(3, 256, size=(120, 1, LENGTH)).astype(np.uint8)
    ids[:, 0, 0] = 1 + labels  # the class is a word
    ids[:, 0, 8:] = 0  # and the rest is padding
    halves = {"train_images": ids[:80], "train_labels": labels[:80], "test_images": ids[80:], "test_labels": labels[80:]}
    target = make_npz(tmp_path / "words.npz", **halves)
    (tmp_path / "words_net.py").write_text(NETWORK)
    code = user_code.find_callable("python:words_net:build", tmp_path, files.sha256)
    for phase in (
        Phase(trainable=ALL_LAYERS, lr=0.05, steps=60, batch_size=16),
        Phase(trainable=HEAD_ONLY, steps=4, batch_size=16),
    ):
        spec = TrainingSpec(
            network=InitialNetwork(arch=code.spec, code=code, init=RANDOM, start=None, head=RANDOM_HEAD),
            data=TrainingData(dataset=target, train_size=40, preprocessing=Tokens(length=LENGTH)),
            procedure=TrainingProcedure(phases=(phase,)),
            seed=0,
        )
        trial = Trial(model=ModelSpec(base=spec), view=EvaluationSpec(preprocessing=Tokens(length=LENGTH)), context=CONTEXT)
        (record,), trained = run_trials.run_trials([trial], frozenset([trial.key]), tmp_path / "cache")
        assert (record.error, trained) == ("", 1)
        predictions = record.predictions
        assert len(predictions.label) == 40
        if phase.trainable == ALL_LAYERS:
            assert (predictions.predicted == predictions.label).mean() > 0.75
