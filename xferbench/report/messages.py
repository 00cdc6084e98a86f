"""The sentences of verdicts, decisions and notes: the only place with English about them. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from xferbench.core.comparison import Comparison
from xferbench.core.reason import Code, Reason
from xferbench.report.format import format_harm_interval, format_points

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from xferbench.analysis.compare import ComparisonDraft
    from xferbench.core.run import Finding
    from xferbench.study.draft import Draft

    Values = Mapping[str, Any]

MAX_LISTED_CHANGES = 8  # changed keys of a suite that a note names
MAX_LISTED_DROPPED = 5  # entries of left-out data that a note names
LEFT = {"FAIL": "stays", "PASS": "is gone"}
CHANGES_NOTHING = "the cure changes nothing"

PLAIN: dict[Code, str] = {  # sentences whose values need no formatting but their own
    Code.TEXT: "{text}",
    Code.NOT_MEASURED: "not measured",
    Code.ON_TRUST: "taken on trust: {what}",
    Code.CURE_CHANGES_NOTHING: "the cure changes nothing here",
    Code.SIDES_ARE_EQUAL: "there is nothing to tell apart",
    Code.NO_BETTER_REPAIR: "none of {count} repairs did better on the screened half",
    Code.NO_BETTER_RECIPE: "none of {count} recipes did better on validation",
    Code.NOT_ESTIMATED: "the harm could not be estimated",
    Code.BUDGET_SPENT: "the budget of {budget:g} s was spent after {seeds} of {planned} seeds",
    Code.CHOSEN: "chosen among {count} with a confidence of {confidence:.0%}",
    Code.DIVERGED: "{arm} diverged at {count} of {seeds} seeds",
    Code.SUBJECT_DIVERGED: "the subject diverged at {count} of {seeds} seeds",
    Code.SAME_ANSWERS: "unchanged: the same trials with the same answers",
    Code.SAME_ZERO_HARM: f"exactly 0, as it was: {CHANGES_NOTHING}",
    Code.ONE_PAIR: "one pair knows nothing of other seeds, of which one of the runs has {seeds}",
    Code.SAME_TRIALS_ELSEWHERE: (
        "unchanged: the same trials, and what another computer makes of them is not shown to be worse"
    ),
    Code.FAIL_ELSEWHERE: "the same trials, of which another computer makes a FAIL (accepted: {accepted})",
    Code.NEW_FAIL: "a FAIL that the accepted run has not (there {accepted}): {text}",
    Code.PASSES_NOW: "whatever it was before, {text}",
    Code.SIZE_UNKNOWN: "the accepted run fails it too, and by how much is not known of both: {text}",
    Code.SIZE_GREW: "the accepted run fails it too, but by less: {now:.6g}, accepted {before:.6g}; {text}",
    Code.NO_LONGER_JUDGED: "no longer judged (accepted: {accepted}): {text}",
    Code.NO_LONGER_TESTED: "no longer asked (accepted: {accepted}); accept a run without it, if that is meant",
    Code.NOT_TESTED_BEFORE: "the accepted run did not ask this",
    Code.NO_VERDICT_BEFORE: "the accepted run has no verdict of it ({verdict})",
    Code.OTHER_SOURCE: "accepted with other source code of the plugin ({old}, this is {new}): the two are not compared",
    Code.OTHER_CONTRAST: "the plugin asks another contrast than it was accepted with: the two are not compared",
    Code.PAIRED_BY_RANK: "not the same seeds: the two runs are paired as independent trainings, which takes more of them",
    Code.FEWER_SEEDS: "compared at {count} seeds, of {old} that were accepted and {new} of this run",
    Code.BASELINE_RERUN: "the accepted run was evaluated again in this job ({why})",
    Code.BASELINE_NOT_RERUN: ("the accepted run could not be evaluated again in this job, so its own results count: {why}"),
    Code.FILES_NOT_CHECKED: (
        "that the candidate was made of the files that the suite names now was not checked: they are not here"
    ),
    Code.NOT_MADE_ALIKE: "not made alike: accepted with {difference}",
    Code.SOURCE_DIFFERS: "plugin {plugin}: other source code than accepted ({old} → {new})",
    Code.SUBJECT_LEARNT_NOTHING: (
        "the subject itself learnt nothing: no better than the most frequent class, {share:.0%} of the test images, so that a "
        "PASS says little"
    ),
    Code.SCRATCH_LEARNT_NOTHING: (
        "scratch learnt nothing here: no better than the most frequent class, {share:.0%} of the test images"
    ),
    Code.UNUSED_INPUT: "[{role}] is given, but no plugin of this run asks for it",
    Code.HALF_JUDGED: "repairs were looked for on one half of the test images, and judged on the other ({count} or so)",
    Code.JUDGED_APART: (
        "each failure was judged by itself: mend the one with the largest harm and audit again, for the others may be its "
        "symptoms"
    ),
    Code.ONE_FINISHED_NETWORK: (
        "verdicts are about this one finished network: another training with the same recipe may do otherwise"
    ),
    Code.ONE_CHECKPOINT: "verdicts are conditional on this one pretrained checkpoint",
}
WITH_MARGIN: dict[Code, str] = {  # {margin} is already a phrase
    Code.ABOVE_MARGIN: "harm is above {margin}",
    Code.BELOW_MARGIN: "harm is below {margin}",
    Code.MARGIN_WITHIN_INTERVAL: "{margin} lies within the interval",
    Code.ABOVE_BEFORE_CORRECTION: "harm is above {margin}, but not once corrected for looks and plugins",
    Code.BELOW_BEFORE_CORRECTION: "harm is below {margin}, but not once corrected for looks and plugins",
    Code.WORSE_THAN_MARGIN: "worse by more than {margin}",
    Code.WORSE_BY_LESS: "worse by less than {margin}, if at all",
}
WITH_REASON: dict[Code, str] = {  # {why} is another reason's sentence
    Code.NOT_EXPOSED: "not exposed: {why}",
    Code.NOT_EXPOSED_NO_CONTROL: "{why}, but neither is the induced failure seen to cost anything",
    Code.FAIL_LEFT_OPEN: "a FAIL that the accepted run had left open; that the harm has grown is another question: {why}",
    Code.FAIL_GREW: "the accepted run fails it too, but this is {why}",
    Code.OWN_VERDICT: "{why}, so its own verdict counts: {verdict}, {text}",
}


def write_findings(drafts: Iterable[Draft]) -> tuple[Finding, ...]:
    """The findings with their reasons, and remedies with the harm that is left, as text."""
    return tuple(_finding(draft) for draft in drafts)


def write_comparison(draft: ComparisonDraft) -> Comparison:
    """A comparison with its reasons and notes as text."""
    outcomes = tuple(replace(outcome, reason=sentence(reason, outcome.unit)) for outcome, reason in draft.outcomes)
    return Comparison(accepted=draft.accepted, outcomes=outcomes, notes=tuple(map(sentence, draft.notes)))


def sentence(reason: Reason, unit: str = "") -> str:
    """One reason as text, its numbers in a metric's unit."""
    code, values = reason.code, reason.values
    if code in PLAIN:
        return PLAIN[code].format_map(values)
    if code in WITH_MARGIN:
        return WITH_MARGIN[code].format(margin=_margin(values, unit))
    if code in WITH_REASON:
        return WITH_REASON[code].format_map({**values, "why": sentence(values["why"], unit)})
    return SPECIAL[code](values, unit)


