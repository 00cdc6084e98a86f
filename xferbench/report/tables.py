"""Turn a run into the small tables that every output format shows. Pure; it draws nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from xferbench.analysis import estimates, metrics
from xferbench.core.run import contrast_id
from xferbench.report import format
from xferbench.report.messages import UNTRAINED_PREFIX

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from xferbench.core.comparison import Outcome
    from xferbench.core.plugin import Contrast
    from xferbench.core.run import Finding, PositiveControl, Run, TrialRow

Group: TypeAlias = "tuple[Finding, ...]"
Bounds: TypeAlias = tuple[float | None, float | None, float | None]  # mean, low, high
Paired: TypeAlias = tuple[str, dict[int, float], Bounds]  # an arm, harm by seed

MAX_LISTED_CONTROLS = 3  # more positive controls than this are summarized
WORST_FIRST = ("FAIL", "ERROR", "INCONCLUSIVE", "PASS", "SKIPPED", "INFO")
NO_COST = (True, 3, 0.0)  # after every value of _cost_rank()
ARM_ORDER = ("subject", "cured", "induced", "scratch")


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmRow:
    """An arm of a plugin, with its recipe in words and its results.

    Attributes:
        name: ``subject``, ``cured``, ``induced:VARIANT`` or ``scratch``.
        accuracy: accuracy on the test examples of the target, of shape [seeds].
        diverged, crashed: the number of seeds at which the arm diverged or crashed.
        weighed: recipe, validation score and whether it was chosen, for each candidate of a selection.
    """

    name: str
    recipe: str
    accuracy: np.ndarray
    diverged: int
    crashed: int
    weighed: tuple[tuple[str, float | None, bool], ...]

    @property
    def mean(self) -> float | None:
        """The mean accuracy over seeds."""
        return float(self.accuracy.mean()) if len(self.accuracy) else None

    @property
    def sd(self) -> float | None:
        """The standard deviation of the accuracy over seeds; None for fewer than two seeds."""
        return float(self.accuracy.std(ddof=1)) if len(self.accuracy) > 1 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmCurve:
    """The learning curves of an arm: the mean, least and greatest finite value over seeds.

    Attributes:
        steps: training steps, of shape [steps].
        loss, accuracy: mean, least and greatest value, of shape [steps, 3].
    """

    steps: np.ndarray
    loss: np.ndarray
    accuracy: np.ndarray


def finding_groups(run: Run) -> tuple[Group, ...]:
    """Return the verdicts, with the plugin of the worst verdict first, and failures in the order of what they cost.

    Variants that share plugin, contrast, verdict and harm form one group. The groups of a plugin stay together. In an audit all
    variants of a contrast form one group, the worst verdict first, because each check answers one question about one network,
    and the groups of a plugin are apart if their costs are.
    """
    is_audit = bool(run.suite.get("after"))
    groups: dict[tuple[object, ...], list[Finding]] = {}
    for finding in sorted(run.findings, key=_rank) if is_audit else run.findings:
        if finding.verdict != "INFO":
            key = (finding.plugin, finding.contrast)
            groups.setdefault(key if is_audit else (*key, finding.verdict, *finding.estimate.bounds), []).append(finding)
    ranks: dict[str, int] = {}
    costs: dict[str, tuple[bool, int, float]] = {}
    unit = suite_unit(run)
    for first, *_ in groups.values():
        ranks[first.plugin] = min(_rank(first), ranks.get(first.plugin, len(WORST_FIRST)))
        costs[first.plugin] = min(_cost_rank(first, unit), costs.get(first.plugin, NO_COST))

    def key_of(group: Group) -> tuple[object, ...]:
        cost = _cost_rank(group[0], unit) if is_audit else costs[group[0].plugin]
        return ranks[group[0].plugin], *cost, _position(run, group[0])

    return tuple(sorted(map(tuple, groups.values()), key=key_of))


def suite_unit(run: Run) -> str:
    """Return the unit of the suite's metric."""
    return metrics.get_metric(str(run.suite.get("metric", "accuracy"))).unit


def _cost_rank(finding: Finding, unit: str) -> tuple[bool, int, float]:
    """Return the sort key of a failure by consequence.

    Symptoms of another failure come last. Before them come harms in the unit of the suite, the largest first, then harms in
    other units, then exact failures, whose harm is unknown.
    """
    harm = finding.estimate.harm
    if finding.verdict != "FAIL" or harm is None:
        return bool(finding.symptom_of), 2, 0.0
    return bool(finding.symptom_of), int(finding.estimate.unit != unit), -harm


