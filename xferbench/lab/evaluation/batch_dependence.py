"""Measures whether a prediction depends on the other examples of its batch. Imports torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xferbench.core.interventions import EVAL_MODE
from xferbench.lab.evaluation import evaluate

if TYPE_CHECKING:
    from xferbench.lab.evaluation.context import MeasureContext


def batch_dependent_share(context: MeasureContext, tolerance: float) -> float:
    """Compute the share of test images whose probabilities differ between shuffled batches and batches sorted by class.

    A small test set is split into at least four batches if possible, because a single batch would show no dependence.

    Args:
        context: the network and its data.
        tolerance: the largest difference between equal probabilities.

    Returns:
        A number from 0 to 1, or NaN if any probability is not finite.
    """
    labels, training = context.test.labels.numpy(), context.mode != EVAL_MODE
    size = min(evaluate.SERVING_BATCH, max(2, len(labels) // 4))
    inputs = (context.network, context.after, context.test.images, context.test.preprocessing)
    orders = (evaluate.serving_order(labels, by_class=by_class) for by_class in (False, True))
    shuffled, by_class = (evaluate.batched_logits(*inputs, order, training=training, size=size).softmax(1) for order in orders)
    difference = (shuffled - by_class).abs().amax(1)
    return float((difference > tolerance).double().mean()) if difference.isfinite().all() else float("nan")
