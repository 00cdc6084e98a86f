"""Compares a run with an accepted one: the run is carried out or read, compared, and written. Trains, stores and writes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from xferbench.analysis import compare, compatibility
from xferbench.analysis.exit_code import CRASHED, NOTHING, exit_code
from xferbench.config import revive
from xferbench.core import files
from xferbench.core.errors import UserError
from xferbench.core.interventions import as_dict
from xferbench.core.reason import Code, Reason, because
from xferbench.report import messages
from xferbench.report.baseline import is_baseline, pack_baseline, read_baseline
from xferbench.report.files import RESULTS, read_single_task, results_path
from xferbench.runner import input_digests
from xferbench.runner import run as runner
from xferbench.runner.execute import store_path

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from xferbench.core.comparison import Comparison
    from xferbench.core.progress import Progress
    from xferbench.core.run import Run
    from xferbench.core.suite import Suite

WRITE_ADVICE = "free some space, or choose another file with --accept"
ACCEPT_ADVICE = "accept a run here: xferbench gate SUITE --accept FILE"


def run_gate(
    word: str | Path | Suite,
    *,
    baseline: Path | None = None,
    candidate: Path | None = None,
    accept: Path | None = None,
    output: Path | None = None,
    store: Path | None = None,
    device: str = "auto",
    workers: int | None = None,
    allow_code: bool = False,
    show: Callable[[Progress], None] = lambda _: None,
    command: str = "",
) -> Run:
    """Carry out a suite, or read a finished run of it, and compare the run with an accepted one.

    Training code of the user's own always runs again, even if the store holds its records.

    Args:
        word: a shipped suite's name, a suite file, or a suite.
        baseline: an accepted file, or the results of a finished run; None compares nothing.
        candidate: the results of a run of this suite that another job made.
        accept: the accepted file to write; nothing is written of a run that crashed or judged nothing.
        output, store, device, workers, allow_code, show, command: as in :func:`xferbench.runner.run.run`.

    Raises:
        UserError: for input that cannot be used, or runs that cannot be compared; nothing is written then.
    """
    suite, path = runner.load(word, allow_code=allow_code), store_path(store)
    if suite.matrix is not None:
        raise UserError(f"{suite.path}: [matrix]", found="a suite of many tasks", expected="one of a single task, for a gate")
    _check_places(output, baseline, candidate, accept)
    if accept is not None:
        files.require_writable(accept.parent, WRITE_ADVICE)
    if output is not None:
        files.require_writable(output)  # before an hour is spent
    old = read_baseline(baseline) if baseline else None
    carry_out = partial(_carry_out, path=path, device=device, workers=workers, show=show, command=command)
    run = read_candidate(candidate, suite) if candidate else carry_out(suite)
    if old is not None:
        _check_same_suite(old, run)
        old, why = _evaluate_again(old, run, suite, None if candidate else carry_out)
        comparison = messages.write_comparison(compare.compare(old, run))
        unchecked = check_inputs(run, candidate, suite) if candidate else ()
        run = _with_comparison(run, comparison, old, str(baseline), (*why, *unchecked))
    if output is not None:
        runner.save(run, output, path)
    if accept is not None and is_acceptable(run):
        files.write_file(accept, pack_baseline(run), WRITE_ADVICE)
    return run


def compare_files(first: Path, second: Path) -> Run:
    """The second of two finished or accepted runs, compared with the first; differences become notes and refuse nothing.

    Raises:
        UserError: for a file that is no run, or if the two were scored on other test examples.
    """
    old, new = read_baseline(first), read_baseline(second)
    comparison = messages.write_comparison(compare.compare(old, new))
    differences = (*compatibility.refusals(old, new), *compatibility.changed_rules(old, new))
    notes = [because(Code.NOT_MADE_ALIKE, difference=difference) for difference in differences]
    return _with_comparison(new, comparison, old, str(first), notes)


def _with_comparison(run: Run, comparison: Comparison, old: Run, file: str, notes: Sequence[Reason]) -> Run:
    """A run with its comparison, which names the accepted file, and with notes about everything that differs."""
    before, after = (tuple(map(messages.sentence, reasons)) for reasons in (notes, compatibility.differences(old, run)))
    accepted_run = {**comparison.accepted, "file": file}
    return replace(run, gate=replace(comparison, accepted=accepted_run, notes=(*before, *comparison.notes, *after)))


def is_acceptable(run: Run) -> bool:
    """Whether a run can be accepted: something was judged, and nothing crashed."""
    return exit_code(run.findings) not in {CRASHED, NOTHING}


def read_candidate(candidate: Path, suite: Suite) -> Run:
    """A finished run of a suite that another job made.

    Raises:
        UserError: if it is no finished run, or a run of another suite.
    """
    run = read_single_task(candidate)
    values = {name: value for name, value in run.suite.items() if hasattr(suite, name)}
    if differing := [entry for entry in compatibility.suite_differences(as_dict(suite), values) if entry[0] != "budget"]:
        key, expected, found = differing[0]
        more = f" (and {len(differing) - 1} more keys)" if len(differing) > 1 else ""
        raise UserError(
            f"{candidate} is no run of {suite.path}",
            found=f"{key} {found}{more}",
            expected=f"{key} {expected}",
            do="give the suite file that it was made with",
        )
    return run


def check_inputs(run: Run, candidate: Path, suite: Suite) -> tuple[Reason, ...]:
    """Refuse a candidate that was made of other files than the suite names now; a note if these files are missing here.

    Raises:
        UserError: naming the inputs.
    """
    try:
        now = {entry.key: entry.digest for entry in input_digests.input_digests(suite) if entry.counts}
    except UserError:
        return (because(Code.FILES_NOT_CHECKED),)
    then = {entry["key"]: entry["digest"] for entry in run.evidence.get("inputs") or ()}
    changed = sorted(key for key, digest in now.items() if then.get(key) != digest)
    if changed:
        raise UserError(
            f"{candidate} was made of other files",
            found=f"other content of {', '.join(changed)}",
            expected="the files that the suite names now",
            do="carry the suite out again",
        )
    return ()


def _check_places(output: Path | None, baseline: Path | None, candidate: Path | None, accept: Path | None) -> None:
    """Refuse an output that overwrites an input: the next gate would compare a run with itself.

    Raises:
        UserError: naming the folder or the file.
    """
    for file in filter(None, (baseline, candidate)):
        results = results_path(file)
        if output is not None and results.name == RESULTS and results.parent.resolve() == output.resolve():
            expected, do = "another folder", "name one with --output"
            raise UserError(f"{output} holds what is compared", found=str(file), expected=expected, do=do)
    if accept is not None and accept.is_dir():
        raise UserError(f"{accept} is a folder", expected="a file to write the accepted run to", do="--accept FILE")
    if accept is not None and accept.exists() and not is_baseline(accept):
        expected = "an accepted run, which is then replaced, or no file yet"
        raise UserError(
            f"{accept} is there already", found="another kind of file", expected=expected, do="--accept another FILE"
        )


def _check_same_suite(old: Run, new: Run) -> None:
    """Refuse an accepted run of another suite, or of other rules: a change of the rules must not judge itself.

    Raises:
        UserError: naming them.
    """
    names = [run.suite["name"] for run in (old, new)]
    if names[0] != names[1]:
        raise UserError("the accepted run is one of another suite", found=f"name {names[0]}", expected=f"name {names[1]}")
    if changed := compatibility.changed_rules(old, new):
        what, found = "the two runs are not judged by the same rules", f"accepted with {', '.join(changed)}"
        raise UserError(what, found=found, do=f"if that is meant, {ACCEPT_ADVICE}")


def _carry_out(suite: Suite, *, path: Path, **options: Any) -> Run:
    """Carry out a suite; records of the user's own training code are not reused."""
    if not suite.training:
        return runner.carry_out(suite, path=path, **options)
    with TemporaryDirectory(prefix="xferbench-") as folder:
        return runner.carry_out(suite, path=Path(folder) / "store.sqlite", **options)