def _rank(finding: Finding) -> int:
    return WORST_FIRST.index(finding.verdict) if finding.verdict in WORST_FIRST else len(WORST_FIRST)


def _position(run: Run, finding: Finding) -> tuple[int, int]:
    plugins = [other.plugin for other in run.findings]
    return plugins.index(finding.plugin), run.findings.index(finding)


def plugin_names(run: Run) -> tuple[str, ...]:
    """Return the ids of the plugins in the order of their verdicts; plugins without a verdict come last."""
    with_verdict = [group[0].plugin for group in finding_groups(run)]
    return tuple(dict.fromkeys([*with_verdict, *(finding.plugin for finding in run.findings)]))


def measurements(run: Run, plugin: str) -> tuple[Finding, ...]:
    """Return the measurements of a plugin, which are not verdicts."""
    return tuple(finding for finding in run.findings if finding.plugin == plugin and finding.verdict == "INFO")


def group_name(finding: Finding) -> str:
    """Return the name of a check: the plugin, and its contrast unless that is ``harm``."""
    return finding.plugin if finding.contrast == "harm" else contrast_id(finding.plugin, finding.contrast)


def outcome_group(run: Run, outcome: Outcome) -> Group:
    """Return the findings of an outcome, those with the verdict of the outcome first.

    The result is empty for the subject and for a check that this run does not have.
    """
    names = {outcome.id, outcome.id.removesuffix("/harm")}
    findings = [
        finding
        for finding in run.findings
        if outcome.plugin
        and finding.verdict != "INFO"
        and {contrast_id(finding.plugin, finding.contrast), f"{finding.plugin}/{finding.contrast}"} & names
    ]
    return tuple(sorted(findings, key=lambda finding: finding.verdict != outcome.verdict))


def group_reason(group: Group) -> str:
    """Return the reasons for the verdict of a group in one line, without repetitions."""
    reasons = [format.one_line(finding.reason) for finding in group if finding.verdict == group[0].verdict]
    return "; ".join(dict.fromkeys(part for reason in reasons for part in reason.split("; ") if part))


def harm_text(finding: Finding, usual_unit: str = "") -> str:
    """Return the harm of a finding with its bounds, or a dash if it has none.

    A unit other than ``usual_unit`` follows, if that is given.
    """
    unit = finding.estimate.unit
    text = format.format_bounds(finding.estimate.bounds, unit)
    is_usual = usual_unit in {"", unit} or finding.estimate.harm is None
    return text if is_usual else f"{text} {format.unit_name(unit)}"


def control_texts(group: Group) -> tuple[str, ...]:
    """Return the result of each positive control: ``ghost-batch detected +16.0``."""
    return tuple(_control_text(finding) for finding in group if _has_control(finding.control))


def _has_control(control: PositiveControl) -> bool:
    return control.outcome != "none" or control.harm is not None


def _control_text(finding: Finding) -> str:
    control = finding.control
    parts = (
        format.one_line(control.variant),
        control.outcome,
        format.format_harm(control.harm, finding.estimate.unit),
    )
    return " ".join(filter(None, parts))


def control_summary(group: Group) -> tuple[str, ...]:
    """Return the results of the positive controls in few lines, with one line for a kind: ``5 detected +10.9 to +24.8``."""
    if len(group) <= MAX_LISTED_CONTROLS:
        return control_texts(group)
    kinds: dict[str, list[Finding]] = {}
    for finding in group:
        if _has_control(finding.control):
            kinds.setdefault(finding.control.outcome, []).append(finding)
    return tuple(text for kind, members in kinds.items() for text in _summarize_controls(kind, members))


def _summarize_controls(kind: str, members: Sequence[Finding]) -> Iterator[str]:
    harms = sorted(finding.control.harm for finding in members if finding.control.harm is not None)
    if len(members) <= 2 or not harms:
        yield from control_texts(tuple(members))
    else:
        low, high = (format.format_harm(harm, members[0].estimate.unit) for harm in (harms[0], harms[-1]))
        yield f"{len(members)} {kind} {low} to {high}"


def induced_range(group: Group) -> tuple[tuple[str, float], ...]:
    """Return the target accuracy of the induced arm for each variant."""
    return tuple(
        (format.one_line(finding.control.variant), finding.accuracy["induced"])
        for finding in group
        if "induced" in finding.accuracy
    )


