"""Formats the numbers of :mod:`xferbench.lab.evaluation.freeze_check`, in words and by layer. Pure."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MAX_LISTED_NAMES = 4
EXPECTATION_LABELS = {"frozen": "expected frozen", "trained": "expected to train", "moved": "no expectation given"}
CHANGE_LABELS = {
    "frozen-moved": "expected frozen, but moved",
    "buffer-moved": "buffers expected to stay, but moved",
    "never-moved": "expected to train, but never moved",
    "not-loaded": "uncorrelated with the weights from before",
}
CAUSE_LABELS = {
    "not-loaded": "the weights were never loaded (strict=False, names that do not match), or training erased them",
    "partly-loaded": "the names of these tensors do not match, so they were not loaded",
    "statistics": "BatchNorm stayed in train mode, which requires_grad = False does not stop",
    "reset": "the BatchNorm statistics are those of a new layer (mean 0, variance 1): they were reset, or not loaded",
    "overwritten": "the BatchNorm statistics were overwritten, and not by train mode: the counters of batches did not move",
    "buffers": "the frozen part was not in evaluation mode",
    "decay": "weight decay on frozen tensors: they only shrank, because the optimizer holds them",
    "nothing-frozen": "nothing was frozen: module.requires_grad = False freezes nothing; neither does a prefix without a match",
    "norm": "the normalization layers stayed trainable",
    "group": "the optimizer holds {}",
    "nothing-trained": "the optimizer holds none of them, or holds copies, or took no step",
    "only-head": "the optimizer was built before unfreezing, or nothing was unfrozen",
    "head": "the head is not the one that the optimizer holds",
    "left-out": "no group of the optimizer holds them, or rounding removes its updates",
}
ANOMALY_LABELS = {
    "zeros": "all zeros now: {}",
    "not finite": "not finite now: {}",
    "scale": "a hundred times as large or as small: {}",
    "float16": "rounded to float16",
    "bfloat16": "rounded to bfloat16",
}


def format_freeze_check(scalars: Mapping[str, float]) -> str:
    """Return which tensors violate the expectation, the likely causes, and other anomalies."""
    parts = [
        f"{label}: {format_largest(names, scalars)}"
        for kind, label in CHANGE_LABELS.items()
        if (names := names_of_kind(scalars, kind))
    ]
    causes = [
        label.format(format_largest(names, {}))
        for cause, label in CAUSE_LABELS.items()
        if (names := names_of_kind(scalars, f"cause/{cause}"))
    ]
    parts += [f"likely cause: {'; and '.join(causes)}"] if causes else []
    parts += [
        label.format(format_largest(names, {}))
        for anomaly, label in ANOMALY_LABELS.items()
        if (names := names_of_kind(scalars, f"odd/{anomaly}"))
    ]
    trained = names_of_kind(scalars, "trained")
    layers = [name.removesuffix(".running_mean") for name in trained if name.endswith(".running_mean")]
    drifting = [name for name in layers if f"frozen/{name}.weight" in scalars and scalars[f"trained/{name}.running_mean"]]
    if drifting:
        names_text = format_largest(drifting, {})
        parts.append(f"BatchNorm statistics of frozen layers moved, which batchnorm = train allows: {names_text}")
    moving = [name for name in names_of_kind(scalars, "moved") if scalars[f"moved/{name}"]]
    if moving and "cause/not-loaded" not in scalars:
        parts.append(f"largest changes: {format_largest(moving, scalars)}")
    return "; ".join(parts)


def names_of_kind(scalars: Mapping[str, float], kind: str) -> list[str]:
    """Return the names of the tensors or layer groups that have a scalar of a kind."""
    return [key.removeprefix(kind).lstrip("/") for key in scalars if key == kind or key.startswith(f"{kind}/")]


def format_largest(names: Sequence[str], scalars: Mapping[str, float]) -> str:
    """Return the names with the largest changes, at most four, with their changes; then how many names there are."""
    changes = {
        name: next((scalars[key] for side in EXPECTATION_LABELS if (key := f"{side}/{name}") in scalars), 0.0) for name in names
    }
    ranked = sorted(names, key=lambda name: -changes[name])[:MAX_LISTED_NAMES]
    listed = ", ".join(f"{name} ({changes[name]:.2g})" if changes[name] else name for name in ranked)
    return listed + (f" … ({len(names)} in all)" if len(names) > MAX_LISTED_NAMES else "")


def change_by_layer(scalars: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Return the largest finite change of each layer, by the expectation for its tensors."""
    by_layer: dict[str, dict[str, float]] = {}
    for key, value in scalars.items():
        side, _, name = key.partition("/")
        if side in EXPECTATION_LABELS and isfinite(value):
            changes = by_layer.setdefault(name.rpartition(".")[0] or name, {})
            changes[side] = max(changes.get(side, 0.0), value)
    return by_layer
