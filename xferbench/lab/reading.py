"""From a checkpoint file to tensors by name, without ever running code that the file brings."""

from __future__ import annotations

import pickle
import re
import struct
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from xferbench.lab import adapters
from xferbench.lab.likeness import listed
from xferbench.problem import Problem

if TYPE_CHECKING:
    from pathlib import Path

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "module", "ema", "model_ema", "state_dict_ema", "backbone")
AVERAGES = ("model_ema", "state_dict_ema", "ema")
PREFIXES = ("module.", "model.", "net.", "_orig_mod.", "base_model.model.", "backbone.")
# What torch.load raises on files that are damaged or something else altogether.
UNREADABLE = (RuntimeError, EOFError, OSError, ValueError, LookupError, AttributeError, TypeError, AssertionError, struct.error)
A_CHECKPOINT = "a state dict saved by torch.save, or safetensors"


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, floating point as float32; wrappers and prefixes that all names share are taken off.

    Adapters of peft are merged into the layers that they sit on, where their scale is known.

    Raises:
        Problem: where the file is missing, damaged, no checkpoint, or would run code when opened the usual way.
    """
    return told(path)[0]


def told(path: Path) -> tuple[dict[str, Tensor], str]:
    """See :func:`read`; beside it, which weights were taken where a file has two.

    The weights themselves come before their moving average, for the first are what training left and every file has them.
    """
    state, note = raw(path)
    odd = [name for name, tensor in state.items() if tensor.is_quantized or tensor.is_sparse or tensor.is_complex()]
    if odd:
        raise Problem(f"{path}: tensors of a kind that cannot be loaded", found=listed(odd), expected="dense, real tensors")
    state = {name: _plain(tensor) for name, tensor in without_prefixes(state).items()}
    return adapters.merged(state, path), note


def raw(path: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors of a checkpoint as the file has them, by its own names and of its own types; a note as in :func:`told`.

    Raises:
        Problem: as :func:`read` does.
    """
    if not path.is_file() or not path.stat().st_size:
        found = "a folder" if path.is_dir() else "an empty file" if path.is_file() else "no such file"
        raise Problem(f"{path}: cannot be read as weights", found=found, expected=A_CHECKPOINT)
    content = recall(path)[0] if is_safetensors(path) else _read_torch(path)
    return _unwrapped(content, path)


def recall(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What :func:`save` wrote, tensors and metadata, just as it is in the file.

    Raises:
        Problem: where the file is missing or damaged.
    """
    with opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118 - no mapping


def _plain(tensor: Tensor) -> Tensor:
    own = tensor.detach().clone().contiguous()
    return own.float() if own.is_floating_point() else own


def is_safetensors(path: Path) -> bool:
    """By the file's ending or its start: 8 bytes of length, then JSON."""
    with path.open("rb") as file:
        return path.suffix == ".safetensors" or file.read(9)[8:] == b"{"


def opened(path: Path) -> Any:
    """A safetensors file.

    Raises:
        Problem: where it is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error


def _read_torch(path: Path) -> object:
    """What torch.save wrote, as far as it is plain data."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on the way to refusing a file, torch wonders at its protocol
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        blocked = re.search(r"GLOBAL ((?:\w+\.)+\w+)(?:\s|$)", str(error))
        if blocked is None:
            raise _damaged(path, error) from error
        raise Problem(
            f"{path}: refused, since opening it in full would run code",
            found=f"the file asks for {', '.join(_blocked(path) or [blocked[1]])}, which is no plain data",
            expected=A_CHECKPOINT,
            do="where, and only where, you trust the file, save its tensors anew: "
            f'state = torch.load({path.name!r}, weights_only=False); state = state.get("state_dict", state) '
            'if isinstance(state, dict) else state.state_dict(); safetensors.torch.save_file(state, "weights.safetensors")',
        ) from error
    except UNREADABLE as error:
        if "TorchScript" in str(error):
            do = 'save its tensors: safetensors.torch.save_file(torch.jit.load(path).state_dict(), "weights.safetensors")'
            raise Problem(f"{path}: a TorchScript program", found="code", expected=A_CHECKPOINT, do=do) from error
        raise _damaged(path, error) from error


def _blocked(path: Path) -> list[str]:
    """Everything that a file asks for beyond plain data; of an old file only the first is known."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except (pickle.UnpicklingError, *UNREADABLE):
        return []


def _damaged(path: Path, error: Exception) -> Problem:
    # The first lines of torch's own message praise the unsafe way to open the file, and later ones tell how to allow more.
    reason = re.search(r"WeightsUnpickler error: (.+)", str(error))
    said = reason[1] if reason else (str(error).strip().splitlines() or [""])[0]
    said = re.split(r"\.? (?:was not an allowed global|This is an internal|Please use)", said)[0]
    if "weights_only" in said or "Weights only" in said:
        said = "a pickle that torch.save did not write, or what is left of one"
    elif not re.search(r"[A-Za-z]{3}", said):  # the key that a table lacks, or nothing
        said = f"{type(error).__name__} {said}".strip()
    do = "fetch it again, and check its size and digest"
    return Problem(f"{path}: no checkpoint, or a damaged one", found=said[:160], expected=A_CHECKPOINT, do=do)


def _unwrapped(content: object, path: Path) -> tuple[dict[str, Tensor], str]:
    """The mapping from names to tensors within what a training script saved around it, at most two wrappers deep; a note."""
    note = ""
    for _ in range(3):
        if not isinstance(content, Mapping):
            break
        inner = {key: value for key, value in content.items() if isinstance(value, Mapping) and _holds_tensors(value)}
        wrapper = next((name for name in WRAPPERS if name in inner), None)
        if wrapper is None and len(inner) == 1 and not any(isinstance(value, Tensor) for value in content.values()):
            wrapper = next(iter(inner))
        if wrapper is None:
            break
        averages = [name for name in AVERAGES if name in inner and name != wrapper]
        if averages:
            note = f"weights: {wrapper!r} of the file, not the moving average {averages[0]!r} beside it"
        content = inner[wrapper]
    named = content if isinstance(content, Mapping) else {}
    tensors = {str(key): value for key, value in named.items() if isinstance(value, Tensor)}
    if not tensors:
        found = f"a {type(content).__name__}" + (f" with {listed([str(key) for key in named])}" if named else "")
        expected = f"a state dict, also below {', '.join(WRAPPERS)}"
        raise Problem(f"{path}: no tensors by name in it", found=found, expected=expected)
    return tensors, note


def _holds_tensors(content: Mapping[Any, Any]) -> bool:
    values = content.values()
    return any(isinstance(value, Tensor) or (isinstance(value, Mapping) and _holds_tensors(value)) for value in values)


def without_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, the prefixes that all names share taken off."""
    shared = next((prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in state)), None)
    return state if shared is None else without_prefixes({name.removeprefix(shared): tensor for name, tensor in state.items()})
