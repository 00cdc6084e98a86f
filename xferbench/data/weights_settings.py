"""The settings that transformers and peft keep in files next to the weights. Reads files, without torch."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

# The files that transformers reads, in its order.
TRANSFORMERS_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
CONFIG_FILE = "config.json"
PREPROCESSOR_FILE = "preprocessor_config.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
POOLING_FILE = "1_Pooling/config.json"  # of sentence-transformers
FAST_TOKENIZER_FILE, VOCABULARY_FILE = "tokenizer.json", "vocab.txt"
TOKENIZER_FILES = (FAST_TOKENIZER_FILE, VOCABULARY_FILE, TOKENIZER_CONFIG_FILE)
ADAPTER_CONFIG_FILE = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
CLASSIFIER_TASK = "SEQ_CLS"  # of peft, which then saves the head with the adapter
TASK_SUFFIX = re.compile(r"(For\w+|LMHeadModel|Model)$")  # of the name of a class of transformers
MAX_CONFIG_BYTES = 2**26  # the index of a network with a million tensors is smaller
MAX_NAME = 80  # characters of the name of a class
# The end of the class name of a transformers model → what the model does.
TEXT_TASKS = {
    "ForSequenceClassification": "classifies text",
    "ForMaskedLM": "models text",
    "ForCausalLM": "generates text",
    "LMHeadModel": "generates text",
}
TRANSFORMERS_TASKS = {
    **TEXT_TASKS,
    "ForTokenClassification": "classifies words",
    "ForQuestionAnswering": "answers questions",
    "ForConditionalGeneration": "generates text",
    "ForObjectDetection": "detects objects",
    "ForZeroShotObjectDetection": "detects objects",
    "ForSemanticSegmentation": "segments images",
    "ForUniversalSegmentation": "segments images",
    "ForInstanceSegmentation": "segments images",
    "ForImageSegmentation": "segments images",
    "ForMaskGeneration": "segments images",
    "ForDepthEstimation": "estimates depth",
    "ForAudioClassification": "classifies audio",
    "ForSpeechSeq2Seq": "transcribes speech",
    "ForCTC": "transcribes speech",
    "ForVideoClassification": "classifies videos",
    "ForImageToImage": "generates images",
}


def transformers_config(weights: Path) -> dict[str, Any]:
    """Return the configuration of the transformers model that a file of weights belongs to; empty if it belongs to none."""
    is_adapter = weights.name in ADAPTER_WEIGHTS and base_folder(weights.parent)
    return folder_config(weights.parent) if is_adapter or weights.name in TRANSFORMERS_WEIGHTS else {}


def folder_config(folder: Path) -> dict[str, Any]:
    """Return the configuration of the transformers model in a folder; empty if there is none.

    An adapter of peft that has a head turns its network into a classifier.
    """
    config = read_json((base_folder(folder) or folder) / CONFIG_FILE)
    if not isinstance(config.get("model_type"), str):
        return {}
    if not base_folder(folder) or not _saves_head(folder):
        return config
    ending = "ForSequenceClassification" if has_tokenizer(tokenizer_folder(folder)) else "ForImageClassification"
    return config | {"architectures": [TASK_SUFFIX.sub("", architecture_name(config)) + ending]}


def base_folder(folder: Path) -> Path | None:
    """Return the folder of the network that an adapter of peft was trained on; None if it is not on this machine.

    peft records the path that the training was given. A relative one is looked for in the folder of the adapter and in those
    above it, because a training usually writes below its working directory.
    """
    if (folder / CONFIG_FILE).is_file():
        return None
    recorded = read_json(folder / ADAPTER_CONFIG_FILE).get("base_model_name_or_path")
    if not isinstance(recorded, str) or not recorded:
        return None
    places = (place / recorded for place in (folder.absolute(), *folder.absolute().parents))
    try:
        return next((place for place in places if (place / CONFIG_FILE).is_file()), None)
    except (OSError, ValueError):  # a name that is too long, or has a NUL character
        return None


def tokenizer_folder(folder: Path) -> Path:
    """Return the folder with the tokenizer of a network: for an adapter of peft without one, that of its network."""
    return folder if has_tokenizer(folder) else base_folder(folder) or folder


def has_head(folder: Path) -> bool:
    """Return whether an adapter of peft, or the network that it was trained on, has a head that classifies."""
    return _saves_head(folder) or architecture_name(folder_config(folder)).endswith("Classification")


def _saves_head(folder: Path) -> bool:
    adapter = read_json(folder / ADAPTER_CONFIG_FILE)
    return adapter.get("task_type") == CLASSIFIER_TASK or bool(adapter.get("modules_to_save"))


def takes_text(config: Mapping[str, Any], folder: Path) -> bool:
    """Return whether a folder of transformers, with its configuration, holds a network for text and its tokenizer."""
    is_image = (folder / PREPROCESSOR_FILE).is_file() or architecture_name(config).endswith("ForImageClassification")
    return bool(config) and has_tokenizer(tokenizer_folder(folder)) and not is_image


def architecture_name(config: Mapping[str, Any]) -> str:
    """Return the name of the class of a transformers model, or "" if the configuration has none."""
    architectures = config.get("architectures")
    return str(architectures[0])[:MAX_NAME] if isinstance(architectures, list) and architectures else ""


def has_tokenizer(folder: Path) -> bool:
    """Return whether a folder holds the vocabulary of a tokenizer."""
    return any((folder / name).is_file() for name in (FAST_TOKENIZER_FILE, VOCABULARY_FILE))


def describe_task(config: Mapping[str, Any]) -> str:
    """Return the class of a transformers model that does not classify images and what it does, or ""."""
    name = architecture_name(config)
    return next((f"{name}, which {task}" for suffix, task in TRANSFORMERS_TASKS.items() if name.endswith(suffix)), "")


def describe_adapter(config: Mapping[str, Any], *, has_network: bool = False) -> tuple[str, str]:
    """Return what the adapter of peft with this configuration is, and what to do with it.

    Args:
        config: the configuration.
        has_network: whether the network that it was trained on is on this machine.
    """
    base = config.get("base_model_name_or_path")
    kind, rank = config.get("peft_type", "unknown kind"), config.get("r")
    found = f"an adapter of peft ({kind}{f', rank {rank}' if isinstance(rank, int) else ''})"
    if not has_network:
        found += f" without the network {str(base)[:200]}" if base else " without the network, whose name it does not record"
    merge = 'merge it, and save the whole network: model.merge_and_unload().save_pretrained("merged")'
    if not has_network and base:
        merge += f"; or name the folder of the network as base_model_name_or_path in {ADAPTER_CONFIG_FILE}"
    if config.get("modules_to_save"):
        return found, merge
    without_head = "; it holds no head, because modules_to_save is null"
    return found + without_head, f'{merge}; to train a head as well, set modules_to_save=["classifier"] in its LoraConfig'


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a small file; an empty one if there is none."""
    try:
        if not path.is_file() or path.stat().st_size > MAX_CONFIG_BYTES:
            return {}
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
