"""The command line. Whatever is heavy is imported by the command that needs it."""

from __future__ import annotations

import json
import os
import shlex
import sys
import traceback
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING

from xferbench.analysis import exit_code
from xferbench.cli.options import build_parser, parse_arguments
from xferbench.core import files
from xferbench.core.errors import UserError, suggest

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping, Sequence

    from xferbench.core.plugin import Plugin
    from xferbench.core.run import Run
    from xferbench.core.suite import Matrix, Suite
    from xferbench.study.forecast import Forecast


MAX_LISTED_FILES = 10  # files that are named


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code of the contract."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that has no − or × is no reason to crash
    arguments = parse_arguments(parser(), argv)
    arguments.words = shlex.join(["xferbench", *(sys.argv[1:] if argv is None else argv)])
    code = exit_code.PASSED
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
    if isinstance(error, UserError):
        return exit_code.USAGE, error
    if isinstance(error, KeyboardInterrupt):
        return exit_code.INTERRUPTED, "interrupted; what was finished is kept, and the same command goes on from there"
    if isinstance(error, OSError):
        do = "free some space, check the path and its permissions"
        return exit_code.USAGE, UserError("a file could not be read or written", found=str(error), do=do)
    last = (str(error).strip().splitlines() or [""])[-1]  # what a worker process tells is its whole traceback
    do = "run it again with --debug and report what it prints; what was finished is kept"
    return exit_code.CRASHED, UserError(f"crashed: {type(error).__name__}: {last}", do=do)


@contextmanager
def _while_read() -> Iterator[None]:
    """Whoever reads standard output may leave in the middle of it; that changes no exit code."""
    try:
        yield
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit) as error:
        if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):  # which rich makes of one
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parser() -> argparse.ArgumentParser:
    """The whole surface of the command line, each command with the function that carries it out."""
    return build_parser(
        {
            "run": _run,
            "audit": _audit,
            "gate": _gate,
            "compare": _compare,
            "ls": _ls,
            "explain": _explain,
            "validate": _validate,
            "report": _report,
            "init": _init,
            "manifest": _manifest,
            "merge": _merge,
            "doctor": _doctor,
        }
    )


def _suite(arguments: argparse.Namespace) -> Suite:
    from dataclasses import replace

    from xferbench.config import loader

    asked = replace(loader.load_suite(loader.find_suite(arguments.suite), arguments.set), allow_code=arguments.allow_code)
    for name in ("seed", "budget"):
        if asked.after and getattr(arguments, name) is not None:
            raise UserError(
                f"--{name} beside [checkpoint]", found="a finished network", expected=f"no --{name}: nothing is trained"
            )
    try:
        if (seed := arguments.seed) is not None:
            asked = loader.check_seed_range(replace(asked, seed=seed, overrides=(*asked.overrides, f"seed={seed}")))
        if (budget := arguments.budget) is not None:
            asked = replace(asked, budget=loader.parse_duration(budget), overrides=(*asked.overrides, f"budget={budget}"))
    except UserError as problem:
        raise problem.at(f"--{problem.what}") from problem
    return asked


def _run(arguments: argparse.Namespace) -> int:
    asked = _suite(arguments)
    _refuse_matrix(asked, arguments, ("shard", "plan"))
    if arguments.shard is not None:
        return _sharded(asked, arguments)
    if arguments.dry_run:
        if arguments.plan is not None:
            from xferbench.runner import input_digests

            input_digests.verify_inputs(asked, Path(), arguments.plan)
        return _dry_run(asked, arguments)
    return _carried_out(asked, arguments)


def _refuse_matrix(asked: Suite, arguments: argparse.Namespace, names: Sequence[str]) -> None:
    """Refuse options that work on a suite of one task only."""
    for name in names if asked.matrix is not None else ():
        if getattr(arguments, name) is not None:
            from xferbench.runner.matrix import refuse_matrix

            refuse_matrix(asked, f"--{name}")


