"""From trials to records: start or recall the fits that they ask for, look at each as its view says."""

from __future__ import annotations

import importlib
import json
import os
import platform
import traceback
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from xferbench.design import Fit, digest
from xferbench.lab import (
    backbones,
    batchnorm,
    callables,
    checkpoints,
    data,
    features,
    fit,
    foreign,
    initial,
    preprocess,
    reading,
    seeds,
)
from xferbench.problem import Problem
from xferbench.record import FEW_CLASSES, Predictions, Record

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xferbench.design import Code, Place, Preprocessing, Trial, View, Weights
    from xferbench.lab.data import Dataset, Split
    from xferbench.lab.fit import Fitted, Network, Tensors

SERVED = 32  # examples of a batch where BatchNorm is served in train mode


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a plugin's own measure is given: a network's tensors before and after training, and its structure."""

    before: Tensors
    after: Tensors
    network: Network


def answer(trials: Sequence[Trial], missing: frozenset[str], cache: Path) -> tuple[list[Record], int]:
    """A record for each missing trial of a group, and how many networks had to be trained for them.

    The fits of a group differ only in their seed, and are trained together whichever of them is missing. A crash becomes
    records with ``error``; nothing else of the group is lost by it.

    Raises:
        Problem: where the user's input is at fault, and OSError where the disk is full: no other group would do better.
    """
    fits = tuple(dict.fromkeys(trial.model.base for trial in trials if isinstance(trial.model.base, Fit)))
    wanted = [trial for trial in trials if trial.key in missing]
    try:
        found, trained = _fitted(fits, trials[0], cache)
    except (Problem, OSError):
        raise
    except Exception as error:  # noqa: BLE001 - a crash is an answer, and leads to the verdict ERROR
        return [Record(key=trial.key, error=_last_line(error), place=_place(trial)) for trial in wanted], 0
    fitted: dict[Fit | Weights, Fitted] = dict(zip(fits, found, strict=True))
    return [_look(trial, fitted[trial.model.base], cache) for trial in wanted], trained


def _last_line(error: Exception) -> str:
    if isinstance(error, foreign.Crashed):
        return str(error)
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"


def _place(trial: Trial) -> str:
    return f"{platform.node()} {platform.processor() or platform.machine()} {trial.place.device}"


@lru_cache(maxsize=4)
def _network(arch: str, code: Code | None, classes: int, size: int, device: str, cache: Path) -> Network:
    module = backbones.build(arch, classes, code).eval()
    return fit.Network(module=module, anatomy=backbones.anatomy(module, size), device=torch.device(device), cache=cache)


@lru_cache(maxsize=4)
def _checkpoint(path: str, digest_: str) -> dict[str, Tensor]:
    del digest_  # part of the cache's key: the file may have been replaced
    return reading.read(Path(path))


def material(one: Fit, trial: Trial, cache: Path) -> tuple[Dataset, Network]:
    """What a fit is trained on, and the structure that is trained."""
    dataset = data.load(one.data, one.preprocessing, None, cache)
    if one.labels == "shuffled":
        dataset = data.shuffled(dataset, one.seed)
    size = dataset.train.images.shape[-1]
    return dataset, _network(one.arch, one.code, len(dataset.classes), size, trial.place.device, cache)


def start(one: Fit, network: Network, trial: Trial, cache: Path) -> Tensors:
    """The tensors from which a fit begins, on the CPU; they depend on its seed and on nothing that ran before."""
    if isinstance(one.start, Fit):
        (before,), _ = _fitted((one.start,), trial, cache)
        if before.diverged:
            raise RuntimeError("the fit that this one starts from diverged")
        state: dict[str, Tensor] | None = before.last
    else:
        state = None if one.start is None else _checkpoint(one.start.path, one.start.digest)
    streams = seeds.number(one.seed, seeds.INIT), seeds.number(one.seed, seeds.HEAD)
    return initial.tensors(one.arch, network.anatomy, state, init=one.init, head=one.head, seeds=streams, code=one.code)


def _fitted(fits: Sequence[Fit], trial: Trial, cache: Path) -> tuple[list[Fitted], int]:
    """All fits of a group, from the cache of weights if it holds every one; else trained together, for groups stay whole."""
    dataset, network = material(fits[0], trial, cache)
    starts = [start(one, network, trial, cache) for one in fits]
    files = [kept(one, trial.place, cache) for one in fits]
    if all(file.is_file() for file in files):
        return [_recall(file, before) for file, before in zip(files, starts, strict=True)], 0
    if fits[0].training:
        trained = [callables.train(one, network, before, dataset) for one, before in zip(fits, starts, strict=True)]
    else:
        trained = fit.train(fits, network, starts, dataset)
    for file, one in zip(files, trained, strict=True):
        _keep(file, one)
    return trained, len(trained)


def kept(one: Fit, place: Place, cache: Path) -> Path:
    """Where a fit's weights are, or would be."""
    return cache / "weights" / f"{digest((one, place))[:40]}.safetensors"


