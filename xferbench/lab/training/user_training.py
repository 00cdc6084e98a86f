"""Train a network with user code, ``train(model, data, recipe, seed) -> model``, instead of the training loop. Imports torch.

The model has pretrained weights and a new head, and is on the training device. An attribute of the function names the fields of
a recipe that the code supports; it cannot name a regularizer, because user code does not get the source data::

    def train(model, data, recipe, seed): ...
    train.supports = {"lr", "steps"}    # fields of Phase, "phases" (more than one) or "stop"

Interventions such as ``phase.trainable``, ``phase.batchnorm`` and ``recipe.init`` are values. ``str`` returns the spelling in a
suite.
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

from xferbench.core.errors import UserError, suggest
from xferbench.core.interventions import BATCHNORM_EVAL
from xferbench.core.pipeline import SUPPORTABLE_FIELDS, Recipe
from xferbench.data import user_code
from xferbench.lab.data import preprocessing
from xferbench.lab.models import backbones, batchnorm
from xferbench.lab.training import feature_cache, seeds
from xferbench.lab.training.examples import training_subset
from xferbench.lab.training.network import TrainedModel

if TYPE_CHECKING:
    from xferbench.core.pipeline import UserCode
    from xferbench.core.transforms import InputTransform
    from xferbench.core.trial import TrainingSpec
    from xferbench.lab.data.datasets import Dataset
    from xferbench.lab.training.examples import TrainingSubset
    from xferbench.lab.training.network import Architecture, Tensors

WRAPPER_PREFIXES = ("_orig_mod.", "module.")  # of torch.compile and DataParallel


@dataclass(frozen=True, slots=True, kw_only=True)
class UserExamples:
    """The data that the code gets: preprocessed images [n, 3, H, W] float32 with labels [n], on the CPU.

    Attributes:
        train: the training examples.
        validation: the validation examples.
        classes: the class names, in the order of the labels.
    """

    train: TensorDataset
    validation: TensorDataset
    classes: tuple[str, ...]


def supported_fields(code: UserCode) -> tuple[str, ...]:
    """Return the recipe fields that training code supports, in the order of :data:`xferbench.core.pipeline.SUPPORTABLE_FIELDS`.

    Raises:
        UserError: if the code has no such attribute, or names an unknown field.
        UserCodeError: if its module raises.
    """
    declared = getattr(user_code.load_callable(code), "supports", None)
    name = code.spec.rpartition(":")[2]
    what, do = f"{code.spec}: the attribute supports", f'add below the function: {name}.supports = {{"lr", "steps"}}'
    expected = "a set of recipe fields, which may be empty: " + ", ".join(SUPPORTABLE_FIELDS)
    if not isinstance(declared, set | frozenset | list | tuple):
        raise UserError(what, found="nothing" if declared is None else repr(declared)[:80], expected=expected, do=do)
    for field in declared:
        if field not in SUPPORTABLE_FIELDS:
            raise UserError(what, found=repr(field), expected=suggest(str(field), SUPPORTABLE_FIELDS))
    return tuple(field for field in SUPPORTABLE_FIELDS if field in declared)


def train_with_user_code(spec: TrainingSpec, network: Architecture, start: Tensors, dataset: Dataset) -> TrainedModel:
    """Train a network with user code. Seed all global random streams before, and restore them afterwards.

    ``last`` and ``best`` are both the returned network. The curve has one row: the steps of the recipe, the mean cross-entropy
    on the training images in evaluation mode, and the accuracy on validation.

    Raises:
        UserCodeError: if the code raises, or moves tensors that it must leave frozen.
        UserError: if the code returns no network, or another one.
    """
    procedure = spec.procedure
    assert procedure.training is not None
    start_time = perf_counter()
    (train_images, train_labels), validation = _split(dataset, training_subset(dataset, spec))
    data = UserExamples(
        train=_preprocess(train_images, train_labels, spec.data.preprocessing),
        validation=_preprocess(*validation, spec.data.preprocessing),
        classes=dataset.classes,
    )
    settings: dict[str, Any] = {
        "init": spec.network.init,
        "head": spec.network.head,
        "regularizer": procedure.regularizer,
        "augment": procedure.augment,
        "stop": procedure.stop,
    }
    recipe = Recipe(phases=procedure.phases, **settings)
    model = _copy_network(network, start)
    with seeds.seed_global_streams(seeds.torch_seed(spec.seed, seeds.ORDER)), torch.enable_grad():
        returned = user_code.call_user_code(procedure.training, model.train(), data, recipe, spec.seed)
    last = _read_tensors(returned, start, procedure.training)
    _check_frozen(spec, procedure.training, network, start, last)
    model = _copy_network(network, last).eval()
    loss, _ = _evaluate(model, data.train, network.device)
    _, accuracy = _evaluate(model, data.validation, network.device)
    is_finite = all(bool(tensor.isfinite().all()) for tensor in last.values() if tensor.is_floating_point())
    return TrainedModel(
        before=start,
        last=last,
        best=last,
        curve=((sum(phase.steps for phase in procedure.phases), loss, accuracy),),
        diverged=not (np.isfinite(loss) and is_finite),
        prior=tuple((np.bincount(train_labels, minlength=len(dataset.classes)) / len(train_labels)).tolist()),
        seconds=perf_counter() - start_time,
    )


def _split(dataset: Dataset, subset: TrainingSubset) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Return images and labels for training, and for validation: the dataset's own validation set if it has one."""
    validation = (dataset.train.images[subset.validation], dataset.train.labels[subset.validation])
    if dataset.validation is not None:
        validation = (dataset.validation.images, dataset.validation.labels)
    return (subset.split.images[subset.index], subset.labels), validation