def _sharded(asked: Suite, arguments: argparse.Namespace) -> int:
    from xferbench.report import console
    from xferbench.runner import shard

    meaningless = {
        "--output": arguments.output is not None,
        "--format json": arguments.format == "json",
        "--fail-on inconclusive": arguments.fail_on == "inconclusive",
        "--dry-run": arguments.dry_run,
    }
    if found := [word for word, is_given in meaningless.items() if is_given]:
        expected = "neither report nor forecast: a shard judges nothing, and knows its share of the present stage alone"
        do = "give them to the run without --shard, on the merged store"
        raise UserError("--shard with options that are about the whole run", found=", ".join(found), expected=expected, do=do)
    if arguments.store is None:
        raise UserError("--shard without --store", do="give each shard a store of its own: --store FILE")
    number, of = arguments.shard
    with console.live_display() as show:
        told = shard.run_shard(
            asked,
            shard.Shard(number=number, of=of),
            path=arguments.store,
            device=arguments.device,
            workers=arguments.workers,
            show=show,
            plan=arguments.plan,
        )
    print(shard.describe_shard(told))
    return exit_code.CRASHED if told.crashed else exit_code.PASSED


def _carried_out(asked: Suite, arguments: argparse.Namespace) -> int:
    from xferbench.report import console
    from xferbench.runner import run as runner

    output = arguments.output or Path("reports") / asked.name
    with console.live_display() as show:
        run = runner.run(
            asked,
            output=output,
            store=arguments.store,
            device=arguments.device,
            workers=arguments.workers,
            show=show,
            plan=arguments.plan,
            repaired=getattr(arguments, "repair", None),
            force=getattr(arguments, "force", False),
            command=arguments.words,
        )
    with _while_read():
        _told(run, output, arguments.format)
    return exit_code.exit_code(run.findings, fail_on=arguments.fail_on, matrix=run.matrix)


def _audit(arguments: argparse.Namespace) -> int:
    from dataclasses import replace

    from xferbench.cli import audit as audit_module

    asked = replace(audit_module.audit_suite(arguments), allow_code=arguments.allow_code)
    if arguments.freeze is not None:
        _freeze(asked, arguments)
        return exit_code.PASSED
    return _carried_out(asked, arguments)


def _gate(arguments: argparse.Namespace) -> int:
    from xferbench.report import console
    from xferbench.runner import gate as runner

    if arguments.baseline is None and arguments.accept is None:
        raise UserError(
            "a gate without a baseline",
            expected="--baseline FILE, an accepted run",
            do="accept a run first: xferbench gate SUITE --accept accepted.json; or carry the suite out: xferbench run SUITE",
        )
    if arguments.candidate is not None:
        _unheard(arguments, ("store", "device", "workers", "seed", "budget", "allow_code"))
    asked = _suite(arguments)
    output = arguments.output or Path("reports") / f"{asked.name}-gate"
    with console.live_display() as show:
        run = runner.run_gate(
            asked,
            baseline=arguments.baseline,
            candidate=arguments.candidate,
            accept=arguments.accept,
            output=output,
            store=arguments.store,
            device=arguments.device,
            workers=arguments.workers,
            show=show,
            command=arguments.words,
        )
    with _while_read():
        _told(run, output, arguments.format)
    if arguments.accept is None:
        return exit_code.exit_code(run.findings, fail_on=arguments.fail_on, held=run.gate)
    if runner.is_acceptable(run):
        print(f"accepted: {arguments.accept}", file=sys.stderr if arguments.format == "json" else sys.stdout)
        return exit_code.PASSED
    code = exit_code.exit_code(run.findings)
    why = "nothing was judged" if code == exit_code.NOTHING else "something crashed"
    print(f"not accepted, and {arguments.accept} not written: {why}", file=sys.stderr)
    return code


def _unheard(arguments: argparse.Namespace, names: Sequence[str]) -> None:
    """Refuse options of carrying a suite out beside a run that is finished."""
    given = [name for name in names if getattr(arguments, name) != arguments.parser.get_default(name)]
    if given:
        option = f"--{given[0].replace('_', '-')}"
        raise UserError(f"{option} beside --candidate", found="a finished run", expected="nothing to be carried out")


def _compare(arguments: argparse.Namespace) -> int:
    from xferbench.report import comparison, console
    from xferbench.runner import gate as runner

    run = runner.compare_files(arguments.first, arguments.second)
    files.require_writable(arguments.output)
    page = arguments.output / "comparison.html"
    files.write_file(page, comparison.render(run, file=str(arguments.second)).encode())
    with _while_read():
        if run.gate is not None:
            console.print_comparison(run.gate)
        print(f"picture: {page}")
    return exit_code.PASSED


