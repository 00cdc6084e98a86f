"""Two runs beside each other: how much worse the candidate is than what was accepted, paired by seed and test example. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from xferbench.analysis import decisions, pairing
from xferbench.analysis.compatibility import plugin_source
from xferbench.analysis.decisions import UNDECIDED_VERDICTS, ContrastFindings
from xferbench.core.comparison import SUBJECT
from xferbench.core.reason import Code, Reason, because
from xferbench.core.record import json_values
from xferbench.core.run import contrast_id
from xferbench.core.suite import Suite

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from xferbench.core.comparison import Outcome
    from xferbench.core.run import Finding, Run

COMPUTER_FIELDS = ("processor", "instructions", "python", "packages")  # of an environment, by which the same trial may differ


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonDraft:
    """A comparison before its sentences are written: outcomes without reasons, with the reasons beside them."""

    accepted: Mapping[str, Any]
    outcomes: tuple[tuple[Outcome, Reason], ...]
    notes: tuple[Reason, ...]


def compare(accepted: Run, candidate: Run) -> ComparisonDraft:
    """Hold a candidate against an accepted run, with the candidate's margin, looks and alpha.

    The subject's metric is compared, and the harm of every paired contrast that both runs have of one version of a plugin;
    an invariant by what it measures. What the accepted run lacks, or had skipped, counts by the candidate's own verdict; what
    the candidate lacks cannot be told.

    Raises:
        UserError: where the two were scored on other test examples, or on the same in other groups.
    """
    suite, known, asked = _suite(candidate), _abouts(accepted), _abouts(candidate)
    apart = {name: why for name, one in asked.items() if (why := _apart(accepted, candidate, one, known.get(name)))}
    held = {SUBJECT: _subject(accepted, candidate, suite)}
    for name, one in asked.items():
        how = _contrast(candidate, one)
        if name not in apart and how and one.verdict not in UNDECIDED_VERDICTS:
            before, now = (pairing.plugin_records(run, one.plugin) for run in (accepted, candidate))
            weights = {(arm, view): float(weight) for arm, view, weight in how["weights"]}
            held[name] = pairing.pair_contrast(weights, before, now, replace(suite, metric=how["metric"], margin=how["margin"]))
    judged, elsewhere = pairing.decide_pairs(held, suite), _elsewhere(accepted, candidate)
    found = [decisions.decide_subject(held[SUBJECT], judged[SUBJECT], elsewhere=elsewhere)] if asked else []
    for name, one in asked.items():
        if name in held:
            found.append(decisions.decide_contrast(one, known[name], held[name], judged[name], elsewhere=elsewhere))
        elif name in apart or one.verdict in UNDECIDED_VERDICTS:
            found.append(decisions.decide_unpaired(one, known.get(name), apart.get(name)))
        else:
            found.append(decisions.decide_invariant(one, known[name]))
    found += [
        decisions.decide_dropped(one)
        for name, one in known.items()
        if name not in asked and one.verdict not in UNDECIDED_VERDICTS
    ]
    return ComparisonDraft(accepted=_whom(accepted), outcomes=tuple(found), notes=tuple(_notes(held.values())))


def _suite(run: Run) -> Suite:
    """Of a run's suite what a comparison needs."""
    told = run.suite
    return Suite(
        name=told["name"],
        path="",
        plugins=(),
        arch=told["arch"],
        target=told["target"],
        metric=told["metric"],
        margin=float(told["margin"]),
        alpha=float(told["alpha"]),
        looks=tuple(told["looks"]),
        after=told.get("after"),
    )


def _whom(run: Run) -> dict[str, Any]:
    told = {name: run.environment.get(name) for name in ("xferbench", "git", "device", "processor")}
    return {"name": run.suite["name"], "ended": run.evidence.get("ended"), **told}


def _abouts(run: Run) -> dict[str, ContrastFindings]:
    """What a run was judged on, by the id of the contrast."""
    together: dict[str, list[Finding]] = {}
    for finding in run.findings:
        if finding.verdict != "INFO":
            together.setdefault(contrast_id(finding.plugin, finding.contrast), []).append(finding)
    return {
        name: ContrastFindings(id=name, plugin=found[0].plugin, contrast=found[0].contrast, findings=tuple(found))
        for name, found in together.items()
    }


def _contrast(run: Run, one: ContrastFindings) -> Mapping[str, Any] | None:
    """Weights, metric and margin of a paired contrast; None of an invariant."""
    told = (run.plugins.get(one.plugin) or {}).get("contrasts") or ()
    return next((how for how in told if how["name"] == one.contrast), None)


def _apart(accepted: Run, candidate: Run, one: ContrastFindings, known: ContrastFindings | None) -> Reason | None:
    """Why a contrast cannot be compared with the accepted run, or None."""
    if known is None:
        return because(Code.NOT_TESTED_BEFORE)
    if known.verdict in UNDECIDED_VERDICTS:
        return because(Code.NO_VERDICT_BEFORE, verdict=known.verdict)
    old, new = ((run.plugins.get(one.plugin) or {}).get("version") for run in (accepted, candidate))
    if old is None or old != new:
        return because(Code.OTHER_VERSION, old=old, new=new)
    old, new = (plugin_source(run, one.plugin) for run in (accepted, candidate))
    if old != new:
        return because(Code.OTHER_SOURCE, old=old, new=new)
    if _otherwise(accepted, one) != _otherwise(candidate, one):
        return because(Code.OTHER_CONTRAST)
    return None


def _otherwise(run: Run, one: ContrastFindings) -> Any:
    """What a contrast consists of, with its margin where that is not the suite's."""
    how = dict(_contrast(run, one) or {})
    return json_values(how if how.get("margin") != run.suite["margin"] else how | {"margin": None})


def _elsewhere(accepted: Run, candidate: Run) -> bool:
    """Whether another computer made one of two runs; of code of the user's own a key does not tell all that it depends on."""
    own = any(run.suite.get("training") or str(run.suite["arch"]).startswith("python:") for run in (accepted, candidate))
    told = [json_values({name: run.environment.get(name) for name in COMPUTER_FIELDS}) for run in (accepted, candidate)]
    return not own and told[0] != told[1]


def _subject(accepted: Run, candidate: Run, suite: Suite) -> pairing.PairedContrast:
    """The subject of both runs; of a finished network on all test images where both looked at all."""
    whole = suite.after and all(pairing.subject_records(run, "whole") for run in (accepted, candidate))
    view = "whole" if whole else "test"
    before, now = (pairing.subject_records(run, view) for run in (accepted, candidate))
    return pairing.pair_contrast({(SUBJECT, view): -1.0}, before, now, suite)


def _notes(pairs_: Iterable[pairing.PairedContrast]) -> list[Reason]:
    """How the runs were paired, where that is not seed by seed and all of them."""
    notes: dict[tuple[object, ...], Reason] = {}
    for pair in pairs_:
        old, new = pair.seeds
        if pair.by_rank:
            notes[True,] = because(Code.PAIRED_BY_RANK)
        elif pair.count < max(old, new):
            notes[pair.count, old, new] = because(Code.FEWER_SEEDS, count=pair.count, old=old, new=new)
    return list(notes.values())
