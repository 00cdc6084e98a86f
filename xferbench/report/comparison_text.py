"""Describe a comparison in words and numbers that every output format shares. Pure.

A decision is known by its string only, so this module does not import the analysis.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xferbench.report import format

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xferbench.core.comparison import Comparison, Outcome
    from xferbench.core.run import Run

KNOWN_FAILURE = "known: the accepted run also fails"
VERDICT_STYLE = {  # the verdict whose color a decision has; the worst first
    "worse": "FAIL",
    "crashed": "ERROR",
    "cannot tell": "INCONCLUSIVE",
    "not worse": "PASS",
    "skipped": "SKIPPED",
}
SIDE_NAMES = {True: ("Accepted", "Now"), False: ("A", "B")}  # by whether it is a gate: the names of the two runs
ATTENTION_DECISIONS = ("worse", "crashed", "cannot tell")
OPENINGS = {  # by decision: the first words for a gate, and for a comparison without a gate
    "worse": ("The gate fails", "The comparison finds something worse"),
    "crashed": ("The gate cannot decide", "The comparison cannot decide"),
    "cannot tell": (
        "The gate finds nothing worse, but cannot decide on",
        "The comparison finds nothing worse, but cannot decide on",
    ),
    "not worse": ("The gate passes", "The comparison finds nothing worse"),
    "skipped": ("The gate has nothing to decide", "The comparison has nothing to decide"),
}
MAX_LISTED_OUTCOMES = 3  # outcomes that a sentence lists
COMMIT_DIGITS = 12  # characters of a shortened git revision
BASELINE = "in the accepted run"


def is_known_failure(outcome: Outcome) -> bool:
    """Return whether the accepted run has the same FAIL and it is not shown to be worse now."""
    return outcome.verdict == outcome.accepted == "FAIL" and outcome.decision in {"not worse", "cannot tell"}


def needs_attention(outcome: Outcome) -> bool:
    """Return whether the decision needs attention; a known FAIL alone does not."""
    return outcome.decision in ATTENTION_DECISIONS


def in_reading_order(comparison: Comparison) -> tuple[Outcome, ...]:
    """Return the outcomes in reading order: the subject, then the worst first, known FAILs before the others."""
    order = list(VERDICT_STYLE)

    def rank(outcome: Outcome) -> tuple[bool, int, bool]:
        return not is_subject(outcome), order.index(outcome.decision), not is_known_failure(outcome)

    return tuple(sorted(comparison.outcomes, key=rank))


def is_subject(outcome: Outcome) -> bool:
    """Return whether the outcome is about the metric of the suite and not about a plugin."""
    return not outcome.plugin


def outcome_name(outcome: Outcome) -> str:
    """Return the name of an outcome: ``subject``, or the plugin and its contrast unless that is ``harm``."""
    return format.one_line(outcome.id) if is_subject(outcome) else format.one_line(outcome.id).removesuffix("/harm")


def outcome_sentence_name(outcome: Outcome) -> str:
    """Return the name of an outcome within a sentence: ``the subject's accuracy``."""
    metric = format.one_line(outcome.estimate.metric).replace("_", " ")
    return f"the subject's {metric}" if is_subject(outcome) else outcome_name(outcome)


def change_text(outcome: Outcome) -> str:
    """Return the change with its one-sided bounds: ``+10.2 [+8.9, +11.5]``; a positive change is worse."""
    return format.format_bounds(outcome.estimate.bounds, outcome.estimate.unit)


def level_text(outcome: Outcome, value: float | None) -> str:
    """Format the metric of the subject, or the harm of a plugin, in outcome run."""
    if not is_subject(outcome) or value is None:
        return format.format_harm(value, outcome.estimate.unit)
    return format.format_score(value, outcome.estimate.unit)


def both_sides_text(outcome: Outcome) -> str:
    """Return the metric of the subject, or the verdicts of a plugin, in both runs: ``PASS → FAIL``."""
    levels = (outcome.estimate.before, outcome.estimate.now)
    sides = [level_text(outcome, level) for level in levels] if is_subject(outcome) else [outcome.accepted, outcome.verdict]
    return " → ".join(format.one_line(side) or format.MISSING for side in sides) if any(sides) else format.MISSING


