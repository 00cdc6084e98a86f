"""``xferbench validate``: check suite files without running them, and freeze a plan. Reads files; writes the plan."""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from xferbench.analysis import exit_code
from xferbench.cli import options
from xferbench.cli.exit_status import exit_status
from xferbench.core.errors import UserError

if TYPE_CHECKING:
    import argparse

    from xferbench.core.plugin import Profile
    from xferbench.core.suite import Matrix, Suite


def add_parser(subparsers: options.Subparsers) -> None:
    """Add the command and its options."""
    parser = options.add_command(subparsers, "validate", "check a suite file without running it", run_command)
    parser.add_argument("suites", nargs="+", metavar="suite")
    parser.add_argument("--store", type=Path, metavar="FILE")
    options.add_set(parser)
    text = "accept a suite that contains user code; the code is not run"
    parser.add_argument("--allow-code", action="store_true", help=text)
    text = "do not check files that the suite names, for example if data and weights are on another machine"
    parser.add_argument("--no-files", action="store_true", help=text)
    options.add_freeze(parser)
    parser.add_argument("--force", action="store_true", help="overwrite an existing plan")


def run_command(arguments: argparse.Namespace) -> int:
    """Check each suite, print all problems, and return the exit code of the last one."""
    if arguments.freeze is not None and len(arguments.suites) > 1:
        raise UserError(
            "--freeze: a plan belongs to one suite",
            found=f"{len(arguments.suites)} suites",
            expected="one",
            do="freeze each suite by itself",
        )
    code = exit_code.PASSED
    for name in arguments.suites:
        try:
            _validate_suite(name, arguments)
        except UserError as problem:  # check the other suites too
            if arguments.debug:
                traceback.print_exc()
            code, message = exit_status(problem)
            print(f"xferbench: {message}", file=sys.stderr)
    return code


def _validate_suite(name: str, arguments: argparse.Namespace) -> None:

    from xferbench.cli.forecast_text import print_power
    from xferbench.config import loader
    from xferbench.core.suite import replace_invocation
    from xferbench.runner import discovery, execute, profile
    from xferbench.study.forecast import decision_power

    path = loader.find_suite(name)
    suite = replace_invocation(loader.load_suite(path, arguments.set), allow_code=arguments.allow_code)
    options.reject_matrix(suite, arguments, ("freeze",))
    tasks = (
        [replace_invocation(task, allow_code=suite.invocation.allow_code) for task in suite.matrix.tasks]
        if suite.matrix
        else [suite]
    )
    plugins = discovery.suite_plugins(suite)
    store = execute.store_path(arguments.store)
    profiles = [None if arguments.no_files else profile.cached_profile(task, store) for task in tasks]
    if not arguments.no_files:
        unknown = [task for task, cached in zip(tasks, profiles, strict=True) if cached is None]
        for task in {task.backbone: task for task in unknown}.values():  # tasks may share a backbone
            profile.check_weights(task)
    if suite.matrix is not None:
        print(f"{path}: a valid suite: {_describe_size(suite.matrix)}")
        return
    overrides = " ".join(f"--set {override}" for override in suite.invocation.overrides)
    print(f"{path}: a valid suite" + (f" with {overrides}" if overrides else ""))
    if not arguments.no_files:
        _print_data_notes(suite, profiles[0])
    (cached,) = profiles
    examples = (cached.data.test_groups or cached.data.test) if cached else suite.data.test_size
    if examples:
        print_power(suite, decision_power(suite, examples, plugins))
    else:
        print("the size of the test set is not known yet: `xferbench run --dry-run` shows what it can decide")
    if arguments.freeze is not None:
        freeze_plan(suite, arguments)


def _print_data_notes(suite: Suite, cached: Profile | None) -> None:
    """Print the classes of the target, if they are known without torch, and notes on its folders or its tables."""
    from xferbench.core.reason import Code, because
    from xferbench.data import sources
    from xferbench.report.format import one_line
    from xferbench.report.messages import write_sentence

    classes, notes = sources.describe_folder(suite.data.target)
    classes = cached.data.classes if cached else classes
    for note in (*([write_sentence(because(Code.CLASSES, names=classes))] if classes else []), *notes):
        print(f"note: {one_line(note)}")


def _describe_size(matrix: Matrix) -> str:
    """Return the size of a matrix: ``6 recipes on 2 tasks (near, far), 1 claim``."""
    names, claims = [task.name for task in matrix.tasks], len(matrix.effects)
    counts = {"recipe": len(matrix.compared), "task": len(names)}
    recipes, tasks = (f"{count} {noun}{'s' * (count != 1)}" for noun, count in counts.items())
    more = f", {claims} claim{'s' * (claims != 1)}" if claims else ""
    return f"{recipes} on {tasks} ({', '.join(names)}){more}"


def freeze_plan(suite: Suite, arguments: argparse.Namespace) -> None:
    """Write the plan of a suite to the file of ``--freeze``, and print its hash and the next command.

    Raises:
        UserError: if the file exists and ``--force`` is missing.
    """
    from xferbench.runner import discovery, input_digests, preregistration
    from xferbench.runner.run import utc_now

    plugins = discovery.suite_plugins(suite)
    preregistration.refuse_overwrite(arguments.freeze, force=arguments.force)  # before gigabytes are read
    inputs = input_digests.input_digests(suite)
    text = preregistration.plan_to_json(suite, inputs, plugins, utc_now())
    preregistration.write_plan(arguments.freeze, text, force=arguments.force)
    verb = "audit" if suite.is_audit else "run"
    print(f"frozen: {arguments.freeze}, plan {json.loads(text)['hash']}\nnext: xferbench {verb} … --plan {arguments.freeze}")
