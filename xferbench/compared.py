"""Two runs beside each other: how much worse the candidate is than what was accepted, paired by seed and test example. Pure.

A comparison is judged as a harm is: the crossed interval of :mod:`xferbench.stats`, the suite's margin, looks and alpha, Holm's
correction over all that is compared, WORSE and NOT WORSE apart. Whatever is missing decides nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from xferbench import metrics, pairs
from xferbench.design import Suite
from xferbench.reason import needed, shown
from xferbench.record import contrast, plain, section

if TYPE_CHECKING:
    from collections.abc import Mapping

    from xferbench.looks import Judgement
    from xferbench.record import Finding, Run

WORSE, NOT_WORSE, CANNOT_TELL, CRASHED, SKIPPED = DECISIONS = ("worse", "not worse", "cannot tell", "crashed", "skipped")
SUBJECT = "subject"  # the id of the outcome that is about the suite's metric itself
WORST = ("ERROR", "FAIL", "INCONCLUSIVE", "PASS", "SKIPPED")
OWN = {"ERROR": CRASHED, "FAIL": WORSE, "INCONCLUSIVE": CANNOT_TELL, "PASS": NOT_WORSE, "SKIPPED": SKIPPED}
RULES = ("metric", "margin", "alpha", "looks", "plugins", "max_duplicates")  # of a suite, by which trials become verdicts
ROUNDING = 1e-6  # of what an invariant measures


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What is decided of one thing that is compared: the subject's metric, or the harm of a plugin's contrast.

    Attributes:
        id: ``subject``, or ``plugin/contrast``. plugin: its id, or its check's; "" of the subject.
        decision: one of ``DECISIONS``; ``worse`` is what fails a gate.
        verdict, accepted: the candidate's own verdict and that of the accepted run; "" where there is none.
        before, now: the subject's metric, or the harm, of the accepted run and of the candidate, in ``unit``.
        change, low, high: how much worse, with unadjusted one-sided bounds; above 0 is worse, for losses too.
        p_worse, p_not_worse: adjusted for looks and for all that is compared; None where nothing was to be tested.
        compared: whether the two were paired; where not, the candidate's own verdict counts.
        flipped: share of the subject's answers that differ, over the pairs of seed and example; None of a harm.
    """

    id: str
    plugin: str
    decision: str
    reason: str
    verdict: str = ""
    accepted: str = ""
    metric: str = "accuracy"
    unit: str = "accuracy"
    margin: float | None = None
    before: float | None = None
    now: float | None = None
    change: float | None = None
    low: float | None = None
    high: float | None = None
    p_worse: float | None = None
    p_not_worse: float | None = None
    seeds: int = 0
    examples: int = 0
    compared: bool = False
    flipped: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A candidate held against an accepted run.

    Attributes:
        accepted: whom it was held against: ``name`` of the suite, ``file``, ``xferbench``, ``git``, ``ended``.
        outcomes: the subject's first. notes: what differs between the two runs and is no reason not to compare them.
    """

    accepted: Mapping[str, Any] = field(default_factory=dict)
    outcomes: tuple[Outcome, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What a run says of one contrast of a plugin or check: its findings, one a variant, the worst verdict among them."""

    id: str
    section: str
    contrast: str
    findings: tuple[Finding, ...]

    @property
    def verdict(self) -> str:
        """The worst one: a crash, then FAIL, what is open, PASS, SKIPPED."""
        return min((one.verdict for one in self.findings), key=WORST.index)

    @property
    def worst(self) -> Finding:
        """The first finding with that verdict."""
        return next(one for one in self.findings if one.verdict == self.verdict)


def compare(accepted: Run, candidate: Run) -> Comparison:
    """Hold a candidate against an accepted run, with the candidate's margin, looks and alpha.

    The subject's metric is compared, and the harm of every paired contrast that both runs have of one version of a plugin;
    an invariant by what it measures. What the accepted run lacks, or had skipped, counts by the candidate's own verdict.

    Raises:
        Problem: where the two were scored on other test examples.
    """
    suite, known = _suite(candidate), _abouts(accepted)
    asked = _abouts(candidate)
    apart = {name: why for name, one in asked.items() if (why := _apart(accepted, candidate, one, known.get(name)))}
    held = {SUBJECT: _subject(accepted, candidate, suite)}
    for name, one in asked.items():
        how = _contrast(candidate, one)
        if name not in apart and how and one.verdict not in {"ERROR", "SKIPPED"}:
            before, now = (pairs.told(run, one.section) for run in (accepted, candidate))
            weights = {(arm, view): float(weight) for arm, view, weight in how["weights"]}
            held[name] = pairs.pair(weights, before, now, replace(suite, metric=how["metric"], margin=how["margin"]))
    judged = pairs.judged(held, suite)
    tested = max(1, sum(one.harm.exposed for one in judged.values()))
    outcomes = [_of_subject(held[SUBJECT], judged[SUBJECT], tested)] if asked else []
    for name, one in asked.items():
        if name in held:
            rules = _same_rules(accepted, candidate) and held[name].same
            outcomes.append(_of_contrast(one, known[name], held[name], judged[name], tested, rules=rules))
        elif name in apart or one.verdict in {"ERROR", "SKIPPED"}:
            outcomes.append(_by_itself(one, known.get(name), apart.get(name, "")))
        else:
            outcomes.append(_of_invariant(one, known[name]))
    return Comparison(accepted=_whom(accepted), outcomes=tuple(outcomes))


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


