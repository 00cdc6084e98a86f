"""Domain distances and transferability scores of a pretrained network's features. Imports torch; reads the source dataset."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from xferbench.lab.data import datasets
from xferbench.lab.evaluation import evaluate, penultimate_features, transferability
from xferbench.lab.training import seeds
from xferbench.lab.training.examples import training_subset

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from xferbench.core.pipeline import Data
    from xferbench.core.transforms import InputTransform
    from xferbench.lab.evaluation.context import MeasureContext

MAX_IMAGES = 500  # images of each dataset at most
PERMUTATIONS = 19  # labels without any relation to the features exceed the greatest of 19 such scores in 5 % of cases
DISTANCES = {
    "mmd2": transferability.mmd2,
    "proxy a-distance": transferability.proxy_a_distance,
    "frechet": transferability.frechet_distance,
}


def transfer_scores(context: MeasureContext, within: str, permuted: tuple[str, str]) -> dict[str, float]:
    """Compute all scores of a trained network that are finite.

    Args:
        context: the network and its data.
        within: the suffix of the names of the distances within the source.
        permuted: the suffixes of the names of the mean and of the 95 % quantile of a score over permuted labels.

    Returns:
        The scores by name. Without a source dataset, there are no distances. Without a source head, there is no LEEP.
    """
    trial = context.trial
    subset = training_subset(trial.dataset, trial.spec)
    rng = np.random.default_rng(trial.spec.seed)
    target = datasets.take(subset.split, rng.permutation(subset.index)[:MAX_IMAGES])
    images = torch.from_numpy(np.array(target.images))
    before, after = (
        _features(context, tensors, images, context.train.preprocessing) for tensors in (context.before, context.after)
    )
    labelings = permuted_labelings(target.labels, trial.spec.seed)
    by_labeling = {"logme": transferability.logme(before, labelings), "h-score": transferability.h_score(before, labelings)}
    if context.source_head:
        tensors = _to_device(context, {**context.before, **context.source_head})
        order = np.arange(len(images))
        logits = evaluate.batched_logits(context.network, tensors, images, context.train.preprocessing, order, training=False)
        by_labeling["leep"] = transferability.leep(logits.double().softmax(1).numpy(), labelings)
    values = {"cka": transferability.linear_cka(before, after)}
    for name, (score, *null) in by_labeling.items():
        values |= {name: score, name + permuted[0]: np.mean(null), name + permuted[1]: np.max(null)}
    if trial.view.domain is not None:
        values |= _distances(context, trial.view.domain.data, before, rng, within)
    return {name: float(value) for name, value in values.items() if np.isfinite(value)}


def permuted_labelings(labels: np.ndarray, seed: int) -> np.ndarray:
    """Return the labels [n] and permutations of them, [1 + permutations, n]."""
    rng = seeds.numpy_stream(seed, seeds.PERMUTED_LABELS)
    return np.stack([labels, *(rng.permutation(labels) for _ in range(PERMUTATIONS))])


def _distances(
    context: MeasureContext, data: Data, target: np.ndarray, rng: np.random.Generator, within: str
) -> dict[str, float]:
    """Compute the distances from source to target, and between two halves of the source, with the same number of images."""
    transform = context.trial.view.preprocessing
    source = datasets.load_dataset(data, transform, None, context.trial.cache).train
    count = min(len(target), len(source.labels) // 2)
    sample = datasets.take(source, rng.permutation(len(source.labels))[: 2 * count])
    x = _features(context, context.before, torch.from_numpy(np.array(sample.images)), transform)
    pairs = {"": (x[:count], target[:count]), within: (x[:count], x[count:])}
    return {f"{name}{suffix}": distance(*pair) for suffix, pair in pairs.items() for name, distance in DISTANCES.items()}


def _features(context: MeasureContext, tensors: Mapping[str, Tensor], images: Tensor, transform: InputTransform) -> np.ndarray:
    """Compute the penultimate features [n, d] float64."""
    x = penultimate_features.head_inputs(context.network, _to_device(context, tensors), images, transform)
    features: np.ndarray = x.double().numpy()
    return features


def _to_device(context: MeasureContext, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to(context.network.device) for name, tensor in tensors.items()}
