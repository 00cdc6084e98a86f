"""A finished matrix in words: its claims, its recipes over all tasks, its summary for a terminal and for Markdown."""

from __future__ import annotations

from collections import Counter
from math import isnan
from typing import TYPE_CHECKING, Any

from xferbench import metrics
from xferbench.effects import OUTCOMES
from xferbench.report import across, markdown, text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from xferbench.design import Suite
    from xferbench.table import Table


def means(table: Table) -> dict[tuple[str, str], dict[str, float | None]]:
    """Means over seeds of every number, by recipe and task; None where no seed has one."""
    found: dict[tuple[str, str], dict[str, float | None]] = {}
    frame = table.to_frame()
    for (recipe, task), rows in frame.groupby(["recipe", "task"], sort=False):
        told = rows.mean(numeric_only=True)
        found[str(recipe), str(task)] = {str(name): None if isnan(value) else float(value) for name, value in told.items()}
    return found


def sentence(table: Table) -> str:
    """What came of it, in one line."""
    recipes, tasks = len(table.suite["recipes"]), len(table.suite["tasks"])
    said = [f"{recipes} recipe{'s' * (recipes != 1)} on {tasks} task{'s' * (tasks != 1)}."]
    if table.claims:
        counted = Counter(str(one["outcome"]) for one in table.claims)
        several = {"agrees": "agree", "disagrees": "disagree"}
        told = ", ".join(
            f"{counted[word]} {word if counted[word] == 1 else several.get(word, word)}" for word in OUTCOMES if counted[word]
        )
        said.append(f"Of {len(table.claims)} claim{'s' * (len(table.claims) != 1)}: {told}.")
    if table.crashed:
        said.append(f"{len(table.crashed)} crashed.")
    return " ".join(said)


def claim(one: Mapping[str, Any]) -> tuple[str, str, str]:
    """A claim's own size, what it says the size is, and the published one, in words."""
    unit, absolute = str(one["unit"]), bool(one["measure"])
    bounds = {name: size(one[name], unit, absolute=absolute) for name in ("at_least", "at_most") if one[name] is not None}
    asked = " and ".join(f"{name.replace('_', ' ')} {value}" for name, value in bounds.items())
    published = "direction only" if one["published"] is None else size(one["published"], unit, absolute=absolute)
    if one["ours"] is None or isnan(one["ours"]):
        return text.NOTHING, asked, published
    low, high = (size(one[name], unit, absolute=absolute, named=False) for name in ("low", "high"))
    return f"{size(one['ours'], unit, absolute=absolute)} [{low}, {high}]", asked, published


def size(value: float | None, unit: str, *, absolute: bool = False, named: bool = True) -> str:
    """A number in its unit: a difference in points of accuracy, an accuracy or a share in per cent, seconds."""
    if value is None or isnan(value):
        return text.NOTHING
    if (unit in text.POINTS or not unit) and not absolute:
        return text.signed(value, "accuracy")
    if unit in text.POINTS or unit.startswith("of the"):
        return f"{100 * value:.3g}" + (" %" if named else "")
    return f"{value:.3g}" + (f" {text.line(unit)}" if named else "")


def summary(table: Table) -> str:
    """``summary.md``, which the terminal shows too: the claims, the recipes over all tasks, the scores by task."""
    word, suite = markdown.escaped, table.suite
    parts = [f"## xferbench: {word(suite['name'])}", sentence(table)]
    if table.claims:
        rows = [[word(one["claim"]), *reversed(claim(one)), f"**{one['outcome']}**"] for one in table.claims]
        parts.append(markdown.table(["claim", "published", "claimed", "measured", ""], rows, numbers=(1, 2, 3)))
        if why := [f"- {word(one['claim'])}: {word(one['why'])}" for one in table.claims if one["why"]]:
            parts.append("\n".join(why))
    told, notes = across.ranked(table)
    if told:
        rows = [[word(one.recipe), *across.cells(one)[1:]] for one in told]
        parts.append(markdown.table(list(map(word, across.head(table))), rows, numbers=range(1, 6)))
    if cells := across.quartered(table):
        rows = [
            [f"{one.name}: {word(one.tasks)}", word(one.advised), one.regret, word(one.best), word(one.tied)] for one in cells
        ]
        head = ["where", "the textbook advises", "which costs", "best", "not shown to be worse"]
        parts.append(markdown.table(head, rows, numbers=(2,)))
    found, tasks, unit = means(table), suite["tasks"], metrics.named(str(suite["metric"])).unit
    if suite["recipes"]:
        scale = ", %" if text.scale(unit)[0] > 1 else ""
        rows = [
            [word(name), *(across.level((found.get((name, task)) or {}).get("accuracy"), unit) for task in tasks)]
            for name in suite["recipes"]
        ]
        head = [word(f"{suite['metric']}{scale}, mean over seeds"), *map(word, tasks)]
        parts.append(markdown.table(head, rows, numbers=range(1, len(head))))
    lines = [f"{one.verdict} {word(one.id)}: {word(one.reason)}" for one in table.findings if one.verdict in {"FAIL", "ERROR"}]
    lines += [f"crashed: {word(one)}" for one in table.crashed]
    lines += [word(one) for one in left_out(table)]
    lines += [f"note: {word(note)}" for note in (*notes, *table.notes)]
    return "\n\n".join([*parts, *(["\n".join(f"- {one}" for one in lines)] if lines else [])]) + "\n"


def left_out(table: Table) -> list[str]:
    """Which recipe was left out of which tasks, and why; what has one reason is told once."""
    told: dict[tuple[str, str], list[str]] = {}
    for (task, recipe), why in table.skipped.items():
        told.setdefault((recipe, why), []).append(task)
    return [f"{recipe} is left out of {', '.join(tasks)}: {why}" for (recipe, why), tasks in told.items()]


def foretold(asked: Suite, told: Mapping[str, Mapping[str, float]]) -> str:
    """What a dry run of a matrix prints: by task what is asked, and the minutes."""
    assert asked.matrix is not None, "only a suite with a matrix is foretold so"
    names = dict.fromkeys(name for one in told.values() for name in one if name != "seconds")
    lines = [f"suite {asked.name}: {len(asked.matrix.compared)} recipes on {len(told)} tasks, {asked.looks[0]} seeds each"]
    width = max(map(len, names), default=0) + 2
    lines.append("".join([f"{'':<24}", *(f"{name:>{width}}" for name in names), f"{'minutes':>10}"]))
    for task, one in told.items():
        minutes = one["seconds"] / 60
        lines.append("".join([f"{task:<24}", *(f"{one.get(name, 0):>{width}.0f}" for name in names), f"{minutes:>10.1f}"]))
    total = sum(one["seconds"] for one in told.values()) / 60
    return "\n".join([*lines, f"minutes in all: {total:.1f}, counted task by task as if they shared nothing"])