def _abouts(run: Run) -> dict[str, About]:
    """What a run was judged on, by ``plugin/contrast``."""
    together: dict[str, list[Finding]] = {}
    for finding in run.findings:
        if finding.verdict != "INFO":
            together.setdefault(f"{finding.plugin}/{finding.contrast}", []).append(finding)
    return {
        name: About(id=name, section=section(found[0]), contrast=contrast(found[0]), findings=tuple(found))
        for name, found in together.items()
    }


def _contrast(run: Run, one: About) -> Mapping[str, Any] | None:
    """Weights, metric and margin of a paired contrast; None of an invariant."""
    told = (run.plugins.get(one.section) or {}).get("contrasts") or ()
    return next((how for how in told if how["name"] == one.contrast), None)


def _apart(accepted: Run, candidate: Run, one: About, known: About | None) -> str:
    """Why a contrast cannot be held against the accepted run, or ""."""
    if known is None:
        return "the accepted run did not ask this"
    if known.verdict in {"ERROR", "SKIPPED"}:
        return f"the accepted run has no verdict of it ({known.verdict})"
    old, new = ((run.plugins.get(one.section) or {}).get("version") for run in (accepted, candidate))
    if old is None or old != new:
        return f"accepted with version {old or 'unknown'} of the plugin, this is version {new}: the two are not compared"
    return ""


def _same_rules(accepted: Run, candidate: Run) -> bool:
    """Whether two runs were judged alike, so that the same trials can only differ by the computer."""
    return all(plain(accepted.suite.get(name)) == plain(candidate.suite.get(name)) for name in RULES)


def _subject(accepted: Run, candidate: Run, suite: Suite) -> pairs.Pair:
    """The subject of both runs, on all test examples where both looked at all, and else on those that verdicts are taken on."""
    whole = all(pairs.subjects(run, "whole") for run in (accepted, candidate))
    view = "whole" if whole else "test"
    before, now = (pairs.subjects(run, view) for run in (accepted, candidate))
    return pairs.pair({(SUBJECT, view): -1.0}, before, now, suite)


def _of_subject(one: pairs.Pair, judged: Judgement, tested: int) -> Outcome:
    decision, why = _decision(one, judged, tested, rules=one.same)
    seeds = len(judged.seeds)
    level = dict.fromkeys(one.weights, 1.0)
    before, now = (pairs.level(one, side, seeds, level) for side in (pairs.OLD, pairs.NEW))
    figures = _figures(one, judged) | {"before": before, "now": now, "flipped": pairs.flipped(one, seeds)}
    return Outcome(id=SUBJECT, plugin="", decision=decision, reason=why, **figures)


def _of_contrast(one: About, known: About, held: pairs.Pair, judged: Judgement, tested: int, *, rules: bool) -> Outcome:
    """A harm that both runs have: worse where it is shown to have grown, or is a FAIL that the accepted run has not."""
    decision, why = _decision(held, judged, tested, rules=rules)
    if decision != CRASHED and not rules:
        decision, why = _with_verdicts(one, known, decision, why)
    elif decision not in {CRASHED, WORSE} and one.verdict != known.verdict:
        why += f"; computed elsewhere its verdict is {one.verdict} (accepted: {known.verdict})"
    sign = -1.0 if metrics.named(held.suite.metric).loss else 1.0
    harms = [pairs.level(held, side, len(judged.seeds), held.weights) for side in (pairs.OLD, pairs.NEW)]
    before, now = (None if harm is None else sign * harm for harm in harms)
    return _told(one, known, decision, why, _figures(held, judged) | {"before": before, "now": now})


