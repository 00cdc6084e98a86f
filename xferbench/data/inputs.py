"""Check and digest what a suite names: weights, datasets, manifests and code. Reads files, without torch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from xferbench.core.errors import UserError, suggest
from xferbench.core.files import sha256
from xferbench.core.pipeline import Checkpoint, Data, WeightsFile
from xferbench.data import (
    archives,
    class_folders,
    columnar,
    language,
    metadata_csv,
    saved_datasets,
    synthetic,
    text_tables,
    torchvision_folder,
    user_code,
    weights_folder,
    weights_settings,
)
from xferbench.data.listing import list_files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from xferbench.core.pipeline import UserCode
    from xferbench.core.suite import Suite

DATA_KINDS = ("folder", "npz", "torchvision", "csv", "jsonl", "datasets", "synthetic", "digits")
FILE_KINDS = ("npz", "csv", "jsonl")  # datasets that are one file
FOLDER_EXPECTED = "a folder with train/ and val/ or test/, or with metadata.csv"
SYNTHETIC_NAMES = (*synthetic.NAMES, *language.SPEC_NAMES)
NAMED_ARCHS = ("tiny-bert", "tiny-resnet", "cifar-resnet20", "cifar-resnet32", "cifar-resnet44", "cifar-resnet56")
ARCH_PREFIXES = ("torchvision:NAME", "timm:NAME", "transformers:DIR", "python:MODULE:CALLABLE")
SHIPPED_WEIGHTS_FOLDER = Path(__file__).parent / "weights"
SHIPPED_WEIGHTS = {"tiny-resnet": "tiny-resnet-0.safetensors", "tiny-bert": "tiny-bert-0/model.safetensors"}


def check_inputs(suite: Suite) -> None:
    """Check that everything a suite names exists, before an image is read or a model is trained.

    Raises:
        UserError: If the kind of the backbone or of a dataset is unknown, a file is missing, or a table cannot be read. The
            message names the suite's file and key.
    """
    prefixes = [prefix.partition(":")[0] + ":" for prefix in ARCH_PREFIXES]
    if suite.backbone.arch not in NAMED_ARCHS and not suite.backbone.arch.startswith(tuple(prefixes)):
        raise UserError(
            f"{suite.invocation.path}: [backbone] arch: unknown",
            found=suite.backbone.arch,
            expected=", ".join((*NAMED_ARCHS, *ARCH_PREFIXES)),
        )
    for role in ("target", "source", "shifted"):
        spec = getattr(suite.data, role)
        try:
            if spec is not None:
                check_data(*split_spec(spec))
        except UserError as problem:
            raise problem.at(f"{suite.invocation.path}: [{role}] data: {problem.what}") from problem
    _check_manifest(suite)
    for key in ("after", "before"):
        if (path := getattr(suite.checkpoint, key)) is not None:
            _find_weights(suite, f"[checkpoint] {key}", path)
    if not suite.is_audit:
        _checkpoint_path(suite)
    digest_code(suite)


def _check_manifest(suite: Suite) -> None:
    """Raise a UserError if a suite names a manifest that is no file, or whose images would be compared with texts."""
    manifest = suite.data.manifest
    if manifest is not None and not Path(manifest).is_file():
        state = "a folder" if Path(manifest).is_dir() else "no such file"
        found = f"{manifest}: {state}"
        raise UserError(f"{suite.invocation.path}: [source] manifest", found=found, expected="a file", do="check the path")
    if manifest is not None and holds_texts(suite.data.target):
        raise manifest_error(f"{suite.invocation.path}: [source] manifest")


def holds_texts(spec: str) -> bool:
    """Return whether the examples of a dataset are texts."""
    kind, _, rest = spec.partition(":")
    if kind == "datasets":
        return saved_datasets.has_texts(Path(rest))
    return kind in {"csv", "jsonl"} or (kind == "synthetic" and rest in language.SPEC_NAMES)


def manifest_error(what: str) -> UserError:
    """Return the error of a manifest for a target of texts.

    There is no manifest of texts: whoever has the digests of a text's words can guess the text.
    """
    do = "name the texts themselves as [source] data"
    return UserError(what, found="a manifest for a target of texts", expected="a target of images", do=do)


def check_data(kind: str, location: str) -> None:
    """Read the tables of a dataset, or the names of its files, and raise a UserError if it is not a dataset."""
    path = Path(location)
    if kind in {"csv", "jsonl"}:
        text_tables.read_texts(path, kind)
    elif kind == "datasets":
        saved_datasets.check_tables(path)
    elif kind == "folder" and metadata_csv.metadata_files(path):
        metadata_csv.read_rows(path)
    elif kind == "folder":
        class_folders.read_layout(path)


def data_kind(path: Path) -> str:
    """Return the kind of dataset that an existing file or folder most likely is."""
    if path.is_dir():
        return "datasets" if saved_datasets.is_saved(path) else "folder"
    suffix = path.suffix[1:].lower()
    return suffix if suffix in FILE_KINDS else "datasets" if saved_datasets.is_saved(path) else "npz"


def split_spec(spec: str) -> tuple[str, str]:
    """Return ``kind`` and ``rest`` of a dataset ``kind:rest``.

    Raises:
        UserError: If the kind is unknown, or the file or folder does not exist.
    """
    kind, _, rest = spec.partition(":")
    if (kind in {"folder", *FILE_KINDS} or kind not in DATA_KINDS) and (
        file := Path(rest if kind in DATA_KINDS else spec)
    ).is_file():
        archives.refuse_archive(file)
    if kind not in DATA_KINDS:
        suggestion = f"write {data_kind(Path(spec))}:{spec}" if Path(spec).exists() else ""
        is_path = "/" in kind or "\\" in kind  # a path resembles no kind
        do = suggestion or "run `xferbench ls` to list the kinds"
        raise UserError("unknown kind of dataset", found=spec, expected=suggest("" if is_path else kind, DATA_KINDS), do=do)
    if kind == "synthetic" and rest not in SYNTHETIC_NAMES:
        raise UserError("unknown synthetic dataset", found=spec, expected=suggest(rest, SYNTHETIC_NAMES))
    if kind == "digits" and rest:
        raise UserError("digits is a single dataset", found=spec, expected="digits")
    if kind == "folder" and not (rest and Path(rest).is_dir()):
        raise UserError("no such folder", found=spec, expected=FOLDER_EXPECTED, do="check the path")
    if kind == "datasets" and not (rest and Path(rest).exists()):
        raise UserError("no such folder", found=spec, expected=columnar.EXPECTED, do="check the path")
    if kind in FILE_KINDS and not (rest and Path(rest).is_file()):
        name = "an npz file" if kind == "npz" else f"a {kind} file with the columns text and label"
        raise UserError("no such file", found=spec, expected=name, do="check the path")
    if kind == "torchvision":
        torchvision_folder.parse_location(rest)
    return kind, rest


def digest_data(spec: str, digester: Callable[[Path], str] = sha256) -> Data:
    """Return a dataset with the digest of its content.

    The digest of a folder depends on the names of its files and classes and on their bytes, not on the folder's own name. For a
    folder with a table, the table and the files that it names count; for a dataset of torchvision, all its files. Splits whose
    names earlier versions did not know count too.

    Raises:
        UserError: If the kind is unknown, the file or folder does not exist, or a table cannot be read.
    """
    kind, rest = split_spec(spec)
    hasher = hashlib.sha256(kind.encode())
    if kind in {"folder", "torchvision"}:
        name, folder = ("", Path(rest)) if kind == "folder" else torchvision_folder.parse_location(rest)
        hasher.update(name.encode())
        for path in _folder_files(folder) if kind == "folder" else _torchvision_files(name, folder):
            # A file name need not be valid text.
            relative = path.relative_to(folder).as_posix().encode("utf-8", "surrogateescape")
            hasher.update(relative + f"\0{digester(path)}\0".encode())
        is_plain = kind == "folder" and not metadata_csv.metadata_files(folder)
        if is_plain and (splits := class_folders.unusual_splits(folder)):
            hasher.update(json.dumps(splits, sort_keys=True).encode())
    elif kind == "datasets":
        for path in saved_datasets.table_files(Path(rest)):
            place = path.name if path == Path(rest) else path.relative_to(rest).as_posix()
            hasher.update(f"{place}\0{digester(path)}\0".encode("utf-8", "surrogateescape"))
    elif kind in FILE_KINDS:
        hasher.update(digester(Path(rest)).encode())
    else:
        version = language.VERSION if rest in language.SPEC_NAMES else synthetic.VERSION if kind == "synthetic" else 1
        hasher.update(f"{rest}@{version}".encode())
    return Data(digest=hasher.hexdigest(), spec=spec)


def _folder_files(folder: Path) -> Iterator[Path]:
    """Return the files of a folder dataset: with a table, the table and the existing files that it names; else all files."""
    tables = metadata_csv.metadata_files(folder)
    if not tables:
        return list_files(folder)
    listed_paths = {folder / row.file for row in metadata_csv.read_rows(folder)[0]}
    dataset_files = {*tables.values(), *(path for path in listed_paths if path.is_file())}
    return iter(sorted(dataset_files, key=lambda path: path.relative_to(folder).as_posix()))


def _torchvision_files(name: str, root: Path) -> Iterator[Path]:
    for location in torchvision_folder.LAYOUTS[name].places:
        yield from list_files(root / location) if (root / location).is_dir() else iter([root / location])


def digest_weights(suite: Suite, digester: Callable[[Path], str] = sha256) -> WeightsFile:
    """Return the checkpoint of a suite's backbone. Those of ``tiny-resnet`` and ``tiny-bert`` are part of the package.

    Raises:
        UserError: If the suite names no checkpoint, or the file is missing.
    """
    return _with_configuration(suite, digest_weights_file(_checkpoint_path(suite), digester), digester)


def digest_weights_file(path: Path, digester: Callable[[Path], str] = sha256) -> WeightsFile:
    """Return the file of weights that a path means; its digest covers the files that belong to it.

    Raises:
        UserError: If there are no weights.
    """
    file, *others = weights_folder.weights_files(weights_folder.find_weights(path))
    digest = digester(file)
    if others:
        digests = "\n".join([digest, *(f"{other.name} {digester(other)}" for other in others)])
        digest = hashlib.sha256(digests.encode()).hexdigest()
    return WeightsFile(digest=digest, path=str(file))


def _with_configuration(suite: Suite, weights: WeightsFile, digester: Callable[[Path], str]) -> WeightsFile:
    """Return weights whose digest also covers the configuration of ``transformers:DIR``."""
    kind, _, folder = suite.backbone.arch.partition(":")
    config = Path(folder) / weights_settings.CONFIG_FILE
    file = Path(weights.path)
    is_covered = Path(folder) == file.parent and bool(weights_settings.transformers_config(file))
    if kind != "transformers" or is_covered or not config.is_file():
        return weights
    return replace(weights, digest=hashlib.sha256(f"{weights.digest}\n{digester(config)}".encode()).hexdigest())


def digest_checkpoints(suite: Suite, digester: Callable[[Path], str] = sha256) -> Checkpoint | None:
    """Return the checkpoints of an audit, or None for any other suite.

    Raises:
        UserError: If a file is missing, or both are the same.
    """
    section = suite.checkpoint
    if section.after is None:
        return None
    after, before = (
        _with_configuration(suite, digest_weights_file(Path(path), digester), digester) if path else None
        for path in (section.after, section.before)
    )
    assert after is not None, "an audit names a finished network"
    if before and before.digest == after.digest:
        found = f"{section.before} and {section.after} are the same file, byte for byte"
        do = "set before to the pretrained weights, or remove it"
        raise UserError(
            f"{suite.invocation.path}: [checkpoint] before equals after", found=found, expected="two networks", do=do
        )
    return Checkpoint(after=after, before=before)


def digest_manifest(suite: Suite, digester: Callable[[Path], str] = sha256) -> Data | None:
    """Return the manifest of a pretraining set, or None if the suite names none."""
    if suite.data.manifest is None:
        return None
    return Data(digest=digester(Path(suite.data.manifest)), spec=f"manifest:{suite.data.manifest}")


def digest_code(suite: Suite, digester: Callable[[Path], str] = sha256) -> tuple[UserCode | None, UserCode | None]:
    """Return the user's code that builds the backbone and that trains it; None for each that the suite does not name.

    Raises:
        UserError: If running such code is not allowed, or the module does not exist.
    """
    arch_code = suite.backbone.arch if suite.backbone.arch.startswith(user_code.PREFIX) else None
    build_code = _find_code(suite, "[backbone] arch", arch_code, digester)
    return build_code, _find_code(suite, "[recipe] training", suite.training, digester)


def _find_code(suite: Suite, key: str, spec: str | None, digester: Callable[[Path], str]) -> UserCode | None:
    if spec is None:
        return None
    if not suite.invocation.allow_code:
        do = "add --allow-code (in Python, allow_code=True) only if you trust the code: it runs with all your rights"
        raise UserError(f"{suite.invocation.path}: {key}: names code that would run", found=spec, do=do)
    try:
        return user_code.find_callable(spec, Path(suite.invocation.path).parent.resolve(), digester)
    except UserError as problem:
        raise problem.at(f"{suite.invocation.path}: {key}: {problem.what}") from problem


def _checkpoint_path(suite: Suite) -> Path:
    path = suite.backbone.weights
    if path is None and suite.backbone.arch in SHIPPED_WEIGHTS:
        path = str(SHIPPED_WEIGHTS_FOLDER / SHIPPED_WEIGHTS[suite.backbone.arch])
    expected = "a file of pretrained weights (safetensors, or a state dict saved by torch.save)"
    if path is None:
        do = 'add weights = "path/to/file" below arch; without pretrained weights there is no transfer to measure'
        raise UserError(
            f"{suite.invocation.path}: [backbone] weights: missing",
            found=f"arch {suite.backbone.arch}",
            expected=expected,
            do=do,
        )
    return _find_weights(suite, "[backbone] weights", path, expected)


def _find_weights(suite: Suite, key: str, path: str, expected: str = weights_folder.WEIGHTS_EXPECTED) -> Path:
    try:
        return weights_folder.find_weights(Path(path))
    except UserError as error:
        found = f"{path}: {error.found}"
        raise UserError(f"{suite.invocation.path}: {key}", found=found, expected=expected, do=error.do) from error
