"""A network that says the same of everything, or nothing at all.

Symptom
    One answer for all images; a loss that is NaN; features that barely differ from image to image.

Cause
    Training diverged; activations died; the weights were read in another precision or scale.

Remedy
    Train again with a lower rate, and look at the loss for values that are not finite.

How it is judged
    An exact invariant: all weights and features are finite, the features that enter the head differ between images (their
    spread over images is above a thousandth of their size), and so do the logits.

How it is induced
    Not on purpose: what is exact needs no control.

References
    torchgeo-bench pull request 211: features that barely differ; Jing et al. 2022, Dimensional collapse (arXiv:2110.09348).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xferbench.plugin import Contrast, MeasureContext, Pipeline, Plugin, Record, always_applies, leave_unchanged
from xferbench.plugins.head_size import induce

if TYPE_CHECKING:
    from collections.abc import Mapping

LEAST = 1e-3  # of the features' size that their spread over images must be


def collapse(seen: MeasureContext) -> dict[str, float]:
    """1 where it is so; beside it the spread of the features over images, and values that are not finite, by tensor."""
    from torch.nn import functional as F

    from xferbench.lab.evaluation import penultimate_features

    counts = {name: float((~one.isfinite()).sum()) for name, one in seen.after.items() if one.is_floating_point()}
    broken = {f"not finite/{name}": count for name, count in counts.items() if count}
    x = penultimate_features.head_inputs(seen.network, seen.after, seen.served, seen.ready)
    finite = bool(x.isfinite().all())
    spread = float(x.std(0).norm() / x.norm(dim=1).mean().clamp_min(1e-12)) if finite else 0.0
    weight, bias = (seen.after.get(f"{seen.network.anatomy.head}.{part}") for part in ("weight", "bias"))
    assert weight is not None
    logits = F.linear(x.to(weight.device), weight.flatten(1), bias)
    one = bool((logits - logits[0]).abs().max() <= LEAST**2 * logits.abs().max())
    bad = bool(broken) or not finite or spread < LEAST or one
    return {"collapse": float(bad), "spread of features": spread, "one answer": float(one)} | broken


def told(_contrast: str, answers: Mapping[tuple[str, str, int], Record], _subject: Pipeline, _cured: Pipeline) -> str:
    found = answers["subject", "collapse", 0].scalars
    broken = [name.partition("/")[2] for name in found if name.startswith("not finite/")]
    if broken:
        return f"values that are not finite in {', '.join(broken[:4])}" + (f" … ({len(broken)} tensors)" if broken[4:] else "")
    if not found["collapse"]:
        return ""
    if found["spread of features"] < LEAST:
        return f"features differ by {found['spread of features']:.2g} of their size from image to image"
    return "the same logits for all images" if found["one answer"] else "features that are not finite"


audit = Plugin(
    id="audit/collapse",
    version=1,
    question="Does the network tell images apart at all?",
    doc=__doc__,
    applies=always_applies,
    cure=leave_unchanged,
    induce=induce,
    contrasts=(
        Contrast(
            name="harm", kind="exact", weights={("subject", "collapse"): 1.0}, meaning="finite values that differ by image"
        ),
    ),
    measures={"collapse": "xferbench.plugins.collapse:collapse@1"},
    explain=told,
    remedy="train again with a lower rate, and stop where a value is not finite",
)
