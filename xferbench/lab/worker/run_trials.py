"""From trials to records: start or recall the fits that they ask for, and look at each as its view says."""

from __future__ import annotations

import json
import os
import platform
import traceback
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from xferbench.core.canonical import digest
from xferbench.core.errors import UserError
from xferbench.core.interventions import BUILT_IN, OWN_HEAD, RANDOM_HEAD, Edit, Head, InterpolatePhase, SourceHead, find_kind
from xferbench.core.pipeline import WeightsFile
from xferbench.core.record import Record
from xferbench.core.strategies import is_mlp_head
from xferbench.core.trial import TrainingSpec
from xferbench.data import user_code
from xferbench.lab.data import datasets, domains, shortcut_cue
from xferbench.lab.evaluation import context, evaluate, leakage
from xferbench.lab.models import backbones, bottleneck_adapters, checkpoint_reader, checkpoints, finished, heads, initialization
from xferbench.lab.training import loop, seeds, user_training
from xferbench.lab.training.network import Architecture, AuxiliaryInputs, TrainedModel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

    from xferbench.core.pipeline import UserCode
    from xferbench.core.trial import ComputeContext, Trial
    from xferbench.lab.data.batch import Shape
    from xferbench.lab.data.datasets import Dataset
    from xferbench.lab.training.network import Tensors


def run_trials(trials: Sequence[Trial], missing: frozenset[str], cache: Path) -> tuple[list[Record], int]:
    """A record for each missing trial of a group, and how many networks had to be trained for them.

    The fits of a group differ only in their seed, and are trained together whichever of them is missing. A crash becomes
    records with ``error``; nothing else of the group is lost by it.

    Raises:
        UserError: where the user's input is at fault, and OSError where the disk is full: no other group would do better.
    """
    fits = tuple(dict.fromkeys(trial.model.base for trial in trials))
    wanted = [trial for trial in trials if trial.key in missing]
    try:
        found, trained = _fitted(fits, trials[0], cache)
        if any(map(_interpolates, trials)):
            found = _begun(fits, found, trials[0], cache)
    except (UserError, OSError):
        raise
    except Exception as error:  # noqa: BLE001 - a crash is an answer, and leads to the verdict ERROR
        return [Record(key=trial.key, error=_last_line(error), place=_place(trial)) for trial in wanted], 0
    fitted: dict[TrainingSpec, TrainedModel] = dict(zip(fits, found, strict=True))
    return [_look(trial, fitted[trial.model.base], cache) for trial in wanted], trained


def _interpolates(trial: Trial) -> bool:
    return any(find_kind(edit, BUILT_IN[Edit]) is InterpolatePhase for edit in trial.model.edits)


def _last_line(error: Exception) -> str:
    if isinstance(error, user_code.UserCodeError):
        return str(error)
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"


def _place(trial: Trial) -> str:
    return f"{platform.node()} {platform.processor() or platform.machine()} {trial.place.device}"


@lru_cache(maxsize=4)
def _network(
    arch: str,
    code: UserCode | None,
    classes: int,
    shape: Shape,
    device: str,
    cache: Path,
    head: Head = RANDOM_HEAD,
    adapters: int = 0,
) -> Architecture:
    module = backbones.build(arch, classes, code).eval()
    anatomy = backbones.layer_layout(module, shape)
    if is_mlp_head(head):
        heads.replace_head(module, anatomy, head)
        anatomy = replace(anatomy, parameters=sum(one.numel() for one in module.parameters()))
    if adapters:
        bottleneck_adapters.insert_adapters(module, anatomy, shape, adapters)
    return Architecture(module=module, anatomy=anatomy, device=torch.device(device), cache=cache)


@lru_cache(maxsize=4)
def _checkpoint(path: str, digest_: str) -> dict[str, Tensor]:
    del digest_  # part of the cache's key: the file may have been replaced
    return checkpoint_reader.read_checkpoint(Path(path))


def training_inputs(one: TrainingSpec, trial: Trial, cache: Path) -> tuple[Dataset, Architecture]:
    """What a fit is trained on, and the structure that is trained."""
    dataset = datasets.load_dataset(one.data, one.preprocessing, None, cache)
    if one.labels == "shuffled":
        dataset = datasets.with_shuffled_labels(dataset, one.seed)
    if one.has_cue:
        dataset = shortcut_cue.correlate_with_class(dataset)
    if one.injected_duplicates:
        dataset, _, _ = leakage.inject_duplicates(dataset, one.injected_duplicates, one.seed)
    shape = datasets.input_shape(dataset, one.preprocessing)
    outputs, parts = (
        len(dataset.classes),
        (one.head if is_mlp_head(one.head) else RANDOM_HEAD, bottleneck_adapters.adapter_channels(one.phases)),
    )
    network = _network(one.arch, one.code, outputs, shape, trial.place.device, cache, *parts)
    if (
        one.head == OWN_HEAD
        and (found := finished.head_outputs(network.module, network.anatomy.head, start_checkpoint(one))) != outputs
    ):
        network = _network(one.arch, one.code, found, shape, trial.place.device, cache, *parts)
    return dataset, network


