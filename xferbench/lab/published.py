"""The preprocessing that torchvision and timm record for the weights they publish; nothing is downloaded."""

from __future__ import annotations

import re
from math import floor
from typing import Any

from xferbench.design import Preprocessing
from xferbench.lab import backbones


def preprocessing(arch: str, digest: str = "") -> Preprocessing | None:
    """What is recorded for an architecture's weights; None where nothing is.

    The published files carry the start of their digest in their names.

    Args:
        arch: ``torchvision:NAME`` or ``timm:NAME``; anything else gives None.
        digest: SHA-256 of a weights file. Only the published weights with that digest count then; without it, the default ones.

    Raises:
        Problem: for ``timm:NAME`` where timm is not installed.
    """
    kind, _, name = arch.partition(":")
    same = re.compile(rf"-{digest[:8]}\.")
    if kind == "torchvision":
        return _of_torchvision(name, same if digest else None)
    return _of_timm(name, same if digest else None) if kind == "timm" else None


def _of_torchvision(name: str, same: re.Pattern[str] | None) -> Preprocessing | None:
    import torchvision

    if name not in torchvision.models.list_models(module=torchvision.models):
        return None
    published = torchvision.models.get_model_weights(name)
    found = [weights for weights in published if same.search(weights.url)] if same else [published.DEFAULT]
    if not found:
        return None
    transforms = found[0].transforms()
    return Preprocessing(
        resize=transforms.resize_size[0],
        crop=transforms.crop_size[0],
        interpolation=transforms.interpolation.value,
        antialias=bool(transforms.antialias),
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
    )


def _of_timm(name: str, same: re.Pattern[str] | None) -> Preprocessing | None:
    """As timm evaluates: the shorter side resized so that the centre crop is ``crop_pct`` of it."""
    library = backbones.timm()
    if not library.is_model(name):
        return None
    plain = name.partition(".")[0]
    tags = library.list_pretrained(f"{plain}.*") if same else [name]
    known: list[Any] = [library.get_pretrained_cfg(tag, allow_unregistered=True) for tag in tags]
    found = [one for one in known if one is not None and (same is None or same.search(one.url or ""))]
    if not found or (same and found[0].crop_mode != "center"):  # what squeezes or pads has no word here
        return None
    size = min(found[0].input_size[1:])
    words = {"bilinear", "bicubic", "nearest"}
    return Preprocessing(
        resize=floor(size / found[0].crop_pct),
        crop=size,
        interpolation=found[0].interpolation if found[0].interpolation in words else "bilinear",
        mean=tuple(map(float, found[0].mean)),
        std=tuple(map(float, found[0].std)),
    )
