"""Look up the preprocessing that torchvision and timm record for their published weights.

Imports torchvision or timm. Nothing is downloaded.
"""

from __future__ import annotations

import re
from math import floor
from typing import Any

from xferbench.core.transforms import Preprocessing
from xferbench.lab.models import backbones


def published_preprocessing(arch: str, digest: str = "") -> Preprocessing | None:
    """Return the preprocessing that is recorded for the weights of an architecture, or None if there is none.

    The names of published files contain the start of their digest.

    Args:
        arch: ``torchvision:NAME`` or ``timm:NAME``. Anything else returns None.
        digest: SHA-256 of a weights file. If it is given, only published weights with this digest count; else the default ones.

    Raises:
        UserError: For ``timm:NAME`` if timm is not installed.
    """
    kind, _, name = arch.partition(":")
    url_pattern = re.compile(rf"-{digest[:8]}\.")
    if kind == "torchvision":
        return _from_torchvision(name, url_pattern if digest else None)
    return _from_timm(name, url_pattern if digest else None) if kind == "timm" else None


def _from_torchvision(name: str, url_pattern: re.Pattern[str] | None) -> Preprocessing | None:
    import torchvision

    if name not in torchvision.models.list_models(module=torchvision.models):
        return None
    all_weights = torchvision.models.get_model_weights(name)
    matches = [weights for weights in all_weights if url_pattern.search(weights.url)] if url_pattern else [all_weights.DEFAULT]
    if not matches:
        return None
    transforms = matches[0].transforms()
    return Preprocessing(
        resize=transforms.resize_size[0],
        crop=transforms.crop_size[0],
        interpolation=transforms.interpolation.value,
        antialias=bool(transforms.antialias),
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
    )


def _from_timm(name: str, url_pattern: re.Pattern[str] | None) -> Preprocessing | None:
    """Return the preprocessing of timm's evaluation: the center crop is ``crop_pct`` of the resized shorter side."""
    timm = backbones.import_timm()
    if not timm.is_model(name):
        return None
    base_name = name.partition(".")[0]
    tags = timm.list_pretrained(f"{base_name}.*") if url_pattern else [name]
    configs: list[Any] = [timm.get_pretrained_cfg(tag, allow_unregistered=True) for tag in tags]
    matches = [
        config for config in configs if config is not None and (url_pattern is None or url_pattern.search(config.url or ""))
    ]
    # A Preprocessing cannot describe squeezing or padding.
    if not matches or (url_pattern and matches[0].crop_mode != "center"):
        return None
    size = min(matches[0].input_size[1:])
    supported = {"bilinear", "bicubic", "nearest"}
    return Preprocessing(
        resize=floor(size / matches[0].crop_pct),
        crop=size,
        interpolation=matches[0].interpolation if matches[0].interpolation in supported else "bilinear",
        mean=tuple(map(float, matches[0].mean)),
        std=tuple(map(float, matches[0].std)),
    )
