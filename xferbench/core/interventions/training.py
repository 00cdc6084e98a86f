"""Interventions that change how a network trains: trainable parameters, heads, augmentations and regularizers. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from xferbench.core.interventions.base import Intervention, number

__all__ = [
    "ADDED_KINDS",
    "ALL_LAYERS",
    "AUGMENTATIONS",
    "DANN",
    "EWC",
    "HEADS",
    "HEAD_ONLY",
    "L2SP",
    "OWN_HEAD",
    "RANDOM_HEAD",
    "REGULARIZERS",
    "TRAINABLES",
    "ZERO_HEAD",
    "Adapters",
    "AllLayers",
    "Augmentation",
    "Biases",
    "Crop",
    "Distillation",
    "Flip",
    "FlipAndCrop",
    "Head",
    "HeadOnly",
    "LoRA",
    "LwF",
    "MLPHead",
    "NormLayers",
    "OwnHead",
    "PrefixTokens",
    "PromptTokens",
    "RandomHead",
    "Regularizer",
    "Replay",
    "TopGroups",
    "Trainable",
    "ZeroHead",
]


class Trainable(Intervention):
    """The parameters that a phase trains. Every kind includes the head."""

    __slots__ = ()

    @classmethod
    def built_in(cls) -> tuple[type[Intervention], ...]:
        """Return the built-in kinds."""
        return TRAINABLES


@dataclass(frozen=True, slots=True, kw_only=True)
class AllLayers(Trainable):
    """Every parameter."""

    spelling: ClassVar[str] = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadOnly(Trainable):
    """The head only."""

    spelling: ClassVar[str] = "head"


@dataclass(frozen=True, slots=True, kw_only=True)
class TopGroups(Trainable):
    """The head and the uppermost layer groups."""

    spelling: ClassVar[str] = "top"
    groups: int = number(low=1, whole=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class NormLayers(Trainable):
    """The head, and the scale and shift of the normalization layers."""

    spelling: ClassVar[str] = "norm"
    requires: ClassVar[tuple[str, ...]] = ("norm",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Biases(Trainable):
    """The head and every bias, including those of normalization layers."""

    spelling: ClassVar[str] = "bias"
    words: ClassVar[str] = "biases"
    requires: ClassVar[tuple[str, ...]] = ("bias",)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoRA(Trainable):
    """The head and a low-rank update of every linear and convolutional weight, which is merged when the phase ends."""

    spelling: ClassVar[str] = "lora"
    words: ClassVar[str] = "LoRA of rank {rank}"
    requires: ClassVar[tuple[str, ...]] = ("lora",)
    rank: int = number(low=1, whole=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapters(Trainable):
    """The head and a residual bottleneck after each layer group. The bottlenecks exist from the first phase on."""

    spelling: ClassVar[str] = "adapter"
    words: ClassVar[str] = "adapters of {channels} channels"
    requires: ClassVar[tuple[str, ...]] = ("adapter",)
    channels: int = number(low=1, whole=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptTokens(Trainable):
    """The head and embeddings of virtual tokens before each text, which exist from the first phase on (Lester et al. 2021)."""

    spelling: ClassVar[str] = "prompt"
    words: ClassVar[str] = "a prompt of {tokens} virtual tokens"
    requires: ClassVar[tuple[str, ...]] = ("prompt",)
    tokens: int = number(low=1, whole=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixTokens(Trainable):
    """The head and keys and values of virtual tokens in each attention layer, from the first phase on (Li & Liang 2021)."""

    spelling: ClassVar[str] = "prefix"
    words: ClassVar[str] = "a prefix of {tokens} virtual tokens"
    requires: ClassVar[tuple[str, ...]] = ("prefix",)
    tokens: int = number(low=1, whole=True)


class Head(Intervention):
    """The initial head of a network."""

    __slots__ = ()

    @classmethod
    def built_in(cls) -> tuple[type[Intervention], ...]:
        """Return the built-in kinds."""
        return HEADS


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomHead(Head):
    """One linear layer, initialized randomly as the architecture's author initializes it."""

    spelling: ClassVar[str] = "random"


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroHead(Head):
    """One linear layer of zeros."""

    spelling: ClassVar[str] = "zero"


