"""The course of a watched training: its losses, and when more tensors began to learn."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from xferbench.lab import alarms


@dataclass(frozen=True, slots=True, kw_only=True)
class Jump:
    """The loss jumped from one median to another when tensors were unfrozen at a step; ``seen`` at a later one."""

    at: int
    seen: int
    names: tuple[str, ...]
    before: float
    after: float


class Course:
    """Kept for the heuristics of :mod:`xferbench.lab.alarms`."""

    def __init__(self, classes: int) -> None:
        self._classes = classes
        self._losses: deque[tuple[int, float]] = deque(maxlen=200)
        self._opening: list[float] = []
        self._unfrozen: list[tuple[int, tuple[str, ...]]] = []

    def unfreeze(self, step: int, names: tuple[str, ...]) -> None:
        """Note that more tensors learn from a step on."""
        self._unfrozen.append((step, names))

    def heard(self, step: int, loss: float) -> Jump | None:
        """Note a loss; tells a jump once there is one."""
        self._losses.append((step, loss))
        if step <= alarms.FIRST:
            self._opening.append(loss)
        for at, names in tuple(self._unfrozen):
            before = [value for one, value in self._losses if one < at]
            after = [value for one, value in self._losses if one >= at]
            jump = alarms.jumped(before, after)
            if jump or len(after) > alarms.AFTER:
                self._unfrozen.remove((at, names))
            if jump:
                return Jump(at=at, seen=step, names=names, before=jump[0], after=jump[1])
        return None

    def shocked(self, way: float) -> bool:
        """As :func:`xferbench.lab.alarms.shocked`, for the losses heard so far."""
        return alarms.shocked(self._opening, self._classes, way)
