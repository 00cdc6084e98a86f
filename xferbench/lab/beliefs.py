"""What a training loop is believed to train, step by step: as a recipe says, or as ``requires_grad`` does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from xferbench.core.interventions import Adapters, AllLayers, Biases, HeadOnly, LoRA, NormLayers, Trainable
from xferbench.lab import backbones
from xferbench.problem import Problem, nearest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xferbench.design import Phase
    from xferbench.lab.batch import Shape

COMPILED = "_orig_mod."


@dataclass(frozen=True, slots=True, kw_only=True)
class Belief:
    """What holds up to a step.

    Attributes:
        last: the step, infinite for the last belief.
        trainable: names of parameters, or None: those whose ``requires_grad`` is True.
        moving: whether running statistics may move, or None: those of layers with a tensor that trains.
    """

    last: float = float("inf")
    trainable: frozenset[str] | None = None
    moving: bool | None = None


def bare(model: nn.Module) -> nn.Module:
    """The network within what torch.compile or data parallelism wraps around it."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """By name, tied ones once; names as before compilation."""
    return {name.replace(COMPILED, ""): tensor for name, tensor in model.named_parameters()}


def modules(model: nn.Module) -> dict[str, nn.Module]:
    """By name as before compilation; the model itself is ""."""
    return {f"{name}.".replace(COMPILED, "").removesuffix("."): module for name, module in model.named_modules()}


def layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that keep running statistics, by name: BatchNorm of any make, InstanceNorm, frozen copies of them."""
    return {name: one for name, one in modules(model).items() if isinstance(getattr(one, "running_mean", None), Tensor)}


def statistics(name: str, layer: nn.Module) -> dict[str, Tensor]:
    """Running statistics of a layer and their counter, by full name."""
    found = {key: getattr(layer, key, None) for key in ("running_mean", "running_var", "num_batches_tracked")}
    return {f"{name}.{key}".removeprefix("."): tensor for key, tensor in found.items() if isinstance(tensor, Tensor)}


def head(model: nn.Module, named: str = "") -> str:
    """The head's name: the one that is given, or that of the last linear or convolutional layer to be registered; or "".

    Raises:
        Problem: for a name that is not there, or has no parameters.
    """
    there = modules(model)
    learnt = [name for name, module in there.items() if name and next(module.parameters(), None) is not None]
    if named and named not in learnt:
        raise Problem("head: no such module with parameters", found=named, expected=nearest(named, learnt))
    found = [name for name in learnt if isinstance(there[name], nn.Linear | nn.Conv2d)]
    return named or (found[-1] if found else "")


def trained(model: nn.Module, top: str) -> bool:
    """Whether the backbone's normalisation layers show that it was trained before: not all are as they are made."""
    norms = [layer for name, layer in modules(model).items() if isinstance(layer, backbones.NORMS) and name != top]
    kept = [(getattr(layer, "weight", None), 1.0) for layer in norms]
    kept += [(getattr(layer, "running_mean", None), 0.0) for layer in norms]
    there = [(tensor, made) for tensor, made in kept if tensor is not None and not tensor.is_meta]
    return any(bool((tensor != made).any()) for tensor, made in there)


def beliefs(
    model: nn.Module, phases: Sequence[Phase], top: str, shape: Shape | int | None = None, *, batchnorm: bool = True
) -> tuple[Belief, ...]:
    """What phases say of a network; of no phases, what ``requires_grad`` says.

    Args:
        model: the network, unwrapped.
        phases: one after another; the last one lasts.
        top: the head's name.
        shape: of one input, needed by ``top:N``.
        batchnorm: whether the phases say how BatchNorm runs.

    Raises:
        Problem: for a word that means nothing here.
    """
    ends = [float(sum(phase.steps for phase in phases[: at + 1])) for at in range(len(phases))][:-1]
    return tuple(
        Belief(
            last=last,
            trainable=frozenset(_trainable(model, phase.trainable, top, shape)),
            moving=phase.batchnorm != "eval" if batchnorm else None,
        )
        for phase, last in zip(phases, [*ends, float("inf")], strict=False)
    ) or (Belief(),)


def _trainable(model: nn.Module, trainable: Trainable, top: str, shape: Shape | int | None) -> set[str]:
    names = set(parameters(model))
    if isinstance(trainable, AllLayers):
        return names
    if isinstance(trainable, LoRA | Adapters):
        expected = "head, top:N, norm, bias or all; or no recipe, for what requires_grad says"
        raise Problem("trainable: adapters of a model that is watched are its own", found=str(trainable), expected=expected)
    if isinstance(trainable, HeadOnly | NormLayers | Biases):
        if not top:
            expected = "a linear or convolutional layer, or head= with a module's name"
            raise Problem("the model's head cannot be found", found="no such layer", expected=expected, do="name it: head=...")
        own = modules(model).items() if isinstance(trainable, NormLayers) else ()
        norms = [name for name, layer in own if isinstance(layer, backbones.NORMS)]
        biases = {name for name in names if isinstance(trainable, Biases) and name.endswith("bias")}
        return biases | {name for name in names if backbones.within(name, [top, *norms])}
    if shape is None:
        do = "give the shape of one input: shape=(3, 224, 224), say"
        raise Problem("trainable: layer groups are found by running the model", found=str(trainable), expected="a shape", do=do)
    return set(backbones.trainable(backbones.anatomy(model, shape), model, trainable))
