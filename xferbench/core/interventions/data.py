"""Interventions that change the training examples. Pure.

A new kind is a class here, its entry in ``DATA_INTERVENTIONS``, and the function in the lab that the class names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from xferbench.core.interventions.base import Intervention, number

__all__ = [
    "DATA_INTERVENTIONS",
    "INJECTED_DUPLICATES",
    "AlteredTestImages",
    "ClassImbalance",
    "CopiedTestImages",
    "DataIntervention",
    "InjectedDuplicates",
    "LabelNoise",
]


class DataIntervention(Intervention):
    """A change of the training examples of a network. Validation and test examples do not change.

    The implementation takes the training examples, the value, a random generator and the number of classes, and returns the
    changed examples.
    """

    __slots__ = ()

    @classmethod
    def built_in(cls) -> tuple[type[Intervention], ...]:
        """Return the built-in kinds."""
        return DATA_INTERVENTIONS


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelNoise(DataIntervention):
    """A share of the training labels is wrong: each is replaced by another class, drawn uniformly."""

    spelling: ClassVar[str] = "label-noise"
    words: ClassVar[str] = "{rate:.0%} of the training labels wrong"
    implementation: ClassVar[str] = "xferbench.lab.training.label_noise:corrupt_labels"
    rate: float = number(low=0, low_open=True, high=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassImbalance(DataIntervention):
    """The classes have a long tail: the first has ``ratio`` times as many images as the last, which has at least one."""

    spelling: ClassVar[str] = "class-imbalance"
    words: ClassVar[str] = "training classes from most to fewest examples {ratio:g} to 1"
    implementation: ClassVar[str] = "xferbench.lab.training.class_imbalance:thin_classes"
    ratio: float = number(low=1, low_open=True)


class InjectedDuplicates(Intervention):
    """Test examples in place of training examples of the same class, to measure whether the search for duplicates finds them.

    Attributes:
        share: the share of the test examples that is injected.
    """

    __slots__ = ()
    share: float

    @classmethod
    def built_in(cls) -> tuple[type[Intervention], ...]:
        """Return the built-in kinds."""
        return INJECTED_DUPLICATES


@dataclass(frozen=True, slots=True, kw_only=True)
class CopiedTestImages(InjectedDuplicates):
    """Unchanged copies."""

    spelling: ClassVar[str] = "copied"
    words: ClassVar[str] = "copied {share:g}"
    share: float = number(low=0, low_open=True, high=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class AlteredTestImages(InjectedDuplicates):
    """Altered copies: images are flipped and compressed again, and texts lack a tenth of their words."""

    spelling: ClassVar[str] = "altered"
    words: ClassVar[str] = "altered {share:g}"
    share: float = number(low=0, low_open=True, high=1)


DATA_INTERVENTIONS = (LabelNoise, ClassImbalance)
INJECTED_DUPLICATES = (CopiedTestImages, AlteredTestImages)
