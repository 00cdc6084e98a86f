"""The cost of a strategy: trained parameters, bytes stored per task, and multiply-adds per image. Imports torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from xferbench.core.interventions import BATCHNORM_EVAL, PRETRAINED, Initialization, LoRA
from xferbench.lab.data import batch, preprocessing
from xferbench.lab.models import backbones, batchnorm
from xferbench.lab.training import loop

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from xferbench.core.pipeline import Phase
    from xferbench.lab.evaluation.context import MeasureContext
    from xferbench.lab.models.backbones import LayerLayout

FLOAT32_BYTES = 4  # bytes


def compute_cost(
    phases: Sequence[Phase],
    layout: LayerLayout,
    module: nn.Module,
    *,
    init: Initialization = PRETRAINED,
    shape: batch.Shape | None = None,
) -> dict[str, float]:
    """Compute the cost of a training.

    A task stores everything that may differ from the checkpoint: the trained tensors, the factors A and B of a low-rank update
    (or the whole weight if that is smaller), and BatchNorm's statistics if they move. It stores the whole network if the
    training does not start from the checkpoint.

    Args:
        phases: the phases of the training.
        layout: the layer layout of the network.
        module: the network, with the adapters and virtual tokens that it has.
        init: as in :class:`xferbench.core.pipeline.Recipe`.
        shape: the shape of one preprocessed example. Without it, the result has no ``multiply_adds``.

    Returns:
        The number of ``trainable`` parameters in all phases, the ``stored`` bytes in float32, and the ``multiply_adds`` for one
        example.

    Raises:
        UserError: if a phase cannot be applied to the network.
    """
    sizes = {name: tensor.numel() for name, tensor in (*module.named_parameters(), *module.named_buffers())}
    stored_whole: set[str] = set(sizes) if init != PRETRAINED else {name for name in sizes if backbones.is_added(name)}
    stored_whole |= {name for name in sizes if backbones.is_within(name, [layout.head])}
    trained: dict[str, int] = {}
    low_rank: dict[str, int] = {}  # values in the factors of a low-rank update
    for phase in phases:
        names = backbones.trainable_names(layout, module, phase.trainable)
        rank = phase.trainable.rank if isinstance(phase.trainable, LoRA) else 0
        factored = backbones.names_by_kind(layout, module)["lora"] if rank else set()
        for name in names & factored:
            sides = module.get_parameter(name).flatten(1).shape
            low_rank[name] = low_rank.get(name, 0) + rank * sum(sides)
        stored_whole |= names - factored
        trained |= {name: sizes[name] for name in names - factored}
        if phase.batchnorm != BATCHNORM_EVAL:
            frozen = loop.prefixes_below(layout, loop.frozen_cut(phase, layout))
            stored_whole |= {name for name in batchnorm.statistics_names(module) if not backbones.is_within(name, frozen)}
    compute = {"multiply_adds": multiply_adds(module, shape)} if shape is not None else {}
    updates = {name: min(size, sizes[name]) for name, size in low_rank.items() if name not in stored_whole}
    return {
        "trainable": float(sum(trained.values()) + sum(size for name, size in low_rank.items() if name not in trained)),
        "stored": float(FLOAT32_BYTES * (sum(sizes[name] for name in stored_whole) + sum(updates.values()))),
        **compute,
    }


def multiply_adds(module: nn.Module, shape: batch.Shape) -> float:
    """Count the multiply-adds of all convolutions and matrix products in the forward pass of one example.

    Adapters and virtual tokens are included. A low-rank update is merged into its weight and costs nothing.

    Args:
        module: the network.
        shape: the shape of one preprocessed example.
    """
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    is_fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the counter does not see into the fast path, nor into fused attention
    try:
        with (
            batchnorm.preserve_modes(module),
            torch.no_grad(),
            sdpa_kernel(SDPBackend.MATH),
            FlopCounterMode(display=False) as counter,
        ):
            module.eval()(batch.zeros(shape, 1, device))
    finally:
        torch.backends.mha.set_fastpath_enabled(is_fused)
    return float(counter.get_total_flops() / 2)


def measure_cost(context: MeasureContext) -> dict[str, float]:
    """Compute the cost of a trained network, as a measure of a plugin: ``xferbench.lab.evaluation.cost:measure_cost@2``."""
    shape = batch.example_shape(preprocessing.to_tensor(context.test.images[:1], context.test.preprocessing))
    return compute_cost(
        context.trial.spec.procedure.phases,
        context.network.layout,
        context.network.module,
        init=context.trial.spec.network.init,
        shape=shape,
    )
