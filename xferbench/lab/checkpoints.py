"""Weights from and to files, without ever running code that a file brings."""

from __future__ import annotations

import json
import os
import pickle
import re
import struct
import warnings
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from xferbench.design import Preprocessing
from xferbench.lab import backbones
from xferbench.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "module", "ema", "model_ema", "state_dict_ema", "backbone")
PREFIXES = ("module.", "model.", "net.", "_orig_mod.", "base_model.model.", "backbone.")
AUXILIARY = ("aux1", "aux2", "AuxLogits")  # classifiers that GoogLeNet and Inception have while they are pretrained
RENAMED = (  # names in published torchvision weights → today's
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\."), r"\1\2."),
    (re.compile(r"(encoder_layer_\d+\.mlp)\.linear_1\."), r"\1.0."),
    (re.compile(r"(encoder_layer_\d+\.mlp)\.linear_2\."), r"\1.3."),
)
RESNETS: dict[tuple[int, ...], str] = {  # whether it has bottlenecks, and blocks a stage
    (False, 2, 2, 2, 2): "resnet18",
    (False, 3, 4, 6, 3): "resnet34",
    (True, 3, 4, 6, 3): "resnet50",
    (True, 3, 4, 23, 3): "resnet101",
    (True, 3, 8, 36, 3): "resnet152",
}
SIGNS = {  # of names → the family that has such
    r"\.squeeze\.weight$": "SqueezeNet",
    r"denselayer\d": "DenseNet",
    r"^conv_proj\.": "torchvision's ViT",
    r"^patch_embed\.proj\.": "timm's ViT or Swin",
    r"(^|\.)embeddings\.": "a Hugging Face transformer",
    r"^stage\d\.\d+\.branch2": "ShuffleNet",
    r"^inception\d[a-e]\.": "GoogLeNet",
    r"^Mixed_\d[a-e]\.": "Inception",
    r"^trunk_output\.": "RegNet",
    r"\.layer_scale$": "ConvNeXt",
    r"\.relative_position_bias_table$": "Swin",
    r"^features\.\d+\.conv\.\d": "MobileNetV2",
    r"^features\.\d+\.\d+\.block\.": "EfficientNet",
    r"^features\.\d+\.block\.": "MobileNetV3",
    r"^features\.\d+\.weight$": "VGG or AlexNet",
}
RECORD = "xferbench.preprocessing"
SHOWN = 10
HALF_LIMIT = 65504.0
# What torch.load raises on files that are damaged or something else altogether.
UNREADABLE = (RuntimeError, EOFError, OSError, ValueError, LookupError, AttributeError, TypeError, AssertionError, struct.error)
A_CHECKPOINT = "a state dict saved by torch.save, or safetensors"


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, floating point as float32; wrappers and prefixes that all names share are taken off.

    Raises:
        Problem: where the file is missing, damaged, no checkpoint, or would run code when opened the usual way.
    """
    if not path.is_file() or not path.stat().st_size:
        found = "a folder" if path.is_dir() else "an empty file" if path.is_file() else "no such file"
        raise Problem(f"{path}: cannot be read as weights", found=found, expected=A_CHECKPOINT)
    content = recall(path)[0] if _is_safetensors(path) else _read_torch(path)
    state = _unwrapped(content, path)
    odd = [name for name, tensor in state.items() if tensor.is_quantized or tensor.is_sparse or tensor.is_complex()]
    if odd:
        raise Problem(f"{path}: tensors of a kind that cannot be loaded", found=_listed(odd), expected="dense, real tensors")
    return {name: _plain(tensor) for name, tensor in _without_prefixes(state).items()}


def load(model: nn.Module, state: Mapping[str, Tensor], head: str) -> tuple[str, ...]:
    """Copy everything but the head's tensors into a network; the names of the checkpoint's head tensors, which are left out.

    The classifiers that only serve pretraining (GoogLeNet, Inception) count as heads; BatchNorm's counters may be missing.

    Raises:
        Problem: where the names or shapes differ, all of them in one message, or where values are not finite.
    """
    renamed = {_renamed(name): tensor for name, tensor in state.items()}
    left_out = tuple(name for name in renamed if backbones.within(name, (head, *AUXILIARY)))
    given = {name: tensor for name, tensor in renamed.items() if name not in left_out}
    wanted = {name: tensor for name, tensor in model.state_dict().items() if not backbones.within(name, [head])}
    shapes = {name: (tuple(given[name].shape), tuple(tensor.shape)) for name, tensor in wanted.items() if name in given}
    complaints = {
        "missing in the file": [name for name in wanted if name not in given and not name.endswith("num_batches_tracked")],
        "not in the network": [name for name in given if name not in wanted],
        "of another shape": [f"{name} {found} for {here}" for name, (found, here) in shapes.items() if found != here],
    }
    if any(complaints.values()):
        found = "; ".join(f"{len(names)} {kind}: {_listed(names)}" for kind, names in complaints.items() if names)
        likeness = _likeness(given)
        do = f"the names look like {likeness}; " if likeness else ""
        raise Problem(
            "the weights do not fit the backbone",
            found=found,
            expected=f"the {len(wanted)} tensors of the network below its head {head!r}, by name and shape",
            do=f"{do}set arch under [backbone] to what the weights were made with, or rename the tensors",
        )
    broken = [name for name, tensor in given.items() if tensor.is_floating_point() and not torch.isfinite(tensor).all()]
    if broken:
        raise Problem("the weights are not finite", found=f"NaN or infinity in {_listed(broken)}", expected="finite numbers")
    with torch.no_grad():  # by hand: load_state_dict would rebuild MNASNet for want of a version
        for name, tensor in given.items():
            wanted[name].copy_(tensor)
    return left_out


def save(state: Mapping[str, Tensor], path: Path, *, half: bool = True, metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as safetensors, whole or not at all; floating point as float16 where ``half`` and nothing overflows."""
    from safetensors.torch import save as serialised

    shrunk = {name: _halved(tensor) if half else tensor for name, tensor in state.items()}
    own = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in shrunk.items()}
    content = serialised(own, dict(metadata or {}))
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise


