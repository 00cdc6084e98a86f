"""From a fitted network to what a view sees of it: its tensors edited, the examples, predictions or a plugin's scalars."""

from __future__ import annotations

import importlib
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from xferbench.core.interventions import (
    BUILT_IN,
    OWN_HEAD,
    AdaptBatchNorm,
    BatchNormEdit,
    Edit,
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
    find_kind,
)
from xferbench.core.pipeline import Recipe
from xferbench.core.record import MAX_CLASSES_WITH_PROBABILITIES, Predictions
from xferbench.lab.data import datasets, domains, preprocessing, shortcut_cue
from xferbench.lab.evaluation import edits, leakage, penultimate_features
from xferbench.lab.evaluation.context import LoadedModel, MeasureContext
from xferbench.lab.models import backbones, batchnorm, heads
from xferbench.lab.training import feature_cache, loop, seeds
from xferbench.lab.training.examples import training_subset

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xferbench.core.pipeline import InputTransform
    from xferbench.core.trial import EvaluationSpec
    from xferbench.lab.data.datasets import Dataset, Split
    from xferbench.lab.training.network import Architecture, Tensors

SERVING_BATCH = 32  # examples of a batch where a network is served in training mode
RECALIBRATION_EXAMPLES = 128  # training images that a finished network's statistics are computed anew from
MAX_PROBE_EXAMPLES = 2000  # training images at most that a probe is fitted on, or that are looked at
MAX_MEASURE_EXAMPLES = 256  # examples at most that a plugin's own measure is given


def evaluate(model: LoadedModel, words: Sequence[str], view: EvaluationSpec) -> tuple[Predictions | None, dict[str, float]]:
    """Predictions of a model edited as some words say, under a view; or the scalars of the view's measure."""
    if view.measure != "predictions":
        module, _, function = (view.function or view.measure).partition("@")[0].partition(":")
        found = getattr(importlib.import_module(module), function)(_given(model, edit_tensors(model, words, view), view))
        return None, {name: float(value) for name, value in found.items()}
    if view.examples == "unique" and not len(view_examples(model, view).labels):
        return None, {}
    if model.fitted.diverged and model.fit.head != OWN_HEAD:  # an edit may mend what is not finite in a finished network
        split = view_examples(model, view)
        return make_predictions(np.tile(_prior(model, words, view), (len(split.labels), 1)), split), {}
    return predict(model, edit_tensors(model, words, view), words, view)


def edit_tensors(model: LoadedModel, words: Sequence[str], view: EvaluationSpec) -> Tensors:
    """A model's tensors, on its device, edited as some words say."""
    found = {"last": model.fitted.last, "best": model.fitted.best}[view.step]
    found = {name: tensor.to(model.network.device) for name, tensor in found.items()}
    for edit in words:
        found = _edited(_parsed(edit), found, model, view)
    return found


def predict(
    model: LoadedModel, tensors: Tensors, words: Sequence[str], view: EvaluationSpec
) -> tuple[Predictions, dict[str, float]]:
    """What tensors say under a view; ``words`` are the edits that are in them already."""
    split = view_examples(model, view)
    kinds = {type(_parsed(word)) for word in words}
    if {RefitHead, ProbeHead} & kinds:
        logits = _refitted(model, tensors, view, split, own=ProbeHead in kinds)
    else:
        logits = _logits(model, tensors, words, view, split)
    if not np.isfinite(logits).all():
        return make_predictions(np.tile(_prior(model, words, view), (len(split.labels), 1)), split), {"diverged": 1.0}
    p = np.exp(logits - logits.max(1, keepdims=True))
    return make_predictions(p / p.sum(1, keepdims=True), split), {}


