"""Read the tensors of a checkpoint file by name. Code in the file never runs. Reads files, imports torch."""

from __future__ import annotations

import pickle
import re
import struct
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from xferbench.core.errors import UserError
from xferbench.data import weights_folder
from xferbench.lab.models import content_limits, file_kind, peft_checkpoints, pickle_globals, transformers_models
from xferbench.lab.models.state_dict_names import format_names

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

STATE_DICTS = ("state_dict", "model_state_dict", "model_state")  # wrappers of a whole network
WRAPPERS = (
    *STATE_DICTS,
    "classy_state_dict",  # of vissl, where the next two follow
    "base_model",
    "model",
    "net",
    "module",
    "ema",
    "model_ema",
    "state_dict_ema",
    "backbone",
)
MAX_WRAPPERS = 4
NOT_WEIGHTS = re.compile(r"optim|sched|scaler|rng|callbacks|loops")  # parts of a training state that hold tensors too
AVERAGED_WRAPPERS = ("model_ema", "state_dict_ema", "ema")
PREFIXES = ("module.", "model.", "net.", "_orig_mod.", "base_model.model.", "backbone.")
# The errors that torch.load raises for files that are damaged or are not checkpoints.
READ_ERRORS = (
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    AssertionError,
    ArithmeticError,
    MemoryError,
    struct.error,
)
RESCUE = (  # keeps tensors, and the modules and dictionaries around them
    "import torch; keep = lambda x: keep(x.state_dict()) if isinstance(x, torch.nn.Module) else "
    "{k: keep(v) for k, v in x.items()} if isinstance(x, dict) else x if isinstance(x, torch.Tensor) else None; "
    'torch.save(keep(torch.load(%r, map_location="cpu", weights_only=False)), "weights.pth")'
)
ARGUMENTS = "argparse.Namespace"  # of a training script
CHECKPOINT_EXPECTED = weights_folder.WEIGHTS_EXPECTED


class DroppedArguments:
    """Stands for the ``argparse.Namespace`` of a training script, whose content is not read."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        """Drop the content."""


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint by name, floating-point ones as float32.

    Wrappers are removed, and so are prefixes that all names share. Adapters of peft are merged into their layers if their scale
    is known.

    Raises:
        UserError: If the file is missing, damaged or not a checkpoint, or would run code if it were opened in the usual way.
    """
    return read_with_note(path)[0]


def read_with_note(path: Path) -> tuple[dict[str, Tensor], str]:
    """Return the tensors of a checkpoint as :func:`~xferbench.lab.models.checkpoint_reader.read_checkpoint` does, and a note.

    The note says which weights were chosen if the file has two sets. The weights are preferred to their moving average, because
    they are what training produced and every file has them.
    """
    file = weights_folder.find_weights(path)
    base = weights_folder.base_weights(file)
    state, note = read_raw(base or file)
    state = {name: _to_float32(tensor) for name, tensor in without_prefixes(state).items()}
    state = transformers_models.rename_tensors(state, file)
    if base:
        adapter = {name: _to_float32(tensor) for name, tensor in read_raw(file)[0].items()}
        state |= peft_checkpoints.adapter_tensors(adapter, file)
    return peft_checkpoints.merge_adapters(state, file), note


def read_raw(path: Path) -> tuple[dict[str, Tensor], str]:
    """Return the tensors of a checkpoint with the names and types of the file, and a note.

    Raises:
        UserError: As :func:`~xferbench.lab.models.checkpoint_reader.read_checkpoint` does.
    """
    path = weights_folder.find_weights(path)
    if path.name.endswith(weights_folder.INDEX_SUFFIX):
        shards = [_read_file(shard) for shard in weights_folder.shard_files(path)]
        return {name: tensor for state, _ in shards for name, tensor in state.items()}, ""
    return _read_file(path)


def _read_file(path: Path) -> tuple[dict[str, Tensor], str]:
    file_kind.refuse_other_kinds(path)
    content: object = read_saved(path)[0] if is_safetensors(path) else _read_torch(path)
    content = content_limits.plain_mappings(content, path)
    file_kind.refuse_without_network(content, path)
    state, note = _unwrap(content, path)
    content_limits.require_plain_tensors(state, path)
    return state, note