def _preprocess(images: np.ndarray, labels: np.ndarray, transform: InputTransform) -> TensorDataset:
    pixels = torch.from_numpy(np.array(images))
    return TensorDataset(preprocessing.to_tensor(pixels, transform), torch.from_numpy(np.array(labels)).long())


def _copy_network(network: Architecture, tensors: Tensors) -> nn.Module:
    """Copy a network and set its tensors."""
    model: nn.Module = deepcopy(network.module).to(network.device)
    model_tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for name, tensor in model_tensors.items():
            tensor.copy_(tensors[name])
    return model


def _read_tensors(returned: object, start: Tensors, code: UserCode) -> Tensors:
    """Return the tensors of a trained network by their original names.

    Raises:
        UserError: if this is no network, or its tensors have other names or shapes.
    """
    expected = "the same network, trained"
    if not isinstance(returned, nn.Module):
        raise UserError(f"{code.spec}: returned no network", found=f"a {type(returned).__name__}", expected=expected)
    named_tensors = (*returned.named_parameters(), *returned.named_buffers())
    tensors = {name: tensor.detach().cpu().clone() for name, tensor in named_tensors}
    for prefix in WRAPPER_PREFIXES:
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    differing = [name for name in {**start, **tensors} if name not in start or name not in tensors]
    differing += [name for name in start if name in tensors and tensors[name].shape != start[name].shape]
    if differing:
        names = ", ".join(sorted(differing)[:5])
        found = f"tensors missing, new or of another shape: {names} ({len(differing)} in total)"
        raise UserError(f"{code.spec}: returned another network", found=found, expected=expected)
    return {name: tensors[name].to(start[name].dtype) for name in start}


def _check_frozen(spec: TrainingSpec, code: UserCode, network: Architecture, before: Tensors, after: Tensors) -> None:
    """Check that tensors which no phase trains did not move, as far as the code claims to support this.

    Raises:
        UserCodeError: if a frozen tensor moved.
    """
    supported, buffers = supported_fields(code), batchnorm.statistics_names(network.module)
    frozen: set[str] = set()
    if "trainable" in supported:
        kinds = {phase.trainable for phase in spec.procedure.phases}
        trainable = set().union(*(backbones.trainable_names(network.layout, network.module, kind) for kind in kinds))
        frozen |= {name for name, _ in network.module.named_parameters()} - trainable
    if "batchnorm" in supported and all(phase.batchnorm == BATCHNORM_EVAL for phase in spec.procedure.phases):
        frozen |= buffers
    moved = [name for name in before if name in frozen and not torch.equal(before[name], after[name])]
    if moved:
        fields, tensors = ", ".join(supported), ", ".join(moved[:5])
        raise user_code.UserCodeError(f"{code.spec} says that it supports {fields}, but moved frozen {tensors}")


def _evaluate(model: nn.Module, examples: TensorDataset, device: torch.device) -> tuple[float, float]:
    """Compute the mean cross-entropy and the accuracy in evaluation mode."""
    x, y = examples.tensors
    with feature_cache.evaluation_mode(model, device):
        batches = [model(batch.to(device)).float().cpu() for batch in x.split(feature_cache.INFERENCE_BATCH)]
    logits: Tensor = torch.cat(batches)
    return float(F.cross_entropy(logits, y)), float((logits.argmax(1) == y).float().mean())
