"""Writes a copy of a checkpoint with repaired BatchNorm statistics, and changes nothing else. Imports torch; writes a file."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xferbench.core import files
from xferbench.core.errors import UserError
from xferbench.core.pipeline import WeightsFile
from xferbench.lab.evaluation import evaluate
from xferbench.lab.models import backbones, batchnorm, checkpoint_reader, checkpoints, finished
from xferbench.lab.worker import run_trials

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from xferbench.core.finished_head import FinishedHead
    from xferbench.core.record import Predictions
    from xferbench.core.trial import Trial
    from xferbench.lab.training.network import Architecture, Tensors


def write_repaired(
    trial: Trial, expected: Predictions, out: Path, metadata: Mapping[str, str], cache: Path
) -> tuple[str, str, int]:
    """Write the file, read it back, and keep it only if it makes the predictions of the cured network.

    Args:
        trial: the cured network as it was confirmed: a checkpoint, edits of BatchNorm's statistics only, and its evaluation.
        expected: the predictions of the cured network.
        out: the path of the new file. An existing file is replaced.
        metadata: entries for the file's metadata, added to those of the user's file.
        cache: the cache folder of the store.

    Returns:
        "", the file's SHA-256 and its size in bytes; or why no file was written, "" and 0.

    Raises:
        UserError: if a file cannot be read.
        OSError: if the disk is full.
    """
    spec, edits = trial.model.base, trial.model.edits
    head = spec.network.finished_head
    start, before_file = spec.network.start, spec.network.before
    assert isinstance(start, WeightsFile), "only a checkpoint has a file; a network trained here has none"
    checkpoint = Path(start.path)
    before = checkpoint_reader.read_checkpoint(Path(before_file.path)) if before_file else None
    dataset, network = run_trials.training_inputs(spec, trial, cache)
    model = run_trials.load_model(
        trial, finished.trained_model(network, run_trials.start_checkpoint(spec), before, dataset, head), cache
    )
    file_tensors, _ = checkpoint_reader.read_raw(checkpoint)
    tensors = evaluate.edit_tensors(model, edits, trial.view)
    repaired_tensors, why_not = replace_statistics(network, file_tensors, tensors, head)
    if why_not:
        return why_not, "", 0
    unverified = out.with_name(f".{out.name}.{os.getpid()}.safetensors")
    try:
        all_metadata = {"format": "pt"} | safetensors_metadata(checkpoint) | dict(metadata)
        checkpoints.save_tensors(repaired_tensors, unverified, half=False, metadata=all_metadata)
        try:
            state = checkpoint_reader.read_checkpoint(unverified)
        except UserError as problem:  # for example adapters, whose scale is in another file of the user
            return f"read back, the file is refused: {problem.what} ({problem.found})", "", 0
        reloaded = replace(model, trained=finished.trained_model(network, state, before, dataset, head))
        predictions, _ = evaluate.predict(reloaded, evaluate.edit_tensors(reloaded, (), trial.view), edits, trial.view)
        count = count_different(predictions, expected)
        if count:
            return f"read back, the file predicts otherwise for {count} of {len(expected.predicted)} examples", "", 0
        result = "", files.sha256(unverified), unverified.stat().st_size
        unverified.replace(out)
    finally:
        unverified.unlink(missing_ok=True)
    return result


def replace_statistics(
    network: Architecture, file_tensors: Mapping[str, Tensor], tensors: Tensors, head: FinishedHead | None = None
) -> tuple[dict[str, Tensor], str]:
    """Replace BatchNorm's statistics among the tensors of a file. Each keeps its dtype.

    Args:
        network: the network that the statistics belong to.
        file_tensors: the tensors by the names in the file.
        tensors: the repaired tensors by the names in the network.
        head: the head of the file, if it is not that of the architecture.

    Returns:
        The tensors of the new file and "", or no tensors and why this is impossible.
    """
    names = file_names(network, file_tensors, head)
    statistics = batchnorm.statistics_names(network.module)
    missing = sorted(name for name in statistics - names.keys() if not name.endswith(batchnorm.BATCH_COUNTER))
    if missing:
        return {}, f"the file stores its BatchNorm statistics in another form ({missing[0]} is not in it)"
    new = {names[name]: tensors[name].cpu().to(file_tensors[names[name]].dtype) for name in statistics & names.keys()}
    return {name: new.get(name, tensor) for name, tensor in file_tensors.items()}, ""


def file_names(network: Architecture, file_tensors: Mapping[str, Tensor], head: FinishedHead | None = None) -> dict[str, str]:
    """Return the name in the file for each tensor of a network.

    The names are found by passing marked tensors through the functions that load a checkpoint.
    """
    views = {name: tensor.view_as(tensor) for name, tensor in file_tensors.items()}  # distinct objects even for tied tensors
    names = {id(tensor): name for name, tensor in views.items()}
    state = checkpoint_reader.without_prefixes(views)
    network_tensors, _ = checkpoints.match_names(network.module, state, network.layout.head)
    if head:
        body = {name: tensor for name, tensor in network_tensors.items() if not backbones.is_within(name, [head.place])}
        network_tensors = body | finished.head_tensors(head, state)
    return {name: names[id(tensor)] for name, tensor in network_tensors.items()}


def safetensors_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file; empty for other files."""
    return checkpoint_reader.read_saved(path)[1] if checkpoint_reader.is_safetensors(path) else {}


def count_different(predictions: Predictions, expected: Predictions) -> int:
    """Count the examples with different predictions. The count is all of them if the examples are not the same."""
    if not np.array_equal(predictions.example, expected.example):
        return len(expected.example)
    return int((predictions.predicted != expected.predicted).sum())
