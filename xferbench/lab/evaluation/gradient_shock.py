"""The gradient ratio: how much larger the backbone's gradient is under a fresh head than under a fitted one. Imports torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.func import functional_call
from torch.nn import functional as F

from xferbench.lab.data import preprocessing
from xferbench.lab.evaluation import penultimate_features
from xferbench.lab.models import backbones, heads
from xferbench.lab.training import feature_cache

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from xferbench.lab.evaluation.context import MeasureContext

MAX_IMAGES, CHUNK_IMAGES = 64, 16  # images used for the gradient, in total and in one batch


def compute_gradient_ratio(context: MeasureContext) -> float:
    """Divide the gradient norm of the backbone at the start by the norm under a head that was fitted to the same images."""
    network, prefix = context.network, [context.network.layout.head]
    start = {name: tensor.to(network.device) for name, tensor in context.before.items()}
    x = penultimate_features.head_inputs(network, start, context.train.images, context.train.preprocessing)
    weight, bias = penultimate_features.fit_logistic_regression(x, context.train.labels, network.layout.classes)
    head = {name: tensor for name, tensor in start.items() if backbones.is_within(name, prefix)}
    body = {name: tensor for name, tensor in start.items() if name not in head}
    # The fitted head is linear, so a network with an MLP head needs a linear one in its place.
    linear = heads.with_linear_head(network.module, network.layout)
    shapes = {name: tensor.shape for name, tensor in linear.named_parameters() if backbones.is_within(name, prefix)}
    fitted = {name: (weight if name.endswith("weight") else bias).reshape(shape) for name, shape in shapes.items()}
    fitted = {name: tensor.to(network.device, torch.float32) for name, tensor in fitted.items()}
    images, labels = context.train.images[:MAX_IMAGES].to(network.device), context.train.labels[:MAX_IMAGES].to(network.device)

    def gradient_norm(module: torch.nn.Module, head_tensors: Mapping[str, Tensor]) -> float:
        names = (name for name, _ in module.named_parameters() if name in body)
        leaves = {name: body[name].clone().requires_grad_() for name in names}
        with feature_cache.evaluation_mode(module, network.device), torch.enable_grad():
            for x, y in zip(images.split(CHUNK_IMAGES), labels.split(CHUNK_IMAGES), strict=True):
                inputs = preprocessing.to_tensor(x, context.train.preprocessing)
                logits = functional_call(module, {**body, **head_tensors, **leaves}, (inputs,)).float()
                F.cross_entropy(logits, y, reduction="sum").backward()
        squares = sum(float(leaf.grad.square().sum()) for leaf in leaves.values() if leaf.grad is not None)
        return float(squares**0.5) / len(labels)

    return gradient_norm(network.module, head) / max(gradient_norm(linear, fitted), 1e-12)
