"""From a run to the small tables that every output format shows. Pure; nothing here draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from xferbench.analysis import estimates, metrics
from xferbench.core.run import contrast_id
from xferbench.report import format

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from xferbench.core.comparison import Outcome
    from xferbench.core.plugin import Contrast
    from xferbench.core.run import Finding, Run, TrialRow

Group: TypeAlias = "tuple[Finding, ...]"
Bounds: TypeAlias = tuple[float | None, float | None, float | None]  # mean, low, high
Paired: TypeAlias = tuple[str, dict[int, float], Bounds]  # an arm, harm by seed

FEW_LISTED = 3  # positive controls that are told one by one
WORST_FIRST = ("FAIL", "ERROR", "INCONCLUSIVE", "PASS", "SKIPPED", "INFO")
ORDER = ("subject", "cured", "induced", "scratch")


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmRow:
    """An arm of a plugin: its recipe in words and what it reached.

    Attributes:
        name: ``subject``, ``cured``, ``induced:VARIANT`` or ``scratch``.
        accuracy: [seeds], on the target's test examples. diverged, crashed: at how many seeds.
        weighed: recipe, validation score and whether it was chosen, of each candidate of a choice.
    """

    name: str
    recipe: str
    accuracy: np.ndarray
    diverged: int
    crashed: int
    weighed: tuple[tuple[str, float | None, bool], ...]

    @property
    def mean(self) -> float | None:
        """Mean accuracy over seeds."""
        return float(self.accuracy.mean()) if len(self.accuracy) else None

    @property
    def sd(self) -> float | None:
        """Standard deviation of accuracy over seeds; None below two."""
        return float(self.accuracy.std(ddof=1)) if len(self.accuracy) > 1 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmCurve:
    """An arm's learning curves over seeds: [steps], and [steps, 3] each, the mean, least and greatest of the finite values."""

    steps: np.ndarray
    loss: np.ndarray
    accuracy: np.ndarray


def finding_groups(run: Run) -> tuple[Group, ...]:
    """Verdicts, those variants together that share plugin, contrast, verdict and harm; plugins with the worst verdict first."""
    together: dict[tuple[object, ...], list[Finding]] = {}
    for finding in run.findings:
        if finding.verdict != "INFO":
            shared = (finding.plugin, finding.contrast, finding.verdict, finding.harm, finding.low, finding.high)
            together.setdefault(shared, []).append(finding)
    ranks: dict[str, int] = {}
    for members in together.values():
        ranks[members[0].plugin] = min(_rank(members[0]), ranks.get(members[0].plugin, len(WORST_FIRST)))
    largest = _largest if run.suite.get("after") else lambda _: (False, 0.0)
    return tuple(
        sorted(
            map(tuple, together.values()),
            key=lambda group: (ranks[group[0].plugin], *largest(group[0]), _place(run, group[0])),
        )
    )


def _largest(finding: Finding) -> tuple[bool, float]:
    """Order what fails in an audit: what is exact first, then accuracies before other units, the largest harm first."""
    if finding.verdict != "FAIL":
        return True, float("inf")
    return finding.harm is not None and finding.unit != "accuracy", -float("inf") if finding.harm is None else -finding.harm


def _rank(finding: Finding) -> int:
    return WORST_FIRST.index(finding.verdict) if finding.verdict in WORST_FIRST else len(WORST_FIRST)


def _place(run: Run, finding: Finding) -> tuple[int, int]:
    names = [one.plugin for one in run.findings]
    return names.index(finding.plugin), run.findings.index(finding)


def plugin_names(run: Run) -> tuple[str, ...]:
    """Ids of the plugins asked, in the order of the verdicts; those with measurements only come last."""
    return tuple(dict.fromkeys([*(group[0].plugin for group in finding_groups(run)), *(one.plugin for one in run.findings)]))


def measurements(run: Run, plugin: str) -> tuple[Finding, ...]:
    """List a plugin's measurements, which are never verdicts."""
    return tuple(finding for finding in run.findings if finding.plugin == plugin and finding.verdict == "INFO")


def group_name(finding: Finding) -> str:
    """Name what was asked: the plugin, and its contrast where that is not the usual one."""
    return finding.plugin if finding.contrast == "harm" else contrast_id(finding.plugin, finding.contrast)


def group_sentence_name(run: Run, outcome: Outcome) -> Group:
    """Find the findings of what was compared, its own verdict first; empty for the subject, and for what this run lacks."""
    names = {outcome.id, outcome.id.removesuffix("/harm")}
    found = [one for one in run.findings if {contrast_id(one.plugin, one.contrast), f"{one.plugin}/{one.contrast}"} & names]
    own = [one for one in found if outcome.plugin and one.verdict != "INFO"]
    return tuple(sorted(own, key=lambda one: one.verdict != outcome.verdict))


