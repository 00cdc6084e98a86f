"""Interventions as frozen values: each kind states its spelling, its range, its words and where the lab implements it.

Pure, except that :func:`key` reads the source of a kind that is not built in. A new kind is a class here and a function in the
lab, which the class names; no import registers anything.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from functools import cache
from importlib.util import find_spec
from math import inf, isfinite
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

PACKAGE = __name__.partition(".")[0]
NUMBER = r"(\d+\.?\d*|\.\d+)(e[+-]?\d+)?"


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """The numbers that a field may hold, from ``low`` to ``high``; a bound that is ``open`` is not among them."""

    low: float = -inf
    high: float = inf
    low_open: bool = False
    high_open: bool = False
    whole: bool = False

    def __contains__(self, number: object) -> bool:
        if isinstance(number, bool) or not isinstance(number, int if self.whole else (int, float)) or not isfinite(number):
            return False
        above = number > self.low if self.low_open else number >= self.low
        return above and (number < self.high if self.high_open else number <= self.high)

    def __str__(self) -> str:
        bounds = [f"above {self.low:g}" if self.low_open else f"at least {self.low:g}"] if self.low > -inf else []
        bounds += [f"below {self.high:g}" if self.high_open else f"at most {self.high:g}"] if self.high < inf else []
        return ("a whole number " if self.whole else "a number ") + " and ".join(bounds)

    @property
    def pattern(self) -> str:
        """A regular expression that matches every number in the range, and some numbers beyond it."""
        if self.whole:
            return r"[1-9]\d*" if self.low >= 1 else r"\d+"
        if (self.low, self.high) == (0, 1):
            ends = [end for limit, end in ((0, r"0(\.0*)?|\.0+"), (1, r"1(\.0*)?")) if limit in self]
            return "(" + "|".join([r"0?\.\d*[1-9]\d*", r"\d(\.\d+)?e-\d+", *ends]) + ")"
        return r"(?=[^e:]*[1-9])" + NUMBER if self.low == 0 and self.low_open else NUMBER

    def parse(self, text: str) -> float:
        """Return the number that a text stands for.

        Raises:
            ValueError: for a text that is no number of this kind; the range itself is checked by the value that holds it.
        """
        if not re.fullmatch(r"\d+" if self.whole else NUMBER, text):
            raise ValueError(str(self))
        return int(text) if self.whole else float(text)


def number(**bounds: Any) -> Any:
    """Return a dataclass field that holds a number within a :class:`Range`; a default may be among the arguments."""
    default = {"default": bounds.pop("default")} if "default" in bounds else {}
    return field(**default, metadata={"range": Range(**bounds)})


class Intervention:
    """The base of every kind; a kind is a frozen dataclass whose fields are numbers with a range.

    Attributes:
        spelling: the word in suites and keys, before the fields: ``label-noise`` in ``label-noise:0.2``.
        words: the value in a sentence, a format string over its fields.
        requires: what a fit of it must have, keys of :data:`REQUIREMENTS`.
    """

    __slots__ = ()
    spelling: ClassVar[str]
    words: ClassVar[str]
    requires: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for name, limits in ranges(type(self)).items():
            if getattr(self, name) not in limits:
                raise ValueError(f"{self.spelling}: {name} is {getattr(self, name)!r}; expected {limits}")

    def __str__(self) -> str:
        return ":".join([self.spelling, *(_spell(getattr(self, name)) for name in _stated(self))])

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the built-in value of this kind, or of this group, that a text spells.

        Raises:
            ValueError: for any other text, with what was expected.
        """
        kinds: Any = BUILT_IN.get(cls, (cls,))
        value: Self = parse(text, kinds)
        return value

    def describe(self) -> str:
        """Return the value in words, for a report."""
        return self.words.format(**{name: getattr(self, name) for name in ranges(type(self))})


