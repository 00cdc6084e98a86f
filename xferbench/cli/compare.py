"""``xferbench compare``: compare two finished runs, for readers. Writes comparison.html."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from xferbench.analysis import exit_code
from xferbench.cli import options
from xferbench.cli.exit_status import tolerate_broken_pipe
from xferbench.core import files

if TYPE_CHECKING:
    import argparse


def add_parser(subparsers: options.Subparsers) -> None:
    """Add the command and its options."""
    parser = options.add_command(subparsers, "compare", "compare two finished runs, for readers", run_command)
    text = "folder or results.json of a run, or a file written by --accept"
    parser.add_argument("first", type=Path, metavar="A", help=text)
    parser.add_argument("second", type=Path, metavar="B", help="the same; the run to compare with A")
    text = "folder for comparison.html (default: reports/compared)"
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", default=Path("reports/compared"), help=text)


def run_command(arguments: argparse.Namespace) -> int:
    """Compare two runs, print the comparison and write its page."""
    from xferbench.report import comparison, console
    from xferbench.runner import gate as runner

    run = runner.compare_files(arguments.first, arguments.second)
    files.require_writable(arguments.output)
    page = arguments.output / "comparison.html"
    files.write_file(page, comparison.render(run, file=str(arguments.second)).encode())
    with tolerate_broken_pipe():
        if run.gate is not None:
            console.print_comparison(run.gate)
        print(f"picture: {page}")
    return exit_code.PASSED
