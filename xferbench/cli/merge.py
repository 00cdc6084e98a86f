"""``xferbench merge``: merge the stores of several shards into one. Writes to that store."""

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
    parser = options.add_command(subparsers, "merge", "merge the stores of several shards", run_command)
    parser.add_argument("stores", type=Path, nargs="+", metavar="STORE", help="the store of a shard; it is only read")
    text = "store to merge into; its existing records are kept"
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", required=True, help=text)


def run_command(arguments: argparse.Namespace) -> int:
    """Merge the stores, and print what each of them added."""
    from xferbench.runner import store

    for path, count in store.merge_stores(arguments.output, arguments.stores):
        differing = (
            f", {count.differing} of them with other predictions or scalars (the first stays)" if count.differing else ""
        )
        damaged = f"; {count.damaged} are damaged and were left out" if count.damaged else ""
        print(f"{path}: {count.added} records added, {count.existing} existed already{differing}{damaged}", flush=True)
    print(f"next: xferbench run SUITE --store {shlex.quote(str(arguments.output))}")
    return exit_code.PASSED
