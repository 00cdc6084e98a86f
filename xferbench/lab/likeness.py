"""What the names of a checkpoint's tensors tell: which network they are of, and under which prefix."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

RENAMED = (  # names in published torchvision weights → today's
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\."), r"\1\2."),
    (re.compile(r"(encoder_layer_\d+\.mlp)\.linear_1\."), r"\1.0."),
    (re.compile(r"(encoder_layer_\d+\.mlp)\.linear_2\."), r"\1.3."),
)
RESNETS: dict[tuple[int, ...], str] = {  # whether it has bottlenecks, and blocks a stage
    (False, 2, 2, 2, 2): "resnet18",
    (False, 3, 4, 6, 3): "resnet34",
    (True, 3, 4, 6, 3): "resnet50",
    (True, 3, 4, 23, 3): "resnet101",
    (True, 3, 8, 36, 3): "resnet152",
}
SIGNS = {  # of names → the family that has such
    r"\.squeeze\.weight$": "SqueezeNet",
    r"denselayer\d": "DenseNet",
    r"^conv_proj\.": "torchvision's ViT",
    r"^patch_embed\.proj\.": "timm's ViT or Swin",
    r"(^|\.)embeddings\.": "a Hugging Face transformer",
    r"^stage\d\.\d+\.branch2": "ShuffleNet",
    r"^inception\d[a-e]\.": "GoogLeNet",
    r"^Mixed_\d[a-e]\.": "Inception",
    r"^trunk_output\.": "RegNet",
    r"\.layer_scale$": "ConvNeXt",
    r"\.relative_position_bias_table$": "Swin",
    r"^features\.\d+\.conv\.\d": "MobileNetV2",
    r"^features\.\d+\.\d+\.block\.": "EfficientNet",
    r"^features\.\d+\.block\.": "MobileNetV3",
    r"^features\.\d+\.weight$": "VGG or AlexNet",
}
SHOWN = 10
ENOUGH = 0.5  # share of a network's tensors that would fit under a prefix which is worth naming


def renamed(name: str) -> str:
    """Today's name of a tensor in weights that torchvision published long ago."""
    for pattern, today in RENAMED:
        name = pattern.sub(today, name)
    return name


def family(names: Iterable[str]) -> str:
    """The family of networks whose tensors are named so, or ""."""
    names = set(names)
    stages = [{name.split(".")[1] for name in names if name.startswith(f"layer{stage}.")} for stage in (1, 2, 3, 4)]
    if "layer1.0.conv1.weight" in names:
        blocks = [len(stage) for stage in stages]
        if blocks[3] == 0 and len(set(blocks[:3])) == 1:
            return f"cifar-resnet{6 * blocks[0] + 2}"
        return RESNETS.get(("layer1.0.conv3.weight" in names, *blocks), "a ResNet")
    return next((family for sign, family in SIGNS.items() if any(re.search(sign, name) for name in names)), "")


def listed(names: list[str]) -> str:
    """The first of some names, and how many there are in all."""
    more = f" … ({len(names)} in all)" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def prefixes(given: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> dict[tuple[str, str], int]:
    """How many tensors of a network a file would have, names and shapes, by the prefix taken off its names and the one put on.

    One of the two is "". Those that fit the most come first.
    """
    found: Counter[tuple[str, str]] = Counter()
    for name, shape in wanted.items():
        for other, its in given.items():
            if its == shape and other != name:
                if other.endswith(f".{name}"):
                    found[other.removesuffix(name), ""] += 1
                elif name.endswith(f".{other}"):
                    found["", name.removesuffix(other)] += 1
    return dict(found.most_common())


def moved(name: str, off: str, on: str) -> str | None:
    """A name with one prefix taken off or another put on; None for one that lies beside."""
    return on + name.removeprefix(off) if name.startswith(off) else None


def likely(found: Mapping[tuple[str, str], int], of: int) -> str:
    """The prefix under which many tensors would fit, in words; "" where there is none."""
    (off, on), count = next(iter(found.items()), (("", ""), 0))
    if count < ENOUGH * of:
        return ""
    return f"with {off or on!r} {'taken off' if off else 'put before'} the names, {count} of {of} tensors would fit"
