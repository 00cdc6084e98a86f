"""Computes records of trials: trains networks or loads their weights, and evaluates them. Imports torch; writes the cache."""

from __future__ import annotations

import json
import platform
import traceback
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from xferbench.core import cached_files
from xferbench.core.canonical import digest
from xferbench.core.errors import MEMORY_ADVICE, UserError, is_out_of_memory
from xferbench.core.interventions import OWN_HEAD, PRETRAINED, RANDOM_HEAD, TRANSFER_ALL, Head, InterpolatePhase, SourceHead
from xferbench.core.pipeline import WeightsFile
from xferbench.core.record import Record
from xferbench.core.strategies import is_mlp_head
from xferbench.core.trial import TrainingSpec
from xferbench.data import user_code
from xferbench.lab.data import datasets, domains, shortcut_cue
from xferbench.lab.evaluation import context, evaluate, leakage
from xferbench.lab.models import added_parameters, backbones, checkpoint_reader, checkpoints, finished, heads, initialization
from xferbench.lab.training import loop, seeds, user_training
from xferbench.lab.training.network import Architecture, AuxiliaryInputs, TrainedModel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

    from xferbench.core.finished_head import FinishedHead
    from xferbench.core.interventions import Trainable
    from xferbench.core.pipeline import UserCode
    from xferbench.core.trial import ComputeContext, Trial
    from xferbench.lab.data.batch import Shape
    from xferbench.lab.data.datasets import Dataset
    from xferbench.lab.training.network import Tensors


def run_trials(trials: Sequence[Trial], missing: frozenset[str], cache: Path) -> tuple[list[Record], int]:
    """Compute a record for each missing trial of a group.

    The trainings of a group differ only in their seed, and run together even if some of them are not needed. A crash becomes
    records with ``error``.

    Args:
        trials: the trials of the group.
        missing: the keys of the trials that need a record.
        cache: the cache folder of the store.

    Returns:
        The records, and the number of networks that were trained.

    Raises:
        UserError: if the input of the user is wrong. Other groups would fail in the same way.
        OSError: if the disk is full.
    """
    specs = tuple(dict.fromkeys(trial.model.base for trial in trials))
    missing_trials = [trial for trial in trials if trial.key in missing]
    try:
        models, training_count = _trained_models(specs, trials[0], cache)
        if any(map(_interpolates_phase, trials)):
            models = _with_phase_start(specs, models, trials[0], cache)
    except (UserError, OSError):
        raise
    except Exception as error:  # noqa: BLE001 - a crash is a result, and leads to the verdict ERROR
        return [_crash_record(trial, error) for trial in missing_trials], 0
    model_by_spec: dict[TrainingSpec, TrainedModel] = dict(zip(specs, models, strict=True))
    return [_evaluate_trial(trial, model_by_spec[trial.model.base], cache) for trial in missing_trials], training_count


def _interpolates_phase(trial: Trial) -> bool:
    return any(isinstance(edit, InterpolatePhase) for edit in trial.model.edits)


def _crash_record(trial: Trial, error: Exception) -> Record:
    """Return the record of a crash, whose message names the line."""
    if isinstance(error, user_code.UserCodeError):
        message = str(error)
    else:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        message = f"{type(error).__name__}: {error} ({Path(frame.filename).name}:{frame.lineno})"
    if is_out_of_memory(message):
        message = f"out of memory: {MEMORY_ADVICE}; {message}"
    return Record(key=trial.key, error=message, place=_describe_machine(trial))


def _describe_machine(trial: Trial) -> str:
    return f"{platform.node()} {platform.processor() or platform.machine()} {trial.context.device}"


@lru_cache(maxsize=4)
def _network(
    arch: str,
    code: UserCode | None,
    pooling: str,
    classes: int,
    shape: Shape,
    device: str,
    cache: Path,
    head: Head = RANDOM_HEAD,
    added: tuple[Trainable, ...] = (),
    finished_head: FinishedHead | None = None,
) -> Architecture:
    module = backbones.build(arch, classes, code, pooling).eval()
    if finished_head:
        heads.replace_by_finished(module, finished_head, classes)
    layout = backbones.layer_layout(module, shape, finished_head.place if finished_head else "")
    if is_mlp_head(head):
        heads.replace_head(module, layout, head)
        layout = replace(layout, parameters=sum(parameter.numel() for parameter in module.parameters()))
    added_parameters.insert(module, layout, shape, added)
    return Architecture(module=module, layout=layout, device=torch.device(device), cache=cache)


