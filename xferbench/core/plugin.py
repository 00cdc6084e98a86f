"""What a failure mode is: contrasts, and functions that cure and induce. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from xferbench.core.pipeline import Arm, InputTransform, Pipeline
    from xferbench.core.record import Record
    from xferbench.core.run import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """A weighted sum over (arm, view) pairs whose value is harm where it is above 0.

    ``kind`` is ``paired`` (judged against the margin), ``info`` (a measurement, never a verdict) or ``exact``: an invariant,
    broken as soon as the sum is not 0, whose views are the plugin's own measures. The views of the others are those of
    :data:`xferbench.study.trials.VIEWS`. What is only measured may weigh arms ``beside:NAME`` too. ``metric`` is its own where
    it is
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


HARM = Contrast(name="harm", weights={("cured", "test"): 1.0, ("subject", "test"): -1.0}, meaning="cured − subject")


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What is known about backbone and data before anything is trained; probed once, then kept in the store.

    ``groups`` are the layer groups' names from the input up, without the head. ``trust`` names what nobody recorded.
    ``seconds_forward`` and ``seconds_step`` are for one image on one thread, for estimates only. ``size`` is height and width
    of what the network is given, in pixels. ``source`` and ``shifted`` are the classes of those domains, as in
    :class:`Domain`; ``source_error`` says why the source's are not known. ``recorded`` tells whether the preprocessing was
    written down somewhere. ``supports`` are the fields of a recipe that the user's training code heeds, None where the lab
    trains; ``crash`` is what the user's code raised while it was probed. ``outputs`` are those of a finished network's head,
    ``body_unchanged`` tells that all below it is as it was before. ``unsupported`` are the kinds of :attr:`Phase.trainable`
    (norm,
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
    preprocessing: InputTransform
    trust: tuple[str, ...] = ()
    dropped_examples: tuple[str, ...] = ()
    seconds_forward: float = 0.0
    seconds_step: float = 0.0
    size: tuple[int, int] = (0, 0)
    recorded: bool = True
    source: tuple[int, ...] = ()
    source_error: str = ""
    shifted: tuple[int, ...] = ()
    supports: tuple[str, ...] | None = None
    crash: str = ""
    outputs: int = 0
    body_unchanged: bool = False
    unsupported: tuple[str, ...] = ()

    @property
    def has_batchnorm(self) -> bool:
        """Whether the backbone holds at least one BatchNorm layer."""
        return bool(self.batchnorm)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugin:
    """A failure mode as a counterfactual: what takes it away from a pipeline, and what puts it in.

    Attributes:
        id: lower case with hyphens; version: raised when what it asks changes its meaning.
        question: one line, for lists. doc: the manual page, the module's docstring.
        applies: the reason why it cannot be asked here, or "" where it can.
        cure: the pipeline without the failure, or a choice among such.
        induce: named variants of a pipeline with the failure put in.
        extra_arms: named arms that are measured at the first look and never judged, made from the subject; ``beside:NAME`` is
            what contrasts and records call them. They may have a ``train_size`` of their own.
        contrasts: what is judged or measured. measures: ``module:function@version`` of extra scalars, by name; the function
            returns one of that name.
        derived_metrics: numbers read out of the records, which are given by arm, view and seed.
        trust: what the answer takes on trust, or "": such an answer is never PASS.
        remedy: what to do, in one line, where the cure helps.
        explain: what a reader is told beside a contrast's verdict, or "": which tensor, which field; of the contrast's name,
            the records, the subject and its cure.
        needs_pretraining_data: its measures are given the pretraining set too, and the test images of all views.
        domain: ``source`` where its measures are given that as their view's, if the pipeline has one.
        plot: draws the plugin's own picture of a finished run into matplotlib axes.
        source: digest of the source of a third-party plugin, "" of a built-in one. Discovery sets it; an author does not.
    """

    id: str
    version: int
    question: str
    doc: str
    applies: Callable[[Pipeline, Profile], str]
    cure: Callable[[Pipeline, Profile], Arm]
    induce: Callable[[Pipeline, Profile], Mapping[str, Arm]]
    remedy: str
    contrasts: tuple[Contrast, ...] = (HARM,)
    measures: Mapping[str, str] = field(default_factory=dict)
    derived_metrics: Callable[[Mapping[tuple[str, str, int], Record], Sequence[int]], Mapping[str, float]] | None = None
    trust: Callable[[Pipeline, Profile], str] | None = None
    explain: Callable[[str, Mapping[tuple[str, str, int], Record], Pipeline, Pipeline], str] | None = None
    needs_pretraining_data: bool = False
    domain: str = ""
    extra_arms: Callable[[Pipeline, Profile], Mapping[str, Arm]] | None = None
    plot: Callable[[Any, Run], None] | None = None
    source: str = ""

    @property
    def has_verdict(self) -> bool:
        """Whether any of its contrasts leads to a verdict; else it only measures, and neither cures nor induces anything."""
        return any(one.kind != "info" for one in self.contrasts)
