"""Facts about a backbone and a dataset, found by running them once, before anything is trained."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional as F

from xferbench.design import Facts, Preprocessing, Ready
from xferbench.lab import backbones, bottleneck, callables, checkpoints, data, domains, foreign, preprocess, published, reading
from xferbench.lab import finished as examined
from xferbench.problem import Problem

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from xferbench.design import Code, Data, Finished, Weights

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR = Preprocessing(
    resize=32, crop=32, mean=IMAGENET[0], std=IMAGENET[1]
)  # He et al.'s CIFAR networks, as their published weights were trained
TIMED = 32  # images of a batch
SLOW = 0.5  # seconds a batch above which a small one must do


def device(word: str) -> str:
    """``auto`` made definite: cuda, then mps, then cpu.

    Raises:
        Problem: for a device that torch does not find here.
    """
    accelerators = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    there = [name for name, available in accelerators.items() if available]
    if word not in {"auto", *there}:
        raise Problem(f"--device {word}: not found here", expected=f"auto, or {' or '.join(there)}")
    return there[0] if word == "auto" else word


def recorded(arch: str, weights: Weights) -> tuple[Preprocessing | None, str]:
    """The preprocessing that goes with a checkpoint, and what of that is taken on trust.

    It is written in the file, or the file is one that torchvision or timm publishes; otherwise that of the architecture's
    published weights is the best guess, and is said to be one.
    """
    found = checkpoints.recorded_preprocessing(Path(weights.path)) or published.preprocessing(arch, weights.digest)
    if found is not None:
        return found, ""
    guess = CIFAR if arch.startswith("cifar-resnet") else published.preprocessing(arch)
    if guess is None:
        return None, "preprocessing: recorded nowhere, so images are only scaled to [0, 1]"
    return guess, f"preprocessing: not recorded with these weights; that of the published weights of {arch} is used"


def probe(
    arch: str,
    weights: Weights,
    target: Data,
    preprocessing: Ready | None,
    sizes: tuple[int | None, int | None],
    beside: tuple[Data | None, tuple[tuple[str, int], ...], Data | None],
    cache: Path,
    code: Code | None = None,
    training: Code | None = None,
    finished: Finished | None = None,
) -> Facts:
    """Load both, run the network forward and back on a few images, and tell what is there.

    Args:
        arch, weights, target, preprocessing, sizes: as a suite has them, the sizes of the training subset and the test set.
        beside: the source, its classes' outputs of the pretrained head as far as the suite says, and the shifted set.
        cache: the folder beside the store.
        code, training: the user's own, which build the network and train it. Where one crashes, that is all that is told.
        finished: a network that is not to be trained; ``weights`` is then what it was made from, or itself.

    Raises:
        Problem: where the checkpoint does not fit, no head is found, or a dataset cannot be used.
    """
    try:
        facts = _probed(arch, weights, target, preprocessing, sizes, beside, cache, code, finished)
        return facts if training is None else replace(facts, honours=callables.honours(training))
    except foreign.Crashed as crash:
        return Facts(
            parameters=0,
            groups=(),
            head="",
            batchnorm=(),
            classes=(),
            train=0,
            validation=0,
            test=0,
            test_groups=None,
            preprocessing=Preprocessing(),
            crash=str(crash),
        )


def _probed(
    arch: str,
    weights: Weights,
    target: Data,
    preprocessing: Ready | None,
    sizes: tuple[int | None, int | None],
    beside: tuple[Data | None, tuple[tuple[str, int], ...], Data | None],
    cache: Path,
    code: Code | None,
    finished: Finished | None,
) -> Facts:
    train_size, test_size = sizes
    _stated(arch, weights, preprocessing)
    told, trust = (preprocessing, "") if preprocessing else recorded(arch, weights)
    ready = told or Preprocessing()
    dataset = data.load(target, ready, None if finished else test_size, cache)
    train, held_out = _subset(dataset, train_size, target, finished)
    module = backbones.build(arch, len(dataset.classes), code)
    with _guarded(code):
        anatomy = backbones.anatomy(module, data.shape(dataset, ready))
    if anatomy.classes != len(dataset.classes):
        expected = f"{len(dataset.classes)}, as it was asked for"
        raise Problem(f"{arch}: a head of the wrong size", found=f"{anatomy.classes} outputs", expected=expected)
    state, taken = reading.told(Path(weights.path))
    notes = (trust, taken, checkpoints.fitting(module, state, anatomy.head)[1])
    if finished:
        outputs_, unmoved = examined.sizes(module, anatomy.head, finished, state, len(dataset.classes))
    else:
        checkpoints.load(module, state, anatomy.head)
    with _guarded(code):
        own = backbones.kinds(anatomy, module) | {"adapter": bottleneck.places(module, anatomy, data.shape(dataset, ready))}
        forward, step = _timed(module, dataset, ready)
    source, given, shifted = beside
    head = checkpoints.head(module, state, anatomy.head)
    outputs, no_source = domains.source(source, dict(given), ready, arch, head, cache)
    in_order = outputs and not given and outputs == tuple(range(len(outputs)))
    ordered = "source classes: those of the source, in order, are the outputs of the pretrained head" if in_order else ""
    return Facts(
        parameters=anatomy.parameters,
        groups=tuple(group.name for group in anatomy.groups),
        head=anatomy.head,
        batchnorm=anatomy.batchnorm,
        classes=dataset.classes,
        train=len(train),
        validation=len(held_out if dataset.validation is None else dataset.validation.labels),
        test=min(len(dataset.test.labels), test_size or len(dataset.test.labels)),
        test_groups=len(np.unique(dataset.test.groups)) if len(dataset.test.groups) else None,
        preprocessing=ready,
        trust=tuple(note for note in (*notes, ordered) if note),
        left_out=dataset.left_out,
        seconds_forward=forward,
        seconds_step=step,
        size=dataset.test.images.shape[-2:],
        recorded=not trust,
        source=outputs,
        no_source=no_source,
        shifted=domains.shifted(shifted, dataset.classes, ready, cache),
        outputs=outputs_ if finished else 0,
        unmoved=unmoved if finished else False,
        lacks=tuple(kind for kind, found in own.items() if not found) + _unlabelled(shifted, ready, cache),
    )


def _unlabelled(shifted: Data | None, ready: Ready, cache: Path) -> tuple[str, ...]:
    there = shifted is None or len(data.load(shifted, ready, None, cache).train.labels)
    return () if there else ("unlabelled",)


def _subset(
    dataset: data.Dataset, train_size: int | None, target: Data, finished: Finished | None
) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training subset and of the validation examples; none where a finished network comes without either."""
    if len(dataset.train.labels):
        return data.subset(dataset, train_size, 0)
    if not finished:
        expected = "train/ and val/ or test/, each with one folder of images a class; or metadata.csv; or arrays of both"
        raise Problem(f"{target.spec}: no training images", found="a test set alone", expected=expected)
    return np.empty(0, np.int64), np.empty(0, np.int64)


