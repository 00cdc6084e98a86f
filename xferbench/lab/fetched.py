"""Read datasets of ``torchvision.datasets`` that are on disk.

Reads files, and imports torchvision when a dataset is read. Nothing is downloaded.
"""

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
    """Where the files of a dataset are below its root, and the arguments of its constructor for each split."""

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
FILES = ("_image_files", "_images")  # torchvision's names for a list of paths
SAMPLES = ("_samples", "samples")  # torchvision's names for a list of (path or pixels, label)
LABELS = ("targets", "labels", "_labels")  # torchvision's names for the labels


def parted(rest: str) -> tuple[str, Path]:
    """Return the name and the root of ``NAME:ROOT``.

    Raises:
        Problem: If the name is unknown, or the root does not hold the dataset.
    """
    name, _, root = rest.partition(":")
    if name not in KNOWN:
        raise Problem("unknown dataset of torchvision", found=name or "no name", expected=nearest(name, KNOWN))
    if not root:
        raise Problem("torchvision: no folder", found=f"torchvision:{name}", expected=f"torchvision:{name}:FOLDER")
    missing = [place for place in KNOWN[name].places if not (Path(root) / place).exists()]
    if missing:
        expected = "the folder to which it was downloaded"
        raise Problem(
            f"{name}: files are missing",
            found=f"{root} without {missing[0]}",
            expected=expected,
            do=_download_advice(name, root),
        )
    return name, Path(root)


def _download_advice(name: str, root: str) -> str:
    calls = "; ".join(
        f"d.{name}({root!r}, {', '.join(f'{key}={value!r}' for key, value in arguments.items())}, download=True)"
        for arguments in KNOWN[name].roles.values()
    )
    return f'download it once: python -c "import torchvision.datasets as d; {calls}"'


def read(rest: str) -> Found:
    """Read the classes and splits of a dataset with torchvision.

    Raises:
        Problem: If the dataset cannot be read.
    """
    import torchvision.datasets

    name, root = parted(rest)
    splits: dict[str, Raw] = {}
    classes: tuple[str, ...] = ()
    for role in sorted(KNOWN[name].roles, key=("train", "validation", "test").index):
        try:
            dataset = getattr(torchvision.datasets, name)(str(root), **KNOWN[name].roles[role], download=False)
            raw = _to_split(dataset, root)
        except (RuntimeError, OSError, ValueError, AssertionError, EOFError, LookupError) as error:
            found = (str(error).splitlines() or [type(error).__name__])[0][:160]
            message = f"{name} cannot be read from {root}"
            raise Problem(
                message, found=found, expected="the files that torchvision downloads", do=_download_advice(name, str(root))
            ) from error
        if role == "train":
            classes = _class_names(dataset, raw.labels)
        splits[role] = raw if role == "train" else shuffled(raw)
    return classes, splits, ()


def _to_split(dataset: Any, root: Path) -> Raw:
    """Return a dataset as a split: image files if it has files, else arrays.

    A broken file is not detected here, but when it is decoded.
    """
    samples: Sequence[Any] = _first_attribute(dataset, SAMPLES) or ()
    files = _first_attribute(dataset, FILES) or [sample for sample, _ in samples]
    labels = _first_attribute(dataset, LABELS)
    if labels is None:
        labels = [label for _, label in samples] or [dataset[index][1] for index in range(len(dataset))]
    label_numbers, no_groups = np.asarray(labels).astype(np.int64).ravel(), np.empty(0, np.int64)
    if len(files) and isinstance(files[0], str | Path):
        paths = [Path(file) for file in files]
        return Raw(paths, label_numbers, no_groups, [path.relative_to(root).as_posix() for path in paths])
    return Raw([np.asarray(dataset[index][0]) for index in range(len(dataset))], label_numbers, no_groups)


def _first_attribute(dataset: Any, names: Sequence[str]) -> Any:
    return next((getattr(dataset, name) for name in names if hasattr(dataset, name)), None)


def _class_names(dataset: Any, labels: np.ndarray) -> tuple[str, ...]:
    """Return the class names of a dataset, the first of several synonyms; without names, the labels."""
    names = getattr(dataset, "classes", None) or [str(label) for label in range(int(labels.max()) + 1)]
    return tuple(str(name[0] if isinstance(name, tuple) else name) for name in names)
