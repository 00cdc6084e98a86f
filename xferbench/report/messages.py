"""Write the sentences of verdicts, decisions and notes; their English is in this module only. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from xferbench.core.comparison import Comparison
from xferbench.core.interventions import REQUIREMENTS
from xferbench.core.reason import Code, Reason
from xferbench.report.format import (
    format_harm_interval,
    format_p_value,
    format_percent,
    format_points,
    format_seconds,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from xferbench.analysis.compare import ComparisonDraft
    from xferbench.core.run import Finding, Run
    from xferbench.study.draft import Draft

    Values = Mapping[str, Any]

MAX_LISTED_CHANGES = 8  # changed keys of a suite that a note lists
MAX_LISTED_CLASSES = 10
MAX_LISTED_DROPPED = 5  # entries about dropped examples that a note lists
TRUST_PREFIX = "taken on trust: "  # reports list the notes with this prefix and the next one separately
DROPPED_PREFIX = "left out of the data"
UNTRAINED_PREFIX = "the subject learned nothing"  # the headline repeats this note
STATE_AFTER_REPAIR = {"FAIL": "remains", "PASS": "is gone"}  # by the verdict after the repair
CURE_CHANGES_NOTHING = "the cure changes nothing in this pipeline"
MOST_FREQUENT_CLASS = "it is no better than the most frequent class ({share:.0%} of the test examples)"

PLAIN: dict[Code, str] = {  # sentences that insert their values without further formatting
    Code.TEXT: "{text}",
    Code.NOT_MEASURED: "not measured",
    Code.ON_TRUST: TRUST_PREFIX + "{what}",
    Code.CURE_CHANGES_NOTHING: CURE_CHANGES_NOTHING,
    Code.SIDES_ARE_EQUAL: "both sides of the contrast are identical",
    Code.NO_BETTER_REPAIR: "no repair scored better on the screened half ({count} tried)",
    Code.NO_BETTER_RECIPE: "no recipe scored better on validation ({count} tried)",
    Code.CRASHED: "{arm} (seed {seed}): {error}",
    Code.EXPLANATION_CRASHED: "the plugin's explanation: {error}",
    Code.MEASURES_CRASHED: "the plugin's measures: {error}",
    Code.NO_PREDICTIONS: "{arm} has no predictions at seed {seed}",
    Code.NOTHING_SCORED: "{arm} has nothing to be scored on",
    Code.NOT_MEASURED_AT_ANY_SEED: "not measured at any seed",
    Code.OTHER_EXAMPLES: "the arms were not scored on the same examples",
    Code.METRIC_OF_PARTS: "{metric} on a part of the examples cannot be compared with that on all",
    Code.TOO_FEW_GROUPS: "{value}: the backbone has {groups} layer groups",
    Code.FINISHED_WITHOUT_ADDED: "{value}: a finished network has no adapters or virtual tokens besides its own tensors",
    Code.NO_ROOM_FOR_TOKENS: "{tokens} virtual tokens before texts of {length} tokens: the backbone reads at most {limit}",
    Code.CODE_WITHOUT_SHIFTED: "{value}: the training code receives no images of another domain",
    Code.NO_SHIFTED: "{value}: the suite has no [shifted]",
    Code.NO_SHIFTED_TRAINING_IMAGES: "{value}: the [shifted] set has no training examples",
    Code.NO_SOURCE: "{value}: the suite has no [source]",
    Code.NO_SOURCE_CLASSES: "{value}: the suite has no [source] whose classes are known",
    Code.LAST_PHASE_UNKNOWN: "{value}: it is not known where the training code's last phase begins",
    Code.RATES_UNSUPPORTED: "the training code does not support every rate of its search",
    Code.SCRATCH_NOT_REQUESTED: "no from-scratch baseline was requested (--scratch BUDGET)",
    Code.HEAD_TOO_SMALL: "the head has {outputs} outputs and the data {classes} classes (audit/head-size)",
    Code.PLUGIN_CRASHED: "it crashes: {error}",
    Code.RECIPE_NOT_MEASURED: "{recipe}, not measured",
    Code.NO_SCORE_TO_REACH: "{recipe} learned nothing, so it has no final score to reach",
    Code.TOO_FEW_SEEDS: "{recipe} was measured at {seeds} seeds, but an interval needs at least two",
    Code.RECIPE_ERROR: "{recipe}: {error}",
    Code.SEEDS_APART: (
        "harm is below the margin on average, but a few of the {seeds} seeds are far worse than the others: use ten or more"
    ),
    Code.NOT_ESTIMATED: "the harm could not be estimated",
    Code.BUDGET_SPENT: "the budget of {budget:g} s does not pay for more than {seeds} of {planned} seeds",
    Code.SEARCH_CUT: "the budget affords only a part of the search of {arm}, which may have missed a better one: raise it",
    Code.CHOSEN: "chosen among {count} candidates with a confidence of {confidence:.0%}",
    Code.DIVERGED: "{arm} diverged at {count} of {seeds} seeds",
    Code.SHARE_WITHOUT_REFERENCE: "no run of subject and cured learned anything, so nothing tells a failed run from the others",
    Code.NO_GROUPS: "the data have no groups, so nothing shows whether a patient, a scene or an author is on both sides",
    Code.SUBJECT_DIVERGED: "the subject diverged at {count} of {seeds} seeds",
    Code.SAME_ANSWERS: "unchanged: the same trials gave the same results",
    Code.SAME_ZERO_HARM: f"the harm is exactly 0, as before: {CURE_CHANGES_NOTHING}",
    Code.ONE_PAIR: "one pair of seeds says nothing about other seeds; one of the runs has {seeds} seeds",
    Code.SAME_TRIALS_ELSEWHERE: "unchanged: the same trials, run on another computer, are not shown to be worse",
    Code.FAIL_ELSEWHERE: "the same trials FAIL when they run on another computer (accepted: {accepted})",
    Code.NEW_FAIL: "new FAIL (accepted: {accepted}): {text}",
    Code.PASSES_NOW: "passes now: {text}",
    Code.SIZE_UNKNOWN: "the accepted run also fails, but the size of the failure is not known for both runs: {text}",
    Code.SIZE_GREW: "the accepted run also fails, but by less ({before:.6g} then, {now:.6g} now): {text}",
    Code.NO_LONGER_JUDGED: "no verdict any more (accepted: {accepted}): {text}",
    Code.NO_LONGER_TESTED: "no longer tested (accepted: {accepted}); if this is intended, accept a run without this check",
    Code.NOT_TESTED_BEFORE: "the accepted run did not test this",
    Code.NO_VERDICT_BEFORE: "the accepted run has no verdict on this ({verdict})",
    Code.OTHER_SOURCE: "the source code of the plugin has changed ({old} → {new}), so the two runs are not compared",
    Code.OTHER_CONTRAST: "the contrast of the plugin has changed, so the two runs are not compared",
    Code.PAIRED_BY_RANK: "the seeds differ: the two runs are paired as independent trainings, which needs more seeds",
    Code.FEWER_SEEDS: "compared at {count} seeds: the accepted run has {old}, this run has {new}",
    Code.ENDED_EARLY: ("not shown to be worse, but this run has {new} seeds and the accepted run has {old}; raise the budget"),
    Code.BASELINE_RERUN: "the accepted run was evaluated again in this job ({why})",
    Code.BASELINE_NOT_RERUN: "the accepted run could not be evaluated again in this job, so its stored results count: {why}",
    Code.FILES_NOT_CHECKED: (
        "the files that the suite names are not here, so it was not checked whether the candidate was made from them"
    ),
    Code.NOT_MADE_ALIKE: "the two runs were computed differently: accepted with {difference}",
    Code.SOURCE_DIFFERS: "{kind} {name}: the source code differs ({old} → {new})",
    Code.SUBJECT_LEARNT_NOTHING: f"{UNTRAINED_PREFIX}: {MOST_FREQUENT_CLASS}, so a PASS says little",
    Code.SCRATCH_LEARNT_NOTHING: f"training from scratch learned nothing: {MOST_FREQUENT_CLASS}",
    Code.UNUSED_INPUT: "the suite has [{role}], but no plugin of this run uses it",
    Code.HALF_JUDGED: (
        "repairs were selected on one half of the test examples and evaluated on the other half (about {count} examples)"
    ),
    Code.JUDGED_APART: (
        "each failure was evaluated by itself: repair the one with the largest harm and audit again, because the others may be "
        "its symptoms"
    ),
    Code.ONE_FINISHED_NETWORK: (
        "verdicts are about this one finished network: another training with the same recipe may behave differently"
    ),
    Code.BEST_ALTERNATIVE: (
        "validation selected the subject itself among {count} recipes, so it is compared with the best of the others"
    ),
    Code.TRUNCATED: (
        "{count} of {test} test texts are longer than {length} tokens and are cut; max_length in preprocessing sets the length"
    ),
    Code.UNSEARCHED_COPIES: "data-leakage says nothing about these kinds of copies, which the suite leaves out: {kinds}",
    Code.ONE_CHECKPOINT: "verdicts are conditional on this one pretrained checkpoint",
}
WITH_MARGIN: dict[Code, str] = {  # {margin} is a phrase: "the margin of 3.0 points"
    Code.ABOVE_MARGIN: "harm is above {margin}",
    Code.BELOW_MARGIN: "harm is below {margin}",
    Code.MARGIN_WITHIN_INTERVAL: "the interval contains {margin}",
    Code.ABOVE_BEFORE_CORRECTION: "harm is above {margin}, but not after the correction for looks and plugins",
    Code.BELOW_BEFORE_CORRECTION: "harm is below {margin}, but not after the correction for looks",
    Code.WORSE_THAN_MARGIN: "worse by more than {margin}",
    Code.WORSE_BY_LESS: "worse by less than {margin}, if at all",
}
WITH_REASON: dict[Code, str] = {  # {why} is the sentence of another reason
    Code.NOT_EXPOSED: "not exposed: {why}",
    Code.NOT_EXPOSED_NO_CONTROL: "{why}, but the induced failure is not shown to do harm either",
    Code.FAIL_LEFT_OPEN: "a FAIL that the accepted run left undecided; whether the harm has grown is another question: {why}",
    Code.FAIL_GREW: "the accepted run also fails, but this run is {why}",
}


def write_findings(drafts: Iterable[Draft]) -> tuple[Finding, ...]:
    """Return the findings with their reasons as text, and with the remaining harm in the text of each remedy."""
    return tuple(_write_finding(draft) for draft in drafts)


def write_comparison(draft: ComparisonDraft) -> Comparison:
    """Return a comparison with its reasons and notes as text."""
    outcomes = [replace(outcome, reason=write_sentence(reason, outcome.estimate.unit)) for outcome, reason in draft.outcomes]
    notes = tuple(map(write_sentence, draft.notes))
    return Comparison(accepted=draft.accepted, outcomes=tuple(outcomes), notes=notes, has_too_few_seeds=draft.has_too_few_seeds)


def write_matrix(run: Run) -> Run:
    """Return the run of a matrix with the reasons of its comparisons and claims as text, "" where there is none."""
    if run.matrix is None:
        return run
    comparisons = tuple({**entry, "error": write_sentence(entry["error"])} for entry in run.matrix.comparisons)
    claims = tuple({**entry, "why": write_sentence(entry["why"])} for entry in run.matrix.claims)
    return replace(run, matrix=replace(run.matrix, comparisons=comparisons, claims=claims))


def write_sentence(reason: Reason | None, unit: str = "") -> str:
    """Return the sentence of a reason, "" for None, with numbers in the unit of a metric."""
    if reason is None:
        return ""
    code, values = reason.code, reason.values
    if code in PLAIN:
        return PLAIN[code].format_map(values)
    if code in WITH_MARGIN:
        return WITH_MARGIN[code].format(margin=_margin(values, unit))
    if code in WITH_REASON:
        return WITH_REASON[code].format_map({**values, "why": write_sentence(values["why"], unit)})
    return SPECIAL[code](values, unit)


def _write_finding(draft: Draft) -> Finding:
    finding, unit = draft.finding, draft.finding.estimate.unit
    reasons = (*draft.reasons, draft.followup) if draft.followup else draft.reasons
    finding = replace(finding, reason="; ".join(filter(None, (write_sentence(reason, unit) for reason in reasons))))
    if draft.remaining is None or finding.remedy is None:
        return finding
    text = f"{finding.remedy['text']}; the harm is then {format_harm_interval(draft.remaining, unit)}"
    return replace(finding, remedy={**finding.remedy, "text": text})


def _margin(values: Values, unit: str) -> str:
    return f"the margin of {format_points(values['margin'], unit, signed=False)}"


def _no_baseline(values: Values, _unit: str) -> str:
    arm = values["arm"] if values["arm"] != "subject" else f"the subject in view {values['view']}"
    return f"{arm} is no better than the most frequent class, so there is no baseline to compare with"


def _no_power(values: Values, unit: str) -> str:
    cost = values["cost"]
    control = "no failure was induced" if cost is None else f"{values['variant']} costs {format_harm_interval(cost, unit)}"
    return f"no power: harm is below {_margin(values, unit)}, but so may be the harm of the induced failure ({control})"


def _control_improves(values: Values, unit: str) -> str:
    gain = format_harm_interval(values["cost"], unit)
    return f"the induced failure {values['variant']} improves the pipeline ({gain}): something that it changes is not as stated"


def _failures_leave_open(values: Values, unit: str) -> str:
    return (
        f"harm is below {_margin(values, unit)} on average, but some runs fail, and a "
        f"share of {format_percent(values['share'], 0)}, which is not ruled out, would raise it above the margin"
    )


def _failed_runs(values: Values, _unit: str) -> str:
    count, seeds = values["count"], values["seeds"]
    return (
        f"{count} of {seeds} runs of {values['arm']} failed (diverged, or no better than the most frequent class): the share "
        f"of failing runs is {format_percent(count / seeds, 0)} [{100 * values['low']:.1f}, {100 * values['high']:.1f}]"
    )


def _share_above(values: Values, _unit: str) -> str:
    return f"more runs fail than the allowed share of {_format_share(values['allowed'])}"


def _share_below(values: Values, _unit: str) -> str:
    return f"fewer runs fail than the allowed share of {_format_share(values['allowed'])}"


def _share_open(values: Values, unit: str) -> str:
    estimate, allowed = values["estimate"], values["allowed"]
    if estimate.low > allowed:
        return f"{_share_above(values, unit)}, but not after the correction for looks and plugins"
    if estimate.high < allowed:
        return f"{_share_below(values, unit)}, but not after the correction for looks"
    return f"the interval contains the allowed share of failed runs, {_format_share(allowed)}"


def _format_share(share: float) -> str:
    return f"{100 * share:g} %"


def _share_to_decide(values: Values, _unit: str) -> str:
    seeds, allowed = values["seeds"], _format_share(values["allowed"])
    if seeds is None:
        return "no affordable number of seeds would decide this"
    if values["below"]:
        more = "another" if values["count"] else "a"
        return f"{seeds} seeds without {more} failed run would show that fewer than {allowed} of the runs fail"
    return f"about {seeds} seeds would show that more than {allowed} of the runs fail, if as many fail as now"


def _share_without_power(values: Values, unit: str) -> str:
    cost = values["cost"]
    control = "no failure was induced" if cost is None else f"{values['variant']}: {format_harm_interval(cost, unit)}"
    return f"no power: {_share_below(values, unit)}, but so may be those of the induced failure ({control})"


def _run_failures(values: Values, _unit: str) -> str:
    ways = [
        f"{len(seeds)} {way} (seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))})"
        for way, seeds in values["failures"].items()
        if seeds
    ]
    count = sum(len(seeds) for seeds in values["failures"].values())
    return f"{count} of {values['seeds']} runs of {values['arm']} failed: {', '.join(ways)}"


def _doubtful_runs(values: Values, _unit: str) -> str:
    seeds = values["seeds"]
    name = f"run{'s' if len(seeds) > 1 else ''} of {values['arm']} (seed{'s' if len(seeds) > 1 else ''} "
    return f"{len(seeds)} {name}{', '.join(map(str, seeds))}) may have failed: no test shows it, and none excludes it"


def _cured_run_failures(values: Values, _unit: str) -> str:
    return (
        f"at the same {values['seeds']} seeds, {values['count']} runs of cured failed and {values['subject']} of subject "
        f"(McNemar's p {format_p_value(values['p_value'])})"
    )


def _to_decide(values: Values, _unit: str) -> str:
    seeds, examples = values["seeds"], values["examples"]
    noun = "groups of test examples" if values["grouped"] else "test examples"
    needs = [] if seeds is None else [f"about {seeds} seeds"]
    if examples is not None:
        needs.append(f"about {examples} {noun}" + (" at these seeds" if values["at_these_seeds"] else ""))
    return f"a decision needs {' or '.join(needs)}" if needs else "no affordable number of seeds or examples would decide this"


def _better_recipe(values: Values, _unit: str) -> str:
    cured, subject = 100 * values["cured"], 100 * values["subject"]
    return f"another recipe reaches {cured:.1f} %, this one {subject:.1f} % (arm cured in the report)"


def _left_after_repair(values: Values, unit: str) -> str:
    state = STATE_AFTER_REPAIR.get(values["verdict"], "is undecided")
    return f"after the repair of {values['by']}, this failure {state}: {format_harm_interval(values['estimate'], unit)}"


def _own_verdict(values: Values, unit: str) -> str:
    text = f" ({values['text']})" if values["text"] else ""
    return f"{write_sentence(values['why'], unit)}; this run's own verdict counts: {values['verdict']}{text}"


def _broken(values: Values, _unit: str) -> str:
    seeds = f" at {values['count']} of {values['seeds']} seeds" if values["seeds"] > 1 else ""
    return f"does not hold{seeds}: {values['meaning']}"


def _holds(values: Values, _unit: str) -> str:
    seeds = f" at all {values['seeds']} seeds" if values["seeds"] > 1 else ""
    return f"holds{seeds}: {values['meaning']}"


def _low_recall(values: Values, _unit: str) -> str:
    kinds = ", ".join(
        f"{kind} ({found} of {copies}, at least {low:.0%})" if copies else f"{kind} (not measured)"
        for kind, found, copies, low in values["kinds"]
    )
    return (
        f"the search finds too few copies of these kinds: {kinds}; a PASS needs {values['at_least']:.0%} with a confidence of "
        f"{values['confidence']:.0%}, or the kind in unsearched_copies"
    )


def _effect(values: Values, unit: str) -> str:
    return f"{values['meaning']}: {format_harm_interval(values['estimate'], unit)}"


def _change_open(values: Values, unit: str) -> str:
    irreproducible = "the same trials gave different results on the same computer; " if values["same"] else ""
    needs = f"; {write_sentence(values['to_decide'], unit)}" if values["to_decide"] else ""
    return f"{irreproducible}the change is shown to be neither above nor below {_margin(values, unit)}{needs}"


def _other_version(values: Values, _unit: str) -> str:
    old = values["old"] or "unknown"
    return f"the version of the plugin has changed ({old} → {values['new']}), so the two runs are not compared"


def _suite_differs(values: Values, _unit: str) -> str:
    changes = values["changes"]
    listed = [f"{key} {old} → {new}" for key, old, new in changes[:MAX_LISTED_CHANGES]]
    more = [f"and {len(changes) - MAX_LISTED_CHANGES} more"] if len(changes) > MAX_LISTED_CHANGES else []
    return f"the suite differs: {', '.join(listed + more)}"


def _inputs_differ(values: Values, _unit: str) -> str:
    return f"the content of these inputs differs: {', '.join(values['keys'])}"


def _version_differs(values: Values, _unit: str) -> str:
    return f"different {values['name']}: {values['old'] or 'unknown'} → {values['new'] or 'unknown'}"


def _packages_differ(values: Values, _unit: str) -> str:
    changes = (f"{name} {_or_none(old)} → {_or_none(new)}" for name, old, new in values["changes"])
    return f"different packages: {', '.join(changes)}"


def _or_none(version: str | None) -> str:
    return "none" if version is None else version


def _layers_missing(values: Values, _unit: str) -> str:
    return f"{values['value']}: the backbone has no {REQUIREMENTS[values['requirement']]}"


def _added_of_several_sizes(values: Values, _unit: str) -> str:
    return f"{', '.join(values['values'])}: a network can have only one of these"


def _fields_unsupported(values: Values, _unit: str) -> str:
    return f"the training code does not support {', '.join(values['fields'])}"


def _no_such_contrast(values: Values, _unit: str) -> str:
    return f"no such contrast (available: {', '.join(values['available']) or 'none'})"


def _seed_without_measure(values: Values, _unit: str) -> str:
    return f"{values['recipe']}, seed {values['seed']}: {values['error'] or 'not measured'}"


def _no_learning_curve(values: Values, _unit: str) -> str:
    return f"seed {values['seed']}: {values['error'] or 'no learning curve'}"


def _decides_little(values: Values, _unit: str) -> str:
    power = values["power"]
    much = "little" if max(power.pass_chance, power.fail_chance) >= 0.01 else "nothing"
    return (
        f"{power.examples} test examples (or groups) can decide {much}: with {power.seeds} seeds, the chance of a PASS is "
        f"{power.pass_chance:.0%} without harm, and that of a FAIL {power.fail_chance:.0%} at twice the margin"
    )


def _decision_chances(values: Values, _unit: str) -> str:
    power = values["power"]
    return (
        f"with {power.examples} test examples (or groups) and {power.seeds} seeds, a check of a pipeline without harm passes "
        f"in about {power.pass_chance:.0%} of runs, and a harm of twice the margin fails in about {power.fail_chance:.0%}, "
        "if two arms disagree on 15 % of the examples"
    )


def _overridden(values: Values, _unit: str) -> str:
    return "the command line overrides the suite file:" + "".join(f" --set {override}" for override in values["overrides"])


def _supported_fields(values: Values, _unit: str) -> str:
    fields = ", ".join(values["fields"]) or "no field of a recipe"
    return f"{values['training']} supports {fields}: arms and scratch candidates that change another field are omitted"


def _classes(values: Values, _unit: str) -> str:
    names = values["names"]
    listed = ", ".join(f"{index} {name}" for index, name in enumerate(names[:MAX_LISTED_CLASSES]))
    return f"classes: {listed}" + (f", … ({len(names)} in all)" if len(names) > MAX_LISTED_CLASSES else "")


def _rotated(values: Values, _unit: str) -> str:
    does = "turned upright, as viewers show them" if values["orientation"] == "upright" else "read as they are stored"
    return (
        f'{values["count"]} images have an EXIF orientation; they are {does} (orientation = "{values["orientation"]}" in '
        "preprocessing; the values are stored and upright)"
    )


def _sixteen_bit(values: Values, _unit: str) -> str:
    used = max(8, int(values["highest"]).bit_length())
    advice = f"; bits = {used} in preprocessing reads them over their whole range" if used < values["bits"] else ""
    return (
        f"{values['count']} images have 16 bits per channel, with a highest value of {values['highest']}; the upper 8 of "
        f"{values['bits']} bits are used{advice}"
    )


def _dropped_examples(values: Values, _unit: str) -> str:
    entries = values["entries"]
    rest = len(entries) - MAX_LISTED_DROPPED
    more = f"; and {rest} more" if rest > 0 else ""
    return f"{DROPPED_PREFIX} or resolved: {'; '.join(entries[:MAX_LISTED_DROPPED])}{more}"


def _at_edge(values: Values, _unit: str) -> str:
    plugins = f"{', '.join(values['plugins'])}: " if values["plugins"] else ""
    return f"{plugins}{values['arm']} chose the {values['edge']}: a better rate may lie beyond it"


def _scratch_search(values: Values, _unit: str) -> str:
    grid, full = values["grid"], values["full"]
    axes = (grid.lr, grid.weight_decay, grid.label_smoothing)
    rates, decays, smoothings = (" and ".join(f"{value:g}" for value in axis) for axis in axes)
    augmentations = " and ".join(str(value or "none") for value in grid.augment)
    text = (
        f"{grid.steps} steps of {grid.batch_size}, rates {rates}, weight decay {decays}, label smoothing {smoothings}, "
        f"augmentation {augmentations}"
    )
    if grid.steps > full.steps:
        return f"the budget affords a longer search for the from-scratch baseline than the default search: {text}"
    if grid != full:
        return (
            f"the budget affords only a part of the search for the from-scratch baseline: {text}. A larger budget may find a "
            "better baseline, and a verdict against scratch holds for this search only"
        )
    return f"scratch was tuned by the search of the suite, not by the default search: {text}, and the subject's own values"


def _recipe_is_cause(values: Values, unit: str) -> str:
    harm = format_harm_interval(values["estimate"], unit)
    return f"the cause is the recipe: with the best recipe of the search, the same weights are not worse than scratch ({harm})"


def _pretraining_is_cause(values: Values, unit: str) -> str:
    harm = format_harm_interval(values["estimate"], unit)
    return f"the cause is the pretraining: even the best recipe of the search is worse than scratch ({harm})"


def _search_cost(values: Values, _unit: str) -> str:
    scratch, cured = (f"{values[name] / 1000:,.0f} thousand" for name in ("scratch", "cured"))
    return f"the searches of {values['plugin']} trained {scratch} examples from scratch and {cured} from pretrained weights"


def _unaffordable(values: Values, _unit: str) -> str:
    needed, budget = (format_seconds(values[name]) for name in ("needed", "budget"))
    return (
        f"nothing was trained: the budget is {budget}, and a first verdict needs about {needed} on one worker, even with the "
        "smallest search of scratch. Raise budget, or choose fewer plugins, fewer seeds (looks), or a recipe with fewer steps"
    )


SPECIAL: dict[Code, Callable[[Values, str], str]] = {
    Code.NO_BASELINE: _no_baseline,
    Code.UNAFFORDABLE: _unaffordable,
    Code.SEARCH_COST: _search_cost,
    Code.RECIPE_IS_CAUSE: _recipe_is_cause,
    Code.PRETRAINING_IS_CAUSE: _pretraining_is_cause,
    Code.CONTROL_IMPROVES: _control_improves,
    Code.FAILURES_LEAVE_OPEN: _failures_leave_open,
    Code.FAILED_RUNS: _failed_runs,
    Code.NO_POWER: _no_power,
    Code.SHARE_ABOVE: _share_above,
    Code.SHARE_BELOW: _share_below,
    Code.SHARE_OPEN: _share_open,
    Code.SHARE_TO_DECIDE: _share_to_decide,
    Code.SHARE_WITHOUT_POWER: _share_without_power,
    Code.RUN_FAILURES: _run_failures,
    Code.DOUBTFUL_RUNS: _doubtful_runs,
    Code.CURED_RUN_FAILURES: _cured_run_failures,
    Code.TO_DECIDE: _to_decide,
    Code.BETTER_RECIPE: _better_recipe,
    Code.LEFT_AFTER_REPAIR: _left_after_repair,
    Code.OWN_VERDICT: _own_verdict,
    Code.BROKEN: _broken,
    Code.HOLDS: _holds,
    Code.LOW_RECALL: _low_recall,
    Code.EFFECT: _effect,
    Code.CHANGE_OPEN: _change_open,
    Code.OTHER_VERSION: _other_version,
    Code.SUITE_DIFFERS: _suite_differs,
    Code.INPUTS_DIFFER: _inputs_differ,
    Code.VERSION_DIFFERS: _version_differs,
    Code.PACKAGES_DIFFER: _packages_differ,
    Code.LAYERS_MISSING: _layers_missing,
    Code.ADDED_OF_SEVERAL_SIZES: _added_of_several_sizes,
    Code.FIELDS_UNSUPPORTED: _fields_unsupported,
    Code.NO_SUCH_CONTRAST: _no_such_contrast,
    Code.SEED_WITHOUT_MEASURE: _seed_without_measure,
    Code.NO_LEARNING_CURVE: _no_learning_curve,
    Code.DECIDES_LITTLE: _decides_little,
    Code.DECISION_CHANCES: _decision_chances,
    Code.OVERRIDDEN: _overridden,
    Code.SUPPORTED_FIELDS: _supported_fields,
    Code.CLASSES: _classes,
    Code.ROTATED: _rotated,
    Code.SIXTEEN_BIT: _sixteen_bit,
    Code.DROPPED_EXAMPLES: _dropped_examples,
    Code.AT_EDGE: _at_edge,
    Code.SCRATCH_SEARCH: _scratch_search,
}
