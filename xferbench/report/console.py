"""The terminal: a table of verdicts that fits 80 columns, and a line that lives while a suite runs."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from xferbench.report import frames, held, markdown, text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from rich.console import RenderableType
    from rich.progress import TaskID
    from rich.text import Text

    from xferbench.core.comparison import Comparison, Outcome
    from xferbench.execute import Progress
    from xferbench.record import Run

COLOUR = {
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
NARROW = 80  # columns that must do; a check's name that leaves too few has a line to itself


def table(run: Run) -> RenderableType:
    """Verdicts, numbers in columns, and below each row its controls, its reason and what to do next, over the full width."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    groups = frames.groups(run)
    rows = [_row(group) for group in groups]
    widths = _widths(HEAD, rows)
    parts: list[RenderableType] = [Text(frames.outcome(run), style="bold"), Text(), _line(HEAD, widths, "dim")]
    for group, row in zip(groups, rows, strict=True):
        parts += _named(row, widths, COLOUR[group[0].verdict])
        parts += [Padding(Text(said, style=style), (0, 0, 0, 2), expand=False) for said, style in _below(group) if said]
    units = sorted({text.in_words(group[0].unit) for group in groups})
    legend = f"HARM in {' / '.join(units)}; KEPT: benefit of pretraining retained; the rest: accuracy in %"
    return Group(*parts, *([Text(), Text(legend, style="dim")] if groups else []))


def compared(gate: Comparison, *, alone: bool = False) -> RenderableType:
    """What a gate says, or a comparison ``alone``: its sentence, its outcomes, and below each that asks for somebody why."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    outcomes = held.ordered(gate)
    rows = [(held.what(one), one.decision, held.turn(one), *_change(one)) for one in outcomes]
    sides = " → ".join(held.NAMES[not alone]).upper()
    head = ("COMPARED", "DECISION", sides, "CHANGE", "[BOUNDS]")
    widths = _widths(head, rows)
    parts: list[RenderableType] = [
        Text(held.sentence(gate, gate=not alone), style="bold"),
        Text(held.against(gate), style="dim"),
    ]
    parts += [Text(), _line(head, widths, "dim", right=RIGHT)] if rows else []
    for one, row in zip(outcomes, rows, strict=True):
        parts += _named(row, widths, COLOUR[held.LOOK[one.decision]], right=RIGHT)
        if (held.asks(one) or held.known(one)) and (said := held.reason(one)):
            parts.append(Padding(Text(said), (0, 0, 0, 2), expand=False))
    units = sorted({text.in_words(one.unit) for one in gate.outcomes if one.change is not None})
    parts += [Text(), Text(f"CHANGE in {' / '.join(units)}, above 0 is worse", style="dim")] if units else []
    return Group(*parts, *(Text(f"note: {text.line(note)}") for note in gate.notes))


def tell_comparison(gate: Comparison) -> None:
    """Print a comparison to standard output, and nothing of the run itself."""
    from rich.console import Console

    Console(highlight=False).print(compared(gate, alone=True))


def tell(run: Run) -> None:
    """Print the table to standard output, and what to keep in mind below it; of a gate first what it found.

    The tables of a matrix are those of ``summary.md``.
    """
    from rich.console import Console

    if run.matrix:
        sys.stdout.write(markdown.render(run) + "\n")
        return
    console = Console(highlight=False)
    if run.gate:
        console.print(compared(run.gate))
        console.print("\nThis run by itself:")
    console.print(table(run))
    for note in run.notes:
        console.print(f"note: {text.line(note)}", markup=False)
    if run.suite.get("after"):
        console.print(_times(run.cost), markup=False)


def _times(cost: Mapping[str, Any]) -> str:
    """Where an audit's time went: in all by the clock, and what each check had computed, the longest first."""
    seconds, checks = cost["seconds"], sorted((cost.get("checks") or {}).items(), key=lambda item: -item[1])
    told = ", ".join(f"{text.line(name) or 'choices'} {taken:.1f}" for name, taken in checks if taken >= 0.05)
    reading = f"time: {seconds.get('wall', 0.0):.0f} s; computed {seconds['total']:.1f} s"
    return reading + (f": {told}" if told else "")


@contextmanager
def live() -> Iterator[Callable[[Progress], None]]:
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
            left = "" if progress.left is None else f"about {text.seconds(progress.left)} left"
            reused = f"{progress.reused} reused" if progress.reused else ""
            more = ", ".join(part for part in (f"{progress.running} running", reused, left) if part)
            bar.update(tasks[progress.stage], completed=progress.done, total=progress.total, more=more)

        yield show


def _row(group: frames.Group) -> tuple[str, ...]:
    first = group[0]
    name = frames.check(first)
    bounds = frames.harm(first).partition(" ")[2]
    values = [value for _, value in frames.induced(group)]
    induced = _percent(sum(values) / len(values)) if len(values) == 1 else _range(values)
    subject, cured, scratch = (_percent(first.accuracy.get(arm)) for arm in ("subject", "cured", "scratch"))
    kept = text.percent(first.benefit_retained, 0).replace(" ", "")
    return (text.line(name), first.verdict, text.signed(first.harm, first.unit), bounds, kept, subject, cured, induced, scratch)


def _change(one: Outcome) -> tuple[str, str]:
    return text.signed(one.change, one.unit), held.change(one).partition(" ")[2]


def _percent(value: float | None) -> str:
    return text.percent(value).removesuffix(" %")


def _range(values: Sequence[float]) -> str:
    """Several variants in one column: from the least to the greatest, in whole percent."""
    return f"{100 * min(values):.0f}-{100 * max(values):.0f}" if values else text.NOTHING


def _widths(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    """Widths of the columns; the first has no more than 80 columns leave."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    most = NARROW - sum(widths[1:]) - len(widths) + 1
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


def _below(group: frames.Group) -> list[tuple[str, str]]:
    controls = ", ".join(frames.controls(group))
    action = frames.action(group)
    said = [
        (f"control: {controls}" if controls else "", "dim"),
        (frames.reason(group), ""),
        (f"next: {action}" if action else "", "bold"),
    ]
    return [*said, *((f"  {line}", "cyan") for line in frames.patch(group).splitlines())]