@lru_cache(maxsize=4)
def _read_checkpoint(path: str, digest_: str) -> dict[str, Tensor]:
    del digest_  # part of the cache's key, because the file may have been replaced
    return checkpoint_reader.read_checkpoint(Path(path))


def training_inputs(spec: TrainingSpec, trial: Trial, cache: Path) -> tuple[Dataset, Architecture]:
    """Return the dataset that a network is trained on, and the structure of the network."""
    data, initial_network = spec.data, spec.network
    dataset = datasets.load_dataset(data.dataset, data.preprocessing, None, cache)
    if data.labels == "shuffled":
        dataset = datasets.with_shuffled_labels(dataset, spec.seed)
    if data.has_cue:
        dataset = shortcut_cue.correlate_with_class(dataset)
    if data.injected_duplicates:
        dataset = leakage.inject_duplicates(dataset, data, spec.seed)
    shape = datasets.input_shape(dataset, data.preprocessing)
    head = initial_network.head if is_mlp_head(initial_network.head) else RANDOM_HEAD
    added = added_parameters.kinds(spec.procedure.phases)
    classes, device = len(dataset.classes), trial.context.device
    build = partial(_network, initial_network.arch, initial_network.code, initial_network.pooling)
    if finished_head := initial_network.finished_head:
        outputs = classes if initial_network.sigmoid else finished_head.outputs
        return dataset, build(outputs, shape, device, cache, head, added, finished_head)
    network = build(classes, shape, device, cache, head, added)
    if initial_network.head == OWN_HEAD and not initial_network.sigmoid:
        outputs = finished.head_outputs(network.module, network.layout.head, start_checkpoint(spec))
        network = build(outputs, shape, device, cache, head, added)
    return dataset, network


def _injected_test_indices(spec: TrainingSpec, cache: Path) -> np.ndarray | None:
    """Return the test-set indices [k] of the examples that were added to training on purpose, or None."""
    if not spec.data.injected_duplicates:
        return None
    dataset = datasets.load_dataset(spec.data.dataset, spec.data.preprocessing, None, cache)
    test_index, _ = leakage.choose_injected(dataset, spec.data.injected_duplicates, spec.seed)
    return test_index


def start_checkpoint(spec: TrainingSpec) -> Mapping[str, Tensor]:
    """Return the tensors of the checkpoint that a training starts from; empty if there is none."""
    start = spec.network.start
    return _read_checkpoint(start.path, start.digest) if isinstance(start, WeightsFile) else {}


def start_tensors(spec: TrainingSpec, network: Architecture, trial: Trial, cache: Path) -> Tensors:
    """Return the tensors that a training starts from, on the CPU. They depend on its seed, and on nothing that ran before.

    Raises:
        RuntimeError: if the training of the start diverged.
    """
    initial_network = spec.network
    if isinstance(initial_network.start, TrainingSpec):
        (model,), _ = _trained_models((initial_network.start,), trial, cache)
        if model.diverged:
            raise RuntimeError("the training that this one starts from diverged")
        state: dict[str, Tensor] | None = model.last
    else:
        state = dict(start_checkpoint(spec)) if initial_network.start else None
    # Layers that are not transferred must not begin with the tensors that the source network began with.
    stream = () if initial_network.transferred == TRANSFER_ALL else (1,)
    tensors = initialization.initial_tensors(
        initial_network.arch,
        network.layout,
        state,
        init=initial_network.init,
        head=initial_network.head,
        seeds=(seeds.torch_seed(spec.seed, seeds.INIT, *stream), seeds.torch_seed(spec.seed, seeds.HEAD, *stream)),
        code=initial_network.code,
        pooling=initial_network.pooling,
        transferred=initial_network.transferred,
    )
    return tensors | added_parameters.initial_tensors(network.module, tensors, spec.seed)


