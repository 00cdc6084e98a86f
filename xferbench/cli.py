"""The command line. Whatever is heavy is imported by the command that needs it."""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING

from xferbench import __version__, gate
from xferbench.problem import Problem, nearest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from xferbench.design import Suite
    from xferbench.forecast import Forecast
    from xferbench.record import Run


LEFT_OUT = 10  # files that are named


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code of the contract."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that has no − or × is no reason to crash
    arguments = parser().parse_args(argv)
    code = gate.PASSED
    try:
        with _while_read():
            code = int(arguments.command(arguments))
    except BaseException as error:  # noqa: BLE001 - the last line of defence: one message, and the contract's exit code
        if arguments.debug:
            traceback.print_exc()
        code, message = _ended(error)
        print(f"xferbench: {message}", file=sys.stderr)
        if isinstance(error, OSError):  # what could not be written would be tried again at the end, and change the code
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def _ended(error: BaseException) -> tuple[int, object]:
    """The exit code of what ended a command, and what is told of it."""
    if isinstance(error, Problem):
        return gate.USAGE, error
    if isinstance(error, KeyboardInterrupt):
        return gate.INTERRUPTED, "interrupted; what was finished is kept, and the same command goes on from there"
    if isinstance(error, OSError):
        do = "free some space, check the path and its permissions"
        return gate.USAGE, Problem("a file could not be read or written", found=str(error), do=do)
    last = (str(error).strip().splitlines() or [""])[-1]  # what a worker process tells is its whole traceback
    do = "run it again with --debug and report what it prints; what was finished is kept"
    return gate.CRASHED, Problem(f"crashed: {type(error).__name__}: {last}", do=do)


