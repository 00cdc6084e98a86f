"""Two runs beside each other as a page of its own, and as the section that opens the report of a gate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from xferbench.report import change_plot, comparison_text, figure_cache, format, tables, templates

if TYPE_CHECKING:
    from pathlib import Path

    from xferbench.core.comparison import Outcome
    from xferbench.core.run import Run


def render(run: Run, cache: Path | None = None, *, file: str = "") -> str:
    """Render the page: one file that needs no network, no script and no other file.

    Args:
        run: the candidate, held against the accepted run; without that the page says that nothing was compared.
        cache: folder of figures that were drawn before; None draws all.
        file: where the candidate lies, for the reader.
    """
    names = [format.one_line(side.get("name") or "") for side in ((run.gate.accepted if run.gate else {}), run.suite)]
    told = templates.render_template(
        "comparison.html.j2",
        title=" → ".join(name or "a run" for name in names),
        sentence=comparison_text.headline(run.gate, gate=False) if run.gate else "Nothing was compared.",
        sides=comparison_text.side_rows(run, file),
        names=comparison_text.SIDE_NAMES[False],
        environment=environment(run.environment),
        held=section(run, cache, alone=True),
    )
    if cache is not None:
        figure_cache.trim_cache(cache)
    return told


def section(run: Run, cache: Path | None, *, alone: bool = False) -> dict[str, Any]:
    """What the section shows; {} of a run held against nothing. ``alone``: the page's head has the sentence."""
    from markupsafe import Markup

    if run.gate is None:
        return {}
    shown, names = change_plot.drawable_outcomes(run.gate), comparison_text.SIDE_NAMES[not alone]
    units = sorted({format.unit_name(one.unit) for one in run.gate.outcomes if one.change is not None})
    return {
        "against": "" if alone else comparison_text.baseline_line(run.gate),
        "names": names,
        "outcomes": [_outcome(run, one, names) for one in comparison_text.in_reading_order(run.gate)],
        "unit": units[0] if len(units) == 1 else "",
        "level": format.format_confidence(float(run.suite.get("alpha") or 0.05)),
        "notes": [format.one_line(note) for note in run.gate.notes],
        "picture": Markup(change_plot.draw_changes(run.gate, cache)),  # noqa: S704 - drawn here, its texts escaped
        "margin": any(one.margin is not None for one in shown),
        "undrawn": sum(one.change is not None for one in run.gate.outcomes) - len(shown),
    }


def _outcome(run: Run, one: Outcome, names: tuple[str, str]) -> dict[str, Any]:
    group = tables.group_sentence_name(run, one)
    needed = one.decision in {"worse", "crashed"}
    return {
        "what": comparison_text.outcome_name(one),
        "of": f"{format.one_line(one.metric).replace('_', ' ')}" if comparison_text.is_subject(one) else "",
        "decision": one.decision,
        "look": comparison_text.VERDICT_STYLE[one.decision],
        "known": comparison_text.is_known_failure(one),
        "sides": [
            {"name": name, "verdict": format.one_line(verdict), "level": comparison_text.level_text(one, value)}
            for name, verdict, value in zip(names, (one.accepted, one.verdict), (one.before, one.now), strict=True)
        ],
        "change": format.format_harm(one.change, one.unit),
        "bounds": comparison_text.change_text(one).partition(" ")[2],
        "unit": format.unit_name(one.unit),
        "margin": comparison_text.margin_text(one),
        "reason": comparison_text.reason_text(one),
        "action": tables.next_action(group) if group and needed else "",
        "patch": tables.patch_lines(group) if group and needed else "",
        "figures": comparison_text.figures_text(one),
    }


def environment(told: Mapping[str, Any]) -> list[tuple[str, str]]:
    """One row a fact, nested ones on one line."""
    return [
        (
            format.one_line(name),
            format.one_line(", ".join(f"{key} {one}" for key, one in value.items()) if isinstance(value, Mapping) else value),
        )
        for name, value in told.items()
        if value not in (None, "")
    ]
