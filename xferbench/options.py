"""The options of the command line: what each command may be given, and what it is for."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from xferbench import __version__
from xferbench.problem import nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


def parsed(whole: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; one that no command has ends the program as argparse does, with the option that was probably meant."""
    arguments, strange = whole.parse_known_args(argv)
    if strange:
        known = [word for word in arguments.parser._option_string_actions if word.startswith("--")]  # noqa: SLF001 - no other way
        word = strange[0].partition("=")[0]
        arguments.parser.error(f"unrecognized arguments: {' '.join(strange)}; {nearest(word, known)}")
    return arguments


def parser(carried_out: Mapping[str, Callable[[argparse.Namespace], int]]) -> argparse.ArgumentParser:
    """The whole surface of the command line, each command bound to a function; a test holds it still."""
    top = argparse.ArgumentParser(
        prog="xferbench",
        description="Find out how transfer learning fails in your pipeline, by experiment.",
        allow_abbrev=False,  # a shortened option would bind scripts to the options that there are today
    )
    top.add_argument("--version", action="version", version=f"xferbench {__version__}")
    commands = top.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        one.add_argument("--debug", action="store_true", help="show the whole traceback of a crash")
        one.set_defaults(command=carried_out[name], parser=one)  # which knows its options where one was misspelt
        return one

    _add_run(command("run", "carry out a suite and write its report"))
    _add_audit(command("audit", "examine a finished checkpoint, without training"))
    _add_gate(command("gate", "hold a suite against an accepted run, for continuous integration"))
    compare = command("compare", "hold one finished run against another, for people")
    compare.add_argument("first", type=Path, metavar="A", help="folder or results.json of a run, or an accepted file")
    compare.add_argument("second", type=Path, metavar="B", help="likewise, what is held against A")
    where = "folder of comparison.html (default: reports/compared)"
    compare.add_argument("-o", "--output", type=Path, metavar="DIR", default=Path("reports/compared"), help=where)
    ls = command("ls", "list plugins, suites, backbones, datasets and strategies")
    ls.add_argument("--format", choices=("text", "json"), default="text")
    ls.add_argument("-v", "--verbose", action="store_true", help="name the version, file and distribution of each plugin")
    explain = command("explain", "the manual page of a plugin")
    explain.add_argument("plugin")
    validate = command("validate", "check a suite file, without running it")
    validate.add_argument("suites", nargs="+", metavar="suite")
    validate.add_argument("--store", type=Path, metavar="FILE")
    _add_set(validate)
    validate.add_argument("--allow-code", action="store_true", help="accept a suite that runs code of its own; nothing is run")
    text = "look at no file that the suite names, where data and weights lie elsewhere"
    validate.add_argument("--no-files", action="store_true", help=text)
    _add_freeze(validate)
    validate.add_argument("--force", action="store_true", help="overwrite the plan where there is one")
    report = command("report", "write the report of a finished run again")
    report.add_argument("directory", type=Path, metavar="DIR", help="folder with results.json, or a file in it")
    report.add_argument("-o", "--output", type=Path, metavar="DIR", help="folder to write to (default: the same)")
    text = "latex: the findings as a table; checklist: answers for a reproducibility checklist; printed unless -o is given"
    report.add_argument("--format", choices=("text", "latex", "checklist"), default="text", help=text)
    init = command("init", "write a first suite file for a folder of images and a checkpoint")
    init.add_argument(
        "folder", type=Path, nargs="?", default=Path(), help="of images, or an npz file (default: the current one)"
    )
    init.add_argument("--weights", type=Path, metavar="FILE", help="pretrained weights (default: the shipped tiny-resnet's)")
    init.add_argument("--arch", help="what the weights were made with (default: guessed from their tensors)")
    init.add_argument("-o", "--output", type=Path, metavar="FILE", help="suite file to write (default: NAME.toml)")
    init.add_argument("--force", action="store_true", help="overwrite the file where there is one")
    _add_manifest(command("manifest", "write down a pretraining set as hashes and embeddings, without its images"))
    _add_merge(command("merge", "join the stores of several shards"))
    doctor = command("doctor", "check the installation; prints what to paste into a bug report")
    doctor.add_argument("--store", type=Path, metavar="FILE")
    doctor.add_argument("--format", choices=("text", "json"), default="text")
    return top