def _planted(one: TrainingSpec, cache: Path) -> np.ndarray | None:
    """The places in the test set of the images that a fit was given on purpose."""
    if not one.injected_duplicates:
        return None
    return leakage.inject_duplicates(
        datasets.load_dataset(one.data, one.preprocessing, None, cache), one.injected_duplicates, one.seed
    )[1]


def start_checkpoint(one: TrainingSpec) -> Mapping[str, Tensor]:
    """The tensors of the checkpoint that a fit starts from; none where it has none."""
    return _checkpoint(one.start.path, one.start.digest) if isinstance(one.start, WeightsFile) else {}


def start_tensors(one: TrainingSpec, network: Architecture, trial: Trial, cache: Path) -> Tensors:
    """The tensors from which a fit begins, on the CPU; they depend on its seed and on nothing that ran before."""
    if isinstance(one.start, TrainingSpec):
        (before,), _ = _fitted((one.start,), trial, cache)
        if before.diverged:
            raise RuntimeError("the fit that this one starts from diverged")
        state: dict[str, Tensor] | None = before.last
    else:
        state = None if one.start is None else _checkpoint(one.start.path, one.start.digest)
    again = () if one.transferred == "all" else (1,)  # not what the network that some layers are of began with itself
    own = initialization.initial_tensors(
        one.arch,
        network.anatomy,
        state,
        init=one.init,
        head=one.head,
        seeds=(seeds.torch_seed(one.seed, seeds.INIT, *again), seeds.torch_seed(one.seed, seeds.HEAD, *again)),
        code=one.code,
        transferred=one.transferred,
    )
    return own | bottleneck_adapters.initial_adapters(network.module, one.seed)


def _fitted(fits: Sequence[TrainingSpec], trial: Trial, cache: Path) -> tuple[list[TrainedModel], int]:
    """All fits of a group, from the cache of weights if it holds every one; else trained together, for groups stay whole."""
    dataset, network = training_inputs(fits[0], trial, cache)
    if fits[0].head == OWN_HEAD:
        before = [_checkpoint(one.before.path, one.before.digest) if one.before else None for one in fits]
        return [
            finished.trained_model(network, start_checkpoint(one), its, dataset) for one, its in zip(fits, before, strict=True)
        ], 0
    starts = [start_tensors(one, network, trial, cache) for one in fits]
    files = [weights_path(one, trial.place, cache) for one in fits]
    if all(file.is_file() for file in files):
        return [_recall(file, before) for file, before in zip(files, starts, strict=True)], 0
    if fits[0].training:
        trained = [
            user_training.train_with_user_code(one, network, before, dataset) for one, before in zip(fits, starts, strict=True)
        ]
    else:
        trained = loop.train(fits, network, starts, dataset, _taught(_source(fits[0], network, cache), fits, trial, cache))
    for file, one in zip(files, trained, strict=True):
        _keep(file, one)
    return trained, len(trained)


def _begun(fits: Sequence[TrainingSpec], found: Sequence[TrainedModel], trial: Trial, cache: Path) -> list[TrainedModel]:
    """A group's networks with where their last phase began: fits of their own, whose last phase has no steps.

    These are trained to the same bits, so that nobody pays for what only interpolation needs, and files of weights stay as
    they are. The phase is not left out, for its adapters are there from the first one on.
    """
    earlier = [replace(one, phases=(*one.phases[:-1], replace(one.phases[-1], steps=0, warmup=0))) for one in fits]
    before, _ = _fitted(earlier, trial, cache)
    return [replace(one, begun=other) for one, other in zip(found, before, strict=True)]


def _source(one: TrainingSpec, network: Architecture, cache: Path) -> AuxiliaryInputs | None:
    """What a fit's regularizer is given of the source."""
    if not one.regularizer:
        return None
    memory = domains.memory_split(domains.load_domain(one.source, one.preprocessing, cache)) if one.source else None
    other = domains.unlabeled_split(one.unlabeled, one.preprocessing, cache) if one.unlabeled else None
    return AuxiliaryInputs(head=pretrained_head(one, network), memory=memory, unlabelled=other)


