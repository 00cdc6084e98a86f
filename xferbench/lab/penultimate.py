"""What a network knows, apart from its head: the features that enter it, and a linear head fitted anew on them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from xferbench.lab import features, preprocess

if TYPE_CHECKING:
    from collections.abc import Mapping

    from xferbench.design import Ready
    from xferbench.lab.fit import Network
    from xferbench.lab.viewed import Seen

DECAY = 1e-3  # half the weight of the squared weights: features are standardised, so one value does for all networks
ITERATIONS = 200


def head_inputs(network: Network, tensors: Mapping[str, Tensor], images: Tensor, ready: Ready) -> Tensor:
    """Features [n, channels] float32 that enter the head in evaluation mode, on the CPU; maps are averaged over their places.

    Args:
        network: its structure and device. tensors: on that device. images: [n, …] 8-bit. ready: how they are prepared.
    """
    seen: list[Tensor] = []

    def caught(_module: object, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].detach().float()
        seen.append((x.flatten(2).mean(2) if x.ndim > 2 else x).cpu())

    hook = network.module.get_submodule(network.anatomy.head).register_forward_pre_hook(caught)
    try:
        with features.inference(network.module, network.device):
            for batch in images.split(features.BATCH):
                functional_call(network.module, dict(tensors), (preprocess.tensor(batch.to(network.device), ready),))
    finally:
        hook.remove()
    return torch.cat(seen)


def fitted(x: Tensor, y: Tensor, outputs: int) -> tuple[Tensor, Tensor]:
    """Weight [outputs, d] and bias [outputs] of multinomial logistic regression on features [n, d] with labels [n].

    Begun at zero and convex, so that it has one answer; float64.
    """
    mean, scale = x.mean(0).double(), x.std(0).clamp_min(1e-6).double()
    standard = (x.double() - mean) / scale
    weight = torch.zeros(outputs, x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(outputs, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(standard, weight, bias), y) + DECAY * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    whole = weight.detach() / scale
    return whole, bias.detach() - whole @ mean


def distortion(seen: Seen) -> float:
    """Mean over training images of ‖φ after − φ before‖² / ‖φ before‖², φ being the features that enter the head."""
    device = seen.network.device
    starts, ends = ({name: one.to(device) for name, one in tensors.items()} for tensors in (seen.before, seen.after))
    before, after = (head_inputs(seen.network, tensors, seen.images, seen.prepared) for tensors in (starts, ends))
    return float(((after - before).square().sum(1) / before.square().sum(1).clamp_min(1e-12)).mean())
