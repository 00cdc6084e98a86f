"""``junit.xml``: a suite for each plugin, a case for each finding; of a gate a case for each outcome."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from xferbench.report import comparison_text, format, tables

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from xferbench.core.comparison import Outcome
    from xferbench.core.run import Finding, Run

ELEMENT = {"FAIL": "failure", "ERROR": "error", "SKIPPED": "skipped", "INCONCLUSIVE": "skipped"}
OUTCOME = {"worse": "failure", "crashed": "error", "cannot tell": "skipped", "skipped": "skipped"}
FIGURES = (
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
WORDS = ("verdict", "accepted", "decision", "metric", "unit", "seeds", "examples")
COMPARED = ("before", "now", "change", "low", "high", "margin", "p_worse", "p_not_worse", "flipped")


def render(run: Run) -> str:
    """Render the XML; INFO, PASS and known FAILs are cases that passed. Characters that XML cannot hold become a space."""
    root = ET.Element("testsuites", name=format.one_line(f"xferbench {run.suite.get('name', '')}"))
    if run.gate is None:
        _findings(root, run)
    else:
        _outcomes(root, run, run.gate.outcomes)
    ET.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _findings(root: ET.Element, run: Run) -> None:
    _counts(root, [finding.verdict for finding in run.findings], ELEMENT)
    for plugin in tables.plugin_names(run):
        findings = [finding for finding in run.findings if finding.plugin == plugin]
        suite = ET.SubElement(root, "testsuite", name=format.one_line(plugin))
        _counts(suite, [finding.verdict for finding in findings], ELEMENT)
        for finding in findings:
            _case(suite, finding)


def _outcomes(root: ET.Element, run: Run, outcomes: Sequence[Outcome]) -> None:
    _counts(root, [one.decision for one in outcomes], OUTCOME)
    for plugin in dict.fromkeys(one.plugin for one in outcomes):
        own = [one for one in outcomes if one.plugin == plugin]
        suite = ET.SubElement(root, "testsuite", name=format.one_line(plugin) or "subject")
        _counts(suite, [one.decision for one in own], OUTCOME)
        for one in own:
            _compared(suite, one, tables.group_sentence_name(run, one))


def _compared(suite: ET.Element, one: Outcome, group: tables.Group) -> None:
    case = ET.SubElement(suite, "testcase", classname=suite.get("name", ""), name=format.one_line(one.id))
    _properties(case, outcome_properties(one))
    if one.decision in OUTCOME:
        then = (tables.next_action(group), tables.patch_lines(group)) if group and one.decision != "skipped" else ()
        _result(
            case, OUTCOME[one.decision], one.decision, comparison_text.reason_text(one), then, bare=one.decision == "skipped"
        )


def _counts(element: ET.Element, kinds: Sequence[str], elements: Mapping[str, str]) -> None:
    found = [elements.get(kind, "") for kind in kinds]
    element.set("tests", str(len(found)))
    for plural, name in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        element.set(plural, str(found.count(name)))


def _case(suite: ET.Element, finding: Finding) -> None:
    case = ET.SubElement(suite, "testcase", classname=format.one_line(finding.plugin), name=format.one_line(finding.id))
    _properties(case, finding_properties(finding))
    if finding.verdict in ELEMENT:
        then = (tables.next_action((finding,)), tables.patch_lines((finding,)))
        bare = finding.verdict == "SKIPPED"
        _result(case, ELEMENT[finding.verdict], finding.verdict, finding.reason, then, bare=bare)


def finding_properties(finding: Finding) -> dict[str, str]:
    """Tell a finding's words and numbers by name, without those that are not known."""
    words = {name: str(getattr(finding, name)) for name in ("verdict", "control", "metric", "unit", "seeds", "examples")}
    accuracy = {f"accuracy.{arm}": value for arm, value in finding.accuracy.items()}
    return words | _numbers({name: getattr(finding, name) for name in FIGURES} | accuracy)


def outcome_properties(one: Outcome) -> dict[str, str]:
    """Tell the same of an outcome."""
    words = {name: str(getattr(one, name)) for name in WORDS if getattr(one, name) != ""}
    return words | _numbers({name: getattr(one, name) for name in COMPARED})


def _numbers(told: Mapping[str, float | None]) -> dict[str, str]:
    return {name: format.format_number(value, 6) for name, value in told.items() if value is not None}


def _properties(case: ET.Element, told: Mapping[str, str]) -> None:
    properties = ET.SubElement(case, "properties")
    for name, value in told.items():
        ET.SubElement(properties, "property", name=format.one_line(name), value=format.one_line(value))


def _result(case: ET.Element, name: str, kind: str, reason: str, then: Sequence[str], *, bare: bool) -> None:
    """What the case came to, with the reason and what to do then; ``bare`` has the message alone."""
    element = ET.SubElement(case, name, message=format.one_line(f"{kind}: {reason}"))
    if not bare:
        element.set("type", kind)
        element.text = "\n".join(part for part in (format.one_line(reason), *then) if part)
