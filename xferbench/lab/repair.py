"""A finished network's own file with BatchNorm statistics that were shown to mend it, and everything else as it was."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xferbench.core import files
from xferbench.design import Weights
from xferbench.lab import answer, batchnorm, checkpoints, finished, reading, viewed
from xferbench.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from xferbench.design import Trial
    from xferbench.lab.fit import Network, Tensors
    from xferbench.record import Predictions


def write(trial: Trial, expected: Predictions, out: Path, metadata: Mapping[str, str], cache: Path) -> tuple[str, str, int]:
    """Write the file, read it back, and keep it only where it predicts what the cured network did.

    Args:
        trial: the cured network as it was confirmed: a finished network, edits of BatchNorm's statistics alone, its view.
        expected: what was predicted then.
        out: where to; whatever is there is replaced.
        metadata: goes into the file, beside what the user's file has of it.
        cache: the folder beside the store.

    Returns:
        "" and the file's SHA-256 and size in bytes; or why nothing was written, "" and 0.

    Raises:
        Problem: for a file that cannot be read. OSError: where there is no room.
    """
    one, words = trial.model.base, trial.model.edits
    assert isinstance(one.start, Weights), "of a network that was trained here there is no file"
    file = Path(one.start.path)
    before = reading.read(Path(one.before.path)) if one.before else None
    dataset, network = answer.material(one, trial, cache)
    model = answer.model(trial, finished.fitted(network, answer.own(one), before, dataset), cache)
    own, _ = reading.raw(file)
    mended, why = repaired(network, own, viewed.edited(model, words, trial.view))
    if why:
        return why, "", 0
    unverified = out.with_name(f".{out.name}.{os.getpid()}.safetensors")
    try:
        checkpoints.save(mended, unverified, half=False, metadata={"format": "pt"} | said(file) | dict(metadata))
        try:
            state = reading.read(unverified)
        except Problem as problem:  # such as adapters, whose scale lies beside the user's file
            return f"read back, the file is refused: {problem.what} ({problem.found})", "", 0
        again = replace(model, fitted=finished.fitted(network, state, before, dataset))
        found, _ = viewed.predicted(again, viewed.edited(again, (), trial.view), words, trial.view)
        differing = different(found, expected)
        if differing:
            return f"read back, the file predicts otherwise for {differing} of {len(expected.predicted)} examples", "", 0
        told = "", files.sha256(unverified), unverified.stat().st_size
        unverified.replace(out)
    finally:
        unverified.unlink(missing_ok=True)
    return told


def repaired(network: Network, own: Mapping[str, Tensor], tensors: Tensors) -> tuple[dict[str, Tensor], str]:
    """A file's tensors, with BatchNorm's statistics among them replaced, each of the type that it had; or why not.

    Args:
        network: whose statistics they are.
        own: the tensors by the file's names.
        tensors: the mended ones by the network's names.
    """
    names = placed(network, own)
    statistics = batchnorm.buffers(network.module)
    lacking = sorted(name for name in statistics - names.keys() if not name.endswith(checkpoints.COUNTER))
    if lacking:
        return {}, f"the file holds its BatchNorm statistics in another form ({lacking[0]} is not in it)"
    mended = {names[name]: tensors[name].cpu().to(own[names[name]].dtype) for name in statistics & names.keys()}
    return {name: mended.get(name, tensor) for name, tensor in own.items()}, ""


def placed(network: Network, own: Mapping[str, Tensor]) -> dict[str, str]:
    """For each tensor of a network the file's name for it, found by taking the same way as loading does."""
    marked = {name: tensor.view_as(tensor) for name, tensor in own.items()}  # an object each, tied or not
    names = {id(tensor): name for name, tensor in marked.items()}
    fitted, _ = checkpoints.fitting(network.module, reading.without_prefixes(marked), network.anatomy.head)
    return {name: names[id(tensor)] for name, tensor in fitted.items()}


def said(file: Path) -> dict[str, str]:
    """What a file of safetensors says beside its tensors."""
    return reading.recall(file)[1] if reading.is_safetensors(file) else {}


def different(found: Predictions, expected: Predictions) -> int:
    """How many examples are predicted otherwise; all, where they are not the same examples."""
    if not np.array_equal(found.example, expected.example):
        return len(expected.example)
    return int((found.predicted != expected.predicted).sum())
