"""Evaluates a trained network: edits its tensors, and computes predictions or a plugin's measure. Imports torch."""

from __future__ import annotations

import importlib
import zlib
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from xferbench.core.interventions import (
    OWN_HEAD,
    AdaptBatchNorm,
    BatchNormEdit,
    BatchNormEpsilon,
    Edit,
    EvalMode,
    FitClassBias,
    InterpolateCheckpoints,
    InterpolatePhase,
    OneClassBatchNorm,
    PermuteWeights,
    ProbeHead,
    RecalibrateBatchNorm,
    RefitHead,
    ResetBatchNorm,
    RestoreBatchNorm,
    SourceHead,
    TrainMode,
    TrainModeByClass,
)
from xferbench.core.pipeline import Recipe
from xferbench.core.record import MAX_CLASSES_WITH_PROBABILITIES, Predictions
from xferbench.core.transforms import Tokens
from xferbench.lab.data import datasets, domains, preprocessing, tokens
from xferbench.lab.evaluation import edits, penultimate_features
from xferbench.lab.evaluation.context import EditContext, Examples, LoadedModel, MeasureContext, TrialContext
from xferbench.lab.evaluation.examples import MAX_PROBE_EXAMPLES, training_examples, view_examples
from xferbench.lab.models import backbones, batchnorm, heads
from xferbench.lab.training import feature_cache, loop, seeds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xferbench.core.transforms import InputTransform
    from xferbench.core.trial import EvaluationSpec
    from xferbench.lab.data.datasets import Split
    from xferbench.lab.training.network import Architecture, Tensors

SERVING_BATCH = 32  # examples in a batch of a network that is served in training mode
RECALIBRATION_EXAMPLES = 128  # training images from which the BatchNorm statistics of a checkpoint are recomputed
MAX_MEASURE_EXAMPLES = 256  # training images, and test images, that a plugin's measure gets at most


def evaluate(model: LoadedModel, edits: Sequence[Edit], view: EvaluationSpec) -> tuple[Predictions | None, dict[str, float]]:
    """Compute the predictions of an edited network, or the values of a plugin's measure.

    A training that diverged predicts the class frequencies.

    Args:
        model: the trained network and its data.
        edits: the edits, in order.
        view: the specification of the evaluation.

    Returns:
        The predictions, or None for a measure and for an evaluation without examples; and scalars by name.
    """
    if view.measure != "predictions":
        module, _, function = (view.function or view.measure).partition("@")[0].partition(":")
        measure = getattr(importlib.import_module(module), function)
        values = measure(measure_context(model, edit_tensors(model, edits, view), view))
        return None, {name: float(value) for name, value in values.items()}
    if view.examples == "unique" and not len(view_examples(model, view).labels):
        return None, {}
    # In a finished network, an edit may repair values that are not finite.
    if model.trained.diverged and model.spec.network.head != OWN_HEAD:
        return _predict_class_frequencies(model, edits, view, view_examples(model, view)), {}
    return predict(model, edit_tensors(model, edits, view), edits, view)


def edit_tensors(model: LoadedModel, edits: Sequence[Edit], view: EvaluationSpec) -> Tensors:
    """Return the tensors of a network on its device, with some edits in order."""
    tensors = {"last": model.trained.last, "best": model.trained.best}[view.step]
    tensors = {name: tensor.to(model.network.device) for name, tensor in tensors.items()}
    for edit in edits:
        is_installed = bool(edit.implementation)
        tensors = _apply_installed_edit(edit, tensors, model) if is_installed else _apply_edit(edit, tensors, model, view)
    return tensors


def predict(
    model: LoadedModel, tensors: Tensors, edits: Sequence[Edit], view: EvaluationSpec
) -> tuple[Predictions, dict[str, float]]:
    """Compute the predictions of some tensors.

    Args:
        model: the trained network and its data.
        tensors: the tensors of the network, with all edits.
        edits: the edits that the tensors contain already.
        view: the specification of the evaluation.

    Returns:
        The predictions; and ``diverged`` if a logit is not finite. They are then the class frequencies.
    """
    split = view_examples(model, view)
    kinds = set(map(type, edits))
    if {RefitHead, ProbeHead} & kinds:
        logits = _refitted_logits(model, tensors, view, split, on_target=ProbeHead in kinds)
    else:
        logits = _compute_logits(model, tensors, edits, view, split)
    if FitClassBias in kinds and np.isfinite(logits).all():
        logits = logits + _fitted_bias(model, tensors, view, logits, split)
    if not np.isfinite(logits).all():
        return _predict_class_frequencies(model, edits, view, split), {"diverged": 1.0}
    p = np.exp(logits - logits.max(1, keepdims=True))
    return make_predictions(p / p.sum(1, keepdims=True), split), {}


