"""Interventions that change a trained network without training it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from xferbench.core.interventions.base import Intervention, number

__all__ = [
    "EDITS",
    "FINISHES",
    "AdaptBatchNorm",
    "AssignClasses",
    "BatchNormEdit",
    "BatchNormEpsilon",
    "DivideLogits",
    "Edit",
    "Finish",
    "FitClassBias",
    "FitTemperature",
    "InterpolateCheckpoints",
    "InterpolatePhase",
    "OneClassBatchNorm",
    "PermuteWeights",
    "ProbeHead",
    "RecalibrateBatchNorm",
    "RefitHead",
    "ResetBatchNorm",
    "RestoreBatchNorm",
    "RotateClasses",
    "SourceHead",
]


class Edit(Intervention):
    """A change of a trained network.

    The implementation of a third-party kind takes the tensors of the network by name, the value, a random generator and an
    ``EditContext`` of :mod:`xferbench.lab.evaluation.context`, and returns tensors of the same names and shapes.

    Attributes:
        screened: whether the edit is fitted on the screened half of the test images.
    """

    __slots__ = ()
    screened: ClassVar[bool] = False

    @classmethod
    def built_in(cls) -> tuple[type[Intervention], ...]:
        """Return the built-in kinds."""
        return EDITS


class Finish(Edit):
    """An edit that is the last step of a recipe."""

    __slots__ = ()

    @classmethod
    def built_in(cls) -> tuple[type[Intervention], ...]:
        """Return the built-in kinds."""
        return FINISHES


class BatchNormEdit(Edit):
    """An edit that changes only the running statistics of BatchNorm layers.

    Attributes:
        statistics: the new statistics, in one word.
    """

    __slots__ = ()
    statistics: ClassVar[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptBatchNorm(Finish):
    """Replace BatchNorm statistics with those of each domain's own images, without labels (Li et al. 2016, AdaBN)."""

    spelling: ClassVar[str] = "adabn"
    words: ClassVar[str] = "BatchNorm statistics of each domain's own images"
    requires: ClassVar[tuple[str, ...]] = ("batchnorm",)


