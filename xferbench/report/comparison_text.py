"""A comparison in words, the same in every format: its sentence, which outcomes ask for somebody, and its numbers.

It stands below the record, whose run shows itself in a notebook, and so knows the decisions by their words alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xferbench.report import format

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xferbench.core.comparison import Comparison, Outcome
    from xferbench.core.run import Run

KNOWN_FAILURE = "known: the accepted run fails it too"
VERDICT_STYLE = {  # the verdict whose colour a decision has; the worst first
    "worse": "FAIL",
    "crashed": "ERROR",
    "cannot tell": "INCONCLUSIVE",
    "not worse": "PASS",
    "skipped": "SKIPPED",
}
SIDE_NAMES = {True: ("Accepted", "Now"), False: ("A", "B")}  # of the two runs, as a gate and as a comparison names them
ATTENTION_DECISIONS = ("worse", "crashed", "cannot tell")
OPENINGS = {  # of a gate, and of a comparison that gates nothing
    "worse": ("The gate fails", "The comparison finds something worse"),
    "crashed": ("The gate cannot decide", "The comparison cannot decide"),
    "cannot tell": (
        "The gate finds nothing worse, but cannot tell of",
        "The comparison finds nothing worse, but cannot tell of",
    ),
    "not worse": ("The gate passes", "The comparison finds nothing worse"),
    "skipped": ("The gate has nothing to go by", "The comparison has nothing to go by"),
}
FEW_LISTED = 3  # outcomes that a sentence names
COMMIT_DIGITS = 12  # characters of a git revision


def is_known_failure(one: Outcome) -> bool:
    """Whether it is a FAIL that the accepted run has already, and that is not shown to have become worse."""
    return one.verdict == one.accepted == "FAIL" and one.decision in {"not worse", "cannot tell"}


def needs_attention(one: Outcome) -> bool:
    """Whether somebody is to look at it; a known FAIL does not ask by itself."""
    return one.decision in ATTENTION_DECISIONS


def in_reading_order(comparison: Comparison) -> tuple[Outcome, ...]:
    """The outcomes as they are read: the subject, then the worst first, and known FAILs before what is well."""
    worst = list(VERDICT_STYLE)
    return tuple(
        sorted(comparison.outcomes, key=lambda one: (not is_subject(one), worst.index(one.decision), not is_known_failure(one)))
    )


def is_subject(one: Outcome) -> bool:
    """Whether it is about the suite's metric itself."""
    return not one.plugin


def outcome_name(one: Outcome) -> str:
    """Name what was compared: ``subject``, the plugin, and its contrast where that is not the usual one."""
    return format.one_line(one.id) if is_subject(one) else format.one_line(one.id).removesuffix("/harm")


def outcome_sentence_name(one: Outcome) -> str:
    """Name the same within a sentence: ``the subject's accuracy``."""
    return f"the subject's {format.one_line(one.metric).replace('_', ' ')}" if is_subject(one) else outcome_name(one)


def change_text(one: Outcome) -> str:
    """How much worse, with its one-sided bounds: ``+10.2 [+8.9, +11.5]``."""
    return format.format_bounds((one.change, one.low, one.high), one.unit)


def level_text(one: Outcome, value: float | None) -> str:
    """The subject's metric, or a harm, as it was or is."""
    if not is_subject(one) or value is None:
        return format.format_harm(value, one.unit)
    return format.format_score(value, one.unit)


def turn_text(one: Outcome) -> str:
    """From what was accepted to now: the subject's metric, of a plugin its verdicts."""
    sides = (level_text(one, one.before), level_text(one, one.now)) if is_subject(one) else (one.accepted, one.verdict)
    return " → ".join(format.one_line(side) or format.MISSING for side in sides) if any(sides) else format.MISSING


def levels_text(one: Outcome) -> str:
    """The same in numbers: the subject's metric, or the harm, then and now."""
    return f"{level_text(one, one.before)} → {level_text(one, one.now)}" if one.before is not None else level_text(one, one.now)


def margin_text(one: Outcome) -> str:
    """The margin as it is told: ``2.0``."""
    return format.format_harm(one.margin, one.unit).removeprefix("+")


def reason_text(one: Outcome) -> str:
    """Why it was so decided, in one line, with the word that a FAIL is known."""
    said = format.one_line(one.reason)
    return "; ".join(filter(None, (KNOWN_FAILURE, said if said != KNOWN_FAILURE else ""))) if is_known_failure(one) else said


def figures_text(one: Outcome) -> str:
    """What the decision rests on: seeds, test examples, P-values, and how many answers differ."""
    over = f"{one.seeds} seeds × " if one.seeds > 1 else ""
    tested = (("p worse", one.p_worse), ("p not worse", one.p_not_worse))
    told = [f"{over}{one.examples} test examples"] if one.examples else []
    told += [f"{name} {format.format_p_value(value)}" for name, value in tested if value is not None]
    told += [f"{format.format_percent(one.flipped)} of the answers differ"] if one.flipped is not None else []
    return "; ".join(told)


def overall_decision(comparison: Comparison) -> str:
    """The decision on the whole: the worst there is, and ``skipped`` where nothing was decided."""
    found = {one.decision for one in comparison.outcomes}
    return next((decision for decision in VERDICT_STYLE if decision in found), "skipped")