def _add_run(run: argparse.ArgumentParser) -> None:
    run.add_argument("suite", help="a suite file, or the name of a shipped one (quick)")
    run.add_argument("-o", "--output", type=Path, metavar="DIR", help="folder of the report (default: reports/NAME)")
    run.add_argument("--store", type=Path, metavar="FILE", help="file of records (default: in the user's cache directory)")
    run.add_argument("--device", choices=("auto", "cuda", "mps", "cpu"), default="auto")
    run.add_argument("-j", "--workers", type=_count, metavar="N", help="processes side by side (default: one a core)")
    run.add_argument("--seed", type=_whole, metavar="N", help="first judged seed, in the suite's place")
    run.add_argument("--budget", metavar="TIME", help="such as 90s, 20m or 2h, in the suite's place")
    _add_set(run)
    run.add_argument("--allow-code", action="store_true", help="let the suite run code of its own (python:module:callable)")
    _add_plan(run)
    run.add_argument("--dry-run", action="store_true", help="say what would be asked, and run nothing")
    _add_shard(run)
    run.add_argument("--fail-on", choices=("fail", "inconclusive"), default="fail", help="what makes the exit code not 0")
    run.add_argument("--format", choices=("text", "json"), default="text", help="json: standard output is results.json")


def _add_audit(audit: argparse.ArgumentParser) -> None:
    audit.add_argument("suite", nargs="?", help="a suite file with [checkpoint]; or the options below in its place")
    audit.add_argument("--arch", help="what the weights were made with (default: guessed from their tensors)")
    audit.add_argument("--after", type=Path, metavar="FILE", help="the finished weights, with their head")
    audit.add_argument("--before", type=Path, metavar="FILE", help="the weights that they were made from")
    audit.add_argument("--data", metavar="DATA", help="labelled images, such as folder:DIR or npz:FILE")
    audit.add_argument("--source", metavar="DATA", help="what the network was pretrained on")
    audit.add_argument("--shifted", metavar="DATA", help="the same classes under another condition")
    audit.add_argument("--manifest", type=Path, metavar="FILE", help="fingerprints of a pretraining set (xferbench manifest)")
    audit.add_argument("--believed", metavar="BELIEF", help="what was to be trained: trainable=head,batchnorm=eval")
    for prefix, whose in (("", "training"), ("serve-", "serving, where it differs")):
        group = audit.add_argument_group(f"preprocessing of {whose}")
        group.add_argument(f"--{prefix}mean", type=float, nargs="+", metavar="X")
        group.add_argument(f"--{prefix}std", type=float, nargs="+", metavar="X")
        group.add_argument(f"--{prefix}interpolation", choices=("bilinear", "bicubic", "nearest"))
        group.add_argument(f"--{prefix}crop-pct", type=_share, metavar="X", help="of the shorter side that the crop is")
        group.add_argument(f"--{prefix}img-size", type=_count, metavar="N", help="pixels a side of what the network is given")
        group.add_argument(f"--{prefix}channels", choices=("rgb", "bgr", "grey"))
    audit.add_argument("--serve-mode", choices=("eval", "train"), help="how the network is served (default: eval)")
    audit.add_argument("--metric", help="accuracy (default), balanced_accuracy, nll …")
    audit.add_argument("--margin", type=float, metavar="X", help="the harm that matters, in the metric's unit (default: 0.02)")
    audit.add_argument("--max-duplicates", type=float, metavar="SHARE", help="share of test images with a copy that is allowed")
    audit.add_argument("--checks", metavar="NAMES", help="which checks, with commas between them (default: all)")
    audit.add_argument("--limit", type=_count, metavar="N", help="look at no more test images than this")
    audit.add_argument("--scratch", metavar="BUDGET", help="train a from-scratch baseline too, for so long: 90s, 20m")
    audit.add_argument("-o", "--output", type=Path, metavar="DIR", help="folder of the report (default: reports/NAME)")
    audit.add_argument("--store", type=Path, metavar="FILE", help="file of records (default: in the user's cache directory)")
    audit.add_argument("--device", choices=("auto", "cuda", "mps", "cpu"), default="auto")
    audit.add_argument("-j", "--workers", type=_count, metavar="N", help="processes side by side (default: one a core)")
    audit.add_argument("--allow-code", action="store_true", help="let the suite run code of its own (python:module:callable)")
    either = audit.add_mutually_exclusive_group()
    _add_freeze(either)
    _add_plan(either)
    audit.add_argument("--repair", type=Path, metavar="OUT", help="write repaired BatchNorm statistics there, where confirmed")
    audit.add_argument("--force", action="store_true", help="overwrite the plan, or the repair, where there is one")
    audit.add_argument(
        "--fail-on", choices=("fail", "inconclusive"), default="inconclusive", help="what makes the exit code not 0"
    )
    audit.add_argument("--format", choices=("text", "json"), default="text", help="json: standard output is results.json")


