"""Check whether a checkpoint belongs to an architecture, without data and without running it. Imports torch; reads files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from xferbench.core.errors import UserError
from xferbench.core.transforms import InputTransform, Preprocessing, Tokens
from xferbench.lab.data import tokens
from xferbench.lab.models import backbones, checkpoint_reader, checkpoints, published_preprocessing

if TYPE_CHECKING:
    from torch import nn

DEFAULT_SIDE = 224  # side of an input in pixels, if no preprocessing states it
SHORT_TEXT = 8  # tokens
ANY_CLASSES = 10  # the head is replaced, so its size does not matter


def check_weights(arch: str, path: str, preprocessing: InputTransform | None, pooling: str = "") -> None:
    """Check the names and shapes of all tensors of a checkpoint below the head of the network.

    Nothing is checked if the head cannot be found without the data.

    Args:
        arch: the name of an architecture without user code.
        path: the file of the weights.
        preprocessing: the preprocessing that the suite states, or None.
        pooling: the pooling that the suite states, or "".

    Raises:
        UserError: if the architecture is unknown or has no pooling to choose, or the file cannot be read or does not fit.
    """
    module = backbones.build(arch, ANY_CLASSES, pooling=pooling)
    state = checkpoint_reader.read_checkpoint(Path(path))
    takes_text = arch == "tiny-bert" or tokens.recorded_tokens(Path(path)) is not None
    known = Tokens() if takes_text else preprocessing or published_preprocessing.published_preprocessing(arch)
    head = _find_head(module, known)
    if head:
        checkpoints.match_tensors(module, state, head)


def _find_head(module: nn.Module, preprocessing: InputTransform | None) -> str:
    """Return the name of the head, or "" if the network accepts neither texts nor square color images of the known size."""
    crop = preprocessing.crop if isinstance(preprocessing, Preprocessing) else None
    shape = tokens.input_shape(SHORT_TEXT) if isinstance(preprocessing, Tokens) else crop or DEFAULT_SIDE
    try:
        return backbones.layer_layout(module, shape).head
    except UserError:
        return ""