def measure_context(model: LoadedModel, tensors: Tensors, view: EvaluationSpec) -> MeasureContext:
    """Return the argument of a plugin's measure, where ``tensors`` are those of the network with all edits."""
    train = training_examples(model, model.dataset, MAX_MEASURE_EXAMPLES)
    test = datasets.load_dataset(model.spec.data.dataset, view.preprocessing, None, model.cache).test
    initial_network = model.spec.network
    return MeasureContext(
        before=model.trained.before,
        after=tensors,
        network=model.network,
        train=_examples(train, model.spec.data.preprocessing),
        test=_examples(test, view.preprocessing, MAX_MEASURE_EXAMPLES),
        mode=view.mode,
        trial=TrialContext(
            spec=model.spec,
            view=view,
            dataset=model.dataset,
            cache=model.cache,
            injected_duplicates=model.injected_duplicates,
        ),
        expected_training=view.expected_training or Recipe(phases=model.spec.procedure.phases, stop=view.step),
        source_head=model.source_head,
        build_random=partial(
            heads.build_with_head,
            initial_network.arch,
            model.network.layout,
            initial_network.head,
            initial_network.code,
            initial_network.pooling,
            initial_network.finished_head,
        ),
    )


def _examples(split: Split, transform: InputTransform, count: int | None = None) -> Examples:
    """Return the first examples of a split as tensors, or all of them."""
    images, labels = torch.from_numpy(np.array(split.images[:count])), torch.from_numpy(split.labels[:count])
    return Examples(images=images, labels=labels, preprocessing=transform)


def _predict_class_frequencies(model: LoadedModel, edits: Sequence[Edit], view: EvaluationSpec, split: Split) -> Predictions:
    """Predict the class frequencies for every example: those of the training subset, or of the domain for its head."""
    has_domain_head = any(isinstance(edit, SourceHead | RefitHead | ProbeHead) for edit in edits)
    if view.domain is None or not has_domain_head:
        frequencies = np.array(model.trained.prior)
    else:
        dataset = domains.load_domain(view.domain, view.preprocessing, model.cache)
        outputs = max(len(next(iter(model.source_head.values()))), int(dataset.test.labels.max()) + 1)
        labels = dataset.train.labels if len(dataset.train.labels) else dataset.test.labels
        frequencies = np.bincount(labels, minlength=outputs) / len(labels)
    return make_predictions(np.tile(frequencies, (len(split.labels), 1)), split)


def _apply_edit(edit: Edit, tensors: Tensors, model: LoadedModel, view: EvaluationSpec) -> Tensors:
    network = model.network
    if isinstance(edit, SourceHead):
        body = {name: tensor for name, tensor in tensors.items() if not backbones.is_within(name, [network.layout.head])}
        return body | {name: tensor.to(network.device) for name, tensor in model.source_head.items()}
    if isinstance(edit, RefitHead | ProbeHead | FitClassBias):
        return tensors  # a new head, or a bias, is fitted to what these tensors compute: see predict
    if isinstance(edit, AdaptBatchNorm | BatchNormEdit):
        return tensors | _new_statistics(edit, tensors, model, view)
    if isinstance(edit, InterpolatePhase | InterpolateCheckpoints):
        return _interpolate(edit, tensors, model)
    if isinstance(edit, PermuteWeights):
        return edits.permute_weights(tensors, network)
    layer = heads.last_layer(network.module, network.layout.head)
    return edits.edit_head(edit, tensors, layer, partial(_calibration_logits, model, tensors, view))


def _apply_installed_edit(edit: Edit, tensors: Tensors, model: LoadedModel) -> Tensors:
    """Apply an edit of an installed package, which is the same in every view."""
    rng = seeds.numpy_stream(model.spec.seed, seeds.INTERVENTION, zlib.crc32(edit.spelling.encode()))
    context = EditContext(
        before={name: tensor.to(model.network.device) for name, tensor in model.trained.before.items()},
        network=model.network,
        train=_examples(training_examples(model, model.dataset), model.spec.data.preprocessing),
    )
    return edits.apply_installed(edit, tensors, rng, context)


def _interpolate(edit: InterpolatePhase | InterpolateCheckpoints, tensors: Tensors, model: LoadedModel) -> Tensors:
    """Interpolate from the start of the last phase, or from the checkpoint."""
    network, start = model.network, model.trained.before
    if isinstance(edit, InterpolatePhase):
        assert model.trained.begun is not None, "the caller trains up to the start of the last phase"
        start = model.trained.begun.last
    start = {name: tensor.to(network.device) for name, tensor in start.items()}
    if isinstance(edit, InterpolatePhase):
        return edits.interpolate_phase(start, tensors, edit.share)
    return edits.interpolate_checkpoints(start, tensors, edit.share, network.layout.head)


