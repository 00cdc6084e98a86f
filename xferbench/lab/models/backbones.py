"""Build backbones by name, and find their layer groups and head. Imports torch, torchvision and timm.

The layout is found by running the network once and recording the order of its calls, so it needs no knowledge of the names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _NormBase as BatchOrInstanceNorm

from xferbench.core.errors import UserError, suggest
from xferbench.core.interventions import AllLayers, TopGroups, Trainable
from xferbench.data import language, user_code
from xferbench.lab.data import batch
from xferbench.lab.models.batchnorm import batchnorm_layers, preserve_modes
from xferbench.lab.training import seeds

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from xferbench.core.pipeline import UserCode

TIMM_PREFIX = "timm:"
CIFAR_DEPTHS = {f"cifar-resnet{depth}": depth for depth in (20, 32, 44, 56)}
# Auxiliary classifiers only serve pretraining. The published weights of both networks expect transformed inputs.
INCEPTION_ARGUMENTS = {"aux_logits": False, "init_weights": True, "transform_input": True}
SPECIAL_ARGUMENTS = {"googlenet": INCEPTION_ARGUMENTS, "inception_v3": INCEPTION_ARGUMENTS}
MIN_GROUPS = 4
MAX_GROUP_SHARE = 0.8  # maximum share of the layers in one group, if the group can be divided
NORM_LAYERS = (BatchOrInstanceNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
LINEAR_LAYERS = (nn.Linear, nn.Conv2d, nn.MultiheadAttention)  # layers whose weights are matrices; kernels are flattened
# The parameters that a recipe adds to a network, by the kind of partial training.
ADDED_NAMES = {
    "adapter": ("adapter_down", "adapter_down_bias", "adapter_up", "adapter_up_bias"),
    "prompt": ("virtual_prompt",),
    "prefix": ("virtual_keys", "virtual_values"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerGroup:
    """Layers that are frozen and unfrozen together and share a learning rate. ``prefixes`` are those of their tensor names."""

    name: str
    prefixes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerLayout:
    """The structure of a network. Every tensor belongs to exactly one group or to the head.

    Attributes:
        parameters: the number of learnable values.
        groups: the layer groups without the head, from the input up.
        head: the name of the module that computes the logits.
        batchnorm: the names of the BatchNorm layers with running statistics.
        features: the number of input channels of the head.
        classes: the number of outputs of the head.
    """

    parameters: int
    groups: tuple[LayerGroup, ...]
    head: str
    batchnorm: tuple[str, ...]
    features: int
    classes: int


def known_archs() -> tuple[str, ...]:
    """Return the names of the architectures that can be built without timm or user code."""
    import torchvision

    classifiers = torchvision.models.list_models(module=torchvision.models)
    return ("tiny-resnet", "tiny-bert", *CIFAR_DEPTHS, *(f"torchvision:{name}" for name in classifiers))


def build(arch: str, classes: int, code: UserCode | None = None, pooling: str = "") -> nn.Module:
    """Build a network with random weights and a head of ``classes`` outputs. Nothing is downloaded.

    Args:
        arch: the name of the architecture.
        classes: the number of outputs.
        code: user code that builds the network instead.
        pooling: as in :class:`xferbench.core.pipeline.Backbone`.

    Raises:
        UserError: if the name is unknown, the network has no pooling to choose, or a library is not installed.
        xferbench.data.user_code.UserCodeError: if the user code raises.
    """
    from xferbench.lab.models import small_resnets, tiny_bert, transformers_models

    if arch.startswith(transformers_models.PREFIX):
        return transformers_models.build(arch, classes, pooling)
    if pooling and arch != "tiny-bert":
        expected = "tiny-bert, or transformers:DIR with a pretrained network for text"
        raise UserError("pooling: the network has none to choose", found=arch, expected=expected, do="remove pooling")
    if code is not None:
        return _build_with_user_code(code, classes)
    if arch.startswith(TIMM_PREFIX):
        return _build_with_timm(arch, classes)
    if arch not in known_archs():
        raise _unknown_arch(arch, known_archs())
    if arch == "tiny-bert":
        return tiny_bert.tiny_bert(classes, len(language.vocabulary_lines()), pooling or "cls")
    if not arch.startswith("torchvision:"):
        depth = CIFAR_DEPTHS.get(arch)
        return small_resnets.cifar_resnet(depth, classes) if depth else small_resnets.tiny_resnet(classes)
    import torchvision

    name = arch.removeprefix("torchvision:")
    network: nn.Module = torchvision.models.get_model(
        name, weights=None, num_classes=classes, **SPECIAL_ARGUMENTS.get(name, {})
    )
    return network


def _build_with_timm(arch: str, classes: int) -> nn.Module:
    timm, name = import_timm(), arch.removeprefix(TIMM_PREFIX)
    if not timm.is_model(name):
        similar_models = timm.list_models(f"{name[:3]}*") or timm.list_models()
        raise _unknown_arch(arch, (TIMM_PREFIX + model for model in similar_models))
    network: nn.Module = timm.create_model(name, pretrained=False, num_classes=classes)
    return network


def _unknown_arch(arch: str, candidates: Iterable[str]) -> UserError:
    expected = suggest(arch, candidates)
    return UserError("unknown architecture", found=arch, expected=expected, do="correct arch under [backbone]")


def _build_with_user_code(code: UserCode, classes: int) -> nn.Module:
    with seeds.seed_global_streams(torch.initial_seed()):
        network = user_code.call_user_code(code, classes)
    if not isinstance(network, nn.Module):
        found, expected = f"a {type(network).__name__}", "a torch.nn.Module whose head has the requested number of outputs"
        raise UserError(f"{code.spec}: returned no network", found=found, expected=expected)
    return network.cpu()


def import_timm() -> Any:
    """Import and return timm.

    Raises:
        UserError: if timm is not installed.
    """
    try:
        import timm
    except ImportError as error:
        do = "pip install 'xferbench[timm]'"
        raise UserError("backbones timm:NAME need timm", found=str(error), expected="timm 1.0 or newer", do=do) from error
    return timm


def is_within(name: str, prefixes: Iterable[str]) -> bool:
    """Return whether a dotted name equals one of some prefixes or lies below one. Every name lies below ""."""
    return any(not prefix or name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def layer_layout(model: nn.Module, shape: batch.Shape | int, head: str = "") -> LayerLayout:
    """Find the layer groups and the head of a network.

    The network runs on the meta device if possible, so that the cost is small for a network of any size.

    Args:
        model: the network.
        shape: the shape of one input without the batch, such as (channels, height, width); or the side of a square RGB image.
        head: the name of the head, which may have several layers; "" to find it.

    Raises:
        UserError: if the network does not accept such inputs, or has no linear or convolutional head.
    """
    called, logits = trace_modules(model, (3, shape, shape) if isinstance(shape, int) else shape)
    head = head or _find_head(model, called, logits)
    first = next(iter(model.get_submodule(head).parameters()))
    return LayerLayout(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        groups=_find_groups(model, called, head),
        head=head,
        batchnorm=tuple(batchnorm_layers(model)),
        features=first.shape[min(1, first.ndim - 1)],
        classes=logits.shape[1],
    )


def trainable_names(layout: LayerLayout, model: nn.Module, trainable: Trainable) -> set[str]:
    """Return the names of the parameters that :attr:`xferbench.core.pipeline.Phase.trainable` selects.

    Raises:
        UserError: if there are fewer groups, or the network has no parameters of the kind below its head.
    """
    depth = layer_depth(layout, model)
    names = [name for name, _ in model.named_parameters()]
    if isinstance(trainable, AllLayers):
        return set(names)
    by_kind = names_by_kind(layout, model)
    if (kind := trainable.spelling) in by_kind:
        if not by_kind[kind]:
            raise UserError(
                "trainable: the network has nothing of the kind below its head",
                found=str(trainable),
                expected=f"one of {', '.join(other for other in by_kind if by_kind[other])}; or head, all",
            )
        return {name for name in names if depth[name] == 0} | by_kind[kind]
    top_groups = trainable.groups if isinstance(trainable, TopGroups) else 0
    if top_groups <= len(layout.groups):
        return {name for name in names if depth[name] <= top_groups}
    groups = ", ".join(group.name for group in layout.groups)
    top_n = f"top:N with N from 1 to {len(layout.groups)} (groups from the input up: {groups})"
    expected = f"head, norm, bias, lora:R, adapter:R, prompt:N, prefix:N, all, or {top_n}"
    raise UserError("trainable: cannot be applied to this network", found=str(trainable), expected=expected)


def names_by_kind(layout: LayerLayout, model: nn.Module) -> dict[str, set[str]]:
    """Return the names of the parameters below the head for each kind of partial training, from norm to prefix."""
    layers = dict(model.named_modules())
    norm_layers, linear_layers = (
        [name for name, layer in layers.items() if isinstance(layer, types)] for types in (NORM_LAYERS, LINEAR_LAYERS)
    )
    below_head = {name for name, _ in model.named_parameters() if not is_within(name, [layout.head])}
    original = {name for name in below_head if not is_added(name)}
    return {
        "norm": {name for name in original if is_within(name, norm_layers)},
        "bias": {name for name in original if name.endswith("bias")},
        "lora": {name for name in original if name.endswith("weight") and is_within(name, linear_layers)},
        **{kind: {name for name in below_head if _last_part(name) in added} for kind, added in ADDED_NAMES.items()},
    }


def is_added(name: str) -> bool:
    """Return whether a tensor belongs to a bottleneck adapter or to virtual tokens. Checkpoints contain no such tensors."""
    return any(_last_part(name) in added for added in ADDED_NAMES.values())


def _last_part(name: str) -> str:
    return name.rpartition(".")[2]


def layer_depth(layout: LayerLayout, model: nn.Module) -> dict[str, int]:
    """Return for each parameter and buffer how many groups it lies below the head. Those of the head have depth 0."""
    parts = [(layout.head,), *(group.prefixes for group in reversed(layout.groups))]
    return {
        name: next(depth for depth, prefixes in enumerate(parts) if is_within(name, prefixes)) for name in _named_tensors(model)
    }


def trace_modules(model: nn.Module, shape: batch.Shape) -> tuple[list[str], Tensor]:
    """Return the names of the modules in the order of their calls, and the logits of two blank inputs.

    The tensors have shapes but no values, unless the network needs values to run.

    Raises:
        UserError: if the network does not accept inputs of this shape.
    """
    called: list[str] = []
    hooks = [
        module.register_forward_pre_hook(lambda _module, _inputs, name=name: called.append(name))
        for name, module in model.named_modules()
    ]
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    meta_tensors = {name: tensor.detach().to("meta") for name, tensor in _named_tensors(model).items()}
    try:
        with torch.no_grad(), preserve_modes(model):
            model.eval()
            try:
                return called, functional_call(model, meta_tensors, (batch.zeros(shape, 2, "meta"),))
            except (RuntimeError, ValueError, TypeError, AssertionError):
                called.clear()
            return called, model(batch.zeros(shape, 2, device))
    except (RuntimeError, ValueError, TypeError, LookupError, AssertionError) as error:
        found = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise _unaccepted_input(shape, found) from error
    finally:
        for hook in hooks:
            hook.remove()


def _unaccepted_input(shape: batch.Shape, found: str) -> UserError:
    if shape and isinstance(shape[0], tuple):
        length = shape[0][1][-1]
        what, do = f"the backbone cannot be run on texts of {length} tokens", "set max_length under preprocessing"
        return UserError(what, found=found, expected="a network that takes token ids, a mask and segments", do=do)
    what = f"the backbone cannot be run on images of {' × '.join(map(str, shape))} pixels"
    return UserError(what, found=found, expected="the input size of the backbone", do="set crop under preprocessing")


def _named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by name. Shared tensors occur under each of their names."""
    return dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))


