"""Which failures of a finished network are left once the largest one is mended: those that are not were its symptoms. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from xferbench.reason import interval

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xferbench.looks import Case, Step
    from xferbench.plan import Study
    from xferbench.record import Finding


@dataclass(frozen=True, slots=True, kw_only=True)
class Mended:
    """A study with its largest failure mended: by what it was mended, and where the study of the others stands."""

    by: str
    study: Study
    step: Step


def mended(study: Study, step: Step) -> tuple[str, Study] | None:
    """The failure with the largest harm in the suite's metric that a repair was confirmed for, and the study of what is left.

    The other failures are asked of the network as that repair leaves it. None where nothing was mended, or nothing is left.
    """
    failed = {name: one.harm.estimate.harm for name, one in step.judgements.items() if one.verdict == "FAIL"}
    cases = {f"{case.plugin.id}/{contrast.name}": case for case in step.cases for _, contrast in case.contrasts("paired")}
    own = {name: harm for name, harm in failed.items() if repairs(cases[name], study.suite.metric)}
    if len(failed) < 2 or not own:
        return None
    largest = max(own, key=lambda name: own[name])
    cured = cases[largest].arms["cured"].pipeline
    assert cured is not None, "what is judged is settled"
    left = [cases[name].plugin for name in failed if cases[name].plugin.id != cases[largest].plugin.id]
    return (cases[largest].plugin.id, replace(study, subject=cured, plugins=tuple(left))) if left else None


def repairs(case: Case, metric: str) -> bool:
    """Whether a cure leaves the network that it is about, and is judged by the metric that the others are."""
    before, after = (case.arms[arm].pipeline for arm in ("subject", "cured"))
    if before is None or after is None or before == after or before.finished is None:
        return False
    edits = after.edits[len(before.edits) :]
    plain = [one for one in case.plugin.contrasts if one.kind == "paired" and one.metric in {"", metric}]
    return bool(plain) and all(edit.startswith(("batchnorm:", "classes:")) for edit in edits)


def told(findings: Sequence[Finding], found: Mended | None) -> tuple[Finding, ...]:
    """The findings, each failure with what is left of it once the largest is mended."""
    return tuple(findings) if found is None else tuple(_told(one, found) for one in findings)


def _told(finding: Finding, found: Mended) -> Finding:
    left = found.step.judgements.get(f"{finding.plugin}/{finding.contrast}")
    if finding.verdict != "FAIL" or left is None or left.harm.error:
        return finding
    word = {"FAIL": "stays", "PASS": "is gone"}.get(left.verdict, "is not shown any more")
    said = f"it {word} once {found.by} is mended: {interval(left.harm.estimate, finding.unit)}"
    return replace(finding, reason=f"{finding.reason}; {said}")
