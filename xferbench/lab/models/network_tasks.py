"""Say what a network does that does not classify images, by the names of its tensors. Reads files, imports torch."""

from __future__ import annotations

import re
from math import isqrt
from typing import TYPE_CHECKING

from xferbench.lab.models import checkpoint_reader
from xferbench.lab.models.state_dict_names import format_names

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

# What a network is, and patterns of tensor names that it has, all of them. The first row that fits counts.
TASKS = (
    ("a detection network (R-CNN)", r"(^|\.)(roi_heads?|rpn|rpn_head|bbox_head)\."),
    ("a detection network (SSD or RetinaNet)", r"(^|\.)head\.(classification_head|regression_head)\."),
    ("a detection network (DETR)", r"(^|\.)(class_embed|bbox_embed|bbox_predictor|class_labels_classifier)\."),
    ("a detection network (YOLO)", r"(^|\.)model\.\d+\.(cv[123]|m\.\d+\.cv[12])\."),
    ("a segmentation network (Segment Anything)", r"(^|\.)mask_decoder\."),
    ("a segmentation network", r"(^|\.)(aux_classifier|decode_head|auxiliary_head|segmentation_head|sem_seg_head)\."),
    ("a segmentation network (DeepLab or FCN)", r"^classifier\.4\.weight$", r"^backbone\."),
    ("a segmentation network (LR-ASPP)", r"^classifier\.(low|high)_classifier\.", r"^backbone\."),
    ("a segmentation network (U-Net)", r"\.double_conv\.|(^|\.)outc\.conv\."),
    ("a network of images and text (CLIP)", r"^(\w+\.)?logit_scale$", r"text"),
    ("a diffusion network", r"(^|\.)time_embed(ding)?\."),
    ("an autoencoder of images", r"(^|\.)quant_conv\."),
    ("a network of text", r"(^|\.)(word_embeddings|embed_tokens|tok_embeddings|wte|shared)\.weight$"),
    ("a network of speech", r"(^|\.)feature_extractor\.conv_layers\."),
)

POSITION_PATTERN = re.compile(r"(^|\.)(pos_embed|pos_embedding|position_embeddings?)$")
PATCH_PATTERN = re.compile(r"(^|\.)(patch_embed\.proj|conv_proj|patch_embeddings\.projection)\.weight$")


def describe_task(names: Iterable[str]) -> str:
    """Return what the tensor names of a network say that it does, or "" if it may classify images."""
    names = list(names)
    for task, *patterns in TASKS:
        matches = [next((name for name in names if re.search(pattern, name)), None) for pattern in patterns]
        if None not in matches:
            return f"{task}, by the tensor {format_names([str(matches[0])])}"
    return ""


def image_side(shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """Return the side of the images that a vision transformer is made for, in pixels, by its embeddings; None for others."""
    kernel = next((shape[-1] for name, shape in shapes.items() if PATCH_PATTERN.search(name) and len(shape) == 4), None)
    positions = next((shape[-2] for name, shape in shapes.items() if POSITION_PATTERN.search(name) and len(shape) > 1), None)
    if kernel is None or positions is None:
        return None
    # Tokens that stand for no patch, such as that of the class, may have positions too.
    side = next((isqrt(positions - extra) for extra in (1, 0, 2) if isqrt(positions - extra) ** 2 == positions - extra), None)
    return side * kernel if side else None


def describe_file(path: Path) -> str:
    """Return what the network in a file does if it does not classify images, or "".

    Raises:
        UserError: if the file cannot be read.
    """
    return describe_task(checkpoint_reader.read_checkpoint(path))
