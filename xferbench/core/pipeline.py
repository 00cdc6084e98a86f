"""The nouns that are asked: frozen values, from a suite's pipeline down to the key of a trial.

Everything here is content. A field marked ``_place`` says where a content lies on this machine and is neither compared nor
part of a key. A field that a later version adds is marked ``added`` and left out of the key at its default, so that adding it
retrains nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from xferbench.core.canonical import location_field
from xferbench.core.interventions import (
    ALL_LAYERS,
    RANDOM_HEAD,
    Augmentation,
    Finish,
    Head,
    Regularizer,
    Trainable,
    require_group,
)

if TYPE_CHECKING:
    from xferbench.core.interventions import DataIntervention


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """How a decoded image becomes a tensor; a value, so that two of them can be compared and stored.

    It is 8-bit RGB first: of 16 bits a channel the upper 8 are kept (value // 256), one channel is repeated three times,
    transparency is dropped.

    The shorter side is resized to ``resize`` pixels, keeps a ``detail`` of its pixels (made smaller by that factor and as
    large as before again, bilinear with antialias), and a centre square of ``crop`` pixels is cut (None: left out), the
    channels are put in order (``rgb``, ``bgr`` or ``grey``, the mean of three, repeated), the values are multiplied by
    ``scale`` and normalised with ``mean`` and ``std``, which are in the unit that ``scale`` gives.
    """

    tag: ClassVar[str] = "Preprocessing"
    resize: int | None = None
    crop: int | None = None
    interpolation: str = "bilinear"
    antialias: bool = True
    channels: str = "rgb"
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    detail: float = field(default=1.0, metadata={"added": True})


@dataclass(frozen=True, slots=True, kw_only=True)
class Spectrogram:
    """How a stored spectrogram [1, H, W] becomes a tensor: ``mean`` off, divided by ``std``, repeated to ``channels`` channels.

    Both are in the unit of the stored values, whatever it is (decibels, say). Nothing is resized, so that H and W are any that
    the backbone can take.
    """

    tag: ClassVar[str] = "Spectrogram"
    channels: int = 3
    mean: float = 0.0
    std: float = 1.0


# How a batch is made ready for a network: a value of one of these kinds, on whose type the lab dispatches.
InputTransform: TypeAlias = Preprocessing | Spectrogram


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A stretch of training with one set of trainable tensors, one optimizer and one schedule.

    Attributes:
        trainable: a value of :class:`~xferbench.core.interventions.Trainable`; ``str`` of it is the word in a suite.
        batchnorm: how BatchNorm layers run: ``eval`` (stored statistics, unchanged), ``train``, ``train-above`` (train mode
            above the frozen layer groups, which stay in eval mode), ``ghost:N`` (train mode on slices of N examples of each
            batch) or ``momentum:M`` (train mode, running statistics with momentum M).
        lr: learning rate at the schedule's peak; ``head_lr`` that of the head (default: the same).
        layer_decay: factor on the rate for each layer group below the head.
        warmup: steps of linear warm-up.
        schedule: ``cosine``, ``constant`` or ``one-cycle`` (three tenths up, then down along a cosine).
        order: ``shuffled``, or ``class``: batches ordered by class, as an unshuffled class folder gives them.
    """

    tag: ClassVar[str] = "Phase"
    trainable: Trainable = ALL_LAYERS
    batchnorm: str = "train"
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

    def __post_init__(self) -> None:
        require_group(self.trainable, Trainable, "trainable")


def require_values(value: Any) -> None:
    """Refuse a word in the place of an intervention."""
    require_group(value.head, Head, "head")
    if value.regularizer is not None:
        require_group(value.regularizer, Regularizer, "regularizer")
    if value.augment is not None:
        require_group(value.augment, Augmentation, "augment")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a backbone is adapted. A strategy is a value of this class, never code of its own.

    Attributes:
        init: ``pretrained``; ``random``; ``matched`` (random, with each tensor's pretrained mean and variance); ``permuted``
            (the pretrained values shuffled within each tensor); one of :data:`MADE_HERE`, pretrained here on the pipeline's
            source: ``shuffled-source`` (with its labels shuffled), ``clean-source`` (as it is) or ``cued-source`` (with a cue
            on every image of its first class, :mod:`xferbench.lab.data.shortcut_cue`); or ``target`` (trained here first, from
            random
            weights, on the very training images of the fit).
        transferred: how much of that start is taken: ``all``, or ``low:N``, the N lowest layer groups; what lies above is
            drawn anew, as where ``init`` is ``random``.
        head: a value of :class:`~xferbench.core.interventions.Head`.
        regularizer: a term of the loss, one of :class:`~xferbench.core.interventions.Regularizer`: it holds on to what the
            source or a teacher taught, or makes features of two domains alike; None for none.
        augment: a value of :class:`~xferbench.core.interventions.Augmentation`; None for nothing.
        stop: ``last`` step, or the step that was ``best`` on validation; it chooses a view of a fit and retrains nothing.
        finish: what is done to the trained network, a value of :class:`~xferbench.core.interventions.Finish`; None for nothing.
            It retrains nothing either. Measures of plugins are about training and come before.
        name: what people call it; not content.
    """

    tag: ClassVar[str] = "Recipe"
    init: str = "pretrained"
    head: Head = RANDOM_HEAD
    phases: tuple[Phase, ...] = (Phase(),)
    regularizer: Regularizer | None = field(default=None, metadata={"absent": ""})
    stop: str = "last"
    name: str = location_field()
    augment: Augmentation | None = field(default=None, metadata={"absent": "", "added": True})
    transferred: str = field(default="all", metadata={"added": True})
    finish: Finish | None = field(default=None, metadata={"absent": "", "added": True})

    def __post_init__(self) -> None:
        require_values(self)
        if self.finish is not None:
            require_group(self.finish, Finish, "finish")


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsFile:
    """A checkpoint file, named by the SHA-256 of its bytes."""

    tag: ClassVar[str] = "Weights"
    digest: str
    path: str = location_field()


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """A dataset, named by a digest of its content; ``spec`` is the suite's word for it, with absolute paths."""

    tag: ClassVar[str] = "Data"
    digest: str
    spec: str = location_field()


@dataclass(frozen=True, slots=True, kw_only=True)
class AuxiliaryDataset:
    """A dataset beside the target: for each of its classes, in their order, the output of a head that means it.

    Of the source these are outputs of the pretrained head, of a shifted set those of the target's; () where nobody knows.
    ``preprocessing`` is how its images are looked at, None as the pipeline serves its own; views have it in their keys.
    """

    tag: ClassVar[str] = "Domain"
    data: Data
    classes: tuple[int, ...] = ()
    preprocessing: InputTransform | None = field(default=None, compare=False, metadata={"place": True})


@dataclass(frozen=True, slots=True, kw_only=True)
class UserCode:
    """A user's callable, ``python:module:callable``, named by a digest of its source; ``path`` is looked in before others."""

    tag: ClassVar[str] = "Code"
    spec: str
    digest: str
    path: str = location_field()


@dataclass(frozen=True, slots=True, kw_only=True)
class ScratchGrid:
    """The from-scratch grid S2: every rate × weight decay for ``steps`` steps, beside S1, the subject's own steps and rate."""

    tag: ClassVar[str] = "Scratch"
    lr: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    weight_decay: tuple[float, ...] = (0.01, 0.1)
    steps: int = 500
    batch_size: int = 64


DEFAULT_SCRATCH_GRID = ScratchGrid()


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A network that somebody has trained already: its checkpoint, and the one that it was made from, where there is one.

    ``after`` brings its own head.
    """

    tag: ClassVar[str] = "Finished"
    after: WeightsFile
    before: WeightsFile | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """What a user does today, or one thing changed about it. ``baseline`` is what it is compared with, and no part of it.

    ``mode`` is how the model is served: ``eval``, or ``train`` (nobody called ``.eval()``).
    ``code`` is what builds a backbone ``python:…``; ``training`` the user's own training code, None for the loop of the lab.
    Of a ``finished`` network nothing is trained; ``edits`` are those of its :class:`Model`. ``expected_training`` is what
    somebody takes the training to have been, None for what the recipe says.
    ``evaluation_split`` are the examples that verdicts are taken on, as in :class:`View`; ``manifest`` tells of a pretraining
    set; ``injected_duplicates`` are test images put into training on purpose, a word of
    :func:`xferbench.lab.evaluation.leakage.inject_duplicates`.
    ``interventions`` change the training examples, in order.
    """

    tag: ClassVar[str] = "Pipeline"
    arch: str
    weights: WeightsFile | None
    target: Data
    train_size: int | None
    test_size: int | None
    recipe: Recipe
    train_preprocessing: InputTransform
    serve_preprocessing: InputTransform
    mode: str = "eval"
    source: AuxiliaryDataset | None = None
    shifted: AuxiliaryDataset | None = None
    baseline: ScratchGrid = field(default=ScratchGrid(), compare=False, metadata={"place": True})
    code: UserCode | None = field(default=None, metadata={"added": True})
    training: UserCode | None = field(default=None, metadata={"added": True})
    finished: Checkpoint | None = field(default=None, metadata={"added": True})
    edits: tuple[str, ...] = field(default=(), metadata={"added": True})
    expected_training: Recipe | None = field(default=None, metadata={"key": "believed", "added": True})
    evaluation_split: str = field(default="test", metadata={"key": "judged", "added": True})
    manifest: Data | None = field(default=None, metadata={"added": True})
    injected_duplicates: str = field(default="", metadata={"key": "planted", "added": True})
    interventions: tuple[DataIntervention, ...] = field(default=(), metadata={"added": True})

    @property
    def pretraining(self) -> tuple[Data, ...]:
        """What the backbone may have been pretrained on: the source, and what a manifest tells of."""
        return tuple(one for one in (self.source.data if self.source else None, self.manifest) if one)


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """An arm that is "the best on validation": settled once, on tuning seeds of its own, then frozen.

    ``by`` is the view (of :data:`xferbench.study.trials.VIEWS`) on which the best is chosen, never one of test images. With
    ``keeping``
    only those are in question that are on that view no worse than the first candidate by more than the margin. ``worst`` turns
    it round, for what is induced.
    """

    tag: ClassVar[str] = "Choice"
    candidates: tuple[Pipeline, ...]
    by: str = "validation"
    keeping: str = ""
    worst: bool = False


Arm: TypeAlias = Pipeline | Selection


LOCALLY_PRETRAINED_STARTS = (
    "shuffled-source",
    "clean-source",
    "cued-source",
)  # starts that are pretrained here, on a pipeline's source
MAX_HELD_OUT_EXAMPLES = 1000  # images of a domain that choices are made on, at most


PHASE_FIELDS = tuple(field.name for field in fields(Phase))
SUPPORTABLE_FIELDS = (
    *PHASE_FIELDS,
    "phases",
    "augment",
    "stop",
)  # what code may say; a regularizer it cannot heed, being given no source