def _find_head(model: nn.Module, called: Sequence[str], logits: object) -> str:
    """Return the last called module with parameters.

    Raises:
        UserError: if the logits cannot be its output.
    """
    expected = "logits [images, classes] from a linear or convolutional layer, with no parameters above it"
    do = "give the backbone such a head"
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        found = f"output of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"output {type(logits).__name__}"
        raise UserError("the backbone has no classification head", found=found, expected=expected, do=do)
    learnable = [name for name in called if next(model.get_submodule(name).parameters(recurse=False), None) is not None]
    head = learnable[-1] if learnable else ""
    layer = model.get_submodule(head)
    width = layer.weight.shape[0] if isinstance(layer, nn.Linear | nn.Conv2d) else None
    if not head or width != logits.shape[1]:
        layer_name = f"{head or 'no layer'} ({type(layer).__name__})"
        found = f"{logits.shape[1]} logits, but {width or 'no'} outputs of the last layer {layer_name}"
        raise UserError("the backbone's head cannot be found", found=found, expected=expected, do=do)
    return head


def _find_groups(model: nn.Module, called: Sequence[str], head: str) -> tuple[LayerGroup, ...]:
    """Return the stages of a network.

    These are the outermost modules at first. The largest module is replaced by its children until there are enough groups and
    none has nearly all layers.
    """
    tensors = _named_tensors(model)
    names = [name for name in tensors if not is_within(name, [head])]
    first_call = {name: position for position, name in reversed(list(enumerate(called)))}

    def children(prefix: str) -> list[str]:
        level = len(prefix.split(".")) if prefix else 0
        return list(dict.fromkeys(".".join(name.split(".")[: level + 1]) for name in names if is_within(name, [prefix])))

    def count_layers(prefix: str) -> int:
        weights = (name for name in names if name.endswith("weight") and tensors[name].ndim > 1 and is_within(name, [prefix]))
        return sum(1 for _ in weights) if prefix in first_call else 0

    def expand(units: Sequence[str], unit: str) -> list[str]:
        index = units.index(unit)
        expanded = [*units[:index], *children(unit), *units[index + 1 :]]  # equal positions keep this order
        return sorted(expanded, key=lambda prefix: _call_position(prefix, first_call))

    units = expand([""], "")
    while True:
        groups = _merge_units(units, [count_layers(unit) for unit in units])
        compound = [unit for unit in units if set(children(unit)) & set(first_call)]
        above_head = [unit for unit in compound if is_within(head, [unit])]
        largest = max(compound, key=count_layers, default="")
        is_balanced = count_layers(largest) <= MAX_GROUP_SHARE * sum(map(count_layers, units))
        if not above_head and (not compound or (len(groups) >= MIN_GROUPS and is_balanced)):
            return groups
        units = expand(units, above_head[0] if above_head else largest)


