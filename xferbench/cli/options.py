"""Options that several commands share, the types of their values, and the suite that they select. Reads suite files."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from xferbench.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from xferbench.core.suite import Suite

    Subparsers: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001 - argparse has no public name


NEGATIVE_NUMBERS = re.compile(r"-[.]?\d[\d.,eE+-]*$")  # argparse takes -1e-3 and -1,-1 for options


class ListAction(argparse.Action):
    """Collect values that are separated by commas, by spaces or by both; the constant of the action converts each of them."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Store the list of values."""
        del parser, option_string
        try:
            items = [self.const(text) for value in values for text in value.split(",") if text]
        except ValueError as error:
            raise argparse.ArgumentError(self, f"found {' '.join(values)!r}, expected numbers") from error
        if not items:
            raise argparse.ArgumentError(self, "expected at least one value")
        setattr(namespace, self.dest, items)


def add_list(parser: argparse._ActionsContainer, name: str, convert: Callable[[str], object], **options: Any) -> None:
    """Add an option with several values, separated by commas or spaces."""
    parser.add_argument(name, nargs="+", action=ListAction, const=convert, **options)


def add_command(
    subparsers: Subparsers, name: str, text: str, function: Callable[[argparse.Namespace], int]
) -> argparse.ArgumentParser:
    """Add a command with its help text and the function that runs it, and return its parser."""
    parser = subparsers.add_parser(name, help=text, description=text, allow_abbrev=False)
    parser.add_argument("--debug", action="store_true", help="show the full traceback of a crash")
    parser._negative_number_matcher = NEGATIVE_NUMBERS  # noqa: SLF001 - argparse has no public name for it
    parser.set_defaults(command=function, parser=parser)  # the parser suggests options for a misspelt one
    return parser


def add_computation(parser: argparse.ArgumentParser) -> None:
    """Add ``--store``, ``--device`` and ``--workers``."""
    text = "store of trial records (default: in the user's cache folder)"
    parser.add_argument("--store", type=Path, metavar="FILE", help=text)
    parser.add_argument("--device", choices=("auto", "cuda", "mps", "cpu"), default="auto")
    text = "number of parallel processes (default: one for each core)"
    parser.add_argument("-j", "--workers", type=positive_int, metavar="N", help=text)


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Add ``--engine``."""
    text = "where to compute: local (default), or python:module:factory, a function that returns a concurrent.futures.Executor"
    parser.add_argument("--engine", default="local", metavar="ENGINE", help=text)


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Add ``--seed``, ``--budget`` and ``--set``."""
    parser.add_argument("--seed", type=nonnegative_int, metavar="N", help="first judged seed; overrides the suite")
    parser.add_argument("--budget", metavar="TIME", help="computing time such as 90s, 20m or 2h; overrides the suite")
    add_set(parser)


def add_set(parser: argparse.ArgumentParser) -> None:
    """Add ``--set``."""
    text = "override a key of the suite, such as recipe.lr=1e-3; may be repeated; paths are relative to the suite file"
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=text)


def add_allow_code(parser: argparse.ArgumentParser) -> None:
    """Add ``--allow-code``, for commands that run the code."""
    text = "allow the suite to run user code (python:module:callable)"
    parser.add_argument("--allow-code", action="store_true", help=text)


def add_freeze(parser: argparse._ActionsContainer) -> None:
    """Add ``--freeze``."""
    text = "write the plan and its hash before any result is known, and run nothing"
    parser.add_argument("--freeze", type=Path, metavar="FILE", help=text)


def add_plan(parser: argparse._ActionsContainer) -> None:
    """Add ``--plan``."""
    text = "a frozen plan (--freeze); a suite that differs from it is refused"
    parser.add_argument("--plan", type=Path, metavar="FILE", help=text)


def add_fail_on(
    parser: argparse.ArgumentParser, default: str = "fail", text: str = "results that make the exit code nonzero"
) -> None:
    """Add ``--fail-on``."""
    parser.add_argument("--fail-on", choices=("fail", "inconclusive"), default=default, help=text)


def add_format(parser: argparse.ArgumentParser) -> None:
    """Add ``--format``, for commands that write results.json."""
    text = "json: print results.json to standard output"
    parser.add_argument("--format", choices=("text", "json"), default="text", help=text)


def positive_int(text: str) -> int:
    """Return a whole number above 0 from the command line."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number above 0")
    return int(text)


def nonnegative_int(text: str) -> int:
    """Return a whole number, 0 or above, from the command line."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number, 0 or above")
    return int(text)


def positive_share(text: str) -> float:
    """Return a share above 0 and at most 1 from the command line."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a share above 0 and at most 1, such as 0.875")
    return value


def load_suite(arguments: argparse.Namespace) -> Suite:
    """Return the suite that a command names, with ``--set``, ``--seed`` and ``--budget`` applied.

    Raises:
        UserError: if the suite is not valid, or if an option does not apply to it.
    """
    from xferbench.config import loader
    from xferbench.core.suite import replace_invocation, replace_rules

    suite = loader.load_suite(loader.find_suite(arguments.suite), arguments.set)
    suite = replace_invocation(suite, allow_code=arguments.allow_code)
    for name in ("seed", "budget"):
        if suite.is_audit and getattr(arguments, name) is not None:
            raise UserError(
                f"--{name} cannot be combined with [checkpoint]",
                found="a finished network",
                expected=f"no --{name}, because nothing is trained",
            )
    try:
        if (seed := arguments.seed) is not None:
            overrides = (*suite.invocation.overrides, f"seed={seed}")
            suite = loader.check_seed_range(replace_invocation(replace_rules(suite, seed=seed), overrides=overrides))
        if (budget := arguments.budget) is not None:
            overrides = (*suite.invocation.overrides, f"budget={budget}")
            suite = replace_invocation(replace_rules(suite, budget=loader.parse_duration(budget)), overrides=overrides)
    except UserError as problem:
        raise problem.at(f"--{problem.what}") from problem
    return suite


def reject_matrix(suite: Suite, arguments: argparse.Namespace, names: Sequence[str]) -> None:
    """Refuse options that apply only to a suite of one task.

    Raises:
        UserError: if the suite has a matrix and one of the options has a value.
    """
    for name in names if suite.matrix is not None else ():
        if getattr(arguments, name) is not None:
            from xferbench.runner.matrix import refuse_matrix

            refuse_matrix(suite, f"--{name}")
