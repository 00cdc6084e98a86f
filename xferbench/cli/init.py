"""``xferbench init``: write a first suite file for a dataset and a checkpoint. Reads both, writes the file."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from xferbench.analysis import exit_code
from xferbench.cli import options

if TYPE_CHECKING:
    import argparse


def add_parser(subparsers: options.Subparsers) -> None:
    """Add the command and its options."""
    text = "write a first suite file for a dataset and a checkpoint"
    parser = options.add_command(subparsers, "init", text, run_command)
    text = "folder of images or of Parquet files, an npz file, or a csv or jsonl file of texts (default: the current folder)"
    parser.add_argument("folder", type=Path, nargs="?", default=Path(), help=text)
    text = "pretrained weights (default: those of the shipped tiny-resnet or tiny-bert)"
    parser.add_argument("--weights", type=Path, metavar="FILE", help=text)
    parser.add_argument("--arch", help="architecture of the weights (default: detected from their tensors)")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="suite file to write (default: NAME.toml)")
    parser.add_argument("--force", action="store_true", help="overwrite an existing file")


def run_command(arguments: argparse.Namespace) -> int:
    """Write the suite file and print the next commands."""
    from xferbench.cli import suite_template

    weights = arguments.weights
    summary = suite_template.summarize_dataset(arguments.folder)
    arch = arguments.arch or suite_template.detect_arch(weights, is_text=summary.is_text)
    file = suite_template.write_suite(summary, arch, weights, arguments.output, force=arguments.force)
    name = shlex.quote(str(file) if str(file)[0] != "-" else f"./{file}")
    print(f"wrote {file}\nnext: xferbench validate {name}\n      xferbench run {name} --dry-run")
    return exit_code.PASSED