def _freeze(asked: Suite, arguments: argparse.Namespace) -> None:
    from xferbench.runner import discovery, input_digests, preregistration
    from xferbench.runner.run import utc_now

    plugins = discovery.suite_plugins(asked)
    preregistration.refuse_overwrite(arguments.freeze, force=arguments.force)  # before gigabytes are read
    inputs = input_digests.input_digests(asked)
    text = preregistration.plan_to_json(asked, inputs, plugins, utc_now())
    preregistration.write_plan(arguments.freeze, text, force=arguments.force)
    verb = "audit" if asked.after else "run"
    print(f"frozen: {arguments.freeze}, plan {json.loads(text)['hash']}\nnext: xferbench {verb} … --plan {arguments.freeze}")


def _told(run: Run, output: Path, form: str) -> None:
    from xferbench.report import console

    if form == "json":
        print((output / "results.json").read_text(encoding="utf-8"))
    else:
        console.print_run(run)
    if said := (run.evidence.get("repair") or {}).get("said"):
        print(said, file=sys.stderr if form == "json" else sys.stdout)
    print(f"report: {output / 'report.html'}", file=sys.stderr if form == "json" else sys.stdout)


def _dry_run(asked: Suite, arguments: argparse.Namespace) -> int:
    from dataclasses import asdict

    from xferbench.core.record import json_values
    from xferbench.runner import execute
    from xferbench.runner.matrix import forecast_matrix

    options = {"path": execute.store_path(arguments.store), "device": arguments.device, "workers": arguments.workers}
    if asked.matrix is not None:
        of_tasks = forecast_matrix(asked, **options)
        counts = {task: {**found.last, "seconds": found.seconds[1]} for task, found in of_tasks.items()}
        if arguments.format == "json":
            print(json.dumps(counts, indent=1))
        else:
            _show_matrix_forecast(asked, counts)
        return exit_code.PASSED
    found = execute.forecast(asked, **options)
    if arguments.format == "json":
        print(json.dumps(json_values(asdict(found)), indent=1))
    else:
        _show_forecast(asked, found)
    return exit_code.PASSED


def _show_matrix_forecast(asked: Suite, counts: Mapping[str, Mapping[str, float]]) -> None:
    """Print the work of each task at its last look, and the minutes."""
    recipes = len(asked.matrix.compared) if asked.matrix else 0
    names = dict.fromkeys(name for of_task in counts.values() for name in of_task if name != "seconds")
    print(f"suite {asked.name}: {recipes} recipes on {len(counts)} tasks, {asked.looks[0]} seeds each")
    width = max(map(len, names), default=0) + 2
    print("".join([f"{'':<24}", *(f"{name:>{width}}" for name in names), f"{'minutes':>10}"]))
    for task, of_task in counts.items():
        minutes = f"{of_task['seconds'] / 60:>10.1f}"
        print("".join([f"{task:<24}", *(f"{of_task.get(name, 0):>{width}.0f}" for name in names), minutes]))
    total = sum(of_task["seconds"] for of_task in counts.values()) / 60
    print(f"minutes in all: {total:.1f}, counted task by task as if they shared nothing")


def _show_forecast(asked: Suite, found: Forecast) -> None:
    looks = "one finished network" if asked.after else f"looks at {', '.join(map(str, asked.looks))} seeds"
    print(f"suite {asked.name}: {asked.metric}, margin {asked.margin:g}, {looks}")
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
    seeds = "" if asked.after else f" with {asked.looks[-1]} seeds"
    print(f"smallest margin that this test set can decide{seeds}: about {smallest:.3f}", end="")
    print(f" (the suite's: {asked.margin:g})" + ("; expect INCONCLUSIVE" if smallest > asked.margin else ""))


