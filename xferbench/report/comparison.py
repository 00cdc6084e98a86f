"""Two runs beside each other as a page of its own, and as the section that opens the report of a gate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from xferbench.report import changes, drawn, frames, held, page, text

if TYPE_CHECKING:
    from pathlib import Path

    from xferbench.core.comparison import Outcome
    from xferbench.record import Run


def render(run: Run, cache: Path | None = None, *, file: str = "") -> str:
    """Render the page: one file that needs no network, no script and no other file.

    Args:
        run: the candidate, held against the accepted run; without that the page says that nothing was compared.
        cache: folder of figures that were drawn before; None draws all.
        file: where the candidate lies, for the reader.
    """
    names = [text.line(side.get("name") or "") for side in ((run.gate.accepted if run.gate else {}), run.suite)]
    told = page.render(
        "comparison.html.j2",
        title=" → ".join(name or "a run" for name in names),
        sentence=held.sentence(run.gate, gate=False) if run.gate else "Nothing was compared.",
        sides=held.sides(run, file),
        names=held.NAMES[False],
        environment=environment(run.environment),
        held=section(run, cache, alone=True),
    )
    if cache is not None:
        drawn.trim(cache)
    return told


def section(run: Run, cache: Path | None, *, alone: bool = False) -> dict[str, Any]:
    """What the section shows; {} of a run held against nothing. ``alone``: the page's head has the sentence."""
    from markupsafe import Markup

    if run.gate is None:
        return {}
    shown, names = changes.drawable(run.gate), held.NAMES[not alone]
    units = sorted({text.in_words(one.unit) for one in run.gate.outcomes if one.change is not None})
    return {
        "against": "" if alone else held.against(run.gate),
        "names": names,
        "outcomes": [_outcome(run, one, names) for one in held.ordered(run.gate)],
        "unit": units[0] if len(units) == 1 else "",
        "level": text.level(float(run.suite.get("alpha") or 0.05)),
        "notes": [text.line(note) for note in run.gate.notes],
        "picture": Markup(changes.changes(run.gate, cache)),  # noqa: S704 - drawn here, its texts escaped
        "margin": any(one.margin is not None for one in shown),
        "undrawn": sum(one.change is not None for one in run.gate.outcomes) - len(shown),
    }


def _outcome(run: Run, one: Outcome, names: tuple[str, str]) -> dict[str, Any]:
    group = frames.of(run, one)
    needed = one.decision in {"worse", "crashed"}
    return {
        "what": held.what(one),
        "of": f"{text.line(one.metric).replace('_', ' ')}" if held.is_subject(one) else "",
        "decision": one.decision,
        "look": held.LOOK[one.decision],
        "known": held.known(one),
        "sides": [
            {"name": name, "verdict": text.line(verdict), "level": held.level(one, value)}
            for name, verdict, value in zip(names, (one.accepted, one.verdict), (one.before, one.now), strict=True)
        ],
        "change": text.signed(one.change, one.unit),
        "bounds": held.change(one).partition(" ")[2],
        "unit": text.in_words(one.unit),
        "margin": held.margin(one),
        "reason": held.reason(one),
        "action": frames.action(group) if group and needed else "",
        "patch": frames.patch(group) if group and needed else "",
        "figures": held.figures(one),
    }


def environment(told: Mapping[str, Any]) -> list[tuple[str, str]]:
    """One row a fact, nested ones on one line."""
    return [
        (
            text.line(name),
            text.line(", ".join(f"{key} {one}" for key, one in value.items()) if isinstance(value, Mapping) else value),
        )
        for name, value in told.items()
        if value not in (None, "")
    ]
