"""The course of a watched training: its losses and unfreezings, and the gradient that reaches the backbone."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from xferbench.lab import alarms

GONE_BY = 10  # the step at which the backbone's way is measured


@dataclass(frozen=True, slots=True, kw_only=True)
class Jump:
    """The loss jumped from one median to another when tensors were unfrozen at a step; ``seen`` at a later one."""

    at: int
    seen: int
    names: tuple[str, ...]
    before: float
    after: float


class Course:
    """Kept for the two heuristics of :mod:`xferbench.lab.alarms`; ``body``: backbone tensors that learn from the first step."""

    def __init__(self, classes: int) -> None:
        self.body: tuple[str, ...] = ()
        self.way: float | None = None
        self._classes = classes
        self._losses: deque[tuple[int, float]] = deque(maxlen=200)
        self._opening: list[float] = []
        self._unfrozen: list[tuple[int, tuple[str, ...]]] = []
        self._norms: list[tuple[int, float]] = []

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

    def felt(self, step: int, gradients: dict[str, float]) -> float | None:
        """Note the backbone's gradient; its ratio once a fresh head is known to have shocked it."""
        self._norms.append((step, sum(gradients.get(name, 0.0) ** 2 for name in self.body) ** 0.5))
        ratio = None if self.way is None else alarms.shocked(self._norms, self.way)
        return ratio if alarms.fresh(self._opening, self._classes) else None