def _given(model: LoadedModel, tensors: Tensors, view: EvaluationSpec) -> MeasureContext:
    own = _training(model, model.dataset, MAX_MEASURE_EXAMPLES)
    served = datasets.load_dataset(model.fit.data, view.preprocessing, None, model.cache).test
    return MeasureContext(
        before=model.fitted.before,
        after=tensors,
        network=model.network,
        images=torch.from_numpy(np.array(own.images)),
        labels=torch.from_numpy(own.labels),
        prepared=model.fit.preprocessing,
        served=torch.from_numpy(np.array(served.images[:MAX_MEASURE_EXAMPLES])),
        served_labels=torch.from_numpy(served.labels[:MAX_MEASURE_EXAMPLES]),
        ready=view.preprocessing,
        mode=view.mode,
        expected_training=view.expected_training or Recipe(phases=model.fit.phases, stop=view.step),
        fit=model.fit,
        view=view,
        dataset=model.dataset,
        injected_duplicates=model.injected_duplicates,
        cache=model.cache,
        fresh=partial(heads.build_with_head, model.fit.arch, model.network.anatomy, model.fit.head, model.fit.code),
        source_head=model.source_head,
    )


def _training(model: LoadedModel, dataset: Dataset, limit: int | None = None) -> Split:
    """A fit's training examples in a dataset's geometry and a random order; none where a finished network has none."""
    if not len(dataset.train.labels):
        return dataset.train
    subset = training_subset(dataset, model.fit)
    return datasets.take(subset.split, np.random.default_rng(0).permutation(subset.index)[:limit])


def _prior(model: LoadedModel, words: Sequence[str], view: EvaluationSpec) -> np.ndarray:
    """Class frequencies [outputs], which a diverged fit predicts: those of its training subset, or of the source."""
    if view.domain is None or not any(isinstance(_parsed(word), SourceHead | RefitHead | ProbeHead) for word in words):
        return np.array(model.fitted.prior)
    dataset = domains.load_domain(view.domain, view.preprocessing, model.cache)
    outputs = max(len(next(iter(model.source_head.values()))), int(dataset.test.labels.max()) + 1)
    labels = dataset.train.labels if len(dataset.train.labels) else dataset.test.labels
    return np.bincount(labels, minlength=outputs) / len(labels)


def _parsed(word: str) -> Edit:
    """The edit that a model's word spells: the lab's door, behind which edits are values."""
    if find_kind(word, BUILT_IN[Edit]) is None:
        raise ValueError(f"no such edit of a model: {word}")
    return Edit.parse(word)


def _edited(edit: Edit, tensors: Tensors, model: LoadedModel, view: EvaluationSpec) -> Tensors:
    network = model.network
    if isinstance(edit, SourceHead):
        below = {name: one for name, one in tensors.items() if not backbones.is_within(name, [network.anatomy.head])}
        return below | {name: tensor.to(network.device) for name, tensor in model.source_head.items()}
    if isinstance(edit, RefitHead | ProbeHead):
        return tensors  # they have no tensors of their own: see _refitted
    if isinstance(edit, AdaptBatchNorm | BatchNormEdit):
        adapted = isinstance(edit, AdaptBatchNorm)
        return tensors | (_adapted(tensors, model, view) if adapted else _statistics(edit, tensors, model))
    if isinstance(edit, InterpolatePhase | InterpolateCheckpoints):
        return _between(edit, tensors, model)
    if isinstance(edit, PermuteWeights):
        return edits.permute_weights(tensors, network)
    layer = heads.last_layer(network.module, network.anatomy.head)
    return edits.edit_head(edit, tensors, layer, partial(_screened, model, tensors, view))


def _between(edit: InterpolatePhase | InterpolateCheckpoints, tensors: Tensors, model: LoadedModel) -> Tensors:
    """Weights between those of before and of after; with the head's own, between a last phase's beginning and its end."""
    network, own = model.network, model.fitted.before
    if isinstance(edit, InterpolatePhase):
        assert model.fitted.begun is not None, "where the last phase began is asked for beside"
        own = model.fitted.begun.last
    before = {name: tensor.to(network.device) for name, tensor in own.items()}
    if isinstance(edit, InterpolatePhase):
        return edits.interpolate_phase(before, tensors, edit.share)
    return edits.interpolate_checkpoints(before, tensors, edit.share, network.anatomy.head)


