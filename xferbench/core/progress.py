"""The state of a running study, for a live display. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What a live display shows: groups of the present stage done, running and in all, trials reused, seconds left."""

    stage: str
    done: int
    running: int
    total: int
    reused: int
    left: float | None
