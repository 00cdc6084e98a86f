"""The log of a training as a value, and what a reader found in it. Pure."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from itertools import pairwise
from math import isfinite
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

FAULT, NOTE = "fault", "note"


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """A logged quantity.

    Attributes:
        steps: the optimizer steps at which it was logged, in order.
        values: its values; they may be NaN or infinite.

    Raises:
        ValueError: if a step is smaller than the one before it.
    """

    steps: tuple[int, ...] = ()
    values: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for before, step in pairwise(self.steps):
            if step < before:
                raise ValueError(f"step {step} after step {before}, expected steps in order")

    def __len__(self) -> int:
        return len(self.steps)

    def first_non_finite(self) -> int | None:
        """Return the first step with a value that is NaN or infinite, or None."""
        return next((step for step, value in zip(self.steps, self.values, strict=True) if not isfinite(value)), None)

    def before(self, step: float) -> Series:
        """Return the part before a step."""
        count = bisect_left(self.steps, step)
        return Series(steps=self.steps[:count], values=self.values[:count])

    def after(self, step: float) -> Series:
        """Return the part after a step."""
        count = bisect_right(self.steps, step)
        return Series(steps=self.steps[count:], values=self.values[count:])

    def last_until(self, step: float) -> float | None:
        """Return the last value that was logged up to a step, or None."""
        count = bisect_right(self.steps, step)
        return self.values[count - 1] if count else None


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEnd:
    """Where a log ends.

    Attributes:
        step: the last optimizer step.
        max_steps: the planned number of steps, or None.
        epoch: the number of epochs so far, or None.
        stopped_early: whether early stopping ended the training.
    """

    step: int
    max_steps: int | None = None
    epoch: float | None = None
    stopped_early: bool = False

    @property
    def is_cut(self) -> bool:
        """Whether the log ends before the planned number of steps, for another reason than early stopping."""
        return self.max_steps is not None and self.step < self.max_steps and not self.stopped_early


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluations:
    """The evaluations in a log.

    Attributes:
        series: each metric by its name, without the prefix ``eval_``.
        examples: the number of examples of the evaluation set, or None.
        best_checkpoint: the folder of the best checkpoint; "" if the training did not track it.
    """

    series: Mapping[str, Series] = field(default_factory=dict)
    examples: int | None = None
    best_checkpoint: str = ""

    def before(self, step: float) -> Evaluations:
        """Return the evaluations before a step."""
        series = {name: values.before(step) for name, values in self.series.items()}
        return Evaluations(series=series, examples=self.examples, best_checkpoint=self.best_checkpoint)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingLog:
    """What a training logged.

    Attributes:
        path: the file.
        choice: why this file was read, if there were several; else "".
        end: where the log ends.
        losses: the training losses. Each is the mean over the steps since the one before it.
        gradient_norms: the norm of all gradients, before clipping.
        learning_rates: the learning rates of the first group of parameters.
        evaluations: what was measured on the evaluation set.
        batches_per_step: how many batches, accumulated or parallel, a step uses, or None.
        classes: the number of classes, or None.
    """

    path: str
    end: LogEnd
    choice: str = ""
    losses: Series = field(default_factory=Series)
    gradient_norms: Series = field(default_factory=Series)
    learning_rates: Series = field(default_factory=Series)
    evaluations: Evaluations = field(default_factory=Evaluations)
    batches_per_step: int | None = None
    classes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEvent:
    """Something that a log shows.

    Attributes:
        kind: the rule that found it.
        level: ``fault``, or ``note`` for what may be intended or costs nothing by itself.
        quantity: the name of the logged quantity.
        step: the step at which the log shows it.
        since: the last step without it.
        numbers: the evidence by name.
    """

    kind: str
    level: str
    quantity: str
    step: int
    since: int = 0
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """What a rule lacks in a log.

    Attributes:
        what: the name of the quantity, in the plural.
        found: how many of them there are.
        needed: how many the rule needs.
    """

    what: str
    found: int = 0
    needed: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class LogReport:
    """What a log shows.

    Attributes:
        log: the log.
        events: what it shows, faults first.
        quiet: the rules that were applied and found nothing.
        unchecked: the rules that could not be applied, with what they lack.
    """

    log: TrainingLog
    events: tuple[LogEvent, ...]
    quiet: tuple[str, ...]
    unchecked: Mapping[str, Missing]

    @property
    def faults(self) -> tuple[LogEvent, ...]:
        """The events that are faults."""
        return tuple(event for event in self.events if event.level == FAULT)