def _statistics(edit: Edit, tensors: Tensors, model: LoadedModel) -> Tensors:
    """Running statistics by name, as an edit has them."""
    network, names = model.network, batchnorm.statistics_names(model.network.module)
    if isinstance(edit, RestoreBatchNorm):
        return {name: model.fitted.before[name].to(network.device) for name in names}
    if isinstance(edit, ResetBatchNorm):
        return edits.initial_statistics({name: tensors[name] for name in names})
    # In a random order, because batches of a sorted class folder would be of one class.
    split = _training(model, model.dataset, RECALIBRATION_EXAMPLES if model.fit.head == OWN_HEAD else None)
    images = split.images
    if isinstance(edit, OneClassBatchNorm):
        images = images[split.labels == np.bincount(split.labels).argmax()]
    return _recalibrated(images, model.fit.preprocessing, tensors, network)


def _adapted(tensors: Tensors, model: LoadedModel, view: EvaluationSpec) -> Tensors:
    """Running statistics of training images of the view's domain, prepared as it prepares them (AdaBN, Li et al. 2016)."""
    if view.domain is None:
        images = _training(
            model, datasets.load_dataset(model.fit.data, view.preprocessing, view.limit, model.cache), MAX_PROBE_EXAMPLES
        ).images
    else:
        images = domains.unlabeled_split(view.domain.data, view.preprocessing, model.cache).images
    return _recalibrated(images, view.preprocessing, tensors, model.network)


