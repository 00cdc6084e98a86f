"""The terminal: a table of verdicts that fits 80 columns, and a line that lives while a suite runs."""

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

VERDICT_COLOURS = {
    "FAIL": "bold red",
    "PASS": "green",
    "INCONCLUSIVE": "yellow",
    "ERROR": "bold magenta",
    "SKIPPED": "dim",
    "INFO": "dim",
}
HEAD = ("CHECK", "VERDICT", "HARM", "[BOUNDS]", "KEPT", "SUBJ.", "CURED", "IND.", "SCR.")
NUMBERS = (2, *range(4, 9))  # columns that end in line
RIGHT = (3,)
NARROW_WIDTH = 80  # columns that must do; a check's name that leaves too few has a line to itself


def verdict_table(run: Run) -> RenderableType:
    """Verdicts, numbers in columns, and below each row its controls, its reason and what to do next, over the full width."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    groups = tables.finding_groups(run)
    rows = [_row(group) for group in groups]
    widths = _widths(HEAD, rows)
    parts: list[RenderableType] = [Text(tables.headline(run), style="bold"), Text(), _line(HEAD, widths, "dim")]
    for group, row in zip(groups, rows, strict=True):
        parts += _named(row, widths, VERDICT_COLOURS[group[0].verdict])
        parts += [Padding(Text(said, style=style), (0, 0, 0, 2), expand=False) for said, style in _below(group) if said]
    units = sorted({format.unit_name(group[0].unit) for group in groups})
    legend = f"HARM in {' / '.join(units)}; KEPT: benefit of pretraining retained; the rest: accuracy in %"
    return Group(*parts, *([Text(), Text(legend, style="dim")] if groups else []))


def comparison_table(gate: Comparison, *, alone: bool = False) -> RenderableType:
    """What a gate says, or a comparison ``alone``: its sentence, its outcomes, and below each that asks for somebody why."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    outcomes = comparison_text.in_reading_order(gate)
    rows = [
        (comparison_text.outcome_name(one), one.decision, comparison_text.turn_text(one), *_change(one)) for one in outcomes
    ]
    sides = " → ".join(comparison_text.SIDE_NAMES[not alone]).upper()
    head = ("COMPARED", "DECISION", sides, "CHANGE", "[BOUNDS]")
    widths = _widths(head, rows)
    parts: list[RenderableType] = [
        Text(comparison_text.headline(gate, gate=not alone), style="bold"),
        Text(comparison_text.baseline_line(gate), style="dim"),
    ]
    parts += [Text(), _line(head, widths, "dim", right=RIGHT)] if rows else []
    for one, row in zip(outcomes, rows, strict=True):
        parts += _named(row, widths, VERDICT_COLOURS[comparison_text.VERDICT_STYLE[one.decision]], right=RIGHT)
        if (comparison_text.needs_attention(one) or comparison_text.is_known_failure(one)) and (
            said := comparison_text.reason_text(one)
        ):
            parts.append(Padding(Text(said), (0, 0, 0, 2), expand=False))
    units = sorted({format.unit_name(one.unit) for one in gate.outcomes if one.change is not None})
    parts += [Text(), Text(f"CHANGE in {' / '.join(units)}, above 0 is worse", style="dim")] if units else []
    return Group(*parts, *(Text(f"note: {format.one_line(note)}") for note in gate.notes))


def print_comparison(gate: Comparison) -> None:
    """Print a comparison to standard output, and nothing of the run itself."""
    from rich.console import Console

    Console(highlight=False).print(comparison_table(gate, alone=True))


def print_run(run: Run) -> None:
    """Print the table to standard output, and what to keep in mind below it; of a gate first what it found.

    The tables of a matrix are those of ``summary.md``.
    """
    from rich.console import Console

    if run.matrix:
        sys.stdout.write(markdown.render(run) + "\n")
        return
    console = Console(highlight=False)
    if run.gate:
        console.print(comparison_table(run.gate))
        console.print("\nThis run by itself:")
    console.print(verdict_table(run))
    for note in run.notes:
        console.print(f"note: {format.one_line(note)}", markup=False)
    if run.suite.get("after"):
        console.print(_times(run.cost), markup=False)


