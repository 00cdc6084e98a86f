"""``xferbench audit``: test a finished checkpoint without training. Writes to the store and the report."""

from __future__ import annotations

import argparse
from pathlib import Path

from xferbench.analysis import exit_code
from xferbench.cli import options
from xferbench.cli.run import run_and_report
from xferbench.cli.validate import freeze_plan


def add_parser(subparsers: options.Subparsers) -> None:
    """Add the command and its options."""
    parser = options.add_command(subparsers, "audit", "test a finished checkpoint without training", run_command)
    parser.add_argument("suite", nargs="?", help="a suite file with [checkpoint]; or use the options below instead")
    _add_inputs(parser)
    for prefix, title in (("", "training, and of serving"), ("serve-", "serving, if it differs")):
        _add_preprocessing(parser, prefix, title)
    _add_text_serving(parser)
    _add_rules(parser)
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="folder for the report (default: reports/NAME)")
    options.add_computation(parser)
    options.add_engine(parser)
    options.add_allow_code(parser)
    plan_options = parser.add_mutually_exclusive_group()
    options.add_freeze(plan_options)
    options.add_plan(plan_options)
    text = "write a checkpoint with repaired BatchNorm statistics if the repair is confirmed"
    parser.add_argument("--repair", type=Path, metavar="OUT", help=text)
    parser.add_argument("--force", action="store_true", help="overwrite an existing plan or repaired checkpoint")
    options.add_fail_on(parser, default="inconclusive")
    options.add_format(parser)


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--arch", help="architecture of the weights (default: detected from their tensors)")
    parser.add_argument(
        "--after", type=Path, metavar="FILE", help="the finished weights, including the head, or a folder of transformers"
    )
    parser.add_argument("--before", type=Path, metavar="FILE", help="the weights that training started from")
    parser.add_argument("--data", metavar="DATA", help="labeled images or texts, such as folder:DIR, npz:FILE or csv:FILE")
    parser.add_argument("--source", metavar="DATA", help="the data that the network was pretrained on")
    text = "the network must keep its skill on the source, so that forgetting is judged"
    parser.add_argument("--keep-source", action="store_const", const=True, help=text)
    parser.add_argument("--shifted", metavar="DATA", help="images of the same classes under another condition")
    text = "fingerprints of a pretraining set (xferbench manifest)"
    parser.add_argument("--manifest", type=Path, metavar="FILE", help=text)
    text = "what training should have changed, such as trainable=head,batchnorm=eval"
    parser.add_argument("--believed", metavar="BELIEF", help=text)


def _add_preprocessing(parser: argparse.ArgumentParser, prefix: str, title: str) -> None:
    group = parser.add_argument_group(f"preprocessing of {title}")
    options.add_list(group, f"--{prefix}mean", float, metavar="X")
    options.add_list(group, f"--{prefix}std", float, metavar="X")
    group.add_argument(f"--{prefix}interpolation", choices=("bilinear", "bicubic", "nearest"))
    text = "crop size as a share of the shorter side"
    group.add_argument(f"--{prefix}crop-pct", type=options.positive_share, metavar="X", help=text)
    text = "side of the network's input in pixels"
    group.add_argument(f"--{prefix}img-size", type=options.positive_int, metavar="N", help=text)
    group.add_argument(f"--{prefix}channels", choices=("rgb", "bgr", "grey"))
    text = "upright: turn photographs as their EXIF orientation says"
    group.add_argument(f"--{prefix}orientation", choices=("auto", "stored", "upright"), help=text)
    text = "number of bits that 16-bit files use, from 8 to 16"
    group.add_argument(f"--{prefix}bits", type=options.positive_int, metavar="N", help=text)


def _add_text_serving(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("serving of texts, if it differs from the saved tokenizer")
    group.add_argument("--serve-lowercase", action=argparse.BooleanOptionalAction, help="lower case before tokenization")
    text = "largest number of tokens"
    group.add_argument("--serve-max-length", type=options.positive_int, metavar="N", help=text)
    group.add_argument("--serve-truncation", choices=("right", "left"), help="side on which a long text is cut")
    group.add_argument("--serve-padding", choices=("right", "left"), help="side of the padding")
    group.add_argument("--serve-special", choices=("single", "none", "twice"), help="special tokens around a text")
    group.add_argument("--serve-masked", action=argparse.BooleanOptionalAction, help="whether the attention mask hides padding")
    text = "padding tokens that a longer text in the same batch adds"
    group.add_argument("--serve-extra-padding", type=options.positive_int, metavar="N", help=text)


def _add_rules(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--serve-mode", choices=("eval", "train"), help="how the network is served (default: eval)")
    parser.add_argument("--metric", help="accuracy (default), balanced_accuracy, nll …")
    text = "smallest harm that matters, in the metric's unit (default: 0.02)"
    parser.add_argument("--margin", type=float, metavar="X", help=text)
    text = "allowed share of test examples that have a copy in training"
    parser.add_argument("--max-duplicates", type=float, metavar="SHARE", help=text)
    options.add_list(parser, "--checks", str, metavar="NAME", help="checks to run (default: all)")
    parser.add_argument("--limit", type=options.positive_int, metavar="N", help="use at most N test examples")
    text = "also train a from-scratch baseline for this time, such as 90s or 20m"
    parser.add_argument("--scratch", metavar="BUDGET", help=text)


def run_command(arguments: argparse.Namespace) -> int:
    """Audit a checkpoint, or freeze the plan of the audit, and return the exit code."""
    from xferbench.cli.audit_suite import audit_suite
    from xferbench.core.suite import replace_invocation

    suite = replace_invocation(audit_suite(arguments), allow_code=arguments.allow_code)
    if arguments.freeze is not None:
        freeze_plan(suite, arguments)
        return exit_code.PASSED
    return run_and_report(suite, arguments)
