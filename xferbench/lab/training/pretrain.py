"""Trains the shipped weights of ``tiny-resnet`` and ``tiny-bert``, with the usual training loop. Writes files.

Usage: python -m xferbench.lab.training.pretrain --arch tiny-resnet --output xferbench/data/weights --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch

from xferbench.core.interventions import RANDOM, RANDOM_HEAD
from xferbench.core.pipeline import Phase
from xferbench.core.transforms import InputTransform, Preprocessing
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
from xferbench.data import inputs, language, sources, weights_settings
from xferbench.lab.data import tokens
from xferbench.lab.models import checkpoint_reader, checkpoints, tiny_bert
from xferbench.lab.worker import run_trials

PREPROCESSING = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
PHASE = Phase(lr=1e-2, schedule="one-cycle", steps=640, batch_size=128)
TRAIN_EXAMPLES = 8_800  # of 10 000; the others are for validation
TEXT_PHASE = Phase(lr=2e-3, schedule="linear", warmup=40, steps=400, batch_size=64)


def pretrain(
    seed: int,
    recipe: Phase = PHASE,
    examples: int = TRAIN_EXAMPLES,
    *,
    arch: str = "tiny-resnet",
    source: str = "synthetic:source",
    transform: InputTransform = PREPROCESSING,
) -> tuple[dict[str, torch.Tensor], float]:
    """Train a network on the source from random weights, and return its tensors and its test accuracy."""
    spec = TrainingSpec(
        network=InitialNetwork(arch=arch, init=RANDOM, start=None, head=RANDOM_HEAD),
        data=TrainingData(dataset=inputs.digest_data(source), train_size=examples, preprocessing=transform),
        procedure=TrainingProcedure(phases=(recipe,)),
        seed=seed,
    )
    trial = Trial(
        model=ModelSpec(base=spec),
        view=EvaluationSpec(preprocessing=transform),
        context=ComputeContext(device="cpu", torch=torch.__version__, lab=LAB_VERSION),
    )
    with tempfile.TemporaryDirectory() as folder:
        records, _ = run_trials.run_trials((trial,), frozenset({trial.key}), Path(folder))
        if records[0].error or records[0].predictions is None:
            raise RuntimeError(records[0].error)
        state, _ = checkpoint_reader.read_saved(run_trials.weights_path(spec, trial.context, Path(folder)))
    predictions = records[0].predictions
    tensors = {name.removeprefix("last."): tensor for name, tensor in state.items() if name.startswith("last.")}
    return tensors, float((predictions.predicted == predictions.label).mean())


def write_image_network(seed: int, output: Path) -> float:
    """Train ``tiny-resnet``, write its file of weights, and return its test accuracy."""
    state, accuracy = pretrain(seed)
    metadata = checkpoints.preprocessing_metadata(PREPROCESSING)
    checkpoints.save_tensors(state, output / f"tiny-resnet-{seed}.safetensors", metadata=metadata)
    return accuracy


def write_text_network(seed: int, output: Path) -> float:
    """Train ``tiny-bert``, write its folder of weights and tokenizer, and return its test accuracy."""
    folder = output / f"tiny-bert-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in language.vocabulary_lines()), encoding="utf-8")
    files = {
        weights_settings.CONFIG_FILE: {
            "model_type": "tiny-bert",
            "architectures": ["TinyBert"],
            "max_position_embeddings": tiny_bert.MAX_TOKENS,
        },
        weights_settings.TOKENIZER_CONFIG_FILE: {"do_lower_case": False, "model_max_length": tiny_bert.MAX_TOKENS},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    weights = folder / "model.safetensors"
    transform = tokens.recorded_tokens(weights)
    assert transform is not None, "the tokenizer has just been written"
    source = "synthetic:text-source"
    examples = [example for split in sources.read_dataset(source, None)[1].values() for example in split.images]
    fitted = tokens.fit_length(transform, examples)
    state, accuracy = pretrain(seed, TEXT_PHASE, arch="tiny-bert", source=source, transform=fitted)
    checkpoints.save_tensors(state, weights)
    return accuracy


WRITERS = {"tiny-resnet": write_image_network, "tiny-bert": write_text_network}


def main() -> None:
    """Write the weights for each seed, and print their test accuracy."""
    parser = argparse.ArgumentParser(description="Pretrain the shipped networks.")
    parser.add_argument("--arch", choices=WRITERS, default="tiny-resnet")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for seed in arguments.seeds:
        accuracy = WRITERS[arguments.arch](seed, arguments.output)
        print(f"seed {seed}: source test accuracy {accuracy:.4f}")  # noqa: T201 - the output of the command


if __name__ == "__main__":
    main()
