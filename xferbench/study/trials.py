"""The trial of a pipeline in a view at a seed. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from xferbench.core.interventions import (
    EVAL_MODE,
    OWN_HEAD,
    PRETRAINED,
    RANDOM,
    RANDOM_HEAD,
    TRAIN_MODE,
    TRANSFER_ALL,
    ZERO_HEAD,
    CuedSource,
    FitClassBias,
    FitTemperature,
    InterpolateCheckpoints,
    RecalibrateBatchNorm,
    RefitHead,
    RestoreBatchNorm,
    ShuffledSource,
    SourceHead,
    SourcePretraining,
    TargetPretraining,
)
from xferbench.core.pipeline import AuxiliaryDataset, Checkpoint, Phase, Pipeline, WeightsFile
from xferbench.core.strategies import HIGH_LR, teacher_recipe
from xferbench.core.trial import (
    ComputeContext,
    EvaluationSpec,
    InitialNetwork,
    ModelSpec,
    TrainingData,
    TrainingProcedure,
    TrainingSpec,
    Trial,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from xferbench.core.interventions import Edit, ServingMode


# Steps of pretraining on a source, as a multiple of the from-scratch steps: the synthetic source needs about 80 000 examples.
SOURCE_STEPS_FACTOR = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedView:
    """A named evaluation of a pipeline's model.

    Attributes:
        edits: edits of the model.
        mode: the serving mode, or None for that of the pipeline.
        examples: ``whole`` for all test images in every split, or as in :class:`~xferbench.core.trial.EvaluationSpec`.
        domain: ``source``, ``shifted``, or "" for the target.
        before: whether the initial network is evaluated, which all seeds share.
        as_trained: whether images are preprocessed as in training.
        stop: the step of the training, or "" for that of the recipe.
        has_cue: whether every image has the cue.
    """

    edits: tuple[Edit, ...] = ()
    mode: ServingMode | None = None
    examples: str = "test"
    domain: str = ""
    before: bool = False
    as_trained: bool = False
    stop: str = ""
    has_cue: bool = False


INTERPOLATE_TO_BEFORE = InterpolateCheckpoints(share=0)  # restores the backbone that a finished network was trained from

VIEWS: Mapping[str, NamedView] = {
    "test": NamedView(),
    "whole": NamedView(examples="whole"),
    "cued": NamedView(has_cue=True),
    "validation": NamedView(examples="validation"),
    "training": NamedView(examples="training"),
    "best-step": NamedView(stop="best"),
    "tempered": NamedView(edits=(FitTemperature(),)),
    "bias-fitted": NamedView(edits=(FitClassBias(),)),
    "validation-bias-fitted": NamedView(examples="validation", edits=(FitClassBias(),)),
    "train-mode": NamedView(mode=TRAIN_MODE),
    "restored": NamedView(edits=(RestoreBatchNorm(),)),
    "recalibrated": NamedView(edits=(RecalibrateBatchNorm(),)),
    "as-trained": NamedView(examples="whole", as_trained=True),
    "shifted": NamedView(domain="shifted"),
    "shifted-held-out": NamedView(domain="shifted", examples="held-out"),
    "shifted-as-trained": NamedView(domain="shifted", as_trained=True),
    "source": NamedView(edits=(SourceHead(),), domain="source"),
    "source-restored": NamedView(edits=(RestoreBatchNorm(), SourceHead()), domain="source"),
    "source-held-out": NamedView(edits=(SourceHead(),), domain="source", examples="held-out"),
    "source-before": NamedView(edits=(SourceHead(),), domain="source", before=True),
    "source-probe": NamedView(edits=(RefitHead(),), domain="source"),
    "source-probe-before": NamedView(edits=(RefitHead(),), domain="source", before=True),
}


def training_spec(pipeline: Pipeline, seed: int) -> TrainingSpec:
    """Return the training spec of a pipeline at one seed. Serving and stopping are not part of it."""
    if pipeline.checkpoint:
        return _checkpoint_spec(pipeline, pipeline.checkpoint)
    recipe = pipeline.recipe
    starts_locally = isinstance(recipe.init, SourcePretraining | TargetPretraining)
    inputs = recipe.regularizer.requires if recipe.regularizer else ()
    needs_source = "source" in inputs
    needs_shifted = "shifted" in inputs and not pipeline.data.injected_duplicates
    needs_teacher = "teacher" in inputs and not pipeline.training
    network = InitialNetwork(
        arch=pipeline.backbone.arch,
        init=PRETRAINED if starts_locally else recipe.init,
        start=_start(pipeline, seed),
        head=recipe.head,
        code=pipeline.backbone.code,
        pooling=pipeline.backbone.pooling,
        transferred=TRANSFER_ALL if recipe.init == RANDOM else recipe.transferred,
    )
    data = TrainingData(
        dataset=pipeline.data.target,
        train_size=pipeline.data.train_size,
        preprocessing=pipeline.data.train_preprocessing,
        source=pipeline.data.source if needs_source else None,
        injected_duplicates=pipeline.data.injected_duplicates,
        unlabeled=pipeline.data.shifted.data if needs_shifted and pipeline.data.shifted else None,
        interventions=() if pipeline.data.injected_duplicates else pipeline.data.interventions,
    )
    if pipeline.data.injected_duplicates:  # they are searched for, without training
        return TrainingSpec(network=network, data=data, procedure=TrainingProcedure(phases=()), seed=seed)
    procedure = TrainingProcedure(
        phases=recipe.phases,
        regularizer=recipe.regularizer,
        training=pipeline.training,
        stop=recipe.stop if pipeline.training else "last",
        augment=recipe.augment,
        teacher=training_spec(replace(pipeline, recipe=teacher_recipe(recipe)), seed) if needs_teacher else None,
    )
    return TrainingSpec(network=network, data=data, procedure=procedure, seed=seed)


def _checkpoint_spec(pipeline: Pipeline, checkpoint: Checkpoint) -> TrainingSpec:
    """Return a finished network as a training spec without steps that keeps its head; all seeds share it."""
    return TrainingSpec(
        network=InitialNetwork(
            arch=pipeline.backbone.arch,
            init=PRETRAINED,
            start=checkpoint.after,
            head=OWN_HEAD,
            code=pipeline.backbone.code,
            pooling=pipeline.backbone.pooling,
            before=checkpoint.before,
            sigmoid=checkpoint.sigmoid,
            finished_head=checkpoint.head,
        ),
        data=TrainingData(
            dataset=pipeline.data.target,
            train_size=pipeline.data.train_size,
            preprocessing=pipeline.data.train_preprocessing,
            injected_duplicates=pipeline.data.injected_duplicates,
        ),
        procedure=TrainingProcedure(phases=()),
        seed=0,
    )


def _start(pipeline: Pipeline, seed: int) -> WeightsFile | TrainingSpec | None:
    if pipeline.recipe.init == RANDOM:
        return None
    if isinstance(pipeline.recipe.init, SourcePretraining):
        return source_spec(pipeline)
    return target_spec(pipeline, seed) if pipeline.recipe.init == TargetPretraining() else pipeline.backbone.weights


def source_spec(pipeline: Pipeline) -> TrainingSpec:
    """Return the spec of a network pretrained on the pipeline's source, for the ``init`` of its recipe; all seeds share it.

    With shuffled labels the network trains for the from-scratch number of steps, and otherwise for
    :data:`SOURCE_STEPS_FACTOR` times as many.
    """
    assert pipeline.data.source is not None, "only a pipeline with a source has this init"
    grid = pipeline.baseline
    steps = grid.steps if pipeline.recipe.init == ShuffledSource() else SOURCE_STEPS_FACTOR * grid.steps
    phase = Phase(lr=min(max(grid.lr), HIGH_LR), schedule="one-cycle", steps=steps, batch_size=grid.batch_size)
    return TrainingSpec(
        network=_random_network(pipeline),
        data=TrainingData(
            dataset=pipeline.data.source.data,
            train_size=None,
            preprocessing=pipeline.data.train_preprocessing,
            labels="shuffled" if pipeline.recipe.init == ShuffledSource() else "true",
            has_cue=pipeline.recipe.init == CuedSource(),
        ),
        procedure=TrainingProcedure(phases=(phase,)),
        seed=0,
    )


def target_spec(pipeline: Pipeline, seed: int) -> TrainingSpec:
    """Return the spec of a network trained from scratch on the training images of a seed, as a candidate of the baseline."""
    grid = pipeline.baseline
    decay = grid.weight_decay[0]
    lr = min(max(grid.lr), HIGH_LR)  # the highest rates are for augmented images
    phase = Phase(lr=lr, weight_decay=decay, schedule="one-cycle", steps=grid.steps, batch_size=grid.batch_size)
    return TrainingSpec(
        network=_random_network(pipeline),
        data=TrainingData(
            dataset=pipeline.data.target,
            train_size=pipeline.data.train_size,
            preprocessing=pipeline.data.train_preprocessing,
            interventions=pipeline.data.interventions,
        ),
        procedure=TrainingProcedure(phases=(phase,)),
        seed=seed,
    )


def _random_network(pipeline: Pipeline) -> InitialNetwork:
    """Return the network of a pipeline with random weights."""
    backbone = pipeline.backbone
    return InitialNetwork(
        arch=backbone.arch, init=RANDOM, start=None, head=RANDOM_HEAD, code=backbone.code, pooling=backbone.pooling
    )


def make_trial(
    pipeline: Pipeline,
    view: str,
    seed: int,
    context: ComputeContext,
    measure: str = "predictions",
    *,
    function: str = "",
    needs_pretraining_data: bool = False,
    domain: str = "",
) -> Trial:
    """Return the trial of a pipeline in a view at one seed.

    Args:
        pipeline: the pipeline.
        view: a key of :data:`VIEWS`.
        seed: the seed.
        context: the context that the trial is computed in.
        measure: ``predictions``, or the key of a measure.
        function: ``module:function@version`` of the measure.
        needs_pretraining_data: whether the measure compares test images with other datasets.
        domain: ``source`` if the measure is evaluated on the source, provided that the pipeline has one.

    Raises:
        ValueError: if the view is one of a dataset that the pipeline lacks.
    """
    named = VIEWS[view]
    if named.stop:  # a field of the recipe, because a user's training code receives the step to stop at
        pipeline = replace(pipeline, recipe=replace(pipeline.recipe, stop=named.stop))
    uses_test_images = (
        named.examples in {"test", "whole"} and (measure == "predictions" or needs_pretraining_data) and not named.domain
    )
    dataset = (
        auxiliary_dataset(pipeline, named.domain) if named.domain else pipeline.data.source if domain == "source" else None
    )
    preprocessing = dataset.preprocessing if dataset else None  # the source is evaluated with its own preprocessing
    preprocessing = pipeline.data.train_preprocessing if named.as_trained else preprocessing
    examples = named.examples
    if named.examples == "whole" or (needs_pretraining_data and pipeline.evaluation_split == "confirm"):
        examples = "test"
    elif uses_test_images:
        examples = pipeline.evaluation_split
    elif pipeline.checkpoint and named.examples == "validation":
        examples = "screen"
    evaluation = EvaluationSpec(
        examples=examples,
        limit=pipeline.data.test_size if uses_test_images or examples == "screen" else None,
        preprocessing=preprocessing or pipeline.serving.preprocessing,
        mode=EVAL_MODE if preprocessing else named.mode or pipeline.serving.mode,
        step="last" if named.before else pipeline.recipe.stop,
        measure=measure,
        function=function,
        domain=dataset,
        expected_training=pipeline.expected_training if measure != "predictions" else None,
        reference_data=pipeline.data.pretraining if needs_pretraining_data or examples == "unique" else (),
        has_cue=named.has_cue,
    )
    spec = initial_model(pipeline) if named.before and not pipeline.checkpoint else training_spec(pipeline, seed)
    return Trial(model=ModelSpec(base=spec, edits=_model_edits(pipeline, named, measure)), view=evaluation, context=context)


def _model_edits(pipeline: Pipeline, view: NamedView, measure: str) -> tuple[Edit, ...]:
    """Return the edits of a pipeline's model in a view; the finish of the recipe comes first, and measures do not use it."""
    if pipeline.checkpoint and view.before:
        return (INTERPOLATE_TO_BEFORE, *view.edits)
    edits = (*pipeline.edits, *(edit for edit in view.edits if edit not in pipeline.edits))
    has_finish = not (view.before or pipeline.checkpoint or pipeline.data.injected_duplicates) and measure == "predictions"
    return (pipeline.recipe.finish, *edits) if pipeline.recipe.finish and has_finish else edits


def initial_model(pipeline: Pipeline) -> TrainingSpec:
    """Return the spec of the initial network of a pipeline: no steps, a zero head, and one seed for all seeds."""
    start = replace(pipeline.recipe, phases=(), regularizer=None, augment=None, head=ZERO_HEAD, transferred=TRANSFER_ALL)
    spec = training_spec(replace(pipeline, recipe=start), 0)
    data = replace(spec.data, train_size=None, interventions=())
    return replace(spec, data=data, procedure=replace(spec.procedure, training=None, stop="last"))


def auxiliary_dataset(pipeline: Pipeline, role: str) -> AuxiliaryDataset:
    """Return the source or the shifted set of a pipeline.

    Args:
        pipeline: the pipeline.
        role: ``source`` or ``shifted``.

    Raises:
        ValueError: if the pipeline lacks the dataset or its classes are not known. ``applies`` of a plugin checks this.
    """
    dataset = {"source": pipeline.data.source, "shifted": pipeline.data.shifted}[role]
    if dataset is None or not dataset.classes:
        raise ValueError(f"the suite has no [{role}] whose classes are known")
    return dataset