def _ls(arguments: argparse.Namespace) -> int:
    from xferbench.config import loader
    from xferbench.config.interventions import kinds
    from xferbench.core.interventions import DataIntervention, format_spelling
    from xferbench.core.strategies import STRATEGIES
    from xferbench.runner import discovery

    installed = {"plugins": discovery.load_plugins(["all"]), "checks": discovery.load_plugins(["all"], "audit")}
    told = {
        **{kind: {plugin.id: plugin.question for plugin in plugins} for kind, plugins in installed.items()},
        "suites": {name: str(loader.shipped_folder() / f"{name}.toml") for name in loader.shipped_suites()},
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
        "interventions": {format_spelling(kind): (kind.__doc__ or "").partition("\n")[0] for kind in kinds(DataIntervention)},
        "strategies": {name: (function.__doc__ or "").partition("\n")[0] for name, function in STRATEGIES.items()},
    }
    origins = _origins(installed) if arguments.verbose else {}
    if arguments.format == "json":
        print(json.dumps(told | ({"origins": origins} if origins else {}), indent=1))
        return 0
    for kind, entries in told.items():
        print(kind)
        for name, text in entries.items():
            print(f"  {name:<26} {text}")
            if name in origins.get(kind, {}):
                print(f"  {'':<26} {_origin(origins[kind][name])}")
    return 0


def _origins(installed: Mapping[str, Sequence[Plugin]]) -> dict[str, dict[str, dict[str, str]]]:
    """For each plugin of each kind: its version, its distribution, its file, and the digest of a third party's source."""
    from xferbench.runner import discovery

    return {kind: {plugin.id: discovery.describe_origin(plugin) for plugin in plugins} for kind, plugins in installed.items()}


def _origin(origin: Mapping[str, str]) -> str:
    from xferbench.report.format import one_line

    version = f"version {origin['version']}" if origin["version"] else ""
    source = f"source {origin['source'][:16]}" if origin["source"] else ""
    return one_line(", ".join(filter(None, (version, origin["distribution"], origin["file"], source))))


def _explain(arguments: argparse.Namespace) -> int:
    from xferbench.runner import discovery

    name = arguments.plugin.removeprefix("audit/")
    if name not in discovery.plugin_names():
        raise UserError(f"no plugin {name!r}", expected=suggest(name, discovery.plugin_names()))
    by_kind = discovery.plugin_kinds(name)
    experiment, audit = by_kind.get("experiment"), by_kind.get("audit")
    if experiment is not None:
        print(_page(experiment))
    if audit is not None and audit != experiment:
        print(("\n\nOf a finished checkpoint (xferbench audit):\n\n" if experiment else "") + _page(audit))
    return 0


def _page(plugin: Plugin) -> str:
    return f"{plugin.id} (version {plugin.version})\n{plugin.question}\n\n{plugin.doc.strip()}"


def _validate(arguments: argparse.Namespace) -> int:
    if arguments.freeze is not None and len(arguments.suites) > 1:
        found = f"{len(arguments.suites)} suites"
        raise UserError("--freeze: a plan is that of one suite", found=found, expected="one", do="freeze each by itself")
    code = exit_code.PASSED
    for word in arguments.suites:
        try:
            _validated(word, arguments)
        except UserError as problem:  # the others are checked all the same
            if arguments.debug:
                traceback.print_exc()
            code, message = _ended(problem)
            print(f"xferbench: {message}", file=sys.stderr)
    return code


def _validated(word: str, arguments: argparse.Namespace) -> None:
    from dataclasses import replace

    from xferbench.config import loader
    from xferbench.runner import discovery, execute
    from xferbench.study.forecast import smallest_margin

    path = loader.find_suite(word)
    asked = replace(loader.load_suite(path, arguments.set), allow_code=arguments.allow_code)
    _refuse_matrix(asked, arguments, ("freeze",))
    tasks = [replace(task, allow_code=asked.allow_code) for task in asked.matrix.tasks] if asked.matrix else [asked]
    discovery.suite_plugins(asked)
    known = [
        None if arguments.no_files else execute.cached_profile(task, execute.store_path(arguments.store)) for task in tasks
    ]
    if asked.matrix is not None:
        print(f"{path}: a valid suite: {_matrix_size(asked.matrix)}")
        return
    facts = known[0]
    print(
        f"{path}: a valid suite" + (" with " if asked.overrides else "") + " ".join(f"--set {word}" for word in asked.overrides)
    )
    examples = (facts.test_groups or facts.test) if facts else asked.test_size
    if examples:
        _show_margin(asked, smallest_margin(asked, examples, discovery.suite_plugins(asked)))
    else:
        print("the size of the test set is not known yet: `xferbench run --dry-run` says what it can decide")
    if arguments.freeze is not None:
        _freeze(asked, arguments)


