"""Trains the shipped weights of ``tiny-resnet`` on ``synthetic:source``, with the usual training loop. Writes files.

Usage: python -m xferbench.lab.training.pretrain --output xferbench/data/weights --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from xferbench.core.interventions import RANDOM, RANDOM_HEAD
from xferbench.core.pipeline import Phase
from xferbench.core.transforms import Preprocessing
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
from xferbench.lab.models import checkpoint_reader, checkpoints
from xferbench.lab.worker import run_trials

PREPROCESSING = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
PHASE = Phase(lr=1e-2, schedule="one-cycle", steps=640, batch_size=128)
TRAIN_IMAGES = 8_800  # of 10 000; the others are for validation


def pretrain(seed: int, recipe: Phase = PHASE, images: int = TRAIN_IMAGES) -> tuple[dict[str, torch.Tensor], float]:
    """Train a network on the source from random weights, and return its tensors and its test accuracy."""
    spec = TrainingSpec(
        network=InitialNetwork(arch="tiny-resnet", init=RANDOM, start=None, head=RANDOM_HEAD),
        data=TrainingData(dataset=inputs.digest_data("synthetic:source"), train_size=images, preprocessing=PREPROCESSING),
        procedure=TrainingProcedure(phases=(recipe,)),
        seed=seed,
    )
    trial = Trial(
        model=ModelSpec(base=spec),
        view=EvaluationSpec(preprocessing=PREPROCESSING),
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


def main() -> None:
    """Write one file for each seed, and print its test accuracy."""
    parser = argparse.ArgumentParser(description="Pretrain tiny-resnet on synthetic:source.")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for seed in arguments.seeds:
        state, accuracy = pretrain(seed)
        checkpoints.save_tensors(
            state,
            arguments.output / f"tiny-resnet-{seed}.safetensors",
            metadata=checkpoints.preprocessing_metadata(PREPROCESSING),
        )
        print(f"seed {seed}: source test accuracy {accuracy:.4f}")  # noqa: T201 - the output of the command


if __name__ == "__main__":
    main()
