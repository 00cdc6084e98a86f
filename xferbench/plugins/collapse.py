"""A network that gives the same output for every example, or outputs that are not finite.

Symptom
    One prediction for all examples; a loss that is NaN; features that barely differ from example to example.

Cause
    Training diverged; activations died; the weights were read in another precision or scale. Or the weights are sound and the
    running statistics of BatchNorm are not.

Remedy
    If new BatchNorm statistics restore the features, recalibrate the statistics. Otherwise train again with a lower rate, and
    check the loss for values that are not finite.

How it is judged
    An exact invariant: all weights and features are finite, the features that enter the head differ between examples (their
    spread over examples is above a thousandth of their size), and so do the logits. A broken network with BatchNorm is measured
    again with statistics that are computed on the test examples; if nothing is wrong then, the statistics are the cause.

How it is induced
    It is not induced: an exact invariant needs no control.

References
    torchgeo-bench pull request 211: features that barely differ; Jing et al. 2022, Dimensional collapse (arXiv:2110.09348).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from xferbench.plugin import Contrast, MeasureContext, Pipeline, Plugin, Record, always_applies, leave_unchanged
from xferbench.plugins.head_size import induce

if TYPE_CHECKING:
    from collections.abc import Mapping

    from xferbench.lab.training.network import Tensors

STATISTICS_ARE_CAUSE = (
    "the cause is the running statistics of BatchNorm: with statistics of the test images, nothing is wrong, so recalibrate "
    "the statistics instead of training again"
)
MIN_RELATIVE_SPREAD = 1e-3  # of the features over images, relative to their size


def collapse(context: MeasureContext) -> dict[str, float]:
    """Return :func:`examine` of the network; if it collapsed, also whether it does with the statistics of the examples."""
    from xferbench.lab.evaluation import evaluate
    from xferbench.lab.models import batchnorm

    scalars = examine(context, context.after)
    if scalars["collapse"] and batchnorm.batchnorm_layers(context.network.module):
        recalibrated = evaluate.recalibrate(context.test.images, context.test.preprocessing, context.after, context.network)
        scalars["collapse with new statistics"] = examine(context, context.after | recalibrated)["collapse"]
    return scalars


def examine(context: MeasureContext, tensors: Tensors) -> dict[str, float]:
    """Return 1 if the network collapsed, the spread of the features over examples, and the non-finite values of each tensor."""
    from xferbench.lab.evaluation import evaluate, penultimate_features
    from xferbench.lab.models import finished

    counts = finished.count_non_finite(tensors, context.network.module)
    broken = {f"not finite/{name}": float(count) for name, count in counts.items()}
    inputs = (context.network, tensors, context.test.images, context.test.preprocessing)
    features = penultimate_features.head_inputs(*inputs).flatten(1)
    finite = bool(features.isfinite().all())
    spread = float(features.std(0).norm() / features.norm(dim=1).mean().clamp_min(1e-12)) if finite else 0.0
    logits = evaluate.batched_logits(*inputs, np.arange(len(context.test.images)), training=False)
    constant = bool((logits - logits[0]).abs().max() <= MIN_RELATIVE_SPREAD**2 * logits.abs().max())
    collapsed = bool(broken) or not finite or spread < MIN_RELATIVE_SPREAD or constant
    return {"collapse": float(collapsed), "spread of features": spread, "one answer": float(constant)} | broken


def explain(
    _contrast: str, records_by_term: Mapping[tuple[str, str, int], Record], _subject: Pipeline, _cured: Pipeline
) -> str:
    """Return in which respect the network collapsed, and whether the BatchNorm statistics are the cause, or ""."""
    scalars = records_by_term["subject", "collapse", 0].scalars
    cause = STATISTICS_ARE_CAUSE if scalars.get("collapse with new statistics") == 0 else ""
    return "; ".join(filter(None, (describe(scalars), cause)))


def describe(scalars: Mapping[str, float]) -> str:
    """Return in which respect the network collapsed, or ""."""
    broken = [name.partition("/")[2] for name in scalars if name.startswith("not finite/")]
    if broken:
        return f"values that are not finite in {', '.join(broken[:4])}" + (f" … ({len(broken)} tensors)" if broken[4:] else "")
    if not scalars["collapse"]:
        return ""
    if scalars["spread of features"] < MIN_RELATIVE_SPREAD:
        return f"features differ by {scalars['spread of features']:.2g} of their size from image to image"
    return "the same logits for all images" if scalars["one answer"] else "features that are not finite"


audit = Plugin(
    id="audit/collapse",
    version=1,
    question="Does the network distinguish examples at all?",
    doc=__doc__,
    applies=always_applies,
    cure=leave_unchanged,
    induce=induce,
    contrasts=(
        Contrast(
            name="harm", kind="exact", weights={("subject", "collapse"): 1.0}, meaning="finite values that differ by image"
        ),
    ),
    measures={"collapse": "xferbench.plugins.collapse:collapse@4"},
    explain=explain,
    remedy="train again with a lower rate, and stop when a value is not finite",
)
