"""Which failures of a finished network are left once the largest one is mended: those that are not were its symptoms. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from xferbench.core.interventions import AssignClasses, BatchNormEdit, Edit, RotateClasses
from xferbench.core.reason import Code, Reason, because

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xferbench.core.run import Finding
    from xferbench.study.draft import Draft
    from xferbench.study.schedule import PluginState, Schedule
    from xferbench.study.study import Study


@dataclass(frozen=True, slots=True, kw_only=True)
class Followup:
    """A study with its largest failure mended: by what it was mended, and where the study of the others stands."""

    by: str
    study: Study
    step: Schedule


def followup_study(study: Study, step: Schedule) -> tuple[str, Study] | None:
    """The failure with the largest harm in the suite's metric that a repair was confirmed for, and the study of what is left.

    The other failures are asked of the network as that repair leaves it. None where nothing was mended, or nothing is left.
    """
    failed = {name: one.harm.estimate.harm for name, one in step.judgements.items() if one.verdict == "FAIL"}
    cases = {f"{case.plugin.id}/{contrast.name}": case for case in step.cases for _, contrast in case.contrasts("paired")}
    own = {name: harm for name, harm in failed.items() if is_repair(cases[name], study.suite.metric)}
    if len(failed) < 2 or not own:
        return None
    largest = max(own, key=lambda name: own[name])
    cured = cases[largest].arms["cured"].pipeline
    assert cured is not None, "what is judged is settled"
    left = [cases[name].plugin for name in failed if cases[name].plugin.id != cases[largest].plugin.id]
    return (cases[largest].plugin.id, replace(study, subject=cured, plugins=tuple(left))) if left else None


def is_repair(case: PluginState, metric: str) -> bool:
    """Whether a cure leaves the network that it is about, and is judged by the metric that the others are."""
    before, after = (case.arms[arm].pipeline for arm in ("subject", "cured"))
    if before is None or after is None or before == after or before.finished is None:
        return False
    edits = after.edits[len(before.edits) :]
    plain = [one for one in case.plugin.contrasts if one.kind == "paired" and one.metric in {"", metric}]
    return bool(plain) and all(isinstance(Edit.parse(edit), BatchNormEdit | AssignClasses | RotateClasses) for edit in edits)


def add_followup(drafts: Sequence[Draft], repaired: Followup | None) -> tuple[Draft, ...]:
    """The findings, each failure with what is left of it once the largest is repaired."""
    return tuple(drafts) if repaired is None else tuple(replace(one, followup=_left(one.finding, repaired)) for one in drafts)


def _left(finding: Finding, repaired: Followup) -> Reason | None:
    left = repaired.step.judgements.get(f"{finding.plugin}/{finding.contrast}")
    if finding.verdict != "FAIL" or left is None or left.harm.error:
        return None
    return because(Code.LEFT_AFTER_REPAIR, by=repaired.by, verdict=left.verdict, estimate=left.harm.estimate)