def _finding(draft: Draft) -> Finding:
    finding, unit = draft.finding, draft.finding.unit
    reasons = (*draft.reasons, draft.followup) if draft.followup else draft.reasons
    finding = replace(finding, reason="; ".join(filter(None, (sentence(reason, unit) for reason in reasons))))
    if draft.remaining is None or finding.remedy is None:
        return finding
    text = f"{finding.remedy['text']}; with it the harm is {format_harm_interval(draft.remaining, unit)}"
    return replace(finding, remedy={**finding.remedy, "text": text})


def _margin(values: Values, unit: str) -> str:
    return f"the margin of {format_points(values['margin'], unit, signed=False)}"


def _no_baseline(values: Values, _unit: str) -> str:
    arm = values["arm"] if values["arm"] != "subject" else f"the subject in view {values['view']}"
    return f"{arm} is no better than the most frequent class: nothing to be compared with"


def _no_power(values: Values, unit: str) -> str:
    known = values["cost"] is not None
    cost = f"{values['variant']} would cost {format_harm_interval(values['cost'], unit)}" if known else "it was not induced"
    return f"no power here: harm is below {_margin(values, unit)}, but so might the induced failure be ({cost})"


def _to_decide(values: Values, _unit: str) -> str:
    seeds, examples = values["seeds"], values["examples"]
    what = "groups of test examples" if values["grouped"] else "test examples"
    ways = [] if seeds is None else [f"about {seeds} seeds"]
    if examples is not None:
        ways.append(f"about {examples} {what}" + (" at these seeds" if values["at_these_seeds"] else ""))
    return f"to decide it: {' or '.join(ways)}" if ways else "no affordable number of seeds or examples would decide it"


def _better_recipe(values: Values, _unit: str) -> str:
    cured, subject = 100 * values["cured"], 100 * values["subject"]
    return f"another recipe reaches {cured:.1f} % where this one has {subject:.1f} % (arm cured in the report)"


