"""The terminal: a table of verdicts that fits 80 columns, and a line that lives while a suite runs."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from xferbench.report import frames, text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from rich.console import RenderableType
    from rich.progress import TaskID
    from rich.text import Text

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
NARROW = 80  # columns that must do; a check's name that leaves too few has a line to itself


def table(run: Run) -> RenderableType:
    """Verdicts, numbers in columns, and below each row its controls, its reason and what to do next, over the full width."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    groups = frames.groups(run)
    rows = [_row(group) for group in groups]
    widths = [max(map(len, column)) for column in zip(HEAD, *rows, strict=True)]
    most = NARROW - sum(widths[1:]) - len(widths) + 1
    widths[0] = max(len(HEAD[0]), *(len(row[0]) for row in rows if len(row[0]) <= most), 0)
    parts: list[RenderableType] = [Text(frames.outcome(run), style="bold"), Text(), _line(HEAD, widths, "dim")]
    for group, row in zip(groups, rows, strict=True):
        if len(row[0]) > widths[0]:
            parts.append(Text(row[0]))
            row = ("", *row[1:])  # noqa: PLW2901 - its name has a line of its own
        parts.append(_line(row, widths, "", COLOUR[group[0].verdict]))
        parts += [Padding(Text(said, style=style), (0, 0, 0, 2), expand=False) for said, style in _below(group) if said]
    units = sorted({text.in_words(group[0].unit) for group in groups})
    legend = f"HARM in {' / '.join(units)}; KEPT: benefit of pretraining retained; the rest: accuracy in %"
    return Group(*parts, *([Text(), Text(legend, style="dim")] if groups else []))


def tell(run: Run) -> None:
    """Print the table to standard output, and what to keep in mind below it."""
    from rich.console import Console

    console = Console(highlight=False)
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


def _percent(value: float | None) -> str:
    return text.percent(value).removesuffix(" %")


def _range(values: Sequence[float]) -> str:
    """Several variants in one column: from the least to the greatest, in whole percent."""
    return f"{100 * min(values):.0f}-{100 * max(values):.0f}" if values else text.NOTHING


def _line(cells: Sequence[str], widths: Sequence[int], style: str, verdict: str = "") -> Text:
    from rich.text import Text

    padded = [
        one.ljust(width) if place in {0, 1, 3} else one.rjust(width)
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
