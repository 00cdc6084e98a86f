"""What a suite names, as content: digests of weights and data, taken without torch and remembered by path, size and time."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from xferbench.design import Data, Weights
from xferbench.lab import synthetic
from xferbench.problem import Problem, nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from xferbench.design import Suite

IMAGES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp"})
KINDS = ("folder", "npz", "synthetic", "digits")
SHIPPED = Path(__file__).parent / "weights"


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def split_spec(spec: str) -> tuple[str, str]:
    """``kind:rest`` of a dataset's word.

    Raises:
        Problem: for a kind that is not known.
    """
    kind, _, rest = spec.partition(":")
    if kind not in KINDS:
        raise Problem(f"[target] data = {spec!r}: unknown kind of dataset", found=kind, expected=nearest(kind, KINDS))
    if kind == "synthetic" and rest not in synthetic.NAMES:
        raise Problem(
            f"[target] data = {spec!r}: unknown synthetic dataset", found=rest, expected=nearest(rest, synthetic.NAMES)
        )
    if kind in {"folder", "npz"} and not Path(rest).exists():
        what = "a folder with train/ and val/ or test/" if kind == "folder" else "an npz file"
        raise Problem(f"[target] data = {spec!r}", found="nothing there", expected=what, do="check the path in the suite file")
    return kind, rest


def data(spec: str, digester: Callable[[Path], str] = file_digest) -> Data:
    """A dataset by its content; renaming its folder changes nothing, renaming a class or touching an image does."""
    kind, rest = split_spec(spec)
    content = hashlib.sha256(kind.encode())
    if kind == "folder":
        for path in walk(Path(rest)):
            content.update(f"{path.relative_to(rest).as_posix()}\0{digester(path)}\0".encode())
    elif kind == "npz":
        content.update(digester(Path(rest)).encode())
    else:
        content.update(f"{rest}@{synthetic.VERSION if kind == 'synthetic' else 1}".encode())
    return Data(digest=content.hexdigest(), spec=spec)


def walk(folder: Path) -> Iterator[Path]:
    """All files of a dataset's folder, in one order on every system; hidden ones are no data."""
    hidden = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return iter(sorted(hidden, key=lambda path: path.relative_to(folder).as_posix()))


def weights(suite: Suite, digester: Callable[[Path], str] = file_digest) -> Weights:
    """The checkpoint of a suite's backbone; ``tiny-resnet`` has a shipped one.

    Raises:
        Problem: where there is none, or the file is missing.
    """
    named = suite.weights
    if named is None and suite.arch == "tiny-resnet":
        named = str(SHIPPED / "tiny-resnet-0.safetensors")
    if named is None:
        raise Problem(
            f"{suite.path}: [backbone] has no weights",
            expected="a file of pretrained weights (safetensors, or a state dict saved by torch.save)",
            do='add weights = "path/to/file" below arch; without pretrained weights there is no transfer to examine',
        )
    path = Path(named)
    if not path.is_file():
        raise Problem(f"[backbone] weights = {named!r}", found="no such file", expected="a file of pretrained weights")
    return Weights(digest=digester(path), path=str(path))
