"""The pipeline, its recipe and its data, as frozen values. Pure.

The metadata of a field say how :mod:`xferbench.core.canonical` writes it: ``place`` is a location on this machine, neither
compared nor part of a key; ``added`` is left out at its default, so that adding the field retrains nothing; ``key`` and
``alias`` are older names; ``absent`` is the text for None; a ``section`` is flat.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from xferbench.core.canonical import location_field
from xferbench.core.interventions import (
    ALL_LAYERS,
    BATCHNORM_TRAIN,
    EVAL_MODE,
    PRETRAINED,
    RANDOM_HEAD,
    TRANSFER_ALL,
    Augmentation,
    BatchNormMode,
    Crop,
    Edit,
    Finish,
    FlipAndCrop,
    Head,
    Initialization,
    InjectedDuplicates,
    LayerTransfer,
    Regularizer,
    ServingMode,
    Trainable,
    require_group,
)
from xferbench.core.sections import section_field

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from xferbench.core.finished_head import FinishedHead
    from xferbench.core.interventions import DataIntervention, Intervention
    from xferbench.core.transforms import InputTransform


# The fields of a phase, a recipe and the sections of a training spec that are interventions → the group of their values.
INTERVENTION_GROUPS: Mapping[str, type[Intervention]] = {
    "trainable": Trainable,
    "batchnorm": BatchNormMode,
    "init": Initialization,
    "transferred": LayerTransfer,
    "head": Head,
    "regularizer": Regularizer,
    "augment": Augmentation,
    "finish": Finish,
}


def require_interventions(value: Any) -> None:
    """Check that the interventions of a phase, a recipe, or a section of a training spec, are values and not their spellings.

    Raises:
        TypeError: if a field has another type.
    """
    for field_ in fields(value):
        item = getattr(value, field_.name)
        if field_.name in INTERVENTION_GROUPS and (item is not None or field_.default is not None):
            require_group(item, INTERVENTION_GROUPS[field_.name], field_.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A part of training with one set of trainable parameters, one optimizer and one schedule.

    Attributes:
        trainable: a value of :class:`~xferbench.core.interventions.Trainable`; ``str`` of it is its spelling in a suite.
        batchnorm: how BatchNorm layers run, a value of :class:`~xferbench.core.interventions.BatchNormMode`.
        lr: peak learning rate.
        head_lr: peak learning rate of the head; None for ``lr``.
        layer_decay: factor on the learning rate for each layer group below the head.
        optimizer, weight_decay: the optimizer and its weight decay.
        warmup: number of steps of linear warm-up.
        warmup_ratio: share of the steps that are warm-up, which :func:`~xferbench.core.strategies.resolve_steps` turns into
            ``warmup``, rounded up; None if ``warmup`` counts.
        schedule: ``cosine``, ``linear``, ``constant`` or ``one-cycle`` (up for three tenths of the steps, then down along a
            cosine).
        steps: number of optimizer steps.
        batch_size: number of examples in a batch.
        order: ``shuffled``, or ``class``: batches ordered by class, as an unshuffled class folder gives them.
        label_smoothing: share of each label that is distributed over all classes (Szegedy et al. 2016, arXiv:1512.00567).
        clip: the largest norm of the gradient of all trained parameters; None for no clipping.
        epochs: passes over the training images, which :func:`~xferbench.core.strategies.resolve_steps` turns into ``steps``;
            None if ``steps`` counts.
        decay_norms: whether the weight decay includes parameters of one axis, that is, biases and the scales and shifts of
            normalization. The Trainer of transformers and timm leave them out.
        dropout: the probability of all dropout layers below the head, or None for those of the network.
    """

    tag: ClassVar[str] = "Phase"
    trainable: Trainable = ALL_LAYERS
    batchnorm: BatchNormMode = BATCHNORM_TRAIN
    lr: float = 1e-3
    head_lr: float | None = None
    layer_decay: float = 1.0
    optimizer: str = "adamw"
    weight_decay: float = 0.01
    warmup: int = 0
    schedule: str = "cosine"
    steps: int = 150
    batch_size: int = 32
    order: str = "shuffled"
    label_smoothing: float = field(default=0.0, metadata={"added": True})
    clip: float | None = field(default=None, metadata={"added": True})
    epochs: float | None = field(default=None, metadata={"added": True})
    warmup_ratio: float | None = field(default=None, metadata={"added": True})
    decay_norms: bool = field(default=True, metadata={"added": True})
    dropout: float | None = field(default=None, metadata={"added": True})

    def __post_init__(self) -> None:
        require_interventions(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The adaptation of a backbone. A strategy is a value of this class, not code.

    Attributes:
        init: the initial weights, a value of :class:`~xferbench.core.interventions.Initialization`.
        transferred: the part of them that is used, a value of :class:`~xferbench.core.interventions.LayerTransfer`.
        head: a value of :class:`~xferbench.core.interventions.Head`.
        regularizer: a term of the loss, a value of :class:`~xferbench.core.interventions.Regularizer`, or None.
        augment: a value of :class:`~xferbench.core.interventions.Augmentation`, or None.
        stop: ``last`` step, or ``best`` step on validation. It selects an evaluation of a trained network and retrains nothing.
        finish: a change of the trained network, a value of :class:`~xferbench.core.interventions.Finish`, or None. It retrains
            nothing. Measures of plugins are about training and use the network without it.
        name: a name for people; it is not part of the content.
    """

    tag: ClassVar[str] = "Recipe"
    init: Initialization = PRETRAINED
    head: Head = RANDOM_HEAD
    phases: tuple[Phase, ...] = (Phase(),)
    regularizer: Regularizer | None = field(default=None, metadata={"absent": ""})
    stop: str = "last"
    name: str = location_field()
    augment: Augmentation | None = field(default=None, metadata={"absent": "", "added": True})
    transferred: LayerTransfer = field(default=TRANSFER_ALL, metadata={"added": True})
    finish: Finish | None = field(default=None, metadata={"absent": "", "added": True})

    def __post_init__(self) -> None:
        require_interventions(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsFile:
    """A checkpoint file, identified by the SHA-256 of its bytes."""

    tag: ClassVar[str] = "Weights"
    digest: str
    path: str = location_field()


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """A dataset, identified by a digest of its content; ``spec`` is its spelling in the suite, with absolute paths."""

    tag: ClassVar[str] = "Data"
    digest: str
    spec: str = location_field()


@dataclass(frozen=True, slots=True, kw_only=True)
class AuxiliaryDataset:
    """A dataset other than the target.

    Attributes:
        data: the dataset.
        classes: for each class, in order, the index of its output: of the pretrained head for the source, of the target's head
            for a shifted set. It is empty if the outputs are not known.
        preprocessing: the preprocessing of its images, or None for that of serving; keys have it in their evaluation spec.
    """

    tag: ClassVar[str] = "Domain"
    data: Data
    classes: tuple[int, ...] = ()
    preprocessing: InputTransform | None = field(default=None, compare=False, metadata={"place": True})


@dataclass(frozen=True, slots=True, kw_only=True)
class UserCode:
    """A user's callable, ``python:module:callable``, identified by a digest of its source; ``path`` is searched first."""

    tag: ClassVar[str] = "Code"
    spec: str
    digest: str
    path: str = location_field()


@dataclass(frozen=True, slots=True, kw_only=True)
class ScratchGrid:
    """The search of the from-scratch baseline: every combination of the values, and the subject's own steps and rate.

    Attributes:
        lr, weight_decay, label_smoothing: values of fields of a :class:`Phase`.
        augment: augmentations; None for none.
        steps: number of optimizer steps of the longest candidates, with a ``one-cycle`` schedule.
        batch_size: number of examples in a batch.
        halvings: number of rounds before the last, as in :class:`Selection`.
        is_cut: whether a budget left out augmentations or steps, so that a better baseline may have been missed.
    """

    tag: ClassVar[str] = "Scratch"
    lr: tuple[float, ...] = (3e-3, 1e-2, 3e-2)
    weight_decay: tuple[float, ...] = (0.1,)
    label_smoothing: tuple[float, ...] = (0.0, 0.1)
    augment: tuple[Augmentation | None, ...] = (None, FlipAndCrop(), Crop())  # a small budget keeps the last one
    steps: int = 500
    batch_size: int = 64
    halvings: int = 2
    is_cut: bool = field(default=False, metadata={"added": True})


DEFAULT_SCRATCH_GRID = ScratchGrid()
TEXT_SCRATCH_GRID = ScratchGrid(lr=(3e-4, 1e-3, 3e-3))  # transformers need lower rates than networks with BatchNorm


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A finished network.

    Attributes:
        after: the checkpoint, which includes a head.
        before: the checkpoint that the training started from, or None if it is not known.
        sigmoid: whether the head has one output, the logit of the second of two classes.
        head: the head, if it is not that of the architecture.
    """

    tag: ClassVar[str] = "Finished"
    after: WeightsFile
    before: WeightsFile | None = None
    sigmoid: bool = field(default=False, metadata={"added": True})
    head: FinishedHead | None = field(default=None, metadata={"added": True})


POOLINGS = ("cls", "mean", "last")  # the hidden state of the first visible token of a text, the mean of all, and the last


@dataclass(frozen=True, slots=True, kw_only=True)
class Backbone:
    """The network that is adapted.

    Attributes:
        arch: the spelling of the architecture.
        weights: the pretrained weights, or None.
        code: the code that builds a backbone ``python:…``, or None.
        pooling: which hidden state of a text the head sees, of :data:`POOLINGS`; "" for that of the network.
    """

    arch: str
    weights: WeightsFile | None
    code: UserCode | None = field(default=None, metadata={"added": True})
    pooling: str = field(default="", metadata={"added": True})


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineData:
    """The data of a pipeline, and what is done to the training examples.

    Attributes:
        target: the target dataset.
        train_preprocessing: the preprocessing in training.
        train_size, test_size: numbers of target images that are used; None for all.
        source, shifted: the auxiliary datasets, or None.
        manifest: a manifest of the pretraining data, or None.
        interventions: changes of the training examples, in order.
        injected_duplicates: test images that replace training images on purpose, a value of
            :class:`~xferbench.core.interventions.InjectedDuplicates`, or None.
    """

    target: Data
    train_preprocessing: InputTransform
    train_size: int | None
    test_size: int | None
    source: AuxiliaryDataset | None = None
    shifted: AuxiliaryDataset | None = None
    manifest: Data | None = field(default=None, metadata={"added": True})
    interventions: tuple[DataIntervention, ...] = field(default=(), metadata={"added": True})
    injected_duplicates: InjectedDuplicates | None = field(
        default=None, metadata={"key": "planted", "absent": "", "added": True}
    )

    def __post_init__(self) -> None:
        if self.injected_duplicates is not None:
            require_group(self.injected_duplicates, InjectedDuplicates, "injected_duplicates")

    @property
    def pretraining(self) -> tuple[Data, ...]:
        """The datasets that the backbone may be pretrained on: the source and those of the manifest."""
        return tuple(data for data in (self.source.data if self.source else None, self.manifest) if data)


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """How the adapted network serves.

    Attributes:
        preprocessing: the preprocessing of the served images.
        mode: the mode of the network, a value of :class:`~xferbench.core.interventions.ServingMode`.
    """

    preprocessing: InputTransform = field(metadata={"key": "serve_preprocessing"})
    mode: ServingMode = EVAL_MODE

    def __post_init__(self) -> None:
        require_group(self.mode, ServingMode, "mode")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """A user's pipeline, or a variant of it with one change.

    Attributes:
        backbone: the network that is adapted.
        data: the data, and what is done to the training examples.
        recipe: the adaptation.
        serving: how the adapted network serves.
        training: the user's training code, or None for the loop of the lab.
        checkpoint: a finished network, which is not trained any further, or None.
        expected_training: the recipe that the checkpoint is believed to be trained with, or None for ``recipe``.
        edits: values of :class:`~xferbench.core.interventions.Edit` that change the trained network, in order.
        evaluation_split: the examples for verdicts, as in :class:`~xferbench.core.trial.EvaluationSpec`.
        baseline: the grid of the from-scratch baseline; it is not part of the pipeline's content.
    """

    tag: ClassVar[str] = "Pipeline"
    backbone: Backbone = section_field(Backbone)
    data: PipelineData = section_field(PipelineData)
    recipe: Recipe
    serving: Serving = section_field(Serving)
    training: UserCode | None = field(default=None, metadata={"added": True})
    checkpoint: Checkpoint | None = field(default=None, metadata={"key": "finished", "added": True})
    expected_training: Recipe | None = field(default=None, metadata={"key": "believed", "added": True})
    edits: tuple[Edit, ...] = field(default=(), metadata={"added": True})
    evaluation_split: str = field(default="test", metadata={"key": "judged", "added": True})
    baseline: ScratchGrid = field(default=ScratchGrid(), compare=False, metadata={"place": True})

    def __post_init__(self) -> None:
        for edit in self.edits:
            require_group(edit, Edit, "edits")


def replace_data(pipeline: Pipeline, **changes: Any) -> Pipeline:
    """Return a pipeline with other values of its data, such as ``interventions``."""
    return replace(pipeline, data=replace(pipeline.data, **changes))


def replace_serving(pipeline: Pipeline, **changes: Any) -> Pipeline:
    """Return a pipeline with another ``preprocessing`` or ``mode`` in serving."""
    return replace(pipeline, serving=replace(pipeline.serving, **changes))


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """An arm that is the best of several candidates on validation, selected once on separate tuning seeds.

    Attributes:
        candidates: the pipelines.
        by: the view (of :data:`xferbench.study.trials.VIEWS`) that the candidates are compared on; never one of test images.
        keeping: a view on which a candidate must not be worse than the first one by more than the margin, or "".
        worst: whether the worst candidate is selected, for induced arms.
        halvings: number of rounds of successive halving before the last round (Jamieson & Talwalkar 2016, arXiv:1502.07943).
            Each round trains the candidates for half the steps of the next round, with a whole schedule, and the better half
            goes on. After the last round, candidates beyond an edge of the search are tried once.
        is_cut: whether a budget left out candidates, as in :class:`ScratchGrid`.
        refine: returns variants of a pipeline, from it and the profile. Those of the best candidate become candidates too,
            until a round has no new one.
    """

    tag: ClassVar[str] = "Choice"
    candidates: tuple[Pipeline, ...]
    by: str = "validation"
    keeping: str = ""
    worst: bool = False
    halvings: int = 0
    is_cut: bool = False
    refine: Callable[..., tuple[Pipeline, ...]] | None = None


Arm: TypeAlias = Pipeline | Selection


MAX_HELD_OUT_EXAMPLES = 1000  # images of a domain that candidates are selected on


RESOLVED_FIELDS = ("epochs", "warmup_ratio")  # other spellings of steps and warmup
PHASE_FIELDS = tuple(field.name for field in fields(Phase) if field.name not in RESOLVED_FIELDS)
SUPPORTABLE_FIELDS = (*PHASE_FIELDS, "phases", "augment", "stop")  # code receives no source, so it supports no regularizer
