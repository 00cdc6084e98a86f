"""What a training loop should train at each step, by its recipe or by ``requires_grad``. Imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from torch import Tensor, nn

from xferbench.core.errors import UserError, suggest
from xferbench.core.interventions import BATCHNORM_EVAL, Adapters, AllLayers, Biases, HeadOnly, LoRA, NormLayers, Trainable
from xferbench.lab.models import backbones

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xferbench.core.pipeline import Phase
    from xferbench.lab.data.batch import Shape

COMPILED_PREFIX = "_orig_mod."


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedPhase:
    """What should train up to a step.

    Attributes:
        last_step: the last step of this phase, infinite for the last phase.
        trainable: names of parameters, or None for those whose ``requires_grad`` is True.
        statistics_move: whether running statistics may move, or None if only those of layers with a trainable tensor may.
    """

    last_step: float = float("inf")
    trainable: frozenset[str] | None = None
    statistics_move: bool | None = None


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


def is_pretrained(model: nn.Module, head_name: str) -> bool:
    """Check whether any normalization layer of the backbone differs from its initial state, as in a pretrained network."""
    norms = [
        layer for name, layer in named_modules(model).items() if isinstance(layer, backbones.NORM_LAYERS) and name != head_name
    ]
    initial_values = [(getattr(layer, "weight", None), 1.0) for layer in norms]
    initial_values += [(getattr(layer, "running_mean", None), 0.0) for layer in norms]
    present = [(tensor, initial) for tensor, initial in initial_values if tensor is not None and not tensor.is_meta]
    return any(bool((tensor != initial).any()) for tensor, initial in present)


def expected_phases(
    model: nn.Module, phases: Sequence[Phase], head_name: str, shape: Shape | int | None = None, *, batchnorm: bool = True
) -> tuple[ExpectedPhase, ...]:
    """Return what each phase should train. Without phases, ``requires_grad`` decides.

    Args:
        model: the network, without wrappers.
        phases: the phases in order; the last one has no end.
        head_name: the head's name.
        shape: the shape of one input, which ``top:N`` needs.
        batchnorm: whether the phases say how BatchNorm runs.

    Raises:
        UserError: if a ``trainable`` setting does not apply to this model.
    """
    ends = [float(end) for end in accumulate(phase.steps for phase in phases)][:-1]
    return tuple(
        ExpectedPhase(
            last_step=last_step,
            trainable=frozenset(_trainable_names(model, phase.trainable, head_name, shape)),
            statistics_move=phase.batchnorm != BATCHNORM_EVAL if batchnorm else None,
        )
        for phase, last_step in zip(phases, [*ends, float("inf")], strict=False)
    ) or (ExpectedPhase(),)


def _trainable_names(model: nn.Module, trainable: Trainable, head_name: str, shape: Shape | int | None) -> set[str]:
    names = set(named_parameters(model))
    if isinstance(trainable, AllLayers):
        return names
    if isinstance(trainable, LoRA | Adapters):
        expected = "head, top:N, norm, bias or all; or no recipe, to use requires_grad"
        raise UserError("trainable: a watched model defines its own adapters", found=str(trainable), expected=expected)
    if isinstance(trainable, HeadOnly | NormLayers | Biases):
        if not head_name:
            expected = "a linear or convolutional layer, or head= with a module's name"
            raise UserError(
                "the model's head cannot be found", found="no such layer", expected=expected, do="name it: head=..."
            )
        layers = named_modules(model).items() if isinstance(trainable, NormLayers) else ()
        norms = [name for name, layer in layers if isinstance(layer, backbones.NORM_LAYERS)]
        biases = {name for name in names if isinstance(trainable, Biases) and name.endswith("bias")}
        return biases | {name for name in names if backbones.is_within(name, [head_name, *norms])}
    if shape is None:
        do = "pass the shape of one input, for example shape=(3, 224, 224)"
        raise UserError(
            "trainable: layer groups are found by running the model", found=str(trainable), expected="a shape", do=do
        )
    return set(backbones.trainable_names(backbones.layer_layout(model, shape), model, trainable))
