"""From a pipeline, a view and a seed to a trial. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from xferbench.core.interventions import HEAD_ONLY, OWN_HEAD, RANDOM_HEAD, ZERO_HEAD
from xferbench.core.pipeline import LOCALLY_PRETRAINED_STARTS, AuxiliaryDataset, Checkpoint, Phase, Pipeline, WeightsFile
from xferbench.core.strategies import teacher_recipe
from xferbench.core.trial import ComputeContext, EvaluationSpec, ModelSpec, TrainingSpec, Trial

if TYPE_CHECKING:
    from collections.abc import Mapping


SOURCE_STEPS_FACTOR = (
    3  # times scratch's steps, in which a network learns a source: the synthetic one needs some 80 000 examples
)


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedView:
    """A named way to look at a pipeline's model: edits of the model, and what its view has of its own.

    ``domain`` is ``source`` or ``shifted``. ``before`` looks at the network as it starts, which all seeds share; ``as_trained``
    serves it as it was trained, whatever the pipeline's serving; ``stop`` at that step, whatever the recipe's; ``has_cue`` puts
    the cue on every image.
    """

    edits: tuple[str, ...] = ()
    mode: str | None = None
    examples: str = "test"
    domain: str = ""
    before: bool = False
    as_trained: bool = False
    stop: str = ""
    has_cue: bool = False


TEMPERED = "temperature:fitted@1"  # the edit that calibrates
BEFORE = "interpolated:0"  # the edit that gives what a finished network was made from

VIEWS: Mapping[str, NamedView] = {
    "test": NamedView(),
    "whole": NamedView(examples="whole"),
    "cued": NamedView(has_cue=True),
    "validation": NamedView(examples="validation"),
    "training": NamedView(examples="training"),
    "best-step": NamedView(stop="best"),
    "tempered": NamedView(edits=(TEMPERED,)),
    "train-mode": NamedView(mode="train"),
    "restored": NamedView(edits=("batchnorm:restored",)),
    "recalibrated": NamedView(edits=("batchnorm:recalibrated@2",)),
    "as-trained": NamedView(examples="whole", as_trained=True),
    "shifted": NamedView(domain="shifted"),
    "shifted-as-trained": NamedView(domain="shifted", as_trained=True),
    "source": NamedView(edits=("head:source",), domain="source"),
    "source-restored": NamedView(edits=("batchnorm:restored", "head:source"), domain="source"),
    "source-held-out": NamedView(edits=("head:source",), domain="source", examples="held-out"),
    "source-before": NamedView(edits=("head:source",), domain="source", before=True),
    "source-probe": NamedView(edits=("head:refit",), domain="source"),
    "source-probe-before": NamedView(edits=("head:refit",), domain="source", before=True),
}

SERVING_MODES = {"eval": "eval", "train": "training", "train:class": "training:class"}  # a pipeline's word → its view's


def training_spec(pipeline: Pipeline, seed: int) -> TrainingSpec:
    """The network that a pipeline trains at one seed; how it is served or stopped is no part of it."""
    recipe = pipeline.recipe
    made_here = recipe.init in {*LOCALLY_PRETRAINED_STARTS, "target"}
    needs = recipe.regularizer.requires if recipe.regularizer else ()
    needs_source = "source" in needs
    needs_shifted = "shifted" in needs and not pipeline.injected_duplicates
    needs_teacher = "teacher" in needs and not (pipeline.injected_duplicates or pipeline.training)
    if pipeline.finished:
        return _checkpoint_spec(pipeline, pipeline.finished)
    return TrainingSpec(
        arch=pipeline.arch,
        init="pretrained" if made_here else recipe.init,
        start=_start(pipeline, seed),
        head=recipe.head,
        phases=() if pipeline.injected_duplicates else recipe.phases,  # what is planted is looked for, and trains nothing
        data=pipeline.target,
        train_size=pipeline.train_size,
        preprocessing=pipeline.train_preprocessing,
        seed=seed,
        regularizer=None if pipeline.injected_duplicates else recipe.regularizer,
        source=pipeline.source if needs_source else None,
        code=pipeline.code,
        training=None if pipeline.injected_duplicates else pipeline.training,
        stop=recipe.stop if pipeline.training and not pipeline.injected_duplicates else "last",
        injected_duplicates=pipeline.injected_duplicates,
        augment=None if pipeline.injected_duplicates else recipe.augment,
        teacher=training_spec(replace(pipeline, recipe=teacher_recipe(recipe)), seed) if needs_teacher else None,
        transferred="all" if recipe.init == "random" else recipe.transferred,
        unlabeled=pipeline.shifted.data if needs_shifted and pipeline.shifted else None,
        interventions=() if pipeline.injected_duplicates else pipeline.interventions,
    )


def _checkpoint_spec(pipeline: Pipeline, network: Checkpoint) -> TrainingSpec:
    """A finished network as the fit of no steps that keeps its own head; all seeds share it."""
    return TrainingSpec(
        arch=pipeline.arch,
        init="pretrained",
        start=network.after,
        head=OWN_HEAD,
        phases=(),
        data=pipeline.target,
        train_size=pipeline.train_size,
        preprocessing=pipeline.train_preprocessing,
        seed=0,
        code=pipeline.code,
        before=network.before,
        injected_duplicates=pipeline.injected_duplicates,
    )


def _start(pipeline: Pipeline, seed: int) -> WeightsFile | TrainingSpec | None:
    if pipeline.recipe.init == "random":
        return None
    if pipeline.recipe.init in LOCALLY_PRETRAINED_STARTS:
        return source_spec(pipeline)
    return target_spec(pipeline, seed) if pipeline.recipe.init == "target" else pipeline.weights


def source_spec(pipeline: Pipeline) -> TrainingSpec:
    """A network pretrained on the pipeline's source as the recipe's start says; all seeds share it.

    With shuffled labels for as long as scratch is trained; where it is to learn something, :data:`LONGER` than that.
    """
    assert pipeline.source is not None, "only a pipeline with a source has such a start"
    grid = pipeline.baseline
    steps = grid.steps if pipeline.recipe.init == "shuffled-source" else SOURCE_STEPS_FACTOR * grid.steps
    phase = Phase(lr=max(grid.lr), schedule="one-cycle", steps=steps, batch_size=grid.batch_size)
    return TrainingSpec(
        arch=pipeline.arch,
        init="random",
        start=None,
        head=RANDOM_HEAD,
        phases=(phase,),
        data=pipeline.source.data,
        train_size=None,
        preprocessing=pipeline.train_preprocessing,
        seed=0,
        labels="shuffled" if pipeline.recipe.init == "shuffled-source" else "true",
        code=pipeline.code,
        has_cue=pipeline.recipe.init == "cued-source",
    )


def target_spec(pipeline: Pipeline, seed: int) -> TrainingSpec:
    """A network trained from scratch on a seed's own training images, as a candidate of the baseline is."""
    grid = pipeline.baseline
    decay = grid.weight_decay[0]
    phase = Phase(lr=max(grid.lr), weight_decay=decay, schedule="one-cycle", steps=grid.steps, batch_size=grid.batch_size)
    return TrainingSpec(
        arch=pipeline.arch,
        init="random",
        start=None,
        head=RANDOM_HEAD,
        phases=(phase,),
        data=pipeline.target,
        train_size=pipeline.train_size,
        preprocessing=pipeline.train_preprocessing,
        seed=seed,
        code=pipeline.code,
        interventions=pipeline.interventions,
    )


