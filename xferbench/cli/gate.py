"""``xferbench gate``: compare a suite with an accepted run, for continuous integration. Trains, and writes files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from xferbench.analysis import exit_code
from xferbench.cli import options
from xferbench.cli.exit_status import tolerate_broken_pipe
from xferbench.cli.run import print_result
from xferbench.core.errors import UserError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence


def add_parser(subparsers: options.Subparsers) -> None:
    """Add the command and its options."""
    text = "compare a suite with an accepted run, for continuous integration"
    parser = options.add_command(subparsers, "gate", text, run_command)
    parser.add_argument("suite", help="a suite file, or the name of a shipped one")
    text = "the accepted run: a file written by --accept, or results.json with predictions.npz in the same folder"
    parser.add_argument("--baseline", type=Path, metavar="FILE", help=text)
    text = "results of this suite from another machine; needs no PyTorch"
    parser.add_argument("--candidate", type=Path, metavar="FILE", help=text)
    text = "write this run as the accepted run; the exit code is then 0"
    parser.add_argument("--accept", type=Path, metavar="FILE", help=text)
    text = "folder for the report (default: reports/NAME-gate)"
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help=text)
    options.add_computation(parser)
    options.add_overrides(parser)
    options.add_allow_code(parser)
    options.add_fail_on(parser, text="results that make the exit code nonzero, besides worse and crashed ones")
    options.add_format(parser)


def run_command(arguments: argparse.Namespace) -> int:
    """Run a suite or read a finished run, compare it with the accepted one, and return the exit code."""
    from xferbench.report import console
    from xferbench.runner import gate as runner

    if arguments.baseline is None and arguments.accept is None:
        raise UserError(
            "a gate needs a baseline",
            expected="--baseline FILE, an accepted run",
            do="accept a run first: xferbench gate SUITE --accept accepted.json; or only run the suite: xferbench run SUITE",
        )
    if arguments.candidate is not None:
        _reject_run_options(arguments, ("store", "device", "workers", "seed", "budget", "allow_code"))
    suite = options.load_suite(arguments)
    output = arguments.output or Path("reports") / f"{suite.name}-gate"
    with console.live_display() as show:
        run = runner.run_gate(
            suite,
            baseline=arguments.baseline,
            candidate=arguments.candidate,
            accept=arguments.accept,
            output=output,
            store=arguments.store,
            device=arguments.device,
            workers=arguments.workers,
            on_progress=show,
            command=arguments.command_line,
        )
    with tolerate_broken_pipe():
        print_result(run, output, arguments.format)
    if arguments.accept is None:
        return exit_code.exit_code(run.findings, fail_on=arguments.fail_on, comparison=run.gate)
    if runner.is_acceptable(run):
        print(f"accepted: {arguments.accept}", file=sys.stderr if arguments.format == "json" else sys.stdout)
        return exit_code.PASSED
    code = exit_code.exit_code(run.findings)
    reason = "no plugin gave a verdict" if code == exit_code.NO_VERDICT else "something crashed"
    print(f"not accepted, and {arguments.accept} was not written: {reason}", file=sys.stderr)
    return code


def _reject_run_options(arguments: argparse.Namespace, names: Sequence[str]) -> None:
    """Refuse options for running a suite together with a finished run."""
    for name in names:
        if getattr(arguments, name) != arguments.parser.get_default(name):
            raise UserError(
                f"--{name.replace('_', '-')} cannot be combined with --candidate",
                found="a finished run",
                expected="no options for running a suite",
            )
