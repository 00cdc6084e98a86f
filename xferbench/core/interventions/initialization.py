"""The weights that an adaptation starts from. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from xferbench.core.interventions.base import Intervention, number

__all__ = [
    "INITIALIZATIONS",
    "LAYER_TRANSFERS",
    "PRETRAINED",
    "RANDOM",
    "TRANSFER_ALL",
    "CleanSource",
    "CuedSource",
    "Initialization",
    "LayerTransfer",
    "MatchedMoments",
    "PermutedWeights",
    "Pretrained",
    "RandomWeights",
    "ShuffledSource",
    "SourcePretraining",
    "TargetPretraining",
    "TransferAll",
    "TransferLowest",
]


class Initialization(Intervention):
    """The initial weights below the head."""

    __slots__ = ()

    @classmethod
    def built_in(cls) -> tuple[type[Intervention], ...]:
        """Return the built-in kinds."""
        return INITIALIZATIONS


@dataclass(frozen=True, slots=True, kw_only=True)
class Pretrained(Initialization):
    """The pretrained weights."""

    spelling: ClassVar[str] = "pretrained"


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomWeights(Initialization):
    """Random weights, as the architecture's author initializes them."""

    spelling: ClassVar[str] = "random"


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchedMoments(Initialization):
    """Random weights with the mean and variance of each pretrained tensor (Raghu et al. 2019)."""

    spelling: ClassVar[str] = "matched"


@dataclass(frozen=True, slots=True, kw_only=True)
class PermutedWeights(Initialization):
    """The pretrained values, shuffled within each tensor."""

    spelling: ClassVar[str] = "permuted"


class SourcePretraining(Initialization):
    """The weights of a network that the lab pretrains on the pipeline's source."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ShuffledSource(SourcePretraining):
    """Pretraining on the source with shuffled labels."""

    spelling: ClassVar[str] = "shuffled-source"


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanSource(SourcePretraining):
    """Pretraining on the unchanged source."""

    spelling: ClassVar[str] = "clean-source"


@dataclass(frozen=True, slots=True, kw_only=True)
class CuedSource(SourcePretraining):
    """Pretraining on the source with a cue on every image of the first class."""

    spelling: ClassVar[str] = "cued-source"


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetPretraining(Initialization):
    """The weights of a network that is trained first, from random weights, on the same training images."""

    spelling: ClassVar[str] = "target"


class LayerTransfer(Intervention):
    """The layer groups that keep the initial weights; the groups above are initialized randomly."""

    __slots__ = ()

    @classmethod
    def built_in(cls) -> tuple[type[Intervention], ...]:
        """Return the built-in kinds."""
        return LAYER_TRANSFERS


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferAll(LayerTransfer):
    """Every layer group."""

    spelling: ClassVar[str] = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferLowest(LayerTransfer):
    """The lowest layer groups."""

    spelling: ClassVar[str] = "low"
    groups: int = number(low=1, whole=True)


INITIALIZATIONS = (
    Pretrained,
    RandomWeights,
    MatchedMoments,
    PermutedWeights,
    ShuffledSource,
    CleanSource,
    CuedSource,
    TargetPretraining,
)
LAYER_TRANSFERS = (TransferAll, TransferLowest)
PRETRAINED, RANDOM = Pretrained(), RandomWeights()
TRANSFER_ALL = TransferAll()