def _add_gate(gate: argparse.ArgumentParser) -> None:
    gate.add_argument("suite", help="a suite file, or the name of a shipped one")
    text = "what was accepted: a file of --accept, or results.json with predictions.npz beside it"
    gate.add_argument("--baseline", type=Path, metavar="FILE", help=text)
    gate.add_argument("--candidate", type=Path, metavar="FILE", help="results of this suite made elsewhere; needs no PyTorch")
    gate.add_argument("--accept", type=Path, metavar="FILE", help="write this run as the accepted one; the exit code is then 0")
    gate.add_argument("-o", "--output", type=Path, metavar="DIR", help="folder of the report (default: reports/NAME-gate)")
    gate.add_argument("--store", type=Path, metavar="FILE", help="file of records (default: in the user's cache directory)")
    gate.add_argument("--device", choices=("auto", "cuda", "mps", "cpu"), default="auto")
    gate.add_argument("-j", "--workers", type=_count, metavar="N", help="processes side by side (default: one a core)")
    gate.add_argument("--seed", type=_whole, metavar="N", help="first judged seed, in the suite's place")
    gate.add_argument("--budget", metavar="TIME", help="such as 90s, 20m or 2h, in the suite's place")
    _add_set(gate)
    gate.add_argument("--allow-code", action="store_true", help="let the suite run code of its own (python:module:callable)")
    what = "what makes the exit code not 0 beside what is worse and what crashed"
    gate.add_argument("--fail-on", choices=("fail", "inconclusive"), default="fail", help=what)
    gate.add_argument("--format", choices=("text", "json"), default="text", help="json: standard output is results.json")


def _add_manifest(manifest: argparse.ArgumentParser) -> None:
    manifest.add_argument(
        "data",
        help="a dataset as in a suite file (folder:DIR, npz:FILE, ...), its training images; a folder may be of images only",
    )
    manifest.add_argument("-o", "--output", type=Path, metavar="FILE", required=True, help="manifest to write, an npz file")
    manifest.add_argument("--force", action="store_true", help="overwrite the file where there is one")


def _add_merge(merge: argparse.ArgumentParser) -> None:
    merge.add_argument("stores", type=Path, nargs="+", metavar="STORE", help="what a shard wrote; it is only read")
    text = "store to join them into; what is in it already stays"
    merge.add_argument("-o", "--output", type=Path, metavar="FILE", required=True, help=text)


def _add_shard(run: argparse.ArgumentParser) -> None:
    text = "compute only this share of the plan into --store, of N that xferbench merge joins; no report is written"
    run.add_argument("--shard", type=_shard, metavar="I/N", help=text)


def _add_freeze(command: argparse._ActionsContainer) -> None:
    text = "write the plan and its hash before anything is looked at, and run nothing"
    command.add_argument("--freeze", type=Path, metavar="FILE", help=text)


def _add_plan(command: argparse._ActionsContainer) -> None:
    command.add_argument("--plan", type=Path, metavar="FILE", help="a frozen plan (--freeze); what differs from it is refused")


def _add_set(command: argparse.ArgumentParser) -> None:
    text = "a key in the suite's place, such as recipe.lr=1e-3; may be given again; paths are relative to the suite file"
    command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=text)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number above 0")
    return int(text)


def _shard(text: str) -> tuple[int, int]:
    number, slash, of = text.partition("/")
    if not (slash and number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected I/N with I from 1 to N, such as 2/4")
    return int(number), int(of)


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
