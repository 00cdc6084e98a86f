"""A backbone's architecture: built by name, parted into layer groups and a head, cut in two below a group.

Groups and head are found by running the network once and watching the order in which its modules are called, so that a
network whose names nobody foresaw is parted like any other.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _NormBase as BatchOrInstanceNorm
from torch.nn.modules.dropout import _DropoutNd as Dropout

from xferbench.core.errors import UserError, suggest
from xferbench.core.interventions import AllLayers, TopGroups, Trainable
from xferbench.data import user_code
from xferbench.lab.data import batch
from xferbench.lab.models.batchnorm import batchnorm_layers
from xferbench.lab.training import seeds

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from xferbench.core.pipeline import UserCode

TIMM_PREFIX = "timm:"
CIFAR_DEPTHS = {f"cifar-resnet{depth}": depth for depth in (20, 32, 44, 56)}
# Auxiliary classifiers serve pretraining only; the published weights of both expect their input transformed.
PLAIN_ARGUMENTS = {"aux_logits": False, "init_weights": True, "transform_input": True}
SPECIAL_ARGUMENTS = {"googlenet": PLAIN_ARGUMENTS, "inception_v3": PLAIN_ARGUMENTS}
MIN_GROUPS = 4
MAX_GROUP_SHARE = 0.8  # of a network's layers that one group may hold, where it can be parted further
NORM_LAYERS = (BatchOrInstanceNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
LINEAR_LAYERS = (
    nn.Linear,
    nn.Conv2d,
    nn.MultiheadAttention,
)  # layers whose weights are matrices, those of kernels once flattened
ADAPTER_NAMES = (
    "adapter_down",
    "adapter_down_bias",
    "adapter_up",
    "adapter_up_bias",
)  # what a layer holds of its bottleneck adapter


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerGroup:
    """Layers that are frozen, thawed and rated together; ``prefixes`` of the names of their tensors."""

    name: str
    prefixes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerLayout:
    """What is known of a network's structure; every tensor belongs to exactly one group or to the head.

    Attributes:
        parameters: how many numbers are learnt.
        groups: from the input up, without the head.
        head: the module that gives the logits.
        batchnorm: names of the BatchNorm layers with running statistics.
        features: channels that enter the head; classes: those that leave it.
    """

    parameters: int
    groups: tuple[LayerGroup, ...]
    head: str
    batchnorm: tuple[str, ...]
    features: int
    classes: int


def known_archs() -> tuple[str, ...]:
    """The architectures that can be built."""
    import torchvision

    classifiers = torchvision.models.list_models(module=torchvision.models)
    return ("tiny-resnet", *CIFAR_DEPTHS, *(f"torchvision:{name}" for name in classifiers))


def build(arch: str, classes: int, code: UserCode | None = None) -> nn.Module:
    """A network with random weights and a head of ``classes`` outputs; nothing is downloaded.

    Raises:
        UserError: for a name that is not known, or a library that is not installed.
        foreign.Crashed: where ``code``, which builds an ``arch`` of the user's own, raises.
    """
    from xferbench.lab.models import small_resnets

    if code is not None:
        return _of_code(code, classes)
    if arch.startswith(TIMM_PREFIX):
        return _of_timm(arch, classes)
    if arch not in known_archs():
        raise UserError(
            "unknown architecture", found=arch, expected=suggest(arch, known_archs()), do="correct arch under [backbone]"
        )
    if arch == "tiny-resnet":
        return small_resnets.tiny_resnet(classes)
    if arch in CIFAR_DEPTHS:
        return small_resnets.cifar_resnet(CIFAR_DEPTHS[arch], classes)
    import torchvision

    name = arch.removeprefix("torchvision:")
    network: nn.Module = torchvision.models.get_model(
        name, weights=None, num_classes=classes, **SPECIAL_ARGUMENTS.get(name, {})
    )
    return network


def _of_timm(arch: str, classes: int) -> nn.Module:
    library, name = import_timm(), arch.removeprefix(TIMM_PREFIX)
    if not library.is_model(name):
        expected = suggest(arch, (TIMM_PREFIX + one for one in library.list_models(f"{name[:3]}*") or library.list_models()))
        raise UserError("unknown architecture", found=arch, expected=expected, do="correct arch under [backbone]")
    network: nn.Module = library.create_model(name, pretrained=False, num_classes=classes)
    return network


def _of_code(code: UserCode, classes: int) -> nn.Module:
    with seeds.seed_global_streams(torch.initial_seed()):
        network = user_code.call_user_code(code, classes)
    if not isinstance(network, nn.Module):
        found, expected = f"a {type(network).__name__}", "a torch.nn.Module with a head of as many outputs as it is asked for"
        raise UserError(f"{code.spec}: gave no network", found=found, expected=expected)
    return network.cpu()


def import_timm() -> Any:
    """The library of that name.

    Raises:
        UserError: where it is not installed.
    """
    try:
        import timm
    except ImportError as error:
        do = "pip install 'xferbench[timm]'"
        raise UserError("backbones timm:NAME need timm", found=str(error), expected="timm 1.0 or newer", do=do) from error
    return timm


def is_within(name: str, prefixes: Iterable[str]) -> bool:
    """Whether a dotted name is one of some prefixes or lies below one; everything lies below ""."""
    return any(not prefix or name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def layer_layout(model: nn.Module, shape: batch.Shape | int) -> LayerLayout:
    """Groups and head of a network for inputs of a shape; costs next to nothing on a network of any size.

    Args:
        model: the network.
        shape: of one example as the network is given it, (channels, height, width) say; or the side of a square RGB image.

    Raises:
        UserError: where the network cannot take such inputs, or has no linear or convolutional head.
    """
    called, logits = trace_modules(model, (3, shape, shape) if isinstance(shape, int) else shape)
    head = _head(model, called, logits)
    weight = model.get_submodule(head).weight
    return LayerLayout(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        groups=_groups(model, called, head),
        head=head,
        batchnorm=tuple(batchnorm_layers(model)),
        features=weight.shape[1],
        classes=weight.shape[0],
    )


def trainable_names(anatomy: LayerLayout, model: nn.Module, value: Trainable) -> set[str]:
    """Names of the parameters that :attr:`xferbench.core.pipeline.Phase.trainable` means.

    Raises:
        UserError: for more groups than there are, or where it would be the head alone all the same.
    """
    distance = layer_depth(anatomy, model)
    names = [name for name, _ in model.named_parameters()]
    if isinstance(value, AllLayers):
        return set(names)
    own = names_by_kind(anatomy, model)
    if (kind := value.spelling) in own:
        if not own[kind]:
            expected = f"one of {', '.join(one for one in own if own[one])}; or head, all"
            raise UserError(
                "trainable: the network has nothing of the kind below its head", found=str(value), expected=expected
            )
        return {name for name in names if distance[name] == 0} | own[kind]
    groups_moved = value.groups if isinstance(value, TopGroups) else 0
    if groups_moved <= len(anatomy.groups):
        return {name for name in names if distance[name] <= groups_moved}
    groups = ", ".join(group.name for group in anatomy.groups)
    several = f"top:N with N from 1 to {len(anatomy.groups)} (groups from the input up: {groups})"
    expected = f"head, norm, bias, lora:R, adapter:R, all, or {several}"
    raise UserError("trainable: cannot be applied to this network", found=str(value), expected=expected)


def names_by_kind(anatomy: LayerLayout, model: nn.Module) -> dict[str, set[str]]:
    """Names of the parameters below the head by the word that trains them and the head: ``norm bias lora adapter``."""
    layers = dict(model.named_modules())
    norms, linear = (
        [name for name, layer in layers.items() if isinstance(layer, kind)] for kind in (NORM_LAYERS, LINEAR_LAYERS)
    )
    below = {name for name, _ in model.named_parameters() if not is_within(name, [anatomy.head])}
    own = {name for name in below if not is_adapter(name)}
    return {
        "norm": {name for name in own if is_within(name, norms)},
        "bias": {name for name in own if name.endswith("bias")},
        "lora": {name for name in own if name.endswith("weight") and is_within(name, linear)},
        "adapter": below - own,
    }


def is_adapter(name: str) -> bool:
    """Whether a tensor is an adapter's, which no checkpoint holds."""
    return name.rpartition(".")[2] in ADAPTER_NAMES