def _trained_models(specs: Sequence[TrainingSpec], trial: Trial, cache: Path) -> tuple[list[TrainedModel], int]:
    """Return the networks of a group, and how many were trained.

    They come from the cache of weights only if all are there, because the networks of a group are trained together.
    """
    dataset, network = training_inputs(specs[0], trial, cache)
    if specs[0].network.head == OWN_HEAD:
        return [_load_finished(spec, network, dataset) for spec in specs], 0
    starts = [start_tensors(spec, network, trial, cache) for spec in specs]
    paths = [weights_path(spec, trial.context, cache) for spec in specs]
    stored = [
        cached_files.read_or_discard(path, partial(_load_weights, before=before))
        for path, before in zip(paths, starts, strict=True)
    ]
    if all(stored):
        return [model for model in stored if model is not None], 0
    if specs[0].procedure.training:
        models = [
            user_training.train_with_user_code(spec, network, before, dataset)
            for spec, before in zip(specs, starts, strict=True)
        ]
    else:
        auxiliary = _with_teachers(_auxiliary_inputs(specs[0], network, cache), specs, trial, cache)
        models = loop.train(specs, network, starts, dataset, auxiliary)
    for path, model in zip(paths, models, strict=True):
        _save_weights(path, model)
    return models, len(models)


def _load_finished(spec: TrainingSpec, network: Architecture, dataset: Dataset) -> TrainedModel:
    """Load an audited checkpoint, and the checkpoint before its training if there is one."""
    file = spec.network.before
    before = _read_checkpoint(file.path, file.digest) if file else None
    return finished.trained_model(network, start_checkpoint(spec), before, dataset, spec.network.finished_head)


def _with_phase_start(
    specs: Sequence[TrainingSpec], models: Sequence[TrainedModel], trial: Trial, cache: Path
) -> list[TrainedModel]:
    """Add the start of the last phase to each network of a group.

    The start is trained again to the same bits, so that only interpolation pays for it and the files of weights stay as they
    are. The last phase keeps its place with no steps, because what it adds exists from the first phase on.
    """
    *earlier, last = specs[0].procedure.phases
    phases = (*earlier, replace(last, steps=0, warmup=0))
    shorter = [replace(spec, procedure=replace(spec.procedure, phases=phases)) for spec in specs]
    starts, _ = _trained_models(shorter, trial, cache)
    return [replace(model, begun=start) for model, start in zip(models, starts, strict=True)]


def _auxiliary_inputs(spec: TrainingSpec, network: Architecture, cache: Path) -> AuxiliaryInputs | None:
    """Return the inputs of a regularizer, without teachers; None without a regularizer."""
    if not spec.procedure.regularizer:
        return None
    data = spec.data
    memory = domains.memory_split(domains.load_domain(data.source, data.preprocessing, cache)) if data.source else None
    unlabeled = domains.unlabeled_split(data.unlabeled, data.preprocessing, cache) if data.unlabeled else None
    return AuxiliaryInputs(head=pretrained_head(spec, network), memory=memory, unlabelled=unlabeled)


def _with_teachers(
    auxiliary: AuxiliaryInputs | None, specs: Sequence[TrainingSpec], trial: Trial, cache: Path
) -> AuxiliaryInputs | None:
    """Add the teachers of a group, and the network with a plain head, to the inputs of its regularizer."""
    if auxiliary is None:
        return None
    _, plain = training_inputs(_with_plain_head(specs[0]), trial, cache)
    teacher_specs = tuple(spec.procedure.teacher for spec in specs if spec.procedure.teacher)
    teachers, _ = _trained_models(teacher_specs, trial, cache) if teacher_specs else ([], 0)
    if any(teacher.diverged for teacher in teachers):
        raise RuntimeError("the training of the teacher diverged")
    return replace(auxiliary, plain=plain, teachers=tuple(teachers))


def _with_plain_head(spec: TrainingSpec) -> TrainingSpec:
    return replace(spec, network=replace(spec.network, head=RANDOM_HEAD, finished_head=None))


