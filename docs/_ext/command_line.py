"""The argument parser of the installed ``xferbench`` command, for the docs and their tests.

It runs ``--help`` in this process and keeps the parser that answers, so it needs no name from inside the package.
"""

from __future__ import annotations

import argparse
import io
from contextlib import redirect_stdout, suppress
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def command() -> Callable[[Sequence[str]], int]:
    """Load the function behind the console script."""
    (script,) = entry_points(group="console_scripts", name="xferbench")
    function: Callable[[Sequence[str]], int] = script.load()
    return function


def output(*words: str) -> str:
    """Run one command in this process and return what it prints on standard output.

    Raises:
        RuntimeError: if its exit code is not 0.
    """
    text = io.StringIO()
    with redirect_stdout(text):
        code = command()(words)
    if code:
        raise RuntimeError(f"xferbench {' '.join(words)}: exit code {code}")
    return text.getvalue()


def parser() -> argparse.ArgumentParser:
    """Return the top-level parser, with all its sub-commands."""
    seen: list[argparse.ArgumentParser] = []
    original = argparse.ArgumentParser.parse_known_args

    def recorded(self, *arguments, **options):
        seen.append(self)
        return original(self, *arguments, **options)

    argparse.ArgumentParser.parse_known_args = recorded
    try:
        with redirect_stdout(io.StringIO()), suppress(SystemExit):
            command()(["--help"])
    finally:
        argparse.ArgumentParser.parse_known_args = original
    return seen[0]


def subparsers(top: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return each sub-command with its parser, in the order of ``--help``."""
    actions = (action for action in top._actions if isinstance(action, argparse._SubParsersAction))  # noqa: SLF001 - no public way
    return {name: parser for action in actions for name, parser in action.choices.items()}
