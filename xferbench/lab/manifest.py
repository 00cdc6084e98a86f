"""A pretraining set without its images: fingerprints in one file that can be handed on, to look for copies elsewhere.

The file is an npz of plain arrays: those of :class:`~xferbench.lab.prints.Prints`, ``labels``, ``classes`` and ``about``, which
is JSON. It holds no images; what could be drawn from it is a blur of about 8×8.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xferbench.core.files import refuse_existing
from xferbench.lab import arrays, inputs, listed, prints, sources
from xferbench.lab.prints import Prints
from xferbench.lab.raw import Raw
from xferbench.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

VERSION = 1  # of the file; that of the fingerprints is beside it
MAGIC = "xferbench manifest"
NEEDED = {"folder": "PIL", "torchvision": "torchvision", "digits": "sklearn"}
REPORTED = 10_000  # images after which somebody who waits is told how many there have been


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What is known of a set of N images.

    ``name`` is the dataset's, without its place; ``labels`` are [N] indices of ``classes``, or [0] where there are none;
    ``left_out`` counts the images that could not be read.
    """

    name: str
    prints: Prints
    labels: np.ndarray
    classes: tuple[str, ...]
    left_out: int

    @property
    def digest(self) -> str:
        """SHA-256 of all the arrays, as hexadecimal."""
        return _digest(_plain(self))


def make(data: str, show: Callable[[int], object] | None = None) -> tuple[Manifest, tuple[str, ...]]:
    """The manifest of a dataset, and the names of the files that were left out.

    Args:
        data: a dataset's word as in a suite file; of one with splits, its training images are meant. A folder may also be of
            images only, in folders of any depth, whose uppermost ones are then the classes. Images are read one after the
            other; those of a folder or an npz file are never all in memory.
        show: is told the number of images done, now and then.

    Raises:
        Problem: for a dataset that cannot be used, or one without an image that can be read.
    """
    data = f"folder:{data}" if ":" not in data and Path(data).is_dir() else data
    kind, rest = inputs.split_spec(data)
    if find_spec(NEEDED.get(kind, "numpy")) is None:
        raise Problem(f"{kind} data need {NEEDED[kind]}", found="not installed", do="pip install 'xferbench[torch]'")
    classes, images, labels, names, left_out = _taken(kind, Path(rest), data)
    found, kept, unreadable = prints.of_images(_counted(images, show) if show else images, names)
    left_out = (*left_out, *unreadable)
    if not len(found):
        raise Problem(f"{data}: no image that can be read", found=(*left_out, "nothing")[0], expected="at least one")
    name = f"{kind}:{Path(rest).resolve().name}" if kind in {"folder", "npz"} else ":".join(data.split(":")[:2])
    labels = labels[kept].astype(np.int64) if len(labels) else np.empty(0, np.int64)
    return Manifest(name=name, prints=found, labels=labels, classes=classes, left_out=len(left_out)), left_out


def write(manifest: Manifest, file: Path, *, force: bool = False) -> None:
    """Write a manifest, whole or not at all.

    Raises:
        Problem: where a file is there already and may not be overwritten, or there is no such folder.
    """
    check(file, force=force)
    held = _plain(manifest)
    about = {
        "what": MAGIC,
        "version": VERSION,
        "prints": prints.VERSION,
        "name": manifest.name,
        "images": len(manifest.prints),
        "left_out": manifest.left_out,
        "digest": manifest.digest,
    }
    prints.save(file, {"about": np.array(json.dumps(about))} | held)


def check(file: Path, *, force: bool = False) -> None:
    """Whether a manifest may be written there; asked before the work and after it.

    Raises:
        Problem: where not.
    """
    if file.is_dir() or not file.parent.is_dir():
        raise Problem(f"{file}: no file can be written there", found="no such folder" if not file.is_dir() else "a folder")
    refuse_existing(file, force=force, do="give --force to overwrite it, or another -o FILE")


