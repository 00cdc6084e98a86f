"""Write a first suite file for a folder of images and a checkpoint. Reads the dataset and writes the file.

The file explains every key and contains alternatives as comments.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
import unicodedata
from dataclasses import dataclass, replace
from importlib.util import find_spec
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xferbench import discover, execute, forecast, suite
from xferbench.engines import local
from xferbench.lab import inputs, sources
from xferbench.problem import Problem
from xferbench.report import text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from xferbench.design import Suite

MARGIN = 0.02  # smallest margin that is proposed
WIDEST = 0.2  # a larger margin would not answer a useful question
NAMES = 6  # number of class names in a comment


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A dataset summary: number of images by split and class, and number of independent test images or groups."""

    spec: str
    classes: tuple[str, ...]
    counts: Mapping[str, tuple[int, ...]]
    left_out: int
    examples: int


def look(path: Path) -> Seen:
    """Return a summary of a folder of images or of an npz file.

    Raises:
        Problem: if it is not a dataset.
    """
    if not path.exists():
        raise Problem(f"{text.line(path)}: no such folder", expected="a folder of images, or an npz file", do="check the path")
    spec = f"{'folder' if path.is_dir() else 'npz'}:{path.resolve()}"
    classes, splits, left_out = sources.read(spec, None)
    if "train" not in splits:
        do = "put the images into train/ and val/ or test/; for a finished network, `xferbench audit` needs only a test set"
        raise Problem(f"{text.line(path)}: no training images", found="only a test set", expected="both", do=do)
    counts = {split: tuple(np.bincount(raw.labels, minlength=len(classes)).tolist()) for split, raw in splits.items()}
    groups = splits["test"].groups
    examples = len(np.unique(groups)) if len(groups) else sum(counts["test"])
    return Seen(spec=spec, classes=classes, counts=counts, left_out=len(left_out), examples=examples)


def arch(weights: Path | None, option: str = "--weights") -> str:
    """Return the architecture of a checkpoint, detected from its tensors; without a checkpoint, the shipped small network.

    ``option`` is the option that named the file.

    Raises:
        Problem: if the file cannot be read, or if no architecture matches.
    """
    if weights is None:
        return "tiny-resnet"
    if not weights.is_file():
        raise Problem(
            f"{option} {text.line(weights)}", found="no such file", expected="a state dict saved by torch.save, or safetensors"
        )
    if find_spec("torch") is None:
        raise Problem("--arch is missing", found="no torch to read the weights with", expected="--arch ARCH")
    with local.workers(1) as call:
        detected: str = call("xferbench.lab.guess:arch", weights).result()
    if not detected:
        what = f"{text.line(weights)}: its tensors match no known architecture"
        raise Problem(what, expected="--arch ARCH", do="name its architecture; `xferbench ls` lists the known ones")
    return detected


def slug(name: str) -> str:
    """Return a valid suite name made from any text."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"^[^a-z0-9]+|-+$", "", re.sub(r"[^a-z0-9._]+", "-", plain))[:60].rstrip("-") or "transfer"


def write(summary: Seen, arch: str, weights: Path | None, output: Path | None, *, force: bool = False) -> Path:
    """Write a valid suite file and return its path.

    Args:
        seen: the target.
        arch: the architecture.
        weights: the checkpoint, or None for the shipped weights.
        output: the file; None means NAME.toml in the current folder.
        force: whether an existing file may be overwritten.

    Raises:
        Problem: if the file exists already, or if the arguments do not make a valid suite.
    """
    path = Path(summary.spec.partition(":")[2])
    name = slug(path.name if path.is_dir() else path.stem)
    file = Path(f"{name}.toml") if output is None else output
    draft = _parse_content(file_text(summary, name, arch, weights, file, MARGIN), file)
    margin = _proposed_margin(draft, summary.examples)
    content = file_text(summary, name, arch, weights, file, margin)
    inputs.check(_parse_content(content, file))
    try:
        with file.open("w" if force else "x", encoding="utf-8", newline="\n") as stream:
            stream.write(content)
    except FileExistsError as error:
        raise Problem(f"{text.line(file)} already exists", do="use --force to overwrite it, or -o FILE") from error
    return file


def _parse_content(content: str, file: Path) -> Suite:
    return suite.parse(tomllib.loads(content), file.resolve())


def _proposed_margin(draft: Suite, examples: int) -> float:
    """Return the margin that the test set can decide, rounded up to whole points."""
    smallest = forecast.smallest_margin(replace(draft, margin=MARGIN), examples, discover.plugins(draft.plugins))
    return min(max(MARGIN, ceil(100 * (smallest or 0)) / 100), WIDEST)


def file_text(summary: Seen, name: str, arch: str, weights: Path | None, file: Path, margin: float) -> str:
    """Return the content of the suite file."""
    kind, _, location = summary.spec.partition(":")
    data = f"{kind}:{_relative_path(Path(location), file)}"
    weights_line = f"weights = {quoted(_relative_path(weights, file))}" if weights else '# weights = "weights.safetensors"'
    shipped = "" if weights else "  # the shipped weights were trained on drawn glyphs only; use --weights for your own"
    template = (
        "About what {} independent test image(s) can decide"
        if margin < WIDEST
        else "{} independent test image(s) decide little"
    )
    margin_note = template.format(summary.examples) + "; a smaller margin needs more of them."
    is_small = arch.startswith(("cifar-resnet", "tiny-resnet"))
    size = "resize = 32, crop = 32" if is_small else "resize = 256, crop = 224"
    comment = "" if execute.surely_cpu("auto") else "# "
    return f"""\
