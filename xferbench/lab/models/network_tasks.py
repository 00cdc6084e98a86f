"""Say what a network does that does not classify images, by the names of its tensors. Reads files, imports torch."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from xferbench.lab.models import checkpoint_reader
from xferbench.lab.models.state_dict_names import format_names

if TYPE_CHECKING:
    from collections.abc import Iterable
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


def describe_task(names: Iterable[str]) -> str:
    """Return what the tensor names of a network say that it does, or "" if it may classify images."""
    names = list(names)
    for task, *patterns in TASKS:
        matches = [next((name for name in names if re.search(pattern, name)), None) for pattern in patterns]
        if None not in matches:
            return f"{task}, by the tensor {format_names([str(matches[0])])}"
    return ""


def describe_file(path: Path) -> str:
    """Return what the network in a file does if it does not classify images, or "".

    Raises:
        UserError: if the file cannot be read.
    """
    return describe_task(checkpoint_reader.read_checkpoint(path))
