"""Texts go from a table to predictions: through the embedded encoder, and through a network of the user's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from test_loop import CONTEXT

from xferbench.core import files
from xferbench.core.interventions import ALL_LAYERS, HEAD_ONLY, RANDOM, RANDOM_HEAD
from xferbench.core.pipeline import Phase
from xferbench.core.trial import EvaluationSpec, InitialNetwork, ModelSpec, TrainingData, TrainingProcedure, TrainingSpec, Trial
from xferbench.data import inputs, language, user_code
from xferbench.lab.data import tokens
from xferbench.lab.worker import run_trials

NETWORK = """
import torch

class Words(torch.nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.embedding = torch.nn.Embedding(2000, 16)
        self.norm = torch.nn.LayerNorm(16)
        self.head = torch.nn.Linear(16, classes)

    def forward(self, batch):
        mask = batch["attention_mask"].unsqueeze(-1).float()
        mean = (self.embedding(batch["input_ids"]) * mask).sum(1) / mask.sum(1).clamp_min(1)
        return self.head(self.norm(mean))

def build(classes):
    return Words(classes)
"""


@pytest.fixture
def table(tmp_path):
    """Return a table of texts whose class is a word, and the transform of its tokenizer."""
    rng = np.random.default_rng(0)
    words = [line for line in language.vocabulary_lines() if line.isalpha()][:40]
    labels = rng.integers(2, size=160)
    texts = [" ".join([words[label], *rng.choice(words[2:], rng.integers(2, 9))]) for label in labels]
    splits = ["train"] * 120 + ["test"] * 40
    rows = [f'"{text}",{label},{split}' for text, label, split in zip(texts, labels, splits, strict=True)]
    (tmp_path / "words.csv").write_text("text,label,split\n" + "\n".join(rows) + "\n")
    (tmp_path / "vocab.txt").write_text("\n".join(language.vocabulary_lines()) + "\n")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    transform = tokens.recorded_tokens(tmp_path / "model.safetensors")
    return inputs.digest_data(f"csv:{tmp_path / 'words.csv'}"), transform


def predict(network, data, transform, phase, cache):
    """Train on a table, and return the record of the test texts."""
    spec = TrainingSpec(
        network=network,
        data=TrainingData(dataset=data, train_size=80, preprocessing=transform),
        procedure=TrainingProcedure(phases=(phase,)),
        seed=0,
    )
    trial = Trial(model=ModelSpec(base=spec), view=EvaluationSpec(preprocessing=transform), context=CONTEXT)
    (record,), trained = run_trials.run_trials([trial], frozenset([trial.key]), cache)
    assert (record.error, trained) == ("", 1)
    assert len(record.predictions.label) == 40
    return record.predictions


def network_of(arch, tmp_path):
    if arch == "tiny-bert":
        return InitialNetwork(arch=arch, init=RANDOM, start=None, head=RANDOM_HEAD)
    (tmp_path / "words_net.py").write_text(NETWORK)
    code = user_code.find_callable("python:words_net:build", tmp_path, files.sha256)
    return InitialNetwork(arch=code.spec, code=code, init=RANDOM, start=None, head=RANDOM_HEAD)


@pytest.mark.parametrize(("arch", "lr"), [("tiny-bert", 3e-3), ("python", 0.05)])
def test_a_network_learns_which_word_is_the_class(arch, lr, table, tmp_path):
    data, transform = table
    network = network_of(arch, tmp_path)
    phase = Phase(trainable=ALL_LAYERS, lr=lr, steps=80, batch_size=16)
    fitted = tokens.fit_length(transform, [tokens.TextExample("a b c d e f g h i j k l")])
    predictions = predict(network, data, fitted, phase, tmp_path / "cache")
    assert (predictions.predicted == predictions.label).mean() > 0.75
    frozen = predict(network, data, fitted, Phase(trainable=HEAD_ONLY, steps=4, batch_size=16), tmp_path / "cache")
    assert len(frozen.label) == 40


def test_masked_padding_changes_no_prediction_and_unmasked_padding_does(table, tmp_path):
    data, transform = table
    fitted = replace(transform, max_length=16)
    phase = Phase(lr=1e-3, steps=5, batch_size=16)
    network = network_of("tiny-bert", tmp_path)
    spec = TrainingSpec(
        network=network,
        data=TrainingData(dataset=data, train_size=80, preprocessing=fitted),
        procedure=TrainingProcedure(phases=(phase,)),
        seed=0,
    )
    served = {"plain": fitted, "padded": replace(fitted, extra_padding=16)}
    served["unmasked"] = replace(served["padded"], masked=False)
    trials = [
        Trial(model=ModelSpec(base=spec), view=EvaluationSpec(preprocessing=form), context=CONTEXT) for form in served.values()
    ]
    records, _ = run_trials.run_trials(trials, frozenset(trial.key for trial in trials), tmp_path / "cache")
    plain, padded, unmasked = (record.predictions.p_true for record in records)
    np.testing.assert_allclose(padded, plain, atol=1e-5)
    assert np.abs(unmasked - plain).max() > 1e-4
