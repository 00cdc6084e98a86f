"""The fingerprints of a pretraining set in one file, to search for duplicates without the images.

The file is an npz: the arrays of :class:`~xferbench.data.fingerprints.Fingerprints`, ``labels``, ``classes`` and ``about``,
which is JSON. An image reconstructed from it would be a blur of about 8×8 pixels. Reads and writes files.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xferbench.core.errors import UserError
from xferbench.core.files import refuse_existing
from xferbench.data import class_folders, inputs, metadata_csv, npz, sources
from xferbench.data.fingerprints import VERSION as FINGERPRINTS_VERSION
from xferbench.data.fingerprints import Fingerprints, fingerprint_images, save_npz
from xferbench.data.listing import IMAGE_SUFFIXES, list_files
from xferbench.data.raw import RawSplit, TextExample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

VERSION = 1  # of the file; the fingerprints have their own
FILE_MAGIC = "xferbench manifest"
REQUIRED_MODULES = {"folder": "PIL", "torchvision": "torchvision", "digits": "sklearn"}
PROGRESS_INTERVAL = 10_000  # images between two progress reports


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A set of N images without the images.

    Attributes:
        name: The name of the dataset, without its folder.
        prints: The fingerprints of the images.
        labels: [N] indices into ``classes``, or [0] if there are none.
        classes: The class names.
        left_out: The number of images that could not be read.
    """

    name: str
    prints: Fingerprints
    labels: np.ndarray
    classes: tuple[str, ...]
    left_out: int

    @property
    def digest(self) -> str:
        """SHA-256 of all the arrays, in hexadecimal."""
        return _digest(_to_arrays(self))


def make_manifest(data: str, show: Callable[[int], object] | None = None) -> tuple[Manifest, tuple[str, ...]]:
    """Make the manifest of a dataset. Return it and a note for each file that was left out.

    Args:
        data: The dataset as a suite file names it. If it has splits, its training images are used. A folder may also hold only
            images, in subfolders of any depth; its top-level subfolders are then the classes. The images of a folder or of an
            npz file are read one at a time.
        show: A function that is called with the number of finished images now and then.

    Raises:
        UserError: If the dataset cannot be used, or has no image that can be read.
    """
    data = f"folder:{data}" if ":" not in data and Path(data).is_dir() else data
    kind, location = inputs.split_spec(data)
    if find_spec(REQUIRED_MODULES.get(kind, "numpy")) is None:
        raise UserError(
            f"{kind} data need {REQUIRED_MODULES[kind]}", found="not installed", do="pip install 'xferbench[torch]'"
        )
    classes, images, labels, names, left_out = _open_dataset(kind, Path(location), data)
    fingerprints, readable, unreadable = fingerprint_images(_with_progress(images, show) if show else images, names)
    left_out = (*left_out, *unreadable)
    if not len(fingerprints):
        raise UserError(f"{data}: no image that can be read", found=(*left_out, "nothing")[0], expected="at least one")
    name = f"{kind}:{Path(location).resolve().name}" if kind in {"folder", "npz"} else ":".join(data.split(":")[:2])
    labels = labels[readable].astype(np.int64) if len(labels) else np.empty(0, np.int64)
    return Manifest(name=name, prints=fingerprints, labels=labels, classes=classes, left_out=len(left_out)), left_out


def write_manifest(manifest: Manifest, file: Path, *, force: bool = False) -> None:
    """Write a manifest. An interrupted write leaves no file.

    Raises:
        UserError: If a file exists and must not be overwritten, or the folder does not exist.
    """
    check_writable(file, force=force)
    members = _to_arrays(manifest)
    about = {
        "what": FILE_MAGIC,
        "version": VERSION,
        "prints": FINGERPRINTS_VERSION,
        "name": manifest.name,
        "images": len(manifest.prints),
        "left_out": manifest.left_out,
        "digest": manifest.digest,
    }
    save_npz(file, {"about": np.array(json.dumps(about))} | members)


def check_writable(file: Path, *, force: bool = False) -> None:
    """Check that a manifest can be written to a file. Callers check before the work and again after it.

    Raises:
        UserError: If it cannot.
    """
    if file.is_dir() or not file.parent.is_dir():
        raise UserError(f"{file}: cannot write a file there", found="no such folder" if not file.is_dir() else "a folder")
    refuse_existing(file, force=force, do="give --force to overwrite it, or another -o FILE")


