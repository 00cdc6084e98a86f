"""``junit.xml``: a suite for each plugin, a case for each finding."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from xferbench.report import frames, text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xferbench.record import Finding, Run

ELEMENT = {"FAIL": "failure", "ERROR": "error", "SKIPPED": "skipped", "INCONCLUSIVE": "skipped"}
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


def render(run: Run) -> str:
    """Render the XML; INFO and PASS are cases that passed. Characters that XML cannot hold become a space."""
    root = ET.Element("testsuites", name=text.line(f"xferbench {run.suite.get('name', '')}"))
    _counts(root, run.findings)
    for plugin in frames.plugins(run):
        findings = [finding for finding in run.findings if frames.section(finding) == plugin]
        suite = ET.SubElement(root, "testsuite", name=text.line(plugin))
        _counts(suite, findings)
        for finding in findings:
            _case(suite, finding)
    ET.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _counts(element: ET.Element, findings: Sequence[Finding]) -> None:
    found = [ELEMENT.get(finding.verdict, "") for finding in findings]
    element.set("tests", str(len(found)))
    for plural, name in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        element.set(plural, str(found.count(name)))


def _case(suite: ET.Element, finding: Finding) -> None:
    case = ET.SubElement(suite, "testcase", classname=text.line(frames.section(finding)), name=text.line(finding.id))
    properties = ET.SubElement(case, "properties")
    for name, value in figures(finding).items():
        ET.SubElement(properties, "property", name=text.line(name), value=text.line(value))
    if finding.verdict in ELEMENT:
        message = text.line(f"{finding.verdict}: {finding.reason}")
        element = ET.SubElement(case, ELEMENT[finding.verdict], message=message)
        if finding.verdict != "SKIPPED":
            element.set("type", finding.verdict)
            element.text = "\n".join(
                part for part in (text.line(finding.reason), frames.action((finding,)), frames.patch((finding,))) if part
            )


def figures(finding: Finding) -> dict[str, str]:
    """Tell a finding's words and numbers by name, what is not known left out."""
    numbers = {name: getattr(finding, name) for name in FIGURES} | {
        f"accuracy.{arm}": value for arm, value in finding.accuracy.items()
    }
    told = {name: f"{value:.6g}" for name, value in numbers.items() if value is not None}
    words = {name: str(getattr(finding, name)) for name in ("verdict", "control", "metric", "unit", "seeds", "examples")}
    return words | told
