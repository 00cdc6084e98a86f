"""Networks in folders that transformers saved. Reads files; imports torch, and transformers where a network is built.

Nothing is downloaded, and no code of the folder runs.
"""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from xferbench.core.errors import UserError
from xferbench.core.transforms import Preprocessing
from xferbench.data import weights_settings
from xferbench.lab.models.transformers_text import (
    TextClassifier,
    TextNetwork,
    build_text_network,
    is_text_network,
    pretrained_arguments,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "transformers:"
CLASSIFIER_SUFFIX = "ForImageClassification"
INTERPOLATIONS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # by the number that Pillow gives them
MAX_SIDE = 4096  # pixels; a larger number in a file is no size of an image
STRETCHED_NOTE = "preprocessing: transformers stretches images to"
SMALL_SIDE = 384  # below it, ConvNeXt crops the resized image


class LogitsOnly(nn.Module):
    """A model of transformers as a network from images to logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of images."""
        logits: Tensor = self.model(pixel_values=images).logits
        return logits


def find_arch(weights: Path) -> str:
    """Return the architecture of a file of weights in a folder of transformers, or "" if it is in none.

    Raises:
        UserError: if transformers is not installed.
    """
    if not _is_known(weights_settings.transformers_config(weights), weights.parent):
        return ""
    import_transformers()
    return f"{PREFIX}{weights.parent.resolve()}"


def build(arch: str, classes: int, pooling: str = "") -> nn.Module:
    """Build the network that ``config.json`` describes, with random weights and a head of ``classes`` outputs.

    A network for text that was only pretrained gets a linear head on its pooled hidden states.

    Raises:
        UserError: if transformers is not installed or cannot build the network, or the network has no pooling to choose.
    """
    folder = Path(arch.removeprefix(PREFIX))
    if not (folder / weights_settings.CONFIG_FILE).is_file() and weights_settings.base_folder(folder) is None:
        expected = f"{PREFIX}DIR, a folder with {weights_settings.CONFIG_FILE}"
        raise UserError("unknown architecture", found=arch, expected=expected, do="correct arch under [backbone]")
    network = _build_network(folder, classes, pooling)
    if pooling and not isinstance(network, TextNetwork):
        found, expected = f"{folder} with its own head", "a pretrained network for text, which gets a new head"
        raise UserError("pooling: the network has none to choose", found=found, expected=expected, do="remove pooling")
    return network.float()


def rename_tensors(state: dict[str, Tensor], weights: Path) -> dict[str, Tensor]:
    """Return tensors under the names of the network in the installed transformers, which may differ from those in the file.

    Tensors are returned unchanged if they do not belong to a known network of transformers, or it is not installed.
    """
    config = weights_settings.transformers_config(weights)
    if not _is_known(config, weights.parent) or not is_installed():
        return state
    with torch.device("meta"):
        network = _build_network(weights.parent)
    is_pretrained = isinstance(network, TextNetwork)
    model = network.encoder.model if isinstance(network, TextNetwork) else network.model
    arguments = pretrained_arguments(type(model)) if is_pretrained else {}
    if model.state_dict().keys() == state.keys():
        return state
    try:
        loaded, report = type(model).from_pretrained(
            None, config=model.config, state_dict=dict(state), output_loading_info=True, **arguments
        )
    except (RuntimeError, ValueError):  # another size than in config.json; the message about the names in the file says more
        return state
    return {name: tensor for name, tensor in loaded.state_dict().items() if name not in report["missing_keys"]}


def recorded_preprocessing(weights: Path) -> tuple[Preprocessing | None, str]:
    """Return the preprocessing that a folder of transformers records for its weights, and a note on what cannot be kept.

    Raises:
        UserError: if a value of the record is not plausible.
    """
    config = weights_settings.transformers_config(weights)
    if not config:
        return None, ""
    file = weights.with_name(weights_settings.PREPROCESSOR_FILE)
    if not file.is_file() and (base := weights_settings.base_folder(weights.parent)):
        file = base / weights_settings.PREPROCESSOR_FILE
    record = weights_settings.read_json(file)
    side = config.get("image_size")
    if not record and isinstance(side, int) and 0 < side <= MAX_SIDE:
        recorded = f"{weights_settings.CONFIG_FILE} records the size, {side}, only"
        note = f"preprocessing: no {file.name} next to the weights; {recorded}"
        return Preprocessing(resize=side, crop=side), note
    if not record:
        return None, ""
    try:
        return _parse_preprocessing(record)
    except (ValueError, TypeError, LookupError, ZeroDivisionError, OverflowError) as error:
        found = f"{type(error).__name__}: {str(error)[:100]}"
        raise UserError(
            f"{file}: recorded preprocessing", found=found, expected="the settings of an image processor"
        ) from error


def import_transformers() -> Any:
    """Import and return transformers, without its progress bars.

    Raises:
        UserError: if transformers is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        do = "pip install 'xferbench[transformers]'"
        what = "the weights are a model of transformers, and their network needs transformers"
        raise UserError(what, found=str(error), expected="transformers 4.40 or newer", do=do) from error
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def is_installed() -> bool:
    """Return whether transformers can be imported."""
    try:
        import_transformers()
    except UserError:
        return False
    return True


def _is_known(config: Mapping[str, Any], folder: Path) -> bool:
    """Return whether a folder holds a network that classifies images, or a network for text."""
    return _is_classifier(config) or is_text_network(config, folder)


def _is_classifier(config: Mapping[str, Any]) -> bool:
    architectures = config.get("architectures") or [CLASSIFIER_SUFFIX]
    return bool(config) and isinstance(architectures, list) and str(architectures[0]).endswith(CLASSIFIER_SUFFIX)


def _build_network(folder: Path, classes: int | None = None, pooling: str = "") -> LogitsOnly | TextClassifier | TextNetwork:
    transformers = import_transformers()
    settings = weights_settings.folder_config(folder)
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = transformers.AutoConfig.from_pretrained(str(weights_settings.base_folder(folder) or folder), **local)
        config.architectures = settings.get("architectures")
        if is_text_network(settings, folder):
            return build_text_network(transformers, config, folder, classes, pooling)
        if classes is not None:
            config.num_labels = classes
        return LogitsOnly(transformers.AutoModelForImageClassification.from_config(config, trust_remote_code=False))
    except (ValueError, TypeError, LookupError, AttributeError, ImportError, OSError, RuntimeError) as error:
        found = next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
        raise UserError(
            f"{folder}: transformers cannot build the network of {weights_settings.CONFIG_FILE}",
            found=found,
            expected="a network for images or text whose code is part of transformers",
            do="install the version of transformers that saved it, or state arch = python:MODULE:CALLABLE",
        ) from error


def _parse_preprocessing(record: Mapping[str, Any]) -> tuple[Preprocessing, str]:
    size, crop_size = (_sides(record.get(key)) for key in ("size", "crop_size"))
    resize = size if record.get("do_resize", True) else None
    crop, note = (crop_size if record.get("do_center_crop") else None), ""
    if resize and record.get("crop_pct") and resize[0] < SMALL_SIDE:
        resize, crop = (_side(int(resize[0] / record["crop_pct"])),), resize
    elif resize:
        crop = crop or resize
        is_stretched = len(resize) == 2
        note = f"{STRETCHED_NOTE} {resize[0]} × {resize[0]} pixels; here, their center is cropped" if is_stretched else ""
    normalize = record.get("do_normalize", True)
    scale = float(record.get("rescale_factor", 1 / 255)) if record.get("do_rescale", True) else 1.0
    return Preprocessing(
        resize=resize[0] if resize else None,
        crop=crop[0] if crop else None,
        interpolation=INTERPOLATIONS[int(record.get("resample", 2))],
        channels="bgr" if record.get("do_flip_channel_order") else "rgb",
        scale=_finite([scale])[0],
        mean=_finite(record["image_mean"]) if normalize else (0.0, 0.0, 0.0),
        std=_finite(record["image_std"], positive=True) if normalize else (1.0, 1.0, 1.0),
    ), note


def _sides(size: object) -> tuple[int, ...] | None:
    """Return the shorter side that images are resized to, or both equal sides; None if there is no size."""
    if isinstance(size, dict) and "shortest_edge" in size:
        return (_side(size["shortest_edge"]),)
    if isinstance(size, dict) and size.get("height") != size.get("width"):
        raise ValueError(f"images that are not square: {size}")
    side = size.get("height") if isinstance(size, dict) else size
    return None if side is None else (_side(side), _side(side))


def _side(side: object) -> int:
    if not isinstance(side, int) or not 0 < side <= MAX_SIDE:
        raise ValueError(f"a size of {str(side)[:50]} pixels")
    return side


def _finite(values: Any, *, positive: bool = False) -> tuple[float, ...]:
    numbers = tuple(float(value) for value in values)
    if len(numbers) not in {1, 3} or not all(isfinite(number) and (number > 0 or not positive) for number in numbers):
        raise ValueError(f"the values {str(values)[:50]}")
    return numbers