def _new_statistics(
    edit: AdaptBatchNorm | BatchNormEdit, tensors: Tensors, model: LoadedModel, view: EvaluationSpec
) -> Tensors:
    """Return BatchNorm's running statistics by name, as an edit sets them."""
    if isinstance(edit, AdaptBatchNorm):
        return _domain_statistics(tensors, model, view)
    network, names = model.network, batchnorm.statistics_names(model.network.module)
    if isinstance(edit, RestoreBatchNorm):
        before = model.trained.before  # lacks a head of another shape
        return {name: before[name].to(network.device) for name in names & before.keys()}
    if isinstance(edit, BatchNormEpsilon):
        return batchnorm.variances_for_epsilon(network.module, tensors, edit.epsilon)
    if isinstance(edit, ResetBatchNorm):
        return edits.initial_statistics({name: tensors[name] for name in names})
    # The order is random, because batches of a sorted class folder would have one class each.
    split = training_examples(model, model.dataset, RECALIBRATION_EXAMPLES if model.spec.network.head == OWN_HEAD else None)
    images = split.images
    if isinstance(edit, OneClassBatchNorm):
        images = images[split.labels == np.bincount(split.labels).argmax()]
    return recalibrate(torch.from_numpy(np.array(images)), model.spec.data.preprocessing, tensors, network)


def _domain_statistics(tensors: Tensors, model: LoadedModel, view: EvaluationSpec) -> Tensors:
    """Compute the running statistics on training images of the evaluation's domain (AdaBN, Li et al. 2016)."""
    if view.domain is None:
        dataset = datasets.load_dataset(model.spec.data.dataset, view.preprocessing, view.limit, model.cache)
        images = training_examples(model, dataset, MAX_PROBE_EXAMPLES).images
    else:
        images = domains.unlabeled_split(view.domain.data, view.preprocessing, model.cache).images
    return recalibrate(torch.from_numpy(np.array(images)), view.preprocessing, tensors, model.network)


