"""Find the file of weights that a path means, which may be a folder of transformers. Reads files, without torch."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from xferbench.core.errors import UserError
from xferbench.data.weights_settings import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_WEIGHTS,
    CONFIG_FILE,
    POOLING_FILE,
    PREPROCESSOR_FILE,
    TEXT_TASKS,
    TOKENIZER_FILES,
    TRANSFORMERS_WEIGHTS,
    base_folder,
    describe_adapter,
    describe_task,
    has_head,
    has_tokenizer,
    read_json,
    tokenizer_folder,
    transformers_config,
)

WEIGHTS_EXPECTED = "a state dict saved by torch.save, or safetensors"
INDEX_SUFFIX = ".index.json"
SHARD_PATTERN = re.compile(r"(.+)-\d{5}-of-(\d{5})(\.\w+)")
WEIGHTS_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".tar", ".safetensors", ".pkl", ".h5", ".keras", ".onnx", INDEX_SUFFIX)
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
MAX_CANDIDATES = 6  # names in a message
MAX_LISTED_FILES = 2000  # files of a folder that are looked at
MAX_DEPTH = 2  # folders below a folder
STATE_DICT_ADVICE = 'save the weights: torch.save(model.state_dict(), "weights.pth"), and give that file'


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderKind:
    """A kind of folder: the names or patterns of which one is in it, what it is, and what to give instead."""

    patterns: tuple[str, ...]
    name: str
    do: str


KERAS_ADVICE = "xferbench reads networks of PyTorch: load the weights into the same network of timm or torchvision, and save it"
# The first kind of which a pattern matches counts.
FOLDER_KINDS = (
    FolderKind(patterns=("saved_model.pb", "keras_metadata.pb"), name="a TensorFlow SavedModel", do=KERAS_ADVICE),
    FolderKind(patterns=("*.ckpt*.index", "*.data-00000-of-*"), name="a TensorFlow checkpoint", do=KERAS_ADVICE),
    FolderKind(patterns=("flax_model.msgpack", "_CHECKPOINT_METADATA"), name="a checkpoint of Flax", do=KERAS_ADVICE),
    FolderKind(patterns=("tf_model.h5",), name="a transformers model with weights of TensorFlow only", do=KERAS_ADVICE),
    FolderKind(patterns=("Manifest.json",), name="a CoreML package", do=KERAS_ADVICE),
    FolderKind(patterns=("model_index.json",), name="a diffusion pipeline", do="give a network that classifies images"),
    FolderKind(
        patterns=("MLmodel",),
        name="an MLflow model",
        do="give the file of weights in it; of a pickled module, " + STATE_DICT_ADVICE,
    ),
    FolderKind(
        patterns=(".metadata", "*.distcp"),
        name="a distributed checkpoint of torch",
        do="make one file of it: torch.distributed.checkpoint.format_utils.dcp_to_torch_save(FOLDER, FILE)",
    ),
    FolderKind(
        patterns=("*_model_states.pt", "*/*_model_states.pt", "zero_to_fp32.py"),
        name="a checkpoint of DeepSpeed",
        do="make one file of it: python zero_to_fp32.py FOLDER FILE",
    ),
    FolderKind(
        patterns=("data.pkl", "*/data.pkl"),
        name="an unpacked file of torch.save",
        do="give the file that was unpacked, without unpacking it",
    ),
    FolderKind(patterns=("export.pkl", "models/*.pth"), name="a folder of fastai", do="give the file that learn.save wrote"),
    FolderKind(
        patterns=("hparams.yaml", "checkpoints/*.ckpt", "lightning_logs"),
        name="a folder of Lightning",
        do="give its .ckpt file",
    ),
    FolderKind(
        patterns=("snapshots/*", "checkpoint-*/trainer_state.json", "checkpoint-*/config.json"),
        name="a folder of transformers with several models",
        do="give the folder of one model",
    ),
)


def find_weights(path: Path) -> Path:
    """Return the file that a path means: the file itself, or the weights in a folder that transformers saved.

    Raises:
        UserError: if there is no such file, or the folder has no weights that can be read. The message says what the folder is.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        is_loop = isinstance(error, OSError) and path.is_symlink()
        raise _unreadable(path, "a link that leads nowhere" if is_loop else "no such file", "check the path") from error
    if stat.S_ISREG(mode):
        _refuse_shard(path)
        return path
    if not stat.S_ISDIR(mode):
        raise _unreadable(path, "a pipe or a device, not a regular file", "save the weights into a file")
    try:
        names = {entry.name for entry in path.iterdir()}
    except OSError as error:
        raise _unreadable(path, "a folder that cannot be opened", "check its permissions") from error
    weights = _network_file(path) or (_adapter_file(path) if has_head(path) else None)
    if weights is None:
        raise _describe_folder(path, names)
    config = transformers_config(weights)
    task = describe_task(config)
    if task.endswith(tuple(TEXT_TASKS.values())):
        if not has_tokenizer(tokenizer_folder(path)):
            do = "save the tokenizer into the folder too: tokenizer.save_pretrained(FOLDER)"
            raise _unreadable(path, f"a folder of transformers with {task}, without its tokenizer", do)
    elif task:
        raise _unreadable(path, f"a folder of transformers with {task}", "give a network that classifies images or text")
    return find_weights(weights)


