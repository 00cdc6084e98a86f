"""Facts about a backbone and a dataset, found by running them once, before anything is trained."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812 - its usual name

from xferbench.design import Facts, Preprocessing
from xferbench.lab import backbones, checkpoints, data, preprocess

if TYPE_CHECKING:
    from xferbench.design import Data, Weights

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CIFAR = Preprocessing(resize=32, crop=32, **IMAGENET)  # He et al.'s CIFAR networks, as their published weights were trained
TIMED = 4  # images


def device(word: str) -> str:
    """``auto`` made definite: cuda, then mps, then cpu."""
    if word != "auto":
        return word
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def recorded(arch: str, path: str) -> Preprocessing | None:
    """The preprocessing that goes with a checkpoint: written in the file, or known of the architecture's published weights."""
    if path.endswith(".safetensors") and (written := checkpoints.recorded_preprocessing(Path(path))) is not None:
        return written
    if arch.startswith("cifar-resnet"):
        return CIFAR
    return checkpoints.torchvision_preprocessing(arch) if arch.startswith("torchvision:") else None


def probe(
    arch: str, weights: Weights, target: Data, preprocessing: Preprocessing | None, train_size: int | None, test_size: int | None, cache: Path
) -> Facts:
    """Load both, run the network forward and back on a few images, and tell what is there.

    Raises:
        Problem: where the checkpoint does not fit, no head is found, or the dataset cannot be used.
    """
    told = preprocessing or recorded(arch, weights.path)
    trust = [] if preprocessing or told else ["preprocessing: recorded nowhere, so images are only scaled to [0, 1]"]
    if told and not preprocessing and arch.startswith("torchvision:"):
        trust.append("preprocessing: that of torchvision's own weights of this architecture")
    ready = told or Preprocessing()
    dataset = data.load(target, ready, test_size, cache)
    train, held_out = data.subset(dataset, train_size, 0)
    module = backbones.build(arch, len(dataset.classes))
    anatomy = backbones.anatomy(module, dataset.train.images.shape[-1])
    checkpoints.load(module, checkpoints.read(Path(weights.path)), anatomy.head)
    forward, step = _timed(module, dataset, ready)
    return Facts(
        parameters=anatomy.parameters,
        groups=tuple(group.name for group in anatomy.groups),
        head=anatomy.head,
        batchnorm=anatomy.batchnorm,
        classes=dataset.classes,
        train=len(train),
        validation=len(held_out if dataset.validation is None else dataset.validation.labels),
        test=len(dataset.test.labels),
        test_groups=len(np.unique(dataset.test.groups)) if len(dataset.test.groups) else None,
        preprocessing=ready,
        trust=tuple(trust),
        left_out=dataset.left_out,
        seconds_forward=forward,
        seconds_step=step,
    )


def _timed(module: torch.nn.Module, dataset: data.Dataset, ready: Preprocessing) -> tuple[float, float]:
    """Seconds an image, forward alone and for a training step, after one run to warm up."""
    count = min(TIMED, len(dataset.train.labels))
    images = preprocess.tensor(torch.from_numpy(np.array(dataset.train.images[:count])), ready)
    labels = torch.from_numpy(dataset.train.labels[:count])
    module.eval()
    F.cross_entropy(module(images), labels).backward()
    begun = perf_counter()
    with torch.no_grad():
        module(images)
    between = perf_counter()
    F.cross_entropy(module(images), labels).backward()
    return (between - begun) / count, (perf_counter() - between) / count
