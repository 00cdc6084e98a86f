"""Say what a file is that holds no state dict, by its first bytes and its content. Reads files.

The name of a file decides nothing, because files are renamed.
"""

from __future__ import annotations

import json
import re
import tarfile
import zipfile
from contextlib import suppress
from typing import TYPE_CHECKING, BinaryIO

from xferbench.core.errors import UserError
from xferbench.core.printable import one_line
from xferbench.data.weights_folder import KERAS_ADVICE, STATE_DICT_ADVICE, WEIGHTS_EXPECTED
from xferbench.data.weights_settings import describe_adapter, describe_task
from xferbench.lab.models.pickle_globals import is_pickle

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HEAD_BYTES = 2**16
MAX_SHOWN = 60  # characters of a name or a line in a message
MIN_BYTES = 16  # every format of weights is longer
MAX_INFLATION = 10  # by which an archive grows when it is unpacked; torch.save compresses nothing
FREE_BYTES = 2**26  # a small archive may grow more
MAX_MEMBERS = 2000  # of an archive that are looked at
MAX_MESSAGES = 200_000  # fields of a protocol buffer that are looked at
AGAIN_ADVICE = "download or copy it again, and check its size and digest"
DOWNLOAD_ADVICE = "download the file itself; the link may need a login or a confirmation"
UNPACK_ADVICE = "unpack it, and give the file of weights in it"
IMAGE_ADVICE = "give the file of weights here, and images as data"
LANGUAGE_ADVICE = "xferbench tests networks that classify images; give one in the format of PyTorch"
PROGRAM_ADVICE = 'save its tensors: safetensors.torch.save_file(torch.jit.load(path).state_dict(), "weights.safetensors")'
EXPORT_ADVICE = 'where the network was exported, save its weights: torch.save(model.state_dict(), "weights.pth")'
# Offset and bytes of a file → what it is, and what to do.
SIGNATURES = (
    (
        0,
        b"version https://git-lfs.github.com",
        "a pointer of Git LFS, not the file itself",
        "run `git lfs pull` in its repository",
    ),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras saves weights (.h5)", KERAS_ADVICE),
    (0, b"\x93NUMPY", "an array of NumPy (.npy)", "save the state dict of the network with torch.save"),
    (0, b"GGUF", "weights of a language model (GGUF)", LANGUAGE_ADVICE),
    (0, b"ggml", "weights of a language model (GGML)", LANGUAGE_ADVICE),
    (4, b"TFL3", "a network of TensorFlow Lite", KERAS_ADVICE),
    (4, b"ET1", "a program of ExecuTorch", EXPORT_ADVICE),
    (0, b"\x1f\x8b", "a file packed by gzip", UNPACK_ADVICE),
    (0, b"BZh", "a file packed by bzip2", UNPACK_ADVICE),
    (0, b"\xfd7zXZ\0", "a file packed by xz", UNPACK_ADVICE),
    (0, b"\x28\xb5\x2f\xfd", "a file packed by zstd", UNPACK_ADVICE),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", UNPACK_ADVICE),
    (0, b"Rar!", "a RAR archive", UNPACK_ADVICE),
    (0, b"\x89PNG\r\n", "an image (PNG)", IMAGE_ADVICE),
    (0, b"\xff\xd8\xff", "an image (JPEG)", IMAGE_ADVICE),
    (0, b"GIF8", "an image (GIF)", IMAGE_ADVICE),
    (8, b"WEBP", "an image (WebP)", IMAGE_ADVICE),
    (0, b"II*\0", "an image (TIFF)", IMAGE_ADVICE),
    (0, b"MM\0*", "an image (TIFF)", IMAGE_ADVICE),
    (0, b"%PDF", "a PDF document", "give the file of weights"),
    (0, b"PAR1", "a Parquet table", "give the file of weights here, and the table as data"),
    (0, b"SQLite format 3", "a database", "give the file of weights"),
    (0, b"\x7fELF", "a program", "give the file of weights"),
    (0, b"bplist", "a property list", "give the file of weights"),
)
OPTIMIZER_KEYS = {"optimizer", "optimizer_state", "optimizer_state_dict", "optimizers", "optimizer_states", "optim", "opt"}
TRAINING_KEYS = {
    *("epoch", "step", "steps", "iteration", "global_step", "epochs", "best", "best_acc", "best_acc1", "loss", "metric", "lr"),
    *(
        "scheduler",
        "lr_scheduler",
        "lr_schedulers",
        "scheduler_state_dict",
        "scaler",
        "amp",
        "rng",
        "rng_state",
        "seed",
        "args",
    ),
    *("config", "version", "arch"),
}
TABLE_END = b"\x57\xfb\x80\x8b\x24\x75\x47\xdb"  # the end of the index of a TensorFlow checkpoint
# Names that the members of a zip archive have, as a pattern → what it is, and what to do.
ZIP_KINDS = (
    (r"(^|/)constants\.pkl$", "a TorchScript program", PROGRAM_ADVICE),
    (r"(^|/)(serialized_exported_program\.json|archive_format|.*\.pt2)$", "a program of torch.export", EXPORT_ADVICE),
    (r"^model\.weights\.h5$", "a network of Keras (.keras)", KERAS_ADVICE),
    (r"(^|/)\.data/extern_modules$", "a package of torch.package", STATE_DICT_ADVICE),
    (r"\.mlmodel$", "a package of CoreML", KERAS_ADVICE),
    (r"^META-INF/|^\[Content_Types\]\.xml$", "a document or a program, packed as zip", "give the file of weights"),
)
# Patterns of a text, without regard to case → what it is, and what to do.
TEXT_KINDS = (
    (r"^\s*(<\?xml[^>]*>\s*)?<net\s[^>]*", "a network of OpenVINO", EXPORT_ADVICE),
    (r"^\s*(<!doctype html|<html|<head|<body)|<html[\s>]", "a web page, not the file that the page offers", DOWNLOAD_ADVICE),
    (r"^\s*<(\?xml|error|!doctype)", "an XML text, such as the error message of a server", DOWNLOAD_ADVICE),
    (r"^#!", "a script", "give the file of weights that it writes"),
    (r"^(import|from) \w+|^(def|class) \w+.*:\s*$", "a Python program", "give the file of weights that it writes"),
    (r"^-----BEGIN ", "a key or a certificate", "give the file of weights"),
)
# Keys of a JSON object → what it is, and what to do.
JSON_KINDS = (
    ("peft_type", "the settings of an adapter", "give the folder of the whole network"),
    ("image_mean", "the preprocessing of a transformers model, without weights", "give its folder"),
    ("model_type", "the configuration of a transformers model, without weights", "give its folder"),
    ("architectures", "the configuration of a transformers model, without weights", "give its folder"),
    ("pretrained_cfg", "the configuration of a timm model, without weights", "give the file of weights"),
)