def recall(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What :func:`save` wrote, tensors and metadata, just as it is in the file.

    Raises:
        Problem: where the file is missing or damaged.
    """
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118 - no mapping


def record(preprocessing: Preprocessing) -> dict[str, str]:
    """The metadata that tell :func:`recorded_preprocessing` what a network was trained with."""
    return {RECORD: json.dumps(asdict(preprocessing))}


def recorded_preprocessing(path: Path) -> Preprocessing | None:
    """What a safetensors file says of its network's preprocessing; None where it says nothing or is of another kind.

    Raises:
        Problem: for a record that cannot be read.
    """
    if not _is_safetensors(path):
        return None
    with _opened(path) as file:
        text = (file.metadata() or {}).get(RECORD)
    if text is None:
        return None
    try:
        values: Any = {name: tuple(value) if isinstance(value, list) else value for name, value in json.loads(text).items()}
        return Preprocessing(**values)
    except (ValueError, TypeError, AttributeError) as error:
        expected = "JSON with " + ", ".join(field.name for field in fields(Preprocessing))
        raise Problem(f"{path}: recorded preprocessing", found=text[:200], expected=expected) from error


def _plain(tensor: Tensor) -> Tensor:
    own = tensor.detach().clone().contiguous()
    return own.float() if own.is_floating_point() else own


def _halved(tensor: Tensor) -> Tensor:
    small = tensor.is_floating_point() and bool((tensor.abs() <= HALF_LIMIT).all())
    return tensor.half() if small else tensor


def _listed(names: list[str]) -> str:
    more = f" … ({len(names)} in all)" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _is_safetensors(path: Path) -> bool:
    """By the file's ending or its start: 8 bytes of length, then JSON."""
    with path.open("rb") as file:
        return path.suffix == ".safetensors" or file.read(9)[8:] == b"{"


def _opened(path: Path) -> Any:
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
            found=f"the file asks for {blocked[1]}, which is no plain data",
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


def _damaged(path: Path, error: Exception) -> Problem:
    # The first lines of torch's own message praise the unsafe way to open the file.
    reason = re.search(r"WeightsUnpickler error: (.+)", str(error))
    said = reason[1] if reason else (str(error).strip().splitlines() or [type(error).__name__])[0]
    do = "fetch it again, and check its size and digest"
    return Problem(f"{path}: no checkpoint, or a damaged one", found=said[:160], expected=A_CHECKPOINT, do=do)


def _unwrapped(content: object, path: Path) -> dict[str, Tensor]:
    """The mapping from names to tensors within what a training script saved around it, at most two wrappers deep."""
    for _ in range(3):
        if not isinstance(content, Mapping):
            break
        inner = {key: value for key, value in content.items() if isinstance(value, Mapping) and _holds_tensors(value)}
        wrapper = next((name for name in WRAPPERS if name in inner), None)
        if wrapper is None and len(inner) == 1 and not any(isinstance(value, Tensor) for value in content.values()):
            wrapper = next(iter(inner))
        if wrapper is None:
            break
        content = inner[wrapper]
    named = content if isinstance(content, Mapping) else {}
    tensors = {str(key): value for key, value in named.items() if isinstance(value, Tensor)}
    if not tensors:
        found = f"a {type(content).__name__}" + (f" with {_listed([str(key) for key in named])}" if named else "")
        expected = f"a state dict, also below {', '.join(WRAPPERS)}"
        raise Problem(f"{path}: no tensors by name in it", found=found, expected=expected)
    return tensors


def _holds_tensors(content: Mapping[Any, Any]) -> bool:
    values = content.values()
    return any(isinstance(value, Tensor) or (isinstance(value, Mapping) and _holds_tensors(value)) for value in values)


def _without_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    shared = next((prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in state)), None)
    return state if shared is None else _without_prefixes({name.removeprefix(shared): tensor for name, tensor in state.items()})


def _renamed(name: str) -> str:
    for pattern, today in RENAMED:
        name = pattern.sub(today, name)
    return name


def _likeness(names: Iterable[str]) -> str:
    """The family of networks whose tensors are named so, or ""."""
    names = set(names)
    stages = [{name.split(".")[1] for name in names if name.startswith(f"layer{stage}.")} for stage in (1, 2, 3, 4)]
    if "layer1.0.conv1.weight" in names:
        blocks = [len(stage) for stage in stages]
        if blocks[3] == 0 and len(set(blocks[:3])) == 1:
            return f"cifar-resnet{6 * blocks[0] + 2}"
        return RESNETS.get(("layer1.0.conv3.weight" in names, *blocks), "a ResNet")
    return next((family for sign, family in SIGNS.items() if any(re.search(sign, name) for name in names)), "")