def _matrix_size(matrix: Matrix) -> str:
    """The size of a matrix: ``6 recipes on 2 tasks (near, far), 1 claim``."""
    names, claims = [task.name for task in matrix.tasks], len(matrix.effects)
    counts = {"recipe": len(matrix.compared), "task": len(names)}
    recipes, tasks = (f"{count} {what}{'s' * (count != 1)}" for what, count in counts.items())
    more = f", {claims} claim{'s' * (claims != 1)}" if claims else ""
    return f"{recipes} on {tasks} ({', '.join(names)}){more}"


def _report(arguments: argparse.Namespace) -> int:
    from xferbench.report import console, files
    from xferbench.runner import execute
    from xferbench.runner.run import save

    results = files.results_path(arguments.directory)
    run = files.read_run(results)
    if arguments.format != "text":
        return _rendered(run, arguments.format, arguments.output)
    save(run, arguments.output or results.parent, execute.store_path(None))
    console.print_run(run)
    return exit_code.PASSED


def _rendered(run: Run, form: str, folder: Path | None) -> int:
    from xferbench.report import checklist, latex

    tables = "matrix.tex" if run.matrix else "findings.tex"
    name, render = {"latex": (tables, latex.render), "checklist": ("checklist.md", checklist.render)}[form]
    if folder is None:
        print(render(run), end="")
        return exit_code.PASSED
    files.require_writable(folder)
    files.write_file(folder / name, render(run).encode())
    print(f"wrote {folder / name}")
    return exit_code.PASSED


def _init(arguments: argparse.Namespace) -> int:
    from xferbench.cli import init

    seen, weights = init.summarize_dataset(arguments.folder), arguments.weights
    file = init.write_suite(seen, arguments.arch or init.detect_arch(weights), weights, arguments.output, force=arguments.force)
    name = shlex.quote(str(file) if str(file)[0] != "-" else f"./{file}")
    print(f"wrote {file}\nnext: xferbench validate {name}\n      xferbench run {name} --dry-run")
    return 0


def _manifest(arguments: argparse.Namespace) -> int:
    from xferbench.data import manifest
    from xferbench.report.format import one_line

    manifest.check_writable(arguments.output, force=arguments.force)
    made, left_out = manifest.make_manifest(arguments.data, lambda count: print(f"{count} images", file=sys.stderr))
    manifest.write_manifest(made, arguments.output, force=arguments.force)
    size = arguments.output.stat().st_size / 2**20
    print(f"wrote {one_line(arguments.output)}: {len(made.prints)} images of {one_line(made.name)}, {size:.1f} MiB, no pixels")
    if left_out:
        print(
            f"{len(left_out)} left out",
            *map(one_line, left_out[:MAX_LISTED_FILES]),
            *["…"] * (len(left_out) > MAX_LISTED_FILES),
            sep="\n  ",
        )
    return exit_code.PASSED


def _merge(arguments: argparse.Namespace) -> int:
    from xferbench.runner import store

    for path, told in store.merge_stores(arguments.output, arguments.stores):
        differing = f", {told.differing} of them with other predictions or scalars (the first stays)" if told.differing else ""
        print(f"{path}: {told.added} records added, {told.known} there already{differing}", flush=True)
    print(f"next: xferbench run SUITE --store {shlex.quote(str(arguments.output))}")
    return exit_code.PASSED


def _doctor(arguments: argparse.Namespace) -> int:
    from dataclasses import asdict

    from xferbench.cli import doctor
    from xferbench.runner import execute

    told = []
    for line in doctor.run_checks(execute.store_path(arguments.store)):
        told.append(line)
        if arguments.format == "text":
            print(
                f"{line.state:<4}  {line.check:<12} {line.found}" + (f"\n{'':<19}do: {line.do}" if line.do else ""), flush=True
            )
    if arguments.format == "json":
        print(json.dumps([asdict(line) for line in told], indent=1))
    return exit_code.USAGE if any(line.state == doctor.FAIL for line in told) else exit_code.PASSED