class DataIntervention(Intervention):
    """A change of one fit's training examples; validation and test examples stay as they are.

    Attributes:
        implementation: ``module:function`` that the lab imports when it trains. The function takes the training examples, the
            value, a random generator and the number of classes, and returns the changed examples.
    """

    __slots__ = ()
    implementation: ClassVar[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelNoise(DataIntervention):
    """A share of the training labels is wrong: each is replaced by another class, drawn with equal chance."""

    spelling: ClassVar[str] = "label-noise"
    words: ClassVar[str] = "{rate:.0%} of the training labels wrong"
    implementation: ClassVar[str] = "xferbench.lab.training.label_noise:corrupt_labels"
    rate: float = number(low=0, low_open=True, high=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassImbalance(DataIntervention):
    """The training images have a long tail: the first class has ``ratio`` times as many as the last, which has at least one."""

    spelling: ClassVar[str] = "class-imbalance"
    words: ClassVar[str] = "training classes from most to fewest images {ratio:g} to 1"
    implementation: ClassVar[str] = "xferbench.lab.training.class_imbalance:thin_classes"
    ratio: float = number(low=1, low_open=True)


class Trainable(Intervention):
    """The parameters that a phase trains; all but :class:`AllLayers` train the head too."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AllLayers(Trainable):
    """Every parameter."""

    spelling: ClassVar[str] = "all"
    words: ClassVar[str] = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadOnly(Trainable):
    """The head alone."""

    spelling: ClassVar[str] = "head"
    words: ClassVar[str] = "head"


@dataclass(frozen=True, slots=True, kw_only=True)
class TopGroups(Trainable):
    """The uppermost layer groups."""

    spelling: ClassVar[str] = "top"
    words: ClassVar[str] = "top:{groups}"
    groups: int = number(low=1, whole=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class NormLayers(Trainable):
    """The scale and shift of the normalisation layers."""

    spelling: ClassVar[str] = "norm"
    words: ClassVar[str] = "norm"
    requires: ClassVar[tuple[str, ...]] = ("norm",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Biases(Trainable):
    """Every bias, those of normalisation layers too."""

    spelling: ClassVar[str] = "bias"
    words: ClassVar[str] = "biases"
    requires: ClassVar[tuple[str, ...]] = ("bias",)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoRA(Trainable):
    """An update of low rank of every linear and convolutional weight, which is added when the phase ends."""

    spelling: ClassVar[str] = "lora"
    words: ClassVar[str] = "LoRA of rank {rank}"
    requires: ClassVar[tuple[str, ...]] = ("lora",)
    rank: int = number(low=1, whole=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapters(Trainable):
    """A residual bottleneck after each layer group, which is there from the first phase on."""

    spelling: ClassVar[str] = "adapter"
    words: ClassVar[str] = "adapters of {channels} channels"
    requires: ClassVar[tuple[str, ...]] = ("adapter",)
    channels: int = number(low=1, whole=True)


class Head(Intervention):
    """The head that a network begins with."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomHead(Head):
    """One linear layer, drawn as the network's author draws it."""

    spelling: ClassVar[str] = "random"
    words: ClassVar[str] = "random"


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroHead(Head):
    """One linear layer of zeros."""

    spelling: ClassVar[str] = "zero"
    words: ClassVar[str] = "zero"


@dataclass(frozen=True, slots=True, kw_only=True)
class MLPHead(Head):
    """Two drawn linear layers with hidden units, a ReLU and dropout between them."""

    spelling: ClassVar[str] = "mlp"
    words: ClassVar[str] = "mlp:{units}:{dropout:g}"
    units: int = number(low=1, whole=True)
    dropout: float = number(low=0, high=1, high_open=True, default=0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnHead(Head):
    """The head of a finished network, which no recipe may ask for."""

    spelling: ClassVar[str] = "own"
    words: ClassVar[str] = "own"


class Augmentation(Intervention):
    """A change of the training images that is drawn anew at each step."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Flip(Augmentation):
    """Half of the images are flipped left to right."""

    spelling: ClassVar[str] = "flip"
    words: ClassVar[str] = "flip"


@dataclass(frozen=True, slots=True, kw_only=True)
class Crop(Augmentation):
    """Images are shifted by up to an eighth of each side, edges reflected."""

    spelling: ClassVar[str] = "crop"
    words: ClassVar[str] = "crop"


@dataclass(frozen=True, slots=True, kw_only=True)
class FlipAndCrop(Augmentation):
    """Images are flipped and shifted."""

    spelling: ClassVar[str] = "flip+crop"
    words: ClassVar[str] = "flip+crop"


class Regularizer(Intervention):
    """A term of the training loss, implemented in the lab's regularizers and found there by its type."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class L2SP(Regularizer):
    """Half the squared distance from the start, times a strength (Li et al. 2018)."""

    spelling: ClassVar[str] = "l2-sp"
    words: ClassVar[str] = "l2-sp:{strength:g}"
    requires: ClassVar[tuple[str, ...]] = ("pretrained",)
    strength: float = number(low=0, low_open=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class EWC(Regularizer):
    """The squared distance from the start, weighted by the source's Fisher information (Kirkpatrick et al. 2017)."""

    spelling: ClassVar[str] = "ewc"
    words: ClassVar[str] = "ewc:{strength:g}"
    requires: ClassVar[tuple[str, ...]] = ("pretrained", "source")
    strength: float = number(low=0, low_open=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class LwF(Regularizer):
    """The distance of the pretrained head's answers from what they were (Li & Hoiem 2016)."""

    spelling: ClassVar[str] = "lwf"
    words: ClassVar[str] = "lwf:{strength:g}"
    requires: ClassVar[tuple[str, ...]] = ("pretrained", "head", "plain-head")
    strength: float = number(low=0, low_open=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class DANN(Regularizer):
    """The reversed gradient of a classifier that tells target images from unlabelled shifted ones (Ganin et al. 2016)."""

    spelling: ClassVar[str] = "dann"
    words: ClassVar[str] = "dann:{strength:g}"
    requires: ClassVar[tuple[str, ...]] = ("shifted",)
    strength: float = number(low=0, low_open=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay(Regularizer):
    """Source images in each batch (Rolnick et al. 2019)."""

    spelling: ClassVar[str] = "replay"
    words: ClassVar[str] = "replay:{images}"
    requires: ClassVar[tuple[str, ...]] = ("pretrained", "source", "plain-head")
    images: int = number(low=1, whole=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Distillation(Regularizer):
    """A share of the loss is the distance from the adapted pretrained backbone's answers (Hinton et al. 2015)."""

    spelling: ClassVar[str] = "distill"
    words: ClassVar[str] = "distill:{weight:g}"
    requires: ClassVar[tuple[str, ...]] = ("teacher",)
    weight: float = number(low=0, low_open=True, high=1)


class Edit(Intervention):
    """A change of a trained network that trains nothing.

    Attributes:
        screened: whether the edit is fitted on the screened half of the test images.
    """

    __slots__ = ()
    screened: ClassVar[bool] = False


class Finish(Edit):
    """An edit that ends a recipe."""

    __slots__ = ()


class BatchNormEdit(Edit):
    """A change of BatchNorm's running statistics alone."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptBatchNorm(Finish):
    """BatchNorm statistics of each domain's own images, without their labels (Li et al. 2016, AdaBN)."""

    spelling: ClassVar[str] = "adabn"
    words: ClassVar[str] = "BatchNorm statistics of each domain's own images"
    requires: ClassVar[tuple[str, ...]] = ("batchnorm",)


@dataclass(frozen=True, slots=True, kw_only=True)
class InterpolatePhase(Finish):
    """All weights between the last phase's beginning, 0, and its end, 1 (Wortsman et al. 2022, WiSE-FT)."""

    spelling: ClassVar[str] = "interpolate"
    words: ClassVar[str] = "all weights at {share:g} of the way through the last phase"
    share: float = number(low=0, high=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class InterpolateCheckpoints(Edit):
    """All weights below the head between the network of before, 0, and the finished one, 1; the head stays."""

    spelling: ClassVar[str] = "interpolated"
    words: ClassVar[str] = "weights at {share:g} of the way from before to after"
    share: float = number(low=0, high=1)

    def describe(self) -> str:
        """Return the value in words, for a report."""
        return self.words.format(share=self.share) if self.share else "the backbone of before"


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreBatchNorm(BatchNormEdit):
    """BatchNorm statistics as they were before training."""

    spelling: ClassVar[str] = "batchnorm:restored"
    words: ClassVar[str] = "BatchNorm statistics of before put back"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecalibrateBatchNorm(BatchNormEdit):
    """BatchNorm statistics of the training images."""

    spelling: ClassVar[str] = "batchnorm:recalibrated@2"
    words: ClassVar[str] = "BatchNorm statistics recalibrated on training images"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResetBatchNorm(BatchNormEdit):
    """BatchNorm statistics of a fresh network: mean 0, variance 1."""

    spelling: ClassVar[str] = "batchnorm:initial"
    words: ClassVar[str] = "BatchNorm statistics of a fresh network"


@dataclass(frozen=True, slots=True, kw_only=True)
class OneClassBatchNorm(BatchNormEdit):
    """BatchNorm statistics of the most frequent class alone."""

    spelling: ClassVar[str] = "batchnorm:one-class@1"
    words: ClassVar[str] = "BatchNorm statistics of one class"


@dataclass(frozen=True, slots=True, kw_only=True)
class AssignClasses(Edit):
    """The head's outputs in the order that the screened examples ask for."""

    spelling: ClassVar[str] = "classes:assigned@1"
    words: ClassVar[str] = "classes in the order that the screened images ask for"
    screened: ClassVar[bool] = True


@dataclass(frozen=True, slots=True, kw_only=True)
class RotateClasses(Edit):
    """Each of the head's outputs in the next one's place."""

    spelling: ClassVar[str] = "classes:rotated"
    words: ClassVar[str] = "each class in the next one's place"


@dataclass(frozen=True, slots=True, kw_only=True)
class FitTemperature(Edit):
    """Logits divided by the temperature that fits images kept apart (Guo et al. 2017)."""

    spelling: ClassVar[str] = "temperature:fitted@1"
    words: ClassVar[str] = "logits divided by a temperature fitted on images kept apart"
    screened: ClassVar[bool] = True


@dataclass(frozen=True, slots=True, kw_only=True)
class DivideLogits(Edit):
    """Logits divided by a temperature."""

    spelling: ClassVar[str] = "temperature"
    words: ClassVar[str] = "logits divided by {temperature:g}"
    temperature: float = number(low=0, low_open=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class PermuteWeights(Edit):
    """Every learnt tensor below the head with its values shuffled, except BatchNorm's."""

    spelling: ClassVar[str] = "weights:permuted@1"
    words: ClassVar[str] = "weights shuffled within each tensor"


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceHead(Edit):
    """The pretrained head in the place of the trained one."""

    spelling: ClassVar[str] = "head:source"
    words: ClassVar[str] = "the pretrained head"


@dataclass(frozen=True, slots=True, kw_only=True)
class RefitHead(Edit):
    """A linear head fitted on the training images of the view's domain."""

    spelling: ClassVar[str] = "head:refit"
    words: ClassVar[str] = "the head fitted anew"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeHead(Edit):
    """A linear head fitted on the target's training images."""

    spelling: ClassVar[str] = "head:probe"
    words: ClassVar[str] = "a head fitted anew on training images"


K = TypeVar("K", bound=Intervention)
REQUIREMENTS: Mapping[str, str] = {
    "pretrained": "pretrained weights",
    "head": "the pretrained head",
    "plain-head": "a head of one layer, below which the pretrained head can stand",
    "source": "a source whose classes are known",
    "shifted": "images of another domain",
    "teacher": "a teacher",
    "batchnorm": "BatchNorm with running statistics",
    "norm": "normalisation layers that learn",
    "bias": "biases below its head",
    "lora": "linear or convolutional weights below its head",
    "adapter": "place for an adapter",
}
BUILT_IN: Mapping[type[Intervention], tuple[type[Intervention], ...]] = {
    DataIntervention: (LabelNoise, ClassImbalance),
    Trainable: (HeadOnly, TopGroups, NormLayers, Biases, LoRA, Adapters, AllLayers),
    Head: (RandomHead, ZeroHead, MLPHead),
    Augmentation: (Flip, Crop, FlipAndCrop),
    Regularizer: (L2SP, EWC, LwF, DANN, Replay, Distillation),
    Finish: (AdaptBatchNorm, InterpolatePhase),
    Edit: (
        AdaptBatchNorm,
        InterpolatePhase,
        InterpolateCheckpoints,
        RestoreBatchNorm,
        RecalibrateBatchNorm,
        ResetBatchNorm,
        OneClassBatchNorm,
        AssignClasses,
        RotateClasses,
        FitTemperature,
        DivideLogits,
        PermuteWeights,
        SourceHead,
        RefitHead,
        ProbeHead,
    ),
}


def ranges(kind: type[Intervention]) -> dict[str, Range]:
    """Return the range of each field of a kind, in order."""
    return {f.name: f.metadata["range"] for f in fields(kind)}  # type: ignore[arg-type] # every kind is a dataclass


ALL_LAYERS, HEAD_ONLY = AllLayers(), HeadOnly()
RANDOM_HEAD, ZERO_HEAD, OWN_HEAD = RandomHead(), ZeroHead(), OwnHead()


def _stated(value: Intervention) -> list[str]:
    """The fields that a spelling states: all but the last ones that have their defaults."""
    stated = list(fields(value))  # type: ignore[arg-type] # every kind is a dataclass
    while stated and getattr(value, stated[-1].name) == stated[-1].default:
        stated.pop()
    return [f.name for f in stated]


def _spell(number: float) -> str:
    """A number as suites spell it: 6 significant digits, no leading zero in an exponent."""
    if float(number).is_integer() and abs(number) < 1e15:
        return str(int(number))
    return re.sub(r"e([+-])0*", lambda match: "e" + match[1].strip("+"), f"{number:.6g}")


def parse(text: str, kinds: Iterable[type[K]]) -> K:
    """Return the value that a text spells: a kind's spelling, then its fields, parted by colons.

    Raises:
        ValueError: for any other text, with what was expected.
    """
    kinds = tuple(kinds)
    kind = find_kind(text, kinds)
    if kind is None:
        raise ValueError(" or ".join(map(format_spelling, kinds)) or "no intervention of this group is known")
    amounts = text.removeprefix(kind.spelling).split(":")[1:]
    limits = ranges(kind)
    required = [f for f in fields(kind) if f.name not in _defaults(kind)]  # type: ignore[arg-type]
    if not len(required) <= len(amounts) <= len(limits):
        raise ValueError(format_spelling(kind))
    try:
        return kind(**{name: limits[name].parse(amount) for name, amount in zip(limits, amounts, strict=False)})
    except ValueError as error:
        raise ValueError(format_spelling(kind)) from error


def find_kind(text: str, kinds: Iterable[type[K]]) -> type[K] | None:
    """Return the kind with the longest spelling that a text begins with, or None."""
    fitting = [kind for kind in kinds if text == kind.spelling or text.startswith(f"{kind.spelling}:")]
    return max(fitting, key=lambda kind: len(kind.spelling), default=None)


def _defaults(kind: type[Intervention]) -> dict[str, Any]:
    return {f.name: f.default for f in fields(kind) if f.default is not MISSING}  # type: ignore[arg-type]


def format_spelling(kind: type[Intervention]) -> str:
    """Return how a kind is spelt: ``label-noise:RATE with RATE a number above 0 and below 1``."""
    limits, optional = ranges(kind), _defaults(kind)
    amounts = "".join(f"[:{name.upper()}]" if name in optional else f":{name.upper()}" for name in limits)
    stated = " and ".join(f"{name.upper()} {limit}" for name, limit in limits.items())
    return kind.spelling + amounts + (f" with {stated}" if stated else "")


def spelling_pattern(kinds: Iterable[type[Intervention]]) -> str:
    """Return a regular expression of all spellings of some kinds, for a JSON Schema."""
    found = []
    for kind in kinds:
        optional = _defaults(kind)
        parts = (f"(:{limit.pattern}" + (")?" if name in optional else ")") for name, limit in ranges(kind).items())
        found.append(re.escape(kind.spelling).replace(r"\-", "-") + "".join(parts))
    return "|".join(found)


def intervention_key(value: Intervention) -> str:
    """Return what stands for a value in keys: its spelling, and for a third party's kind the digest of its source."""
    if type(value).__module__.partition(".")[0] == PACKAGE:
        return str(value)
    module = type(value).__module__
    return f"{value} {source_digest(module, getattr(value, 'implementation', module).partition(':')[0])}"


@cache
def source_digest(*modules: str) -> str:
    """Return 12 hexadecimal digits of the SHA-256 of some modules' source files, each counted once."""
    digest = hashlib.sha256()
    for name in dict.fromkeys(modules):
        origin = getattr(sys.modules.get(name), "__file__", None) or getattr(find_spec(name), "origin", None)
        digest.update(Path(origin).read_bytes() if origin and Path(origin).is_file() else name.encode())
    return digest.hexdigest()[:12]


def require_group(value: object, group: type[Intervention], name: str) -> None:
    """Check that a field holds a value of a group, and not its spelling.

    Raises:
        TypeError: for anything else.
    """
    if not isinstance(value, group):
        raise TypeError(f"{name} is {value!r}; expected a {group.__name__}, such as {group.__name__}.parse(...)")


def field_value(f: Field[Any], value: Any) -> Any:
    """Return a field's value, or what stands for None in keys and results."""
    return f.metadata["absent"] if value is None and "absent" in f.metadata else value


def as_dict(value: Any) -> Any:
    """Return a dataclass as nested dictionaries, as :func:`dataclasses.asdict` does, with interventions as their spelling."""
    if isinstance(value, Intervention):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: field_value(f, as_dict(getattr(value, f.name))) for f in fields(value)}
    if isinstance(value, Mapping):
        return {name: as_dict(item) for name, item in value.items()}
    return type(value)(map(as_dict, value)) if isinstance(value, tuple | list) else value