def next_action(group: Group) -> str:
    """Return the next step in one line; empty if there is nothing to do."""
    first = group[0]
    if first.verdict == "ERROR":
        return "fix the cause of the crash and run again: the store keeps finished trials"
    remedy: Mapping[str, Any] = first.remedy or {}
    if not remedy.get("text"):
        return ""
    effect = "shown to repair this pipeline" if remedy.get("verified") else "not shown to repair this pipeline"
    return f"{format.one_line(remedy['text'])} ({effect})"


def verification_text(group: Group) -> str:
    """Return whether the remedy was verified; empty if it has no patch."""
    if not patch_lines(group):
        return ""
    is_effective = (group[0].remedy or {}).get("verified")
    if all(line.startswith("#") for line in patch_lines(group).splitlines()):
        return "verified on examples that were not used to find it" if is_effective else "not verified: it is not shown to help"
    test = f"the cured arm was {'served' if group[0].kind == 'audit' else 'trained'} with these lines"
    return f"verified: {test} and passes" if is_effective else f"not verified: {test} and is not shown to pass"


def patch_lines(group: Group) -> str:
    """Return the lines of the suite file that repair a failure; empty if there are none."""
    lines = (group[0].remedy or {}).get("patch") or ()
    return format.printable_block(lines if isinstance(lines, str) else "\n".join(map(str, lines)))


def headline(run: Run) -> str:
    """Return the result of a run in one or two sentences; each plugin counts with its worst verdict."""
    worst: dict[str, Finding] = {}
    for first, *_ in finding_groups(run):
        worst[first.plugin] = min(worst.get(first.plugin, first), first, key=_rank)
    by = {verdict: [finding for finding in worst.values() if finding.verdict == verdict] for verdict in WORST_FIRST}
    if by["FAIL"]:
        causes = [finding for finding in by["FAIL"] if not finding.symptom_of]
        more = f", and {len(causes) - 2} more" if len(causes) > 2 else ""
        start = "Transfer fails here: " + " and ".join(map(_cost_text, causes[:2])) + more
        start += _symptoms_text([finding for finding in by["FAIL"] if finding.symptom_of])
    elif by["PASS"] and any(note.startswith(UNTRAINED_PREFIX) for note in run.notes):
        start = "The subject learned nothing, so no failure can be ruled out"
    elif by["PASS"] and not by["ERROR"] and not by["INCONCLUSIVE"]:
        start = "This pipeline shows none of the tested failures"
    elif by["PASS"] or any(finding.estimate.harm is not None for finding in by["INCONCLUSIVE"]):
        start = "No failure was found, but not every failure could be ruled out"
    else:
        start = "There is no verdict"
    labels = {"PASS": "passed", "INCONCLUSIVE": "undecided", "ERROR": "crashed", "SKIPPED": "skipped"}
    rest = ", ".join(f"{len(by[verdict])} {label}" for verdict, label in labels.items() if by[verdict])
    return f"{start}." + (f" {'Other checks' if by['FAIL'] else 'Checks'}: {rest}." if rest else "")


def _symptoms_text(symptoms: Sequence[Finding]) -> str:
    if not symptoms:
        return ""
    count = "1 other failure is a symptom" if len(symptoms) == 1 else f"{len(symptoms)} other failures are symptoms"
    return (
        f". {count}: the repair of {format.one_line(symptoms[0].symptom_of)} removes {'it' if len(symptoms) == 1 else 'them'}"
    )


def _cost_text(finding: Finding) -> str:
    name, unit = format.one_line(finding.plugin), format.unit_name(finding.estimate.unit)
    if finding.estimate.harm is None:
        return name
    if finding.estimate.unit in format.SHARE_UNITS:
        return f"{name}: {harm_text(finding)} {unit} fail"
    return f"{name} costs {harm_text(finding)} {unit}"


def arm_name(cell: TrialRow) -> str:
    """Return the name of a trial's arm, with its variant if it has one."""
    return f"{cell.arm}:{cell.variant}" if cell.variant else cell.arm


