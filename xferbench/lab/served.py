"""Whether an answer depends on the batch in which it is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xferbench.lab import viewed

if TYPE_CHECKING:
    from xferbench.lab.viewed import Seen


def dependent(seen: Seen, apart: float) -> float:
    """Share of the test images whose probabilities differ by more than ``apart`` between shuffled batches and those by class.

    NaN where an answer is none. Few images come in smaller batches, for in a single one nothing could depend on it.
    """
    labels, training = seen.served_labels.numpy(), seen.mode != "eval"
    size = min(viewed.SERVED, max(2, len(labels) // 4))
    given = (seen.network, seen.after, seen.served, seen.ready)
    orders = (viewed.serving_order(way, labels) for way in ("", "class"))
    shuffled, by_class = (viewed.in_batches(*given, order, training=training, size=size).softmax(1) for order in orders)
    found = (shuffled - by_class).abs().amax(1)
    return float((found > apart).double().mean()) if found.isfinite().all() else float("nan")
