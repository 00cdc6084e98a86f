"""The gradient that a fresh head sends into the backbone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.func import functional_call
from torch.nn import functional as F

from xferbench.lab import backbones, features, heads, penultimate, preprocess

if TYPE_CHECKING:
    from collections.abc import Mapping

    from xferbench.lab.viewed import Seen

SHOCKED, CHUNK = 64, 16  # images on which gradients are taken, and at once


def ratio(seen: Seen) -> float:
    """Norm of the backbone's gradient at the start, over the same with a head fitted to the same images."""
    network, prefix = seen.network, [seen.network.anatomy.head]
    start = {name: tensor.to(network.device) for name, tensor in seen.before.items()}
    x = penultimate.head_inputs(network, start, seen.images, seen.prepared)
    weight, bias = penultimate.fitted(x, seen.labels, network.anatomy.classes)
    own = {name: tensor for name, tensor in start.items() if backbones.within(name, prefix)}
    below = {name: tensor for name, tensor in start.items() if name not in own}
    plain = heads.plain(network.module, network.anatomy)
    shapes = {name: tensor.shape for name, tensor in plain.named_parameters() if backbones.within(name, prefix)}
    probed = {name: (weight if name.endswith("weight") else bias).reshape(shape) for name, shape in shapes.items()}
    probed = {name: tensor.to(network.device, torch.float32) for name, tensor in probed.items()}
    images, labels = seen.images[:SHOCKED].to(network.device), seen.labels[:SHOCKED].to(network.device)

    def norm(module: torch.nn.Module, head: Mapping[str, torch.Tensor]) -> float:
        names = (name for name, _ in module.named_parameters() if name in below)
        body = {name: below[name].clone().requires_grad_() for name in names}
        with features.inference(module, network.device), torch.enable_grad():
            for x, y in zip(images.split(CHUNK), labels.split(CHUNK), strict=True):
                made = preprocess.tensor(x, seen.prepared)
                logits = functional_call(module, {**below, **head, **body}, (made,)).float()
                F.cross_entropy(logits, y, reduction="sum").backward()
        total = sum(float(tensor.grad.square().sum()) for tensor in body.values() if tensor.grad is not None)
        return float(total**0.5) / len(labels)

    return norm(network.module, own) / max(norm(plain, probed), 1e-12)