def read(file: Path) -> Manifest:
    """A manifest as it was written.

    Raises:
        Problem: where there is none, or one that is damaged or of another version.
    """
    again, expected = "write it again by `xferbench manifest DATA -o FILE`", "a file that `xferbench manifest` wrote"
    if not file.is_file():
        raise Problem(f"{file}: no manifest", found="no such file", expected=expected, do="check the path")
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as members:
            about: Any = json.loads(str(members["about"]))
            if not isinstance(about, dict) or about.get("what") != MAGIC:
                raise Problem(f"{file}: not a manifest", found="another npz file", expected=expected)
            versions = (about.get("version"), about.get("prints"))
            if versions != (VERSION, prints.VERSION):
                found = "version {}, fingerprints {}".format(*versions)
                wanted = f"version {VERSION}, fingerprints {prints.VERSION}"
                do = f"{again} with this xferbench, or use the one that wrote it"
                raise Problem(f"{file}: a manifest of another version", found=found, expected=wanted, do=do)
            held = {name: members[name] for name in members.files if name != "about"}
            told = (str(about["name"]), int(about["left_out"]), str(about["digest"]))
    except arrays.DAMAGED as error:
        said = f"{type(error).__name__}: {error}".splitlines()[0][:160]
        raise Problem(f"{file}: not a manifest, or a damaged one", found=said, expected=expected, do=again) from error
    name, left_out, digest = told
    if _digest(held) != digest or not {one.name for one in fields(Prints)} | {"labels", "classes"} <= set(held):
        raise Problem(f"{file}: a damaged manifest", found="content that is not what was written", do=again)
    classes = tuple(map(str, held.pop("classes")))
    labels = held.pop("labels")
    return Manifest(name=name, prints=Prints(**held), labels=labels, classes=classes, left_out=left_out)


def _plain(manifest: Manifest) -> dict[str, np.ndarray]:
    held = {one.name: getattr(manifest.prints, one.name) for one in fields(Prints)}
    return held | {"labels": manifest.labels, "classes": np.array(manifest.classes, np.str_)}


def _digest(held: dict[str, np.ndarray]) -> str:
    content = hashlib.sha256()
    for name, array in sorted(held.items()):
        content.update(f"{name} {array.dtype.str} {array.shape}".encode())
        content.update(np.ascontiguousarray(array).tobytes())
    return content.hexdigest()


def _counted(images: Iterable[Any], show: Callable[[int], object]) -> Iterator[Any]:
    for count, image in enumerate(images):
        if count and not count % REPORTED:
            show(count)
        yield image


def _taken(
    kind: str, place: Path, data: str
) -> tuple[tuple[str, ...], Iterable[Any], np.ndarray, Sequence[str], tuple[str, ...]]:
    """Classes, images, labels, names and what was left out of a dataset's training images, or of all where it is not split."""
    if kind == "npz":
        images, held = arrays.streamed(place)
        values, labels = np.unique(held, return_inverse=True) if len(held) else (held, held)
        return tuple(map(str, values)), images, labels, (), ()
    parted = any((place / name).is_dir() for name in ("val", "test"))
    if kind == "folder" and not listed.tables(place) and not ((place / "train").is_dir() and parted):
        classes, raw, left_out = _walked(place)
    else:
        classes, splits, left_out = sources.read(data, None)
        raw = splits["train"]
    return classes, raw.images, raw.labels, raw.names, left_out


def _walked(folder: Path) -> tuple[tuple[str, ...], Raw, tuple[str, ...]]:
    """All images below a folder; their classes are the folders in it, if none lies beside those."""
    folder = folder / "train" if (folder / "train").is_dir() else folder
    files = [path.relative_to(folder) for path in inputs.walk(folder)]
    odd = [f"{path.as_posix()}: not an image's ending" for path in files if path.suffix.lower() not in inputs.IMAGES]
    usable = [path for path in files if path.suffix.lower() in inputs.IMAGES]
    if not usable:
        expected = "files that end in " + ", ".join(sorted(inputs.IMAGES))
        raise Problem(f"{folder}: no images", found=f"{len(odd)} other files", expected=expected)
    sorted_in = all(len(path.parts) > 1 for path in usable)
    classes = tuple(sorted({path.parts[0] for path in usable})) if sorted_in else ()
    number = {name: at for at, name in enumerate(classes)}
    labels = np.array([number[path.parts[0]] for path in usable] if sorted_in else [], np.int64)
    names = [path.as_posix() for path in usable]
    return classes, Raw([folder / path for path in usable], labels, np.empty(0, np.int64), names), tuple(odd)
