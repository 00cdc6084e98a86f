"""A run's findings as a LaTeX table for a paper."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xferbench.report import frames, held, tex, text

if TYPE_CHECKING:
    from xferbench.core.comparison import Comparison, Outcome
    from xferbench.record import Run

ARMS = ("subject", "cured", "scratch")


def render(run: Run) -> str:
    """Render the tables of a run; of a gate what was compared comes first."""
    tables = [_gate(run, run.gate)] if run.gate and run.gate.outcomes else []
    if groups := frames.groups(run):
        tables.append(_findings(run, groups))
    return tex.NEEDS + ("\n".join(tables) or f"% {tex.escaped(frames.outcome(run))}\n")


def _findings(run: Run, groups: tuple[frames.Group, ...]) -> str:
    head = ["Check", "Verdict", "Harm", "Margin", "Detected", *map(str.capitalize, ARMS), "Seeds"]
    return tex.table(
        head,
        [_row(group) for group in groups],
        columns="llrrrrrrr",
        caption=" ".join(_caption(run, groups)),
        label=f"tab:xferbench-{run.suite.get('name', '')}",
        notes=run.notes,
    )


def _row(group: frames.Group) -> list[str]:
    first = group[0]
    factor, digits = text.scale(first.unit)
    controls = [one.control for one in group if one.control != "none"]
    return [
        tex.escaped(frames.check(first)),
        first.verdict,
        tex.number(frames.harm(first)),
        "--" if first.margin is None else f"{factor * first.margin:.{digits}f}",
        f"{controls.count('detected')}/{len(controls)}" if controls else "--",
        *(_percent(first.accuracy.get(arm)) for arm in ARMS),
        str(first.seeds) if first.seeds else "--",
    ]


def _percent(value: float | None) -> str:
    return "--" if value is None else f"{100 * value:.1f}"


def _caption(run: Run, groups: tuple[frames.Group, ...]) -> list[str]:
    """What the numbers are, and what they rest on."""
    suite = run.suite
    units = dict.fromkeys(group[0].unit for group in groups if group[0].harm is not None)
    harm = " or ".join(map(text.in_words, units)) or "the unit of each check"
    examples = sorted({group[0].examples for group in groups if group[0].examples})
    size = f", {suite['train_size']} training images" if suite.get("train_size") else ""
    level = text.level(float(suite["alpha"]), "")
    images = " ".join([" or ".join(map(str, examples)), "test images"]).strip()
    whole = f"the {images} of one finished network"
    over = whole if suite.get("after") else f"seeds crossed with {images}, both drawn at random"
    said = [
        f"Findings of the suite {suite.get('name', '')}: {suite['arch']} on {text.place(suite['target'])}{size}.",
        f"Harm (in {harm}; above 0 the pipeline is worse than its cure, or than what it is compared with) with one-sided",
        f"{level} bounds in brackets, over {over}.",
        "The bounds are of each by itself, the verdicts corrected for looks and for all that was judged.",
        "Detected: of the failures put in on purpose, as controls, those that were.",
        "Subject, cured and scratch: mean accuracy in % on the test images.",
    ]
    if not suite.get("after"):
        said.append(
            "What was chosen among several was chosen on images that no verdict is taken on, on tuning seeds of their own."
        )
    return [tex.escaped(one) for one in said]


def _gate(run: Run, gate: Comparison) -> str:
    caption = [held.sentence(gate), f"{held.against(gate)}.", "Changes are differences on the same seeds and test images,"]
    caption += [f"with one-sided {text.level(float(run.suite['alpha']), '')} bounds in brackets; above 0 is worse."]
    return tex.table(
        ["Compared", "Decision", "Accepted $\\to$ now", "Change", "Margin", "Seeds"],
        [_outcome(one) for one in held.ordered(gate)],
        columns="lllrrr",
        caption=" ".join(map(tex.escaped, caption)),
        label=f"tab:xferbench-gate-{run.suite.get('name', '')}",
        notes=gate.notes,
    )


def _outcome(one: Outcome) -> list[str]:
    told = one.change is not None
    return [
        tex.escaped(held.what(one)),
        one.decision,
        tex.number(held.turn(one)),
        tex.number(held.change(one)),
        tex.number(held.margin(one)) if told else "--",
        str(one.seeds) if one.seeds else "--",
    ]
