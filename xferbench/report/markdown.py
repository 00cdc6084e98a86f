"""``summary.md``: the verdicts as a GitHub table; of a gate what has changed stands before them; of a matrix its tables."""

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
    """Put a text on one line in which nothing is markup, nor mathematics, nor the end of a table's cell."""
    return format.one_line(value).translate(SPECIAL)


def render(run: Run) -> str:
    """Render the summary; it ends with a line break."""
    head = f"## xferbench: {escape(run.suite.get('name', ''))}"
    own = _matrix(run) if run.matrix else _own(run)
    if run.gate:
        own = [*_gate(run, run.gate), "<details><summary>The run itself</summary>", *own, "</details>"]
    return "\n\n".join([head, *own]) + "\n"


def _gate(run: Run, gate: Comparison) -> list[str]:
    """The gate's sentence, its outcomes, what to change, and what else differs between the two runs."""
    parts = [f"**{escape(comparison_text.headline(gate))}**", escape(comparison_text.baseline_line(gate)) + "."]
    head = ["Compared", "Decision", "Accepted → now", "Change", "Unit", "Margin", "Reason and next action"]
    parts += (
        [markdown_table(head, [_outcome(run, one) for one in comparison_text.in_reading_order(gate)], numbers=(3, 5))]
        if gate.outcomes
        else []
    )
    return parts + (["\n".join(f"- {escape(note)}" for note in gate.notes)] if gate.notes else [])


def _outcome(run: Run, one: Outcome) -> list[str]:
    group = tables.group_sentence_name(run, one) if one.decision in {"worse", "crashed"} else ()
    told = one.change is not None
    return [
        escape(comparison_text.outcome_name(one)),
        f"**{one.decision}**" if comparison_text.needs_attention(one) else one.decision,
        escape(comparison_text.turn_text(one)),
        comparison_text.change_text(one),
        escape(format.unit_name(one.unit)) if told else format.MISSING,
        comparison_text.margin_text(one) if told else format.MISSING,
        "<br>".join(map(escape, filter(None, (comparison_text.reason_text(one), tables.next_action(group) if group else "")))),
    ]


def _own(run: Run) -> list[str]:
    """What the run says by itself."""
    parts = [escape(tables.headline(run))]
    groups = tables.finding_groups(run)
    if groups:
        unit = format.unit_name(groups[0][0].unit)
        head = [
            "Check",
            "Verdict",
            f"Harm, {unit}",
            "Control",
            "Benefit retained",
            *map(str.capitalize, ARMS),
            "Reason and next action",
        ]
        parts.append(markdown_table(head, [_row(group) for group in groups], numbers=range(4, 9)))
    patches = [(group[0].plugin, tables.patch_lines(group)) for group in groups]
    parts += [f"**{escape(plugin)}**, in the suite file:\n\n{_fenced(lines)}" for plugin, lines in patches if lines]
    measured = [one for name in tables.plugin_names(run) for one in tables.measurements(run, name)]
    if measured:
        rows = [
            [
                escape(f"{one.plugin}/{one.contrast}"),
                tables.harm_text(one),
                format.unit_name(one.unit),
                escape(one.reason),
            ]
            for one in measured
        ]
        parts.append(
            "Measured beside it, no verdict:\n\n"
            + markdown_table(["Measurement", "Difference", "Unit", "Meaning"], rows, numbers=())
        )
    if run.notes:
        parts.append("\n".join(f"- {escape(note)}" for note in run.notes))
    return parts


def _row(group: tables.Group) -> list[str]:
    first = group[0]
    induced = "<br>".join(format.format_percent(value) for _, value in tables.induced_range(group)) or format.MISSING
    others = {arm: format.format_percent(first.accuracy.get(arm)) for arm in ("subject", "cured", "scratch")}
    name = tables.group_name(first)
    return [
        escape(name),
        f"**{first.verdict}**",
        tables.harm_text(first),
        "<br>".join(map(escape, tables.control_texts(group))) or format.MISSING,
        format.format_percent(first.benefit_retained, 0),
        *(({**others, "induced": induced})[arm] for arm in ARMS),
        "<br>".join(map(escape, filter(None, (tables.group_reason(group), tables.next_action(group))))),
    ]


def _matrix(run: Run) -> list[str]:
    """The tables of a matrix: its claims, the recipes over all tasks, the 2×2, the scores by task; then errors and notes."""
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
        head = ["where", "the textbook advises", "which costs", "best", "not shown to be worse"]
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
    """The mean score of each recipe on each task."""
    tasks, unit = run.suite["tasks"], metrics.get_metric(str(run.suite["metric"])).unit
    if not run.suite["recipes"]:
        return []
    means, scale = matrix_tables.mean_scores(run), ", %" if format.unit_scale(unit)[0] > 1 else ""
    rows = [
        [
            escape(name),
            *(matrix_tables.format_score((means.get((name, task)) or {}).get("accuracy"), unit) for task in tasks),
        ]
        for name in run.suite["recipes"]
    ]
    head = [escape(f"{run.suite['metric']}{scale}, mean over seeds"), *map(escape, tasks)]
    return [markdown_table(head, rows, numbers=range(1, len(head)))]


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[int]) -> str:
    """A table of cells that are escaped; ``numbers`` are the columns that are set to the right."""
    rule = ["---:" if column in numbers else "---" for column in range(len(head))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *rows))


def _fenced(lines: str) -> str:
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", lines)), default=0))
    return f"{fence}toml\n{lines}\n{fence}"