def recalibrate(images: Tensor, transform: InputTransform, tensors: Tensors, network: Architecture) -> Tensors:
    """Compute the running statistics on images [n, …], in batches of one size because each batch counts equally."""
    on_device = images.to(network.device)
    batches = on_device.tensor_split(max(1, len(on_device) // feature_cache.INFERENCE_BATCH))
    inputs = (preprocessing.to_tensor(batch, transform) for batch in batches)
    return batchnorm.recalibrate(network.module, tensors, inputs)


def _calibration_logits(model: LoadedModel, tensors: Tensors, view: EvaluationSpec) -> tuple[np.ndarray, np.ndarray]:
    """Compute logits [n, outputs] and labels [n] of the examples that a repair is fitted to.

    They are the validation examples of a network trained here, and the first half of the test set for a checkpoint.
    """
    split = view_examples(model, replace(view, examples=_calibration_split(model), domain=None))
    return _compute_logits(model, tensors, (RecalibrateBatchNorm(),), view, split), split.labels


def _calibration_split(model: LoadedModel) -> str:
    return "screen" if model.spec.network.head == OWN_HEAD else "validation"


def _fitted_bias(model: LoadedModel, tensors: Tensors, view: EvaluationSpec, logits: np.ndarray, split: Split) -> np.ndarray:
    """Compute the fitted bias [outputs] of each class; the logits of the evaluation are used if they are the fitted ones."""
    if view.domain is None and view.examples == _calibration_split(model):
        return edits.fit_class_bias(logits, split.labels)
    return edits.fit_class_bias(*_calibration_logits(model, tensors, view))


def _refitted_logits(
    model: LoadedModel, tensors: Tensors, view: EvaluationSpec, split: Split, *, on_target: bool
) -> np.ndarray:
    """Compute logits [n, outputs] float64 of a linear head that is fitted to training images.

    The images are those of the target, or those of the evaluation's domain.
    """
    if on_target:
        memory, memory_transform = training_examples(model, model.dataset, MAX_PROBE_EXAMPLES), model.spec.data.preprocessing
    else:
        assert view.domain is not None, "a head is refitted on a domain"
        dataset, memory_transform = domains.load_domain(view.domain, view.preprocessing, model.cache), view.preprocessing
        memory = domains.memory_split(dataset)
    x, evaluation_x = (
        penultimate_features.head_inputs(model.network, tensors, torch.from_numpy(np.array(examples.images)), transform)
        for examples, transform in ((memory, memory_transform), (split, view.preprocessing))
    )
    outputs = int(max(memory.labels.max(), split.labels.max())) + 1
    weight, bias = penultimate_features.fit_logistic_regression(x, torch.from_numpy(memory.labels), outputs)
    logits: np.ndarray = (evaluation_x.double() @ weight.T + bias).numpy()
    return logits


def _compute_logits(
    model: LoadedModel, tensors: Tensors, edits: Sequence[Edit], view: EvaluationSpec, split: Split
) -> np.ndarray:
    """Compute logits [n, outputs] float64.

    The activations below the frozen cut of all phases are computed once for all networks that share them.
    """
    network = model.network
    images = torch.from_numpy(np.array(split.images))
    if isinstance(view.mode, TrainMode | TrainModeByClass):
        order = serving_order(split.labels, by_class=isinstance(view.mode, TrainModeByClass))
        training_logits = batched_logits(network, tensors, images, view.preprocessing, order, training=True)
        return training_logits.double().numpy()  # type: ignore[no-any-return] # torch is Any here
    if not isinstance(view.mode, EvalMode):
        raise TypeError(f"unknown serving mode: {view.mode}")
    may_differ_below_cut = model.spec.procedure.training is not None or any(
        isinstance(edit, BatchNormEdit | AdaptBatchNorm) for edit in edits
    )
    cuts = (loop.frozen_cut(phase, network.layout) for phase in model.spec.procedure.phases)
    cut = 0 if may_differ_below_cut else min(cuts, default=len(network.layout.groups))
    lower, upper = loop.split_phase_model(network, cut, view.preprocessing)
    if lower is None:
        x = images
    else:
        x = feature_cache.compute_activations(lower, tensors, images, view.preprocessing, network.device, model.cache)
    upper_tensors = {name: tensors[name] for name in upper.names}
    with feature_cache.evaluation_mode(upper.module, network.device):
        batches = x.split(feature_cache.INFERENCE_BATCH)
        batch_logits = [upper(upper_tensors, batch.to(network.device)).float().cpu() for batch in batches]
    logits: np.ndarray = torch.cat(batch_logits).double().numpy()
    return logits


def serving_order(labels: np.ndarray, *, by_class: bool) -> np.ndarray:
    """Return the order [n] in which examples are served: shuffled, or class after class."""
    order = np.random.default_rng(0).permutation(len(labels))
    return order[np.argsort(labels[order], kind="stable")] if by_class else order


def batched_logits(
    network: Architecture,
    tensors: Tensors,
    images: Tensor,
    transform: InputTransform,
    order: np.ndarray,
    *,
    training: bool,
    size: int = SERVING_BATCH,
) -> Tensor:
    """Compute the logits of images that are served in batches.

    The given tensors do not change, because running statistics move on a copy.

    Args:
        network: the structure and device of the network.
        tensors: its parameters and buffers, on that device.
        images: uint8 [n, …].
        transform: the preprocessing.
        order: the order [n] of the images.
        training: whether the whole network is in training mode, as if ``.eval()`` was never called. BatchNorm then uses the
            statistics of each batch, and dropout drops units, with a fixed seed.
        size: the minimum number of images in a batch, if there are as many.

    Returns:
        The logits [n, outputs] float32 in the order of ``images``, on the CPU.
    """
    index = torch.from_numpy(order)
    copies = {name: tensor.clone() for name, tensor in tensors.items()}
    batch_logits = []
    with seeds.seed_global_streams(0), feature_cache.evaluation_mode(network.module, network.device):
        network.module.train(training)
        for batch_index in index.tensor_split(max(1, len(index) // size)):
            examples = images[batch_index]
            if isinstance(transform, Tokens):  # as a service pads: to the longest text of the batch
                examples = tokens.trim_padding(transform, examples)
            batch = preprocessing.to_tensor(examples.to(network.device), transform)
            batch_logits.append(functional_call(network.module, copies, (batch,)).float().cpu())
    return torch.cat(batch_logits)[index.argsort()]


def make_predictions(p: np.ndarray, split: Split) -> Predictions:
    """Convert probabilities [n, outputs] of some examples to the form in which they are stored."""
    stored = p if p.shape[1] <= MAX_CLASSES_WITH_PROBABILITIES else p[:, :0]
    return Predictions(
        example=split.example,
        label=split.labels.astype(np.int32),
        predicted=p.argmax(1).astype(np.int32),
        group=split.groups.astype(np.int32),
        p_true=p[np.arange(len(p)), split.labels].astype(np.float32),
        p_max=p.max(1).astype(np.float32),
        sum_p2=(p**2).sum(1).astype(np.float32),
        probabilities=stored.astype(np.float16),
    )
