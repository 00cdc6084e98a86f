"""The command-line options of every command, with their help texts. Pure."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from xferbench.core.errors import suggest
from xferbench.core.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


def parse_arguments(top: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the arguments; an unknown option ends the program as argparse does, and the error suggests the closest one."""
    arguments, unknown = top.parse_known_args(argv)
    if unknown:
        known = [name for name in arguments.parser._option_string_actions if name.startswith("--")]  # noqa: SLF001 - argparse has no public list
        option = unknown[0].partition("=")[0]
        arguments.parser.error(f"unrecognized arguments: {' '.join(unknown)}; {suggest(option, known)}")
    return arguments


def build_parser(functions: Mapping[str, Callable[[argparse.Namespace], int]]) -> argparse.ArgumentParser:
    """Return the parser of the whole command line, with each command bound to a function; a test pins its surface."""
    top = argparse.ArgumentParser(
        prog="xferbench",
        description="Find out by experiment how transfer learning fails in your pipeline.",
        allow_abbrev=False,  # an abbreviation may become ambiguous with a new option
    )
    top.add_argument("--version", action="version", version=f"xferbench {__version__}")
    commands = top.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        subparser = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        subparser.add_argument("--debug", action="store_true", help="show the full traceback of a crash")
        subparser.set_defaults(command=functions[name], parser=subparser)  # the parser suggests options for a misspelt one
        return subparser

    _add_run(command("run", "run a suite and write its report"))
    _add_audit(command("audit", "test a finished checkpoint without training"))
    _add_gate(command("gate", "compare a suite with an accepted run, for continuous integration"))
    compare = command("compare", "compare two finished runs, for readers")
    compare.add_argument("first", type=Path, metavar="A", help="folder or results.json of a run, or a file written by --accept")
    compare.add_argument("second", type=Path, metavar="B", help="the same; the run to compare with A")
    where = "folder for comparison.html (default: reports/compared)"
    compare.add_argument("-o", "--output", type=Path, metavar="DIR", default=Path("reports/compared"), help=where)
    ls = command("ls", "list plugins, suites, backbones, datasets and strategies")
    ls.add_argument("--format", choices=("text", "json"), default="text")
    ls.add_argument("-v", "--verbose", action="store_true", help="name the version, file and distribution of each plugin")
    explain = command("explain", "show the manual page of a plugin")
    explain.add_argument("plugin")
    validate = command("validate", "check a suite file without running it")
    validate.add_argument("suites", nargs="+", metavar="suite")
    validate.add_argument("--store", type=Path, metavar="FILE")
    _add_set(validate)
    validate.add_argument(
        "--allow-code", action="store_true", help="accept a suite that contains user code; the code is not run"
    )
    text = "do not check files that the suite names, for example if data and weights are on another machine"
    validate.add_argument("--no-files", action="store_true", help=text)
    _add_freeze(validate)
    validate.add_argument("--force", action="store_true", help="overwrite an existing plan")
    report = command("report", "write the report of a finished run again")
    report.add_argument("directory", type=Path, metavar="DIR", help="folder with results.json, or a file in it")
    report.add_argument("-o", "--output", type=Path, metavar="DIR", help="output folder (default: the same folder)")
    text = "latex: a table of the findings; checklist: answers for a reproducibility checklist; printed without -o"
    report.add_argument("--format", choices=("text", "latex", "checklist"), default="text", help=text)
    init = command("init", "write a first suite file for a folder of images and a checkpoint")
    init.add_argument(
        "folder", type=Path, nargs="?", default=Path(), help="folder of images, or an npz file (default: the current folder)"
    )
    init.add_argument(
        "--weights", type=Path, metavar="FILE", help="pretrained weights (default: those of the shipped tiny-resnet)"
    )
    init.add_argument("--arch", help="architecture of the weights (default: detected from their tensors)")
    init.add_argument("-o", "--output", type=Path, metavar="FILE", help="suite file to write (default: NAME.toml)")
    init.add_argument("--force", action="store_true", help="overwrite an existing file")
    _add_manifest(command("manifest", "write a pretraining set as hashes and embeddings, without its images"))
    _add_merge(command("merge", "merge the stores of several shards"))
    doctor = command("doctor", "check the installation, and print what a bug report needs")
    doctor.add_argument("--store", type=Path, metavar="FILE")
    doctor.add_argument("--format", choices=("text", "json"), default="text")
    return top


