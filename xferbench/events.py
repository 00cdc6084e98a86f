"""What a watched training loop has shown: events, each with the step, the tensor, the cause and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

KINDS = ("frozen-moved", "buffer-moved", "not-held", "never-moved", "head-shock", "loss-jump", "non-finite")


class TransferWarning(UserWarning):
    """What :func:`xferbench.watch` warns of; with ``on_event="raise"`` it is raised. ``event`` is the event."""

    def __init__(self, event: Event) -> None:
        super().__init__(told(event))
        self.event = event


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that went wrong while a model was trained.

    Attributes:
        step: the optimizer's step, from 1, at which it was seen; it was well at step ``since``, from which it may date.
        tensor: the name of the first tensor that it hit, or ``loss``; ``others`` are the rest.
        kind: ``frozen-moved``, ``buffer-moved``, ``not-held``, ``never-moved``, ``head-shock``, ``loss-jump``, ``non-finite``.
        cause: why, as far as it can be told; do: what mends it.
    """

    step: int
    tensor: str
    kind: str
    cause: str
    do: str
    since: int = 0
    others: tuple[str, ...] = ()


def told(event: Event) -> str:
    """Two lines: kind, step, tensor and cause; what to do."""
    when = f"step {event.step}" if event.since + 1 >= event.step else f"steps {event.since + 1} to {event.step}"
    more = f" and {len(event.others)} more" if event.others else ""
    return f"{event.kind} at {when}: {event.tensor}{more}: {event.cause}\n  do: {event.do}"


def report(events: Sequence[Event], steps: int) -> str:
    """All events of a loop as text, or a line that says there were none."""
    head = f"{steps} step{'' if steps == 1 else 's'} watched: "
    if not events:
        return head + "nothing to report"
    return "\n".join([f"{head}{len(events)} event{'' if len(events) == 1 else 's'}", *map(told, events)])
