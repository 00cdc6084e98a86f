"""What the names of a checkpoint's tensors say: the network and the prefix. Pure."""

from __future__ import annotations

import re
from collections import Counter
from math import isqrt
from typing import TYPE_CHECKING

from xferbench.core.printable import one_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

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
# A pattern of a name in timm → patterns of the architectures that have such names. The first pattern that occurs counts.
TIMM_PATTERNS = {
    r"(^|\.)stages\.\d+\.blocks\.\d+\.conv_dw\.": ("convnext*",),
    r"(^|\.)layers\.\d+\.blocks\.\d+\.attn\.relative_position_bias_table$": ("swin_*",),
    r"(^|\.)conv_head\.bias$": ("mobilenetv3*",),
    r"(^|\.)conv_stem\.": ("efficientnet_*", "mobilenetv2*", "mnasnet*", "tf_efficientnet_*", "tf_efficientnetv2_*"),
    r"(^|\.)denselayer\d": ("densenet*",),
    r"(^|\.)stem\.conv\.": ("regnet*",),
}
VIT_WIDTHS = {192: "tiny", 384: "small", 768: "base", 1024: "large"}  # width of timm's ViT → its size
STAGES = (("layer1", "layer2", "layer3", "layer4"), ("4", "5", "6", "7"))  # names of a ResNet's stages, and their indices
FAMILY_PATTERNS = {  # pattern of a name, under any prefix → the family that has such names
    r"\.squeeze\.weight$": "SqueezeNet",
    r"denselayer\d": "DenseNet",
    r"(^|\.)conv_proj\.": "torchvision's ViT",
    r"(^|\.)patch_embed\.proj\.": "timm's ViT or Swin",
    r"(^|\.)embeddings\.": "a Hugging Face transformer",
    r"(^|\.)stage\d\.\d+\.branch2": "ShuffleNet",
    r"(^|\.)inception\d[a-e]\.": "GoogLeNet",
    r"(^|\.)Mixed_\d[a-e]\.": "Inception",
    r"(^|\.)trunk_output\.": "RegNet",
    r"\.layer_scale$": "ConvNeXt",
    r"\.relative_position_bias_table$": "Swin",
    r"(^|\.)\d+\.conv\.\d": "MobileNetV2",
    r"(^|\.)\d+\.\d+\.block\.": "EfficientNet",
    r"(^|\.)\d+\.block\.": "MobileNetV3",
    r"(^|\.)(features|0)\.\d+\.weight$": "VGG or AlexNet",
}
AVERAGE_WORDS = {"ema", "swa", "avg", "averaged", "shadow", "teacher", "target", "momentum", "k", "key"}
MAX_LISTED_NAMES = 10
MAX_NAME_LENGTH = 120  # letters of a tensor's name in a message
MIN_MATCHING_SHARE = 0.5  # share of a network's tensors that must fit under a prefix before a message names it


def current_name(name: str) -> str:
    """Return the current name of a tensor in weights that torchvision published long ago."""
    for pattern, current in OLD_NAME_PATTERNS:
        name = pattern.sub(current, name)
    return name


def detect_family(names: Iterable[str]) -> str:
    """Return the family of networks with such tensor names, or ""."""
    return next(iter(detect_families(names)), "")


def detect_families(names: Iterable[str]) -> list[str]:
    """Return the families of networks that may have such tensor names, under any prefix, the most likely first."""
    names = set(names)
    resnets = [_resnet_depth(names, match[1], stages) for stages in STAGES for match in _first_blocks(names, stages)]
    others = [family for pattern, family in FAMILY_PATTERNS.items() if any(re.search(pattern, name) for name in names)]
    return list(dict.fromkeys([*resnets, *others]))


def _first_blocks(names: Iterable[str], stages: Sequence[str]) -> Iterable[re.Match[str]]:
    """Yield where the first block of a ResNet is; its group is the prefix."""
    pattern = re.compile(rf"(|.*\.){stages[0]}\.0\.conv1\.weight")
    return (match for name in sorted(names, key=len) if (match := pattern.fullmatch(name)))


