"""Compare a candidate run with an accepted one, paired by seed and test example. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from xferbench.analysis import decisions, pairing
from xferbench.analysis.compatibility import plugin_source
from xferbench.analysis.decisions import UNDECIDED_VERDICTS, ContrastFindings
from xferbench.core.comparison import CANNOT_TELL, NOT_WORSE, SUBJECT
from xferbench.core.reason import Code, Reason, because
from xferbench.core.record import json_values
from xferbench.core.run import contrast_id
from xferbench.core.suite import Rules

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from xferbench.analysis.pairing import PairedContrast
    from xferbench.core.comparison import Outcome
    from xferbench.core.run import Finding, Run

COMPUTER_FIELDS = ("processor", "instructions", "python", "packages")  # fields of an environment that may change a trial


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonDraft:
    """A comparison without its sentences.

    Attributes:
        accepted: name, time and environment of the accepted run.
        outcomes: each outcome without a sentence, with its reason.
        notes: how the runs were paired.
        has_too_few_seeds: whether the candidate ended before the seeds of the accepted run, and not at a look of its own.
    """

    accepted: Mapping[str, Any]
    outcomes: tuple[tuple[Outcome, Reason], ...]
    notes: tuple[Reason, ...]
    has_too_few_seeds: bool


def compare(accepted: Run, candidate: Run) -> ComparisonDraft:
    """Compare a candidate with an accepted run, with the candidate's margin, looks and alpha.

    The comparison covers the subject's metric, the harm of every paired contrast that both runs have in the same version of a
    plugin, and the size of every invariant. If the accepted run lacks or skipped a contrast, the candidate's verdict counts.
    If the candidate lacks one, it cannot be compared.

    Raises:
        UserError: if the runs were scored on different test examples, or in different groups.
    """
    rules, is_audit = _rules_of(candidate), candidate.suite.get("after") is not None
    accepted_contrasts, candidate_contrasts = _findings_by_contrast(accepted), _findings_by_contrast(candidate)
    obstacles = {
        name: obstacle
        for name, findings in candidate_contrasts.items()
        if (obstacle := _obstacle(accepted, candidate, findings, accepted_contrasts.get(name)))
    }
    pairs = {SUBJECT: _pair_subject(accepted, candidate, rules, is_audit=is_audit)}
    for name, findings in candidate_contrasts.items():
        definition = _paired_definition(candidate, findings)
        if name not in obstacles and definition and findings.verdict not in UNDECIDED_VERDICTS:
            contrast_rules = replace(rules, metric=definition["metric"], margin=definition["margin"])
            weights = {(arm, view): float(weight) for arm, view, weight in definition["weights"]}
            old, new = (pairing.plugin_records(run, findings.plugin) for run in (accepted, candidate))
            pairs[name] = pairing.pair_contrast(weights, old, new, contrast_rules, is_audit=is_audit)
    decided, elsewhere = pairing.decide_pairs(pairs, rules), _is_elsewhere(accepted, candidate)
    outcomes = [decisions.decide_subject(pairs[SUBJECT], decided[SUBJECT], elsewhere=elsewhere)] if candidate_contrasts else []
    for name, findings in candidate_contrasts.items():
        before = accepted_contrasts.get(name)
        if before and name in pairs:
            outcomes.append(decisions.decide_contrast(findings, before, pairs[name], decided[name], elsewhere=elsewhere))
        elif before is None or name in obstacles or findings.verdict in UNDECIDED_VERDICTS:
            outcomes.append(decisions.decide_unpaired(findings, before, obstacles.get(name)))
        else:
            outcomes.append(decisions.decide_invariant(findings, before))
    outcomes += [
        decisions.decide_dropped(findings)
        for name, findings in accepted_contrasts.items()
        if name not in candidate_contrasts and findings.verdict not in UNDECIDED_VERDICTS
    ]
    short = {name for name, pair in pairs.items() if _is_short(pair, candidate_contrasts, name)}
    outcomes = [_undecided(*entry, pairs[entry[0].id]) if entry[0].id in short else entry for entry in outcomes]
    notes = tuple(_pairing_notes(pairs.values()))
    return ComparisonDraft(
        accepted=_run_summary(accepted), outcomes=tuple(outcomes), notes=notes, has_too_few_seeds=bool(short)
    )


def _is_short(pair: PairedContrast, candidate: Mapping[str, ContrastFindings], name: str) -> bool:
    """Return whether the candidate has fewer seeds than the accepted run although its own looks did not end there.

    A candidate may end at an early look if that look decided its verdict. A budget may end it anywhere, with an open verdict.
    """
    findings = [candidate[name]] if name in candidate else candidate.values()
    is_open = any(finding.verdict == "INCONCLUSIVE" for group in findings for finding in group.findings)
    old, new = pair.seeds
    return new < old and (is_open or new not in pair.rules.looks)


def _undecided(outcome: Outcome, reason: Reason, pair: PairedContrast) -> tuple[Outcome, Reason]:
    """Return an outcome that fewer seeds cannot decide; a loss that they show stays one."""
    if outcome.decision != NOT_WORSE:
        return outcome, reason
    old, new = pair.seeds
    return replace(outcome, decision=CANNOT_TELL), because(Code.ENDED_EARLY, old=old, new=new)


def _rules_of(run: Run) -> Rules:
    """Return those rules of a run's suite that a comparison needs."""
    values = run.suite
    return Rules(
        metric=values["metric"], margin=float(values["margin"]), alpha=float(values["alpha"]), looks=tuple(values["looks"])
    )


