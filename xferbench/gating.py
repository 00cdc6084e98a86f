"""The gate, with its side effects: a run is made or read, held against an accepted one, and written."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from xferbench import alike, compared, discover, finish, given, revived, suite
from xferbench.core import files
from xferbench.core.reason import Code, Reason, because
from xferbench.design import Suite
from xferbench.execute import with_store
from xferbench.gate import CRASHED, NOTHING, exit_code
from xferbench.problem import Problem
from xferbench.report import accepted, messages, write
from xferbench.store import cache

if TYPE_CHECKING:
    from collections.abc import Callable

    from xferbench.execute import Progress
    from xferbench.record import Run

ELSEWHERE = "free some space, or choose another file with --accept"
ACCEPT = "accept a run here: xferbench gate SUITE --accept FILE"


def gate(
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
    """Carry a suite out, or read a finished run of it, and hold it against an accepted one.

    Training code of the user's own is run anew, whatever the store holds.

    Args:
        word: a shipped suite's name, a suite file, or a suite.
        baseline: an accepted file, or the results of a finished run; None compares nothing.
        candidate: the results of a run of this suite that was made elsewhere.
        accept: where to write the accepted file of this run; not of one that crashed, or judged nothing.
        output, store, device, workers, allow_code, show, command: as :func:`xferbench.finish.run`.

    Raises:
        Problem: for input that cannot be worked with, or runs that cannot be compared; nothing is written then.
    """
    asked = word if isinstance(word, Suite) else suite.load(suite.find(str(word)))
    asked = replace(asked, allow_code=allow_code or asked.allow_code)
    _apart(output, baseline, candidate, accept)
    if accept is not None:
        files.require_writable(accept.parent, ELSEWHERE)
    if output is not None:
        files.require_writable(output)  # before an hour is spent
    old = accepted.read(baseline) if baseline else None
    carried_out = partial(_carried_out, store=store, device=device, workers=workers, show=show, command=command)
    run = read(candidate, asked) if candidate else carried_out(asked)
    if old is not None:
        _same_suite(old, run)
        old, why = _evaluated(old, run, asked, None if candidate else carried_out)
        held = messages.write_comparison(compared.compare(old, run))
        unchecked = stale(run, candidate, asked) if candidate else ()
        before, after = (tuple(map(messages.sentence, notes)) for notes in ((*why, *unchecked), alike.differences(old, run)))
        notes = (*before, *held.notes, *after)
        run = replace(run, gate=replace(held, accepted={**held.accepted, "file": str(baseline)}, notes=notes))
    if output is not None:
        plugins = {plugin.id: plugin for plugin in discover.known(run)}
        write.write(run, output, plugins, cache(with_store(store)) / "figures")
    if accept is not None and acceptable(run):
        files.write_file(accept, accepted.pack(run), ELSEWHERE)
    return run


def _apart(output: Path | None, baseline: Path | None, candidate: Path | None, accept: Path | None) -> None:
    """Refuse to write where what is read lies, for the next gate would hold this run against itself, or over another file.

    Raises:
        Problem: naming the folder.
    """
    for file in filter(None, (baseline, candidate)):
        found = write.results(file)
        if output is not None and found.name == write.RESULTS and found.parent.resolve() == output.resolve():
            expected, do = "another folder", "name one with --output"
            raise Problem(f"{output} holds what is compared", found=str(file), expected=expected, do=do)
    if accept is not None and accept.is_dir():
        raise Problem(f"{accept} is a folder", expected="a file to write the accepted run to", do="--accept FILE")
    if accept is not None and accept.exists() and not accepted.is_one(accept):
        expected = "an accepted run, which is then replaced, or no file yet"
        raise Problem(f"{accept} is there already", found="another kind of file", expected=expected, do="--accept another FILE")


def _same_suite(old: Run, new: Run) -> None:
    """Refuse the accepted run of another suite, or of other rules: a change of these would be judged by what it brings itself.

    Raises:
        Problem: naming them.
    """
    names = [run.suite["name"] for run in (old, new)]
    if names[0] != names[1]:
        raise Problem("the accepted run is one of another suite", found=f"name {names[0]}", expected=f"name {names[1]}")
    if changed := alike.rules(old, new):
        what, found = "the two runs are not judged by the same rules", f"accepted with {', '.join(changed)}"
        raise Problem(what, found=found, do=f"if that is meant, {ACCEPT}")


def stale(run: Run, candidate: Path, asked: Suite) -> tuple[Reason, ...]:
    """Refuse a candidate that was made of other files than the suite names now; what to say where they are not here.

    Raises:
        Problem: naming the inputs.
    """
    try:
        now = {one.key: one.digest for one in given.given(asked) if one.counts}
    except Problem:
        return (because(Code.FILES_NOT_CHECKED),)
    then = {one["key"]: one["digest"] for one in run.evidence.get("inputs") or ()}
    changed = sorted(key for key, digest in now.items() if then.get(key) != digest)
    if changed:
        raise Problem(
            f"{candidate} was made of other files",
            found=f"other content of {', '.join(changed)}",
            expected="the files that the suite names now",
            do="carry the suite out again",
        )
    return ()


def acceptable(run: Run) -> bool:
    """Whether a run can be accepted: something was judged, and nothing crashed."""
    return exit_code(run.findings) not in {CRASHED, NOTHING}


def compare(first: Path, second: Path) -> Run:
    """The second of two finished or accepted runs, held against the first; what differs about them is told, not refused.

    Raises:
        Problem: for what is no run, or where the two were scored on other test examples.
    """
    old, new = accepted.read(first), accepted.read(second)
    held = messages.write_comparison(compared.compare(old, new))
    apart = [because(Code.NOT_MADE_ALIKE, difference=one) for one in (*alike.refusals(old, new), *alike.rules(old, new))]
    notes = (*map(messages.sentence, apart), *held.notes, *map(messages.sentence, alike.differences(old, new)))
    return replace(new, gate=replace(held, accepted={**held.accepted, "file": str(first)}, notes=notes))


def _carried_out(asked: Suite, *, store: Path | None, **how: Any) -> Run:
    """Carry a suite out; what training code of the user's own did before is not believed."""
    if not asked.training:
        return finish.run(asked, store=store, **how)
    with TemporaryDirectory(prefix="xferbench-") as folder:
        return finish.run(asked, store=Path(folder) / "store.sqlite", **how)


