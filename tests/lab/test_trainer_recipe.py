"""A recipe of the Trainer of transformers, word for word: the loop of the lab takes the same steps."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate", reason="the Trainer of transformers needs it")

from test_loop import CONTEXT
from test_transformers_text import SMALL

from xferbench.config import loader
from xferbench.core import files
from xferbench.core.interventions import PRETRAINED, RANDOM_HEAD
from xferbench.core.pipeline import WeightsFile
from xferbench.core.strategies import resolve_steps
from xferbench.core.trial import EvaluationSpec, InitialNetwork, ModelSpec, TrainingData, TrainingProcedure, TrainingSpec, Trial
from xferbench.data import inputs, language
from xferbench.lab.data import preprocessing, tokens
from xferbench.lab.models import arch_detection
from xferbench.lab.training import examples, loop
from xferbench.lab.worker import run_trials

TEXTS, BATCH, EPOCHS = 96, 16, 3
COMMON = {
    "num_train_epochs": EPOCHS,
    "per_device_train_batch_size": BATCH,
    "learning_rate": 2e-3,
    "weight_decay": 0.1,
    "max_grad_norm": 0.5,
    "lr_scheduler_type": "linear",
}
RECIPE = {
    "epochs": float(EPOCHS),
    "batch_size": BATCH,
    "lr": 2e-3,
    "weight_decay": 0.1,
    "decay_norms": False,
    "clip": 0.5,
    "schedule": "linear",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Save a small BERT with dropout, and a table of texts whose class is one of two words."""
    rng = np.random.default_rng(0)
    words = [line for line in language.vocabulary_lines() if line.isalpha()][:40]
    labels = rng.integers(2, size=2 * TEXTS)
    texts = [" ".join([*rng.choice(words[2:], 5), words[label]]) for label in labels]
    splits = ["train"] * TEXTS + ["validation"] * (TEXTS // 2) + ["test"] * (TEXTS // 2)
    rows = [f"{text},{label},{split}" for text, label, split in zip(texts, labels, splits, strict=True)]
    (tmp_path / "words.csv").write_text("text,label,split\n" + "\n".join(rows) + "\n")
    (tmp_path / "vocab.txt").write_text("\n".join(language.vocabulary_lines()) + "\n")
    config = transformers.AutoConfig.for_model("bert", vocab_size=len(language.vocabulary_lines()), **SMALL)
    torch.manual_seed(0)
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def prepare(folder, recipe, *, seed=0):
    """Return the training of a recipe, with the network, its initial tensors and the dataset."""
    weights = folder / "model.safetensors"
    transform = tokens.recorded_tokens(weights)
    start = WeightsFile(digest=files.sha256(weights), path=str(weights))
    resolved = resolve_steps(loader.parse_recipe(recipe), TEXTS)
    spec = TrainingSpec(
        network=InitialNetwork(arch=arch_detection.detect_arch(weights), init=PRETRAINED, start=start, head=RANDOM_HEAD),
        data=TrainingData(dataset=inputs.digest_data(f"csv:{folder / 'words.csv'}"), train_size=None, preprocessing=transform),
        procedure=TrainingProcedure(phases=resolved.phases),
        seed=seed,
    )
    trial = Trial(model=ModelSpec(base=spec), view=EvaluationSpec(preprocessing=transform), context=CONTEXT)
    dataset, network = run_trials.training_inputs(spec, trial, folder / "cache")
    return spec, network, run_trials.start_tensors(spec, network, trial, folder / "cache"), dataset


class ForTrainer(torch.nn.Module):
    """The network as the Trainer calls it: from a batch with labels to a loss."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, labels, **batch):
        logits = self.network(batch)
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


def train_with_trainer(folder, spec, network, start, dataset, **options):
    """Train with the Trainer of transformers on the batches of the lab, and return the tensors."""
    network.module.load_state_dict(start, strict=False)  # start has constant buffers too
    subset = examples.training_subset(dataset, spec)
    labels = subset.labels
    x = preprocessing.to_tensor(torch.from_numpy(np.array(subset.split.images[subset.index])), spec.data.preprocessing)
    items = [{name: values[row] for name, values in x.items()} | {"labels": int(labels[row])} for row in range(len(labels))]
    (phase,) = spec.procedure.phases
    order = examples.batch_indices(phase, spec.seed, 0, labels).ravel().tolist()

    class InOrder(transformers.Trainer):
        def get_train_dataloader(self):
            ordered = [items[index] for index in order]
            return torch.utils.data.DataLoader(ordered, batch_size=BATCH, collate_fn=self.data_collator)

    arguments = COMMON | {"num_train_epochs": 1, "use_cpu": True, "report_to": "none", "save_strategy": "no"} | options
    settings = transformers.TrainingArguments(str(folder / "out"), seed=spec.seed, disable_tqdm=True, **arguments)
    trainer = InOrder(model=ForTrainer(network.module), args=settings, train_dataset=items)
    trainer.train()
    assert trainer.state.global_step == phase.steps
    return start | {name: tensor.detach().clone() for name, tensor in network.module.state_dict().items()}


def distances(tensors, other, start):
    """Return how far two trainings are apart, as a share of how far the first one moved."""
    pairs = [(tensors[name] - other[name], tensors[name] - start[name]) for name in start if start[name].is_floating_point()]
    apart, moved = (sum(pair[side].square().sum() for pair in pairs).sqrt().item() for side in (0, 1))
    return apart / moved


def test_the_loop_takes_the_steps_of_the_trainer(folder):
    spec, network, start, dataset = prepare(folder, RECIPE | {"dropout": 0.0})
    (trained,) = loop.train([spec], network, [start], dataset)
    layers = [layer for layer in network.module.modules() if isinstance(layer, torch.nn.Dropout)]
    assert {layer.p for layer in layers} == {0.1}
    for layer in layers:
        layer.p = 0.0
    expected = train_with_trainer(folder, spec, network, start, dataset)
    assert distances(expected, trained.last, start) < 1e-3


@pytest.mark.parametrize("change", [{"decay_norms": True}, {"clip": 5.0}, {"schedule": "constant"}, {"dropout": 0.2}])
def test_another_recipe_ends_elsewhere(change, folder):
    spec, network, start, dataset = prepare(folder, RECIPE | {"dropout": 0.0})
    (trained,) = loop.train([spec], network, [start], dataset)
    (other,) = loop.train([prepare(folder, RECIPE | {"dropout": 0.0} | change)[0]], network, [start], dataset)
    assert distances(trained.last, other.last, start) > 1e-2