def _stated(arch: str, weights: Weights, given: Ready | None) -> None:
    """Refuse a preprocessing that leaves out the mean and standard deviation which are known: images would go unnormalised."""
    nothing = Preprocessing()
    if not isinstance(given, Preprocessing) or (given.mean, given.std) != (nothing.mean, nothing.std):
        return
    known, _ = recorded(arch, weights)
    if isinstance(known, Preprocessing) and (known.mean, known.std) != (nothing.mean, nothing.std):
        raise Problem(
            "[backbone] preprocessing: mean and std are left out",
            found="a table without them",
            expected=f"those of these weights, mean = {list(known.mean)}, std = {list(known.std)}",
            do="state them, or mean = [0] and std = [1] for no normalisation at all",
        )


def _guarded(code: Code | None) -> AbstractContextManager[None]:
    return nullcontext() if code is None else foreign.naming(code)


def _timed(module: torch.nn.Module, dataset: data.Dataset, ready: Ready) -> tuple[float, float]:
    """Seconds an image, forward alone and for a training step: of a small batch, or of a usual one where that is quick."""
    module.eval()
    forward = step = 0.0
    for count in (TIMED // 8, TIMED):
        count = min(count, len(dataset.test.labels))  # noqa: PLW2901 - a small dataset has fewer
        images = preprocess.tensor(torch.from_numpy(np.array(dataset.test.images[:count])), ready)
        labels = torch.from_numpy(dataset.test.labels[:count])
        F.cross_entropy(module(images), labels).backward()  # once to warm up
        begun = perf_counter()
        with torch.no_grad():
            module(images)
        between = perf_counter()
        F.cross_entropy(module(images), labels).backward()
        forward, step = (between - begun) / count, (perf_counter() - between) / count
        if step * TIMED > SLOW:
            break
    return forward, step