@dataclass(frozen=True, slots=True, kw_only=True)
class InterpolatePhase(Finish):
    """Interpolate all weights between the start (0) and the end (1) of the last phase (Wortsman et al. 2022, WiSE-FT)."""

    spelling: ClassVar[str] = "interpolate"
    words: ClassVar[str] = "all weights at {share:g} of the way through the last phase"
    share: float = number(low=0, high=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class InterpolateCheckpoints(Edit):
    """Interpolate all weights below the head between the checkpoint before (0) and after (1) training; keep the head."""

    spelling: ClassVar[str] = "interpolated"
    words: ClassVar[str] = "weights at {share:g} of the way from before to after"
    share: float = number(low=0, high=1)

    def describe(self) -> str:
        """Return the value in words, for reports."""
        return self.words.format(share=self.share) if self.share else "the backbone of before"


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreBatchNorm(BatchNormEdit):
    """Restore the BatchNorm statistics from before training."""

    spelling: ClassVar[str] = "batchnorm:restored"
    statistics: ClassVar[str] = "restored"
    words: ClassVar[str] = "BatchNorm statistics of before put back"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecalibrateBatchNorm(BatchNormEdit):
    """Estimate the BatchNorm statistics on the training images."""

    spelling: ClassVar[str] = "batchnorm:recalibrated@2"
    statistics: ClassVar[str] = "recalibrated"
    words: ClassVar[str] = "BatchNorm statistics recalibrated on training images"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResetBatchNorm(BatchNormEdit):
    """Reset the BatchNorm statistics to their initial values, mean 0 and variance 1."""

    spelling: ClassVar[str] = "batchnorm:initial"
    statistics: ClassVar[str] = "initial"
    words: ClassVar[str] = "BatchNorm statistics of a fresh network"


@dataclass(frozen=True, slots=True, kw_only=True)
class OneClassBatchNorm(BatchNormEdit):
    """Estimate the BatchNorm statistics on the most frequent class only."""

    spelling: ClassVar[str] = "batchnorm:one-class@1"
    statistics: ClassVar[str] = "one-class"
    words: ClassVar[str] = "BatchNorm statistics of one class"


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchNormEpsilon(BatchNormEdit):
    """Add the difference of two epsilons to the running variances, as if the layers had this epsilon in evaluation mode.

    Frameworks differ in it: PyTorch has 1e-5, and Keras has 1e-3.
    """

    spelling: ClassVar[str] = "batchnorm:epsilon"
    statistics: ClassVar[str] = "with another epsilon"
    words: ClassVar[str] = "BatchNorm with an epsilon of {epsilon:g}"
    epsilon: float = number(low=0, low_open=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class AssignClasses(Edit):
    """Reorder the head's outputs by the order that fits the screened examples best."""

    spelling: ClassVar[str] = "classes:assigned@1"
    words: ClassVar[str] = "classes in the order that the screened half asks for"
    screened: ClassVar[bool] = True


@dataclass(frozen=True, slots=True, kw_only=True)
class RotateClasses(Edit):
    """Move each of the head's outputs to the place of the next one."""

    spelling: ClassVar[str] = "classes:rotated"
    words: ClassVar[str] = "each class in the next one's place"


@dataclass(frozen=True, slots=True, kw_only=True)
class FitTemperature(Edit):
    """Divide the logits by a temperature fitted on held-out images (Guo et al. 2017)."""

    spelling: ClassVar[str] = "temperature:fitted@1"
    words: ClassVar[str] = "logits divided by a temperature fitted on examples kept apart"
    screened: ClassVar[bool] = True


@dataclass(frozen=True, slots=True, kw_only=True)
class FitClassBias(Edit):
    """Add a bias to each class that is fitted on held-out images, so that no decision threshold is left to repair."""

    spelling: ClassVar[str] = "bias:fitted@1"
    words: ClassVar[str] = "a bias of each class fitted on examples kept apart"
    screened: ClassVar[bool] = True


@dataclass(frozen=True, slots=True, kw_only=True)
class DivideLogits(Edit):
    """Divide the logits by a temperature."""

    spelling: ClassVar[str] = "temperature"
    words: ClassVar[str] = "logits divided by {temperature:g}"
    temperature: float = number(low=0, low_open=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class PermuteWeights(Edit):
    """Shuffle the values within each trained tensor below the head, except those of BatchNorm."""

    spelling: ClassVar[str] = "weights:permuted@1"
    words: ClassVar[str] = "weights shuffled within each tensor"


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceHead(Edit):
    """Replace the trained head with the pretrained one."""

    spelling: ClassVar[str] = "head:source"
    words: ClassVar[str] = "the pretrained head"


@dataclass(frozen=True, slots=True, kw_only=True)
class RefitHead(Edit):
    """Replace the head with a linear head fitted on the training images of the evaluated domain."""

    spelling: ClassVar[str] = "head:refit"
    words: ClassVar[str] = "the head fitted anew"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeHead(Edit):
    """Replace the head with a linear head fitted on the target's training images."""

    spelling: ClassVar[str] = "head:probe"
    words: ClassVar[str] = "a head fitted anew on training examples"


FINISHES = (AdaptBatchNorm, InterpolatePhase)
EDITS = (
    *FINISHES,
    InterpolateCheckpoints,
    RestoreBatchNorm,
    RecalibrateBatchNorm,
    ResetBatchNorm,
    OneClassBatchNorm,
    BatchNormEpsilon,
    AssignClasses,
    RotateClasses,
    FitTemperature,
    FitClassBias,
    DivideLogits,
    PermuteWeights,
    SourceHead,
    RefitHead,
    ProbeHead,
)
