"""The state of a running study, for a live display. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """The numbers of a live display.

    Attributes:
        stage: the name of the current stage.
        done, running, total: numbers of groups of trials in this stage.
        reused: number of trials found in the store.
        left: estimate of the remaining seconds, or None.
    """

    stage: str
    done: int
    running: int
    total: int
    reused: int
    left: float | None
