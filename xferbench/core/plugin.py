"""Failure modes: contrasts, and functions that cure a pipeline or induce the failure. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from xferbench.core.sections import section_field

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from xferbench.core.finished_head import FinishedHead
    from xferbench.core.pipeline import Arm, Checkpoint, Data, Pipeline, UserCode, WeightsFile
    from xferbench.core.reason import Reason
    from xferbench.core.record import Record
    from xferbench.core.run import Run
    from xferbench.core.suite import Rules, Suite
    from xferbench.core.transforms import InputTransform


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """A weighted sum over (arm, view) pairs; a positive value is harm.

    Attributes:
        name: the name within the plugin.
        weights: the weight of each (arm, view) pair. Views are those of :data:`xferbench.study.trials.VIEWS`; those of an
            ``exact`` contrast are measures of the plugin. An ``info`` contrast may use arms ``beside:NAME`` too. A ``share``
            contrast has one pair.
        kind: ``paired`` (compared with the margin), ``share`` (the share of the runs of an arm that fail, compared with the
            allowed share), ``info`` (a measurement without a verdict) or ``exact`` (an invariant, which is broken if the sum is
            not 0).
        meaning: the contrast in words.
        metric: the metric, or "" for that of the suite.
        margin: the margin in the unit of ``metric``, or None for that of the suite.
        allowed: the field of the suite's rules with the largest allowed absolute value of an invariant, or "" for 0; for a
            ``share`` contrast, the field with the allowed share.
        controlled: whether the induced variants should break the invariant.
        span: the largest harm that one test example can show, or None for the largest difference of two scores of the metric.
        effect: the ``info`` contrast that measures what a broken invariant changes, or "".
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
    span: float | None = field(default=None, metadata={"added": True})
    effect: str = ""