#:schema {(suite.folder() / "schema.json").as_uri()}
# Paths are relative to this file. `xferbench validate` checks the file; commented-out keys show alternatives.
schema = 1
name = "{name}"
plugins = ["all"]            # or some of those listed by `xferbench ls`, such as ["batchnorm-drift"]
# metric = "balanced_accuracy" # instead of accuracy, for classes of unequal size
# The harm that matters, {100 * margin:g} points of accuracy. {margin_note}
margin = {margin:g}
looks = [5, 10]              # numbers of seeds for a verdict; [5, 10, 20] detects smaller harms
budget = "30m"               # no more seeds are added after this computing time

[backbone]
arch = {quoted(arch)}{shipped}
# A state dict saved by torch.save, or safetensors. No code in it is ever executed.
{weights_line}
# preprocessing = {{ {size}, mean = [0.485, 0.456, 0.406], std = [0.229, 0.224, 0.225] }}
#                            # used in pretraining; needed if it is not recorded

[target]
data = {quoted(data)}
{_class_comments(summary)}
# train_size = 200           # fewer training images
# test_size = 1000           # fewer test images

# Your present recipe. While it is commented out, the default recipe is tested.
# [recipe]
# strategy = "full"          # or linear-probe, lp-ft, partial, discriminative, gradual-unfreezing, warm-up, scratch
# lr = 1e-3
# steps = 150
# batch_size = 32

# A smaller search for the from-scratch baseline, for a machine without a GPU. `run --dry-run` estimates the time. The first
# look takes most of it, and the budget does not shorten that look. Fewer pixels (preprocessing) save the most time.
{comment}[scratch]
{comment}lr = [1e-3]
{comment}weight_decay = [0.01]
{comment}steps = 100
{comment}batch_size = 16
"""


def _class_comments(summary: Seen) -> str:
    """Return comments with the classes and the number of images of each."""
    names = ", ".join(text.short(name, 40) for name in summary.classes[:NAMES]) + (
        ", …" if len(summary.classes) > NAMES else ""
    )
    lines = [f"# {len(summary.classes)} classes: {names}"]
    for split, counts in summary.counts.items():
        per_class = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
        lines.append(f"# {split}: {sum(counts)} images, {per_class} a class")
    lines += [f"# {summary.left_out} file(s) or array(s) are not used"] if summary.left_out else []
    return "\n".join(lines)


def _relative_path(path: Path, file: Path) -> str:
    """Return a path relative to a suite file, or an absolute one if it would begin with ~ or lead to another drive."""
    try:
        relative = Path(os.path.relpath(path.resolve(), file.resolve().parent)).as_posix()
    except ValueError:
        relative = "~"
    return path.resolve().as_posix() if relative.startswith("~") else relative


def quoted(value: str) -> str:
    """Return a text as a TOML string.

    Raises:
        Problem: if the text is not valid UTF-8.
    """
    try:
        value.encode()
    except UnicodeEncodeError as error:
        what = f"{text.line(value)}: a name that is not valid text"
        raise Problem(what, found="bytes that are not UTF-8", expected="a name in UTF-8", do="rename it") from error
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
