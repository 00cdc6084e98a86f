"""The nouns that are asked: frozen values, from a suite's pipeline down to the key of a trial.

Everything here is content. A field marked ``_place`` says where a content lies on this machine and is neither compared nor
part of a key. A field that a later version adds is marked ``added`` and left out of the key at its default, so that adding it
retrains nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from xferbench.core import interventions
from xferbench.core.interventions import Augmentation, Head, Regularizer, Trainable

if TYPE_CHECKING:
    from xferbench.core.interventions import Augmentation, DataIntervention, Finish, Head, Regularizer, Trainable
    from xferbench.record import Record, Run


def _place() -> Any:
    return field(default="", compare=False, metadata={"place": True})


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


# How a batch is made ready for a network: a value of one of these kinds, on whose type xferbench.lab.preprocess dispatches.
Ready: TypeAlias = Preprocessing | Spectrogram


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
    trainable: Trainable = interventions.ALL_LAYERS
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
        interventions.expect(self.trainable, interventions.Trainable, "trainable")


def _expect_values(value: Recipe | Fit) -> None:
    """Refuse a word in the place of an intervention."""
    interventions.expect(value.head, interventions.Head, "head")
    if value.regularizer is not None:
        interventions.expect(value.regularizer, interventions.Regularizer, "regularizer")
    if value.augment is not None:
        interventions.expect(value.augment, interventions.Augmentation, "augment")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a backbone is adapted. A strategy is a value of this class, never code of its own.

    Attributes:
        init: ``pretrained``; ``random``; ``matched`` (random, with each tensor's pretrained mean and variance); ``permuted``
            (the pretrained values shuffled within each tensor); one of :data:`MADE_HERE`, pretrained here on the pipeline's
            source: ``shuffled-source`` (with its labels shuffled), ``clean-source`` (as it is) or ``cued-source`` (with a cue
            on every image of its first class, :mod:`xferbench.lab.cue`); or ``target`` (trained here first, from random
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
    head: Head = interventions.RANDOM_HEAD
    phases: tuple[Phase, ...] = (Phase(),)
    regularizer: Regularizer | None = field(default=None, metadata={"absent": ""})
    stop: str = "last"
    name: str = _place()
    augment: Augmentation | None = field(default=None, metadata={"absent": "", "added": True})
    transferred: str = field(default="all", metadata={"added": True})
    finish: Finish | None = field(default=None, metadata={"absent": "", "added": True})

    def __post_init__(self) -> None:
        _expect_values(self)
        if self.finish is not None:
            interventions.expect(self.finish, interventions.Finish, "finish")


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """A checkpoint file, named by the SHA-256 of its bytes."""

    tag: ClassVar[str] = "Weights"
    digest: str
    path: str = _place()


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """A dataset, named by a digest of its content; ``spec`` is the suite's word for it, with absolute paths."""

    tag: ClassVar[str] = "Data"
    digest: str
    spec: str = _place()


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """A dataset beside the target: for each of its classes, in their order, the output of a head that means it.

    Of the source these are outputs of the pretrained head, of a shifted set those of the target's; () where nobody knows.
    ``preprocessing`` is how its images are looked at, None as the pipeline serves its own; views have it in their keys.
    """

    tag: ClassVar[str] = "Domain"
    data: Data
    classes: tuple[int, ...] = ()
    preprocessing: Ready | None = field(default=None, compare=False, metadata={"place": True})


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """A user's callable, ``python:module:callable``, named by a digest of its source; ``path`` is looked in before others."""

    tag: ClassVar[str] = "Code"
    spec: str
    digest: str
    path: str = _place()


