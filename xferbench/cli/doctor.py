"""``xferbench doctor``: check the installation, and print what a bug report needs. Reads files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from xferbench.analysis import exit_code
from xferbench.cli import options

if TYPE_CHECKING:
    import argparse


def add_parser(subparsers: options.Subparsers) -> None:
    """Add the command and its options."""
    text = "check the installation, and print what a bug report needs"
    parser = options.add_command(subparsers, "doctor", text, run_command)
    parser.add_argument("--store", type=Path, metavar="FILE")
    parser.add_argument("--format", choices=("text", "json"), default="text")


def run_command(arguments: argparse.Namespace) -> int:
    """Print each check as soon as it is done, or all of them as JSON; a failed check makes the exit code nonzero."""
    from dataclasses import asdict

    from xferbench.cli import installation_checks
    from xferbench.runner import execute

    checks = []
    for check in installation_checks.run_checks(execute.store_path(arguments.store)):
        checks.append(check)
        if arguments.format == "text":
            advice = f"\n{'':<19}do: {check.do}" if check.do else ""
            print(f"{check.state:<4}  {check.check:<12} {check.found}{advice}", flush=True)
    if arguments.format == "json":
        print(json.dumps([asdict(check) for check in checks], indent=1))
    has_failed = any(check.state == installation_checks.FAIL for check in checks)
    return exit_code.USAGE_ERROR if has_failed else exit_code.PASSED