def refuse_other_kinds(path: Path) -> None:
    """Refuse a file that is recognized as something else than weights.

    Raises:
        UserError: that says what the file is, and what to do.
    """
    kind = describe_file(path)
    if kind is not None:
        found, do = kind
        raise UserError(f"{path}: not a checkpoint", found=found, expected=WEIGHTS_EXPECTED, do=do)


def refuse_without_network(content: object, path: Path) -> None:
    """Refuse the state of an optimizer, alone or wrapped with numbers of the training, which has tensors but no network.

    Raises:
        UserError: that says so.
    """
    keys = set(content) if isinstance(content, dict) else set()
    if {"state", "param_groups"} <= keys or (keys and OPTIMIZER_KEYS & keys and keys <= OPTIMIZER_KEYS | TRAINING_KEYS):
        do = "give the file with the weights, which training saves separately, or save model.state_dict() with the optimizer"
        found = "the state of an optimizer, without a network"
        raise UserError(f"{path}: not a checkpoint of a network", found=found, expected=WEIGHTS_EXPECTED, do=do)


def describe_file(path: Path) -> tuple[str, str] | None:
    """Return what a file is and what to do, or None if it may be safetensors or a file of torch.save."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
        file.seek(max(0, size - len(TABLE_END)))
        end = file.read()
    if size < MIN_BYTES or not head.strip(b"\0"):
        found = f"a file of only {size} bytes" if size and size < MIN_BYTES else "a file of zeros" if size else "an empty file"
        return found, AGAIN_ADVICE
    containers = ((0, b"PK", _describe_zip), (8, b"{", _describe_safetensors), (257, b"ustar", _describe_tar))
    describe = next((describe for offset, start, describe in containers if head.startswith(start, offset)), None)
    if describe is not None:
        return describe(path, size)
    known = next(((name, do) for offset, start, name, do in SIGNATURES if head.startswith(start, offset)), None)
    if known or is_pickle(head):
        return known
    if end == TABLE_END:
        return "the index of a TensorFlow checkpoint", KERAS_ADVICE
    return _describe_protobuf(path, size) or _describe_text(path, head)


def _describe_zip(path: Path, size: int) -> tuple[str, str] | None:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        found = f"a damaged zip archive, such as torch.save writes; its end is missing after {size} bytes"
        return found, AGAIN_ADVICE
    unpacked = sum(member.file_size for member in members)
    if unpacked > MAX_INFLATION * size + FREE_BYTES:
        return f"a zip archive of {size} bytes that unpacks to {unpacked}", "save the checkpoint with torch.save, uncompressed"
    names = [member.filename for member in members[:MAX_MEMBERS]]
    for pattern, name, do in ZIP_KINDS:
        if any(re.search(pattern, member) for member in names):
            return name, do
    if names and all(name.endswith(".npy") for name in names):
        return "arrays of NumPy (.npz)", "save the state dict of the network with torch.save; give images as data"
    if any(re.fullmatch(r"([^/]+/)?data\.pkl", name) for name in names):
        return None
    return f"a zip archive{_listed(names)}", UNPACK_ADVICE


def _describe_tar(path: Path, _size: int) -> tuple[str, str]:
    names: list[str] = []
    with suppress(tarfile.TarError, OSError, ValueError, EOFError, OverflowError), tarfile.open(path, "r:") as archive:
        while len(names) < MAX_MEMBERS and (member := archive.next()) is not None:
            names.append(member.name)
    if {"storages", "tensors", "pickle"} <= set(names):
        return (
            "a checkpoint in the first format of torch, a tar archive",
            "open it with the torch that wrote it, and save it again",
        )
    return f"a tar archive{_listed(names)}", UNPACK_ADVICE


def _describe_safetensors(path: Path, size: int) -> tuple[str, str] | None:
    """Return that a safetensors file is cut, or None."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(min(length, 100 * 2**20)) if 8 + length <= size else b""
    if 8 + length > size:
        # No text begins with such a length, and no header is longer.
        return (f"damaged safetensors: cut in the header, after {size} bytes", AGAIN_ADVICE) if length <= 100 * 2**20 else None
    with suppress(ValueError, RecursionError, AttributeError, TypeError, LookupError):
        ends = [entry["data_offsets"][1] for name, entry in json.loads(header).items() if name != "__metadata__"]
        expected = 8 + length + max(ends, default=0)
        if size < expected:
            return f"damaged safetensors: cut after {size} of {expected} bytes", AGAIN_ADVICE
    return None


