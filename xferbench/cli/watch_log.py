"""``xferbench watch-log``: find faults in the log of a training. Reads files, without torch."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from xferbench.analysis import exit_code
from xferbench.cli import options


def add_parser(subparsers: options.Subparsers) -> None:
    """Add the command and its options."""
    parser = options.add_command(subparsers, "watch-log", "find faults in the log of a training", run_command)
    text = "trainer_state.json of transformers, a folder of checkpoints, or a CSV file as Lightning writes it"
    parser.add_argument("log", type=Path, help=text)
    text = "number of classes (default: that of the config.json next to the log)"
    parser.add_argument("--classes", type=class_count, metavar="N", help=text)
    text = "share of the most frequent class in the evaluation set, such as 0.612"
    parser.add_argument("--majority", type=options.positive_share, metavar="SHARE", help=text)
    parser.add_argument("--format", choices=("text", "json"), default="text", help="json: print the report as JSON")


def class_count(text: str) -> int:
    """Return a number of classes from the command line."""
    if not text.isdecimal() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number, 2 or above")
    return int(text)


def run_command(arguments: argparse.Namespace) -> int:
    """Print what the log shows. A fault makes the exit code 1; a log without losses makes it 5."""
    from dataclasses import replace

    from xferbench.analysis import log_rules
    from xferbench.data import training_log
    from xferbench.report.training_log import format_report, report_to_json

    log = training_log.read_log(arguments.log)
    if arguments.classes is not None:
        log = replace(log, classes=arguments.classes)
    report = log_rules.examine(log, arguments.majority)
    print(json.dumps(report_to_json(report), indent=1) if arguments.format == "json" else format_report(report))
    if report.faults:
        return exit_code.FAILED
    return exit_code.PASSED if report.events or report.quiet else exit_code.NO_VERDICT