def _add_run(run: argparse.ArgumentParser) -> None:
    run.add_argument("suite", help="a suite file, or the name of a shipped one (quick)")
    run.add_argument("-o", "--output", type=Path, metavar="DIR", help="folder for the report (default: reports/NAME)")
    run.add_argument("--store", type=Path, metavar="FILE", help="store of trial records (default: in the user's cache folder)")
    run.add_argument("--device", choices=("auto", "cuda", "mps", "cpu"), default="auto")
    run.add_argument(
        "-j", "--workers", type=_count, metavar="N", help="number of parallel processes (default: one for each core)"
    )
    run.add_argument("--seed", type=_whole, metavar="N", help="first judged seed; overrides the suite")
    run.add_argument("--budget", metavar="TIME", help="computing time such as 90s, 20m or 2h; overrides the suite")
    _add_set(run)
    run.add_argument("--allow-code", action="store_true", help="allow the suite to run user code (python:module:callable)")
    _add_plan(run)
    run.add_argument("--dry-run", action="store_true", help="show what would be computed, and run nothing")
    _add_shard(run)
    run.add_argument(
        "--fail-on", choices=("fail", "inconclusive"), default="fail", help="results that make the exit code nonzero"
    )
    run.add_argument("--format", choices=("text", "json"), default="text", help="json: print results.json to standard output")


def _add_audit(audit: argparse.ArgumentParser) -> None:
    audit.add_argument("suite", nargs="?", help="a suite file with [checkpoint]; or use the options below instead")
    audit.add_argument("--arch", help="architecture of the weights (default: detected from their tensors)")
    audit.add_argument("--after", type=Path, metavar="FILE", help="the finished weights, including the head")
    audit.add_argument("--before", type=Path, metavar="FILE", help="the weights that training started from")
    audit.add_argument("--data", metavar="DATA", help="labeled images, such as folder:DIR or npz:FILE")
    audit.add_argument("--source", metavar="DATA", help="the data that the network was pretrained on")
    audit.add_argument("--shifted", metavar="DATA", help="images of the same classes under another condition")
    audit.add_argument("--manifest", type=Path, metavar="FILE", help="fingerprints of a pretraining set (xferbench manifest)")
    audit.add_argument(
        "--believed", metavar="BELIEF", help="what training should have changed, such as trainable=head,batchnorm=eval"
    )
    for prefix, whose in (("", "training"), ("serve-", "serving, if it differs")):
        group = audit.add_argument_group(f"preprocessing of {whose}")
        group.add_argument(f"--{prefix}mean", type=float, nargs="+", metavar="X")
        group.add_argument(f"--{prefix}std", type=float, nargs="+", metavar="X")
        group.add_argument(f"--{prefix}interpolation", choices=("bilinear", "bicubic", "nearest"))
        group.add_argument(f"--{prefix}crop-pct", type=_share, metavar="X", help="crop size as a share of the shorter side")
        group.add_argument(f"--{prefix}img-size", type=_count, metavar="N", help="side of the network's input in pixels")
        group.add_argument(f"--{prefix}channels", choices=("rgb", "bgr", "grey"))
    audit.add_argument("--serve-mode", choices=("eval", "train"), help="how the network is served (default: eval)")
    audit.add_argument("--metric", help="accuracy (default), balanced_accuracy, nll …")
    audit.add_argument(
        "--margin", type=float, metavar="X", help="smallest harm that matters, in the metric's unit (default: 0.02)"
    )
    audit.add_argument(
        "--max-duplicates", type=float, metavar="SHARE", help="allowed share of test images that have a copy in training"
    )
    audit.add_argument("--checks", metavar="NAMES", help="checks to run, separated by commas (default: all)")
    audit.add_argument("--limit", type=_count, metavar="N", help="use at most N test images")
    audit.add_argument(
        "--scratch", metavar="BUDGET", help="also train a from-scratch baseline for this time, such as 90s or 20m"
    )
    audit.add_argument("-o", "--output", type=Path, metavar="DIR", help="folder for the report (default: reports/NAME)")
    audit.add_argument(
        "--store", type=Path, metavar="FILE", help="store of trial records (default: in the user's cache folder)"
    )
    audit.add_argument("--device", choices=("auto", "cuda", "mps", "cpu"), default="auto")
    audit.add_argument(
        "-j", "--workers", type=_count, metavar="N", help="number of parallel processes (default: one for each core)"
    )
    audit.add_argument("--allow-code", action="store_true", help="allow the suite to run user code (python:module:callable)")
    either = audit.add_mutually_exclusive_group()
    _add_freeze(either)
    _add_plan(either)
    audit.add_argument(
        "--repair",
        type=Path,
        metavar="OUT",
        help="write a checkpoint with repaired BatchNorm statistics if the repair is confirmed",
    )
    audit.add_argument("--force", action="store_true", help="overwrite an existing plan or repaired checkpoint")
    audit.add_argument(
        "--fail-on", choices=("fail", "inconclusive"), default="inconclusive", help="results that make the exit code nonzero"
    )
    audit.add_argument("--format", choices=("text", "json"), default="text", help="json: print results.json to standard output")


