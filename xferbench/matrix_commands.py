"""The commands as far as they are about a suite with [matrix]."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from xferbench import gate
from xferbench.core import files
from xferbench.problem import Problem

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from xferbench.design import Suite


def run(asked: Suite, arguments: argparse.Namespace, while_read: Callable[[], AbstractContextManager[None]]) -> int:
    """Carry one out, or foretell it; ``while_read`` is there while somebody reads standard output."""
    from xferbench import execute, matrix
    from xferbench.report import console, crossed

    for option, given in (("--shard", arguments.shard), ("--plan", arguments.plan)):
        if given is not None:
            raise Problem(
                f"{option} of a suite with [matrix]", expected="a suite of one task", do="give its tasks suites of their own"
            )
    place = execute.with_store(arguments.store)
    if arguments.dry_run:
        told = matrix.forecast(asked, path=place, device=arguments.device, workers=arguments.workers)
        print(json.dumps(told, indent=1) if arguments.format == "json" else crossed.foretold(asked, told))
        return gate.PASSED
    output = arguments.output or Path("reports") / asked.name
    with console.live() as show:
        table = matrix.run(
            asked,
            output=output,
            path=place,
            device=arguments.device,
            workers=arguments.workers,
            show=show,
            command=arguments.words,
        )
    with while_read():
        print((output / "results.json").read_text(encoding="utf-8") if arguments.format == "json" else crossed.summary(table))
        print(f"report: {output / 'report.html'}", file=sys.stderr if arguments.format == "json" else sys.stdout)
    return gate.of_table(table, fail_on=arguments.fail_on)


def validate(asked: Suite, path: Path, arguments: argparse.Namespace) -> None:
    """Check one, and what it names, without running it."""
    from dataclasses import replace

    from xferbench import discover, execute

    assert asked.matrix is not None, "only a suite with a matrix is checked so"
    if arguments.freeze is not None:
        raise Problem(
            "--freeze of a suite with [matrix]", expected="a suite of one task", do="give its tasks suites of their own"
        )
    discover.of(asked)
    for task in () if arguments.no_files else asked.matrix.tasks:
        execute.known(replace(task, allow_code=asked.allow_code), execute.with_store(arguments.store))
    many = len(asked.matrix.effects)
    claims = f", {many} claim{'s' * (many != 1)}" if many else ""
    names = [task.name for task in asked.matrix.tasks]
    recipes, tasks = (
        f"{len(own)} {what}{'s' * (len(own) != 1)}" for own, what in ((asked.matrix.compared, "recipe"), (names, "task"))
    )
    print(f"{path}: a valid suite: {recipes} on {tasks} ({', '.join(names)}){claims}")


def report(results: Path, arguments: argparse.Namespace) -> int:
    """Write the report of a finished one again, or print it in another form."""
    from xferbench.report import checklist_matrix, crossed, crossed_files, latex_matrix

    table = crossed_files.read(results)
    if arguments.format == "latex":
        frame, metric = table.to_frame(), str(table.suite["metric"])
        told = latex_matrix.scores(frame, table.skipped, metric) + "\n" + latex_matrix.costs(frame, metric)
        return printed(told, arguments.output, "matrix.tex")
    if arguments.format == "checklist":
        return printed(checklist_matrix.render(table), arguments.output, "checklist.md")
    crossed_files.write_all(table, arguments.output or results.parent)
    print(crossed.summary(table))
    return gate.PASSED


def printed(told: str, folder: Path | None, name: str) -> int:
    """Print a rendering, or write it into a folder."""
    if folder is None:
        print(told, end="")
        return gate.PASSED
    files.require_writable(folder)
    files.write_file(folder / name, told.encode())
    print(f"wrote {folder / name}")
    return gate.PASSED
