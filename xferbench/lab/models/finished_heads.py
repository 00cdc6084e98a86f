"""Find the head of a finished network among the tensors of its checkpoint. Imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from xferbench.core.errors import UserError
from xferbench.core.finished_head import FinishedHead, HeadLayer
from xferbench.lab.models import backbones, checkpoints, head_layers, heads
from xferbench.lab.models.batchnorm import BATCH_COUNTER
from xferbench.lab.models.state_dict_names import format_names, is_average

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor

ACTIVATION_KINDS = {
    nn.ReLU: "relu",
    nn.Hardswish: "hardswish",
    nn.SiLU: "silu",
    nn.GELU: "gelu",
    nn.Tanh: "tanh",
}
ANY_CLASSES = 0  # stands for an unknown number of classes


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointHead:
    """Where the head of a checkpoint is.

    Attributes:
        place: the module of the network that holds it, or that it replaces.
        outputs: the number of outputs.
        finished: the layers, or None if the head is the one of the architecture.
        note: what is assumed of the head, or which tensors are not used; or "".
    """

    place: str
    outputs: int
    finished: FinishedHead | None = None
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    layers: tuple[HeadLayer, ...]
    is_own: bool


def fits(model: nn.Module, head: str, state: Mapping[str, Tensor]) -> bool:
    """Return whether a checkpoint has exactly the tensors of a network, with any head, and any other head next to it."""
    place = find_place(model, head, state)
    if not _is_complete(model, place, state):
        return False
    names, _ = checkpoints.rename(model, state, place)
    renamed = {new: state[name] for name, new in names.items()}
    spare = checkpoints.spare_names(model, renamed, place)
    allowed = (place, *checkpoints.AUXILIARY_HEADS)
    body = model.state_dict()
    return all(name in body or name in spare or backbones.is_within(name, allowed) for name in renamed)


def find_head(
    model: nn.Module, head: str, state: Mapping[str, Tensor], classes: int = ANY_CLASSES, arch: str = "ARCH"
) -> CheckpointHead:
    """Find the head in a checkpoint: at its place in the network, in place of the layers around it, or next to the network.

    Args:
        model: the network, with a head of its own.
        head: the name of this head.
        state: the tensors of the checkpoint.
        classes: the number of classes, which decides between heads next to a network that other code calls.
        arch: the name of the network, for advice.

    Raises:
        UserError: if the checkpoint has no head, or one that its tensors do not explain.
    """
    place = find_place(model, head, state)
    names, prefix = checkpoints.rename(model, state, place)
    weight = next((name for name, new in names.items() if new == f"{head}.weight"), None)
    candidates = _candidates(model, place, state)
    chosen = _choose(candidates, prefix, classes)
    if weight is not None and place == head and (not prefix or chosen is None or chosen.is_own):
        return CheckpointHead(place=head, outputs=len(state[weight]))
    if chosen is None and len(candidates) > 1:
        raise UserError(
            "[checkpoint] after: more than one head next to the network",
            found=", ".join(
                f"{candidate.layers[-1].name} with {candidate.layers[-1].outputs} outputs" for candidate in candidates
            ),
            expected="one head, or one with an output for each class",
            do="save only the head to audit",
        )
    if chosen is None:
        raise _unreadable(model, place, state, arch)
    doubled = head_layers.first_width(chosen.layers) != heads.head_width(model, place)
    finished = FinishedHead(place=place, layers=chosen.layers, has_max_pooling=doubled)
    return CheckpointHead(place=place, outputs=finished.outputs, finished=finished, note=head_layers.describe_head(finished))


def unused_note(model: nn.Module, head: CheckpointHead, state: Mapping[str, Tensor]) -> str:
    """Return a note on the tensors of a checkpoint that neither the network nor its head uses."""
    names, prefix = checkpoints.rename(model, state, head.place)
    spare = checkpoints.spare_names(model, {new: state[name] for name, new in names.items()}, head.place)
    used = {name for name, new in names.items() if new not in spare}
    if head.finished:
        used = {name for name in used if not backbones.is_within(names[name], [head.place])}
        used |= head_tensor_names(head.finished).keys()
    unused = [name for name in state if name not in used]
    chosen = f"those named {prefix}…; " if prefix else ""
    return f"weights: {chosen}not used: {format_names(unused)}" if unused else ""


def head_tensor_names(head: FinishedHead) -> dict[str, str]:
    """Return the name in the network of each tensor of a head, by its name in the checkpoint."""
    return {
        f"{layer.name}.{part}": f"{head.place}.{index}.{part}"
        for index, layer in enumerate(head.layers)
        for part in layer.parts
    }


def find_place(model: nn.Module, head: str, state: Mapping[str, Tensor]) -> str:
    """Return the module that holds the head of a checkpoint: the one of the network, or a module around it.

    Users replace the whole classifier of a network, or one layer of it. The innermost module counts outside which all tensors
    are those of the network.
    """
    parts = head.split(".")
    places = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
    return next((place for place in places if _is_complete(model, place, state)), head)


def _is_complete(model: nn.Module, place: str, state: Mapping[str, Tensor]) -> bool:
    """Return whether a checkpoint has the tensors of a network outside a module, and no others in the module around it."""
    names, _ = checkpoints.rename(model, state, place)
    shapes = {new: tuple(state[name].shape) for name, new in names.items()}
    body = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if not backbones.is_within(name, [place])}
    parent = place.rpartition(".")[0]
    foreign = [name for name in shapes if parent and backbones.is_within(name, [parent])]
    return all(shapes.get(name) == shape for name, shape in body.items() if not name.endswith(BATCH_COUNTER)) and all(
        name in body or backbones.is_within(name, [place]) for name in foreign
    )


def _candidates(model: nn.Module, place: str, state: Mapping[str, Tensor]) -> list[_Candidate]:
    """Return the heads that can be read: that of the network, then those next to it."""
    names, prefix = checkpoints.rename(model, state, place)
    own_names = [name for name, new in names.items() if backbones.is_within(new, [place])]
    candidates = []
    width = heads.head_width(model, place)
    widths = {width} | ({2 * width} if heads.pooling_layer(model) else set())
    if own_names:
        path = _path_in_file(own_names[0], names[own_names[0]], place)
        shapes = {name: tuple(state[name].shape) for name in own_names}
        layers = head_layers.read_layers(shapes, path, _known_layers(model.get_submodule(place), path, shapes))
        if head_layers.first_width(layers) in widths:
            candidates.append(_Candidate(layers=layers, is_own=True))
    for group in _groups_outside(model, names, prefix, place, state):
        layers = head_layers.read_layers({name: tuple(state[name].shape) for name in group}, head_layers.common_module(group))
        taken = head_layers.first_width(layers)
        below = candidates[0].layers if candidates and candidates[0].is_own and taken not in widths else ()
        if taken in widths or (below and taken == below[-1].outputs):
            candidates.append(_Candidate(layers=(*below, *layers), is_own=False))
    return candidates


def _choose(candidates: list[_Candidate], prefix: str, classes: int) -> _Candidate | None:
    """Choose a head. Other code calls a network under a prefix, so that the number of classes decides there."""
    fitting = [candidate for candidate in candidates if _fits(candidate.layers[-1].outputs, classes)]
    if prefix and len(fitting) == 1:
        return fitting[0]
    own = [candidate for candidate in candidates if candidate.is_own]
    return own[0] if own else candidates[0] if len(candidates) == 1 else None


def _fits(outputs: int, classes: int) -> bool:
    return outputs == classes or (outputs, classes) == (1, 2)


def _path_in_file(name: str, new_name: str, place: str) -> str:
    """Return the name of a module in the file, from the names of a tensor in the file and in the network."""
    return name.removesuffix(new_name.removeprefix(place)).rstrip(".")


def _groups_outside(
    model: nn.Module, names: Mapping[str, str], prefix: str, place: str, state: Mapping[str, Tensor]
) -> Iterable[list[str]]:
    """Return the names of the tensors outside the network, by the module that they belong to."""
    spare = checkpoints.spare_names(model, {new: state[name] for name, new in names.items()}, place)
    outside = [name for name in state if names.get(name, name) in spare or name not in names]
    parent = prefix.rstrip(".").rpartition(".")[0]
    groups: dict[str, list[str]] = {}
    for name in outside:
        start = f"{parent}." if parent and name.startswith(f"{parent}.") else ""
        group = start + name.removeprefix(start).partition(".")[0]
        if "." in name and not is_average(group):
            groups.setdefault(group, []).append(name)
    return groups.values()


def _known_layers(module: nn.Module, path: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[int, str]:
    """Return the kinds of the layers without tensors that a head keeps of the network's own, by index."""
    known = {}
    for index, layer in enumerate(module.children() if isinstance(module, nn.Sequential) else ()):
        own = {f"{path}.{index}.{name}": tuple(tensor.shape) for name, tensor in layer.state_dict().items()}
        found = {name: shape for name, shape in shapes.items() if backbones.is_within(name, [f"{path}.{index}"])}
        if own != found:
            break
        if not own:
            known[index] = ACTIVATION_KINDS.get(type(layer), "identity")
    return known


