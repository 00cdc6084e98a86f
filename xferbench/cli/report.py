"""``xferbench report``: write the report of a finished run again, or in another format. Reads and writes result files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from xferbench.analysis import exit_code
from xferbench.cli import options

if TYPE_CHECKING:
    import argparse

    from xferbench.core.run import Run


def add_parser(subparsers: options.Subparsers) -> None:
    """Add the command and its options."""
    parser = options.add_command(subparsers, "report", "write the report of a finished run again", run_command)
    parser.add_argument("directory", type=Path, metavar="DIR", help="folder with results.json, or a file in it")
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="output folder (default: the same folder)")
    text = "latex: a table of the findings; checklist: answers for a reproducibility checklist; printed without -o"
    parser.add_argument("--format", choices=("text", "latex", "checklist"), default="text", help=text)


def run_command(arguments: argparse.Namespace) -> int:
    """Write all files of a report again, or print or write one other format."""
    from xferbench.report import console, files
    from xferbench.runner import execute
    from xferbench.runner.run import save_report

    results = files.results_path(arguments.directory)
    run = files.read_run(results)
    if arguments.format == "text":
        save_report(run, arguments.output or results.parent, execute.store_path(None))
        console.print_run(run)
    else:
        _write_format(run, arguments.format, arguments.output)
    return exit_code.PASSED


def _write_format(run: Run, form: str, folder: Path | None) -> None:
    from xferbench.core import files
    from xferbench.report import checklist, latex

    tables = "matrix.tex" if run.matrix else "findings.tex"
    name, render = {"latex": (tables, latex.render), "checklist": ("checklist.md", checklist.render)}[form]
    if folder is None:
        print(render(run), end="")
        return
    files.require_writable(folder)
    files.write_file(folder / name, render(run).encode())
    print(f"wrote {folder / name}")
