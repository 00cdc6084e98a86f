"""The losses of a monitored training, and the steps at which more tensors began to train. Pure."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from xferbench.core import loss_alarms


@dataclass(frozen=True, slots=True, kw_only=True)
class LossJump:
    """A jump of the loss after tensors were unfrozen.

    Attributes:
        unfrozen_at: the step at which the tensors were unfrozen.
        detected_at: the step at which the jump was detected.
        names: the names of the unfrozen tensors.
        loss_before, loss_after: median losses before and after the unfreezing.
    """

    unfrozen_at: int
    detected_at: int
    names: tuple[str, ...]
    loss_before: float
    loss_after: float


class LossHistory:
    """Stores what the heuristics of :mod:`xferbench.core.loss_alarms` need.

    Args:
        classes: the number of outputs of the head.
    """

    def __init__(self, classes: int) -> None:
        self._classes = classes
        self._losses: deque[tuple[int, float]] = deque(maxlen=200)
        self._first_losses: list[float] = []
        self._unfreezings: list[tuple[int, tuple[str, ...]]] = []

    def record_unfreeze(self, step: int, names: tuple[str, ...]) -> None:
        """Record that some tensors train from a step on."""
        self._unfreezings.append((step, names))

    def record_loss(self, step: int, loss: float) -> LossJump | None:
        """Record a loss, and return a jump as soon as there is one."""
        self._losses.append((step, loss))
        if step <= loss_alarms.FIRST_STEPS:
            self._first_losses.append(loss)
        for start, names in tuple(self._unfreezings):
            before = [value for loss_step, value in self._losses if loss_step < start]
            after = [value for loss_step, value in self._losses if loss_step >= start]
            medians = loss_alarms.detect_jump(before, after)
            if medians or len(after) > loss_alarms.LOSSES_AFTER:
                self._unfreezings.remove((start, names))
            if medians:
                return LossJump(unfrozen_at=start, detected_at=step, names=names, loss_before=medians[0], loss_after=medians[1])
        return None

    def has_shocked(self, distance: float) -> bool:
        """Return :func:`xferbench.core.loss_alarms.has_head_shock` for the recorded losses."""
        return loss_alarms.has_head_shock(self._first_losses, self._classes, distance)