def group_reason(group: Group) -> str:
    """Give the reasons of a group in one line, what they share said once."""
    return "; ".join(dict.fromkeys(part for finding in group for part in format.one_line(finding.reason).split("; ") if part))


def harm_text(finding: Finding) -> str:
    """Tell a finding's harm with its bounds, or nothing where there is none."""
    return format.format_bounds((finding.harm, finding.low, finding.high), finding.unit)


def control_texts(group: Group) -> tuple[str, ...]:
    """Say what each positive control showed: ``ghost-batch detected +16.0``."""
    shown = [finding for finding in group if finding.control != "none" or finding.control_harm is not None]
    return tuple(
        " ".join(
            part for part in (format.one_line(one.variant), one.control, format.format_harm(one.control_harm, one.unit)) if part
        )
        for one in shown
    )


def gist(group: Group) -> tuple[str, ...]:
    """Say the same in few lines, several variants of one kind together: ``5 detected +10.9 to +24.8``."""
    if len(group) <= FEW_LISTED:
        return control_texts(group)
    kinds: dict[str, list[Finding]] = {}
    for finding in group:
        if finding.control != "none" or finding.control_harm is not None:
            kinds.setdefault(finding.control, []).append(finding)
    return tuple(part for kind, members in kinds.items() for part in _together(kind, members))


def _together(kind: str, members: Sequence[Finding]) -> Iterator[str]:
    harms = sorted(one.control_harm for one in members if one.control_harm is not None)
    if len(members) <= 2 or not harms:
        yield from control_texts(tuple(members))
    else:
        low, high = (format.format_harm(harm, members[0].unit) for harm in (harms[0], harms[-1]))
        yield f"{len(members)} {kind} {low} to {high}"


def induced_range(group: Group) -> tuple[tuple[str, float], ...]:
    """Target accuracy of the induced arm by variant."""
    return tuple((format.one_line(one.variant), one.accuracy["induced"]) for one in group if "induced" in one.accuracy)


def next_action(group: Group) -> str:
    """Say what to do next, in one line; empty where nothing is to be done."""
    first = group[0]
    if first.verdict == "ERROR":
        return "mend what crashed and run it again: finished trials are kept"
    remedy: Mapping[str, Any] = first.remedy or {}
    if not remedy.get("text"):
        return ""
    tested = "shown to mend it here" if remedy.get("verified") else "not shown to mend it here"
    return f"{format.one_line(remedy['text'])} ({tested})"


def is_verified(group: Group) -> str:
    """Say whether the cure was tried; empty where there is no patch to try."""
    if not patch_lines(group):
        return ""
    passes = (group[0].remedy or {}).get("verified")
    if all(line.startswith("#") for line in patch_lines(group).splitlines()):
        return "verified on images that it was not found on" if passes else "not verified: it is not shown to mend this"
    ran = "the cured arm was run with these lines"
    return f"verified: {ran} and passes" if passes else f"not verified: {ran} and is not shown to pass"


def patch_lines(group: Group) -> str:
    """Give the lines of the suite file that mend it, or nothing."""
    lines = (group[0].remedy or {}).get("patch") or ()
    return format.printable_block(lines if isinstance(lines, str) else "\n".join(map(str, lines)))


def headline(run: Run) -> str:
    """Say the whole run in a sentence or two; a plugin counts with its worst verdict."""
    worst: dict[str, Finding] = {}
    for first, *_ in finding_groups(run):
        worst[first.plugin] = min(worst.get(first.plugin, first), first, key=_rank)
    by = {verdict: [one for one in worst.values() if one.verdict == verdict] for verdict in WORST_FIRST}
    if by["FAIL"]:
        more = f", and {len(by['FAIL']) - 2} more" if len(by["FAIL"]) > 2 else ""
        start = "Transfer fails here: " + " and ".join(map(_costs, by["FAIL"][:2])) + more
    elif by["PASS"] and not by["ERROR"] and not by["INCONCLUSIVE"]:
        start = "None of the failures asked about has hit this pipeline"
    elif by["PASS"] or by["INCONCLUSIVE"]:
        start = "No failure was shown, but not every one was ruled out"
    else:
        start = "Nothing was judged"
    words = {"PASS": "passed", "INCONCLUSIVE": "undecided", "ERROR": "crashed", "SKIPPED": "skipped"}
    rest = ", ".join(f"{len(by[verdict])} {word}" for verdict, word in words.items() if by[verdict])
    return f"{start}." + (f" Of the {'others' if by['FAIL'] else 'checks'}: {rest}." if rest else "")


def _costs(finding: Finding) -> str:
    name = format.one_line(finding.plugin)
    return name if finding.harm is None else f"{name} costs {harm_text(finding)} {format.unit_name(finding.unit)}"