def read_saved(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata that :func:`~xferbench.lab.models.checkpoints.save_tensors` wrote, unchanged.

    Raises:
        UserError: If the file is missing or damaged.
    """
    with open_safetensors(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118 - file is not a mapping


def _to_float32(tensor: Tensor) -> Tensor:
    copy = tensor.detach().clone().contiguous()
    return copy.float() if copy.is_floating_point() else copy


def is_safetensors(path: Path) -> bool:
    """Return whether a file is safetensors, by its start: 8 bytes of length, then JSON."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def open_safetensors(path: Path) -> Any:
    """Open a safetensors file.

    Raises:
        UserError: If the file is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError) as error:
        raise _damaged_file(path, error) from error


def _arguments_dropped() -> AbstractContextManager[None]:
    """Let torch read a file with the arguments of a training script, as the scripts of torchvision and timm write it."""
    manager: AbstractContextManager[None] = torch.serialization.safe_globals([(DroppedArguments, ARGUMENTS)])
    return manager


def _read_torch(path: Path) -> object:
    """Return what torch.save wrote, if it is plain data."""
    try:
        # By the path, torch would read *.safetensors in another way.
        with warnings.catch_warnings(), _arguments_dropped(), path.open("rb") as file:
            warnings.simplefilter("ignore")  # torch warns about the protocol of files that it refuses
            return torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, *READ_ERRORS) as error:
        match = re.search(r"GLOBAL (\w+(?:\.\w+)*)(?:\s|$)", str(error))
        blocked = [name for name in pickle_globals.blocked_globals(path) if name != ARGUMENTS] or ([match[1]] if match else [])
        if not blocked:
            raise _damaged_file(path, error) from error
        raise UserError(
            f"{path}: refused, since opening it in full would run code",
            found=f"the file asks for {format_names(blocked)}, which is not plain data",
            expected=CHECKPOINT_EXPECTED,
            do=pickle_globals.other_library_advice(blocked)
            or f"only if you trust the file, save its tensors again: {RESCUE % path.name}",
        ) from error


def _damaged_file(path: Path, error: Exception) -> UserError:
    # The first lines of torch's message recommend the unsafe way to open the file, and later lines say how to allow more.
    match = re.search(r"WeightsUnpickler error: (.+)", str(error))
    message = match[1] if match else (str(error).strip().splitlines() or [""])[0]
    message = re.split(r"\.? (?:was not an allowed global|This is an internal|Please use)", message)[0]
    if "weights_only" in message or "Weights only" in message:
        message = "a pickle that torch.save did not write, or a part of one"
    elif not re.search(r"[A-Za-z]{3}", message):  # a missing key, or an empty message
        message = f"{type(error).__name__} {message}".strip()
    do = "download it again, and check its size and digest"
    return UserError(f"{path}: not a checkpoint, or a damaged one", found=message[:160], expected=CHECKPOINT_EXPECTED, do=do)


def _unwrap(content: object, path: Path) -> tuple[dict[str, Tensor], str]:
    """Return the mapping from names to tensors below the wrappers of a training script, and a note."""
    note = ""
    for _ in range(MAX_WRAPPERS + 1):
        if not isinstance(content, Mapping):
            break
        inner = {
            key: value
            for key, value in content.items()
            if isinstance(value, Mapping) and _holds_tensors(value) and not NOT_WEIGHTS.search(str(key))
        }
        wrapper = next((name for name in WRAPPERS if name in inner), None)
        if parts := _parts_of_network(inner, wrapper):
            content = {f"{key}.{name}": tensor for key, part in parts.items() for name, tensor in part.items()}
            break
        if wrapper is None and len(inner) == 1 and not any(isinstance(value, Tensor) for value in content.values()):
            wrapper = next(iter(inner))
        if wrapper is None:
            break
        averages = [name for name in AVERAGED_WRAPPERS if name in inner and name != wrapper]
        if averages:
            note = f"weights: {wrapper!r} of the file, not the moving average {averages[0]!r} in the same file"
        content = inner[wrapper]
    mapping = content if isinstance(content, Mapping) else {}
    tensors = {str(key): value for key, value in mapping.items() if isinstance(value, Tensor)}
    if not tensors:
        found = f"a {type(content).__name__}" + (f" with {format_names([str(key) for key in mapping])}" if mapping else "")
        expected = f"a state dict, at the top level or under {', '.join(WRAPPERS)}"
        raise UserError(f"{path}: it holds no named tensors", found=found, expected=expected)
    return tensors, note


def _parts_of_network(inner: Mapping[Any, Mapping[Any, Any]], wrapper: str | None) -> dict[Any, Mapping[Any, Any]]:
    """Return the state dicts of a file that stores the parts of a network one by one, as ``backbone`` and ``head``; else {}.

    Two state dicts with the same names are not parts but copies, of which a known wrapper names the right one.
    """
    parts = {
        key: part
        for key, part in inner.items()
        if (key == wrapper or key not in AVERAGED_WRAPPERS)
        and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in part.items())
    }
    if wrapper in STATE_DICTS or len(parts) < 2 or (wrapper and wrapper not in parts):
        return {}
    rest = [part for key, part in parts.items() if key != wrapper]
    return {} if wrapper and any(part.keys() & parts[wrapper].keys() for part in rest) else parts


def _holds_tensors(content: Mapping[Any, Any]) -> bool:
    values = content.values()
    return any(isinstance(value, Tensor) or (isinstance(value, Mapping) and _holds_tensors(value)) for value in values)


def without_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the same tensors without the prefixes that all names share."""
    common = next((prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in state)), None)
    return state if common is None else without_prefixes({name.removeprefix(common): tensor for name, tensor in state.items()})
