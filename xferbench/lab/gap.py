"""What a pretrained network makes of the target's images and of the source's: scores of its features. See ``domain-gap``."""

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

MOST = 500  # images of a side at most
DISTANCES = {"mmd2": scores.mmd2, "proxy a-distance": scores.proxy_a, "frechet": scores.frechet}


def told(seen: Seen, within: str) -> dict[str, float]:
    """Every score of a fit that is a finite number; ``within`` ends the names of the distances within the source."""
    subset = training_subset(seen.dataset, seen.fit)
    rng = np.random.default_rng(seen.fit.seed)
    own = data.taken(subset.split, rng.permutation(subset.index)[:MOST])
    images = torch.from_numpy(np.array(own.images))
    before, after = (_features(seen, tensors, images, seen.prepared) for tensors in (seen.before, seen.after))
    found = {"logme": scores.logme(before, own.labels), "h-score": scores.h_score(before, own.labels)}
    found["cka"] = scores.linear_cka(before, after)
    if seen.source_head:
        tensors = _placed(seen, {**seen.before, **seen.source_head})
        order = np.arange(len(images))
        logits = viewed.in_batches(seen.network, tensors, images, seen.prepared, order, training=False)
        found["leep"] = scores.leep(logits.double().softmax(1).numpy(), own.labels)
    if seen.view.domain is not None:
        found |= _distances(seen, before, rng, within)
    return {name: value for name, value in found.items() if np.isfinite(value)}


def _distances(seen: Seen, target: np.ndarray, rng: np.random.Generator, within: str) -> dict[str, float]:
    """From source to target, and within the source, by as many images each."""
    ready = seen.view.preprocessing
    source = data.load(seen.view.domain.data, ready, None, seen.cache).train
    count = min(len(target), len(source.labels) // 2)
    drawn = data.taken(source, rng.permutation(len(source.labels))[: 2 * count])
    x = _features(seen, seen.before, torch.from_numpy(np.array(drawn.images)), ready)
    pairs = {"": (x[:count], target[:count]), within: (x[:count], x[count:])}
    return {f"{name}{end}": distance(*pair) for end, pair in pairs.items() for name, distance in DISTANCES.items()}


def _features(seen: Seen, tensors: Mapping[str, Tensor], images: Tensor, ready: Ready) -> np.ndarray:
    """[n, d] float64."""
    found: np.ndarray = penultimate.head_inputs(seen.network, _placed(seen, tensors), images, ready).double().numpy()
    return found


def _placed(seen: Seen, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to(seen.network.device) for name, tensor in tensors.items()}
