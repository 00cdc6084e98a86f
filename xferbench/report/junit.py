"""``junit.xml``: a suite for each plugin, a case for each finding."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree import ElementTree

from xferbench.report import frames, text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xferbench.record import Finding, Run

ELEMENT = {"FAIL": "failure", "ERROR": "error", "SKIPPED": "skipped", "INCONCLUSIVE": "skipped"}
FIGURES = ("harm", "low", "high", "margin", "p_fail", "p_pass", "benefit_retained", "control_harm", "control_low", "control_high")


def render(run: Run) -> str:
    """The XML; INFO and PASS are cases that passed. Characters that XML cannot hold become a space."""
    root = ElementTree.Element("testsuites", name=text.line(f"xferbench {run.suite.get('name', '')}"), **_counts(run.findings))
    for plugin in frames.plugins(run):
        findings = [finding for finding in run.findings if finding.plugin == plugin]
        suite = ElementTree.SubElement(root, "testsuite", name=text.line(plugin), **_counts(findings))
        for finding in findings:
            _case(suite, finding)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _counts(findings: Sequence[Finding]) -> dict[str, str]:
    found = [ELEMENT.get(finding.verdict, "") for finding in findings]
    return {
        "tests": str(len(found)),
        "failures": str(found.count("failure")),
        "errors": str(found.count("error")),
        "skipped": str(found.count("skipped")),
    }


def _case(suite: ElementTree.Element, finding: Finding) -> None:
    case = ElementTree.SubElement(suite, "testcase", classname=text.line(finding.plugin), name=text.line(finding.id))
    properties = ElementTree.SubElement(case, "properties")
    numbers = {name: getattr(finding, name) for name in FIGURES} | {f"accuracy.{arm}": value for arm, value in finding.accuracy.items()}
    told = {name: f"{value:.6g}" for name, value in numbers.items() if value is not None}
    words = {name: str(getattr(finding, name)) for name in ("verdict", "control", "metric", "unit", "seeds", "examples")}
    for name, value in {**words, **told}.items():
        ElementTree.SubElement(properties, "property", name=text.line(name), value=text.line(value))
    if finding.verdict in ELEMENT:
        message = text.line(f"{finding.verdict}: {finding.reason}")
        element = ElementTree.SubElement(case, ELEMENT[finding.verdict], message=message)
        if finding.verdict != "SKIPPED":
            element.set("type", finding.verdict)
            element.text = "\n".join(part for part in (text.line(finding.reason), frames.action((finding,)), frames.patch((finding,))) if part)