def _evaluate_again(
    old: Run, new: Run, suite: Suite, carry_out: Callable[[Suite], Run] | None
) -> tuple[Run, tuple[Reason, ...]]:
    """The accepted run, evaluated again in this job if that is possible and matters, and notes about it.

    A finished network is always evaluated again if its files still exist; a training only if the two jobs are not alike.

    Raises:
        UserError: if the jobs are not alike and the accepted run cannot be evaluated again.
    """
    refused = compatibility.refusals(old, new)
    if not refused and not suite.after:
        return old, ()
    why = "a finished run cannot be evaluated again" if carry_out is None else ""
    try:
        accepted_suite = revive.suite_from_results(old.suite, Path(suite.path).parent)
        why = why or _changed_inputs(old, accepted_suite)
    except UserError as problem:
        why = why or str(problem).replace("\n", ";")
    if carry_out is not None and not why:
        reason = "; ".join(refused) or "a finished network costs little"
        budget = min(suite.budget, accepted_suite.budget)
        again = carry_out(replace(accepted_suite, allow_code=suite.allow_code, budget=budget))
        if is_acceptable(again):
            return again, (because(Code.BASELINE_RERUN, why=reason), *compatibility.changed_sources(old, again))
        why = next((finding.reason for finding in again.findings if finding.verdict == "ERROR"), "nothing was judged")
        if not refused:
            return old, (because(Code.BASELINE_NOT_RERUN, why=why),)
    if refused:
        raise UserError(
            "the two runs were not made alike",
            found=f"accepted with {', '.join(refused)}",
            expected="the same device type, minor version of torch and version of the lab",
            do=f"{ACCEPT_ADVICE}; the accepted run cannot be evaluated again in this job: {why}",
        )
    return old, ()


def _changed_inputs(old: Run, suite: Suite) -> str:
    """The inputs of an accepted run that are missing or changed; an empty string if all are as they were."""
    then = {entry["key"]: entry["digest"] for entry in old.evidence.get("inputs") or () if entry["key"] != "suite"}
    now = {entry.key: entry.digest for entry in input_digests.input_digests(suite) if entry.counts}
    changed = sorted(key for key in then.keys() | now.keys() if then.get(key) != now.get(key))
    return f"other content: {', '.join(changed)}" if changed else ""