def headline(comparison: Comparison, *, gate: bool = True) -> str:
    """The whole in a sentence or two, as a gate says it, or else as a comparison that gates nothing."""
    whole = overall_decision(comparison)
    by = {decision: [one for one in comparison.outcomes if one.decision == decision] for decision in VERDICT_STYLE}
    start, named = OPENINGS[whole][0 if gate else 1], [*by["worse"], *by["crashed"]]
    if named:
        start += ": " + "; ".join([*_few(list(map(_worse, by["worse"]))), *_crashed(by["crashed"])])
    elif whole == "cannot tell":
        named = by[whole]
        start += " " + _listed([*map(outcome_sentence_name, named)])
    elif whole == "not worse":
        named = [one for one in by[whole] if is_subject(one)]
        start += ": " + (_kept(named[0]) if named else "nothing is worse than what was accepted")
    else:
        named = list(by["skipped"])
    start = start if gate else start.replace("what was accepted", "in A")
    rest = count_decisions([one for one in comparison.outcomes if one not in named])
    return f"{start}." + (f" Of the {'others' if named else 'outcomes'}: {rest}." if rest else "")


def count_decisions(outcomes: Sequence[Outcome]) -> str:
    """How many outcomes have which decision, the worst first: ``1 worse, 2 not worse, 1 known FAIL``."""
    words = [f"{'known FAIL' if is_known_failure(one) and not needs_attention(one) else one.decision}" for one in outcomes]
    return ", ".join(f"{words.count(word)} {word}" for word in (*VERDICT_STYLE, "known FAIL") if word in words)


def _worse(one: Outcome) -> str:
    if is_subject(one):
        return f"{outcome_sentence_name(one)} is {_amount(one)}worse than what was accepted"
    if one.verdict == "FAIL" and one.accepted != "FAIL":
        return (
            f"{outcome_name(one)} is a new FAIL"
            if one.accepted
            else f"{outcome_name(one)} is a FAIL, with nothing accepted beside it"
        )
    return (
        f"{outcome_name(one)} costs {_amount(one)}more than what was accepted"
        if one.change is not None
        else f"{outcome_name(one)} is worse"
    )


def _amount(one: Outcome) -> str:
    """A change as a sentence has it, without the plus: ``10.2 [8.9, 11.5] points``, with a space after it."""
    if one.change is None:
        return ""
    named = (
        format.one_line(one.unit) not in format.PERCENT_UNITS
        and format.one_line(one.metric).casefold() in format.one_line(one.unit).casefold()
    )
    unit = "points" if one.unit in format.PERCENT_UNITS else "" if named else format.one_line(one.unit)
    return f"{change_text(one).replace('+', '')} {unit}".strip() + " "


def _kept(subject: Outcome) -> str:
    least = f", by a margin of {margin_text(subject)}{' points' if subject.unit in format.PERCENT_UNITS else ''}"
    told = f" ({turn_text(subject)})" if subject.before is not None else ""
    return (
        f"{outcome_sentence_name(subject)} is not worse than what was accepted"
        + (least if subject.margin is not None else "")
        + told
    )


def _crashed(outcomes: Sequence[Outcome]) -> list[str]:
    return [f"{_listed([outcome_sentence_name(one) for one in outcomes])} crashed"] if outcomes else []


def _few(parts: list[str]) -> list[str]:
    return parts if len(parts) <= FEW_LISTED else [*parts[:FEW_LISTED], f"{len(parts) - FEW_LISTED} more are worse"]


def _listed(names: list[str]) -> str:
    """Names in a sentence: ``a, b and c``, the fourth and later ones by their number."""
    names = names if len(names) <= FEW_LISTED else [*names[:FEW_LISTED], f"{len(names) - FEW_LISTED} more"]
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def side_rows(run: Run, file: str = "") -> tuple[tuple[str, str, str], ...]:
    """Who is compared with whom: a fact, as it was of the accepted run, and as it is of this one, which lies in ``file``."""
    accepted, at = (run.gate.accepted if run.gate else {}), run.environment
    told = (
        ("suite", accepted.get("name"), run.suite.get("name")),
        ("file", accepted.get("file"), file),
        ("xferbench", accepted.get("xferbench"), at.get("xferbench")),
        ("git revision", short_revision(accepted.get("git")), short_revision(at.get("git"))),
        ("ended", accepted.get("ended"), run.evidence.get("ended")),
    )
    return tuple(
        (name, format.one_line(was or format.MISSING), format.one_line(now or format.MISSING))
        for name, was, now in told
        if was or now
    )


def baseline_line(comparison: Comparison) -> str:
    """Whom it was held against, in a line: ``Held against careless (xferbench 0.1.0, git 0a1b2c3d4e5f, ended …)``."""
    accepted = comparison.accepted
    facts = (
        ("xferbench", accepted.get("xferbench")),
        ("git", short_revision(accepted.get("git"))),
        ("ended", accepted.get("ended")),
    )
    told = ", ".join(f"{name} {format.one_line(value)}" for name, value in facts if value)
    whom = format.one_line(accepted.get("name") or accepted.get("file") or "an accepted run")
    return f"Held against {whom}" + (f" ({told})" if told else "")


def short_revision(commit: object) -> str:
    """A git revision, shortened, with its ``+changes`` where it has them."""
    whole, mark, more = format.one_line(commit or "").partition("+")
    return whole[:COMMIT_DIGITS] + mark + more