def _keep(file: Path, one: Fitted) -> None:
    about = {"curve": one.curve, "diverged": one.diverged, "prior": one.prior, "seconds": one.seconds}
    named = {f"last.{name}": tensor for name, tensor in one.last.items()}
    named |= {f"best.{name}": tensor for name, tensor in one.best.items()}
    checkpoints.save(named, file, half=False, metadata={"fit": json.dumps(about)})


def _recall(file: Path, before: Tensors) -> Fitted:
    os.utime(file)
    state, metadata = reading.recall(file)
    about = json.loads(metadata["fit"])
    last, best = (
        {name.removeprefix(half): tensor for name, tensor in state.items() if name.startswith(half)}
        for half in ("last.", "best.")
    )
    return fit.Fitted(
        before=before,
        last=last,
        best=best,
        curve=tuple((int(step), float(loss), float(score)) for step, loss, score in about["curve"]),
        diverged=about["diverged"],
        prior=tuple(about["prior"]),
        seconds=about["seconds"],
    )


def _look(trial: Trial, fitted: Fitted, cache: Path) -> Record:
    begun = perf_counter()
    try:
        record = _seen(trial, fitted, cache)
    except (Problem, OSError):
        raise
    except Exception as error:  # noqa: BLE001 - a crash is an answer, and leads to the verdict ERROR
        return Record(key=trial.key, error=_last_line(error), place=_place(trial))
    predictions, scalars = record
    return Record(
        key=trial.key,
        fit=digest((trial.model.base, trial.place)),
        predictions=predictions,
        scalars={"diverged": float(fitted.diverged)} | scalars,
        curve=fitted.curve,
        seconds=perf_counter() - begun,
        fit_seconds=fitted.seconds,
        place=_place(trial),
    )


def _seen(trial: Trial, fitted: Fitted, cache: Path) -> tuple[Predictions | None, dict[str, float]]:
    one, view = trial.model.base, trial.view
    assert isinstance(one, Fit)
    dataset, network = material(one, trial, cache)
    tensors = {"last": fitted.last, "best": fitted.best}[view.step]
    tensors = {name: tensor.to(network.device) for name, tensor in tensors.items()}
    for edit in trial.model.edits:
        tensors = _edited(edit, tensors, fitted, one, dataset, network)
    if view.measure != "predictions":
        module, _, function = view.measure.partition("@")[0].partition(":")
        measure = getattr(importlib.import_module(module), function)
        found = measure(Seen(before=fitted.before, after=tensors, network=network))
        return None, {name: float(value) for name, value in found.items()}
    split = _examples(view, one, dataset, cache)
    prior = np.tile(np.array(fitted.prior), (len(split.labels), 1))
    if fitted.diverged:
        return _predictions(prior, split), {}
    logits = _logits(trial, tensors, network, split)
    if not np.isfinite(logits).all():
        return _predictions(prior, split), {"diverged": 1.0}
    p = np.exp(logits - logits.max(1, keepdims=True))
    return _predictions(p / p.sum(1, keepdims=True), split), {}


