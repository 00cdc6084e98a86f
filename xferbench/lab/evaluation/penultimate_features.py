"""The penultimate features of a network, which enter its head, and a linear head fitted to them. Imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from xferbench.lab.data import preprocessing
from xferbench.lab.models import transformers_text
from xferbench.lab.training import feature_cache

if TYPE_CHECKING:
    from xferbench.core.transforms import InputTransform
    from xferbench.lab.evaluation.context import MeasureContext
    from xferbench.lab.training.network import Architecture

L2_PENALTY = 1e-3  # factor of the squared weights; the features are standardized, so one value does for all networks
LBFGS_ITERATIONS = 200


def head_inputs(network: Architecture, tensors: Mapping[str, Tensor], images: Tensor, transform: InputTransform) -> Tensor:
    """Compute the features that enter the head in evaluation mode. Feature maps are averaged over their positions.

    Args:
        network: the structure and device of the network.
        tensors: its parameters and buffers, on that device.
        images: [n, …] uint8.
        transform: the preprocessing.

    Returns:
        [n, channels] float32, on the CPU.
    """
    batches: list[Tensor] = []
    masks: list[Tensor] = []

    def store_inputs(_module: object, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].detach().float()
        if masks and x.ndim == 3:  # the head of a decoder runs on every token, and the last one answers
            x = transformers_text.pool(x, masks[-1], "last")
        batches.append((x.flatten(2).mean(2) if x.ndim > 2 else x).cpu())

    hook = network.module.get_submodule(network.layout.head).register_forward_pre_hook(store_inputs)
    try:
        with feature_cache.evaluation_mode(network.module, network.device):
            for batch in images.split(feature_cache.INFERENCE_BATCH):
                prepared = preprocessing.to_tensor(batch.to(network.device), transform)
                masks += [prepared["attention_mask"]] if isinstance(prepared, Mapping) else []
                functional_call(network.module, dict(tensors), (prepared,))
    finally:
        hook.remove()
    return torch.cat(batches)


def fit_logistic_regression(x: Tensor, y: Tensor, outputs: int) -> tuple[Tensor, Tensor]:
    """Fit multinomial logistic regression with an L2 penalty, in float64.

    The problem is convex and the fit starts at zero, so the result is unique.

    Args:
        x: features [n, d].
        y: labels [n].
        outputs: the number of classes.

    Returns:
        The weight [outputs, d] and the bias [outputs], for features that are not standardized.
    """
    mean, scale = x.mean(0).double(), x.std(0).clamp_min(1e-6).double()
    standardized = (x.double() - mean) / scale
    weight = torch.zeros(outputs, x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(outputs, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=LBFGS_ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(standardized, weight, bias), y) + L2_PENALTY * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    unscaled = weight.detach() / scale
    return unscaled, bias.detach() - unscaled @ mean


def feature_distortion(context: MeasureContext) -> float:
    """Compute the mean over training images of ‖φ after − φ before‖² / ‖φ before‖², where φ are the penultimate features."""
    device = context.network.device
    on_device = ({name: tensor.to(device) for name, tensor in tensors.items()} for tensors in (context.before, context.after))
    before, after = (
        head_inputs(context.network, tensors, context.train.images, context.train.preprocessing) for tensors in on_device
    )
    return float(((after - before).square().sum(1) / before.square().sum(1).clamp_min(1e-12)).mean())