def _times(cost: Mapping[str, Any]) -> str:
    """Where an audit's time went: in all by the clock, and what each check had computed, the longest first."""
    seconds, checks = cost["seconds"], sorted((cost.get("checks") or {}).items(), key=lambda item: -item[1])
    told = ", ".join(f"{format.one_line(name) or 'choices'} {taken:.1f}" for name, taken in checks if taken >= 0.05)
    reading = f"time: {seconds.get('wall', 0.0):.0f} s; computed {seconds['total']:.1f} s"
    return reading + (f": {told}" if told else "")


@contextmanager
def live_display() -> Iterator[Callable[[Progress], None]]:
    """Show progress on standard error, and take it away at the end; where that is no terminal, a line for each stage."""
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
            left = "" if progress.left is None else f"about {format.format_seconds(progress.left)} left"
            reused = f"{progress.reused} reused" if progress.reused else ""
            more = ", ".join(part for part in (f"{progress.running} running", reused, left) if part)
            bar.update(tasks[progress.stage], completed=progress.done, total=progress.total, more=more)

        yield show


def _row(group: tables.Group) -> tuple[str, ...]:
    first = group[0]
    name = tables.group_name(first)
    bounds = tables.harm_text(first).partition(" ")[2]
    values = [value for _, value in tables.induced_range(group)]
    induced = _percent(sum(values) / len(values)) if len(values) == 1 else _range(values)
    subject, cured, scratch = (_percent(first.accuracy.get(arm)) for arm in ("subject", "cured", "scratch"))
    kept = format.format_percent(first.benefit_retained, 0).replace(" ", "")
    return (
        format.one_line(name),
        first.verdict,
        format.format_harm(first.harm, first.unit),
        bounds,
        kept,
        subject,
        cured,
        induced,
        scratch,
    )


def _change(one: Outcome) -> tuple[str, str]:
    return format.format_harm(one.change, one.unit), comparison_text.change_text(one).partition(" ")[2]


def _percent(value: float | None) -> str:
    return format.format_percent(value).removesuffix(" %")


def _range(values: Sequence[float]) -> str:
    """Several variants in one column: from the least to the greatest, in whole percent."""
    return f"{100 * min(values):.0f}-{100 * max(values):.0f}" if values else format.MISSING


def _widths(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    """Widths of the columns; the first has no more than 80 columns leave."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    most = NARROW_WIDTH - sum(widths[1:]) - len(widths) + 1
    widths[0] = max(len(head[0]), *(len(row[0]) for row in rows if len(row[0]) <= most), 0)
    return widths


def _named(row: Sequence[str], widths: Sequence[int], verdict: str, right: Sequence[int] = NUMBERS) -> list[Text]:
    """A row; a name that is too long for its column has a line of its own."""
    from rich.text import Text

    if len(row[0]) <= widths[0]:
        return [_line(row, widths, "", verdict, right)]
    return [Text(row[0]), _line(("", *row[1:]), widths, "", verdict, right)]


def _line(cells: Sequence[str], widths: Sequence[int], style: str, verdict: str = "", right: Sequence[int] = NUMBERS) -> Text:
    from rich.text import Text

    padded = [
        one.rjust(width) if place in right else one.ljust(width)
        for place, (one, width) in enumerate(zip(cells, widths, strict=True))
    ]
    whole = Text(no_wrap=True, overflow="fold", style=style)
    for place, one in enumerate(padded):
        whole.append(one, style=verdict if place == 1 else "").append(" " if place < len(padded) - 1 else "")
    return whole


def _below(group: tables.Group) -> list[tuple[str, str]]:
    controls = ", ".join(tables.control_texts(group))
    action = tables.next_action(group)
    said = [
        (f"control: {controls}" if controls else "", "dim"),
        (tables.group_reason(group), ""),
        (f"next: {action}" if action else "", "bold"),
    ]
    return [*said, *((f"  {line}", "cyan") for line in tables.patch_lines(group).splitlines())]
