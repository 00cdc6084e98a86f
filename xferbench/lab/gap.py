"""Domain distances and transferability scores of a pretrained network's features. Imports torch; reads the source dataset."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from xferbench.lab import data, penultimate, scores, viewed
from xferbench.lab.training.examples import training_subset

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from xferbench.design import Ready
    from xferbench.lab.viewed import Seen

MOST = 500  # images of each dataset at most
DISTANCES = {"mmd2": scores.mmd2, "proxy a-distance": scores.proxy_a, "frechet": scores.frechet}


def told(seen: Seen, within: str) -> dict[str, float]:
    """Compute all scores of a trained network that are finite.

    Args:
        seen: the network and its data.
        within: the suffix of the names of the distances within the source.

    Returns:
        The scores by name. Without a source dataset, there are no distances. Without a source head, there is no LEEP.
    """
    subset = training_subset(seen.dataset, seen.fit)
    rng = np.random.default_rng(seen.fit.seed)
    target = data.taken(subset.split, rng.permutation(subset.index)[:MOST])
    images = torch.from_numpy(np.array(target.images))
    before, after = (_features(seen, tensors, images, seen.prepared) for tensors in (seen.before, seen.after))
    values = {"logme": scores.logme(before, target.labels), "h-score": scores.h_score(before, target.labels)}
    values["cka"] = scores.linear_cka(before, after)
    if seen.source_head:
        tensors = _to_device(seen, {**seen.before, **seen.source_head})
        order = np.arange(len(images))
        logits = viewed.in_batches(seen.network, tensors, images, seen.prepared, order, training=False)
        values["leep"] = scores.leep(logits.double().softmax(1).numpy(), target.labels)
    if seen.view.domain is not None:
        values |= _distances(seen, before, rng, within)
    return {name: value for name, value in values.items() if np.isfinite(value)}


def _distances(seen: Seen, target: np.ndarray, rng: np.random.Generator, within: str) -> dict[str, float]:
    """Compute the distances from source to target, and between two halves of the source, with the same number of images."""
    ready = seen.view.preprocessing
    source = data.load(seen.view.domain.data, ready, None, seen.cache).train
    count = min(len(target), len(source.labels) // 2)
    sample = data.taken(source, rng.permutation(len(source.labels))[: 2 * count])
    x = _features(seen, seen.before, torch.from_numpy(np.array(sample.images)), ready)
    pairs = {"": (x[:count], target[:count]), within: (x[:count], x[count:])}
    return {f"{name}{suffix}": distance(*pair) for suffix, pair in pairs.items() for name, distance in DISTANCES.items()}


def _features(seen: Seen, tensors: Mapping[str, Tensor], images: Tensor, ready: Ready) -> np.ndarray:
    """Compute the penultimate features [n, d] float64."""
    x: np.ndarray = penultimate.head_inputs(seen.network, _to_device(seen, tensors), images, ready).double().numpy()
    return x


def _to_device(seen: Seen, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to(seen.network.device) for name, tensor in tensors.items()}