def _unreadable(model: nn.Module, place: str, state: Mapping[str, Tensor], arch: str) -> UserError:
    names, prefix = checkpoints.rename(model, state, place)
    own_names = [name for name, new in names.items() if backbones.is_within(new, [place])]
    outside = [name for group in _groups_outside(model, names, prefix, place, state) for name in group]
    if not own_names and not outside:
        return UserError(
            "[checkpoint] after: the network has no head",
            found=f"no tensor {place}.weight in the file",
            expected="the weights after fine-tuning, with the trained head",
            do="save the state_dict() of the whole network",
        )
    shapes = [f"{name} {list(state[name].shape)}" for name in own_names or outside]
    return unreadable_head(arch, place, heads.head_width(model, place), shapes)


def unreadable_head(arch: str, place: str, width: int, found: list[str]) -> UserError:
    """Return the error for a head whose tensors do not tell its layers, with the lines of a builder."""
    parent, _, attribute = place.rpartition(".")
    return UserError(
        "[checkpoint] after: the head cannot be read from its tensors",
        found=format_names(found),
        expected=f"Linear, BatchNorm and LayerNorm layers, one on top of the other, from {width} features",
        do="build the network yourself: write these lines, with your head, into net.py, and add --arch python:net:build "
        "--allow-code\n"
        "    from torch import nn; from xferbench.lab.models import backbones\n"
        f'    def build(classes): net = backbones.build("{arch}", classes); '
        f'net.get_submodule("{parent}").{attribute} = nn.Sequential(nn.Linear({width}, classes)); return net',
    )