def pretrained_head(spec: TrainingSpec, network: Architecture) -> Tensors:
    """Return the head of the pretrained checkpoint; empty if there is no checkpoint, or it has no head."""
    initial_network = spec.network
    checkpoint = initial_network.before if initial_network.head == OWN_HEAD else initial_network.start
    if checkpoint is None or isinstance(checkpoint, TrainingSpec):
        return {}
    state = _read_checkpoint(checkpoint.path, checkpoint.digest)
    return checkpoints.head_tensors(network.module, state, network.layout.head)


def weights_path(spec: TrainingSpec, compute: ComputeContext, cache: Path) -> Path:
    """Return the path of the weights of a trained network in the cache."""
    return cache / "weights" / f"{digest((spec, compute))[:40]}.safetensors"


def _save_weights(path: Path, model: TrainedModel) -> None:
    metadata = {
        "curve": model.curve,
        "diverged": model.diverged,
        "prior": model.prior,
        "seconds": model.seconds,
        "taught": model.taught,
    }
    tensors = {f"last.{name}": tensor for name, tensor in model.last.items()}
    tensors |= {f"best.{name}": tensor for name, tensor in model.best.items()}
    checkpoints.save_tensors(tensors, path, half=False, metadata={"fit": json.dumps(metadata)})


def _load_weights(path: Path, before: Tensors) -> TrainedModel:
    cached_files.mark_used(path)
    state, file_metadata = checkpoint_reader.read_saved(path)
    metadata = json.loads(file_metadata["fit"])
    last, best = (
        {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        for prefix in ("last.", "best.")
    )
    return TrainedModel(
        before=before,
        last=last,
        best=best,
        curve=tuple((int(step), float(loss), float(score)) for step, loss, score in metadata["curve"]),
        diverged=metadata["diverged"],
        prior=tuple(metadata["prior"]),
        seconds=metadata["seconds"],
        taught=metadata.get("taught", 0.0),  # missing in files of earlier versions
    )


def load_model(trial: Trial, trained: TrainedModel, cache: Path) -> context.LoadedModel:
    """Return the trained network of a trial with everything that its evaluation needs."""
    spec = trial.model.base
    has_other_head = is_mlp_head(spec.network.head) or spec.network.finished_head is not None
    needs_plain_head = SourceHead() in trial.model.edits and has_other_head
    dataset, network = training_inputs(_with_plain_head(spec) if needs_plain_head else spec, trial, cache)
    if trial.view.expected_training and trial.view.expected_training.init == PRETRAINED != spec.network.init:
        trained = _as_if_pretrained(spec, trained, network)
    return context.LoadedModel(
        spec=spec,
        trained=trained,
        network=network,
        dataset=dataset,
        source_head=pretrained_head(spec, network),
        cache=cache,
        injected_duplicates=_injected_test_indices(spec, cache),
    )


def _evaluate_trial(trial: Trial, trained: TrainedModel, cache: Path) -> Record:
    start = perf_counter()
    try:
        predictions, scalars = evaluate.evaluate(load_model(trial, trained, cache), trial.model.edits, trial.view)
    except (UserError, OSError):
        raise
    except Exception as error:  # noqa: BLE001 - a crash is a result, and leads to the verdict ERROR
        return _crash_record(trial, error)
    return Record(
        key=trial.key,
        fit=digest((trial.model.base, trial.context)),
        predictions=predictions,
        scalars={"diverged": float(trained.diverged)} | scalars,
        curve=trained.curve,
        seconds=perf_counter() - start,
        fit_seconds=_training_seconds(trial, trained),
        place=_describe_machine(trial),
    )


def _training_seconds(trial: Trial, trained: TrainedModel) -> float:
    """Return the seconds of training that an evaluation needs, with those of the teacher and of the start of a phase."""
    phase_start = trained.begun.seconds if trained.begun and _interpolates_phase(trial) else 0.0
    return trained.seconds + trained.taught + phase_start


def _as_if_pretrained(spec: TrainingSpec, trained: TrainedModel, network: Architecture) -> TrainedModel:
    """Set the tensors before training to those of the checkpoint, except for the head and what the recipe adds."""
    head = network.layout.head
    tensors = {
        name: tensor
        for name, tensor in finished.checkpoint_tensors(network, start_checkpoint(spec), spec.network.finished_head).items()
        if not (backbones.is_within(name, [head]) or backbones.is_added(name))
    }
    return replace(trained, before=trained.before | tensors)
