"""The key of a record: a trained model, an evaluation of it, and where it is computed. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from xferbench.core.canonical import MEASURE_ALIASES, digest, location_field
from xferbench.core.interventions import EVAL_MODE, TRANSFER_ALL, Edit, ServingMode, require_group
from xferbench.core.pipeline import AuxiliaryDataset, Data, Phase, Recipe, UserCode, WeightsFile, require_interventions
from xferbench.core.sections import section_field

if TYPE_CHECKING:
    from xferbench.core.finished_head import FinishedHead
    from xferbench.core.interventions import (
        Augmentation,
        DataIntervention,
        Head,
        Initialization,
        InjectedDuplicates,
        LayerTransfer,
        Regularizer,
    )
    from xferbench.core.transforms import InputTransform

# Spelling of a serving mode → its older name, which the keys of records contain.
MODE_ALIASES = {"train": "training", "train:class": "training:class"}


@dataclass(frozen=True, slots=True, kw_only=True)
class InitialNetwork:
    """The network before training. With the head :class:`~xferbench.core.interventions.OwnHead` it is a finished network.

    Attributes:
        arch: the spelling of the architecture.
        init: the initial weights, as in :class:`~xferbench.core.pipeline.Recipe`.
        start: a checkpoint or another training spec (keys nest), or None if its weights are not used.
        head: as in :class:`~xferbench.core.pipeline.Recipe`.
        code: the user's code that builds the architecture, or None.
        before: the checkpoint that a finished network was trained from, or None.
        transferred: the part of ``start`` that is used, as in :class:`~xferbench.core.pipeline.Recipe`.
        sigmoid: as in :class:`~xferbench.core.pipeline.Checkpoint`.
        finished_head: the head of a finished network, if it is not that of the architecture.
        pooling: as in :class:`~xferbench.core.pipeline.Backbone`.
    """

    arch: str
    init: Initialization
    start: WeightsFile | TrainingSpec | None
    head: Head
    code: UserCode | None = field(default=None, metadata={"added": True})
    before: WeightsFile | None = field(default=None, metadata={"added": True})
    transferred: LayerTransfer = field(default=TRANSFER_ALL, metadata={"added": True})
    sigmoid: bool = field(default=False, metadata={"added": True})
    finished_head: FinishedHead | None = field(default=None, metadata={"added": True})
    pooling: str = field(default="", metadata={"added": True})

    def __post_init__(self) -> None:
        require_interventions(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingData:
    """The data of a training, and what is done to the training examples.

    Attributes:
        dataset: the dataset of the training images.
        train_size: number of training images, or None for all.
        preprocessing: preprocessing of the training images.
        labels: ``true``, or ``shuffled`` among the training images.
        source: the source dataset, if the regularizer needs it.
        injected_duplicates: as in :class:`~xferbench.core.pipeline.PipelineData`.
        has_cue: whether every training image of the first class has a cue.
        unlabeled: a dataset of another domain, used without labels, if the regularizer needs one.
        interventions: changes of the training examples, in order.
    """

    dataset: Data = field(metadata={"key": "data"})
    train_size: int | None
    preprocessing: InputTransform
    labels: str = field(default="true", metadata={"added": True})
    source: AuxiliaryDataset | None = field(default=None, metadata={"added": True})
    injected_duplicates: InjectedDuplicates | None = field(
        default=None, metadata={"key": "planted", "absent": "", "added": True}
    )
    has_cue: bool = field(default=False, metadata={"key": "cued", "added": True})
    unlabeled: Data | None = field(default=None, metadata={"key": "unlabelled", "added": True})
    interventions: tuple[DataIntervention, ...] = field(default=(), metadata={"added": True})


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingProcedure:
    """What is done with the initial network and the data. Without phases nothing is trained.

    Attributes:
        phases, regularizer, augment: as in :class:`~xferbench.core.pipeline.Recipe`.
        training: the user's training code, or None for the loop of the lab.
        stop: ``last`` or ``best``; only user training code uses it, because that code returns a single network.
        teacher: the teacher, if the regularizer needs one, with the same seed and data.
    """

    phases: tuple[Phase, ...]
    regularizer: Regularizer | None = field(default=None, metadata={"absent": "", "added": True})
    training: UserCode | None = field(default=None, metadata={"added": True})
    stop: str = field(default="last", metadata={"added": True})
    augment: Augmentation | None = field(default=None, metadata={"absent": "", "added": True})
    teacher: TrainingSpec | None = field(default=None, metadata={"added": True})

    def __post_init__(self) -> None:
        require_interventions(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSpec:
    """The specification of one trained network.

    Attributes:
        network: the network before training.
        data: the data of the training.
        procedure: what is done with both.
        seed: the seed.
    """

    tag: ClassVar[str] = "Fit"
    network: InitialNetwork = section_field(InitialNetwork)
    data: TrainingData = section_field(TrainingData)
    procedure: TrainingProcedure = section_field(TrainingProcedure)
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A trained network and the edits that are applied to it in order. The ``finish`` of a recipe is the first edit."""

    tag: ClassVar[str] = "Model"
    base: TrainingSpec
    edits: tuple[Edit, ...] = ()

    def __post_init__(self) -> None:
        for edit in self.edits:
            require_group(edit, Edit, "edits")


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSpec:
    """The evaluation of a model.

    Attributes:
        examples: ``test`` (the first ``limit`` images in a fixed order); one of its halves, ``screen`` and ``confirm``;
            ``unique``, the test images without a copy in the training data or in ``reference_data``; ``validation`` or
            ``training`` (at most 2000 images) of the trained network; or ``held-out``, training images of a domain that no
            network is trained on.
        limit: the largest number of images, or None for all.
        preprocessing: preprocessing of the images.
        mode: the mode of the whole network.
        step: ``last`` or ``best`` (on validation) step of the training.
        measure: ``predictions``, or the key of a measure (:func:`~xferbench.core.canonical.measure_key`).
        function: ``module:function@version`` of the measure.
        domain: a dataset that is evaluated instead of the target, or None.
        expected_training: the recipe that a measure compares the training with, or None for the actual recipe.
        reference_data: datasets that test images are compared with.
        has_cue: whether every image has the cue that images of a source may have.
    """

    tag: ClassVar[str] = "View"
    examples: str = "test"
    limit: int | None = None
    preprocessing: InputTransform
    mode: ServingMode = field(default=EVAL_MODE, metadata={"alias": MODE_ALIASES})
    step: str = "last"
    measure: str = field(default="predictions", metadata={"alias": MEASURE_ALIASES})
    function: str = location_field()
    domain: AuxiliaryDataset | None = field(default=None, metadata={"added": True})
    expected_training: Recipe | None = field(default=None, metadata={"key": "believed", "added": True})
    reference_data: tuple[Data, ...] = field(default=(), metadata={"key": "beside", "added": True})
    has_cue: bool = field(default=False, metadata={"key": "cued", "added": True})

    def __post_init__(self) -> None:
        require_group(self.mode, ServingMode, "mode")


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeContext:
    """What may change the numbers of a trial: the device type, torch's major.minor version, and the version of the lab."""

    tag: ClassVar[str] = "Place"
    device: str
    torch: str
    lab: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A model, its evaluation and the context of the computation; one record is its result."""

    tag: ClassVar[str] = "Trial"
    model: ModelSpec
    view: EvaluationSpec
    context: ComputeContext = field(metadata={"key": "place"})

    @property
    def key(self) -> str:
        """The SHA-256 of the canonical JSON, as hexadecimal."""
        return digest(self)