def _resnet_depth(names: Iterable[str], prefix: str, stages: Sequence[str]) -> str:
    """Return the ResNet that has as many blocks in each of its stages."""
    starts = [f"{prefix}{stage}." for stage in stages]
    blocks = [len({name[len(start) :].partition(".")[0] for name in names if name.startswith(start)}) for start in starts]
    if blocks[3] == 0 and len(set(blocks[:3])) == 1:
        return f"cifar-resnet{6 * blocks[0] + 2}"
    return RESNETS.get((f"{starts[0]}0.conv3.weight" in names, *blocks), "a ResNet")


def timm_patterns(shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    """Return patterns of timm's architectures that may have tensors of such names and shapes, the most likely first."""
    patches = {name: shape for name, shape in shapes.items() if name.endswith("patch_embed.proj.weight")}
    positions = next((shape for name, shape in shapes.items() if name.endswith("pos_embed")), None)
    if patches and positions:
        width, _, patch, _ = next(iter(patches.values()))
        side = patch * isqrt(positions[1])  # a token for the class, or none, does not change the whole root
        return (f"vit_{VIT_WIDTHS.get(width, '*')}_patch{patch}_{side}", f"deit3_*_patch{patch}_{side}")
    depth = re.fullmatch(r"resnet\d+", detect_family(shapes))
    if depth:
        return (f"*{depth[0]}*",)
    return next((archs for pattern, archs in TIMM_PATTERNS.items() if any(re.search(pattern, name) for name in shapes)), ())


def format_names(names: list[str]) -> str:
    """Format the first names on one line, each shortened, and the number of names if there are more."""
    more = f" … ({len(names)} in all)" if len(names) > MAX_LISTED_NAMES else ""
    return ", ".join(_shorten(name) for name in names[:MAX_LISTED_NAMES]) + more


def _shorten(name: str) -> str:
    return one_line(name if len(name) <= MAX_NAME_LENGTH else f"{name[: MAX_NAME_LENGTH - 1]}…")


def matching_prefixes(
    file_shapes: Mapping[str, tuple[int, ...]], network_shapes: Mapping[str, tuple[int, ...]]
) -> dict[tuple[str, str], int]:
    """Count the tensors of a network that a file would provide, by names and shapes, for each change of prefix.

    A change is a pair: the prefix to remove from the file's names and the prefix to add. One of the two is "".
    The changes that match the most tensors come first.
    """
    removed, added = _prefix_counts(file_shapes, network_shapes), _prefix_counts(network_shapes, file_shapes)
    counts = Counter({(prefix, ""): count for prefix, count in removed.items()})
    counts.update({("", prefix): count for prefix, count in added.items()})
    return dict(counts.most_common())


def _prefix_counts(shapes: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> Counter[str]:
    """Count the wanted tensors that each prefix gives if it is removed."""
    return Counter(prefix for name, shape in shapes.items() for prefix, rest in _splits(name) if wanted.get(rest) == shape)


def _splits(name: str) -> Iterable[tuple[str, str]]:
    """Yield each prefix of a name, with its last dot, and the rest."""
    return ((name[: dot.end()], name[dot.end() :]) for dot in re.finditer(r"\.", name))


def without_averages(changes: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the changes of prefix that do not lead to a moving average, or all of them if every one does."""
    changes = list(changes)
    return [change for change in changes if not is_average(change[0])] or changes


def is_average(prefix: str) -> bool:
    """Return whether a prefix names a slow copy of a network: an average of its weights, a teacher or a momentum encoder."""
    return bool(AVERAGE_WORDS & set(re.split(r"[._]", prefix)))


def index_name(name: str, children: Sequence[str]) -> str:
    """Return the name of a tensor in ``Sequential(*network.children())``, or "" for a tensor of the network itself."""
    child, _, rest = name.partition(".")
    return f"{children.index(child)}.{rest}" if rest else ""


def child_name(name: str, children: Sequence[str]) -> str | None:
    """Return the name in a network for a name in ``Sequential(*network.children())``, or None if there is no such child."""
    index, _, rest = name.partition(".")
    return f"{children[int(index)]}.{rest}" if index.isdecimal() and int(index) < len(children) else None


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