def _run_summary(run: Run) -> dict[str, Any]:
    """Return the name, the end time and the main fields of the environment of a run."""
    environment = {name: run.provenance.environment.get(name) for name in ("xferbench", "git", "device", "processor")}
    return {"name": run.suite["name"], "ended": run.provenance.evidence.get("ended"), **environment}


def _findings_by_contrast(run: Run) -> dict[str, ContrastFindings]:
    """Return the findings of a run with a verdict, by the id of the contrast."""
    groups: dict[str, list[Finding]] = {}
    for finding in run.findings:
        if finding.verdict != "INFO":
            groups.setdefault(contrast_id(finding.plugin, finding.contrast), []).append(finding)
    return {
        name: ContrastFindings(id=name, plugin=group[0].plugin, contrast=group[0].contrast, findings=tuple(group))
        for name, group in groups.items()
    }


def _paired_definition(run: Run, findings: ContrastFindings) -> Mapping[str, Any] | None:
    """Return the name, weights, metric and margin of a paired contrast; None for an invariant."""
    definitions = (run.provenance.plugins.get(findings.plugin) or {}).get("contrasts") or ()
    return next((definition for definition in definitions if definition["name"] == findings.contrast), None)


def _obstacle(
    accepted: Run, candidate: Run, findings: ContrastFindings, accepted_findings: ContrastFindings | None
) -> Reason | None:
    """Return why a contrast cannot be compared with the accepted run, or None."""
    if accepted_findings is None:
        return because(Code.NOT_TESTED_BEFORE)
    if accepted_findings.verdict in UNDECIDED_VERDICTS:
        return because(Code.NO_VERDICT_BEFORE, verdict=accepted_findings.verdict)
    old, new = ((run.provenance.plugins.get(findings.plugin) or {}).get("version") for run in (accepted, candidate))
    if old is None or old != new:
        return because(Code.OTHER_VERSION, old=old, new=new)
    old, new = (plugin_source(run, findings.plugin) for run in (accepted, candidate))
    if old != new:
        return because(Code.OTHER_SOURCE, old=old, new=new)
    if _comparable_definition(accepted, findings) != _comparable_definition(candidate, findings):
        return because(Code.OTHER_CONTRAST)
    return None


def _comparable_definition(run: Run, findings: ContrastFindings) -> Any:
    """Return the definition of a contrast; a margin that is the suite's is omitted, because the candidate's margin counts."""
    definition = dict(_paired_definition(run, findings) or {})
    has_suite_margin = definition.get("margin") == run.suite["margin"]
    return json_values(definition | {"margin": None} if has_suite_margin else definition)


def _is_elsewhere(accepted: Run, candidate: Run) -> bool:
    """Return whether the runs were computed on different computers.

    The function returns False for user code, because the key of a trial does not cover everything that such code depends on.
    """
    runs = (accepted, candidate)
    has_user_code = any(run.suite.get("training") or str(run.suite["arch"]).startswith("python:") for run in runs)
    old, new = (json_values({name: run.provenance.environment.get(name) for name in COMPUTER_FIELDS}) for run in runs)
    return not has_user_code and bool(old != new)


def _pair_subject(accepted: Run, candidate: Run, rules: Rules, *, is_audit: bool) -> PairedContrast:
    """Pair the subject of both runs; a finished network is paired on all test images if both runs evaluated all."""
    uses_all = is_audit and all(pairing.subject_records(run, "whole") for run in (accepted, candidate))
    view = "whole" if uses_all else "test"
    before, now = (pairing.subject_records(run, view) for run in (accepted, candidate))
    return pairing.pair_contrast({(SUBJECT, view): -1.0}, before, now, rules, is_audit=is_audit)


def _pairing_notes(pairs: Iterable[PairedContrast]) -> list[Reason]:
    """Return how the runs were paired, if not all seeds of both were paired with themselves."""
    notes: dict[tuple[object, ...], Reason] = {}
    for pair in pairs:
        old, new = pair.seeds
        if pair.by_rank:
            notes[True,] = because(Code.PAIRED_BY_RANK)
        elif pair.count < max(old, new):
            notes[pair.count, old, new] = because(Code.FEWER_SEEDS, count=pair.count, old=old, new=new)
    return list(notes.values())
