"""Write ``report.html`` of a matrix, a single file without scripts and network access. Reads the templates."""

from __future__ import annotations

from math import isnan
from typing import TYPE_CHECKING, Any

from xferbench.analysis import metrics, rules_of_thumb
from xferbench.report import comparison, figures, format, matrix_tables, templates

if TYPE_CHECKING:
    from collections.abc import Mapping

    from xferbench.core.run import Run

COSTS = ("trainable", "stored", "multiply_adds", "seconds", "accuracy", "source_before", "source", "shifted")
CLAIM_STYLE = {"agrees": "PASS", "disagrees": "FAIL", "inconclusive": "INCONCLUSIVE", "not measured": "SKIPPED"}


def render(run: Run, command: str) -> str:
    """Return the report of a matrix as HTML: claims, recipes over all tasks, size × similarity, scores and costs.

    Args:
        run: the matrix as a run.
        command: the command line that runs it again.
    """
    from markupsafe import Markup

    suite, matrix, (summaries, notes) = run.suite, matrix_tables.matrix_of(run), matrix_tables.rank_recipes(run)
    return templates.render_template(
        "matrix.html.j2",
        title=format.one_line(suite["name"]),
        outcome=matrix_tables.format_outcome(run),
        settings=[(name, format.one_line(value)) for name, value in _settings(run).items() if value],
        claims=[_claim(claim) for claim in matrix.claims],
        columns=matrix_tables.summary_columns(run),
        ranked=[matrix_tables.summary_cells(summary) for summary in summaries],
        rules=_rules(run),
        quadrants=matrix_tables.describe_quadrants(run),
        drawing=Markup(figures.draw_quadrants(run)),  # noqa: S704 - drawn by this package, with its texts escaped
        tasks=[format.one_line(task) for task in suite["tasks"]],
        metric=format.one_line(suite["metric"]),
        unit=format.unit_name(metrics.get_metric(str(suite["metric"])).unit),
        level=f"{100 * (1 - float(suite['alpha'])):g} %",
        against=format.one_line(suite["against"]),
        grid=_score_grid(run),
        costs=_cost_grid(run),
        findings=[
            (finding, format.one_line(finding.id), format.one_line(finding.reason))
            for finding in run.findings
            if finding.verdict != "INFO"
        ],
        pages=sorted({finding.id.partition(":")[0] for finding in run.findings}),
        crashed=[format.one_line(crash) for crash in matrix.crashes],
        skipped=[format.one_line(line) for line in matrix_tables.describe_skipped(run)],
        notes=[format.one_line(note) for note in (*notes, *run.notes)],
        cost=run.cost,
        environment=comparison.environment_rows(run.provenance.environment),
        command=command,
    )


def _settings(run: Run) -> dict[str, Any]:
    suite = run.suite
    return {
        "recipes": len(suite["recipes"]),
        "tasks": len(suite["tasks"]),
        "seeds": len({row["seed"] for row in matrix_tables.matrix_of(run).rows}),
        "chosen": f"the rate of each recipe, on validation data with separate tuning seeds ({suite['tuning_seeds']})",
        "metric": suite["metric"],
        "margin": f"{suite['margin']:g}",
        "compared with": suite["against"],
    }


def _claim(claim: Mapping[str, Any]) -> dict[str, str]:
    measured, bound, published = matrix_tables.format_claim(claim)
    texts = {name: format.one_line(claim[name]) for name in ("claim", "source", "why", "task", "outcome")}
    recipes = f"{claim['recipe']} − {claim['against']}, {claim['view']}"
    number = claim["contrast"] or (recipes if claim["against"] else f"{claim['recipe']}, {claim['measure']}")
    return texts | {
        "style": CLAIM_STYLE[claim["outcome"]],
        "measured": measured,
        "bound": bound,
        "published": published,
        "number": format.one_line(number),
    }


def _rules(run: Run) -> str:
    """Return the advice of each rule of thumb that the table lists."""
    probe, upper, full = "a linear probe", "the upper layers", "all layers"
    few, least, most = rules_of_thumb.FEW_EXAMPLES, rules_of_thumb.MIN_UPPER_EXAMPLES, rules_of_thumb.MAX_UPPER_EXAMPLES
    small = f"{probe} if they are similar to the source, otherwise {upper}"
    advice_of = {
        matrix_tables.TEXTBOOK: f"below {few} images {small}; above that, {full}",
        matrix_tables.BY_SIZE: f"below {least} images {probe}, up to {most} {upper}, above that {full}",
    }
    return "; ".join(f"{rule}: {advice_of[rule]}" for rule in matrix_tables.advised_recipes(run))


def _score_grid(run: Run) -> list[tuple[str, list[tuple[str, str, bool]]]]:
    """Return the mean, the difference from the reference and whether it may be the best, for each recipe and task."""
    means, best = matrix_tables.mean_scores(run), matrix_tables.tied_recipes(run)
    unit = metrics.get_metric(str(run.suite["metric"])).unit
    comparisons = {(entry["recipe"], entry["task"]): entry for entry in matrix_tables.matrix_of(run).comparisons}
    rows = []
    for name in run.suite["recipes"]:
        cells = []
        for task in run.suite["tasks"]:
            entry = comparisons.get((name, task))
            bounds = None if entry is None or entry["error"] else (entry["difference"], entry["low"], entry["high"])
            score = format.format_score_number((means.get((name, task)) or {}).get("accuracy"), unit)
            cells.append((score, "" if bounds is None else format.format_bounds(bounds, unit), (name, task) in best))
        rows.append((format.one_line(name), cells))
    return rows


def _cost_grid(run: Run) -> list[tuple[str, list[str]]]:
    """Return the costs of each recipe: means over the tasks that have a value."""
    frame, unit = run.to_frame(), metrics.get_metric(str(run.suite["metric"])).unit
    rows = []
    for name in run.suite["recipes"]:
        means = frame[frame["recipe"] == name][list(COSTS)].mean()
        if not means.isna().all():
            rows.append((format.one_line(name), [_format_cost(column, float(means[column]), unit) for column in COSTS]))
    return rows


def _format_cost(column: str, value: float, unit: str) -> str:
    if isnan(value):
        return format.MISSING
    if column == "seconds":
        return format.format_seconds(value)
    if column in {"trainable", "multiply_adds"}:
        return f"{value:,.0f}"
    return f"{value / 1000:,.1f} kB" if column == "stored" else format.format_score_number(value, unit)
