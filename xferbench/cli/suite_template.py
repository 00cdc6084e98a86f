"""Write a first suite file for a dataset and a checkpoint. Reads the dataset and writes the file.

The file explains every key and contains alternatives as comments.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
import unicodedata
from dataclasses import dataclass
from importlib.util import find_spec
from math import ceil, isfinite
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xferbench.config import loader
from xferbench.core.errors import UserError
from xferbench.data import inputs, sources, weights_folder
from xferbench.data.raw import TextExample
from xferbench.report import format
from xferbench.runner import discovery, execute
from xferbench.runner.engines import local
from xferbench.study import forecast

if TYPE_CHECKING:
    from collections.abc import Mapping

    from xferbench.core.suite import Suite

DEFAULT_MARGIN = 0.02  # smallest margin that is proposed
MAX_MARGIN = 0.2  # a larger margin would not answer a useful question
MAX_LISTED_CLASSES = 6  # number of class names in a comment


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetSummary:
    """A dataset summary: number of examples by split and class, and of independent test examples or groups."""

    spec: str
    classes: tuple[str, ...]
    counts: Mapping[str, tuple[int, ...]]
    skipped: int
    examples: int
    is_text: bool

    @property
    def noun(self) -> str:
        """What the examples are, in the plural."""
        return "texts" if self.is_text else "images"


def summarize_dataset(path: Path) -> DatasetSummary:
    """Return a summary of a folder of images, of an npz file or of a table of texts.

    Raises:
        UserError: if it is not a dataset.
    """
    if not path.exists():
        raise UserError(
            f"{format.one_line(path)}: no such folder",
            expected="a folder of images, an npz file, a csv or jsonl file of texts, or a folder of Parquet or Arrow files",
            do="check the path",
        )
    spec = f"{inputs.data_kind(path)}:{path.resolve()}"
    classes, splits, skipped = sources.read_dataset(spec, None)
    if "train" not in splits:
        do = "put the images into train/ and val/ or test/; for a finished network, `xferbench audit` needs only a test set"
        raise UserError(f"{format.one_line(path)}: no training images", found="only a test set", expected="both", do=do)
    counts = {split: tuple(np.bincount(raw.labels, minlength=len(classes)).tolist()) for split, raw in splits.items()}
    is_text = isinstance(splits["train"].images[0], TextExample)
    groups = splits["test"].groups
    examples = len(np.unique(groups)) if len(groups) else sum(counts["test"])
    return DatasetSummary(spec=spec, classes=classes, counts=counts, skipped=len(skipped), examples=examples, is_text=is_text)


def detect_arch(weights: Path | None, option: str = "--weights", *, is_text: bool = False) -> str:
    """Return the architecture of a checkpoint, detected from its tensors; without a checkpoint, the shipped small network.

    Args:
        weights: the checkpoint, or None.
        option: the option that named the file.
        is_text: whether the network takes texts.

    Raises:
        UserError: if the file cannot be read, or if no architecture matches.
    """
    if weights is None:
        return "tiny-bert" if is_text else "tiny-resnet"
    try:
        weights = weights_folder.find_weights(weights)
    except UserError as error:
        raise error.at(f"{option} {format.one_line(weights)}") from error
    if find_spec("torch") is None:
        raise UserError("--arch is missing", found="no torch to read the weights with", expected="--arch ARCH")
    with local.start_workers(1) as call:
        detected: str = call("xferbench.lab.models.arch_detection:detect_arch", weights).result()
        task: str = "" if detected else call("xferbench.lab.models.network_tasks:describe_file", weights).result()
    if not detected:
        what = f"{format.one_line(weights)}: its tensors match no known architecture"
        do = "give a network that classifies images" if task else "name its architecture; `xferbench ls` lists the known ones"
        raise UserError(what, found=task, expected="--arch ARCH", do=do)
    return detected


def suite_slug(name: str) -> str:
    """Return a valid suite name made from any text."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"^[^a-z0-9]+|-+$", "", re.sub(r"[^a-z0-9._]+", "-", plain))[:60].rstrip("-") or "transfer"


def write_suite(summary: DatasetSummary, arch: str, weights: Path | None, output: Path | None, *, force: bool = False) -> Path:
    """Write a valid suite file and return its path.

    Args:
        summary: the dataset.
        arch: the architecture.
        weights: the checkpoint, or None for the shipped weights.
        output: the file; None means NAME.toml in the current folder.
        force: whether an existing file may be overwritten.

    Raises:
        UserError: if the file exists already, or if the arguments do not make a valid suite.
    """
    path = Path(summary.spec.partition(":")[2])
    name = suite_slug(path.name if path.is_dir() else path.stem)
    file = Path(f"{name}.toml") if output is None else output
    draft = _parse_content(suite_text(summary, name, arch, weights, file, DEFAULT_MARGIN), file)
    margin = _proposed_margin(draft, summary.examples)
    content = suite_text(summary, name, arch, weights, file, margin)
    inputs.check_inputs(_parse_content(content, file))
    try:
        with file.open("w" if force else "x", encoding="utf-8", newline="\n") as stream:
            stream.write(content)
    except FileExistsError as error:
        raise UserError(f"{format.one_line(file)} already exists", do="use --force to overwrite it, or -o FILE") from error
    return file