@dataclass(frozen=True, slots=True, kw_only=True)
class MLPHead(Head):
    """Two randomly initialized linear layers, with a ReLU and dropout between them."""

    spelling: ClassVar[str] = "mlp"
    words: ClassVar[str] = "mlp:{units}:{dropout:g}"
    units: int = number(low=1, whole=True)
    dropout: float = number(low=0, high=1, high_open=True, default=0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnHead(Head):
    """The head of a finished network; no recipe may use it."""

    spelling: ClassVar[str] = "own"


class Augmentation(Intervention):
    """A random change of the training images, sampled at each step.

    The implementation of a third-party kind takes the images of a batch, uint8 [batch, channels, height, width], the value and
    a random generator, and returns images of the same shape and type.
    """

    __slots__ = ()

    @classmethod
    def built_in(cls) -> tuple[type[Intervention], ...]:
        """Return the built-in kinds."""
        return AUGMENTATIONS


@dataclass(frozen=True, slots=True, kw_only=True)
class Flip(Augmentation):
    """A horizontal flip with probability 0.5."""

    spelling: ClassVar[str] = "flip"


@dataclass(frozen=True, slots=True, kw_only=True)
class Crop(Augmentation):
    """A shift by up to an eighth of each side, with reflected edges."""

    spelling: ClassVar[str] = "crop"


@dataclass(frozen=True, slots=True, kw_only=True)
class FlipAndCrop(Augmentation):
    """A flip, then a shift."""

    spelling: ClassVar[str] = "flip+crop"


class Regularizer(Intervention):
    """A term of the training loss.

    The implementation of a third-party kind takes the parameters below the head that a phase trains, the value, and the
    pretrained values of these parameters, both by name, and returns the penalty as a tensor without dimensions.
    """

    __slots__ = ()
    requires: ClassVar[tuple[str, ...]] = ("pretrained",)

    @classmethod
    def built_in(cls) -> tuple[type[Intervention], ...]:
        """Return the built-in kinds."""
        return REGULARIZERS


@dataclass(frozen=True, slots=True, kw_only=True)
class L2SP(Regularizer):
    """Half the squared distance from the initial weights, times a strength (Li et al. 2018)."""

    spelling: ClassVar[str] = "l2-sp"
    requires: ClassVar[tuple[str, ...]] = ("pretrained",)
    strength: float = number(low=0, low_open=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class EWC(Regularizer):
    """Squared distance from the initial weights, weighted by the source's Fisher information (Kirkpatrick et al. 2017)."""

    spelling: ClassVar[str] = "ewc"
    requires: ClassVar[tuple[str, ...]] = ("pretrained", "source")
    strength: float = number(low=0, low_open=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class LwF(Regularizer):
    """Distance of the pretrained head's outputs from their initial values (Li & Hoiem 2016)."""

    spelling: ClassVar[str] = "lwf"
    requires: ClassVar[tuple[str, ...]] = ("pretrained", "head", "plain-head")
    strength: float = number(low=0, low_open=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class DANN(Regularizer):
    """Reversed gradient of a classifier that separates target images from unlabeled shifted images (Ganin et al. 2016)."""

    spelling: ClassVar[str] = "dann"
    requires: ClassVar[tuple[str, ...]] = ("shifted",)
    strength: float = number(low=0, low_open=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay(Regularizer):
    """Source images in each batch (Rolnick et al. 2019)."""

    spelling: ClassVar[str] = "replay"
    requires: ClassVar[tuple[str, ...]] = ("pretrained", "source", "plain-head")
    images: int = number(low=1, whole=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Distillation(Regularizer):
    """Distance from the outputs of the adapted pretrained backbone, as a share of the loss (Hinton et al. 2015)."""

    spelling: ClassVar[str] = "distill"
    requires: ClassVar[tuple[str, ...]] = ("teacher",)
    weight: float = number(low=0, low_open=True, high=1)


TRAINABLES = (HeadOnly, TopGroups, NormLayers, Biases, LoRA, Adapters, PromptTokens, PrefixTokens, AllLayers)
ADDED_KINDS = (Adapters, PromptTokens, PrefixTokens)  # those that train parameters which no checkpoint contains
HEADS = (RandomHead, ZeroHead, MLPHead)
AUGMENTATIONS = (Flip, Crop, FlipAndCrop)
REGULARIZERS = (L2SP, EWC, LwF, DANN, Replay, Distillation)

ALL_LAYERS, HEAD_ONLY = AllLayers(), HeadOnly()
RANDOM_HEAD, ZERO_HEAD, OWN_HEAD = RandomHead(), ZeroHead(), OwnHead()
