"""A run as a test runner takes it: for each contrast that is judged whether it passed, in a few lines of text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from xferbench.core import comparison
from xferbench.core.run import contrast_id
from xferbench.report import comparison_text, format, junit, tables

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from xferbench.core.comparison import Outcome
    from xferbench.core.plugin import Plugin
    from xferbench.core.run import Finding, Run

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
STATE = {  # of verdicts, and of what is decided where there is an accepted run
    "FAIL": FAILED,
    "ERROR": FAILED,
    "PASS": PASSED,
    comparison.WORSE: FAILED,
    comparison.CRASHED: FAILED,
    comparison.NOT_WORSE: PASSED,
}
OPEN_STATES = {"INCONCLUSIVE", comparison.CANNOT_TELL}  # fail only where that is asked for
FAILED_VERDICTS = {"FAIL", "ERROR"}  # verdicts that are told beside a comparison too
NOT_IN_RESULTS = "not in the results, though the suite asks it: they are of another suite, or of other versions"


@dataclass(frozen=True, slots=True, kw_only=True)
class TestOutcome:
    """What a test runner is told of one test.

    Attributes:
        state: ``passed``, ``failed`` or ``skipped``.
        said: why, in one line that begins with the verdict or the decision. more: what a reader of a failure needs beside it.
        figures: words and numbers by name.
    """

    state: str
    said: str
    more: str = ""
    figures: Mapping[str, str] = field(default_factory=dict)


def test_names(plugins: Iterable[Plugin], *, compared_too: bool = False) -> dict[str, str]:
    """The tests of a suite, each with the id of its plugin, known before anything is run; measurements are none.

    Args:
        plugins: what the suite asks.
        compared_too: whether there is an accepted run, so that the subject's own metric is a test too.
    """
    judged = {
        contrast_id(plugin.id, one.name): plugin.id for plugin in plugins for one in plugin.contrasts if one.kind != "info"
    }
    return ({comparison.SUBJECT: ""} if compared_too else {}) | judged


def test_outcome(run: Run, name: str, plugin: str, *, fail_on: str = "fail") -> TestOutcome:
    """What became of one test; of several variants the worst counts.

    Where the run was held against an accepted one, that decides, and a FAIL which is known passes.

    Args:
        run: the finished run.
        name: one of :func:`names`. plugin: the id that stands beside it there.
        fail_on: ``fail``, or ``inconclusive``: what is left open fails too.
    """
    group = _group(run, name, plugin)
    id_ = contrast_id(group[0].plugin, group[0].contrast) if group else name
    outcome = next((one for one in run.gate.outcomes if one.id == id_), None) if run.gate else None
    if outcome is None and not group:
        return TestOutcome(state=FAILED, said=NOT_IN_RESULTS)
    word = outcome.decision if outcome else group[0].verdict
    figures = junit.finding_properties(group[0]) if group else {}
    figures |= {f"gate.{name}": value for name, value in junit.outcome_properties(outcome).items()} if outcome else {}
    said, *more = _beside(outcome, group) if outcome else _own(group)
    return TestOutcome(state=_state(word, fail_on), said=said, more="\n".join(more), figures=figures)


def _group(run: Run, name: str, plugin: str) -> tables.Group:
    """The findings of a contrast, the worst first; where a plugin was not asked at all, what stands for all its contrasts."""
    found = [one for one in run.findings if one.verdict != "INFO"]
    own = [one for one in found if contrast_id(one.plugin, one.contrast) == name]
    whole = [one for one in found if one.plugin == plugin and one.verdict in {"SKIPPED", "ERROR"}]
    return tuple(sorted(own or whole, key=lambda one: tables.WORST_FIRST.index(one.verdict)))


def _state(word: str, fail_on: str) -> str:
    return FAILED if word in OPEN_STATES and fail_on == "inconclusive" else STATE.get(word, SKIPPED)


def _beside(outcome: Outcome, group: tables.Group) -> list[str]:
    """What a comparison decided, and of what is amiss the run's own verdict, unless that has been said."""
    said, amiss = _decided(outcome), bool(group) and group[0].verdict in FAILED_VERDICTS
    verdict, *then = _own(group) if amiss else [""]
    return [said, *([verdict] if amiss and format.one_line(group[0].reason) not in said else []), *then]


def _own(group: tables.Group) -> list[str]:
    """A run's own verdict: its number, its reason, and what to do next."""
    first = group[0]
    worst = tuple(one for one in group if one.verdict == first.verdict)
    crashed = "crashed: " if first.verdict == "ERROR" else ""
    action = tables.next_action(worst)
    lines = [
        ": ".join(part for part in (first.verdict, _harm(first), crashed + tables.group_reason(worst)) if part),
        f"next: {action}" if action else "",
        *(f"    {line}" for line in tables.patch_lines(worst).splitlines()),
    ]
    return [line for line in lines if line]


def _harm(one: Finding) -> str:
    return _sized((one.harm, one.low, one.high), one.unit, one.margin) if one.verdict != "ERROR" else ""


def _decided(one: Outcome) -> str:
    """What was decided beside the accepted run: by how much, from what to what, and why."""
    size = _sized((one.change, one.low, one.high), one.unit, one.margin)
    moved = comparison_text.levels_text(one) if one.before is not None and one.now is not None else ""
    return ": ".join(
        part for part in (one.decision, ", ".join(filter(None, (size, moved))), comparison_text.reason_text(one)) if part
    )


def _sized(bounds: tables.Bounds, unit: str, margin: float | None) -> str:
    if bounds[0] is None:
        return ""
    beside = "" if margin is None else f" (margin {format.format_harm(margin, unit).removeprefix('+')})"
    return f"{format.format_bounds(bounds, unit)} {format.unit_name(unit)}{beside}"