def make_trial(
    pipeline: Pipeline,
    view: str,
    seed: int,
    place: ComputeContext,
    measure: str = "predictions",
    *,
    function: str = "",
    compares: bool = False,
    given: str = "",
) -> Trial:
    """One seed of a pipeline, looked at in a named way.

    Args:
        measure: what sees it. function: where that is computed. compares: whether that compares test images with others.
        given: the domain that a measure is told of, ``source``, if there is one.
    """
    look = VIEWS[view]
    if look.stop:  # of the recipe, for code of the user's own is told at which step to stop
        pipeline = replace(pipeline, recipe=replace(pipeline.recipe, stop=look.stop))
    bounded = look.examples in {"test", "whole"} and (measure == "predictions" or compares) and not look.domain
    beside = auxiliary_dataset(pipeline, look.domain) if look.domain else pipeline.source if given == "source" else None
    own = beside.preprocessing if beside else None  # what the source taught is asked as the source was learnt
    own = pipeline.train_preprocessing if look.as_trained else own
    examples = look.examples
    edits = (*pipeline.edits, *(edit for edit in look.edits if edit not in pipeline.edits))
    if (
        pipeline.recipe.finish
        and measure == "predictions"
        and not (look.before or pipeline.finished or pipeline.injected_duplicates)
    ):
        edits = (str(pipeline.recipe.finish), *edits)
    if look.examples == "whole" or (compares and pipeline.evaluation_split == "confirm"):
        examples = "test"
    elif bounded:
        examples = pipeline.evaluation_split
    elif pipeline.finished and look.examples == "validation":
        examples = "screen"
    if pipeline.finished and look.before:
        edits = (BEFORE, *look.edits)
    seen = EvaluationSpec(
        examples=examples,
        limit=pipeline.test_size if bounded or examples == "screen" else None,
        preprocessing=own or pipeline.serve_preprocessing,
        mode="eval" if own else SERVING_MODES[look.mode or pipeline.mode],
        step="last" if look.before else pipeline.recipe.stop,
        measure=measure,
        function=function,
        domain=beside,
        expected_training=pipeline.expected_training if measure != "predictions" else None,
        reference_data=pipeline.pretraining if compares or examples == "unique" else (),
        has_cue=look.has_cue,
    )
    looked_at = initial_model(pipeline) if look.before and not pipeline.finished else training_spec(pipeline, seed)
    return Trial(model=ModelSpec(base=looked_at, edits=edits), view=seen, place=place)


def initial_model(pipeline: Pipeline) -> TrainingSpec:
    """The zero-step fit: the network that a pipeline starts from, the same at every seed as far as the source's task goes."""
    start = replace(pipeline.recipe, phases=(), regularizer=None, augment=None, head=ZERO_HEAD, transferred="all")
    return replace(
        training_spec(replace(pipeline, recipe=start), 0), train_size=None, training=None, stop="last", interventions=()
    )


def auxiliary_dataset(pipeline: Pipeline, role: str) -> AuxiliaryDataset:
    """A pipeline's source or shifted set.

    Raises:
        ValueError: where there is none, or nobody knows its classes: the plugin should not have asked.
    """
    found = {"source": pipeline.source, "shifted": pipeline.shifted}[role]
    if found is None or not found.classes:
        raise ValueError(f"the suite has no [{role}] whose classes are known")
    return found


def training_cost(one: TrainingSpec) -> float:
    """Examples that go through a fit's training, those of a frozen backbone counted at a tenth; for order and estimates."""
    times = 3 if one.unlabeled else 1  # what is told apart are the batch, once more, and as many images of another domain
    return times * sum(phase.steps * phase.batch_size if one.augment else phase_examples(phase) for phase in one.phases)


def phase_examples(phase: Phase) -> float:
    """A phase's share of :func:`cost`."""
    cheap = phase.trainable == HEAD_ONLY and phase.batchnorm == "eval"
    return phase.steps * phase.batch_size * (0.1 if cheap else 1.0)
