"""Write ``summary.md``, the tables of a run, a gate or a matrix in GitHub's Markdown. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from xferbench.analysis import metrics
from xferbench.report import comparison_text, format, matrix_tables, tables

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xferbench.core.comparison import Comparison, Outcome
    from xferbench.core.run import Run

SPECIAL = str.maketrans(
    {
        **{character: f"\\{character}" for character in "\\`*_[]|~#"},
        "&": "&amp;",
        "<": "&lt;",
        ">": "&gt;",
        "$": "<span>$</span>",
    }
)
ARMS = ("subject", "cured", "induced", "scratch")


def escape(value: object) -> str:
    """Return a text as one line without active markup, mathematics or table separators."""
    return format.one_line(value).translate(SPECIAL)


def render(run: Run) -> str:
    """Return the summary of a run; it ends with a line break."""
    head = f"## xferbench: {escape(run.suite.get('name', ''))}"
    parts = _matrix(run) if run.matrix else _verdicts(run)
    if run.gate:
        parts = [*_gate(run, run.gate), "<details><summary>Verdicts of this run</summary>", *parts, "</details>"]
    return "\n\n".join([head, *parts]) + "\n"


def _gate(run: Run, gate: Comparison) -> list[str]:
    """Return the headline of a gate, its outcomes and its notes."""
    parts = [f"**{escape(comparison_text.headline(gate))}**", escape(comparison_text.baseline_line(gate)) + "."]
    head = ["Compared", "Decision", "Accepted → now", "Change", "Unit", "Margin", "Reason and next action"]
    parts += (
        [markdown_table(head, [_outcome(run, outcome) for outcome in comparison_text.in_reading_order(gate)], numbers=(3, 5))]
        if gate.outcomes
        else []
    )
    return parts + (["\n".join(f"- {escape(note)}" for note in gate.notes)] if gate.notes else [])


def _outcome(run: Run, outcome: Outcome) -> list[str]:
    group = tables.outcome_group(run, outcome) if outcome.decision in {"worse", "crashed"} else ()
    has_change = outcome.estimate.change is not None
    reason, action = comparison_text.reason_text(outcome), tables.next_action(group) if group else ""
    return [
        escape(comparison_text.outcome_name(outcome)),
        f"**{outcome.decision}**" if comparison_text.needs_attention(outcome) else outcome.decision,
        escape(comparison_text.both_sides_text(outcome)),
        comparison_text.change_text(outcome),
        escape(format.unit_name(outcome.estimate.unit)) if has_change else format.MISSING,
        comparison_text.margin_text(outcome) if has_change else format.MISSING,
        "<br>".join(map(escape, filter(None, (reason, action)))),
    ]


def _verdicts(run: Run) -> list[str]:
    """Return the headline, verdicts, patches, measurements and notes of a run."""
    parts = [escape(tables.headline(run))]
    groups = tables.finding_groups(run)
    if groups:
        unit = tables.suite_unit(run)
        head = [
            "Check",
            "Verdict",
            f"Harm, {format.unit_name(unit)}",
            "Control",
            "Benefit retained",
            *map(str.capitalize, ARMS),
            "Reason and next action",
        ]
        parts.append(markdown_table(head, [_row(group, unit) for group in groups], numbers=range(4, 9)))
    patches = [(group[0].plugin, tables.patch_lines(group)) for group in groups]
    parts += [f"**{escape(plugin)}**, change in the suite file:\n\n{_fenced(lines)}" for plugin, lines in patches if lines]
    measurements = [finding for name in tables.plugin_names(run) for finding in tables.measurements(run, name)]
    if measurements:
        rows = [
            [
                escape(f"{finding.plugin}/{finding.contrast}"),
                tables.harm_text(finding),
                format.unit_name(finding.estimate.unit),
                escape(finding.reason),
            ]
            for finding in measurements
        ]
        parts.append(
            "Measurements without a verdict:\n\n"
            + markdown_table(["Measurement", "Difference", "Unit", "Meaning"], rows, numbers=())
        )
    if run.notes:
        parts.append("\n".join(f"- {escape(note)}" for note in run.notes))
    return parts


def _row(group: tables.Group, unit: str) -> list[str]:
    first = group[0]
    induced = "<br>".join(format.format_percent(value) for _, value in tables.induced_range(group)) or format.MISSING
    accuracy = {arm: format.format_percent(first.accuracy.get(arm)) for arm in ("subject", "cured", "scratch")}
    name = tables.group_name(first)
    return [
        escape(name),
        f"**{first.verdict}**",
        tables.harm_text(first, unit),
        "<br>".join(map(escape, tables.control_texts(group))) or format.MISSING,
        format.format_percent(first.benefit_retained, 0),
        *(({**accuracy, "induced": induced})[arm] for arm in ARMS),
        "<br>".join(map(escape, filter(None, (tables.group_reason(group), tables.next_action(group))))),
    ]


def _matrix(run: Run) -> list[str]:
    """Return the tables of a matrix (claims, recipes, size × similarity, scores by task), its errors and its notes."""
    matrix, summaries = matrix_tables.matrix_of(run), matrix_tables.rank_recipes(run)
    parts = [matrix_tables.format_outcome(run), *_claims(run)]
    if summaries[0]:
        rows = [[escape(summary.recipe), *matrix_tables.summary_cells(summary)[1:]] for summary in summaries[0]]
        parts.append(markdown_table(list(map(escape, matrix_tables.summary_columns(run))), rows, numbers=range(1, 6)))
    if quadrants := matrix_tables.describe_quadrants(run):
        rows = [
            [
                f"{quadrant.name}: {escape(quadrant.tasks)}",
                escape(quadrant.advised),
                quadrant.regret,
                escape(quadrant.best),
                escape(quadrant.tied),
            ]
            for quadrant in quadrants
        ]
        head = ["tasks", "textbook advice", "regret", "best", "not shown to be worse"]
        parts.append(markdown_table(head, rows, numbers=(2,)))
    parts += _scores(run)
    lines = [
        f"{finding.verdict} {escape(finding.id)}: {escape(finding.reason)}"
        for finding in run.findings
        if finding.verdict in {"FAIL", "ERROR"}
    ]
    lines += [f"crashed: {escape(crash)}" for crash in matrix.crashes]
    lines += [escape(line) for line in matrix_tables.describe_skipped(run)]
    lines += [f"note: {escape(note)}" for note in (*summaries[1], *run.notes)]
    return [*parts, *(["\n".join(f"- {line}" for line in lines)] if lines else [])]


def _claims(run: Run) -> list[str]:
    claims = matrix_tables.matrix_of(run).claims
    if not claims:
        return []
    rows = [
        [escape(claim["claim"]), *reversed(matrix_tables.format_claim(claim)), f"**{claim['outcome']}**"] for claim in claims
    ]
    reasons = [f"- {escape(claim['claim'])}: {escape(claim['why'])}" for claim in claims if claim["why"]]
    return [
        markdown_table(["claim", "published", "claimed", "measured", ""], rows, numbers=(1, 2, 3)),
        *(["\n".join(reasons)] if reasons else []),
    ]


def _scores(run: Run) -> list[str]:
    """Return the table of the mean scores of the recipes on the tasks."""
    tasks, unit = run.suite["tasks"], metrics.get_metric(str(run.suite["metric"])).unit
    if not run.suite["recipes"]:
        return []
    means, scale = matrix_tables.mean_scores(run), ", %" if format.unit_scale(unit)[0] > 1 else ""
    rows = [
        [
            escape(name),
            *(format.format_score_number((means.get((name, task)) or {}).get("accuracy"), unit) for task in tasks),
        ]
        for name in run.suite["recipes"]
    ]
    head = [escape(f"{run.suite['metric']}{scale}, mean over seeds"), *map(escape, tasks)]
    return [markdown_table(head, rows, numbers=range(1, len(head)))]


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[int]) -> str:
    """Return a table of escaped cells; the columns ``numbers`` are right-aligned."""
    rule = ["---:" if column in numbers else "---" for column in range(len(head))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *rows))


def _fenced(lines: str) -> str:
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", lines)), default=0))
    return f"{fence}toml\n{lines}\n{fence}"