@contextmanager
def _while_read() -> Iterator[None]:
    """Whoever reads standard output may leave in the middle of it; that changes no exit code."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parser() -> argparse.ArgumentParser:
    """The whole surface of the command line; a test holds it still."""
    top = argparse.ArgumentParser(
        prog="xferbench",
        description="Find out how transfer learning fails in your pipeline, by experiment.",
        allow_abbrev=False,  # a shortened option would bind scripts to the options that there are today
    )
    top.add_argument("--version", action="version", version=f"xferbench {__version__}")
    commands = top.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, function: object, text: str) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        one.add_argument("--debug", action="store_true", help="show the whole traceback of a crash")
        one.set_defaults(command=function)
        return one

    run = command("run", _run, "carry out a suite and write its report")
    run.add_argument("suite", help="a suite file, or the name of a shipped one (quick)")
    run.add_argument("-o", "--output", type=Path, metavar="DIR", help="folder of the report (default: reports/NAME)")
    run.add_argument("--store", type=Path, metavar="FILE", help="file of records (default: in the user's cache directory)")
    run.add_argument("--device", choices=("auto", "cuda", "mps", "cpu"), default="auto")
    run.add_argument("-j", "--workers", type=_count, metavar="N", help="processes side by side (default: one a core)")
    run.add_argument("--seed", type=_whole, metavar="N", help="first judged seed, in the suite's place")
    run.add_argument("--budget", metavar="TIME", help="such as 90s, 20m or 2h, in the suite's place")
    _add_set(run)
    run.add_argument("--allow-code", action="store_true", help="let the suite run code of its own (python:module:callable)")
    run.add_argument("--dry-run", action="store_true", help="say what would be asked, and run nothing")
    run.add_argument("--fail-on", choices=("fail", "inconclusive"), default="fail", help="what makes the exit code not 0")
    run.add_argument("--format", choices=("text", "json"), default="text", help="json: standard output is results.json")
    _add_audit(command("audit", _audit, "examine a finished checkpoint, without training"))
    ls = command("ls", _ls, "list plugins, suites, backbones, datasets and strategies")
    ls.add_argument("--format", choices=("text", "json"), default="text")
    explain = command("explain", _explain, "the manual page of a plugin")
    explain.add_argument("plugin")
    validate = command("validate", _validate, "check a suite file, without running it")
    validate.add_argument("suite")
    validate.add_argument("--store", type=Path, metavar="FILE")
    _add_set(validate)
    validate.add_argument("--allow-code", action="store_true", help="accept a suite that runs code of its own; nothing is run")
    report = command("report", _report, "write the report of a finished run again")
    report.add_argument("directory", type=Path, metavar="DIR", help="folder with results.json, or a file in it")
    report.add_argument("-o", "--output", type=Path, metavar="DIR", help="folder to write to (default: the same)")
    init = command("init", _init, "write a first suite file for a folder of images and a checkpoint")
    init.add_argument(
        "folder", type=Path, nargs="?", default=Path(), help="of images, or an npz file (default: the current one)"
    )
    init.add_argument("--weights", type=Path, metavar="FILE", help="pretrained weights (default: the shipped tiny-resnet's)")
    init.add_argument("--arch", help="what the weights were made with (default: guessed from their tensors)")
    init.add_argument("-o", "--output", type=Path, metavar="FILE", help="suite file to write (default: NAME.toml)")
    init.add_argument("--force", action="store_true", help="overwrite the file where there is one")
    manifest = command("manifest", _manifest, "write down a pretraining set as hashes and embeddings, without its images")
    manifest.add_argument(
        "data", help="a dataset as in a suite file (folder:DIR, npz:FILE, ...); a folder may be of images only"
    )
    manifest.add_argument("-o", "--output", type=Path, metavar="FILE", required=True, help="manifest to write, an npz file")
    manifest.add_argument("--force", action="store_true", help="overwrite the file where there is one")
    doctor = command("doctor", _doctor, "check the installation; prints what to paste into a bug report")
    doctor.add_argument("--store", type=Path, metavar="FILE")
    doctor.add_argument("--format", choices=("text", "json"), default="text")
    return top


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
    audit.add_argument(
        "--fail-on", choices=("fail", "inconclusive"), default="inconclusive", help="what makes the exit code not 0"
    )
    audit.add_argument("--format", choices=("text", "json"), default="text", help="json: standard output is results.json")


def _add_set(command: argparse.ArgumentParser) -> None:
    text = "a key in the suite's place, such as recipe.lr=1e-3; may be given again; paths are relative to the suite file"
    command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=text)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number above 0")
    return int(text)


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


def _suite(arguments: argparse.Namespace) -> Suite:
    from dataclasses import replace

    from xferbench import suite

    asked = replace(suite.load(suite.find(arguments.suite), arguments.set), allow_code=arguments.allow_code)
    try:
        if (seed := arguments.seed) is not None:
            asked = suite.apart(replace(asked, seed=seed, overrides=(*asked.overrides, f"seed={seed}")))
        if (budget := arguments.budget) is not None:
            asked = replace(asked, budget=suite.duration(budget), overrides=(*asked.overrides, f"budget={budget}"))
    except Problem as problem:
        raise problem.at(f"--{problem.what}") from problem
    return asked


def _run(arguments: argparse.Namespace) -> int:
    from xferbench import finish
    from xferbench.report import console

    asked = _suite(arguments)
    if arguments.dry_run:
        return _dry_run(asked, arguments)
    output = arguments.output or Path("reports") / asked.name
    with console.live() as show:
        run = finish.run(
            asked, output=output, store=arguments.store, device=arguments.device, workers=arguments.workers, show=show
        )
    with _while_read():
        _told(run, output, arguments.format)
    return gate.exit_code(run.findings, fail_on=arguments.fail_on)


def _audit(arguments: argparse.Namespace) -> int:
    from dataclasses import replace

    from xferbench import audit, finish
    from xferbench.report import console

    asked = replace(audit.suite(arguments), allow_code=arguments.allow_code)
    output = arguments.output or Path("reports") / asked.name
    with console.live() as show:
        run = finish.run(
            asked, output=output, store=arguments.store, device=arguments.device, workers=arguments.workers, show=show
        )
    with _while_read():
        _told(run, output, arguments.format)
    return gate.exit_code(run.findings, fail_on=arguments.fail_on)


def _told(run: Run, output: Path, form: str) -> None:
    from xferbench.report import console

    if form == "json":
        print((output / "results.json").read_text(encoding="utf-8"))
    else:
        console.tell(run)
    print(f"report: {output / 'report.html'}", file=sys.stderr if form == "json" else sys.stdout)


def _dry_run(asked: Suite, arguments: argparse.Namespace) -> int:
    from xferbench import execute

    found = execute.forecast(
        asked, path=execute.with_store(arguments.store), device=arguments.device, workers=arguments.workers
    )
    if arguments.format == "json":
        from dataclasses import asdict

        from xferbench.record import plain

        print(json.dumps(plain(asdict(found)), indent=1))
    else:
        _show_forecast(asked, found)
    return 0


def _show_forecast(asked: Suite, found: Forecast) -> None:
    print(f"suite {asked.name}: {asked.metric}, margin {asked.margin:g}, looks at {', '.join(map(str, asked.looks))} seeds")
    for plugin, arms in found.arms.items():
        print(f"\n{plugin}")
        for name, text in arms.items():
            print(f"  {name:<28} {text}")
    for plugin, reason in found.skipped.items():
        print(f"\n{plugin}: not asked, {reason}")
    print(f"\n{'':<22} first look  last look")
    for name in found.first:
        print(f"{name:<22} {found.first[name]:>10} {found.last[name]:>10}")
    print(f"{'minutes to compute':<22} {found.seconds[0] / 60:>10.1f} {found.seconds[1] / 60:>10.1f}")
    _show_margin(asked, found.smallest_margin)


def _show_margin(asked: Suite, smallest: float | None) -> None:
    if smallest is None:
        print(f"which margin this test set can decide is not known beforehand for {asked.metric}")
        return
    print(f"smallest margin that this test set can decide with {asked.looks[-1]} seeds: about {smallest:.3f}", end="")
    print(f" (the suite's: {asked.margin:g})" + ("; expect INCONCLUSIVE" if smallest > asked.margin else ""))


def _ls(arguments: argparse.Namespace) -> int:
    from xferbench import discover, suite
    from xferbench.strategies import STRATEGIES

    told = {
        "plugins": {plugin.id: plugin.question for plugin in discover.plugins(["all"])},
        "checks": {check.id: check.question for check in discover.plugins(["all"], discover.CHECKS)},
        "suites": {name: str(suite.folder() / f"{name}.toml") for name in suite.shipped()},
        "backbones": {
            "torchvision:NAME": "any classifier",
            "timm:NAME": "any classifier (pip install 'xferbench[timm]')",
            "python:MODULE:CALLABLE": "your own, callable(classes) -> network (--allow-code)",
            "cifar-resnet20/32/44/56": "He et al., option A",
            "tiny-resnet": "0.1 M, shipped",
        },
        "datasets": {
            "folder:DIR": "train/ and val/ or test/ of class folders, or metadata.csv (file_name, label, split, group)",
            "npz:FILE": "train_images, train_labels, test_images, test_labels (and train_groups, test_groups)",
            "torchvision:NAME:DIR": "a dataset of torchvision's that lies in a folder, such as CIFAR10",
            "synthetic:NAME": "source, near, tinted, sketch, spectra",
            "digits": "scikit-learn's handwriting",
        },
        "strategies": {name: (function.__doc__ or "").partition("\n")[0] for name, function in STRATEGIES.items()},
    }
    if arguments.format == "json":
        print(json.dumps(told, indent=1))
        return 0
    for kind, entries in told.items():
        print(kind)
        for name, text in entries.items():
            print(f"  {name:<26} {text}")
    return 0


def _explain(arguments: argparse.Namespace) -> int:
    from xferbench import discover

    name = arguments.plugin.removeprefix(discover.OF_AUDIT)
    known = {group: discover.names(group) for group in (discover.GROUP, discover.CHECKS)}
    if not any(name in names for names in known.values()):
        raise Problem(f"no plugin {name!r}", expected=nearest(name, sorted({*known[discover.GROUP], *known[discover.CHECKS]})))
    pages = []
    for group, names in known.items():
        if name in names and (found := discover.plugins([name], group)[0]) not in pages:
            pages.append(found)
    for number, one in enumerate(pages):
        head = ("\n\nOf a finished checkpoint (xferbench audit):\n\n" if number else "") + f"{one.id} (version {one.version})"
        print(f"{head}\n{one.question}\n\n{one.page.strip()}")
    return 0


def _validate(arguments: argparse.Namespace) -> int:
    from dataclasses import replace

    from xferbench import discover, execute, suite
    from xferbench.forecast import smallest_margin

    path = suite.find(arguments.suite)
    asked = replace(suite.load(path, arguments.set), allow_code=arguments.allow_code)
    facts = execute.known(asked, execute.with_store(arguments.store))
    print(
        f"{path}: a valid suite" + (" with " if asked.overrides else "") + " ".join(f"--set {word}" for word in asked.overrides)
    )
    examples = (facts.test_groups or facts.test) if facts else asked.test_size
    if examples:
        _show_margin(asked, smallest_margin(asked, examples, discover.of(asked)))
    else:
        print("the size of the test set is not known yet: `xferbench run --dry-run` says what it can decide")
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from xferbench import discover, execute, store
    from xferbench.report import console, write

    results = write.results(arguments.directory)
    run = write.read(results)
    wanted = {finding.plugin for finding in run.findings} & set(discover.names())
    plugins = {plugin.id: plugin for plugin in discover.plugins(sorted(wanted))}
    drawn = store.cache(execute.with_store(None)) / "figures"
    write.write(run, arguments.output or results.parent, plugins, drawn)
    console.tell(run)
    return 0


def _init(arguments: argparse.Namespace) -> int:
    import shlex

    from xferbench import init

    seen, weights = init.look(arguments.folder), arguments.weights
    file = init.write(seen, arguments.arch or init.arch(weights), weights, arguments.output, force=arguments.force)
    name = shlex.quote(str(file) if str(file)[0] != "-" else f"./{file}")
    print(f"wrote {file}\nnext: xferbench validate {name}\n      xferbench run {name} --dry-run")
    return 0


def _manifest(arguments: argparse.Namespace) -> int:
    from xferbench.lab import manifest
    from xferbench.report.text import line

    manifest.check(arguments.output, force=arguments.force)
    made, left_out = manifest.make(arguments.data, lambda count: print(f"{count} images", file=sys.stderr))
    manifest.write(made, arguments.output, force=arguments.force)
    size = arguments.output.stat().st_size / 2**20
    print(f"wrote {line(arguments.output)}: {len(made.prints)} images of {line(made.name)}, {size:.1f} MiB, no pixels")
    if left_out:
        print(f"{len(left_out)} left out", *map(line, left_out[:LEFT_OUT]), *["…"] * (len(left_out) > LEFT_OUT), sep="\n  ")
    return gate.PASSED


def _doctor(arguments: argparse.Namespace) -> int:
    from dataclasses import asdict

    from xferbench import doctor, execute

    told = []
    for line in doctor.lines(execute.with_store(arguments.store)):
        told.append(line)
        if arguments.format == "text":
            print(
                f"{line.state:<4}  {line.check:<12} {line.found}" + (f"\n{'':<19}do: {line.do}" if line.do else ""), flush=True
            )
    if arguments.format == "json":
        print(json.dumps([asdict(line) for line in told], indent=1))
    return gate.USAGE if any(line.state == doctor.FAIL for line in told) else gate.PASSED
