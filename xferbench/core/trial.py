"""The key of a record: a trained model, an evaluation of it, and where it is computed. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from xferbench.core.canonical import digest as digest_
from xferbench.core.canonical import location_field
from xferbench.core.pipeline import AuxiliaryDataset, Data, InputTransform, Phase, Recipe, UserCode, WeightsFile, require_values

if TYPE_CHECKING:
    from xferbench.core.interventions import Augmentation, DataIntervention, Head, Regularizer


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSpec:
    """One trained network.

    ``start`` is a checkpoint, or another fit (keys nest), or None where nothing of one is used, so that all share that fit.
    ``transferred`` says how much of ``start`` is taken, as in :class:`Recipe`.
    ``labels`` are ``true``, or ``shuffled`` among the training images. ``source`` is there where the regularizer needs it.
    ``code`` builds an ``arch`` of the user's own, ``training`` trains it in place of the lab's loop; ``stop`` is told to that
    code alone, since it gives one network only. Without phases it is the network as it starts: with its own head, a
    finished one, made from ``before``. ``teacher`` is there where the regularizer needs one, of the same seed and data.
    ``has_cue`` puts a cue on every training image of the first class. ``unlabeled`` is there where the regularizer needs images
    of another domain, without their labels. ``interventions`` change the training examples, in order.
    """

    tag: ClassVar[str] = "Fit"
    arch: str
    init: str
    start: WeightsFile | TrainingSpec | None
    head: Head
    phases: tuple[Phase, ...]
    data: Data
    train_size: int | None
    preprocessing: InputTransform
    seed: int
    labels: str = field(default="true", metadata={"added": True})
    regularizer: Regularizer | None = field(default=None, metadata={"absent": "", "added": True})
    source: AuxiliaryDataset | None = field(default=None, metadata={"added": True})
    code: UserCode | None = field(default=None, metadata={"added": True})
    training: UserCode | None = field(default=None, metadata={"added": True})
    stop: str = field(default="last", metadata={"added": True})
    before: WeightsFile | None = field(default=None, metadata={"added": True})
    injected_duplicates: str = field(default="", metadata={"key": "planted", "added": True})
    augment: Augmentation | None = field(default=None, metadata={"absent": "", "added": True})
    teacher: TrainingSpec | None = field(default=None, metadata={"added": True})
    has_cue: bool = field(default=False, metadata={"key": "cued", "added": True})
    transferred: str = field(default="all", metadata={"added": True})
    unlabeled: Data | None = field(default=None, metadata={"key": "unlabelled", "added": True})
    interventions: tuple[DataIntervention, ...] = field(default=(), metadata={"added": True})

    def __post_init__(self) -> None:
        require_values(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A fit, then ordered edits, each the spelling of an :class:`~xferbench.core.interventions.Edit`.

    What finishes a recipe (:attr:`Recipe.finish`) is the first of them.
    """

    tag: ClassVar[str] = "Model"
    base: TrainingSpec
    edits: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSpec:
    """How a model is looked at.

    Attributes:
        examples: ``test`` (the first ``limit`` of a fixed order), one of its halves, ``screen`` and ``confirm``, or ``unique``,
            those of it that have no copy in training or in the datasets ``reference_data``;
            ``validation`` (the fit's own); ``training`` (likewise, 2000 at most);
            or of a domain ``held-out`` (a part of its training images that no fit is given).
        mode: ``eval``, or the whole network in training mode: ``training`` on shuffled batches, ``training:class`` on such as
            are ordered by class.
        domain: a dataset in the target's place.
        step: ``last`` or ``best`` (on validation) of the fit.
        measure: ``predictions``, or the key of a measure (:func:`measure_key`). function: ``module:function@version``, where
            the measure is computed.
        expected_training: what a measure holds the training against, where that is not what it was.
        has_cue: whether every image wears the cue that a source may have been given.
    """

    tag: ClassVar[str] = "View"
    examples: str = "test"
    limit: int | None = None
    preprocessing: InputTransform
    mode: str = "eval"
    step: str = "last"
    measure: str = field(default="predictions", metadata={"alias": True})
    function: str = location_field()
    domain: AuxiliaryDataset | None = field(default=None, metadata={"added": True})
    expected_training: Recipe | None = field(default=None, metadata={"key": "believed", "added": True})
    reference_data: tuple[Data, ...] = field(default=(), metadata={"key": "beside", "added": True})
    has_cue: bool = field(default=False, metadata={"key": "cued", "added": True})


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeContext:
    """Where a trial is computed, as far as it may change the numbers: device type, torch's major.minor, version of the lab."""

    tag: ClassVar[str] = "Place"
    device: str
    torch: str
    lab: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A model seen through a view, at a place: what one record answers."""

    tag: ClassVar[str] = "Trial"
    model: ModelSpec
    view: EvaluationSpec
    place: ComputeContext

    @property
    def key(self) -> str:
        """SHA-256 of the canonical JSON, as hexadecimal."""
        return digest_(self)
