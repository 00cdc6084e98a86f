"""What a strategy costs: numbers that it trains, bytes of a task's own beside the checkpoint, and work at each image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from xferbench.core.interventions import LoRA
from xferbench.lab import backbones, batch, batchnorm, fit, preprocess

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from xferbench.design import Phase
    from xferbench.lab.backbones import Anatomy
    from xferbench.lab.viewed import Seen

FLOAT32 = 4  # bytes


def cost(
    phases: Sequence[Phase],
    anatomy: Anatomy,
    module: nn.Module,
    *,
    init: str = "pretrained",
    shape: batch.Shape | None = None,
) -> dict[str, float]:
    """``trainable`` numbers of all phases together, the bytes ``stored`` per task, in float32, and ``multiply_adds`` an image.

    Stored is what may differ from the checkpoint: what was trained, of a low-rank update A and B (or the weight, where that is
    less), and BatchNorm's statistics where they move; all of it where nothing of the checkpoint is left.

    Args:
        phases: of a fit.
        anatomy, module: of the network with its adapters, where it has any.
        init: as in :class:`xferbench.design.Recipe`.
        shape: of one example as the network is given it; without it, nothing is told of multiply-adds.

    Raises:
        Problem: where a phase cannot be applied to the network.
    """
    sizes = {name: tensor.numel() for name, tensor in (*module.named_parameters(), *module.named_buffers())}
    whole: set[str] = set(sizes) if init != "pretrained" else {name for name in sizes if backbones.adapts(name)}
    whole |= {name for name in sizes if backbones.within(name, [anatomy.head])}
    trained: dict[str, int] = {}
    low: dict[str, int] = {}
    for phase in phases:
        names = backbones.trainable(anatomy, module, phase.trainable)
        rank = phase.trainable.rank if isinstance(phase.trainable, LoRA) else 0
        factored = backbones.kinds(anatomy, module)["lora"] if rank else set()
        for name in names & factored:
            sides = module.get_parameter(name).flatten(1).shape
            low[name] = low.get(name, 0) + rank * sum(sides)
        whole |= names - factored
        trained |= {name: sizes[name] for name in names - factored}
        if phase.batchnorm != "eval":
            frozen = fit.below(anatomy, fit.cut(phase, anatomy))
            whole |= {name for name in batchnorm.buffers(module) if not backbones.within(name, frozen)}
    work = {"multiply_adds": multiply_adds(module, shape)} if shape is not None else {}
    updates = {name: min(size, sizes[name]) for name, size in low.items() if name not in whole}
    return {
        "trainable": float(sum(trained.values()) + sum(size for name, size in low.items() if name not in trained)),
        "stored": float(FLOAT32 * (sum(sizes[name] for name in whole) + sum(updates.values()))),
        **work,
    }


def multiply_adds(module: nn.Module, shape: batch.Shape) -> float:
    """Multiplications, each with its addition, of all convolutions and matrix products of one example's forward pass.

    Adapters are among them; an update of low rank is added to its weight, and costs none.

    Args:
        module: the network. shape: of one example as it is given it.
    """
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # neither it nor a fused attention tells what it multiplies
    try:
        with batchnorm.kept(module), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            module.eval()(batch.blank(shape, 1, device))
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return float(counter.get_total_flops() / 2)


def measured(seen: Seen) -> dict[str, float]:
    """The cost of the fit that a view looks at, for a plugin's ``measures``: ``xferbench.lab.cost:measured@2``."""
    shape = batch.shape(preprocess.tensor(seen.served[:1], seen.ready))
    return cost(seen.fit.phases, seen.network.anatomy, seen.network.module, init=seen.fit.init, shape=shape)