def _parse_content(content: str, file: Path) -> Suite:
    return loader.parse_suite(tomllib.loads(content), file.resolve())


def _proposed_margin(draft: Suite, examples: int) -> float:
    """Return the margin that the test set can decide, rounded up to whole points."""
    from xferbench.core.suite import replace_rules

    power = forecast.decision_power(
        replace_rules(draft, margin=DEFAULT_MARGIN), examples, discovery.load_plugins(draft.plugins)
    )
    smallest = power.smallest_margin if power else 0.0
    return min(max(DEFAULT_MARGIN, ceil(100 * smallest) / 100), MAX_MARGIN) if isfinite(smallest) else MAX_MARGIN


def suite_text(summary: DatasetSummary, name: str, arch: str, weights: Path | None, file: Path, margin: float) -> str:
    """Return the content of the suite file."""
    kind, _, location = summary.spec.partition(":")
    data = f"{kind}:{_relative_path(Path(location), file)}"
    weights_line = f"weights = {toml_quote(_relative_path(weights, file))}" if weights else '# weights = "weights.safetensors"'
    source = "an invented language" if summary.is_text else "drawn glyphs"
    shipped = "" if weights else f"  # the shipped weights were trained on {source} only; use --weights for your own"
    tested = f"{summary.examples} independent test {summary.noun[:-1]}(s)"
    margin_note = f"About what {tested} can decide" if margin < MAX_MARGIN else f"{tested} decide little"
    margin_note += "; a smaller margin needs more of them."
    is_small = arch.startswith(("cifar-resnet", "tiny-resnet"))
    size = "resize = 32, crop = 32" if is_small else "resize = 256, crop = 224"
    preprocessing = f"{size}, mean = [0.485, 0.456, 0.406], std = [0.229, 0.224, 0.225]"
    preprocessing_note = "used in pretraining; needed if it is not recorded"
    if summary.is_text:
        preprocessing, preprocessing_note = 'kind = "text", max_length = 64', "the tokenizer is that of the weights"
    saving = "Shorter texts" if summary.is_text else "Fewer pixels"
    comment = "" if execute.is_cpu("auto") else "# "
    return f"""\
#:schema {(loader.shipped_folder() / "schema.json").as_uri()}
# Paths are relative to this file. `xferbench validate` checks the file; commented-out keys show alternatives.
schema = 1
name = "{name}"
plugins = ["all"]            # or some of those listed by `xferbench ls`, such as ["batchnorm-drift"]
# metric = "balanced_accuracy" # instead of accuracy, for classes of unequal size
# The harm that matters, {100 * margin:g} points of accuracy. {margin_note}
margin = {margin:g}
looks = [5, 10]              # numbers of seeds for a verdict; [5, 10, 20] detects smaller harms
budget = "5h"                # largest computing time, added up over the workers; a smaller one cuts the search and the seeds

[backbone]
arch = {toml_quote(arch)}{shipped}
# A state dict saved by torch.save, or safetensors. No code in it is ever executed.
{weights_line}
# preprocessing = {{ {preprocessing} }}
#                            # {preprocessing_note}

[target]
data = {toml_quote(data)}
{_class_comments(summary)}
# train_size = 200           # fewer training {summary.noun}
# test_size = 1000           # fewer test {summary.noun}

# Your present recipe. While it is commented out, the default recipe is tested.
# [recipe]
# strategy = "full"          # or linear-probe, lp-ft, partial, discriminative, gradual-unfreezing, warm-up, scratch
# lr = 1e-3
# steps = 150
# batch_size = 32

# A smaller search for the from-scratch baseline, for a machine without a GPU. `run --dry-run` estimates the time, and says
# whether the budget pays for a first verdict. {saving} (preprocessing) save the most time.
{comment}[scratch]
{comment}lr = [1e-3]
{comment}weight_decay = [0.01]
{comment}steps = 100
{comment}batch_size = 16
"""


def _class_comments(summary: DatasetSummary) -> str:
    """Return comments with the classes and the number of images of each."""
    names = ", ".join(format.shorten(name, 40) for name in summary.classes[:MAX_LISTED_CLASSES]) + (
        ", …" if len(summary.classes) > MAX_LISTED_CLASSES else ""
    )
    lines = [f"# {len(summary.classes)} classes: {names}"]
    for split, counts in summary.counts.items():
        per_class = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
        lines.append(f"# {split}: {sum(counts)} {summary.noun}, {per_class} a class")
    lines += [f"# {summary.skipped} file(s) or array(s) are not used"] if summary.skipped else []
    return "\n".join(lines)


def _relative_path(path: Path, file: Path) -> str:
    """Return a path relative to a suite file, or an absolute one if it would begin with ~ or lead to another drive."""
    try:
        relative = Path(os.path.relpath(path.resolve(), file.resolve().parent)).as_posix()
    except ValueError:
        relative = "~"
    return path.resolve().as_posix() if relative.startswith("~") else relative


def toml_quote(value: str) -> str:
    """Return a text as a TOML string.

    Raises:
        UserError: if the text is not valid UTF-8.
    """
    try:
        value.encode()
    except UnicodeEncodeError as error:
        what = f"{format.one_line(value)}: a name that is not valid text"
        raise UserError(what, found="bytes that are not UTF-8", expected="a name in UTF-8", do="rename it") from error
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
