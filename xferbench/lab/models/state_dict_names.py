"""What the names of a checkpoint's tensors say: the network and the prefix. Pure."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

OLD_NAME_PATTERNS = (  # names in published torchvision weights → current names
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\."), r"\1\2."),
    (re.compile(r"(encoder_layer_\d+\.mlp)\.linear_1\."), r"\1.0."),
    (re.compile(r"(encoder_layer_\d+\.mlp)\.linear_2\."), r"\1.3."),
)
RESNETS: dict[tuple[int, ...], str] = {  # (has bottlenecks, blocks per stage …)
    (False, 2, 2, 2, 2): "resnet18",
    (False, 3, 4, 6, 3): "resnet34",
    (True, 3, 4, 6, 3): "resnet50",
    (True, 3, 4, 23, 3): "resnet101",
    (True, 3, 8, 36, 3): "resnet152",
}
FAMILY_PATTERNS = {  # pattern of a name → the family that has such names
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
MAX_LISTED_NAMES = 10
MIN_MATCHING_SHARE = 0.5  # share of a network's tensors that must fit under a prefix before a message names it


def current_name(name: str) -> str:
    """Return the current name of a tensor in weights that torchvision published long ago."""
    for pattern, current in OLD_NAME_PATTERNS:
        name = pattern.sub(current, name)
    return name


def detect_family(names: Iterable[str]) -> str:
    """Return the family of networks with such tensor names, or ""."""
    names = set(names)
    stages = [{name.split(".")[1] for name in names if name.startswith(f"layer{stage}.")} for stage in (1, 2, 3, 4)]
    if "layer1.0.conv1.weight" in names:
        blocks = [len(stage) for stage in stages]
        if blocks[3] == 0 and len(set(blocks[:3])) == 1:
            return f"cifar-resnet{6 * blocks[0] + 2}"
        return RESNETS.get(("layer1.0.conv3.weight" in names, *blocks), "a ResNet")
    return next(
        (family for name_pattern, family in FAMILY_PATTERNS.items() if any(re.search(name_pattern, name) for name in names)), ""
    )


def format_names(names: list[str]) -> str:
    """Format the first names, and the number of names if there are more."""
    more = f" … ({len(names)} in all)" if len(names) > MAX_LISTED_NAMES else ""
    return ", ".join(names[:MAX_LISTED_NAMES]) + more


def matching_prefixes(
    file_shapes: Mapping[str, tuple[int, ...]], network_shapes: Mapping[str, tuple[int, ...]]
) -> dict[tuple[str, str], int]:
    """Count the tensors of a network that a file would provide, by names and shapes, for each change of prefix.

    A change is a pair: the prefix to remove from the file's names and the prefix to add. One of the two is "".
    The changes that match the most tensors come first.
    """
    counts: Counter[tuple[str, str]] = Counter()
    for name, shape in network_shapes.items():
        for file_name, file_shape in file_shapes.items():
            if file_shape == shape and file_name != name:
                if file_name.endswith(f".{name}"):
                    counts[file_name.removesuffix(name), ""] += 1
                elif name.endswith(f".{file_name}"):
                    counts["", name.removesuffix(file_name)] += 1
    return dict(counts.most_common())


def change_prefix(name: str, old_prefix: str, new_prefix: str) -> str | None:
    """Return a name with one prefix removed or another added; None for a name without the prefix to remove."""
    return new_prefix + name.removeprefix(old_prefix) if name.startswith(old_prefix) else None


def describe_prefix(counts: Mapping[tuple[str, str], int], total: int) -> str:
    """Describe the change of prefix under which many tensors would fit, or return "" if there is none."""
    (old_prefix, new_prefix), count = next(iter(counts.items()), (("", ""), 0))
    if count < MIN_MATCHING_SHARE * total:
        return ""
    change = "removed from" if old_prefix else "put before"
    return f"with {old_prefix or new_prefix!r} {change} the names, {count} of {total} tensors would fit"
