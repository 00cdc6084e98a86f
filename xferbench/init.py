"""A first suite file for a folder of images and a checkpoint: every key with what it means, alternatives beside it."""

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

MARGIN = 0.02  # the least that is proposed
WIDEST = 0.2  # a margin beyond it would decide nothing that anybody asks
NAMES = 6  # of classes that a comment tells


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A dataset as it was found: images by split and class, and test images or groups that count one each."""

    spec: str
    classes: tuple[str, ...]
    counts: Mapping[str, tuple[int, ...]]
    left_out: int
    examples: int


def look(place: Path) -> Seen:
    """What a folder of images or an npz file holds.

    Raises:
        Problem: where it is no dataset.
    """
    if not place.exists():
        raise Problem(f"{text.line(place)}: no such folder", expected="a folder of images, or an npz file", do="check the path")
    spec = f"{'folder' if place.is_dir() else 'npz'}:{place.resolve()}"
    classes, splits, left_out = sources.read(spec, None)
    if "train" not in splits:
        do = "put the images into train/ and val/ or test/; for a finished network a test set is enough: xferbench audit"
        raise Problem(f"{text.line(place)}: no training images", found="a test set alone", expected="both", do=do)
    counts = {split: tuple(np.bincount(raw.labels, minlength=len(classes)).tolist()) for split, raw in splits.items()}
    groups = splits["test"].groups
    examples = len(np.unique(groups)) if len(groups) else sum(counts["test"])
    return Seen(spec=spec, classes=classes, counts=counts, left_out=len(left_out), examples=examples)


def arch(weights: Path | None, option: str = "--weights") -> str:
    """The architecture of a checkpoint, by its tensors; without one, the small network whose weights are shipped.

    ``option`` is what named the file.

    Raises:
        Problem: where the file cannot be read, or none can be told.
    """
    if weights is None:
        return "tiny-resnet"
    if not weights.is_file():
        raise Problem(
            f"{option} {text.line(weights)}", found="no such file", expected="a state dict saved by torch.save, or safetensors"
        )
    if find_spec("torch") is None:
        raise Problem("--arch is missing", found="no torch to look into the weights with", expected="--arch ARCH")
    with local.workers(1) as call:
        found: str = call("xferbench.lab.guess:arch", weights).result()
    if not found:
        what = f"{text.line(weights)}: its tensors are of no architecture that is known"
        raise Problem(what, expected="--arch ARCH", do="name what it was made with; `xferbench ls` lists what there is")
    return found


def slug(name: str) -> str:
    """A suite's name made of any text."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"^[^a-z0-9]+|-+$", "", re.sub(r"[^a-z0-9._]+", "-", plain))[:60].rstrip("-") or "transfer"


def write(seen: Seen, arch: str, weights: Path | None, output: Path | None, *, force: bool = False) -> Path:
    """Write a suite file that is valid; returns where.

    Args:
        seen: the target. output: None is NAME.toml in the current folder. force: whether a file may be overwritten.

    Raises:
        Problem: where a file is in the way, or what was given makes no valid suite.
    """
    place = Path(seen.spec.partition(":")[2])
    name = slug(place.name if place.is_dir() else place.stem)
    file = Path(f"{name}.toml") if output is None else output
    checked = _checked(file_text(seen, name, arch, weights, file, MARGIN), file)
    margin = _margin(checked, seen.examples)
    final = file_text(seen, name, arch, weights, file, margin)
    inputs.check(_checked(final, file))
    try:
        with file.open("w" if force else "x", encoding="utf-8", newline="\n") as opened:
            opened.write(final)
    except FileExistsError as error:
        raise Problem(f"{text.line(file)} is there already", do="give --force to overwrite it, or -o FILE") from error
    return file


def _checked(content: str, file: Path) -> Suite:
    return suite.parse(tomllib.loads(content), file.resolve())


def _margin(asked: Suite, examples: int) -> float:
    """The margin that the test set can decide, in whole points."""
    smallest = forecast.smallest_margin(replace(asked, margin=MARGIN), examples, discover.plugins(asked.plugins))
    return min(max(MARGIN, ceil(100 * (smallest or 0)) / 100), WIDEST)


