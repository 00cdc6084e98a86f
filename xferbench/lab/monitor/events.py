"""Events of a watched training loop: the step, the tensor, the cause and what to do. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

EVENT_KINDS = (
    "frozen-moved",
    "buffer-moved",
    "not-held",
    "never-moved",
    "layer-size",
    "batchnorm-momentum",
    "head-shock",
    "loss-jump",
    "non-finite",
    "padding-visible",
    "labels-ignored",
    "texts-cut",
    "id-outside",
)
EVENT_ACTIONS = ("warn", "raise", "collect")


class TransferWarning(UserWarning):
    """The warning of :func:`xferbench.watch`; ``on_event="raise"`` raises it. ``event`` holds the event."""

    def __init__(self, event: Event) -> None:
        super().__init__(format_event(event))
        self.event = event


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A fault that happened while a model was trained.

    These kinds are facts:

    - ``frozen-moved``, ``buffer-moved``: a frozen tensor or running statistic has changed.
    - ``not-held``: no optimizer holds a tensor that must be trained.
    - ``never-moved``: a tensor that must be trained has ``requires_grad`` False (seen at the first step), or has not changed by
      one bit in 20 steps.
    - ``layer-size``: the weight of a layer has another number of rows than its ``out_features`` or ``out_channels``, because
      the attribute was assigned after the layer was made.
    - ``batchnorm-momentum``: running statistics that should follow the batches have a momentum of 0, so that they never
      change, or of 0.9 and more, so that they are those of the last batch.
    - ``non-finite``: a loss, a value or a gradient is NaN or infinite.

    These facts are seen in the first three steps of networks that take ``input_ids``:

    - ``padding-visible``: the attention sees padding, because ``attention_mask`` is missing or is 1 there. Padding is two or
      more ids ``pad_token_id`` of the network's configuration at an end of a text. A decoder does not see padding that follows.
    - ``labels-ignored``: all labels are -100; those of tokens are -100 in all three steps.
    - ``texts-cut``: each of at least 16 labelled texts has exactly ``max_length`` tokens, or as many as the network has
      positions.
    - ``id-outside``: an embedding is looked up at an id for which it has no row.

    Two kinds are heuristics. They need ``watch.step(loss)``, and they stay silent in doubtful cases:

    - ``loss-jump``: more tensors train than before, and 5 consecutive losses among the next 20 have a median that is above
      each of the last 40 losses (at least 20 are needed), above their median by six spreads (1.4826 × the median absolute
      deviation), and above it by a fifth. By simulation with 40 earlier losses, an unfreezing that changes nothing causes this
      event in fewer than 1 of 1000 cases if losses are normal or exponential, and in 2 if they are log-normal (σ = 1). With 20
      earlier losses the numbers are 0, 3 and 8.
    - ``head-shock``: the backbone trains from the first step under a head whose first three losses are near those of guessing
      (0.8 × ln classes or more), and its weights move by a tenth of their length within 10 steps. This replaces the gradient
      ratio that the plugin ``head-shock`` measures (Kumar et al. 2022, arXiv:2202.10054), which a loop cannot measure. The
      watch misses milder cases, and does not know whether accuracy was lost; ``xferbench run`` measures that. Without a recipe
      the watch is silent about a backbone whose normalization layers have their initial values, because it trains from scratch.

    Attributes:
        step: the optimizer step at which the watch saw the fault, counted from 1.
        tensor: the name of the first tensor with the fault, or ``loss``.
        kind: one of the kinds above.
        cause: the likely cause.
        do: what to do.
        since: the last step at which the watch saw no fault; the fault happened later.
        others: the names of the other tensors with the same fault.
    """

    step: int
    tensor: str
    kind: str
    cause: str
    do: str
    since: int = 0
    others: tuple[str, ...] = ()


def format_event(event: Event) -> str:
    """Return two lines: kind, step, tensor and cause; then what to do."""
    when = f"step {event.step}" if event.since + 1 >= event.step else f"steps {event.since + 1} to {event.step}"
    more = f" and {len(event.others)} more" if event.others else ""
    return f"{event.kind} at {when}: {event.tensor}{more}: {event.cause}\n  do: {event.do}"


def format_report(events: Sequence[Event], steps: int) -> str:
    """Return all events of a loop as text, or a line that says that there are none."""
    head = f"{steps} step{'' if steps == 1 else 's'} watched: "
    if not events:
        return head + "nothing to report"
    return "\n".join([f"{head}{len(events)} event{'' if len(events) == 1 else 's'}", *map(format_event, events)])