def levels_text(outcome: Outcome) -> str:
    """Return the metric of the subject, or the harm of a plugin, in both runs: ``+0.3 → +5.1``."""
    before, now = outcome.estimate.before, level_text(outcome, outcome.estimate.now)
    return now if before is None else f"{level_text(outcome, before)} → {now}"


def margin_text(outcome: Outcome) -> str:
    """Format the margin: ``2.0``."""
    return format.format_harm(outcome.estimate.margin, outcome.estimate.unit).removeprefix("+")


def reason_text(outcome: Outcome) -> str:
    """Return the reason of the decision in one line, with a remark if a FAIL is known."""
    reason = format.one_line(outcome.reason)
    if not is_known_failure(outcome):
        return reason
    return KNOWN_FAILURE if reason in {"", KNOWN_FAILURE} else f"{KNOWN_FAILURE}; {reason}"


def figures_text(outcome: Outcome) -> str:
    """Return the numbers behind a decision: seeds, test examples, p-values and the share of changed predictions."""
    estimate = outcome.estimate
    seeds = f"{estimate.seeds} seeds × " if estimate.seeds > 1 else ""
    p_values = (("p worse", estimate.p_worse), ("p not worse", estimate.p_not_worse))
    parts = [f"{seeds}{estimate.examples} test examples"] if estimate.examples else []
    parts += [f"{name} {format.format_p_value(value)}" for name, value in p_values if value is not None]
    parts += [f"{format.format_percent(outcome.flipped)} of the predictions differ"] if outcome.flipped is not None else []
    return "; ".join(parts)


def overall_decision(comparison: Comparison) -> str:
    """Return the worst decision of a comparison, or ``skipped`` if there is none."""
    decisions = {outcome.decision for outcome in comparison.outcomes}
    return next((decision for decision in VERDICT_STYLE if decision in decisions), "skipped")


def headline(comparison: Comparison, *, gate: bool = True) -> str:
    """Return the result of a comparison in one or two sentences, worded for a gate or for a plain comparison."""
    overall = overall_decision(comparison)
    by = {decision: [outcome for outcome in comparison.outcomes if outcome.decision == decision] for decision in VERDICT_STYLE}
    start, mentioned = OPENINGS[overall][0 if gate else 1], [*by["worse"], *by["crashed"]]
    if mentioned:
        start += ": " + "; ".join([*_limit(list(map(_worse_text, by["worse"]))), *_crashed_text(by["crashed"])])
    elif overall == "cannot tell":
        mentioned = by[overall]
        start += " " + _join_names([*map(outcome_sentence_name, mentioned)])
    elif overall == "not worse":
        mentioned = [outcome for outcome in by[overall] if is_subject(outcome)]
        start += ": " + (_not_worse_text(mentioned[0]) if mentioned else f"nothing is worse than {BASELINE}")
    else:
        mentioned = list(by["skipped"])
    start = start if gate else start.replace(BASELINE, "in A")
    rest = count_decisions([outcome for outcome in comparison.outcomes if outcome not in mentioned])
    return f"{start}." + (f" {'Other outcomes' if mentioned else 'Outcomes'}: {rest}." if rest else "")


def count_decisions(outcomes: Sequence[Outcome]) -> str:
    """Return the number of outcomes with each decision, the worst first: ``1 worse, 2 not worse, 1 known FAIL``."""
    labels = [
        "known FAIL" if is_known_failure(outcome) and not needs_attention(outcome) else outcome.decision for outcome in outcomes
    ]
    return ", ".join(f"{labels.count(label)} {label}" for label in (*VERDICT_STYLE, "known FAIL") if label in labels)


