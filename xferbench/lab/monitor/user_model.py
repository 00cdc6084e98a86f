"""The names in a user's model, under any wrapper: parameters, layers, the head, and what a recipe trains. Imports torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from xferbench.core.errors import UserError, suggest
from xferbench.core.interventions import ADDED_KINDS, AllLayers, Biases, HeadOnly, LoRA, NormLayers, Trainable
from xferbench.lab.models import backbones

if TYPE_CHECKING:
    from xferbench.lab.data.batch import Shape

COMPILED_PREFIX = "_orig_mod."


def unwrap(model: nn.Module) -> nn.Module:
    """Return the network inside the wrappers of torch.compile and data parallelism."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def named_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters by their names before compilation, tied ones once."""
    return {name.replace(COMPILED_PREFIX, ""): tensor for name, tensor in model.named_parameters()}


def named_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules by their names before compilation. The name of the model itself is ""."""
    return {f"{name}.".replace(COMPILED_PREFIX, "").removesuffix("."): module for name, module in model.named_modules()}


def statistics_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers that keep running statistics, by name.

    These are all kinds of BatchNorm, InstanceNorm, and frozen copies of them.
    """
    return {
        name: module
        for name, module in named_modules(model).items()
        if isinstance(getattr(module, "running_mean", None), Tensor)
    }


def layer_statistics(name: str, layer: nn.Module) -> dict[str, Tensor]:
    """Return the running statistics of a layer and their batch counter, by full name."""
    buffers = {key: getattr(layer, key, None) for key in ("running_mean", "running_var", "num_batches_tracked")}
    return {f"{name}.{key}".removeprefix("."): tensor for key, tensor in buffers.items() if isinstance(tensor, Tensor)}


def find_head(model: nn.Module, name: str = "") -> str:
    """Return the name of the head, or "" if the model has none.

    Args:
        model: the network, without wrappers.
        name: the head's name; by default the last registered linear or convolutional layer is the head.

    Raises:
        UserError: if the named module does not exist, or has no parameters.
    """
    all_modules = named_modules(model)
    candidates = [key for key, module in all_modules.items() if key and next(module.parameters(), None) is not None]
    if name and name not in candidates:
        raise UserError("head: no such module with parameters", found=name, expected=suggest(name, candidates))
    outputs = [key for key in candidates if isinstance(all_modules[key], nn.Linear | nn.Conv2d)]
    return name or (outputs[-1] if outputs else "")


def is_in_pooler(model: nn.Module, name: str) -> bool:
    """Check whether a tensor belongs to the pooler of an encoder of transformers, by its name.

    Such an encoder has a pooler by default, and many networks use only its hidden states.
    """
    owner, layer, _ = f".{name}".partition(".pooler.")
    module = named_modules(model).get(owner.removeprefix("."))
    return bool(layer) and hasattr(getattr(module, "config", None), "model_type")


def is_pretrained(model: nn.Module, head_name: str) -> bool:
    """Check whether any normalization layer of the backbone differs from its initial state, as in a pretrained network."""
    norms = [
        layer for name, layer in named_modules(model).items() if isinstance(layer, backbones.NORM_LAYERS) and name != head_name
    ]
    initial_values = [(getattr(layer, "weight", None), 1.0) for layer in norms]
    initial_values += [(getattr(layer, "running_mean", None), 0.0) for layer in norms]
    present = [(tensor, initial) for tensor, initial in initial_values if tensor is not None and not tensor.is_meta]
    return any(bool((tensor != initial).any()) for tensor, initial in present)


def trainable_names(model: nn.Module, trainable: Trainable, head_name: str, shape: Shape | int | None = None) -> set[str]:
    """Return the names of the parameters that a ``trainable`` setting selects.

    Args:
        model: the network, without wrappers.
        trainable: the setting.
        head_name: the head's name.
        shape: the shape of one input, which ``top:N`` needs.

    Raises:
        UserError: if the setting does not apply to this model.
    """
    names = set(named_parameters(model))
    if isinstance(trainable, AllLayers):
        return names
    if isinstance(trainable, (LoRA, *ADDED_KINDS)):
        expected = "head, top:N, norm, bias or all; or no recipe, to use requires_grad"
        raise UserError("trainable: a watched model defines its own adapters", found=str(trainable), expected=expected)
    if isinstance(trainable, HeadOnly | NormLayers | Biases):
        return _names_without_layout(model, trainable, head_name)
    if shape is None:
        do = "pass the shape of one input, for example shape=(3, 224, 224)"
        raise UserError(
            "trainable: layer groups are found by running the model", found=str(trainable), expected="a shape", do=do
        )
    return backbones.trainable_names(backbones.layer_layout(model, shape), model, trainable)


def _names_without_layout(model: nn.Module, trainable: HeadOnly | NormLayers | Biases, head_name: str) -> set[str]:
    """Return the names of the head's parameters, and of those that are selected by their kind."""
    if not head_name:
        expected = "a linear or convolutional layer, or head= with a module's name"
        raise UserError("the model's head cannot be found", found="no such layer", expected=expected, do="name it: head=...")
    names = named_parameters(model)
    head = {name for name in names if backbones.is_within(name, [head_name])}
    if isinstance(trainable, Biases):
        return head | {name for name in names if name.endswith("bias")}
    if isinstance(trainable, NormLayers):
        norms = [name for name, layer in named_modules(model).items() if isinstance(layer, backbones.NORM_LAYERS)]
        return head | {name for name in names if backbones.is_within(name, norms)}
    return head
