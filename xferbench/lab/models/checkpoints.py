"""Load tensors into networks, and write them to files. Reads and writes files, imports torch."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from math import isfinite
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from xferbench.core import files
from xferbench.core.errors import UserError
from xferbench.core.transforms import Preprocessing
from xferbench.lab.models import backbones, head_layers, heads, network_tasks
from xferbench.lab.models.batchnorm import BATCH_COUNTER
from xferbench.lab.models.checkpoint_reader import is_safetensors, open_safetensors
from xferbench.lab.models.state_dict_names import (
    change_prefix,
    child_name,
    current_name,
    describe_prefix,
    detect_family,
    format_names,
    index_name,
    is_average,
    matching_prefixes,
    without_averages,
)
from xferbench.lab.models.transformers_text import added_layers

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

AUXILIARY_HEADS = ("aux1", "aux2", "AuxLogits")  # classifiers that GoogLeNet and Inception have during pretraining only
PREPROCESSING_METADATA = "xferbench.preprocessing"
MAX_IMAGE_SIDE = 4096  # pixels
MAX_FLOAT16 = 65504.0


def load_backbone(model: nn.Module, state: Mapping[str, Tensor], head: str) -> tuple[str, ...]:
    """Copy all tensors except those of the head into a network. Return the names of the head tensors in the checkpoint.

    The classifiers that only serve pretraining (GoogLeNet, Inception) count as heads. The counters of BatchNorm may be missing,
    and so may the layers that a classifier of transformers adds.

    Raises:
        UserError: If names or shapes differ (one message lists all of them), or values are not finite.
    """
    tensors, left_out = match_tensors(model, state, head)
    non_finite = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not torch.isfinite(tensor).all()]
    if non_finite:
        raise UserError(
            "the weights are not finite", found=f"NaN or infinity in {format_names(non_finite)}", expected="finite numbers"
        )
    network_tensors = _network_tensors(model, head)
    with torch.no_grad():  # not load_state_dict, which rebuilds an MNASNet whose version is missing
        for name, tensor in tensors.items():
            network_tensors[name].copy_(tensor)
    return left_out


def match_tensors(model: nn.Module, state: Mapping[str, Tensor], head: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the tensors of a checkpoint under the names of the network, and the names of those that belong to heads.

    Raises:
        UserError: If names or shapes differ below the head; one message lists all of them.
    """
    renamed_tensors, _ = match_names(model, state, head)
    spare = spare_names(model, renamed_tensors, head)
    left_out = tuple(name for name in renamed_tensors if name in spare or backbones.is_within(name, (head, *AUXILIARY_HEADS)))
    tensors = {name: tensor for name, tensor in renamed_tensors.items() if name not in left_out}
    network_tensors = _network_tensors(model, head)
    shapes = {
        name: (tuple(tensors[name].shape), tuple(tensor.shape)) for name, tensor in network_tensors.items() if name in tensors
    }
    complaints = {
        "missing in the file": [name for name in _body_shapes(model, head) if name not in tensors],
        "not in the network": [name for name in tensors if name not in network_tensors],
        "of another shape": [
            f"{name} {file_shape} for {network_shape}"
            for name, (file_shape, network_shape) in shapes.items()
            if file_shape != network_shape
        ],
    }
    if any(complaints.values()):
        raise _describe_misfit(complaints, tensors, network_tensors, head)
    return tensors, left_out