def file_text(seen: Seen, name: str, arch: str, weights: Path | None, file: Path, margin: float) -> str:
    """The suite file's content."""
    kind, _, place = seen.spec.partition(":")
    data = f"{kind}:{_relative(Path(place), file)}"
    given = f"weights = {quoted(_relative(weights, file))}" if weights else '# weights = "weights.safetensors"'
    shipped = "" if weights else "  # its shipped weights know drawn glyphs only; give your own by --weights"
    enough = (
        "About what {} independent test image(s) can decide"
        if margin < WIDEST
        else "{} independent test image(s) decide little"
    )
    least = enough.format(seen.examples) + "; a smaller one needs more of them."
    small = arch.startswith(("cifar-resnet", "tiny-resnet"))
    size = "resize = 32, crop = 32" if small else "resize = 256, crop = 224"
    off = "" if execute.surely_cpu("auto") else "# "
    return f"""\
#:schema {(suite.folder() / "schema.json").as_uri()}
# Paths are relative to this file. `xferbench validate` checks it; keys that are commented out show other ways.
schema = 1
name = "{name}"
plugins = ["all"]            # or some of those that `xferbench ls` lists, such as ["batchnorm-drift"]
# metric = "balanced_accuracy" # instead of accuracy, where classes are of unequal size
# The harm that matters, {100 * margin:g} points of accuracy. {least}
margin = {margin:g}
looks = [5, 10]              # seeds at which a verdict may be taken; [5, 10, 20] sees smaller harms
budget = "30m"               # no more seeds are added after so much computing

[backbone]
arch = {quoted(arch)}{shipped}
# A state dict saved by torch.save, or safetensors; nothing in it is ever executed.
{given}
# preprocessing = {{ {size}, mean = [0.485, 0.456, 0.406], std = [0.229, 0.224, 0.225] }}
#                            # what the weights were trained with, where nobody recorded it

[target]
data = {quoted(data)}
{_counted(seen)}
# train_size = 200           # fewer training images
# test_size = 1000           # fewer test images

# What you do today. While it is commented out, the healthy default is examined.
# [recipe]
# strategy = "full"          # or linear-probe, lp-ft, partial, discriminative, gradual-unfreezing, warm-up, scratch
# lr = 1e-3
# steps = 150
# batch_size = 32

# A smaller search for the from-scratch baseline, for a machine without a GPU. `run --dry-run` tells how long it takes: most of
# it the first look, which the budget does not shorten. Fewer pixels (preprocessing) save the most.
{off}[scratch]
{off}lr = [1e-3]
{off}weight_decay = [0.01]
{off}steps = 100
{off}batch_size = 16
"""


def _counted(seen: Seen) -> str:
    """Comments that tell the classes, and how many images of each there are."""
    names = ", ".join(text.short(name, 40) for name in seen.classes[:NAMES]) + (", …" if len(seen.classes) > NAMES else "")
    lines = [f"# {len(seen.classes)} classes: {names}"]
    for split, counts in seen.counts.items():
        each = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
        lines.append(f"# {split}: {sum(counts)} images, {each} a class")
    lines += [f"# {seen.left_out} file(s) or array(s) are not used"] if seen.left_out else []
    return "\n".join(lines)


def _relative(path: Path, file: Path) -> str:
    """A path as seen from a suite file; absolute where that would begin with a ~, or leads to another drive."""
    try:
        near = Path(os.path.relpath(path.resolve(), file.resolve().parent)).as_posix()
    except ValueError:
        near = "~"
    return path.resolve().as_posix() if near.startswith("~") else near


def quoted(value: str) -> str:
    """A text as TOML has it.

    Raises:
        Problem: for a name that is no text.
    """
    try:
        value.encode()
    except UnicodeEncodeError as error:
        what = f"{text.line(value)}: a name that is no text"
        raise Problem(
            what, found="bytes that are not UTF-8", expected="a name that can be written down", do="rename it"
        ) from error
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
