"""Compare a run with an accepted run. Trains or reads the run, and writes to the store and the report."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from xferbench.analysis import compare, compatibility
from xferbench.analysis.exit_code import CRASHED, NO_VERDICT, exit_code
from xferbench.config import revive
from xferbench.core import files
from xferbench.core.errors import UserError
from xferbench.core.interventions import as_dict
from xferbench.core.reason import Code, Reason, because
from xferbench.core.suite import replace_invocation, replace_rules
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
PROBABILITIES = ("p_true", "p_max", "sum_p2", "probabilities")  # fields of predictions
ACCEPT_ADVICE = "accept a run here: xferbench gate SUITE --accept FILE"


def run_gate(
    suite: str | Path | Suite,
    *,
    baseline: Path | None = None,
    candidate: Path | None = None,
    accept: Path | None = None,
    output: Path | None = None,
    store: Path | None = None,
    device: str = "auto",
    workers: int | None = None,
    allow_code: bool = False,
    on_progress: Callable[[Progress], None] = lambda _: None,
    command: str = "",
) -> Run:
    """Run a suite, or read a finished run of it, and compare the run with an accepted one.

    User training code always runs again, even if the store contains its records.

    Args:
        suite: the name of a shipped suite, the path of a suite file, or a suite.
        baseline: an accepted file, or the results of a finished run; None means no comparison.
        candidate: the results of a run of this suite from another job.
        accept: the accepted file to write; it is not written if something crashed, or if no plugin gave a verdict.
        output, store, device, workers, allow_code, on_progress, command: as in :func:`xferbench.runner.run.run`.

    Raises:
        UserError: if the input cannot be used, or if the runs cannot be compared; then no file is written.
    """
    loaded, path = runner.load_suite(suite, allow_code=allow_code), store_path(store)
    if loaded.matrix is not None:
        raise UserError(
            f"{loaded.invocation.path}: [matrix]", found="a suite of many tasks", expected="a suite of one task, for a gate"
        )
    _check_paths(output, baseline, candidate, accept)
    if accept is not None:
        files.require_writable(accept.parent, WRITE_ADVICE)
    if output is not None:
        files.require_writable(output)  # before an hour of training
    old = read_baseline(baseline) if baseline else None
    run_again = partial(_run_suite, path=path, device=device, workers=workers, on_progress=on_progress, command=command)
    run = read_candidate(candidate, loaded) if candidate else run_again(loaded)
    if old is not None:
        _check_same_suite(old, run)
        old, notes = _evaluate_again(old, run, loaded, None if candidate else run_again)
        comparison = messages.write_comparison(compare.compare(old, run))
        unchecked = check_inputs(run, candidate, loaded) if candidate else ()
        run = _with_comparison(run, comparison, old, str(baseline), (*notes, *unchecked))
    if output is not None:
        runner.save_report(run, output, path)
    if accept is not None and is_acceptable(run):
        files.write_file(accept, pack_baseline(run), WRITE_ADVICE)
    return run


def compare_files(first: Path, second: Path) -> Run:
    """Return the second of two finished or accepted runs with its comparison to the first; every difference becomes a note.

    Raises:
        UserError: if a file is not a run, or if the two runs have different test examples.
    """
    old, new = read_baseline(first), read_baseline(second)
    comparison = messages.write_comparison(compare.compare(old, new))
    differences = (*compatibility.refusals(old, new), *compatibility.changed_rules(old, new))
    notes = [because(Code.NOT_MADE_ALIKE, difference=difference) for difference in differences]
    return _with_comparison(new, comparison, old, str(first), notes)


def _with_comparison(run: Run, comparison: Comparison, old: Run, file: str, notes: Sequence[Reason]) -> Run:
    """Return a run with its comparison, which names the accepted file, and with notes about all differences."""
    before, after = (tuple(map(messages.write_sentence, reasons)) for reasons in (notes, compatibility.differences(old, run)))
    accepted_run = {**comparison.accepted, "file": file}
    return replace(run, gate=replace(comparison, accepted=accepted_run, notes=(*before, *comparison.notes, *after)))


def is_acceptable(run: Run) -> bool:
    """Return whether a run can be accepted: it has a verdict, and nothing crashed."""
    return exit_code(run.findings) not in {CRASHED, NO_VERDICT}


def read_candidate(candidate: Path, suite: Suite) -> Run:
    """Return a finished run of a suite from another job.

    Raises:
        UserError: if it is not a finished run, or a run of another suite.
    """
    run = read_single_task(candidate)
    expected_values = as_dict(suite)
    values = {name: value for name, value in run.suite.items() if name in expected_values}
    if differing := [entry for entry in compatibility.suite_differences(expected_values, values) if entry[0] != "budget"]:
        key, expected, found = differing[0]
        more = f" (and {len(differing) - 1} more keys)" if len(differing) > 1 else ""
        raise UserError(
            f"{candidate} is not a run of {suite.invocation.path}",
            found=f"{key} {found}{more}",
            expected=f"{key} {expected}",
            do="use the suite file of that run",
        )
    _check_predictions(run, candidate)
    return run


def _check_predictions(run: Run, candidate: Path) -> None:
    """Refuse probabilities that are not numbers: a metric of them is no number either, and would decide nothing.

    Raises:
        UserError: that names the plugin and the arm.
    """
    for cell in run.cells:
        predictions = cell.record.predictions
        values = () if predictions is None else (getattr(predictions, name) for name in PROBABILITIES)
        if not all(np.isfinite(array).all() for array in values):
            raise UserError(
                f"{candidate}: predictions that are not numbers",
                found=f"NaN or infinity in {cell.plugin}, arm {cell.arm}, seed {cell.seed}",
                expected="probabilities; a diverged network has the class frequencies",
                do="run the suite again",
            )


def check_inputs(run: Run, candidate: Path, suite: Suite) -> tuple[Reason, ...]:
    """Refuse a candidate if its input files differ from those of the suite; return a note if the files are not available.

    Raises:
        UserError: that names the inputs.
    """
    try:
        now = {entry.key: entry.digest for entry in input_digests.input_digests(suite) if entry.counts}
    except UserError:
        return (because(Code.FILES_NOT_CHECKED),)
    then = {entry["key"]: entry["digest"] for entry in run.provenance.evidence.get("inputs") or ()}
    changed = sorted(key for key, digest in now.items() if then.get(key) != digest)
    if changed:
        raise UserError(
            f"{candidate} has other input files",
            found=f"other content of {', '.join(changed)}",
            expected="the files that the suite names now",
            do="run the suite again",
        )
    return ()


def _check_paths(output: Path | None, baseline: Path | None, candidate: Path | None, accept: Path | None) -> None:
    """Refuse an output that overwrites an input, because the next gate would then compare a run with itself.

    Raises:
        UserError: that names the folder or the file.
    """
    for file in filter(None, (baseline, candidate)):
        results = results_path(file)
        if output is not None and results.name == RESULTS and results.parent.resolve() == output.resolve():
            expected, do = "another folder", "use --output"
            raise UserError(f"{output} contains an input of the comparison", found=str(file), expected=expected, do=do)
    if accept is not None and accept.is_dir():
        raise UserError(f"{accept} is a folder", expected="a file for the accepted run", do="use --accept FILE")
    if accept is not None and accept.exists() and not is_baseline(accept):
        expected = "an accepted run, which is replaced, or no file yet"
        raise UserError(
            f"{accept} exists already", found="another kind of file", expected=expected, do="use --accept with another file"
        )


def _check_same_suite(old: Run, new: Run) -> None:
    """Refuse an accepted run of another suite or with other rules, because a change of the rules must not decide its own gate.

    Raises:
        UserError: that names the suite or the rules.
    """
    names = [run.suite["name"] for run in (old, new)]
    if names[0] != names[1]:
        raise UserError("the accepted run is of another suite", found=f"name {names[0]}", expected=f"name {names[1]}")
    if changed := compatibility.changed_rules(old, new):
        what, found = "the two runs do not have the same rules", f"accepted with {', '.join(changed)}"
        raise UserError(what, found=found, do=f"if this is intended, {ACCEPT_ADVICE}")


def _run_suite(suite: Suite, *, path: Path, **options: Any) -> Run:
    """Run a suite; records of user training code are not reused."""
    if not suite.training:
        return runner.run_suite(suite, path=path, **options)
    with TemporaryDirectory(prefix="xferbench-") as folder:
        return runner.run_suite(suite, path=Path(folder) / "store.sqlite", **options)


def _evaluate_again(
    old: Run, new: Run, suite: Suite, run_again: Callable[[Suite], Run] | None
) -> tuple[Run, tuple[Reason, ...]]:
    """Return the accepted run, evaluated again in this job if that is possible and matters, and notes about it.

    A finished network is always evaluated again if its files still exist. A trained one is only run again if the environments
    of the two jobs differ.

    Raises:
        UserError: if the environments differ and the accepted run cannot be evaluated again.
    """
    differences = compatibility.refusals(old, new)
    if not differences and not suite.is_audit:
        return old, ()
    why = "a finished run cannot be evaluated again" if run_again is None else ""
    try:
        accepted_suite = revive.suite_from_results(old.suite, Path(suite.invocation.path).parent)
        why = why or _changed_inputs(old, accepted_suite)
    except UserError as problem:
        why = why or str(problem).replace("\n", ";")
    if run_again is not None and not why:
        reason = "; ".join(differences) or "a finished network costs little"
        budget = min(suite.rules.budget, accepted_suite.rules.budget)
        accepted_suite = replace_invocation(accepted_suite, allow_code=suite.invocation.allow_code)
        again = run_again(replace_rules(accepted_suite, budget=budget))
        if is_acceptable(again):
            return again, (because(Code.BASELINE_RERUN, why=reason), *compatibility.changed_sources(old, again))
        why = next((finding.reason for finding in again.findings if finding.verdict == "ERROR"), "nothing was judged")
        if not differences:
            return old, (because(Code.BASELINE_NOT_RERUN, why=why),)
    if differences:
        raise UserError(
            "the environments of the two runs differ",
            found=f"accepted with {', '.join(differences)}",
            expected="the same device type, minor version of torch and version of the lab",
            do=f"{ACCEPT_ADVICE}; the accepted run cannot be evaluated again in this job: {why}",
        )
    return old, ()


def _changed_inputs(old: Run, suite: Suite) -> str:
    """Return which inputs of an accepted run are missing or changed, as text; an empty string if all are unchanged."""
    then = {entry["key"]: entry["digest"] for entry in old.provenance.evidence.get("inputs") or () if entry["key"] != "suite"}
    now = {entry.key: entry.digest for entry in input_digests.input_digests(suite) if entry.counts}
    changed = sorted(key for key in then.keys() | now.keys() if then.get(key) != now.get(key))
    return f"other content: {', '.join(changed)}" if changed else ""