def head_tensors(model: nn.Module, state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Return the head tensors of a checkpoint under the names of the network; empty if the checkpoint has no head."""
    renamed_tensors, _ = match_names(model, state, name)
    return {tensor_name: tensor for tensor_name, tensor in renamed_tensors.items() if backbones.is_within(tensor_name, [name])}


def match_names(model: nn.Module, state: Mapping[str, Tensor], head: str) -> tuple[dict[str, Tensor], str]:
    """Return the tensors under the names of the network, and a note on those that are not used."""
    names, prefix = rename(model, state, head)
    tensors = {new_name: state[name] for name, new_name in names.items()}
    unused = [name for name in state if name not in names] or sorted(spare_names(model, tensors, head))
    chosen = f"those named {prefix}…; " if prefix else ""
    return tensors, f"weights: {chosen}not used: {format_names(unused)}" if unused else ""


def rename(model: nn.Module, state: Mapping[str, Tensor], head: str) -> tuple[dict[str, str], str]:
    """Return the name in the network of each tensor of a checkpoint, and the prefix that was removed.

    Training code stores the network next to losses and metrics, as ``model.`` or ``encoder.``, or as
    ``Sequential(*network.children())``, whose names are numbers. If changing one prefix gives every tensor of the network below
    its head, the prefix is changed, and tensors without the prefix have no new name. Otherwise the names stay. An average of
    the weights is only chosen if the file has nothing else.
    """
    current = {name: current_name(name) for name in state}
    needed = _body_shapes(model, head)
    if needed.keys() <= set(current.values()):
        return current, ""
    shapes = {current[name]: tuple(tensor.shape) for name, tensor in state.items()}
    changes = _complete_changes(shapes, needed)
    if len(changes) == 1:
        old_prefix, new_prefix = changes[0]
        return _without_none({name: change_prefix(current[name], old_prefix, new_prefix) for name in state}), old_prefix
    children = [name for name, _ in model.named_children()]
    indexed = {index_name(name, children): shape for name, shape in needed.items()}
    # The dots let an empty prefix count as one to remove.
    changes = [] if "" in indexed else _complete_changes({f".{name}": shape for name, shape in shapes.items()}, indexed)
    if len(changes) != 1:
        return current, ""
    prefix = changes[0][0].removeprefix(".")
    rest = _without_none({name: change_prefix(current[name], prefix, "") for name in state})
    return _without_none({name: child_name(rest[name], children) for name in rest}), prefix


def _complete_changes(shapes: Mapping[str, tuple[int, ...]], needed: Mapping[str, tuple[int, ...]]) -> list[tuple[str, str]]:
    """Return the changes of prefix that give all tensors of a network; without averages if there is another one."""
    changes = matching_prefixes(shapes, needed)
    return without_averages(change for change, count in changes.items() if count == len(needed))


def _without_none(names: Mapping[str, str | None]) -> dict[str, str]:
    return {name: new_name for name, new_name in names.items() if new_name is not None}


def spare_names(model: nn.Module, tensors: Mapping[str, Tensor], head: str) -> set[str]:
    """Return the names of tensors outside the network that look like another head, or an average of the weights.

    The network does not call a module that its class does not have.
    """
    own = {name.partition(".")[0] for name in (*model.state_dict(), *AUXILIARY_HEADS, *dict(model.named_children()))}
    groups: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, tensor in tensors.items():
        if (group := name.partition(".")[0]) not in own:
            groups.setdefault(group, {})[name] = tuple(tensor.shape)
    width = heads.head_width(model, head)
    return {
        name
        for group, shapes in groups.items()
        if is_average(group) or head_layers.first_width(head_layers.read_layers(shapes, group)) in {width, 2 * width}
        for name in shapes
    }


def _network_tensors(model: nn.Module, head: str) -> dict[str, Tensor]:
    """Return the tensors of a network without those of its head, its adapters and its virtual tokens."""
    tensors = model.state_dict().items()
    return {name: tensor for name, tensor in tensors if not (backbones.is_within(name, [head]) or backbones.is_added(name))}


def _body_shapes(model: nn.Module, head: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors that a checkpoint must have.

    They are all below the head but the counters of BatchNorm and the layers that a classifier of transformers adds.
    """
    tensors, added = _network_tensors(model, head), added_layers(model)
    return {
        name: tuple(tensor.shape)
        for name, tensor in tensors.items()
        if not (name.endswith(BATCH_COUNTER) or backbones.is_within(name, added))
    }


def _describe_misfit(
    complaints: Mapping[str, list[str]], tensors: Mapping[str, Tensor], network_tensors: Mapping[str, Tensor], head: str
) -> UserError:
    found = "; ".join(f"{len(names)} {kind}: {format_names(names)}" for kind, names in complaints.items() if names)
    shapes = {name: tuple(tensor.shape) for name, tensor in network_tensors.items() if not name.endswith(BATCH_COUNTER)}
    file_shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    prefix_changes = matching_prefixes(file_shapes, shapes)
    family_name = detect_family(tensors)
    complete_prefixes = [old or new for old, new in _complete_changes(file_shapes, shapes)]
    task = network_tasks.describe_task(tensors)
    hints = [f"the file holds {task}"] if task else [f"the names look like {family_name}"] if family_name else []
    if len(complete_prefixes) > 1:
        hints = [f"the file holds the network more than once, under {', '.join(complete_prefixes)}: save only the one to use"]
    elif hint := describe_prefix(prefix_changes, len(shapes)):
        hints = [hint]
    sides = network_tasks.image_side(file_shapes), network_tasks.image_side(shapes)
    if None not in sides and sides[0] != sides[1]:
        hints = [f"the file is made for images of {sides[0]} px, the network for {sides[1]} px"]
    return UserError(
        "the weights do not fit the backbone",
        found=found,
        expected=f"the {len(network_tensors)} tensors of the network below its head {head!r}, by name and shape",
        do="; ".join([*hints, "set arch under [backbone] to the architecture of the weights, or rename the tensors"]),
    )


def save_tensors(
    state: Mapping[str, Tensor], path: Path, *, half: bool = True, metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors to a safetensors file. An interrupted write leaves no file.

    With ``half``, floating-point tensors are stored as float16 unless a value would overflow.
    """
    from safetensors.torch import save as serialize

    converted = {name: _to_half(tensor) if half else tensor for name, tensor in state.items()}
    copies = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in converted.items()}
    content = serialize(copies, dict(metadata or {}))
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replace_atomically(path) as part:
        part.write_bytes(content)


def preprocessing_metadata(preprocessing: Preprocessing) -> dict[str, str]:
    """Return the metadata from which :func:`recorded_preprocessing` reads how the inputs of a network were preprocessed."""
    return {PREPROCESSING_METADATA: json.dumps(asdict(preprocessing))}


def recorded_preprocessing(path: Path) -> Preprocessing | None:
    """Return the preprocessing that a safetensors file records, or None if the file records none or is of another kind.

    Raises:
        UserError: If the record cannot be read.
    """
    if not is_safetensors(path):
        return None
    with open_safetensors(path) as file:
        text = (file.metadata() or {}).get(PREPROCESSING_METADATA)
    if text is None:
        return None
    try:
        values: Any = {name: tuple(value) if isinstance(value, list) else value for name, value in json.loads(text).items()}
        return _plausible(Preprocessing(**values))
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        expected = "JSON with " + ", ".join(field.name for field in fields(Preprocessing))
        raise UserError(f"{path}: recorded preprocessing", found=text[:200], expected=expected) from error


def _plausible(preprocessing: Preprocessing) -> Preprocessing:
    """Return a preprocessing of a file.

    Raises:
        ValueError: if no image can be prepared with its sizes and numbers.
    """
    sizes: list[Any] = [size for size in (preprocessing.resize, preprocessing.crop) if size is not None]
    numbers = [preprocessing.scale, *preprocessing.mean, *preprocessing.std]
    if not all(isinstance(size, int) and 0 < size <= MAX_IMAGE_SIDE for size in sizes):
        raise ValueError("a size that no image has")
    if not all(isfinite(number) for number in numbers) or {len(preprocessing.mean), len(preprocessing.std)} - {1, 3}:
        raise ValueError("numbers that are not finite, or not one for each channel")
    return preprocessing


def _to_half(tensor: Tensor) -> Tensor:
    can_convert = tensor.is_floating_point() and bool((tensor.abs() <= MAX_FLOAT16).all())
    return tensor.half() if can_convert else tensor