def layer_depth(anatomy: LayerLayout, model: nn.Module) -> dict[str, int]:
    """How many groups a tensor (parameters and buffers) lies below the head, whose own are at 0."""
    parts = [(anatomy.head,), *(group.prefixes for group in reversed(anatomy.groups))]
    return {name: next(i for i, prefixes in enumerate(parts) if is_within(name, prefixes)) for name in _tensors(model)}


def split_at(model: nn.Module, anatomy: LayerLayout, below: int) -> tuple[nn.Module, nn.Module] | None:
    """Two modules that share the network's tensors, under their own names: the ``below`` lowest groups, and the rest.

    ``upper(lower(x))`` is what the network gives, in either mode. The lower one takes along whatever follows that is neither
    learnt nor random, such as the pooling below a head, but no dropout. None where more than one value crosses the cut, or
    where the network's outline cannot be traced by torch.fx or depends on the mode.
    """
    distance = layer_depth(anatomy, model)
    graph = _outline(model, distance)
    if graph is None or below < 1:
        return None
    nodes = list(graph.nodes)
    reach = len(anatomy.groups) - below
    far = {node: _distances(node, distance) for node in nodes}
    feeding: set[fx.Node] = set()
    for node in reversed(nodes):
        if any(value > reach for value in far[node]) or feeding.intersection(node.users):
            feeding.add(node)
    upper: set[fx.Node] = set()
    for node in nodes:
        random = node not in feeding and node.op == "call_module" and not _fixed(model.get_submodule(node.target))
        above = random or node.op == "output" or any(value <= reach for value in far[node])
        if above or upper.intersection(node.all_input_nodes):
            upper.add(node)
    crossing = {value for node in upper for value in node.all_input_nodes if value not in upper}
    entries = [node for node in nodes if node.op == "placeholder"]
    if len(crossing) != 1 or len(entries) != 1 or crossing == set(entries):
        return None
    (value,) = crossing
    lower = [node for node in nodes if node not in upper]
    last = nodes[-1].args[0]
    return _part(model, lower, entries[0], value), _part(model, [node for node in nodes if node in upper], value, last)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, those under two names twice."""
    return dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))


@contextmanager
def _modes_kept(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def trace_modules(model: nn.Module, shape: batch.Shape) -> tuple[list[str], Tensor]:
    """Names of the modules in the order of their calls, and the logits of two blank inputs.

    The tensors have shapes but no values, unless the network needs values to run.
    """
    called: list[str] = []
    hooks = [
        module.register_forward_pre_hook(lambda _module, _inputs, name=name: called.append(name))
        for name, module in model.named_modules()
    ]
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    shapes = {name: tensor.detach().to("meta") for name, tensor in _tensors(model).items()}
    try:
        with torch.no_grad(), _modes_kept(model):
            model.eval()
            try:
                return called, functional_call(model, shapes, (batch.zeros(shape, 2, "meta"),))
            except (RuntimeError, ValueError, TypeError, AssertionError):
                called.clear()
            return called, model(batch.zeros(shape, 2, device))
    except (RuntimeError, ValueError, AssertionError) as error:
        found = str(error).splitlines()[0] if str(error) else type(error).__name__
        sides = " × ".join(map(str, shape)) if all(isinstance(side, int) for side in shape) else str(shape)
        what = f"the backbone cannot be run on images of {sides} pixels"
        raise UserError(what, found=found, expected="the size it was made for", do="set crop under preprocessing") from error
    finally:
        for hook in hooks:
            hook.remove()


def _head(model: nn.Module, called: Sequence[str], logits: object) -> str:
    """The last module with parameters to be called, if the logits can be its output."""
    expected = "logits [images, classes] from a linear or convolutional layer, with nothing learnt above it"
    do = "give the backbone such a head"
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        found = f"output of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"output {type(logits).__name__}"
        raise UserError("the backbone has no classification head", found=found, expected=expected, do=do)
    learnt = [name for name in called if next(model.get_submodule(name).parameters(recurse=False), None) is not None]
    head = learnt[-1] if learnt else ""
    layer = model.get_submodule(head)
    width = layer.weight.shape[0] if isinstance(layer, nn.Linear | nn.Conv2d) else None
    if not head or width != logits.shape[1]:
        found = f"{logits.shape[1]} logits, and last {head or 'nothing'} ({type(layer).__name__}) with {width or 'no'} outputs"
        raise UserError("the backbone's head cannot be found", found=found, expected=expected, do=do)
    return head


def _groups(model: nn.Module, called: Sequence[str], head: str) -> tuple[LayerGroup, ...]:
    """The stages of a network: the outermost modules, the largest parted until there are enough and none holds nearly all."""
    tensors = _tensors(model)
    names = [name for name in tensors if not is_within(name, [head])]
    first = {name: at for at, name in reversed(list(enumerate(called)))}

    def children(prefix: str) -> list[str]:
        level = len(prefix.split(".")) if prefix else 0
        return list(dict.fromkeys(".".join(name.split(".")[: level + 1]) for name in names if is_within(name, [prefix])))

    def layers(prefix: str) -> int:
        weights = (name for name in names if name.endswith("weight") and tensors[name].ndim > 1 and is_within(name, [prefix]))
        return sum(1 for _ in weights) if prefix in first else 0

    def time(prefix: str) -> int:
        while prefix not in first:
            inner = [at for name, at in first.items() if is_within(name, [prefix])]
            if inner:
                return min(inner)
            prefix = prefix.rpartition(".")[0]
        return first[prefix]

    def parted(units: Sequence[str], unit: str) -> list[str]:
        at = units.index(unit)
        return sorted([*units[:at], *children(unit), *units[at + 1 :]], key=time)

    units = parted([""], "")
    while True:
        groups = _joined(units, [layers(unit) for unit in units])
        compound = [unit for unit in units if set(children(unit)) & set(first)]
        holding_head = [unit for unit in compound if is_within(head, [unit])]
        largest = max(compound, key=layers, default="")
        enough = len(groups) >= MIN_GROUPS and layers(largest) <= MAX_GROUP_SHARE * sum(map(layers, units))
        if not holding_head and (not compound or enough):
            return groups
        units = parted(units, holding_head[0] if holding_head else largest)


def _joined(units: Sequence[str], layers: Sequence[int]) -> tuple[LayerGroup, ...]:
    """Units as groups: one without layers (a norm, a token) joins the one below; lone layers below the first block are one."""
    block = next((at for at, count in enumerate(layers) if count > 1), 0)
    groups: list[list[int]] = []
    for at, count in enumerate(layers):
        alone = not groups or not (count == 0 or at < block or sum(layers[i] for i in groups[-1]) == 0)
        groups = [*groups, [at]] if alone else [*groups[:-1], [*groups[-1], at]]
    named = [(next((at for at in group if layers[at]), group[0]), group) for group in groups]
    return tuple(LayerGroup(name=units[name], prefixes=tuple(units[at] for at in group)) for name, group in named)


class _Outline(fx.Tracer):
    """Traces through modules that hold several groups only, so that whatever a group does stays in its own module."""

    def __init__(self, distance: dict[str, int]) -> None:
        super().__init__()
        self.distance = distance

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:  # noqa: ARG002 - the signature of torch.fx
        """Whether a module lies within one group, or holds nothing."""
        return len({value for name, value in self.distance.items() if is_within(name, [module_qualified_name])}) <= 1


def _outline(model: nn.Module, distance: dict[str, int]) -> fx.Graph | None:
    """The graph of the groups, or None where there is none that holds in both modes."""
    graphs = []
    with _modes_kept(model):
        for mode in (True, False):
            model.train(mode)
            try:
                graphs.append(_Outline(distance).trace(model))
            except (fx.proxy.TraceError, RuntimeError, TypeError, ValueError):
                return None
    return graphs[1] if str(graphs[0]) == str(graphs[1]) else None


def _distances(node: fx.Node, distance: dict[str, int]) -> set[int]:
    held = node.op in {"call_module", "get_attr"}
    return {value for name, value in distance.items() if is_within(name, [node.target])} if held else set()


def _fixed(module: nn.Module) -> bool:
    """Whether a module is sure to compute the same in both modes; of those that hold nothing, torch's own but dropout are."""
    return all(type(part).__module__.startswith("torch.nn.") and not isinstance(part, Dropout) for part in module.modules())


def _part(model: nn.Module, nodes: Sequence[fx.Node], entry: fx.Node, last: fx.Node) -> fx.GraphModule:
    """A stretch of a graph as a module that takes ``entry`` and gives ``last``."""
    graph = fx.Graph()
    # A layer that works in place must not change what the caller has cached.
    copies = {entry: graph.call_function(batch.copy_batch, (graph.placeholder("x"),))}
    for node in nodes:
        if node not in copies and node.op != "output":
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(copies[last])
    return fx.GraphModule(model, graph)