def _recalibrated(images: np.ndarray, prepared: InputTransform, tensors: Tensors, network: Architecture) -> Tensors:
    given = torch.from_numpy(np.array(images)).to(network.device)
    batches = given.tensor_split(max(1, len(given) // feature_cache.INFERENCE_BATCH))  # of one size, for each counts alike
    ready = (preprocessing.to_tensor(batch, prepared) for batch in batches)
    return batchnorm.recalibrate(network.module, tensors, ready)


def _screened(model: LoadedModel, tensors: Tensors, view: EvaluationSpec) -> tuple[np.ndarray, np.ndarray]:
    """Logits [n, outputs] and labels [n] of what a repair is fitted on: of a trained fit its own validation examples."""
    apart = "screen" if model.fit.head == OWN_HEAD else "validation"
    split = view_examples(model, replace(view, examples=apart, domain=None))
    return _logits(model, tensors, (str(RecalibrateBatchNorm()),), view, split), split.labels


def view_examples(model: LoadedModel, view: EvaluationSpec) -> Split:
    """The examples that a view looks at, in the geometry of its own preprocessing, and with the cue where it has one."""
    split = _plain(model, view)
    return replace(split, images=shortcut_cue.add_cue(split.images)) if view.has_cue else split


def _plain(model: LoadedModel, view: EvaluationSpec) -> Split:
    if view.domain is not None:
        dataset = domains.load_domain(view.domain, view.preprocessing, model.cache)
        return {"test": dataset.test, "held-out": domains.held_out_split(dataset)}[view.examples]
    served = datasets.load_dataset(model.fit.data, view.preprocessing, view.limit, model.cache)
    if view.examples == "test":
        return served.test
    if view.examples == "unique":
        unique = ~leakage.leaked_examples(model.fit.data, view.limit, view.reference_data, model.cache)
        return datasets.take(served.test, np.flatnonzero(unique))
    if view.examples in {"screen", "confirm"}:
        return datasets.split_half(served.test, second=view.examples == "confirm")
    if view.examples not in {"validation", "training"}:
        raise ValueError(f"no such examples: {view.examples}")
    return _own(model, served, training=view.examples == "training")


def _own(model: LoadedModel, served: Dataset, *, training: bool) -> Split:
    """A fit's own examples, in the geometry of what is served: those it is validated on, or some that it is trained on."""
    if training:
        subset = training_subset(served, model.fit)
        mixed = np.random.default_rng(0).permutation(subset.index)
        return datasets.take(subset.split, np.sort(mixed[:MAX_PROBE_EXAMPLES]))
    if served.validation is not None:
        return served.validation
    _, index = datasets.train_validation_indices(model.dataset, model.fit.train_size, model.fit.seed)
    return datasets.take(served.train, index)


def _refitted(model: LoadedModel, tensors: Tensors, view: EvaluationSpec, split: Split, *, own: bool) -> np.ndarray:
    """[N, outputs] float64 of a head fitted anew: on the target's training images, or on those of the view's domain."""
    if own:
        memory, ready = _training(model, model.dataset, MAX_PROBE_EXAMPLES), model.fit.preprocessing
    else:
        assert view.domain is not None, "a head is refitted on a domain"
        memory, ready = (
            domains.memory_split(domains.load_domain(view.domain, view.preprocessing, model.cache)),
            view.preprocessing,
        )
    x, wanted = (
        penultimate_features.head_inputs(model.network, tensors, torch.from_numpy(np.array(one.images)), how)
        for one, how in ((memory, ready), (split, view.preprocessing))
    )
    outputs = int(max(memory.labels.max(), split.labels.max())) + 1
    weight, bias = penultimate_features.fit_logistic_regression(x, torch.from_numpy(memory.labels), outputs)
    found: np.ndarray = (wanted.double() @ weight.T + bias).numpy()
    return found


def _logits(model: LoadedModel, tensors: Tensors, words: Sequence[str], view: EvaluationSpec, split: Split) -> np.ndarray:
    """[N, outputs] float64. What lies below the frozen cut of all phases is computed once for all fits that share it."""
    network = model.network
    images = torch.from_numpy(np.array(split.images))
    if view.mode != "eval":
        order = serving_order(view.mode.removeprefix("training").removeprefix(":"), split.labels)
        served = batched_logits(network, tensors, images, view.preprocessing, order, training=True)
        return served.double().numpy()  # type: ignore[no-any-return] # torch is Any here
    touched = model.fit.training is not None or any(isinstance(_parsed(word), BatchNormEdit | AdaptBatchNorm) for word in words)
    cuts = (loop.frozen_cut(phase, network.anatomy) for phase in model.fit.phases)
    lower, rest = loop.split_phase_model(
        network, 0 if touched else min(cuts, default=len(network.anatomy.groups)), view.preprocessing
    )
    x = (
        images
        if lower is None
        else feature_cache.compute_activations(lower, tensors, images, view.preprocessing, network.device, model.cache)
    )
    own = {name: tensors[name] for name in rest.names}
    with feature_cache.evaluation_mode(rest.module, network.device):
        logits = [rest(own, batch.to(network.device)).float().cpu() for batch in x.split(feature_cache.INFERENCE_BATCH)]
    found: np.ndarray = torch.cat(logits).double().numpy()
    return found


def serving_order(way: str, labels: np.ndarray) -> np.ndarray:
    """In which order examples come: shuffled (""), or class after class (``class``).

    Raises:
        ValueError: for a way that is not known.
    """
    if way not in {"", "class"}:
        raise ValueError(f"no such way to serve: {way}")
    order = np.random.default_rng(0).permutation(len(labels))
    return order[np.argsort(labels[order], kind="stable")] if way else order


def batched_logits(
    network: Architecture,
    tensors: Tensors,
    images: Tensor,
    ready: InputTransform,
    order: np.ndarray,
    *,
    training: bool,
    size: int = SERVING_BATCH,
) -> Tensor:
    """Logits [n, outputs] of images that come in batches in an order; what running statistics move, they move on a copy.

    With ``training`` the whole network is in training mode, as where nobody called ``.eval()``: BatchNorm takes the statistics
    of each batch, dropout drops (by a fixed stream). ``size`` is the least that a batch has, where there are as many images.
    """
    index = torch.from_numpy(order)
    own = {name: tensor.clone() for name, tensor in tensors.items()}
    found = []
    with seeds.seed_global_streams(0), feature_cache.evaluation_mode(network.module, network.device):
        network.module.train(training)
        for part in index.tensor_split(max(1, len(index) // size)):
            batch = preprocessing.to_tensor(images[part].to(network.device), ready)
            found.append(functional_call(network.module, own, (batch,)).float().cpu())
    return torch.cat(found)[index.argsort()]


def make_predictions(p: np.ndarray, split: Split) -> Predictions:
    """Probabilities [N, outputs] with the labels of their examples, in the form that is kept."""
    kept = p if p.shape[1] <= MAX_CLASSES_WITH_PROBABILITIES else p[:, :0]
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
