"""``xferbench manifest``: write a pretraining set as hashes and embeddings, without its images. Reads it, writes one file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from xferbench.analysis import exit_code
from xferbench.cli import options

if TYPE_CHECKING:
    import argparse

MAX_LISTED_FILES = 10  # skipped files that are named


def add_parser(subparsers: options.Subparsers) -> None:
    """Add the command and its options."""
    text = "write a pretraining set as hashes and embeddings, without its images"
    parser = options.add_command(subparsers, "manifest", text, run_command)
    text = "a dataset as in a suite file (folder:DIR, npz:FILE, ...), or a folder of images only"
    parser.add_argument("data", help=text)
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", required=True, help="manifest to write (npz)")
    parser.add_argument("--force", action="store_true", help="overwrite an existing file")


def run_command(arguments: argparse.Namespace) -> int:
    """Write the manifest, and print its size and the skipped files."""
    from xferbench.data import manifest
    from xferbench.report.format import one_line

    path = arguments.output
    manifest.check_writable(path, force=arguments.force)
    fingerprints, skipped = manifest.make_manifest(arguments.data, lambda count: print(f"{count} images", file=sys.stderr))
    manifest.write_manifest(fingerprints, path, force=arguments.force)
    size = path.stat().st_size / 2**20
    count, name = len(fingerprints.prints), one_line(fingerprints.name)
    print(f"wrote {one_line(path)}: {count} images of {name}, {size:.1f} MiB, no pixels")
    if skipped:
        print(f"{len(skipped)} skipped", *map(one_line, skipped[:MAX_LISTED_FILES]), sep="\n  ")
        if len(skipped) > MAX_LISTED_FILES:
            print("  …")
    return exit_code.PASSED
