"""What a strategy costs: how many numbers it trains, and how many bytes of a task's own it leaves beside the checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xferbench.lab import backbones, batchnorm, fit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from xferbench.design import Phase
    from xferbench.lab.backbones import Anatomy
    from xferbench.lab.viewed import Seen

FLOAT32 = 4  # bytes


def cost(phases: Sequence[Phase], anatomy: Anatomy, module: nn.Module, *, init: str = "pretrained") -> dict[str, float]:
    """``trainable`` numbers of all phases together, and the bytes ``stored`` per task, in float32.

    Stored is what may differ from the checkpoint: what was trained, of a low-rank update A and B (or the weight, where that is
    less), and BatchNorm's statistics where they move; all of it where nothing of the checkpoint is left.

    Args:
        phases: of a fit.
        anatomy, module: of the network with its adapters, where it has any.
        init: as in :class:`xferbench.design.Recipe`.

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
        kind, _, rank = phase.trainable.partition(":")
        factored = backbones.kinds(anatomy, module)["lora"] if kind == "lora" else set()
        for name in names & factored:
            shape = module.get_parameter(name).flatten(1).shape
            low[name] = low.get(name, 0) + int(rank) * sum(shape)
        whole |= names - factored
        trained |= {name: sizes[name] for name in names - factored}
        if phase.batchnorm != "eval":
            frozen = fit.below(anatomy, fit.cut(phase, anatomy))
            whole |= {name for name in batchnorm.buffers(module) if not backbones.within(name, frozen)}
    updates = {name: min(size, sizes[name]) for name, size in low.items() if name not in whole}
    return {
        "trainable": float(sum(trained.values()) + sum(size for name, size in low.items() if name not in trained)),
        "stored": float(FLOAT32 * (sum(sizes[name] for name in whole) + sum(updates.values()))),
    }


def measured(seen: Seen) -> dict[str, float]:
    """The cost of the fit that a view looks at, for a plugin's ``measures``."""
    return cost(seen.fit.phases, seen.network.anatomy, seen.network.module, init=seen.fit.init)