@dataclass(frozen=True, slots=True, kw_only=True)
class Scratch:
    """The from-scratch grid S2: every rate × weight decay for ``steps`` steps, beside S1, the subject's own steps and rate."""

    tag: ClassVar[str] = "Scratch"
    lr: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    weight_decay: tuple[float, ...] = (0.01, 0.1)
    steps: int = 500
    batch_size: int = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A network that somebody has trained already: its checkpoint, and the one that it was made from, where there is one.

    ``after`` brings its own head.
    """

    tag: ClassVar[str] = "Finished"
    after: Weights
    before: Weights | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """What a user does today, or one thing changed about it. ``baseline`` is what it is compared with, and no part of it.

    ``mode`` is how the model is served: ``eval``, or ``train`` (nobody called ``.eval()``).
    ``code`` is what builds a backbone ``python:…``; ``training`` the user's own training code, None for the loop of the lab.
    Of a ``finished`` network nothing is trained; ``edits`` are those of its :class:`Model`. ``believed`` is what somebody
    takes the training to have been, None for what the recipe says.
    ``judged`` are the examples that verdicts are taken on, as in :class:`View`; ``manifest`` tells of a pretraining set;
    ``planted`` are test images put into training on purpose, a word of :func:`xferbench.lab.leaks.planted`.
    ``interventions`` change the training examples, in order.
    """

    tag: ClassVar[str] = "Pipeline"
    arch: str
    weights: Weights | None
    target: Data
    train_size: int | None
    test_size: int | None
    recipe: Recipe
    train_preprocessing: Ready
    serve_preprocessing: Ready
    mode: str = "eval"
    source: Domain | None = None
    shifted: Domain | None = None
    baseline: Scratch = field(default=Scratch(), compare=False, metadata={"place": True})
    code: Code | None = field(default=None, metadata={"added": True})
    training: Code | None = field(default=None, metadata={"added": True})
    finished: Finished | None = field(default=None, metadata={"added": True})
    edits: tuple[str, ...] = field(default=(), metadata={"added": True})
    believed: Recipe | None = field(default=None, metadata={"added": True})
    judged: str = field(default="test", metadata={"added": True})
    manifest: Data | None = field(default=None, metadata={"added": True})
    planted: str = field(default="", metadata={"added": True})
    interventions: tuple[DataIntervention, ...] = field(default=(), metadata={"added": True})

    @property
    def pretraining(self) -> tuple[Data, ...]:
        """What the backbone may have been pretrained on: the source, and what a manifest tells of."""
        return tuple(one for one in (self.source.data if self.source else None, self.manifest) if one)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """An arm that is "the best on validation": settled once, on tuning seeds of its own, then frozen.

    ``by`` is the view (of :data:`xferbench.plan.VIEWS`) on which the best is chosen, never one of test images. With ``keeping``
    only those are in question that are on that view no worse than the first candidate by more than the margin. ``worst`` turns
    it round, for what is induced.
    """

    tag: ClassVar[str] = "Choice"
    candidates: tuple[Pipeline, ...]
    by: str = "validation"
    keeping: str = ""
    worst: bool = False


Arm: TypeAlias = Pipeline | Choice


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """One trained network.

    ``start`` is a checkpoint, or another fit (keys nest), or None where nothing of one is used, so that all share that fit.
    ``transferred`` says how much of ``start`` is taken, as in :class:`Recipe`.
    ``labels`` are ``true``, or ``shuffled`` among the training images. ``source`` is there where the regularizer needs it.
    ``code`` builds an ``arch`` of the user's own, ``training`` trains it in place of the lab's loop; ``stop`` is told to that
    code alone, since it gives one network only. Without phases it is the network as it starts: with its own head, a
    finished one, made from ``before``. ``teacher`` is there where the regularizer needs one, of the same seed and data.
    ``cued`` puts a cue on every training image of the first class. ``unlabelled`` is there where the regularizer needs images
    of another domain, without their labels. ``interventions`` change the training examples, in order.
    """

    tag: ClassVar[str] = "Fit"
    arch: str
    init: str
    start: Weights | Fit | None
    head: Head
    phases: tuple[Phase, ...]
    data: Data
    train_size: int | None
    preprocessing: Ready
    seed: int
    labels: str = field(default="true", metadata={"added": True})
    regularizer: Regularizer | None = field(default=None, metadata={"absent": "", "added": True})
    source: Domain | None = field(default=None, metadata={"added": True})
    code: Code | None = field(default=None, metadata={"added": True})
    training: Code | None = field(default=None, metadata={"added": True})
    stop: str = field(default="last", metadata={"added": True})
    before: Weights | None = field(default=None, metadata={"added": True})
    planted: str = field(default="", metadata={"added": True})
    augment: Augmentation | None = field(default=None, metadata={"absent": "", "added": True})
    teacher: Fit | None = field(default=None, metadata={"added": True})
    cued: bool = field(default=False, metadata={"added": True})
    transferred: str = field(default="all", metadata={"added": True})
    unlabelled: Data | None = field(default=None, metadata={"added": True})
    interventions: tuple[DataIntervention, ...] = field(default=(), metadata={"added": True})

    def __post_init__(self) -> None:
        _expect_values(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A fit, then ordered edits, each the spelling of an :class:`~xferbench.core.interventions.Edit`.

    What finishes a recipe (:attr:`Recipe.finish`) is the first of them.
    """

    tag: ClassVar[str] = "Model"
    base: Fit
    edits: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """How a model is looked at.

    Attributes:
        examples: ``test`` (the first ``limit`` of a fixed order), one of its halves, ``screen`` and ``confirm``, or ``unique``,
            those of it that have no copy in training or in the datasets ``beside``;
            ``validation`` (the fit's own); ``training`` (likewise, 2000 at most);
            or of a domain ``held-out`` (a part of its training images that no fit is given).
        mode: ``eval``, or the whole network in training mode: ``training`` on shuffled batches, ``training:class`` on such as
            are ordered by class.
        domain: a dataset in the target's place.
        step: ``last`` or ``best`` (on validation) of the fit.
        measure: ``predictions``, or the key of a measure (:func:`measure_key`). function: ``module:function@version``, where
            the measure is computed.
        believed: what a measure holds the training against, where that is not what it was.
        cued: whether every image wears the cue that a source may have been given.
    """

    tag: ClassVar[str] = "View"
    examples: str = "test"
    limit: int | None = None
    preprocessing: Ready
    mode: str = "eval"
    step: str = "last"
    measure: str = field(default="predictions", metadata={"alias": True})
    function: str = _place()
    domain: Domain | None = field(default=None, metadata={"added": True})
    believed: Recipe | None = field(default=None, metadata={"added": True})
    beside: tuple[Data, ...] = field(default=(), metadata={"added": True})
    cued: bool = field(default=False, metadata={"added": True})


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a trial is computed, as far as it may change the numbers: device type, torch's major.minor, version of the lab."""

    tag: ClassVar[str] = "Place"
    device: str
    torch: str
    lab: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A model seen through a view, at a place: what one record answers."""

    tag: ClassVar[str] = "Trial"
    model: Model
    view: View
    place: Place

    @property
    def key(self) -> str:
        """SHA-256 of the canonical JSON, as hexadecimal."""
        return digest(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """A weighted sum over (arm, view) pairs whose value is harm where it is above 0.

    ``kind`` is ``paired`` (judged against the margin), ``info`` (a measurement, never a verdict) or ``exact``: an invariant,
    broken as soon as the sum is not 0, whose views are the plugin's own measures. The views of the others are those of
    :data:`xferbench.plan.VIEWS`. What is only measured may weigh arms ``beside:NAME`` too. ``metric`` is its own where it is
    not the suite's, and so is its ``margin`` then. ``allowed`` names the suite's field that says how far from 0 an invariant's
    sum may be; one that is not ``controlled`` is not what the induced variants are meant to break.
    """

    tag: ClassVar[str] = "Contrast"
    name: str
    weights: Mapping[tuple[str, str], float]
    kind: str = "paired"
    meaning: str = ""
    metric: str = ""
    margin: float | None = None
    allowed: str = ""
    controlled: bool = True


MADE_HERE = ("shuffled-source", "clean-source", "cued-source")  # starts that are pretrained here, on a pipeline's source
HELD_OUT = 1000  # images of a domain that choices are made on, at most
HARM = Contrast(name="harm", weights={("cured", "test"): 1.0, ("subject", "test"): -1.0}, meaning="cured − subject")


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known about backbone and data before anything is trained; probed once, then kept in the store.

    ``groups`` are the layer groups' names from the input up, without the head. ``trust`` names what nobody recorded.
    ``seconds_forward`` and ``seconds_step`` are for one image on one thread, for estimates only. ``size`` is height and width
    of what the network is given, in pixels. ``source`` and ``shifted`` are the classes of those domains, as in
    :class:`Domain`; ``no_source`` says why the source's are not known. ``recorded`` tells whether the preprocessing was
    written down somewhere. ``honours`` are the fields of a recipe that the user's training code heeds, None where the lab
    trains; ``crash`` is what the user's code raised while it was probed. ``outputs`` are those of a finished network's head,
    ``unmoved`` tells that all below it is as it was before. ``lacks`` are the kinds of :attr:`Phase.trainable` (norm,
    bias, lora, adapter) of which the backbone has nothing, and ``unlabelled`` where the shifted set has no training images.
    """

    parameters: int
    groups: tuple[str, ...]
    head: str
    batchnorm: tuple[str, ...]
    classes: tuple[str, ...]
    train: int
    validation: int
    test: int
    test_groups: int | None
    preprocessing: Ready
    trust: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    seconds_forward: float = 0.0
    seconds_step: float = 0.0
    size: tuple[int, int] = (0, 0)
    recorded: bool = True
    source: tuple[int, ...] = ()
    no_source: str = ""
    shifted: tuple[int, ...] = ()
    honours: tuple[str, ...] | None = None
    crash: str = ""
    outputs: int = 0
    unmoved: bool = False
    lacks: tuple[str, ...] = ()

    @property
    def has_batchnorm(self) -> bool:
        """Whether the backbone holds at least one BatchNorm layer."""
        return bool(self.batchnorm)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugin:
    """A failure mode as a counterfactual: what takes it away from a pipeline, and what puts it in.

    Attributes:
        id: lower case with hyphens; version: raised when what it asks changes its meaning.
        question: one line, for lists. page: the manual page, the module's docstring.
        applies: the reason why it cannot be asked here, or "" where it can.
        cure: the pipeline without the failure, or a choice among such.
        induce: named variants of a pipeline with the failure put in.
        beside: named arms that are measured at the first look and never judged, made from the subject; ``beside:NAME`` is what
            contrasts and records call them. They may have a ``train_size`` of their own.
        contrasts: what is judged or measured. measures: ``module:function@version`` of extra scalars, by name; the function
            returns one of that name.
        derived: numbers read out of the records, which are given by arm, view and seed.
        trust: what the answer takes on trust, or "": such an answer is never PASS.
        remedy: what to do, in one line, where the cure helps.
        told: what a reader is told beside a contrast's verdict, or "": which tensor, which field; of the contrast's name, the
            records, the subject and its cure.
        compares: its measures are given the pretraining set too, and the test images of all views.
        domain: ``source`` where its measures are given that as their view's, if the pipeline has one.
        picture: draws the plugin's own picture of a finished run into matplotlib axes.
        source: digest of the source of a third-party plugin, "" of a built-in one. Discovery sets it; an author does not.
    """

    id: str
    version: int
    question: str
    page: str
    applies: Callable[[Pipeline, Facts], str]
    cure: Callable[[Pipeline, Facts], Arm]
    induce: Callable[[Pipeline, Facts], Mapping[str, Arm]]
    remedy: str
    contrasts: tuple[Contrast, ...] = (HARM,)
    measures: Mapping[str, str] = field(default_factory=dict)
    derived: Callable[[Mapping[tuple[str, str, int], Record], Sequence[int]], Mapping[str, float]] | None = None
    trust: Callable[[Pipeline, Facts], str] | None = None
    told: Callable[[str, Mapping[tuple[str, str, int], Record], Pipeline, Pipeline], str] | None = None
    compares: bool = False
    domain: str = ""
    beside: Callable[[Pipeline, Facts], Mapping[str, Arm]] | None = None
    picture: Callable[[Any, Run], None] | None = None
    source: str = ""

    @property
    def judges(self) -> bool:
        """Whether any of its contrasts leads to a verdict; else it only measures, and neither cures nor induces anything."""
        return any(one.kind != "info" for one in self.contrasts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A recipe that a matrix compares: it, at each rate that it is tuned over; () is the default recipe or tuned scratch."""

    tag: ClassVar[str] = "Compared"
    name: str
    recipes: tuple[Recipe, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """A claim about one number of a matrix, and what it says that number is.

    The number is a plugin's ``contrast`` (of a variant what it costs, else the measurement or the harm); or what ``recipe`` has
    more than the recipe ``against`` in a view, in the metric; or of ``recipe`` alone a ``measure``, one of
    :data:`xferbench.study.claims.MEASURES`. ``published`` is its size as it was published, None where only a direction was.

    Attributes:
        claim: in words. source: where it stands. task: on which it is measured here.
        at_least, at_most: what the number is claimed to be, between them or on one side of one of them.
    """

    tag: ClassVar[str] = "Effect"
    name: str
    claim: str
    source: str
    task: str
    contrast: str = ""
    recipe: str = ""
    against: str = ""
    view: str = "test"
    measure: str = ""
    published: float | None = None
    at_least: float | None = None
    at_most: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """Targets × sizes × backbones, each a suite of its own; the recipes that are compared on each; the claims about them.

    ``against`` is the recipe that the others are held against; ``similar`` tells of tasks, by name,
    whether they are like the source, as far as somebody has said so.
    """

    tag: ClassVar[str] = "Matrix"
    tasks: tuple[Suite, ...]
    compared: tuple[Compared, ...]
    against: str
    effects: tuple[Effect, ...] = ()
    similar: Mapping[str, bool] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """A suite file, read and checked. Paths are absolute. ``recipe`` None means the healthy default.

    ``budget`` is in recorded seconds. ``scratch`` holds what a suite changes of the from-scratch grid. ``overrides`` are the
    words (``recipe.lr=1e-3``) that stood in the place of the file's keys. ``allow_code`` is said by whoever runs a suite, never
    by its file. ``after`` and ``before`` are the checkpoints of an audit, which trains nothing but a from-scratch baseline
    of ``scratch_budget`` seconds; ``command`` are the words that stood in the place of a file. Of a ``matrix`` only its tasks
    are carried out, which have the other fields in common. ``interventions`` change the target's training examples.
    """

    tag: ClassVar[str] = "Suite"
    name: str
    path: str
    plugins: tuple[str, ...]
    arch: str
    target: str
    weights: str | None = None
    preprocessing: Ready | None = None
    train_preprocessing: Ready | None = None
    serve_preprocessing: Ready | None = None
    serve_mode: str = "eval"
    recipe: Recipe | None = None
    source: str | None = None
    source_classes: tuple[tuple[str, int], ...] = ()
    shifted: str | None = None
    train_size: int | None = None
    test_size: int | None = None
    metric: str = "accuracy"
    margin: float = 0.02
    alpha: float = 0.05
    looks: tuple[int, ...] = (5, 10, 20)
    budget: float = 1200.0
    seed: int = 0
    tuning_seeds: int = 3
    scratch: Scratch = Scratch()
    overrides: tuple[str, ...] = ()
    training: str | None = None
    allow_code: bool = False
    after: str | None = None
    before: str | None = None
    believed: Recipe | None = None
    manifest: str | None = None
    max_duplicates: float = 0.0
    scratch_budget: float | None = None
    command: tuple[str, ...] = ()
    matrix: Matrix | None = None
    interventions: tuple[DataIntervention, ...] = field(default=(), metadata={"added": True})


SOURCE_KEY_LENGTH = 16  # hexadecimal digits of a source's digest in the key of a measure
MEASURES = {  # measures by their keys → the words that stand for them in keys of records
    "lab/cost@2": "xferbench.lab.cost:measured@2",
    "audit/collapse/collapse@1": "xferbench.checks.collapse:collapse@1",
    "audit/head-size/head-size@1": "xferbench.checks.head_size:spare@1",
    "audit/reload/reload@1": "xferbench.checks.reload:reload@1",
    "train-serve-skew/batch-dependence@1": "xferbench.checks.train_serve_skew:batch_dependence@1",
    "domain-gap/logme@1": "xferbench.plugins.domain_gap:logme@1",
    "data-leakage/copies@1": "xferbench.plugins.data_leakage:copies@1",
    "data-leakage/groups@1": "xferbench.plugins.data_leakage:groups@1",
    "feature-distortion/distortion@2": "xferbench.plugins.feature_distortion:distortion@2",
    "train-serve-skew/batch-dependence@2": "xferbench.plugins.train_serve_skew:batch_dependence@2",
    "freeze-integrity/integrity@1": "xferbench.plugins.freeze_integrity:integrity@1",
    "head-shock/shock@2": "xferbench.plugins.head_shock:shock@2",
    "batchnorm-drift/drift@1": "xferbench.plugins.batchnorm_drift:drift@1",
    "strategy-regret/trainable@1": "xferbench.plugins.strategy_regret:trainable@1",
}


def measure_key(plugin: str, name: str, reference: str, source: str = "") -> str:
    """Key of a plugin's measure, ``plugin-id/name@version``, whatever module its function stands in.

    A function of the lab belongs to no plugin; its owner is ``lab``, so that all who use it share its records. The key of a
    third-party plugin's measure ends with ``#`` and the start of the digest of its ``source``, so that code which changes
    while its version stays does not read the records of the code before.
    """
    version = reference.partition("@")[2]
    if reference.startswith("xferbench.lab."):
        return f"lab/{name}@{version}"
    return f"{plugin}/{name}@{version}" + (f"#{source[:SOURCE_KEY_LENGTH]}" if source else "")


def _aliased(measure: str) -> str:
    return MEASURES.get(measure, measure)


def content(value: Any) -> Any:
    """The part of a value that makes its key, as JSON's types: fractions to 6 significant digits, places left out.

    Raises:
        TypeError: for a value that has no canonical form, a NaN among them.
    """
    if isinstance(value, interventions.Intervention):
        return interventions.key(value)
    if is_dataclass(value) and not isinstance(value, type):
        named = {
            f.metadata.get("key", f.name): _aliased(getattr(value, f.name))
            if "alias" in f.metadata
            else interventions.absent(f, getattr(value, f.name))
            for f in fields(value)
            if not ("place" in f.metadata or ("added" in f.metadata and getattr(value, f.name) == f.default))
        }
        if (tag := getattr(value, "tag", None)) is None:
            raise TypeError(f"no canonical form for {value!r}: its class has no tag")
        return {"noun": tag} | {name: content(item) for name, item in named.items()}
    if value is None or isinstance(value, bool | str | int):
        return value
    if isinstance(value, float) and isfinite(value):
        rounded = float(f"{value:.6g}")
        return int(rounded) if rounded.is_integer() else rounded
    if isinstance(value, tuple | list):
        return [content(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): content(item) for key, item in value.items()}
    message = f"no canonical form for {value!r}"
    raise TypeError(message)


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON of a value, as hexadecimal."""
    text = json.dumps(content(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