def _with_verdicts(one: About, known: About, decision: str, why: str) -> tuple[str, str]:
    """What the two runs' own verdicts say beside the comparison."""
    if one.verdict == "FAIL" and known.verdict != "FAIL":
        return WORSE, f"a FAIL that the accepted run has not (there {known.verdict}): {one.worst.reason}"
    if one.verdict == "FAIL" and decision == WORSE:
        return decision, f"the accepted run fails it too, but this is {why}"
    if one.verdict == "PASS" and decision != NOT_WORSE:
        return NOT_WORSE, f"whatever it was before, {one.worst.reason}"
    return decision, why


def _of_invariant(one: About, known: About) -> Outcome:
    """An invariant has no interval: it is broken anew, or by more than before, or it is not."""
    before, now = (_measured(about) for about in (known, one))
    figures = {"before": before, "now": now, "compared": True, "unit": "count", "metric": one.contrast}
    grown = before is not None and now is not None and abs(now) > abs(before) * (1 + ROUNDING) + ROUNDING
    if one.verdict == "FAIL" and known.verdict != "FAIL":
        why = f"a FAIL that the accepted run has not (there {known.verdict}): {one.worst.reason}"
        return _told(one, known, WORSE, why, figures)
    if one.verdict == "FAIL" and grown:
        why = f"the accepted run fails it too, but by less: {now:.6g}, accepted {before:.6g}; {one.worst.reason}"
        return _told(one, known, WORSE, why, figures)
    decision = CANNOT_TELL if one.verdict == "INCONCLUSIVE" else NOT_WORSE
    return _told(one, known, decision, one.worst.reason, figures)


def _measured(one: About) -> float | None:
    """What an invariant's subject measured, the mean over seeds."""
    return one.worst.measures.get(f"{SUBJECT}/{one.contrast}")


def _by_itself(one: About, known: About | None, apart: str) -> Outcome:
    """What has nothing to be held against counts by its own verdict."""
    decision = OWN[one.verdict]
    why = f"{apart}, so its own verdict counts: {one.verdict}, {one.worst.reason}" if apart else one.worst.reason
    if one.verdict == "SKIPPED" and known is not None and known.verdict not in {"SKIPPED", "ERROR"}:
        decision, why = CANNOT_TELL, f"no longer judged (accepted: {known.verdict}): {one.worst.reason}"
    worst = one.worst
    figures = {name: getattr(worst, name) for name in ("metric", "unit", "margin", "seeds", "examples")}
    return _told(one, known, decision, why, figures | {"now": worst.harm})


def _told(one: About, known: About | None, decision: str, why: str, figures: Mapping[str, Any]) -> Outcome:
    accepted = known.verdict if known else ""
    return Outcome(
        id=one.id, plugin=one.section, decision=decision, reason=why, verdict=one.verdict, accepted=accepted, **figures
    )


def _figures(one: pairs.Pair, judged: Judgement) -> dict[str, Any]:
    estimate, tested = judged.harm.estimate, judged.harm.exposed and not judged.harm.error
    return {
        "metric": one.suite.metric,
        "unit": metrics.named(one.suite.metric).unit,
        "margin": one.suite.margin,
        "change": plain(estimate.harm),
        "low": plain(estimate.low),
        "high": plain(estimate.high),
        "p_worse": judged.adjusted[0] if tested else None,
        "p_not_worse": judged.adjusted[1] if tested else None,
        "seeds": len(judged.seeds),
        "examples": estimate.examples,
        "compared": True,
    }


def _decision(one: pairs.Pair, judged: Judgement, tested: int, *, rules: bool) -> tuple[str, str]:
    """What the interval says, in a word and in a sentence; ``rules`` tells that only the computer can differ."""
    harm, unit = judged.harm, metrics.named(one.suite.metric).unit
    crashed = any(record.error for (arm, _, _), record in one.answers.items() if arm.startswith(pairs.NEW))
    if harm.error:
        return (CRASHED if crashed else CANNOT_TELL), harm.error
    margin = f"the margin of {shown(one.suite.margin, unit, signed=False)}"
    if not harm.exposed:
        alike = "unchanged: the same trials with the same answers"
        return NOT_WORSE, alike if one.same else "exactly 0, as it was: the cure changes nothing"
    if judged.verdict == "FAIL":
        return WORSE, f"worse by more than {margin}"
    if rules:
        return NOT_WORSE, "unchanged: the same trials, and what another computer makes of them is not shown to be worse"
    if judged.verdict == "PASS":
        return NOT_WORSE, f"worse by less than {margin}, if at all"
    return CANNOT_TELL, f"neither worse by {margin} nor by less is shown; {needed(harm, one.suite, tested=tested)}"
