"""Weights into networks, and into files of our own."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from xferbench.core import files
from xferbench.design import Preprocessing
from xferbench.lab import backbones
from xferbench.lab.likeness import family, likely, listed, moved, prefixes, renamed
from xferbench.lab.reading import is_safetensors, opened
from xferbench.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

AUXILIARY = ("aux1", "aux2", "AuxLogits")  # classifiers that GoogLeNet and Inception have while they are pretrained
COUNTER = "num_batches_tracked"
RECORD = "xferbench.preprocessing"
HALF_LIMIT = 65504.0


def load(model: nn.Module, state: Mapping[str, Tensor], head: str) -> tuple[str, ...]:
    """Copy everything but the head's tensors into a network; the names of the checkpoint's head tensors, which are left out.

    The classifiers that only serve pretraining (GoogLeNet, Inception) count as heads; BatchNorm's counters may be missing.

    Raises:
        Problem: where the names or shapes differ, all of them in one message, or where values are not finite.
    """
    given, left_out = matched(model, state, head)
    broken = [name for name, tensor in given.items() if tensor.is_floating_point() and not torch.isfinite(tensor).all()]
    if broken:
        raise Problem("the weights are not finite", found=f"NaN or infinity in {listed(broken)}", expected="finite numbers")
    wanted = _wanted(model, head)
    with torch.no_grad():  # by hand: load_state_dict would rebuild MNASNet for want of a version
        for name, tensor in given.items():
            wanted[name].copy_(tensor)
    return left_out


def matched(model: nn.Module, state: Mapping[str, Tensor], head: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """A checkpoint's tensors by the names of a network below its head, and the names of those that are left out for a head.

    Raises:
        Problem: where the names or shapes differ, all of them in one message.
    """
    placed, _ = fitting(model, state, head)
    left_out = tuple(name for name in placed if backbones.within(name, (head, *AUXILIARY)))
    given = {name: tensor for name, tensor in placed.items() if name not in left_out}
    wanted = _wanted(model, head)
    shapes = {name: (tuple(given[name].shape), tuple(tensor.shape)) for name, tensor in wanted.items() if name in given}
    complaints = {
        "missing in the file": [name for name in wanted if name not in given and not name.endswith(COUNTER)],
        "not in the network": [name for name in given if name not in wanted],
        "of another shape": [f"{name} {found} for {here}" for name, (found, here) in shapes.items() if found != here],
    }
    if any(complaints.values()):
        raise _misfit(complaints, given, wanted, head)
    return given, left_out


def head(model: nn.Module, state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint's own head, by the names they have in the network; none where it has no head."""
    placed, _ = fitting(model, state, name)
    return {one: tensor for one, tensor in placed.items() if backbones.within(one, [name])}


def fitting(model: nn.Module, state: Mapping[str, Tensor], head: str) -> tuple[dict[str, Tensor], str]:
    """Tensors under the names that a network has for them, and a note on what was left aside for that.

    Training code keeps the network beside losses and meters, as ``model.`` or ``encoder.``. Where one prefix, taken off or
    put on, gives every tensor of the network below its head, it is done; else names stay as they are.
    """
    given = {renamed(name): tensor for name, tensor in state.items()}
    needed = {name for name in _wanted(model, head) if not name.endswith(COUNTER)}
    if needed <= given.keys():
        return given, ""
    whole = [move for move, count in _moves(model, given, head).items() if count == len(needed)]
    if len(whole) != 1:
        return given, ""
    (off, on), (only,) = whole[0], whole
    aside = [name for name in given if moved(name, *only) is None]
    note = f"weights: those named {off}…, beside which lie {listed(aside)}" if aside else ""
    return {new: tensor for name, tensor in given.items() if (new := moved(name, off, on)) is not None}, note


def _wanted(model: nn.Module, head: str) -> dict[str, Tensor]:
    own = model.state_dict().items()
    return {name: tensor for name, tensor in own if not (backbones.within(name, [head]) or backbones.adapts(name))}


def _moves(model: nn.Module, given: Mapping[str, Tensor], head: str) -> dict[tuple[str, str], int]:
    wanted = {name: tuple(one.shape) for name, one in _wanted(model, head).items() if not name.endswith(COUNTER)}
    return prefixes({name: tuple(one.shape) for name, one in given.items()}, wanted)


def _misfit(
    complaints: Mapping[str, list[str]], given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], head: str
) -> Problem:
    found = "; ".join(f"{len(names)} {kind}: {listed(names)}" for kind, names in complaints.items() if names)
    needed = {name: tuple(one.shape) for name, one in wanted.items() if not name.endswith(COUNTER)}
    moves = prefixes({name: tuple(one.shape) for name, one in given.items()}, needed)
    likeness, several = family(given), [off or on for (off, on), count in moves.items() if count == len(needed)]
    hints = [f"the names look like {likeness}"] if likeness else []
    if len(several) > 1:
        hints = [f"it holds the network more than once, under {', '.join(several)}: save the one that is meant alone"]
    elif hint := likely(moves, len(needed)):
        hints = [hint]
    return Problem(
        "the weights do not fit the backbone",
        found=found,
        expected=f"the {len(wanted)} tensors of the network below its head {head!r}, by name and shape",
        do="; ".join([*hints, "set arch under [backbone] to what the weights were made with, or rename the tensors"]),
    )


def save(state: Mapping[str, Tensor], path: Path, *, half: bool = True, metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as safetensors, whole or not at all; floating point as float16 where ``half`` and nothing overflows."""
    from safetensors.torch import save as serialised

    shrunk = {name: _halved(tensor) if half else tensor for name, tensor in state.items()}
    own = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in shrunk.items()}
    content = serialised(own, dict(metadata or {}))
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replace_atomically(path) as part:
        part.write_bytes(content)


def record(preprocessing: Preprocessing) -> dict[str, str]:
    """The metadata that tell :func:`recorded_preprocessing` what a network was trained with."""
    return {RECORD: json.dumps(asdict(preprocessing))}


def recorded_preprocessing(path: Path) -> Preprocessing | None:
    """What a safetensors file says of its network's preprocessing; None where it says nothing or is of another kind.

    Raises:
        Problem: for a record that cannot be read.
    """
    if not is_safetensors(path):
        return None
    with opened(path) as file:
        text = (file.metadata() or {}).get(RECORD)
    if text is None:
        return None
    try:
        values: Any = {name: tuple(value) if isinstance(value, list) else value for name, value in json.loads(text).items()}
        return Preprocessing(**values)
    except (ValueError, TypeError, AttributeError) as error:
        expected = "JSON with " + ", ".join(field.name for field in fields(Preprocessing))
        raise Problem(f"{path}: recorded preprocessing", found=text[:200], expected=expected) from error


def _halved(tensor: Tensor) -> Tensor:
    small = tensor.is_floating_point() and bool((tensor.abs() <= HALF_LIMIT).all())
    return tensor.half() if small else tensor
