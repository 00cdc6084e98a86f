"""How BatchNorm layers run in training, and how the network runs when it serves. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from xferbench.core.interventions.base import Intervention, number

__all__ = [
    "BATCHNORM_EVAL",
    "BATCHNORM_MODES",
    "BATCHNORM_TRAIN",
    "EVAL_MODE",
    "SERVING_MODES",
    "TRAIN_MODE",
    "BatchNormEval",
    "BatchNormMode",
    "BatchNormMomentum",
    "BatchNormTrain",
    "BatchNormTrainAbove",
    "EvalMode",
    "GhostBatchNorm",
    "ServingMode",
    "TrainMode",
    "TrainModeByClass",
]


class BatchNormMode(Intervention):
    """How the BatchNorm layers run in a phase."""

    __slots__ = ()

    @classmethod
    def built_in(cls) -> tuple[type[Intervention], ...]:
        """Return the built-in kinds."""
        return BATCHNORM_MODES


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchNormEval(BatchNormMode):
    """The stored statistics normalize each batch and do not change."""

    spelling: ClassVar[str] = "eval"


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchNormTrain(BatchNormMode):
    """The statistics of each batch normalize it and update the running statistics."""

    spelling: ClassVar[str] = "train"


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchNormTrainAbove(BatchNormMode):
    """Train mode above the frozen layer groups, which stay in eval mode."""

    spelling: ClassVar[str] = "train-above"


@dataclass(frozen=True, slots=True, kw_only=True)
class GhostBatchNorm(BatchNormMode):
    """Train mode on slices of each batch (Hoffer et al. 2017); BatchNorm has no variance over a single example."""

    spelling: ClassVar[str] = "ghost"
    examples: int = number(low=2, whole=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchNormMomentum(BatchNormMode):
    """Train mode with another momentum of the running statistics."""

    spelling: ClassVar[str] = "momentum"
    momentum: float = number(low=0, low_open=True, high=1)


class ServingMode(Intervention):
    """The mode of the whole network when it serves."""

    __slots__ = ()

    @classmethod
    def built_in(cls) -> tuple[type[Intervention], ...]:
        """Return the built-in kinds."""
        return SERVING_MODES


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalMode(ServingMode):
    """Evaluation mode, after ``.eval()``."""

    spelling: ClassVar[str] = "eval"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainMode(ServingMode):
    """Training mode, because ``.eval()`` was not called, on shuffled batches."""

    spelling: ClassVar[str] = "train"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainModeByClass(ServingMode):
    """Training mode on batches that are ordered by class."""

    spelling: ClassVar[str] = "train:class"


BATCHNORM_MODES = (BatchNormEval, BatchNormTrain, BatchNormTrainAbove, GhostBatchNorm, BatchNormMomentum)
SERVING_MODES = (EvalMode, TrainMode, TrainModeByClass)
BATCHNORM_EVAL, BATCHNORM_TRAIN = BatchNormEval(), BatchNormTrain()
EVAL_MODE, TRAIN_MODE = EvalMode(), TrainMode()
