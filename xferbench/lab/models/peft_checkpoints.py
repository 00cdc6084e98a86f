"""Merge low-rank adapters, as peft saves them, into their layers. Reads files, imports torch.

References:
    Hu et al. 2022, LoRA (arXiv:2106.09685): W + alpha / r · B A; Kalajdzievski 2023, rsLoRA (arXiv:2312.03732): alpha / √r.
"""

from __future__ import annotations

import json
import re
from math import sqrt
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from xferbench.core.errors import UserError
from xferbench.data import weights_settings
from xferbench.lab.models.state_dict_names import format_names

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

CONFIG_FILE = weights_settings.ADAPTER_CONFIG_FILE
NETWORK_PREFIX = "base_model.model."  # of a network within the model of peft
ADAPTER_PATTERN = re.compile(
    r"\.(lora_\w+|base_layer|modules_to_save|original_module|ia3_\w+|hada_\w+|lokr_\w+|vera_\w+)(\.|$)"
)
LORA_PATTERN = re.compile(r"(.+)\.lora_([AB])(?:\.([^.]+))?\.weight")
SAVED_MODULE_PATTERN = re.compile(r"(.+)\.modules_to_save\.([^.]+)\.(.+)")
# Options of peft that change the result of merging; an adapter with one of them is refused.
UNSUPPORTED_OPTIONS = ("alpha_pattern", "use_dora", "lora_bias", "use_qalora", "use_bdlora", "fan_in_fan_out", "use_velora")


def merge_adapters(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Return the tensors of a network under its own names, with each adapter added to its layer.

    Tensors without adapters are returned unchanged. The scale is read from ``adapter_config.json`` in the folder of the file,
    because a file of weights does not contain it.

    Raises:
        UserError: If the file holds only an adapter, or the scale or kind of an adapter is unknown.
    """
    adapter_names = [name for name in state if ADAPTER_PATTERN.search(name)]
    if not adapter_names:
        return state
    low_rank = {name: match for name in adapter_names if (match := LORA_PATTERN.fullmatch(name))}
    saved_modules = {name: match for name in adapter_names if (match := SAVED_MODULE_PATTERN.fullmatch(name))}
    if len({match[3] for match in low_rank.values()} | {match[2] for match in saved_modules.values()}) > 1:
        raise _refused(path, f"several adapters: {format_names(sorted(low_rank))}")
    plain = {_layer_name(name): tensor for name, tensor in state.items() if name not in low_rank and name not in saved_modules}
    plain |= {f"{match[1]}.{match[3]}": state[name] for name, match in saved_modules.items()}
    unsupported = [name for name in plain if ADAPTER_PATTERN.search(name)]
    if unsupported:
        raise _refused(path, f"adapters of another kind: {format_names(unsupported)}")
    for layer in dict.fromkeys(match[1] for match in low_rank.values()):
        a, b = (
            next((state[name] for name, match in low_rank.items() if match.groups()[:2] == (layer, side)), None)
            for side in "AB"
        )
        if f"{layer}.weight" not in plain or a is None or b is None:
            raise _without_network(path, layer)
        weight = plain[f"{layer}.weight"]
        plain[f"{layer}.weight"] = weight + _scale(path, a.shape[0]) * _product(a, b, weight, path)
    return plain


def adapter_tensors(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file that holds an adapter and perhaps a head, under the names of the adapted network.

    Raises:
        UserError: If the adapter is of another kind than low-rank.
    """
    kind = weights_settings.read_json(path.with_name(CONFIG_FILE)).get("peft_type")
    if kind != "LORA":
        raise _refused(path, f"{kind} in {CONFIG_FILE}")
    return {name.removeprefix(NETWORK_PREFIX): tensor for name, tensor in state.items()}


def _layer_name(name: str) -> str:
    return name.replace(".base_layer.", ".").replace(".original_module.", ".")


def _product(a: Tensor, b: Tensor, weight: Tensor, path: Path) -> Tensor:
    """Return B A in the shape of a layer's weight: linear [out, in], or convolutional if B is 1 × 1."""
    if b.ndim > 2 and (set(b.shape[2:]) != {1} or a.ndim != b.ndim):
        raise _refused(path, f"an adapter of shape {tuple(b.shape)}")
    if b.shape[1] != a.shape[0] or (b.shape[0], *a.shape[1:]) != tuple(weight.shape):
        raise _refused(path, f"an adapter {tuple(b.shape)} by {tuple(a.shape)} on a layer {tuple(weight.shape)}")
    return torch.einsum("or,r...->o...", b.flatten(1), a)


def _scale(path: Path, rank: int) -> float:
    file = path.with_name(CONFIG_FILE)
    try:
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        alpha = float(config["lora_alpha"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        reason = f"no scale, because {CONFIG_FILE} in the same folder cannot be read ({type(error).__name__})"
        raise _refused(path, reason) from error
    unsupported = [option for option in UNSUPPORTED_OPTIONS if config.get(option)]
    if unsupported or config.get("peft_type") != "LORA":
        raise _refused(path, f"{', '.join(unsupported) or config.get('peft_type')} in {CONFIG_FILE}")
    return alpha / (sqrt(rank) if config.get("use_rslora") else rank)


def _without_network(path: Path, layer: str) -> UserError:
    config = weights_settings.read_json(path.with_name(CONFIG_FILE))
    found, do = weights_settings.describe_adapter(config)
    if not config:
        return _refused(path, f"an adapter without its layer: {layer}")
    return UserError(f"{path}: an adapter that is not merged", found=found, expected="the tensors of a whole network", do=do)


def _refused(path: Path, reason: str) -> UserError:
    do = "merge the adapter in the code that trained it, and save: torch.save(model.merge_and_unload().state_dict(), ...)"
    return UserError(f"{path}: an adapter that is not merged", found=reason, expected="the tensors of a whole network", do=do)