def _call_position(prefix: str, first_call: Mapping[str, int]) -> int:
    """Return when a module is called first: itself, else a module within it, else its parent."""
    while prefix not in first_call:
        inner_calls = [position for name, position in first_call.items() if is_within(name, [prefix])]
        if inner_calls:
            return min(inner_calls)
        prefix = prefix.rpartition(".")[0]
    return first_call[prefix]


def _merge_units(units: Sequence[str], layer_counts: Sequence[int]) -> tuple[LayerGroup, ...]:
    """Merge units into groups.

    A unit without layers, such as a norm or a token, joins the group below it. Single layers below the first block form one
    group.
    """
    first_block = next((index for index, count in enumerate(layer_counts) if count > 1), 0)
    groups: list[list[int]] = []
    for index, count in enumerate(layer_counts):
        has_layers = bool(groups) and sum(layer_counts[member] for member in groups[-1]) > 0
        if not groups or (count > 0 and index >= first_block and has_layers):
            groups.append([index])
        else:
            groups[-1].append(index)
    name_units = [next((index for index in group if layer_counts[index]), group[0]) for group in groups]
    return tuple(
        LayerGroup(name=units[name_unit], prefixes=tuple(units[index] for index in group))
        for name_unit, group in zip(name_units, groups, strict=True)
    )
