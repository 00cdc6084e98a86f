"""Training by the user's own code: ``train(model, data, recipe, seed) -> model`` in place of the lab's loop.

The model comes initialised, with pretrained weights and a fresh head, on the device where it is to be trained. What the code
heeds of a recipe it says by an attribute::

    def train(model, data, recipe, seed): ...
    train.honours = {"lr", "steps"}     # fields of design.Phase, "phases" (more than one) or "stop"

A regularizer is never honoured, since the code is given nothing of the source. ``str(phase.trainable)`` is the suite's word.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from xferbench.design import Recipe
from xferbench.honours import KNOWN
from xferbench.lab import backbones, batchnorm, features, foreign, preprocess, seeds
from xferbench.lab.fit import Fitted
from xferbench.lab.training.examples import training_subset
from xferbench.problem import Problem, nearest

if TYPE_CHECKING:
    from xferbench.design import Code, Fit, Ready
    from xferbench.lab.data import Dataset
    from xferbench.lab.fit import Network, Tensors
    from xferbench.lab.training.examples import TrainingSubset

WRAPPED = ("_orig_mod.", "module.")  # by torch.compile, by DataParallel


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """What the code is given: images [n, 3, H, W] float32, as the pipeline preprocesses them, with labels [n]; on the CPU."""

    train: TensorDataset
    validation: TensorDataset
    classes: tuple[str, ...]


def honours(code: Code) -> tuple[str, ...]:
    """What training code says it heeds, in the order of :data:`xferbench.honours.KNOWN`.

    Raises:
        Problem: where it says nothing, or names no field. Crashed: where its module raises.
    """
    told = getattr(foreign.load(code), "honours", None)
    name = code.spec.rpartition(":")[2]
    what, do = f"{code.spec}: what it honours", f'say it below the function: {name}.honours = {{"lr", "steps"}}'
    expected = "a set of fields of a recipe, which may be empty: " + ", ".join(KNOWN)
    if not isinstance(told, set | frozenset | list | tuple):
        raise Problem(what, found="nothing" if told is None else repr(told)[:80], expected=expected, do=do)
    for word in told:
        if word not in KNOWN:
            raise Problem(what, found=repr(word), expected=nearest(str(word), KNOWN))
    return tuple(word for word in KNOWN if word in told)


def train(fit: Fit, network: Network, start: Tensors, dataset: Dataset) -> Fitted:
    """Train one fit by its own code; all global random streams are seeded before, and put back afterwards.

    ``last`` and ``best`` are both the network that comes back. The curve is its one row: all steps of the recipe, the mean
    cross-entropy on the training images in evaluation mode, accuracy on validation.

    Raises:
        Crashed: where the code raises, or trains what it says it leaves alone. Problem: where no such network comes back.
    """
    assert fit.training is not None
    begun = perf_counter()
    train_, validation = _split(dataset, training_subset(dataset, fit))
    data = Examples(
        train=_ready(*train_, fit.preprocessing), validation=_ready(*validation, fit.preprocessing), classes=dataset.classes
    )
    whole: dict[str, Any] = {
        "init": fit.init,
        "head": fit.head,
        "regularizer": fit.regularizer,
        "augment": fit.augment,
        "stop": fit.stop,
    }
    recipe = Recipe(phases=fit.phases, **whole)
    model = _filled(network, start)
    with seeds.everywhere(seeds.number(fit.seed, seeds.ORDER)), torch.enable_grad():
        found = foreign.called(fit.training, model.train(), data, recipe, fit.seed)
    last = _tensors(found, start, fit.training)
    _check_frozen(fit, fit.training, network, start, last)
    model = _filled(network, last).eval()
    loss, _ = _scored(model, data.train, network.device)
    _, score = _scored(model, data.validation, network.device)
    labels = train_[1]
    return Fitted(
        before=start,
        last=last,
        best=last,
        curve=((sum(phase.steps for phase in fit.phases), loss, score),),
        diverged=not (np.isfinite(loss) and all(bool(t.isfinite().all()) for t in last.values() if t.is_floating_point())),
        prior=tuple((np.bincount(labels, minlength=len(dataset.classes)) / len(labels)).tolist()),
        seconds=perf_counter() - begun,
    )


def _split(dataset: Dataset, subset: TrainingSubset) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Images and labels to train on, and to validate on."""
    whole, apart, index = dataset.train, dataset.validation, subset.validation
    validation = (whole.images[index], whole.labels[index]) if apart is None else (apart.images, apart.labels)
    return (subset.split.images[subset.index], subset.labels), validation


def _ready(images: np.ndarray, labels: np.ndarray, ready: Ready) -> TensorDataset:
    pixels = torch.from_numpy(np.array(images))
    return TensorDataset(preprocess.tensor(pixels, ready), torch.from_numpy(np.array(labels)).long())


def _filled(network: Network, tensors: Tensors) -> nn.Module:
    """A network of its own with some tensors."""
    model: nn.Module = deepcopy(network.module).to(network.device)
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])
    return model


def _tensors(found: object, start: Tensors, code: Code) -> Tensors:
    """The tensors of what came back, under the names that went out."""
    expected = "the network that it was given, trained"
    if not isinstance(found, nn.Module):
        raise Problem(f"{code.spec}: gave no network back", found=f"a {type(found).__name__}", expected=expected)
    named = {name: tensor.detach().cpu().clone() for name, tensor in (*found.named_parameters(), *found.named_buffers())}
    for prefix in WRAPPED:
        if named and all(name.startswith(prefix) for name in named):
            named = {name.removeprefix(prefix): tensor for name, tensor in named.items()}
    odd = [name for name in {**start, **named} if name not in start or name not in named]
    odd += [name for name in start if name in named and named[name].shape != start[name].shape]
    if odd:
        told = f"tensors missing, new or of another shape: {', '.join(sorted(odd)[:5])} ({len(odd)} in all)"
        raise Problem(f"{code.spec}: gave another network back", found=told, expected=expected)
    return {name: named[name].to(start[name].dtype) for name in start}


def _check_frozen(fit: Fit, code: Code, network: Network, before: Tensors, after: Tensors) -> None:
    """Hold the code to its word: tensors that no phase trains have not moved, where it says that it honours that."""
    said, buffers = honours(code), batchnorm.buffers(network.module)
    frozen: set[str] = set()
    if "trainable" in said:
        words = {phase.trainable for phase in fit.phases}
        learnt = set().union(*(backbones.trainable(network.anatomy, network.module, word) for word in words))
        frozen |= {name for name, _ in network.module.named_parameters()} - learnt
    if "batchnorm" in said and all(phase.batchnorm == "eval" for phase in fit.phases):
        frozen |= buffers
    moved = [name for name in before if name in frozen and not torch.equal(before[name], after[name])]
    if moved:
        raise foreign.Crashed(f"{code.spec} says that it honours {', '.join(said)}, but moved frozen {', '.join(moved[:5])}")


def _scored(model: nn.Module, examples: TensorDataset, device: torch.device) -> tuple[float, float]:
    """Mean cross-entropy and accuracy, in evaluation mode."""
    x, y = examples.tensors
    with features.inference(model, device):
        parts = [model(batch.to(device)).float().cpu() for batch in x.split(features.BATCH)]
    logits: Tensor = torch.cat(parts)
    return float(F.cross_entropy(logits, y)), float((logits.argmax(1) == y).float().mean())