def _taught(source: AuxiliaryInputs | None, fits: Sequence[TrainingSpec], trial: Trial, cache: Path) -> AuxiliaryInputs | None:
    """What a group's regularizer is given, its teachers and the network with a plain head among it."""
    if source is None:
        return None
    plain = training_inputs(replace(fits[0], head=RANDOM_HEAD), trial, cache)[1]
    own = tuple(one.teacher for one in fits if one.teacher)
    teachers, _ = _fitted(own, trial, cache) if own else ([], 0)
    if any(one.diverged for one in teachers):
        raise RuntimeError("the teacher of this fit diverged")
    return replace(source, plain=plain, teachers=tuple(teachers))


def pretrained_head(one: TrainingSpec, network: Architecture) -> Tensors:
    """The pretrained head of the checkpoint that a fit starts from, or a finished network was made from; none without one."""
    found = one.before if one.head == OWN_HEAD else one.start
    if found is None or isinstance(found, TrainingSpec):
        return {}
    return checkpoints.head_tensors(network.module, _checkpoint(found.path, found.digest), network.anatomy.head)


def weights_path(one: TrainingSpec, place: ComputeContext, cache: Path) -> Path:
    """Where a fit's weights are, or would be."""
    return cache / "weights" / f"{digest((one, place))[:40]}.safetensors"


def _keep(file: Path, one: TrainedModel) -> None:
    about = {"curve": one.curve, "diverged": one.diverged, "prior": one.prior, "seconds": one.seconds, "taught": one.taught}
    named = {f"last.{name}": tensor for name, tensor in one.last.items()}
    named |= {f"best.{name}": tensor for name, tensor in one.best.items()}
    checkpoints.save_tensors(named, file, half=False, metadata={"fit": json.dumps(about)})


def _recall(file: Path, before: Tensors) -> TrainedModel:
    os.utime(file)
    state, metadata = checkpoint_reader.read_saved(file)
    about = json.loads(metadata["fit"])
    last, best = (
        {name.removeprefix(half): tensor for name, tensor in state.items() if name.startswith(half)}
        for half in ("last.", "best.")
    )
    return TrainedModel(
        before=before,
        last=last,
        best=best,
        curve=tuple((int(step), float(loss), float(score)) for step, loss, score in about["curve"]),
        diverged=about["diverged"],
        prior=tuple(about["prior"]),
        seconds=about["seconds"],
        taught=about.get("taught", 0.0),  # files of earlier versions have none
    )


def load_model(trial: Trial, fitted: TrainedModel, cache: Path) -> context.LoadedModel:
    """A trial's trained network with all that is needed to look at it."""
    one = trial.model.base
    asked = replace(one, head=RANDOM_HEAD) if str(SourceHead()) in trial.model.edits and is_mlp_head(one.head) else one
    dataset, network = training_inputs(asked, trial, cache)
    if trial.view.expected_training and trial.view.expected_training.init == "pretrained" != one.init:
        fitted = _as_if_loaded(one, fitted, network)
    return context.LoadedModel(
        fit=one,
        fitted=fitted,
        network=network,
        dataset=dataset,
        source_head=pretrained_head(one, network),
        cache=cache,
        injected_duplicates=_planted(one, cache),
    )


def _look(trial: Trial, fitted: TrainedModel, cache: Path) -> Record:
    begun = perf_counter()
    try:
        predictions, scalars = evaluate.evaluate(load_model(trial, fitted, cache), trial.model.edits, trial.view)
    except (UserError, OSError):
        raise
    except Exception as error:  # noqa: BLE001 - a crash is an answer, and leads to the verdict ERROR
        return Record(key=trial.key, error=_last_line(error), place=_place(trial))
    return Record(
        key=trial.key,
        fit=digest((trial.model.base, trial.place)),
        predictions=predictions,
        scalars={"diverged": float(fitted.diverged)} | scalars,
        curve=fitted.curve,
        seconds=perf_counter() - begun,
        fit_seconds=_cost(trial, fitted),
        place=_place(trial),
    )


def _cost(trial: Trial, fitted: TrainedModel) -> float:
    """Seconds of training behind a look: the fit's, its teacher's, and of what was trained anew to interpolate from."""
    again = fitted.begun.seconds if fitted.begun and _interpolates(trial) else 0.0
    return fitted.seconds + fitted.taught + again


def _as_if_loaded(one: TrainingSpec, fitted: TrainedModel, network: Architecture) -> TrainedModel:
    """A fit with its checkpoint as what was before, where somebody takes that to have been loaded; the head was drawn."""
    head = network.anatomy.head
    found = finished.checkpoint_tensors(network, start_checkpoint(one)).items()
    given = {name: tensor for name, tensor in found if not (backbones.is_within(name, [head]) or backbones.is_adapter(name))}
    return replace(fitted, before=fitted.before | given)
