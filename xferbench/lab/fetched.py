"""Datasets of ``torchvision.datasets`` that somebody has fetched already; nothing is downloaded here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xferbench.lab.raw import Found, Raw, shuffled
from xferbench.problem import Problem, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True, slots=True)
class Published:
    """Where a dataset lies below its root, and the constructor's arguments for each role."""

    places: tuple[str, ...]
    roles: Mapping[str, Mapping[str, Any]]


FLAG = {"train": {"train": True}, "test": {"train": False}}
TWO = {"train": {"split": "train"}, "test": {"split": "test"}}
THREE = TWO | {"validation": {"split": "val"}}
KNOWN = {
    "CIFAR10": Published(("cifar-10-batches-py",), FLAG),
    "CIFAR100": Published(("cifar-100-python",), FLAG),
    "Country211": Published(("country211",), TWO | {"validation": {"split": "valid"}}),
    "DTD": Published(("dtd",), THREE),
    "FGVCAircraft": Published(("fgvc-aircraft-2013b",), THREE),
    "FashionMNIST": Published(("FashionMNIST",), FLAG),
    "Flowers102": Published(("flowers-102",), THREE),
    "Food101": Published(("food-101",), TWO),
    "GTSRB": Published(("gtsrb",), TWO),
    "Imagenette": Published(("imagenette2",), {"train": {"split": "train"}, "test": {"split": "val"}}),
    "KMNIST": Published(("KMNIST",), FLAG),
    "MNIST": Published(("MNIST",), FLAG),
    "OxfordIIITPet": Published(("oxford-iiit-pet",), {"train": {"split": "trainval"}, "test": {"split": "test"}}),
    "RenderedSST2": Published(("rendered-sst2",), THREE),
    "STL10": Published(("stl10_binary",), TWO),
    "SVHN": Published(("train_32x32.mat", "test_32x32.mat"), TWO),
    "StanfordCars": Published(("stanford_cars",), TWO),
    "USPS": Published(("usps.bz2", "usps.t.bz2"), FLAG),
}
FILES = ("_image_files", "_images")  # torchvision's own names for a list of paths,
SAMPLES = ("_samples", "samples")  # for one of (path or pixels, label),
LABELS = ("targets", "labels", "_labels")  # and for the labels


def parted(rest: str) -> tuple[str, Path]:
    """Name and root of ``NAME:ROOT``.

    Raises:
        Problem: for a name that is not known, or a root where the dataset does not lie.
    """
    name, _, root = rest.partition(":")
    if name not in KNOWN:
        raise Problem("unknown dataset of torchvision", found=name or "no name", expected=nearest(name, KNOWN))
    if not root:
        raise Problem("torchvision: no folder", found=f"torchvision:{name}", expected=f"torchvision:{name}:FOLDER")
    missing = [place for place in KNOWN[name].places if not (Path(root) / place).exists()]
    if missing:
        expected = "a folder that it has been fetched to"
        raise Problem(f"{name} is not there", found=f"{root} without {missing[0]}", expected=expected, do=_fetch(name, root))
    return name, Path(root)


def _fetch(name: str, root: str) -> str:
    made = "; ".join(
        f"d.{name}({root!r}, {', '.join(f'{key}={value!r}' for key, value in given.items())}, download=True)"
        for given in KNOWN[name].roles.values()
    )
    return f'fetch it once: python -c "import torchvision.datasets as d; {made}"'


def read(rest: str) -> Found:
    """Classes and splits of a dataset as torchvision reads it.

    Raises:
        Problem: where it cannot be read.
    """
    import torchvision.datasets

    name, root = parted(rest)
    splits: dict[str, Raw] = {}
    classes: tuple[str, ...] = ()
    for role in sorted(KNOWN[name].roles, key=("train", "validation", "test").index):
        try:
            held = getattr(torchvision.datasets, name)(str(root), **KNOWN[name].roles[role], download=False)
            raw = _raw(held, root)
        except (RuntimeError, OSError, ValueError, AssertionError, EOFError, LookupError) as error:
            found = (str(error).splitlines() or [type(error).__name__])[0][:160]
            what = f"{name} cannot be read from {root}"
            raise Problem(
                what, found=found, expected="the files as torchvision fetches them", do=_fetch(name, str(root))
            ) from error
        if role == "train":
            classes = _classes(held, raw.labels)
        splits[role] = raw if role == "train" else shuffled(raw)
    return classes, splits, ()


def _raw(held: Any, root: Path) -> Raw:
    """A dataset's images as files where it has files, else as arrays; a broken file is then found when it is decoded."""
    samples: Sequence[Any] = _first(held, SAMPLES) or ()
    files = _first(held, FILES) or [sample for sample, _ in samples]
    labels = _first(held, LABELS)
    if labels is None:
        labels = [label for _, label in samples] or [held[at][1] for at in range(len(held))]
    numbers, none = np.asarray(labels).astype(np.int64).ravel(), np.empty(0, np.int64)
    if len(files) and isinstance(files[0], str | Path):
        paths = [Path(file) for file in files]
        return Raw(paths, numbers, none, [path.relative_to(root).as_posix() for path in paths])
    return Raw([np.asarray(held[at][0]) for at in range(len(held))], numbers, none)


def _first(held: Any, names: Sequence[str]) -> Any:
    return next((getattr(held, name) for name in names if hasattr(held, name)), None)


def _classes(held: Any, labels: np.ndarray) -> tuple[str, ...]:
    """The names that the dataset gives, the first of several; else the labels."""
    names = getattr(held, "classes", None) or [str(label) for label in range(int(labels.max()) + 1)]
    return tuple(str(name[0] if isinstance(name, tuple) else name) for name in names)
