"""Read the layers of a head from the names and shapes of its tensors. Pure.

Activations and dropout have no tensors. Where the layers of a ``Sequential`` are numbered, the gaps say how many are missing.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from xferbench.core.finished_head import FinishedHead, HeadLayer

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

Shapes = dict[str, tuple[int, ...]]

ASSUMED_ACTIVATION = "relu"
ACTIVATIONS = {
    "relu": "ReLU",
    "hardswish": "Hardswish",
    "silu": "SiLU",
    "gelu": "GELU",
    "tanh": "Tanh",
    "prelu": "PReLU",
}
LAYER_NAMES = {"linear": "Linear", "batchnorm": "BatchNorm", "layernorm": "LayerNorm"} | ACTIVATIONS


def read_layers(
    shapes: Mapping[str, tuple[int, ...]], prefix: str, known: Mapping[int, str] | None = None
) -> tuple[HeadLayer, ...]:
    """Return the layers of a head, which end with a linear layer; () if they do not form a chain of known layers.

    Args:
        shapes: the shape of each tensor, by its name in the checkpoint.
        prefix: the name of the head in the checkpoint.
        known: kinds of layers without tensors, by their index in the head, where the architecture tells them.
    """
    layers = {name: _read_layer(name, parts) for name, parts in _by_module(shapes).items()}
    found = [layer for layer in layers.values() if layer is not None]
    if not found or len(found) < len(layers):
        return ()
    indices = {layer.name: layer.name.removeprefix(prefix).lstrip(".") for layer in found}
    if all(index.isdigit() for index in indices.values()):
        numbered = {int(indices[layer.name]): layer for layer in found}
        chain = [numbered[index] for index in sorted(numbered)]
        layers_of_head = _fill_gaps(numbered, known or {})
    else:
        chain = _order_by_width(found)
        layers_of_head = _with_activations(chain)
    return tuple(layers_of_head) if chain and _is_chain(chain) and chain[-1].kind == "linear" else ()


def first_width(layers: Sequence[HeadLayer]) -> int:
    """Return the number of features that the layers of a head take, -1 without layers."""
    return next((layer.inputs for layer in layers if layer.inputs), -1)


def common_module(names: Iterable[str]) -> str:
    """Return the innermost module that has all tensors of some names below it."""
    paths = [name.split(".")[:-1] for name in names]
    shared = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)


def describe_head(head: FinishedHead) -> str:
    """Return a note that names the layers of a head and what is assumed, because it has no tensors."""
    layers = [layer for layer in head.layers if layer.kind != "identity"]
    assumptions = ["no Sigmoid or Softmax behind it"]
    if any(layer.kind == ASSUMED_ACTIVATION for layer in layers):
        assumptions.insert(0, "ReLU, which has no tensors")
    if head.has_max_pooling:
        assumptions.insert(0, "the maximum, then the average of each feature map, as in fastai")
    return f"head: read from its tensors as {', '.join(map(_describe_layer, layers))}; assumed: {'; '.join(assumptions)}"


def _describe_layer(layer: HeadLayer) -> str:
    sizes = f" {layer.inputs} → {layer.outputs}" if layer.kind == "linear" else ""
    return LAYER_NAMES[layer.kind] + sizes + (f" ({layer.name})" if layer.name else "")


def _by_module(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Shapes]:
    modules: dict[str, Shapes] = {}
    for name, shape in shapes.items():
        module, _, part = name.rpartition(".")
        modules.setdefault(module, {})[part] = shape
    return modules


def _read_layer(name: str, parts: Shapes) -> HeadLayer | None:
    """Return the layer that has such tensors, or None if it is of no known kind."""
    weight, names = parts.get("weight", ()), parts.keys() - {"num_batches_tracked"}
    if names == {"weight"} and weight == (1,):
        return HeadLayer(kind="prelu", name=name, parts=tuple(parts))
    if names <= {"weight", "bias"} and len(weight) == 2 and parts.get("bias", weight[:1]) == weight[:1]:
        return HeadLayer(kind="linear", name=name, parts=tuple(parts), inputs=weight[1], outputs=weight[0])
    statistics = {"running_mean", "running_var"}
    is_batchnorm = names in (statistics, statistics | {"weight", "bias"})
    if (is_batchnorm or names == {"weight", "bias"}) and len(sizes := {parts[part] for part in names}) == 1:
        (size,) = sizes
        kind = "batchnorm" if is_batchnorm else "layernorm"
        return HeadLayer(kind=kind, name=name, parts=tuple(parts), inputs=size[0], outputs=size[0]) if len(size) == 1 else None
    return None


def _fill_gaps(numbered: Mapping[int, HeadLayer], known: Mapping[int, str]) -> list[HeadLayer]:
    """Return all layers of a ``Sequential`` by index, with one activation in the gaps between two linear layers."""
    layers = [numbered.get(index, HeadLayer(kind=known.get(index, "identity"))) for index in range(max(numbered) + 1)]
    linear = [index for index, layer in enumerate(layers) if layer.kind == "linear"]
    for below, above in pairwise(linear):
        free = [index for index in range(below + 1, above) if index not in numbered and index not in known]
        if free and not any(layer.kind in ACTIVATIONS for layer in layers[below:above]):
            layers[free[0]] = HeadLayer(kind=ASSUMED_ACTIVATION)
    return layers


def _is_chain(layers: Iterable[HeadLayer]) -> bool:
    """Return whether each layer takes as many features as the one before it gives."""
    return all(below.outputs == above.inputs for below, above in pairwise(layer for layer in layers if layer.inputs))


def _order_by_width(layers: Sequence[HeadLayer]) -> list[HeadLayer]:
    """Return layers so that each takes what the one before it gives, in the order of the file if there is a choice.

    Files that are sorted by name do not keep the order of the layers.
    """
    if _is_chain(layers):
        return list(layers)
    outputs = {layer.outputs for layer in layers if layer.kind == "linear"}
    width = next((layer.inputs for layer in layers if layer.inputs not in outputs), 0)
    ordered, rest = [], list(layers)
    while following := next((layer for layer in rest if layer.inputs == width), None):
        rest.remove(following)
        ordered.append(following)
        width = following.outputs
    return [] if rest else ordered


def _with_activations(chain: Sequence[HeadLayer]) -> list[HeadLayer]:
    """Return a chain with an activation before each linear layer but the first."""
    layers: list[HeadLayer] = []
    for layer in chain:
        since_linear = [below.kind for below in layers[::-1]]
        recent = since_linear[: since_linear.index("linear")] if "linear" in since_linear else ["relu"]
        if layer.kind == "linear" and not ACTIVATIONS.keys() & set(recent):
            layers.append(HeadLayer(kind=ASSUMED_ACTIVATION))
        layers.append(layer)
    return layers
