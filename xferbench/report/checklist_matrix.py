"""A matrix's answers to what reproducibility checklists ask, out of its record alone, as :mod:`xferbench.report.checklist`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xferbench import metrics
from xferbench.aggregates import REPLICATES
from xferbench.report import checklist, crossed, markdown, text

if TYPE_CHECKING:
    from xferbench.table import Table

BREAK = "\n\n"  # before a list
word = markdown.escaped


def render(table: Table) -> str:
    """Render the checklist as Markdown; it ends with a line break."""
    parts = [f"# Reproducibility checklist: {word(table.suite['name'])}"]
    parts.append(f"Read out of the record of the run alone. {word(crossed.sentence(table))}")
    sections = {
        "Runs and seeds": _runs(table),
        "Metric and error bars": _statistics(table),
        "Hyper-parameters and how they were chosen": _chosen(table),
        "Data and weights": {"Which data and weights?": _data(table)},
        "Compute and versions": _compute(table),
        "Notes, and what was not measured": _left(table),
    }
    for title, answers in sections.items():
        parts += [f"## {title}", *(f"**{question}** {answer}" for question, answer in answers.items())]
    parts += ["## What no record of a run can say", checklist.bullets(checklist.OUTSIDE)]
    return "\n\n".join(parts) + "\n"


def _runs(table: Table) -> dict[str, str]:
    seeds = sorted({row["seed"] for row in table.rows})
    broken, diverged = (sum(bool(row[name]) for row in table.rows) for name in ("error", "diverged"))
    return {
        "How many runs is a result based on?": f"{len(seeds)} seeds ({', '.join(map(str, seeds))}), shared by the recipes"
        f" of a task; {len(table.suite['recipes'])} recipes, {len(table.suite['tasks'])} tasks.",
        "How many runs failed?": f"{broken} of {len(table.rows)} crashed, {diverged} diverged and count as they are.",
    }


def _statistics(table: Table) -> dict[str, str]:
    suite = table.suite
    unit = text.in_words(metrics.named(str(suite["metric"])).unit)
    level = f"{100 * (1 - float(suite['alpha'])):g} %"
    return {
        "What is the metric?": f"{word(suite['metric'])} on the target's test images; differences in {word(unit)}.",
        "What do error bars mean?": "Over all tasks: two-sided 95 % intervals by a bootstrap of seeds within each task"
        f" ({REPLICATES} replicates), widened for few seeds; tasks and test images are taken as given."
        f" Of a claim or of two recipes: one-sided {level} bounds, seeds crossed with test images; of a cost: Student's t over"
        " seeds.",
        "How are many comparisons corrected for?": "They are not: each interval is by itself.",
        "How is the best recipe of a task told?": "Not by its own luck on the test set: regret is cross-fitted over seeds.",
    }


def _chosen(table: Table) -> dict[str, str]:
    rows = []
    for name, told in table.suite["recipes"].items():
        own = [row for row in table.rows if row["recipe"] == name]
        chosen = dict.fromkeys(str(row["chosen"]) for row in own if row["chosen"])
        rows.append([word(name), str(len(told) or "its own grid"), word("; ".join(told or chosen))])
    tuning = table.suite["tuning_seeds"]
    answer = f"On validation, on tuning seeds apart from the judged ones ({tuning}), by task; then frozen."
    bounds = markdown.table(["Recipe", "Candidates", "What was tried"], rows, numbers=(1,))
    return {"How was each recipe's rate chosen?": answer, "What was tried?": f"\n\n{bounds}"}


def _data(table: Table) -> str:
    told: dict[str, list[str]] = {}
    for one in table.inputs:
        line = f"{word(one['key'])}: {word(text.place(str(one['given'])))}, SHA-256 digest `{word(one['digest'])}`"
        told.setdefault(line, []).append(str(one["task"]))
    every = len(table.suite["tasks"])
    lines = [line + ("" if len(tasks) == every else f" ({word(', '.join(tasks))})") for line, tasks in told.items()]
    return checklist.bullets(lines, BREAK) or checklist.MISSING


def _compute(table: Table) -> dict[str, str]:
    cost, at = table.cost, table.environment
    packages = ", ".join(f"{name} {version}" for name, version in (at.get("packages") or {}).items())
    machine = [f"{name} {word(at[name])}" for name in ("device", "workers", "processor", "platform") if at.get(name)]
    seconds: dict[str, Any] = dict(cost["seconds"])
    return {
        "How much was trained?": f"{cost['fits']['unique']} unique fits, {cost['fits']['run']} of them in this run.",
        "How long did it take?": f"{text.seconds(seconds['total'])} recorded, {text.seconds(seconds['wall'])} of this run.",
        "On which machine?": f"{'; '.join(machine)}." if machine else checklist.MISSING,
        "Which software?": word(f"xferbench {at.get('xferbench', '')}, Python {at.get('python', '')}, {packages}") + ".",
        "With which command?": f"`{text.line(table.command).replace('`', ' ')}`" if table.command else checklist.MISSING,
    }


def _left(table: Table) -> dict[str, str]:
    skipped = [word(one) for one in crossed.left_out(table)]
    claims = [f"{word(one['claim'])}: {word(one['why'])}" for one in table.claims if one["why"]]
    return {
        "What was left out, and why?": checklist.bullets([*skipped, *claims], BREAK) or "Nothing.",
        "What else was noted?": checklist.bullets([word(note) for note in table.notes], BREAK) or "Nothing.",
    }
