"""``xferbench run``: run a suite, or a shard of it, and write its report. Trains, and writes to the store and the report."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from xferbench.analysis import exit_code
from xferbench.cli import options
from xferbench.cli.exit_status import tolerate_broken_pipe
from xferbench.core.errors import UserError

if TYPE_CHECKING:
    from xferbench.core.run import Run
    from xferbench.core.suite import Suite


def add_parser(subparsers: options.Subparsers) -> None:
    """Add the command and its options."""
    parser = options.add_command(subparsers, "run", "run a suite and write its report", run_command)
    parser.add_argument("suite", help="a suite file, or the name of a shipped one (quick)")
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="folder for the report (default: reports/NAME)")
    options.add_computation(parser)
    options.add_engine(parser)
    options.add_overrides(parser)
    options.add_allow_code(parser)
    options.add_plan(parser)
    parser.add_argument("--dry-run", action="store_true", help="show what would be computed, and run nothing")
    text = "compute only share I of N into --store, without a report; xferbench merge joins the shares"
    parser.add_argument("--shard", type=_shard, metavar="I/N", help=text)
    options.add_fail_on(parser)
    options.add_format(parser)


def _shard(text: str) -> tuple[int, int]:
    number, separator, count = text.partition("/")
    if not (separator and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected I/N with I from 1 to N, such as 2/4")
    return int(number), int(count)


def run_command(arguments: argparse.Namespace) -> int:
    """Run a suite or a shard of it, or forecast its cost, and return the exit code."""
    suite = options.load_suite(arguments)
    options.reject_matrix(suite, arguments, ("shard", "plan"))
    if arguments.shard is not None:
        return _run_shard(suite, arguments)
    if not arguments.dry_run:
        return run_and_report(suite, arguments)
    if arguments.plan is not None:
        from xferbench.runner import input_digests

        input_digests.verify_inputs(suite, Path(), arguments.plan)
    return _forecast(suite, arguments)


def _run_shard(suite: Suite, arguments: argparse.Namespace) -> int:
    from xferbench.report import console
    from xferbench.runner import shard

    whole_run_options = {
        "--output": arguments.output is not None,
        "--format json": arguments.format == "json",
        "--fail-on inconclusive": arguments.fail_on == "inconclusive",
        "--dry-run": arguments.dry_run,
        "--engine": arguments.engine != "local",
    }
    if found := [option for option, is_set in whole_run_options.items() if is_set]:
        raise UserError(
            "--shard cannot be combined with options for the whole run",
            found=", ".join(found),
            expected="no report and no forecast, because a shard decides nothing and sees only its share of the current stage",
            do="use them in the run without --shard, on the merged store",
        )
    if arguments.store is None:
        raise UserError("--shard needs --store", do="give each shard a store of its own: --store FILE")
    number, count = arguments.shard
    with console.live_display() as show:
        result = shard.run_shard(
            suite,
            shard.Shard(number=number, count=count),
            path=arguments.store,
            device=arguments.device,
            workers=arguments.workers,
            on_progress=show,
            plan=arguments.plan,
        )
    print(shard.describe_shard(result))
    return exit_code.CRASHED if result.crashed else exit_code.PASSED


def run_and_report(suite: Suite, arguments: argparse.Namespace) -> int:
    """Run a suite, write and print its report, and return the exit code."""
    from xferbench.report import console
    from xferbench.runner import run as runner

    output = arguments.output or Path("reports") / suite.name
    with console.live_display() as show:
        run = runner.run(
            suite,
            output=output,
            store=arguments.store,
            device=arguments.device,
            workers=arguments.workers,
            engine=arguments.engine,
            on_progress=show,
            plan=arguments.plan,
            repaired=getattr(arguments, "repair", None),
            force=getattr(arguments, "force", False),
            command=arguments.command_line,
        )
    with tolerate_broken_pipe():
        print_result(run, output, arguments.format)
    return exit_code.exit_code(run.findings, fail_on=arguments.fail_on, matrix=run.matrix)


def print_result(run: Run, output: Path, form: str) -> None:
    """Print a run as text or as the JSON of its results file, and the path of its report."""
    from xferbench.report import console

    if form == "json":
        print((output / "results.json").read_text(encoding="utf-8"))
    else:
        console.print_run(run)
    notice_stream = sys.stderr if form == "json" else sys.stdout
    if repair_message := (run.provenance.evidence.get("repair") or {}).get("said"):
        print(repair_message, file=notice_stream)
    print(f"report: {output / 'report.html'}", file=notice_stream)


def _forecast(suite: Suite, arguments: argparse.Namespace) -> int:
    from dataclasses import asdict

    from xferbench.cli import forecast_text
    from xferbench.core.record import json_values
    from xferbench.runner import execute
    from xferbench.runner.matrix import forecast_matrix

    path, device, workers = execute.store_path(arguments.store), arguments.device, arguments.workers
    if suite.matrix is not None:
        forecasts = forecast_matrix(suite, path=path, device=device, workers=workers)
        counts = {task: {**forecast.last, "seconds": forecast.seconds[1]} for task, forecast in forecasts.items()}
        if arguments.format == "json":
            print(json.dumps(counts, indent=1))
        else:
            forecast_text.print_matrix_forecast(suite, counts)
        return exit_code.PASSED
    forecast = execute.forecast(suite, path=path, device=device, workers=workers)
    if arguments.format == "json":
        print(json.dumps(json_values(asdict(forecast)), indent=1))
    else:
        forecast_text.print_forecast(suite, forecast)
    return exit_code.PASSED