def arm_rows(run: Run, plugin: str) -> tuple[ArmRow, ...]:
    """Return the arms of a plugin in reading order."""
    cells: dict[str, list[TrialRow]] = {}
    for cell in run.cells:
        if cell.plugin == plugin and cell.view == "test":
            cells.setdefault(arm_name(cell), []).append(cell)
    arms = run.arms.get(plugin) or {}
    names = sorted(
        dict.fromkeys([*arms, *cells]), key=lambda name: (*ARM_ORDER, name.partition(":")[0]).index(name.partition(":")[0])
    )
    return tuple(_build_arm_row(name, arms.get(name) or {}, cells.get(name, [])) for name in names)


def _build_arm_row(name: str, arm: Mapping[str, Any], cells: Sequence[TrialRow]) -> ArmRow:
    predictions = [cell.record.predictions for cell in cells if cell.record.predictions is not None]
    return ArmRow(
        name=format.one_line(name),
        recipe=format.one_line(arm.get("recipe") or (cells[0].recipe if cells else "") or arm.get("error") or ""),
        accuracy=np.array([(by_seed.predicted == by_seed.label).mean() for by_seed in predictions]),
        diverged=sum(cell.record.scalars.get("diverged", 0.0) > 0 for cell in cells),
        crashed=sum(bool(cell.record.error) for cell in cells),
        weighed=tuple(
            (format.one_line(candidate.get("recipe", "")), candidate.get("validation"), bool(candidate.get("chosen")))
            for candidate in arm.get("weighed") or ()
        ),
    )


def harms_by_seed(run: Run, plugin: str, contrast: Contrast, metric: str) -> dict[int, float]:
    """Return the harm for each seed at which every term of the contrast was measured.

    A positive value is harm, for a loss as well.
    """
    sign = -1.0 if metrics.get_metric(metric).loss else 1.0
    values: dict[int, dict[tuple[str, str], float]] = {}
    for cell in run.cells:
        term = (arm_name(cell), cell.view)
        if cell.plugin == plugin and term in contrast.weights and cell.record.predictions is not None:
            values.setdefault(cell.seed, {})[term] = metrics.metric_value(cell.record.predictions, metric)
    complete = {seed: terms for seed, terms in sorted(values.items()) if len(terms) == len(contrast.weights)}
    return {
        seed: sign * sum(weight * terms[term] for term, weight in contrast.weights.items()) for seed, terms in complete.items()
    }


def paired_harms(run: Run, group: Group, contrast: Contrast) -> Iterator[Paired]:
    """Yield the subject and each positive control: name, harm by seed, and mean with its bounds."""
    first = group[0]
    metric = first.estimate.metric
    harms = harms_by_seed(run, first.plugin, contrast, metric)
    # A contrast that was decided early has a verdict on its first seeds only.
    evaluated = dict(list(harms.items())[: first.estimate.seeds])
    yield "subject", evaluated, first.estimate.bounds
    for finding in group:
        if variant := finding.control.variant:
            induced_harms = harms_by_seed(run, first.plugin, estimates.positive_control(contrast, variant), metric)
            yield f"induced: {format.one_line(variant)}", induced_harms, finding.control.bounds


def learning_curves(run: Run, plugin: str, most: int = 50) -> dict[str, ArmCurve]:
    """Return the learning curves by arm, thinned to at most ``most`` steps.

    Arms without a curve and arms that are only measured are absent.
    """
    rows: dict[str, dict[int, list[tuple[float, float]]]] = {}
    for cell in run.cells:
        if cell.plugin == plugin and cell.view == "test" and cell.arm != "beside":
            for step, loss, accuracy in cell.record.curve:
                rows.setdefault(arm_name(cell), {}).setdefault(step, []).append((loss, accuracy))
    return {name: _summarize_curve(by_step, most) for name, by_step in rows.items()}


def _summarize_curve(by_step: Mapping[int, list[tuple[float, float]]], most: int) -> ArmCurve:
    all_steps = sorted(by_step)
    indices = np.unique(np.linspace(0, len(all_steps) - 1, min(most, len(all_steps))).round().astype(int))
    steps = [all_steps[index] for index in indices]
    summary = np.array([[_summarize([row[column] for row in by_step[step]]) for column in (0, 1)] for step in steps])
    return ArmCurve(steps=np.array(steps), loss=summary[:, 0], accuracy=summary[:, 1])


def _summarize(values: Sequence[float]) -> tuple[float, float, float]:
    finite = np.array([value for value in values if np.isfinite(value)])
    return (float(finite.mean()), float(finite.min()), float(finite.max())) if len(finite) else (np.nan, np.nan, np.nan)
