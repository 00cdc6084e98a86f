"""Read datasets of ``torchvision.datasets`` that are on disk.

Reads files, and imports torchvision when a dataset is read. Nothing is downloaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xferbench.core.errors import UserError, suggest
from xferbench.data.raw import DatasetParts, RawSplit, shuffle

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True, slots=True)
class TorchvisionLayout:
    """Where the files of a dataset are below its root, and the arguments of its constructor for each split."""

    places: tuple[str, ...]
    roles: Mapping[str, Mapping[str, Any]]


TRAIN_FLAG_SPLITS = {"train": {"train": True}, "test": {"train": False}}
TRAIN_TEST_SPLITS = {"train": {"split": "train"}, "test": {"split": "test"}}
TRAIN_VAL_TEST_SPLITS = TRAIN_TEST_SPLITS | {"validation": {"split": "val"}}
LAYOUTS = {
    "CIFAR10": TorchvisionLayout(("cifar-10-batches-py",), TRAIN_FLAG_SPLITS),
    "CIFAR100": TorchvisionLayout(("cifar-100-python",), TRAIN_FLAG_SPLITS),
    "Country211": TorchvisionLayout(("country211",), TRAIN_TEST_SPLITS | {"validation": {"split": "valid"}}),
    "DTD": TorchvisionLayout(("dtd",), TRAIN_VAL_TEST_SPLITS),
    "FGVCAircraft": TorchvisionLayout(("fgvc-aircraft-2013b",), TRAIN_VAL_TEST_SPLITS),
    "FashionMNIST": TorchvisionLayout(("FashionMNIST",), TRAIN_FLAG_SPLITS),
    "Flowers102": TorchvisionLayout(("flowers-102",), TRAIN_VAL_TEST_SPLITS),
    "Food101": TorchvisionLayout(("food-101",), TRAIN_TEST_SPLITS),
    "GTSRB": TorchvisionLayout(("gtsrb",), TRAIN_TEST_SPLITS),
    "Imagenette": TorchvisionLayout(("imagenette2",), {"train": {"split": "train"}, "test": {"split": "val"}}),
    "KMNIST": TorchvisionLayout(("KMNIST",), TRAIN_FLAG_SPLITS),
    "MNIST": TorchvisionLayout(("MNIST",), TRAIN_FLAG_SPLITS),
    "OxfordIIITPet": TorchvisionLayout(("oxford-iiit-pet",), {"train": {"split": "trainval"}, "test": {"split": "test"}}),
    "RenderedSST2": TorchvisionLayout(("rendered-sst2",), TRAIN_VAL_TEST_SPLITS),
    "STL10": TorchvisionLayout(("stl10_binary",), TRAIN_TEST_SPLITS),
    "SVHN": TorchvisionLayout(("train_32x32.mat", "test_32x32.mat"), TRAIN_TEST_SPLITS),
    "StanfordCars": TorchvisionLayout(("stanford_cars",), TRAIN_TEST_SPLITS),
    "USPS": TorchvisionLayout(("usps.bz2", "usps.t.bz2"), TRAIN_FLAG_SPLITS),
}
FILE_ATTRIBUTES = ("_image_files", "_images")  # torchvision's names for a list of paths
SAMPLE_ATTRIBUTES = ("_samples", "samples")  # torchvision's names for a list of (path or pixels, label)
LABEL_ATTRIBUTES = ("targets", "labels", "_labels")  # torchvision's names for the labels


def parse_location(rest: str) -> tuple[str, Path]:
    """Return the name and the root of ``NAME:ROOT``.

    Raises:
        UserError: If the name is unknown, or the root does not hold the dataset.
    """
    name, _, root = rest.partition(":")
    if name not in LAYOUTS:
        raise UserError("unknown dataset of torchvision", found=name or "no name", expected=suggest(name, LAYOUTS))
    if not root:
        raise UserError("torchvision: no folder", found=f"torchvision:{name}", expected=f"torchvision:{name}:FOLDER")
    missing = [place for place in LAYOUTS[name].places if not (Path(root) / place).exists()]
    if missing:
        expected = "the folder to which it was downloaded"
        raise UserError(
            f"{name}: files are missing",
            found=f"{root} without {missing[0]}",
            expected=expected,
            do=_download_advice(name, root),
        )
    return name, Path(root)


def _download_advice(name: str, root: str) -> str:
    calls = "; ".join(
        f"d.{name}({root!r}, {', '.join(f'{key}={value!r}' for key, value in arguments.items())}, download=True)"
        for arguments in LAYOUTS[name].roles.values()
    )
    return f'download it once: python -c "import torchvision.datasets as d; {calls}"'


def read_torchvision(rest: str) -> DatasetParts:
    """Read the classes and splits of a dataset with torchvision.

    Raises:
        UserError: If the dataset cannot be read.
    """
    import torchvision.datasets

    name, root = parse_location(rest)
    splits: dict[str, RawSplit] = {}
    classes: tuple[str, ...] = ()
    for role in sorted(LAYOUTS[name].roles, key=("train", "validation", "test").index):
        try:
            dataset = getattr(torchvision.datasets, name)(str(root), **LAYOUTS[name].roles[role], download=False)
            raw = _to_split(dataset, root)
        except (RuntimeError, OSError, ValueError, AssertionError, EOFError, LookupError) as error:
            found = (str(error).splitlines() or [type(error).__name__])[0][:160]
            message = f"{name} cannot be read from {root}"
            raise UserError(
                message, found=found, expected="the files that torchvision downloads", do=_download_advice(name, str(root))
            ) from error
        if role == "train":
            classes = _class_names(dataset, raw.labels)
        splits[role] = raw if role == "train" else shuffle(raw)
    return classes, splits, ()


def _to_split(dataset: Any, root: Path) -> RawSplit:
    """Return a dataset as a split: image files if it has files, else arrays.

    A broken file is not detected here, but when it is decoded.
    """
    samples: Sequence[Any] = _first_attribute(dataset, SAMPLE_ATTRIBUTES) or ()
    files = _first_attribute(dataset, FILE_ATTRIBUTES) or [sample for sample, _ in samples]
    labels = _first_attribute(dataset, LABEL_ATTRIBUTES)
    if labels is None:
        labels = [label for _, label in samples] or [dataset[index][1] for index in range(len(dataset))]
    label_numbers, no_groups = np.asarray(labels).astype(np.int64).ravel(), np.empty(0, np.int64)
    if len(files) and isinstance(files[0], str | Path):
        paths = [Path(file) for file in files]
        return RawSplit(paths, label_numbers, no_groups, [path.relative_to(root).as_posix() for path in paths])
    return RawSplit([np.asarray(dataset[index][0]) for index in range(len(dataset))], label_numbers, no_groups)


def _first_attribute(dataset: Any, names: Sequence[str]) -> Any:
    return next((getattr(dataset, name) for name in names if hasattr(dataset, name)), None)


def _class_names(dataset: Any, labels: np.ndarray) -> tuple[str, ...]:
    """Return the class names of a dataset, the first of several synonyms; without names, the labels."""
    names = getattr(dataset, "classes", None) or [str(label) for label in range(int(labels.max()) + 1)]
    return tuple(str(name[0] if isinstance(name, tuple) else name) for name in names)