def read_manifest(file: Path) -> Manifest:
    """Read a manifest.

    Raises:
        UserError: If the file is missing, damaged or of another version.
    """
    rewrite_advice, expected = "write it again by `xferbench manifest DATA -o FILE`", "a file that `xferbench manifest` wrote"
    if not file.is_file():
        raise UserError(f"{file}: no manifest", found="no such file", expected=expected, do="check the path")
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as members:
            about: Any = json.loads(str(members["about"]))
            if not isinstance(about, dict) or about.get("what") != FILE_MAGIC:
                raise UserError(f"{file}: not a manifest", found="another npz file", expected=expected)
            versions = (about.get("version"), about.get("prints"))
            if versions != (VERSION, FINGERPRINTS_VERSION):
                found = "version {}, fingerprints {}".format(*versions)
                expected_versions = f"version {VERSION}, fingerprints {FINGERPRINTS_VERSION}"
                do = f"{rewrite_advice} with this xferbench, or use the version that wrote it"
                raise UserError(f"{file}: a manifest of another version", found=found, expected=expected_versions, do=do)
            member_arrays = {name: members[name] for name in members.files if name != "about"}
            description = (str(about["name"]), int(about["left_out"]), str(about["digest"]))
    except npz.READ_ERRORS as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:160]
        raise UserError(
            f"{file}: not a manifest, or a damaged one", found=reason, expected=expected, do=rewrite_advice
        ) from error
    name, left_out, digest = description
    required = {field.name for field in fields(Fingerprints)} | {"labels", "classes"}
    if _digest(member_arrays) != digest or not required <= set(member_arrays):
        raise UserError(f"{file}: a damaged manifest", found="content that differs from what was written", do=rewrite_advice)
    classes = tuple(map(str, member_arrays.pop("classes")))
    labels = member_arrays.pop("labels")
    return Manifest(name=name, prints=Fingerprints(**member_arrays), labels=labels, classes=classes, left_out=left_out)


def _to_arrays(manifest: Manifest) -> dict[str, np.ndarray]:
    """Return the arrays that the file stores."""
    members = {field.name: getattr(manifest.prints, field.name) for field in fields(Fingerprints)}
    return members | {"labels": manifest.labels, "classes": np.array(manifest.classes, np.str_)}


def _digest(members: dict[str, np.ndarray]) -> str:
    hasher = hashlib.sha256()
    for name, array in sorted(members.items()):
        hasher.update(f"{name} {array.dtype.str} {array.shape}".encode())
        hasher.update(np.ascontiguousarray(array).tobytes())
    return hasher.hexdigest()


def _with_progress(images: Iterable[Any], show: Callable[[int], object]) -> Iterator[Any]:
    """Yield the images and call ``show`` with their number now and then."""
    for count, image in enumerate(images):
        if count and not count % PROGRESS_INTERVAL:
            show(count)
        yield image


def _open_dataset(
    kind: str, path: Path, data: str
) -> tuple[tuple[str, ...], Iterable[Any], np.ndarray, Sequence[str], tuple[str, ...]]:
    """Return the classes, images, labels, names and notes on left-out files of the training images of a dataset.

    A dataset without splits gives all its images.
    """
    if kind == "npz":
        images, raw_labels = npz.stream_train_images(path)
        values, labels = np.unique(raw_labels, return_inverse=True) if len(raw_labels) else (raw_labels, raw_labels)
        return tuple(map(str, values)), images, labels, (), ()
    if kind == "folder" and not metadata_csv.metadata_files(path) and not _has_splits(path):
        classes, raw, left_out = _open_image_folder(path)
    else:
        classes, splits, left_out = sources.read_dataset(data, None)
        raw = splits["train"]
    if len(raw.images) and isinstance(raw.images[0], TextExample):
        do = "name a dataset of images"
        raise UserError(f"{data}: a manifest is made of images", found="texts", expected="images", do=do)
    return classes, raw.images, raw.labels, raw.names, left_out


def _has_splits(folder: Path) -> bool:
    splits = class_folders.find_splits(class_folders.dataset_root(folder))
    return "train" in splits and len(splits) > 1


def _open_image_folder(folder: Path) -> tuple[tuple[str, ...], RawSplit, tuple[str, ...]]:
    """Return all images below a folder.

    Their classes are the subfolders, unless an image lies directly in the folder.
    """
    folder = folder / "train" if (folder / "train").is_dir() else folder
    files = [path.relative_to(folder) for path in list_files(folder)]
    not_images = [f"{path.as_posix()}: not an image file" for path in files if path.suffix.lower() not in IMAGE_SUFFIXES]
    usable = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    if not usable:
        expected = "files that end in " + ", ".join(sorted(IMAGE_SUFFIXES))
        raise UserError(f"{folder}: no images", found=f"{len(not_images)} other files", expected=expected)
    has_class_folders = all(len(path.parts) > 1 for path in usable)
    classes = tuple(sorted({path.parts[0] for path in usable})) if has_class_folders else ()
    label_numbers = {name: index for index, name in enumerate(classes)}
    labels = np.array([label_numbers[path.parts[0]] for path in usable] if has_class_folders else [], np.int64)
    names = [path.as_posix() for path in usable]
    return classes, RawSplit([folder / path for path in usable], labels, np.empty(0, np.int64), names), tuple(not_images)