HARM = Contrast(name="harm", weights={("cured", "test"): 1.0, ("subject", "test"): -1.0}, meaning="cured − subject")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileRequest:
    """What a profile is computed from: the parts of a pipeline that are known before the profile.

    Attributes:
        arch: the spelling of the architecture.
        weights: the pretrained checkpoint; for an audit the checkpoint before training, or the audited one.
        target: the target dataset.
        preprocessing: the preprocessing of the suite, or None for that of the checkpoint.
        train_size, test_size: numbers of target images that are used; None for all.
        source: the source dataset, or None.
        source_classes: pairs of a class of the source and its output of the pretrained head, if the suite maps them.
        shifted: the shifted dataset, or None.
        code: the user's code that builds the network, or None.
        pooling: as in :class:`xferbench.core.pipeline.Backbone`.
        training: the user's training code, or None.
        checkpoint: the finished network of an audit, or None.
        device: where the time of an example is measured.
    """

    arch: str
    weights: WeightsFile
    target: Data
    preprocessing: InputTransform | None = None
    train_size: int | None = None
    test_size: int | None = None
    source: Data | None = None
    source_classes: tuple[tuple[str, int], ...] = ()
    shifted: Data | None = None
    code: UserCode | None = None
    pooling: str = ""
    training: UserCode | None = None
    checkpoint: Checkpoint | None = None
    device: str = "cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelProfile:
    """Properties of the network.

    Attributes:
        parameters: number of parameters of the backbone.
        groups: names of the layer groups from the input up, without the head.
        head: the dotted name of the head.
        batchnorm: names of the BatchNorm layers.
        size: height and width of the network's input, in pixels; for texts, 2 and the number of tokens.
        accepted_sizes: common sides of square images, in pixels, or lengths of texts, in tokens, that the network accepts;
            none for spectrograms.
        outputs: number of outputs of a finished network's head, 0 for other networks.
        finished_head: the head of a finished network, if it is not that of the architecture.
        body_unchanged: whether everything below the head of a finished network is as it was before training.
        unsupported: the kinds of trainable parameters (``norm``, ``bias``, ``lora``, ``adapter``, ``prompt``, ``prefix``) that
            the backbone lacks, ``dropout`` if it has no dropout layers below its head, and ``unlabelled`` if the shifted set
            has no training examples.
    """

    parameters: int
    groups: tuple[str, ...]
    head: str
    batchnorm: tuple[str, ...]
    size: tuple[int, int] = (0, 0)
    accepted_sizes: tuple[int, ...] = ()
    outputs: int = 0
    finished_head: FinishedHead | None = None
    body_unchanged: bool = False
    unsupported: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DataProfile:
    """Properties of the data.

    Attributes:
        classes: names of the target's classes.
        train, validation, test: numbers of target images.
        test_groups: number of groups among the test images, or None if there are no groups.
        source, shifted: the classes of those datasets, as in :class:`~xferbench.core.pipeline.AuxiliaryDataset`.
        source_error: why the source's classes are not known, or "".
        dropped_examples: the examples that cannot be used, in words.
        rotated, sixteen_bit: numbers of images with an EXIF orientation, and with 16 bits per channel.
        highest: the highest value of images with 16 bits per channel.
        truncated: number of test texts that are cut to the largest length.
        notes: how the files of the datasets were understood, in words.
    """

    classes: tuple[str, ...]
    train: int
    validation: int
    test: int
    test_groups: int | None
    source: tuple[int, ...] = ()
    source_error: str = ""
    shifted: tuple[int, ...] = ()
    dropped_examples: tuple[str, ...] = ()
    rotated: int = 0
    sixteen_bit: int = 0
    highest: int = 0
    truncated: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class UserCodeProfile:
    """Properties of the user's code.

    Attributes:
        supports: the fields of a recipe that the user's training code supports; None if the lab trains.
        crash: the exception that the user's code raised when it was probed, or "".
    """

    supports: tuple[str, ...] | None = None
    crash: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Times for one image on one thread in seconds, for estimates only: of a forward pass and of a training step."""

    seconds_forward: float = 0.0
    seconds_step: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Properties of a backbone and its data that are known before training; probed once, then kept in the store.

    Attributes:
        model: properties of the network.
        data: properties of the data.
        user_code: properties of the user's code.
        timing: times for estimates.
        preprocessing: the preprocessing of the pipeline's backbone.
        recorded: whether the preprocessing is recorded with the weights. A statement of the suite is no record.
        trust: the settings that are not recorded and are taken on trust.
    """

    model: ModelProfile = section_field(ModelProfile)
    data: DataProfile = section_field(DataProfile)
    user_code: UserCodeProfile = section_field(UserCodeProfile, default=UserCodeProfile())
    timing: Timing = section_field(Timing, default=Timing())
    preprocessing: InputTransform
    recorded: bool = True
    trust: tuple[str, ...] = ()

    @property
    def has_sigmoid(self) -> bool:
        """Whether a finished network has one output for two classes: the logit of the second class, for a sigmoid."""
        return self.model.outputs == 1 and len(self.data.classes) == 2

    @property
    def has_batchnorm(self) -> bool:
        """Whether the backbone has at least one BatchNorm layer."""
        return bool(self.model.batchnorm)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugin:
    """A failure mode as a counterfactual: functions that remove the failure from a pipeline and that add it.

    Attributes:
        id: the id, in lower case with hyphens.
        version: the version; increase it if the meaning of the plugin's question changes.
        question: the question in one line, for lists.
        doc: the manual page, which is the module's docstring.
        applies: returns the reason why the plugin does not apply to a pipeline, or "".
        cure: returns the pipeline without the failure, or a selection among such pipelines.
        induce: returns named variants of a pipeline with the failure added.
        remedy: the advice in one line, for a failure that the cure removes.
        contrasts: the contrasts that lead to verdicts or measurements.
        measures: ``module:function@version`` of additional scalars, by name; the function returns a scalar of that name.
        derived_metrics: returns numbers computed from the records (by arm, view and seed) and the seeds.
        trust: returns what the result takes on trust, or "". A result on trust is never PASS.
        explain: returns the plugin's sentence for a contrast's finding (which tensor, which field), or "". Its arguments are
            the name of the contrast, the records, the subject and the cured pipeline.
        why_no_pass: returns why an invariant that holds is no PASS, for example because its search finds too little; or None.
            Its arguments are the name of the contrast, the records and the rules of the suite.
        needs_pretraining_data: whether the measures need the pretraining data and the test images of all views.
        domain: ``source`` if the measures are evaluated on the source, provided that the pipeline has one.
        extra_arms: returns named arms, derived from the subject, that are measured at the first look and have no verdict.
            Contrasts and records name them ``beside:NAME``. They may have another ``train_size``.
        judges: returns whether the plugin leads to verdicts for a suite; otherwise it only measures. None if it always judges.
        plot: draws the plugin's plot of a finished run into matplotlib axes.
        source: digest of the source of a third-party plugin, "" for a built-in one. Discovery sets it; an author does not.
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
    why_no_pass: Callable[[str, Mapping[tuple[str, str, int], Record], Rules], Reason | None] | None = None
    needs_pretraining_data: bool = False
    domain: str = ""
    extra_arms: Callable[[Pipeline, Profile], Mapping[str, Arm]] | None = None
    judges: Callable[[Suite], bool] | None = None
    plot: Callable[[Any, Run], None] | None = None
    source: str = ""

    @property
    def has_verdict(self) -> bool:
        """Whether any contrast leads to a verdict. If not, the plugin only measures, and does not cure or induce anything."""
        return any(contrast.kind != "info" for contrast in self.contrasts)
