"""Print runs and comparisons in the terminal. Writes to standard output and standard error; a table fits 80 columns."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from xferbench.report import comparison_text, format, markdown, tables

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from rich.console import RenderableType
    from rich.progress import TaskID
    from rich.text import Text

    from xferbench.core.comparison import Comparison, Outcome
    from xferbench.core.progress import Progress
    from xferbench.core.run import Run

VERDICT_COLORS = {
    "FAIL": "bold red",
    "PASS": "green",
    "INCONCLUSIVE": "yellow",
    "ERROR": "bold magenta",
    "SKIPPED": "dim",
    "INFO": "dim",
}
HEAD = ("CHECK", "VERDICT", "HARM", "[BOUNDS]", "KEPT", "SUBJ.", "CURED", "IND.", "SCR.")
NUMBERS = (2, *range(4, 9))  # right-aligned columns of the verdict table
RIGHT = (3,)  # right-aligned columns of a comparison
NARROW_WIDTH = 80  # characters; a longer row puts the name of its check on a separate line


def verdict_table(run: Run) -> RenderableType:
    """Return the table of verdicts; below each row are its controls, its reason and the next step."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    groups = tables.finding_groups(run)
    unit = tables.suite_unit(run)
    rows = [_row(group, unit) for group in groups]
    widths = _widths(HEAD, rows)
    parts: list[RenderableType] = [Text(tables.headline(run), style="bold"), Text(), _line(HEAD, widths, "dim")]
    for group, row in zip(groups, rows, strict=True):
        parts += _row_lines(row, widths, VERDICT_COLORS[group[0].verdict])
        parts += [Padding(Text(line, style=style), (0, 0, 0, 2), expand=False) for line, style in _details(group) if line]
    has_others = any(group[0].estimate.harm is not None and group[0].estimate.unit != unit for group in groups)
    harm = f"HARM in {format.unit_name(unit)}{', if no unit is printed' if has_others else ''}"
    legend = f"{harm}; KEPT: retained benefit of pretraining in %; the other columns: accuracy in %"
    return Group(*parts, *([Text(), Text(legend, style="dim")] if groups else []))


def comparison_table(gate: Comparison, *, alone: bool = False) -> RenderableType:
    """Return the table of a gate, or of a comparison if ``alone``; a row that needs attention has its reason below it."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    outcomes = comparison_text.in_reading_order(gate)
    rows = [
        (
            comparison_text.outcome_name(outcome),
            outcome.decision,
            comparison_text.both_sides_text(outcome),
            *_change(outcome),
        )
        for outcome in outcomes
    ]
    sides = " → ".join(comparison_text.SIDE_NAMES[not alone]).upper()
    head = ("COMPARED", "DECISION", sides, "CHANGE", "[BOUNDS]")
    widths = _widths(head, rows)
    parts: list[RenderableType] = [
        Text(comparison_text.headline(gate, gate=not alone), style="bold"),
        Text(comparison_text.baseline_line(gate), style="dim"),
    ]
    parts += [Text(), _line(head, widths, "dim", right=RIGHT)] if rows else []
    for outcome, row in zip(outcomes, rows, strict=True):
        parts += _row_lines(row, widths, VERDICT_COLORS[comparison_text.VERDICT_STYLE[outcome.decision]], right=RIGHT)
        if (comparison_text.needs_attention(outcome) or comparison_text.is_known_failure(outcome)) and (
            reason := comparison_text.reason_text(outcome)
        ):
            parts.append(Padding(Text(reason), (0, 0, 0, 2), expand=False))
    estimates = [outcome.estimate for outcome in gate.outcomes if outcome.estimate.change is not None]
    units = sorted({format.unit_name(estimate.unit) for estimate in estimates})
    parts += [Text(), Text(f"CHANGE in {' / '.join(units)}; above 0 is worse", style="dim")] if units else []
    return Group(*parts, *(Text(f"note: {format.one_line(note)}") for note in gate.notes))


def print_comparison(gate: Comparison) -> None:
    """Print a comparison to standard output, without the verdicts of the run."""
    from rich.console import Console

    Console(highlight=False).print(comparison_table(gate, alone=True))


def print_run(run: Run) -> None:
    """Print the verdicts and notes of a run to standard output, after the comparison if the run has a gate.

    For a matrix the tables of ``summary.md`` are printed.
    """
    from rich.console import Console

    if run.matrix:
        sys.stdout.write(markdown.render(run) + "\n")
        return
    console = Console(highlight=False)
    if run.gate:
        console.print(comparison_table(run.gate))
        console.print("\nVerdicts of this run:")
    console.print(verdict_table(run))
    for note in run.notes:
        console.print(f"note: {format.one_line(note)}", markup=False)
    if run.suite.get("after"):
        console.print(_times(run.cost), markup=False)


def _times(cost: Mapping[str, Any]) -> str:
    """Return the duration of an audit and the computing time of each check, the longest first."""
    seconds, checks = cost["seconds"], sorted((cost.get("checks") or {}).items(), key=lambda item: -item[1])
    by_check = ", ".join(f"{format.one_line(name) or 'choices'} {spent:.1f}" for name, spent in checks if spent >= 0.05)
    total = f"time: {seconds.get('wall', 0.0):.0f} s; computed {seconds['total']:.1f} s"
    return total + (f": {by_check}" if by_check else "")


@contextmanager
def live_display() -> Iterator[Callable[[Progress], None]]:
    """Show progress on standard error and remove it at the end; without a terminal, print one line for each stage."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True, highlight=False)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[more]}", markup=False),
    )
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        tasks: dict[str, TaskID] = {}

        def show(progress: Progress) -> None:
            if progress.stage not in tasks:
                for task in bar.task_ids:
                    bar.update(task, visible=False)
                tasks[progress.stage] = bar.add_task(progress.stage, total=progress.total, more="")
                if not console.is_terminal:
                    console.print(progress.stage, markup=False)
            remaining = "" if progress.left is None else f"about {format.format_seconds(progress.left)} left"
            reused = f"{progress.reused} reused" if progress.reused else ""
            more = ", ".join(part for part in (f"{progress.running} running", reused, remaining) if part)
            bar.update(tasks[progress.stage], completed=progress.done, total=progress.total, more=more)

        yield show


