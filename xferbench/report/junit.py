"""``junit.xml``: a test suite for each plugin with a test case for each finding, or for each outcome of a gate. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from xferbench.core.sections import flat_values
from xferbench.report import comparison_text, format, tables

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from xferbench.core.comparison import Outcome
    from xferbench.core.run import Finding, Run

VERDICT_ELEMENTS = {"FAIL": "failure", "ERROR": "error", "SKIPPED": "skipped", "INCONCLUSIVE": "skipped"}
DECISION_ELEMENTS = {"worse": "failure", "crashed": "error", "cannot tell": "skipped", "skipped": "skipped"}
FINDING_TEXTS = ("verdict", "control", "metric", "unit", "seeds", "examples")
FINDING_NUMBERS = (
    "harm",
    "low",
    "high",
    "margin",
    "p_fail",
    "p_pass",
    "benefit_retained",
    "control_harm",
    "control_low",
    "control_high",
)
OUTCOME_TEXTS = ("verdict", "accepted", "decision", "metric", "unit", "seeds", "examples")
OUTCOME_NUMBERS = ("before", "now", "change", "low", "high", "margin", "p_worse", "p_not_worse", "flipped")


def render(run: Run) -> str:
    """Return the XML. INFO, PASS and known FAILs are passed cases; a character that XML cannot contain becomes a space."""
    root = ET.Element("testsuites", name=format.one_line(f"xferbench {run.suite.get('name', '')}"))
    if run.gate is None:
        _add_findings(root, run)
    else:
        _add_outcomes(root, run, run.gate.outcomes)
    ET.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _add_findings(root: ET.Element, run: Run) -> None:
    _set_counts(root, [finding.verdict for finding in run.findings], VERDICT_ELEMENTS)
    for plugin in tables.plugin_names(run):
        findings = [finding for finding in run.findings if finding.plugin == plugin]
        suite = ET.SubElement(root, "testsuite", name=format.one_line(plugin))
        _set_counts(suite, [finding.verdict for finding in findings], VERDICT_ELEMENTS)
        for finding in findings:
            _add_finding(suite, finding)


def _add_finding(suite: ET.Element, finding: Finding) -> None:
    case = ET.SubElement(suite, "testcase", classname=format.one_line(finding.plugin), name=format.one_line(finding.id))
    _add_properties(case, finding_properties(finding))
    if finding.verdict in VERDICT_ELEMENTS:
        details = None if finding.verdict == "SKIPPED" else _actions((finding,))
        _add_result(case, VERDICT_ELEMENTS[finding.verdict], finding.verdict, finding.reason, details)


def _add_outcomes(root: ET.Element, run: Run, outcomes: Sequence[Outcome]) -> None:
    _set_counts(root, [outcome.decision for outcome in outcomes], DECISION_ELEMENTS)
    for plugin in dict.fromkeys(outcome.plugin for outcome in outcomes):
        of_plugin = [outcome for outcome in outcomes if outcome.plugin == plugin]
        suite = ET.SubElement(root, "testsuite", name=format.one_line(plugin) or "subject")
        _set_counts(suite, [outcome.decision for outcome in of_plugin], DECISION_ELEMENTS)
        for outcome in of_plugin:
            _add_outcome(suite, outcome, tables.outcome_group(run, outcome))


def _add_outcome(suite: ET.Element, outcome: Outcome, group: tables.Group) -> None:
    case = ET.SubElement(suite, "testcase", classname=suite.get("name", ""), name=format.one_line(outcome.id))
    _add_properties(case, outcome_properties(outcome))
    if outcome.decision in DECISION_ELEMENTS:
        details = None if outcome.decision == "skipped" else _actions(group) if group else ()
        reason = comparison_text.reason_text(outcome)
        _add_result(case, DECISION_ELEMENTS[outcome.decision], outcome.decision, reason, details)


def _actions(group: tables.Group) -> tuple[str, str]:
    return tables.next_action(group), tables.patch_lines(group)


def _set_counts(element: ET.Element, results: Sequence[str], elements: Mapping[str, str]) -> None:
    """Set the numbers of tests, failures, errors and skipped tests of a suite."""
    names = [elements.get(result, "") for result in results]
    element.set("tests", str(len(names)))
    for attribute, name in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        element.set(attribute, str(names.count(name)))


def finding_properties(finding: Finding) -> dict[str, str]:
    """Return the texts and numbers of a finding by name, without missing numbers."""
    values = flat_values(finding)
    texts = {name: str(values[name]) for name in FINDING_TEXTS}
    accuracy = {f"accuracy.{arm}": value for arm, value in finding.accuracy.items()}
    return texts | _format_numbers({name: values[name] for name in FINDING_NUMBERS} | accuracy)


def outcome_properties(outcome: Outcome) -> dict[str, str]:
    """Return the texts and numbers of an outcome by name, without missing ones."""
    values = flat_values(outcome)
    texts = {name: str(values[name]) for name in OUTCOME_TEXTS if values[name] != ""}
    return texts | _format_numbers({name: values[name] for name in OUTCOME_NUMBERS})


def _format_numbers(values: Mapping[str, float | None]) -> dict[str, str]:
    return {name: format.format_number(value, 6) for name, value in values.items() if value is not None}


def _add_properties(case: ET.Element, values: Mapping[str, str]) -> None:
    properties = ET.SubElement(case, "properties")
    for name, value in values.items():
        ET.SubElement(properties, "property", name=format.one_line(name), value=format.one_line(value))


def _add_result(case: ET.Element, element_name: str, result: str, reason: str, details: Sequence[str] | None) -> None:
    """Add the result of a case with its reason.

    Args:
        case: the case.
        element_name: name of the element: ``failure``, ``error`` or ``skipped``.
        result: verdict or decision.
        reason: why.
        details: texts below the reason; None for a message without type and text.
    """
    element = ET.SubElement(case, element_name, message=format.one_line(f"{result}: {reason}"))
    if details is not None:
        element.set("type", result)
        element.text = "\n".join(part for part in (format.one_line(reason), *details) if part)
