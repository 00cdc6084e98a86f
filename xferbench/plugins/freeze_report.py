"""What :mod:`xferbench.lab.evaluation.freeze_check` found, in words and by layer. Pure."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

EXPECTATION_LABELS = {"frozen": "believed frozen", "trained": "believed trained", "moved": "nobody said what was to train"}
CHANGE_LABELS = {
    "frozen-moved": "frozen, but moved",
    "buffer-moved": "buffers that were to stay, but moved",
    "never-moved": "to be trained, but never moved",
    "not-loaded": "nothing in common with before",
}
CAUSE_LABELS = {
    "not-loaded": "the weights were never loaded (strict=False, names that do not match), or nothing is left of them",
    "partly-loaded": "these were not loaded: names that do not match",
    "statistics": "BatchNorm stayed in train mode, which requires_grad = False does not stop",
    "buffers": "the frozen part was not in evaluation mode",
    "decay": "weight decay on frozen tensors: they only shrank, and the optimizer holds them",
    "nothing-frozen": "nothing was frozen: module.requires_grad = False freezes nothing, nor does a prefix that no name has",
    "norm": "the normalisation layers were left trainable",
    "group": "the optimizer holds {}",
    "nothing-trained": "the optimizer holds none of them, or other copies, or no step was taken",
    "only-head": "the optimizer was built before unfreezing, or nothing was unfrozen",
    "head": "the head is another one than the optimizer holds",
    "left-out": "no group of the optimizer holds them, or its rate is lost in rounding",
}
ANOMALY_LABELS = {
    "zeros": "all zeros now: {}",
    "scale": "a hundred times as large or as small: {}",
    "float16": "rounded to float16",
    "bfloat16": "rounded to bfloat16",
}


def format_freeze_check(found: Mapping[str, float]) -> str:
    """Which tensors did otherwise than was believed, the likeliest causes, and what else came to notice."""
    parts = [
        f"{words}: {format_largest(names, found)}"
        for kind, words in CHANGE_LABELS.items()
        if (names := names_of_kind(found, kind))
    ]
    causes = [
        why.format(format_largest(names, {}))
        for word, why in CAUSE_LABELS.items()
        if (names := names_of_kind(found, f"cause/{word}"))
    ]
    parts += [f"likely cause: {'; and '.join(causes)}"] if causes else []
    parts += [
        why.format(format_largest(names, {}))
        for word, why in ANOMALY_LABELS.items()
        if (names := names_of_kind(found, f"odd/{word}"))
    ]
    layers = [name.removesuffix(".running_mean") for name in names_of_kind(found, "trained") if name.endswith(".running_mean")]
    drifted = [one for one in layers if f"frozen/{one}.weight" in found and found[f"trained/{one}.running_mean"]]
    parts += [
        f"BatchNorm statistics of frozen layers moved, as batchnorm = train lets them: {format_largest(drifted, {})}"
    ] * bool(drifted)
    moved = [name for name in names_of_kind(found, "moved") if found[f"moved/{name}"]]
    return "; ".join(parts + [f"moved most: {format_largest(moved, found)}"] * bool(moved and "cause/not-loaded" not in found))


def names_of_kind(found: Mapping[str, float], kind: str) -> list[str]:
    """What the numbers of a kind are about: tensors, layer groups."""
    return [name.removeprefix(kind).lstrip("/") for name in found if name == kind or name.startswith(f"{kind}/")]


def format_largest(names: Sequence[str], found: Mapping[str, float]) -> str:
    """Those that went farthest, four at most, with how far; then how many there are."""
    far = {name: next((found[key] for side in EXPECTATION_LABELS if (key := f"{side}/{name}") in found), 0.0) for name in names}
    worst = sorted(names, key=lambda name: -far[name])
    shown = ", ".join(f"{name} ({far[name]:.2g})" if far[name] else name for name in worst[:4])
    return shown + (f" … ({len(names)} in all)" if names[4:] else "")


def change_by_layer(found: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """How far each layer went at most, by what was believed of its tensors; what is not finite is left out."""
    far: dict[str, dict[str, float]] = {}
    for key, value in found.items():
        side, _, name = key.partition("/")
        if side in EXPECTATION_LABELS and isfinite(value):
            own = far.setdefault(name.rpartition(".")[0] or name, {})
            own[side] = max(own.get(side, 0.0), value)
    return far