def _add_gate(gate: argparse.ArgumentParser) -> None:
    gate.add_argument("suite", help="a suite file, or the name of a shipped one")
    text = "the accepted run: a file written by --accept, or results.json with predictions.npz in the same folder"
    gate.add_argument("--baseline", type=Path, metavar="FILE", help=text)
    gate.add_argument(
        "--candidate", type=Path, metavar="FILE", help="results of this suite from another machine; needs no PyTorch"
    )
    gate.add_argument("--accept", type=Path, metavar="FILE", help="write this run as the accepted run; the exit code is then 0")
    gate.add_argument("-o", "--output", type=Path, metavar="DIR", help="folder for the report (default: reports/NAME-gate)")
    gate.add_argument("--store", type=Path, metavar="FILE", help="store of trial records (default: in the user's cache folder)")
    gate.add_argument("--device", choices=("auto", "cuda", "mps", "cpu"), default="auto")
    gate.add_argument(
        "-j", "--workers", type=_count, metavar="N", help="number of parallel processes (default: one for each core)"
    )
    gate.add_argument("--seed", type=_whole, metavar="N", help="first judged seed; overrides the suite")
    gate.add_argument("--budget", metavar="TIME", help="computing time such as 90s, 20m or 2h; overrides the suite")
    _add_set(gate)
    gate.add_argument("--allow-code", action="store_true", help="allow the suite to run user code (python:module:callable)")
    what = "results that make the exit code nonzero, besides worse and crashed ones"
    gate.add_argument("--fail-on", choices=("fail", "inconclusive"), default="fail", help=what)
    gate.add_argument("--format", choices=("text", "json"), default="text", help="json: print results.json to standard output")


def _add_manifest(manifest: argparse.ArgumentParser) -> None:
    manifest.add_argument(
        "data",
        help="a dataset as in a suite file (folder:DIR, npz:FILE, ...), or a folder of images only",
    )
    manifest.add_argument("-o", "--output", type=Path, metavar="FILE", required=True, help="manifest to write (npz)")
    manifest.add_argument("--force", action="store_true", help="overwrite an existing file")


def _add_merge(merge: argparse.ArgumentParser) -> None:
    merge.add_argument("stores", type=Path, nargs="+", metavar="STORE", help="the store of a shard; it is only read")
    text = "store to merge into; its existing records are kept"
    merge.add_argument("-o", "--output", type=Path, metavar="FILE", required=True, help=text)


def _add_shard(run: argparse.ArgumentParser) -> None:
    text = "compute only share I of N into --store, without a report; xferbench merge joins the shares"
    run.add_argument("--shard", type=_shard, metavar="I/N", help=text)


def _add_freeze(command: argparse._ActionsContainer) -> None:
    text = "write the plan and its hash before any result is known, and run nothing"
    command.add_argument("--freeze", type=Path, metavar="FILE", help=text)


def _add_plan(command: argparse._ActionsContainer) -> None:
    command.add_argument(
        "--plan", type=Path, metavar="FILE", help="a frozen plan (--freeze); a suite that differs from it is refused"
    )


def _add_set(command: argparse.ArgumentParser) -> None:
    text = "override a key of the suite, such as recipe.lr=1e-3; may be repeated; paths are relative to the suite file"
    command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=text)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number above 0")
    return int(text)


def _shard(text: str) -> tuple[int, int]:
    number, separator, count = text.partition("/")
    if not (separator and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected I/N with I from 1 to N, such as 2/4")
    return int(number), int(count)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a share above 0 and at most 1, such as 0.875")
    return value


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number, 0 or above")
    return int(text)