def base_weights(weights: Path) -> Path | None:
    """Return the weights of the network that an adapter of peft is added to; None for any other file of weights."""
    base = base_folder(weights.parent) if weights.name in ADAPTER_WEIGHTS else None
    return _network_file(base) if base else None


def _network_file(folder: Path) -> Path | None:
    return next((folder / name for name in TRANSFORMERS_WEIGHTS if (folder / name).exists()), None)


def _adapter_file(folder: Path) -> Path | None:
    """Return the adapter of peft in a folder if the weights of its network are on this machine, else None."""
    weights = next((folder / name for name in ADAPTER_WEIGHTS if (folder / name).exists()), None)
    return weights if weights and base_weights(weights) else None


def _refuse_shard(path: Path) -> None:
    """Refuse one of the files of a sharded checkpoint whose index is in the same folder."""
    match = SHARD_PATTERN.fullmatch(path.name)
    index = path.with_name(f"{match[1]}{match[3]}{INDEX_SUFFIX}") if match else path
    if match and index.is_file():
        raise _unreadable(path, f"one of {int(match[2])} files of a sharded checkpoint", f"give {index.name} or its folder")


def weights_files(path: Path) -> tuple[Path, ...]:
    """Return the files whose content decides what a file of weights is, the file itself first.

    These are the shards of an index, the settings and the tokenizer that transformers and peft keep next to the weights, and
    the network that an adapter is added to.

    Raises:
        UserError: if the index cannot be read, or a shard is missing.
    """
    shards = shard_files(path) if path.name.endswith(INDEX_SUFFIX) else ()
    names = (CONFIG_FILE, PREPROCESSOR_FILE, *TOKENIZER_FILES, POOLING_FILE) if transformers_config(path) else ()
    settings = [path.parent / name for name in names]
    settings += [path.with_name(ADAPTER_CONFIG_FILE)] if path.name in ADAPTER_WEIGHTS else []
    base = base_weights(path)
    return (path, *shards, *(file for file in settings if file.is_file()), *(weights_files(base) if base else ()))


def shard_files(index: Path) -> tuple[Path, ...]:
    """Return the files that the index of a sharded checkpoint names.

    Raises:
        UserError: if it is no index, it names a file in another folder, or a file is missing.
    """
    weight_map = read_json(index).get("weight_map")
    values = list(weight_map.values()) if isinstance(weight_map, dict) else []
    names = sorted(set(values)) if values and all(isinstance(name, str) for name in values) else []
    if not names or any(Path(name).name != name or "\0" in name for name in names):
        expected = "weight_map, with the name of a file in the same folder for each tensor"
        raise UserError(f"{index}: not the index of a sharded checkpoint", found="no such map", expected=expected)
    files = tuple(index.with_name(name) for name in names)
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        found = f"the index of a checkpoint in {len(files)} files; missing: {_listed(missing)}"
        raise UserError(f"{index}: incomplete", found=found, expected="all files in one folder", do="download the rest")
    return files


def _describe_folder(path: Path, names: set[str]) -> UserError:
    if ADAPTER_CONFIG_FILE in names:
        has_network = _adapter_file(path) is not None
        return _unreadable(path, *describe_adapter(read_json(path / ADAPTER_CONFIG_FILE), has_network=has_network))
    kind = next((kind for kind in FOLDER_KINDS if any(next(path.glob(pattern), None) for pattern in kind.patterns)), None)
    candidates = _candidates(path)
    listed = f"; in it: {_listed(candidates)}" if candidates else ""
    if kind is not None:
        return _unreadable(path, f"{kind.name}{listed}", kind.do)
    if candidates:
        count = "one file" if len(candidates) == 1 else "several files"
        return _unreadable(path, f"a folder with {count} that may be weights: {_listed(candidates)}", "give one file")
    if CONFIG_FILE in names:
        return _unreadable(path, f"a folder with {CONFIG_FILE} and no weights", "download the weights too")
    if any(file.suffix.lower() in IMAGE_SUFFIXES for file in _files_below(path)):
        return _unreadable(path, "a folder of images", "give the images as data, and here the file of weights")
    return _unreadable(path, "a folder without a file of weights" if names else "an empty folder", "give the file of weights")


def _candidates(folder: Path) -> list[str]:
    """Return the files of a folder that may be weights, by their names."""
    return [file.relative_to(folder).as_posix() for file in _files_below(folder) if file.name.endswith(WEIGHTS_SUFFIXES)]


def _files_below(folder: Path) -> list[Path]:
    """Return some files in a folder and two levels below. What cannot be listed is left out."""
    files: list[Path] = []
    for directory, subfolders, names in os.walk(folder):
        files += [Path(directory, name) for name in names]
        is_deep = len(Path(directory).relative_to(folder).parts) == MAX_DEPTH
        subfolders[:] = [] if is_deep or len(files) > MAX_LISTED_FILES else sorted(subfolders)
    return sorted(files[:MAX_LISTED_FILES])


def _listed(names: list[str]) -> str:
    more = f" … ({len(names)} in all)" if len(names) > MAX_CANDIDATES else ""
    shown = ("".join(letter if letter.isprintable() else " " for letter in name)[:80] for name in names[:MAX_CANDIDATES])
    return ", ".join(shown) + more


def _unreadable(path: Path, found: str, do: str) -> UserError:
    return UserError(f"{path}: cannot be read as weights", found=found, expected=WEIGHTS_EXPECTED, do=do)