def _row(group: tables.Group, unit: str) -> tuple[str, ...]:
    first = group[0]
    name = tables.group_name(first)
    bounds = tables.harm_text(first, unit).partition(" ")[2]
    values = [value for _, value in tables.induced_range(group)]
    induced = _percent(sum(values) / len(values)) if len(values) == 1 else _range(values)
    subject, cured, scratch = (_percent(first.accuracy.get(arm)) for arm in ("subject", "cured", "scratch"))
    retained = format.format_percent(first.benefit_retained, 0).replace(" ", "")
    return (
        format.one_line(name),
        first.verdict,
        format.format_harm(first.estimate.harm, first.estimate.unit),
        bounds,
        retained,
        subject,
        cured,
        induced,
        scratch,
    )


def _change(outcome: Outcome) -> tuple[str, str]:
    _, _, bounds = comparison_text.change_text(outcome).partition(" ")
    return format.format_harm(outcome.estimate.change, outcome.estimate.unit), bounds


def _percent(value: float | None) -> str:
    return format.format_percent(value).removesuffix(" %")


def _range(values: Sequence[float]) -> str:
    """Return the least and greatest value of several variants in whole percent."""
    return f"{100 * min(values):.0f}-{100 * max(values):.0f}" if values else format.MISSING


def _widths(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    """Return the widths of the columns; the first is limited so that the row fits :data:`NARROW_WIDTH`."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    most = NARROW_WIDTH - sum(widths[1:]) - len(widths) + 1
    widths[0] = max(len(head[0]), *(len(row[0]) for row in rows if len(row[0]) <= most), 0)
    return widths


def _row_lines(row: Sequence[str], widths: Sequence[int], verdict: str, right: Sequence[int] = NUMBERS) -> list[Text]:
    """Return the lines of a row; a name that is too long for its column is on a separate line."""
    from rich.text import Text

    if len(row[0]) <= widths[0]:
        return [_line(row, widths, "", verdict, right)]
    return [Text(row[0]), _line(("", *row[1:]), widths, "", verdict, right)]


def _line(cells: Sequence[str], widths: Sequence[int], style: str, verdict: str = "", right: Sequence[int] = NUMBERS) -> Text:
    from rich.text import Text

    padded = [
        cell.rjust(width) if column in right else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    line = Text(no_wrap=True, overflow="fold", style=style)
    for column, cell in enumerate(padded):
        line.append(cell, style=verdict if column == 1 else "").append(" " if column < len(padded) - 1 else "")
    return line


def _details(group: tables.Group) -> list[tuple[str, str]]:
    """Return the lines below a row, each with its style."""
    controls = ", ".join(tables.control_texts(group))
    action = tables.next_action(group)
    lines = [
        (f"control: {controls}" if controls else "", "dim"),
        (tables.group_reason(group), ""),
        (f"next: {action}" if action else "", "bold"),
    ]
    return [*lines, *((f"  {line}", "cyan") for line in tables.patch_lines(group).splitlines())]
