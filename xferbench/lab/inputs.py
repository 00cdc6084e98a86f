"""What a suite names, as content: digests of weights and data, taken without torch and remembered by path, size and time."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from xferbench.core.files import sha256
from xferbench.design import Data, Finished, Weights
from xferbench.lab import fetched, foreign, listed, synthetic
from xferbench.problem import Problem, nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from xferbench.design import Code, Suite

IMAGES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp"})
KINDS = ("folder", "npz", "torchvision", "synthetic", "digits")
FOLDER = "a folder with train/ and val/ or test/, or with metadata.csv"
NAMED = ("tiny-resnet", "cifar-resnet20", "cifar-resnet32", "cifar-resnet44", "cifar-resnet56")
PREFIXES = ("torchvision:NAME", "timm:NAME", "python:MODULE:CALLABLE")
SHIPPED = Path(__file__).parent / "weights"


def check(suite: Suite) -> None:
    """Look whether all that a suite names is there, before any image is read or anything trained.

    Raises:
        Problem: for a backbone or dataset of an unknown kind, a file that is missing, or a table that cannot be read; with the
            suite's file and key.
    """
    prefixes = [one.partition(":")[0] + ":" for one in PREFIXES]
    if suite.arch not in NAMED and not suite.arch.startswith(tuple(prefixes)):
        raise Problem(f"{suite.path}: [backbone] arch: unknown", found=suite.arch, expected=", ".join((*NAMED, *PREFIXES)))
    for role in ("target", "source", "shifted"):
        spec = getattr(suite, role)
        try:
            kind, rest = split_spec(spec) if spec is not None else ("", "")
            _ = kind == "folder" and listed.rows(Path(rest))
        except Problem as problem:
            raise problem.at(f"{suite.path}: [{role}] data: {problem.what}") from problem
    files = {"[checkpoint] after": suite.after, "[checkpoint] before": suite.before, "[source] manifest": suite.manifest}
    for key, file in files.items():
        if file is not None and not Path(file).is_file():
            what = "a folder" if Path(file).is_dir() else "no such file"
            raise Problem(f"{suite.path}: {key}", found=f"{file}: {what}", expected="a file", do="check the path")
    if suite.after is None:
        _checkpoint(suite)
    code(suite)


def split_spec(spec: str) -> tuple[str, str]:
    """``kind:rest`` of a dataset's word.

    Raises:
        Problem: for a kind that is not known, or where nothing is at the place that it names.
    """
    kind, _, rest = spec.partition(":")
    if kind not in KINDS:
        likely = f"write folder:{spec}" if Path(spec).is_dir() else f"write npz:{spec}" if Path(spec).is_file() else ""
        do = likely or "`xferbench ls` shows each"
        raise Problem("unknown kind of dataset", found=spec, expected=nearest(kind, KINDS), do=do)
    if kind == "synthetic" and rest not in synthetic.NAMES:
        raise Problem("unknown synthetic dataset", found=spec, expected=nearest(rest, synthetic.NAMES))
    if kind == "digits" and rest:
        raise Problem("digits are one dataset", found=spec, expected="digits")
    if kind == "folder" and not (rest and Path(rest).is_dir()):
        raise Problem("no such folder", found=spec, expected=FOLDER, do="check the path")
    if kind == "npz" and not (rest and Path(rest).is_file()):
        raise Problem("no such file", found=spec, expected="an npz file", do="check the path")
    if kind == "torchvision":
        fetched.parted(rest)
    return kind, rest


def data(spec: str, digester: Callable[[Path], str] = sha256) -> Data:
    """A dataset by its content; renaming its folder changes nothing, renaming a class or touching an image does.

    That of a folder with a table is the table and the files that it names; of a dataset of torchvision's, all its files.

    Raises:
        Problem: for a kind that is not known, a place where nothing is, or a table that cannot be read.
    """
    kind, rest = split_spec(spec)
    content = hashlib.sha256(kind.encode())
    if kind in {"folder", "torchvision"}:
        name, base = ("", Path(rest)) if kind == "folder" else fetched.parted(rest)
        content.update(name.encode())
        for path in _tabled(base) if kind == "folder" else _fetched(name, base):
            relative = path.relative_to(base).as_posix().encode("utf-8", "surrogateescape")  # a name may be no text at all
            content.update(relative + f"\0{digester(path)}\0".encode())
    elif kind == "npz":
        content.update(digester(Path(rest)).encode())
    else:
        content.update(f"{rest}@{synthetic.VERSION if kind == 'synthetic' else 1}".encode())
    return Data(digest=content.hexdigest(), spec=spec)


def _tabled(folder: Path) -> Iterator[Path]:
    """The files that a folder's dataset consists of: with a table, that and the ones named that are there; else all."""
    tables = listed.tables(folder)
    if not tables:
        return walk(folder)
    named = {folder / row.file for row in listed.rows(folder)[0]}
    there = {*tables.values(), *(path for path in named if path.is_file())}
    return iter(sorted(there, key=lambda path: path.relative_to(folder).as_posix()))


