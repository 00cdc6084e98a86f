"""Write the HTML page that compares two runs, and the same section for the report of a gate. Reads the templates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from xferbench.report import change_plot, comparison_text, figure_cache, format, tables, templates

if TYPE_CHECKING:
    from pathlib import Path

    from xferbench.core.comparison import Outcome
    from xferbench.core.run import Run


def render(run: Run, cache: Path | None = None, *, file: str = "") -> str:
    """Return the page, a single file without scripts and network access.

    Args:
        run: the candidate with its comparison; without one, the page says that nothing was compared.
        cache: folder of cached figures; None draws all figures.
        file: the path of the candidate, for the reader.
    """
    names = [format.one_line(side.get("name") or "") for side in ((run.gate.accepted if run.gate else {}), run.suite)]
    page = templates.render_template(
        "comparison.html.j2",
        title=" → ".join(name or "a run" for name in names),
        sentence=comparison_text.headline(run.gate, gate=False) if run.gate else "Nothing was compared.",
        sides=comparison_text.side_rows(run, file),
        names=comparison_text.SIDE_NAMES[False],
        environment=environment_rows(run.provenance.environment),
        comparison=comparison_values(run, cache, alone=True),
    )
    if cache is not None:
        figure_cache.trim_cache(cache)
    return page


def comparison_values(run: Run, cache: Path | None, *, alone: bool = False) -> dict[str, Any]:
    """Return the values of the section; empty if the run has no comparison.

    Args:
        run: the candidate with its comparison.
        cache: folder of cached figures; None draws all figures.
        alone: whether the section is on the page of a comparison, whose head has the headline.
    """
    from markupsafe import Markup

    if run.gate is None:
        return {}
    drawable, names = change_plot.drawable_outcomes(run.gate), comparison_text.SIDE_NAMES[not alone]
    estimates = [outcome.estimate for outcome in run.gate.outcomes if outcome.estimate.change is not None]
    units = sorted({format.unit_name(estimate.unit) for estimate in estimates})
    return {
        "against": "" if alone else comparison_text.baseline_line(run.gate),
        "names": names,
        "outcomes": [_outcome(run, outcome, names) for outcome in comparison_text.in_reading_order(run.gate)],
        "unit": units[0] if len(units) == 1 else "",
        "level": format.format_confidence(float(run.suite.get("alpha") or 0.05)),
        "notes": [format.one_line(note) for note in run.gate.notes],
        "picture": Markup(change_plot.draw_changes(run.gate, cache)),  # noqa: S704 - drawn by this package, with its texts escaped
        "margin": any(outcome.estimate.margin is not None for outcome in drawable),
        "undrawn": len(estimates) - len(drawable),
    }


def _outcome(run: Run, outcome: Outcome, names: tuple[str, str]) -> dict[str, Any]:
    group, estimate = tables.outcome_group(run, outcome), outcome.estimate
    has_action = group and outcome.decision in {"worse", "crashed"}
    return {
        "what": comparison_text.outcome_name(outcome),
        "of": f"{format.one_line(estimate.metric).replace('_', ' ')}" if comparison_text.is_subject(outcome) else "",
        "decision": outcome.decision,
        "style": comparison_text.VERDICT_STYLE[outcome.decision],
        "known": comparison_text.is_known_failure(outcome),
        "sides": [
            {"name": name, "verdict": format.one_line(verdict), "level": comparison_text.level_text(outcome, value)}
            for name, verdict, value in zip(
                names, (outcome.accepted, outcome.verdict), (estimate.before, estimate.now), strict=True
            )
        ],
        "change": format.format_harm(estimate.change, estimate.unit),
        "bounds": comparison_text.change_text(outcome).partition(" ")[2],
        "unit": format.unit_name(estimate.unit),
        "margin": comparison_text.margin_text(outcome),
        "reason": comparison_text.reason_text(outcome),
        "action": tables.next_action(group) if has_action else "",
        "patch": tables.patch_lines(group) if has_action else "",
        "figures": comparison_text.figures_text(outcome),
    }


def environment_rows(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the names and values of an environment; a nested mapping becomes one line."""
    return [
        (
            format.one_line(name),
            format.one_line(", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, Mapping) else value),
        )
        for name, value in values.items()
        if value not in (None, "")
    ]
