"""The verdicts of a run as results for a test runner: passed, failed or skipped, with a short text. Pure."""

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
STATE = {  # state by verdict, and by decision of a comparison with an accepted run
    "FAIL": FAILED,
    "ERROR": FAILED,
    "PASS": PASSED,
    comparison.WORSE: FAILED,
    comparison.CRASHED: FAILED,
    comparison.NOT_WORSE: PASSED,
}
OPEN_STATES = {"INCONCLUSIVE", comparison.CANNOT_TELL}  # these fail only if the caller says so
FAILED_VERDICTS = {"FAIL", "ERROR"}  # verdicts that are reported in addition to a decision
NOT_IN_RESULTS = "the suite tests this, but the results do not contain it: they come from another suite or other versions"


@dataclass(frozen=True, slots=True, kw_only=True)
class TestOutcome:
    """The result of one test.

    Attributes:
        state: ``passed``, ``failed`` or ``skipped``.
        message: the reason, in one line that begins with the verdict or the decision.
        details: further lines that the reader of a failure needs.
        properties: texts and numbers by name.
    """

    state: str
    message: str
    details: str = ""
    properties: Mapping[str, str] = field(default_factory=dict)


def test_names(plugins: Iterable[Plugin], *, has_baseline: bool = False) -> dict[str, str]:
    """Return the tests of a suite with the id of the plugin of each; nothing is run, and measurements are not tests.

    Args:
        plugins: the plugins of the suite.
        has_baseline: whether there is an accepted run, so that the metric of the subject is a test as well.
    """
    names = {
        contrast_id(plugin.id, contrast.name): plugin.id
        for plugin in plugins
        for contrast in plugin.contrasts
        if contrast.kind != "info"
    }
    return ({comparison.SUBJECT: ""} if has_baseline else {}) | names


def test_outcome(run: Run, name: str, plugin: str, *, fail_on: str = "fail") -> TestOutcome:
    """Return the result of one test; the worst variant counts.

    If the run was compared with an accepted run, the decision of that comparison counts, and a known FAIL passes.

    Args:
        run: the finished run.
        name: name of the test, as :func:`test_names` returns it.
        plugin: id of the plugin of the test.
        fail_on: ``fail``, or ``inconclusive`` if undecided results fail as well.
    """
    group = _worst_first(run, name, plugin)
    contrast = contrast_id(group[0].plugin, group[0].contrast) if group else name
    outcome = next((outcome for outcome in run.gate.outcomes if outcome.id == contrast), None) if run.gate else None
    if outcome is None and not group:
        return TestOutcome(state=FAILED, message=NOT_IN_RESULTS)
    result = outcome.decision if outcome else group[0].verdict
    if run.gate and run.gate.has_too_few_seeds:
        fail_on = "inconclusive"
    properties = junit.finding_properties(group[0]) if group else {}
    properties |= {f"gate.{name}": value for name, value in junit.outcome_properties(outcome).items()} if outcome else {}
    message, *details = _decision_lines(outcome, group) if outcome else _verdict_lines(group)
    return TestOutcome(state=_state(result, fail_on), message=message, details="\n".join(details), properties=properties)


def _worst_first(run: Run, name: str, plugin: str) -> tables.Group:
    """Return the findings of a contrast, the worst first.

    A plugin that did not run has one finding, which stands for all its contrasts.
    """
    findings = [finding for finding in run.findings if finding.verdict != "INFO"]
    of_contrast = [finding for finding in findings if contrast_id(finding.plugin, finding.contrast) == name]
    of_plugin = [finding for finding in findings if finding.plugin == plugin and finding.verdict in {"SKIPPED", "ERROR"}]
    return tuple(sorted(of_contrast or of_plugin, key=lambda finding: tables.WORST_FIRST.index(finding.verdict)))


def _state(result: str, fail_on: str) -> str:
    return FAILED if result in OPEN_STATES and fail_on == "inconclusive" else STATE.get(result, SKIPPED)


def _decision_lines(outcome: Outcome, group: tables.Group) -> list[str]:
    """Return the decision of a comparison, and then a failed verdict of the run unless the decision repeats it."""
    decision = _describe_decision(outcome)
    if not group or group[0].verdict not in FAILED_VERDICTS:
        return [decision]
    verdict, *actions = _verdict_lines(group)
    repeated = format.one_line(group[0].reason) in decision
    return [decision, *([] if repeated else [verdict]), *actions]


def _verdict_lines(group: tables.Group) -> list[str]:
    """Return the verdict of a run with its harm and its reason, and then what to do next."""
    first = group[0]
    worst = tuple(finding for finding in group if finding.verdict == first.verdict)
    crashed = "crashed: " if first.verdict == "ERROR" else ""
    action = tables.next_action(worst)
    lines = [
        ": ".join(part for part in (first.verdict, _format_harm(first), crashed + tables.group_reason(worst)) if part),
        f"next: {action}" if action else "",
        *(f"    {line}" for line in tables.patch_lines(worst).splitlines()),
    ]
    return [line for line in lines if line]


def _format_harm(finding: Finding) -> str:
    if finding.verdict == "ERROR":
        return ""
    return _format_estimate(finding.estimate.bounds, finding.estimate.unit, finding.estimate.margin)


def _describe_decision(outcome: Outcome) -> str:
    """Return the decision of a comparison: the size of the change, both levels, and the reason."""
    estimate = outcome.estimate
    size = _format_estimate(estimate.bounds, estimate.unit, estimate.margin)
    levels = "" if estimate.before is None or estimate.now is None else comparison_text.levels_text(outcome)
    numbers = ", ".join(filter(None, (size, levels)))
    return ": ".join(part for part in (outcome.decision, numbers, comparison_text.reason_text(outcome)) if part)


def _format_estimate(bounds: tables.Bounds, unit: str, margin: float | None) -> str:
    if bounds[0] is None:
        return ""
    margin_text = "" if margin is None else f" (margin {format.format_harm(margin, unit).removeprefix('+')})"
    return f"{format.format_bounds(bounds, unit)} {format.unit_name(unit)}{margin_text}"