def _describe_protobuf(path: Path, size: int) -> tuple[str, str] | None:
    """Return what a protocol buffer is, by the numbers and types of its fields; None if it is none."""
    fields = set(_protobuf_fields(path, size))
    numbers = {number for number, _ in fields}
    if {(1, 0), (7, 2)} <= fields and numbers <= {*range(1, 9), 14, 20, 25, 26}:
        return "a network of ONNX", EXPORT_ADVICE
    if {(1, 0), (2, 2)} <= fields and max(numbers) >= 200:
        return "a network of CoreML", EXPORT_ADVICE
    if fields == {(1, 0), (2, 2)}:
        return "a network of TensorFlow (SavedModel)", KERAS_ADVICE
    if (1, 2) in fields and numbers <= {1, 2, 3, 4, 5} and size > 64:
        return "a frozen graph of TensorFlow, or another protocol buffer", KERAS_ADVICE
    return None


def _protobuf_fields(path: Path, size: int) -> Iterator[tuple[int, int]]:
    """Return number and wire type of each field at the top level; nothing if the file is not a whole protocol buffer."""
    fields: list[tuple[int, int]] = []
    with path.open("rb") as file:
        while file.tell() < size and len(fields) < MAX_MESSAGES:
            key = _varint(file)
            number, wire = key >> 3, key & 7
            length = {0: 0, 1: 8, 2: -1, 5: 4}.get(wire)
            value = _varint(file) if wire in {0, 2} else 0
            if number == 0 or length is None or value < 0:
                return iter(())
            end = file.tell() + (value if wire == 2 else length)
            if end > size:
                return iter(())
            file.seek(end)
            fields.append((number, wire))
    return iter(fields)


def _varint(file: BinaryIO) -> int:
    """Return the next integer of a protocol buffer, or -1 if there is none."""
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            return -1
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    return -1


def _describe_text(path: Path, head: bytes) -> tuple[str, str] | None:
    try:
        text = head[:-4].decode() if len(head) == HEAD_BYTES else head.decode()  # a character may be cut at the end
    except UnicodeDecodeError:
        return None
    text = text.removeprefix("\ufeff")
    if "\0" in text:
        return None
    for pattern, name, do in TEXT_KINDS:
        if re.search(pattern, text, re.IGNORECASE | re.MULTILINE if "import" in pattern else re.IGNORECASE):
            return name, do
    if text.lstrip().startswith(("{", "[")):
        return _describe_json(path, text)
    line = next((line for line in text.splitlines() if line.strip()), "").strip()
    return f"a text that begins {one_line(line)[:MAX_SHOWN]!r}", "give the file of weights"


def _describe_json(path: Path, text: str) -> tuple[str, str]:
    if '"weight_map"' in text:
        return "the index of a sharded checkpoint", f"name it {path.stem}.index.json, and put it into the folder of its files"
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None
    keys = content if isinstance(content, dict) else {}
    task = describe_task(keys)
    if "peft_type" in keys:
        return describe_adapter(keys)
    if task:
        return f"the configuration of {task}", "give a network that classifies images"
    known = next(((name, do) for key, name, do in JSON_KINDS if key in keys), None)
    return known or (f"a JSON text{_listed([str(key) for key in keys])}", "give the file of weights")


def _listed(names: list[str]) -> str:
    shown = [one_line(name)[:MAX_SHOWN] for name in names if not name.endswith("/")][:3]
    return f" with {', '.join(shown)}{' …' if len(names) > len(shown) else ''}" if shown else ""