def _edited(edit: str, tensors: Tensors, fitted: Fitted, one: Fit, dataset: Dataset, network: Network) -> Tensors:
    if edit == "batchnorm:restored":
        return tensors | {name: fitted.before[name].to(network.device) for name in batchnorm.buffers(network.module)}
    if edit == "batchnorm:recalibrated":
        index, _ = data.subset(dataset, one.train_size, one.seed)
        images = torch.from_numpy(np.array(dataset.train.images[index])).to(network.device)
        batches = images.tensor_split(max(1, len(images) // features.BATCH))  # of one size, for each counts alike
        ready = (preprocess.tensor(batch, one.preprocessing) for batch in batches)
        return tensors | batchnorm.recalibrated(network.module, tensors, ready)
    raise ValueError(f"no such edit of a model: {edit}")


def _examples(view: View, one: Fit, dataset: Dataset, cache: Path) -> Split:
    """The examples that a view looks at, in the geometry of its own preprocessing."""
    served = data.load(one.data, view.preprocessing, view.limit, cache)
    if view.examples == "test":
        return served.test
    if view.examples != "validation":
        raise ValueError(f"no such examples: {view.examples}")
    if served.validation is not None:
        return served.validation
    _, index = data.subset(dataset, one.train_size, one.seed)
    return data.taken(served.train, index)


def _logits(trial: Trial, tensors: Tensors, network: Network, split: Split) -> np.ndarray:
    """[N, classes] float64. What lies below the frozen cut of all phases is computed once for all fits that share it."""
    one, view = trial.model.base, trial.view
    assert isinstance(one, Fit)
    images = torch.from_numpy(np.array(split.images))
    if view.mode == "train":
        return _served_in_train_mode(tensors, network, images, view.preprocessing)
    if view.mode != "eval":
        raise ValueError(f"no such mode: {view.mode}")
    frozen = 0 if trial.model.edits or one.training else min(fit.cut(phase, network.anatomy) for phase in one.phases)
    lower, rest = fit.body(network, frozen, view.preprocessing)
    x = images if lower is None else features.compute(lower, tensors, images, view.preprocessing, network.device, network.cache)
    own = {name: tensors[name] for name in rest.names}
    with features.inference(rest.module, network.device):
        logits = [rest(own, batch.to(network.device)).float().cpu() for batch in x.split(features.BATCH)]
    found: np.ndarray = torch.cat(logits).double().numpy()
    return found


def _served_in_train_mode(tensors: Tensors, network: Network, images: Tensor, ready: Preprocessing) -> np.ndarray:
    """Logits with the statistics of shuffled batches; the running ones are moved on a copy that is thrown away."""
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(images)))
    own = {name: tensor.clone() for name, tensor in tensors.items()}
    found = []
    with features.inference(network.module, network.device):
        for layer in batchnorm.layers(network.module).values():
            layer.train()
        for part in order.tensor_split(max(1, len(order) // SERVED)):
            batch = preprocess.tensor(images[part].to(network.device), ready)
            found.append(functional_call(network.module, own, (batch,)).float().cpu())
    logits: np.ndarray = torch.cat(found)[order.argsort()].double().numpy()
    return logits


def _predictions(p: np.ndarray, split: Split) -> Predictions:
    kept = p if p.shape[1] <= FEW_CLASSES else p[:, :0]
    return Predictions(
        example=split.example,
        label=split.labels.astype(np.int32),
        predicted=p.argmax(1).astype(np.int32),
        group=split.groups.astype(np.int32),
        p_true=p[np.arange(len(p)), split.labels].astype(np.float32),
        p_max=p.max(1).astype(np.float32),
        sum_p2=(p**2).sum(1).astype(np.float32),
        probabilities=kept.astype(np.float16),
    )