def _worse_text(outcome: Outcome) -> str:
    if is_subject(outcome):
        return f"{outcome_sentence_name(outcome)} is {_amount(outcome)}worse than {BASELINE}"
    if outcome.verdict == "FAIL" and outcome.accepted != "FAIL":
        return f"{outcome_name(outcome)} is a new FAIL" + ("" if outcome.accepted else f", with no verdict {BASELINE}")
    if outcome.estimate.change is None:
        return f"{outcome_name(outcome)} is worse"
    return f"{outcome_name(outcome)} costs {_amount(outcome)}more than {BASELINE}"


def _amount(outcome: Outcome) -> str:
    """Format a change for a sentence, without the plus sign and with a trailing space: ``10.2 [8.9, 11.5] points``."""
    estimate = outcome.estimate
    if estimate.change is None:
        return ""
    unit = format.one_line(estimate.unit)
    if unit in format.PERCENT_UNITS:
        unit = "points"
    elif format.one_line(estimate.metric).casefold() in unit.casefold():  # the sentence names the metric already
        unit = ""
    return f"{change_text(outcome).replace('+', '')} {unit}".strip() + " "


def _not_worse_text(subject: Outcome) -> str:
    estimate = subject.estimate
    points = " points" if estimate.unit in format.PERCENT_UNITS else ""
    margin = "" if estimate.margin is None else f", with a margin of {margin_text(subject)}{points}"
    levels = f" ({both_sides_text(subject)})" if estimate.before is not None else ""
    return f"{outcome_sentence_name(subject)} is not worse than {BASELINE}{margin}{levels}"


def _crashed_text(outcomes: Sequence[Outcome]) -> list[str]:
    return [f"{_join_names([outcome_sentence_name(outcome) for outcome in outcomes])} crashed"] if outcomes else []


def _limit(parts: list[str]) -> list[str]:
    rest = len(parts) - MAX_LISTED_OUTCOMES
    return parts if rest <= 0 else [*parts[:MAX_LISTED_OUTCOMES], f"{rest} more are worse"]


def _join_names(names: list[str]) -> str:
    """Return names as part of a sentence: ``a, b and c``; further names are counted."""
    rest = len(names) - MAX_LISTED_OUTCOMES
    names = names if rest <= 0 else [*names[:MAX_LISTED_OUTCOMES], f"{rest} more"]
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def side_rows(run: Run, file: str = "") -> tuple[tuple[str, str, str], ...]:
    """Return rows that describe both runs: a name, and its value for the accepted run and for this run.

    Args:
        run: the candidate with its comparison.
        file: the path of the candidate, for the reader.
    """
    accepted, environment = (run.gate.accepted if run.gate else {}), run.provenance.environment
    rows = (
        ("suite", accepted.get("name"), run.suite.get("name")),
        ("file", accepted.get("file"), file),
        ("xferbench", accepted.get("xferbench"), environment.get("xferbench")),
        ("git revision", short_revision(accepted.get("git")), short_revision(environment.get("git"))),
        ("ended", accepted.get("ended"), run.provenance.evidence.get("ended")),
    )
    return tuple(
        (name, format.one_line(old or format.MISSING), format.one_line(new or format.MISSING))
        for name, old, new in rows
        if old or new
    )


def baseline_line(comparison: Comparison) -> str:
    """Return a line about the accepted run: ``Compared with careless (xferbench 0.1.0, git 0a1b2c3d4e5f, ended …)``."""
    accepted = comparison.accepted
    details = (
        ("xferbench", accepted.get("xferbench")),
        ("git", short_revision(accepted.get("git"))),
        ("ended", accepted.get("ended")),
    )
    listed = ", ".join(f"{name} {format.one_line(value)}" for name, value in details if value)
    name = format.one_line(accepted.get("name") or accepted.get("file") or "an accepted run")
    return f"Compared with {name}" + (f" ({listed})" if listed else "")


def short_revision(commit: object) -> str:
    """Return a shortened git revision, with its ``+changes`` if it has them."""
    revision, mark, changes = format.one_line(commit or "").partition("+")
    return revision[:COMMIT_DIGITS] + mark + changes
