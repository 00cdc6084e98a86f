"""The entry point of the command line: parse the arguments, run one command, return its exit code.

Each command is a module with ``add_parser`` and ``run_command``. They are all imported at the start, so they import heavy
modules inside functions only.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import traceback
from io import TextIOWrapper
from typing import TYPE_CHECKING

from xferbench.analysis import exit_code
from xferbench.cli import audit, compare, doctor, explain, gate, init, ls, manifest, merge, report, run, validate, watch_log
from xferbench.cli.exit_status import discard_output, exit_status, interrupt_on_termination, tolerate_broken_pipe
from xferbench.core.errors import suggest
from xferbench.core.guarded_output import guard_output
from xferbench.core.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

COMMANDS = (
    run,
    audit,
    gate,
    compare,
    watch_log,
    ls,
    explain,
    validate,
    report,
    init,
    manifest,
    merge,
    doctor,
)  # in the order of --help


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without − or × must not cause a crash
    with guard_output():
        return _run(argv)


def _run(argv: Sequence[str] | None) -> int:
    arguments = parse_arguments(argv)
    arguments.command_line = shlex.join(["xferbench", *(sys.argv[1:] if argv is None else argv)])
    code = exit_code.PASSED
    try:
        with interrupt_on_termination(), tolerate_broken_pipe():
            code = int(arguments.command(arguments))
    except BaseException as error:  # noqa: BLE001 - every error becomes one message and an exit code
        if arguments.debug:
            traceback.print_exc()
        code, message = exit_status(error, arguments.command_line)
        print(f"xferbench: {message}", file=sys.stderr)
        if isinstance(error, OSError):  # Python would write the rest of the output again at exit, and change the code
            discard_output()
    return code


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the arguments; an unknown option ends the program as argparse does, and the error suggests the closest one."""
    arguments, unknown = build_parser().parse_known_args(argv)
    if unknown:
        known = [name for name in arguments.parser._option_string_actions if name.startswith("--")]  # noqa: SLF001 - argparse has no public list
        option = unknown[0].partition("=")[0]
        arguments.parser.error(f"unrecognized arguments: {' '.join(unknown)}; {suggest(option, known)}")
    return arguments


class CommandHelp(argparse.HelpFormatter):
    """Help whose first column fits the longest command, which argparse measures without its indentation."""

    def add_argument(self, action: argparse.Action) -> None:
        """Measure the names of an action."""
        super().add_argument(action)
        if isinstance(action.choices, dict):
            longest = max(map(len, action.choices), default=0)
            self._action_max_length = max(self._action_max_length, longest + 2 * self._indent_increment)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line; a test pins its surface."""
    parser = argparse.ArgumentParser(
        prog="xferbench",
        description="Find out by experiment how transfer learning fails in your pipeline.",
        formatter_class=CommandHelp,
        allow_abbrev=False,  # an abbreviation may become ambiguous with a new option
    )
    parser.add_argument("--version", action="version", version=f"xferbench {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(subparsers)
    return parser