def read(candidate: Path, asked: Suite) -> Run:
    """A finished run of a suite that was made elsewhere.

    Raises:
        Problem: where it is no finished run, or one of another suite.
    """
    run = write.read(candidate)
    told = {name: value for name, value in run.suite.items() if hasattr(asked, name)}
    if others := [one for one in alike.of_suites(asdict(asked), told) if one[0] != "budget"]:
        key, own, found = others[0]
        more = f" (and {len(others) - 1} more keys)" if len(others) > 1 else ""
        raise Problem(
            f"{candidate} is no run of {asked.path}",
            found=f"{key} {found}{more}",
            expected=f"{key} {own}",
            do="give the suite file that it was made with",
        )
    return run


def _evaluated(old: Run, new: Run, asked: Suite, carried_out: Callable[[Suite], Run] | None) -> tuple[Run, tuple[Reason, ...]]:
    """The accepted run, evaluated again in this job where that can be done and matters, and what is to be said of it.

    A finished network always is, if its files are still there; a training only where the two jobs are not alike.

    Raises:
        Problem: where they are not, and it cannot be done.
    """
    refused = alike.refusals(old, new)
    if not refused and not asked.after:
        return old, ()
    why = "a finished run cannot be evaluated again" if carried_out is None else ""
    try:
        again = revived.suite(old.suite, Path(asked.path).parent)
        why = why or _gone(old, again)
    except Problem as problem:
        why = why or str(problem).replace("\n", ";")
    if carried_out is not None and not why:
        reason = "; ".join(refused) or "a finished network costs little"
        made = carried_out(replace(again, allow_code=asked.allow_code, budget=min(asked.budget, again.budget)))
        if acceptable(made):
            return made, (because(Code.BASELINE_RERUN, why=reason), *alike.changed_sources(old, made))
        why = next((one.reason for one in made.findings if one.verdict == "ERROR"), "nothing was judged")
        if not refused:
            return old, (because(Code.BASELINE_NOT_RERUN, why=why),)
    if refused:
        raise Problem(
            "the two runs were not made alike",
            found=f"accepted with {', '.join(refused)}",
            expected="the same device type, minor version of torch and version of the lab",
            do=f"{ACCEPT}; the accepted run cannot be evaluated again in this job: {why}",
        )
    return old, ()


def _gone(old: Run, again: Suite) -> str:
    """Which inputs of an accepted run are not here any more, or are not what they were; "" where all are."""
    then = {one["key"]: one["digest"] for one in old.evidence.get("inputs") or () if one["key"] != "suite"}
    now = {one.key: one.digest for one in given.given(again) if one.counts}
    changed = sorted(key for key in then.keys() | now.keys() if then.get(key) != now.get(key))
    return f"other content: {', '.join(changed)}" if changed else ""