def _fetched(name: str, root: Path) -> Iterator[Path]:
    for place in fetched.KNOWN[name].places:
        yield from walk(root / place) if (root / place).is_dir() else iter([root / place])


def walk(folder: Path) -> Iterator[Path]:
    """All files of a dataset's folder, in one order on every system, through links too; what is hidden is no data."""
    found, seen = [], set()
    for here, folders, files in os.walk(folder, followlinks=True):
        seen.add(os.path.realpath(here))
        folders[:] = [name for name in folders if name[0] != "." and os.path.realpath(Path(here, name)) not in seen]
        found += [Path(here, name) for name in files if name[0] != "." and Path(here, name).is_file()]
    return iter(sorted(found, key=lambda path: path.relative_to(folder).as_posix()))


def weights(suite: Suite, digester: Callable[[Path], str] = sha256) -> Weights:
    """The checkpoint of a suite's backbone; ``tiny-resnet`` has a shipped one.

    Raises:
        Problem: where there is none, or the file is missing.
    """
    path = _checkpoint(suite)
    return Weights(digest=digester(path), path=str(path))


def finished(suite: Suite, digester: Callable[[Path], str] = sha256) -> Finished | None:
    """The checkpoints of an audit; None for any other suite.

    Raises:
        Problem: where a file is missing, or both are the same.
    """
    if suite.after is None:
        return None
    after = Weights(digest=digester(Path(suite.after)), path=suite.after)
    before = Weights(digest=digester(Path(suite.before)), path=suite.before) if suite.before else None
    if before and before.digest == after.digest:
        found = f"{suite.before} and {suite.after} are the same file, byte for byte"
        do = "give the pretrained weights as before, or leave before out"
        raise Problem(f"{suite.path}: [checkpoint] before equals after", found=found, expected="two networks", do=do)
    return Finished(after=after, before=before)


def manifest(suite: Suite, digester: Callable[[Path], str] = sha256) -> Data | None:
    """The manifest of a pretraining set, where a suite names one."""
    if suite.manifest is None:
        return None
    return Data(digest=digester(Path(suite.manifest)), spec=f"manifest:{suite.manifest}")


def code(suite: Suite, digester: Callable[[Path], str] = sha256) -> tuple[Code | None, Code | None]:
    """What builds the backbone and what trains it, where a suite names code of the user's own.

    Raises:
        Problem: where whoever runs the suite has not allowed that, or the module is not there.
    """
    own = suite.arch if suite.arch.startswith(foreign.PREFIX) else None
    building = _allowed(suite, "[backbone] arch", own, digester)
    return building, _allowed(suite, "[recipe] training", suite.training, digester)


def _allowed(suite: Suite, key: str, word: str | None, digester: Callable[[Path], str]) -> Code | None:
    if word is None:
        return None
    if not suite.allow_code:
        do = "where, and only where, you trust it, add --allow-code (in Python, allow_code=True): it runs with all your rights"
        raise Problem(f"{suite.path}: {key}: names code to be run", found=word, do=do)
    try:
        return foreign.find(word, Path(suite.path).parent.resolve(), digester)
    except Problem as problem:
        raise problem.at(f"{suite.path}: {key}: {problem.what}") from problem


def _checkpoint(suite: Suite) -> Path:
    named = suite.weights
    if named is None and suite.arch == "tiny-resnet":
        named = str(SHIPPED / "tiny-resnet-0.safetensors")
    expected = "a file of pretrained weights (safetensors, or a state dict saved by torch.save)"
    if named is None:
        do = 'add weights = "path/to/file" below arch; without pretrained weights there is no transfer to examine'
        raise Problem(f"{suite.path}: [backbone] weights: missing", found=f"arch {suite.arch}", expected=expected, do=do)
    if not Path(named).is_file():
        what = "a folder" if Path(named).is_dir() else "no such file"
        raise Problem(f"{suite.path}: [backbone] weights", found=f"{named}: {what}", expected=expected, do="check the path")
    return Path(named)