def arm_name(cell: TrialRow) -> str:
    """Name a cell's arm, with its variant where it has one."""
    return f"{cell.arm}:{cell.variant}" if cell.variant else cell.arm


def arm_rows(run: Run, plugin: str) -> tuple[ArmRow, ...]:
    """List a plugin's arms in the order in which they are read."""
    cells: dict[str, list[TrialRow]] = {}
    for cell in run.cells:
        if cell.plugin == plugin and cell.view == "test":
            cells.setdefault(arm_name(cell), []).append(cell)
    settled = run.arms.get(plugin) or {}
    names = sorted(
        dict.fromkeys([*settled, *cells]), key=lambda name: (*ORDER, name.partition(":")[0]).index(name.partition(":")[0])
    )
    return tuple(_arm(name, settled.get(name) or {}, cells.get(name, [])) for name in names)


def _arm(name: str, settled: Mapping[str, Any], cells: Sequence[TrialRow]) -> ArmRow:
    told = [cell.record.predictions for cell in cells if cell.record.predictions is not None]
    return ArmRow(
        name=format.one_line(name),
        recipe=format.one_line(settled.get("recipe") or (cells[0].recipe if cells else "") or settled.get("error") or ""),
        accuracy=np.array([(one.predicted == one.label).mean() for one in told]),
        diverged=sum(cell.record.scalars.get("diverged", 0.0) > 0 for cell in cells),
        crashed=sum(bool(cell.record.error) for cell in cells),
        weighed=tuple(
            (format.one_line(one.get("recipe", "")), one.get("validation"), bool(one.get("chosen")))
            for one in settled.get("weighed") or ()
        ),
    )


def harms_by_seed(run: Run, plugin: str, contrast: Contrast, metric: str) -> dict[int, float]:
    """Harm by seed, over the seeds at which every term of the contrast was measured; above 0 is harm, for losses too."""
    sign = -1.0 if metrics.get_metric(metric).loss else 1.0
    values: dict[int, dict[tuple[str, str], float]] = {}
    for cell in run.cells:
        term = (arm_name(cell), cell.view)
        if cell.plugin == plugin and term in contrast.weights and cell.record.predictions is not None:
            values.setdefault(cell.seed, {})[term] = metrics.metric_value(cell.record.predictions, metric)
    whole = {seed: found for seed, found in sorted(values.items()) if len(found) == len(contrast.weights)}
    return {
        seed: sign * sum(weight * found[term] for term, weight in contrast.weights.items()) for seed, found in whole.items()
    }


def paired_harms(run: Run, group: Group, contrast: Contrast) -> Iterator[Paired]:
    """Give the judged arm and each control: name, harm by seed, and mean with its bounds."""
    first = group[0]
    own = harms_by_seed(run, first.plugin, contrast, first.metric)
    judged = dict(list(own.items())[: first.seeds])  # a contrast that closed early was judged on its first seeds only
    yield "subject", judged, (first.harm, first.low, first.high)
    for finding in group:
        if finding.variant:
            control = estimates.positive_control(contrast, finding.variant)
            bounds = (finding.control_harm, finding.control_low, finding.control_high)
            yield (
                f"induced: {format.one_line(finding.variant)}",
                harms_by_seed(run, first.plugin, control, first.metric),
                bounds,
            )


def learning_curves(run: Run, plugin: str, most: int = 50) -> dict[str, ArmCurve]:
    """Learning curves by arm, thinned to at most so many steps; arms without any, and those only measured, are absent."""
    rows: dict[str, dict[int, list[tuple[float, float]]]] = {}
    for cell in run.cells:
        if cell.plugin == plugin and cell.view == "test" and cell.arm != "beside":
            for step, loss, accuracy in cell.record.curve:
                rows.setdefault(arm_name(cell), {}).setdefault(step, []).append((loss, accuracy))
    return {name: _curve(by_step, most) for name, by_step in rows.items()}


def _curve(by_step: Mapping[int, list[tuple[float, float]]], most: int) -> ArmCurve:
    every = sorted(by_step)
    steps = [every[index] for index in np.unique(np.linspace(0, len(every) - 1, min(most, len(every))).round().astype(int))]
    summary = np.array([[_summary([row[column] for row in by_step[step]]) for column in (0, 1)] for step in steps])
    return ArmCurve(steps=np.array(steps), loss=summary[:, 0], accuracy=summary[:, 1])


def _summary(values: Sequence[float]) -> tuple[float, float, float]:
    finite = np.array([value for value in values if np.isfinite(value)])
    return (float(finite.mean()), float(finite.min()), float(finite.max())) if len(finite) else (np.nan, np.nan, np.nan)
