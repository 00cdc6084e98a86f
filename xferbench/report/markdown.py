"""``summary.md``: the verdicts as a GitHub table; of a gate what has changed stands before them; of a matrix its tables."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from xferbench import metrics
from xferbench.report import frames, held, matrix_tables, text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xferbench.core.comparison import Comparison, Outcome
    from xferbench.record import Run

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


def escaped(value: object) -> str:
    """Put a text on one line in which nothing is markup, nor mathematics, nor the end of a table's cell."""
    return text.line(value).translate(SPECIAL)


def render(run: Run) -> str:
    """Render the summary; it ends with a line break."""
    head = f"## xferbench: {escaped(run.suite.get('name', ''))}"
    own = _matrix(run) if run.matrix else _own(run)
    if run.gate:
        own = [*_gate(run, run.gate), "<details><summary>The run itself</summary>", *own, "</details>"]
    return "\n\n".join([head, *own]) + "\n"


def _gate(run: Run, gate: Comparison) -> list[str]:
    """The gate's sentence, its outcomes, what to change, and what else differs between the two runs."""
    parts = [f"**{escaped(held.sentence(gate))}**", escaped(held.against(gate)) + "."]
    head = ["Compared", "Decision", "Accepted → now", "Change", "Unit", "Margin", "Reason and next action"]
    parts += [table(head, [_outcome(run, one) for one in held.ordered(gate)], numbers=(3, 5))] if gate.outcomes else []
    return parts + (["\n".join(f"- {escaped(note)}" for note in gate.notes)] if gate.notes else [])


def _outcome(run: Run, one: Outcome) -> list[str]:
    group = frames.of(run, one) if one.decision in {"worse", "crashed"} else ()
    told = one.change is not None
    return [
        escaped(held.what(one)),
        f"**{one.decision}**" if held.asks(one) else one.decision,
        escaped(held.turn(one)),
        held.change(one),
        escaped(text.in_words(one.unit)) if told else text.NOTHING,
        held.margin(one) if told else text.NOTHING,
        "<br>".join(map(escaped, filter(None, (held.reason(one), frames.action(group) if group else "")))),
    ]


def _own(run: Run) -> list[str]:
    """What the run says by itself."""
    parts = [escaped(frames.outcome(run))]
    groups = frames.groups(run)
    if groups:
        unit = text.in_words(groups[0][0].unit)
        head = [
            "Check",
            "Verdict",
            f"Harm, {unit}",
            "Control",
            "Benefit retained",
            *map(str.capitalize, ARMS),
            "Reason and next action",
        ]
        parts.append(table(head, [_row(group) for group in groups], numbers=range(4, 9)))
    patches = [(group[0].plugin, frames.patch(group)) for group in groups]
    parts += [f"**{escaped(plugin)}**, in the suite file:\n\n{_fenced(lines)}" for plugin, lines in patches if lines]
    measured = [one for name in frames.plugins(run) for one in frames.measured(run, name)]
    if measured:
        rows = [
            [
                escaped(f"{one.plugin}/{one.contrast}"),
                frames.harm(one),
                text.in_words(one.unit),
                escaped(one.reason),
            ]
            for one in measured
        ]
        parts.append(
            "Measured beside it, no verdict:\n\n" + table(["Measurement", "Difference", "Unit", "Meaning"], rows, numbers=())
        )
    if run.notes:
        parts.append("\n".join(f"- {escaped(note)}" for note in run.notes))
    return parts


def _row(group: frames.Group) -> list[str]:
    first = group[0]
    induced = "<br>".join(text.percent(value) for _, value in frames.induced(group)) or text.NOTHING
    others = {arm: text.percent(first.accuracy.get(arm)) for arm in ("subject", "cured", "scratch")}
    name = frames.check(first)
    return [
        escaped(name),
        f"**{first.verdict}**",
        frames.harm(first),
        "<br>".join(map(escaped, frames.controls(group))) or text.NOTHING,
        text.percent(first.benefit_retained, 0),
        *(({**others, "induced": induced})[arm] for arm in ARMS),
        "<br>".join(map(escaped, filter(None, (frames.reason(group), frames.action(group))))),
    ]


def _matrix(run: Run) -> list[str]:
    """The tables of a matrix: its claims, the recipes over all tasks, the 2×2, the scores by task; then errors and notes."""
    matrix, summaries = matrix_tables.matrix_of(run), matrix_tables.rank_recipes(run)
    parts = [matrix_tables.format_outcome(run), *_claims(run)]
    if summaries[0]:
        rows = [[escaped(summary.recipe), *matrix_tables.summary_cells(summary)[1:]] for summary in summaries[0]]
        parts.append(table(list(map(escaped, matrix_tables.summary_columns(run))), rows, numbers=range(1, 6)))
    if quadrants := matrix_tables.describe_quadrants(run):
        rows = [
            [
                f"{quadrant.name}: {escaped(quadrant.tasks)}",
                escaped(quadrant.advised),
                quadrant.regret,
                escaped(quadrant.best),
                escaped(quadrant.tied),
            ]
            for quadrant in quadrants
        ]
        head = ["where", "the textbook advises", "which costs", "best", "not shown to be worse"]
        parts.append(table(head, rows, numbers=(2,)))
    parts += _scores(run)
    lines = [
        f"{finding.verdict} {escaped(finding.id)}: {escaped(finding.reason)}"
        for finding in run.findings
        if finding.verdict in {"FAIL", "ERROR"}
    ]
    lines += [f"crashed: {escaped(crash)}" for crash in matrix.crashes]
    lines += [escaped(line) for line in matrix_tables.describe_skipped(run)]
    lines += [f"note: {escaped(note)}" for note in (*summaries[1], *run.notes)]
    return [*parts, *(["\n".join(f"- {line}" for line in lines)] if lines else [])]


def _claims(run: Run) -> list[str]:
    claims = matrix_tables.matrix_of(run).claims
    if not claims:
        return []
    rows = [
        [escaped(claim["claim"]), *reversed(matrix_tables.format_claim(claim)), f"**{claim['outcome']}**"] for claim in claims
    ]
    reasons = [f"- {escaped(claim['claim'])}: {escaped(claim['why'])}" for claim in claims if claim["why"]]
    return [
        table(["claim", "published", "claimed", "measured", ""], rows, numbers=(1, 2, 3)),
        *(["\n".join(reasons)] if reasons else []),
    ]


def _scores(run: Run) -> list[str]:
    """The mean score of each recipe on each task."""
    tasks, unit = run.suite["tasks"], metrics.named(str(run.suite["metric"])).unit
    if not run.suite["recipes"]:
        return []
    means, scale = matrix_tables.mean_scores(run), ", %" if text.scale(unit)[0] > 1 else ""
    rows = [
        [
            escaped(name),
            *(matrix_tables.format_score((means.get((name, task)) or {}).get("accuracy"), unit) for task in tasks),
        ]
        for name in run.suite["recipes"]
    ]
    head = [escaped(f"{run.suite['metric']}{scale}, mean over seeds"), *map(escaped, tasks)]
    return [table(head, rows, numbers=range(1, len(head)))]


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[int]) -> str:
    """A table of cells that are escaped; ``numbers`` are the columns that are set to the right."""
    rule = ["---:" if column in numbers else "---" for column in range(len(head))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *rows))


def _fenced(lines: str) -> str:
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", lines)), default=0))
    return f"{fence}toml\n{lines}\n{fence}"