def _left_after_repair(values: Values, unit: str) -> str:
    word = LEFT.get(values["verdict"], "is not shown any more")
    return f"it {word} once {values['by']} is mended: {format_harm_interval(values['estimate'], unit)}"


def _broken(values: Values, _unit: str) -> str:
    where = f" at {values['count']} of {values['seeds']} seeds" if values["seeds"] > 1 else ""
    return f"broken{where}: {values['meaning']}"


def _holds(values: Values, _unit: str) -> str:
    where = f" at all {values['seeds']} seeds" if values["seeds"] > 1 else ""
    return f"holds{where}: {values['meaning']}"


def _change_open(values: Values, unit: str) -> str:
    odd = "the same trials on the same computer gave other answers; " if values["same"] else ""
    ways = f"; {sentence(values['to_decide'], unit)}" if values["to_decide"] else ""
    return f"{odd}neither worse by {_margin(values, unit)} nor by less is shown{ways}"


def _other_version(values: Values, _unit: str) -> str:
    old = values["old"] or "unknown"
    return f"accepted with version {old} of the plugin, this is version {values['new']}: the two are not compared"


def _suite_differs(values: Values, _unit: str) -> str:
    changes = values["changes"]
    listed = [f"{key} {old} → {new}" for key, old, new in changes[:MAX_LISTED_CHANGES]]
    more = [f"and {len(changes) - MAX_LISTED_CHANGES} more"] if len(changes) > MAX_LISTED_CHANGES else []
    return f"the suite differs: {', '.join(listed + more)}"


def _inputs_differ(values: Values, _unit: str) -> str:
    return f"other content than accepted: {', '.join(values['keys'])}"


def _version_differs(values: Values, _unit: str) -> str:
    return f"{values['name']}: accepted with {values['old'] or 'unknown'}, this is {values['new'] or 'unknown'}"


def _packages_differ(values: Values, _unit: str) -> str:
    changes = (f"{name} {_or_none(old)} → {_or_none(new)}" for name, old, new in values["changes"])
    return f"packages: {', '.join(changes)}"


def _or_none(version: str | None) -> str:
    return "none" if version is None else version


def _overridden(values: Values, _unit: str) -> str:
    return "the suite file was overridden:" + "".join(f" --set {word}" for word in values["overrides"])


def _supported_fields(values: Values, _unit: str) -> str:
    fields = ", ".join(values["fields"]) or "nothing of a recipe"
    own = f"{values['training']} says that it supports {fields}"
    return f"{own}: arms and scratch candidates that differ in anything else are left out"


def _dropped_examples(values: Values, _unit: str) -> str:
    entries = values["entries"]
    rest = len(entries) - MAX_LISTED_DROPPED
    more = f"; and {rest} more" if rest > 0 else ""
    return f"left out of the data, or settled about it: {'; '.join(entries[:MAX_LISTED_DROPPED])}{more}"


def _at_edge(values: Values, _unit: str) -> str:
    whose = f"{', '.join(values['plugins'])}: " if values["plugins"] else ""
    return f"{whose}{values['arm']} chose the {values['edge']}: a better one may lie beyond"


def _scratch_search(values: Values, _unit: str) -> str:
    grid, audit = values["grid"], values["audit"]
    rates, decays = (" and ".join(f"{value:g}" for value in part) for part in (grid.lr, grid.weight_decay))
    steps = f"{grid.steps} steps of {grid.batch_size}, rates {rates}, weight decay {decays}"
    why = "as the budget allows" if audit else "as the suite says"
    own = "" if audit else ", beside the subject's own"
    return f"scratch was searched {why}, not by the default grid: {steps}{own}"


SPECIAL: dict[Code, Callable[[Values, str], str]] = {
    Code.NO_BASELINE: _no_baseline,
    Code.NO_POWER: _no_power,
    Code.TO_DECIDE: _to_decide,
    Code.BETTER_RECIPE: _better_recipe,
    Code.LEFT_AFTER_REPAIR: _left_after_repair,
    Code.BROKEN: _broken,
    Code.HOLDS: _holds,
    Code.CHANGE_OPEN: _change_open,
    Code.OTHER_VERSION: _other_version,
    Code.SUITE_DIFFERS: _suite_differs,
    Code.INPUTS_DIFFER: _inputs_differ,
    Code.VERSION_DIFFERS: _version_differs,
    Code.PACKAGES_DIFFER: _packages_differ,
    Code.OVERRIDDEN: _overridden,
    Code.SUPPORTED_FIELDS: _supported_fields,
    Code.DROPPED_EXAMPLES: _dropped_examples,
    Code.AT_EDGE: _at_edge,
    Code.SCRATCH_SEARCH: _scratch_search,
}
