"""Reads a plugin's records by arm, view and seed, while a run is in progress and from a finished run. Pure."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from xferbench.analysis import metrics
from xferbench.analysis.pairing import plugin_records
from xferbench.report import plotting

if TYPE_CHECKING:
    from xferbench.core.record import Record
    from xferbench.core.run import Run

__all__ = [
    "RecordsByTerm",
    "Seeds",
    "accuracies",
    "accuracy",
    "accuracy_plot",
    "mean_or_nan",
    "mean_scalars",
    "numbered_scalars",
    "plugin_records",
    "validation_curve",
    "values_by_arm",
]

RecordsByTerm: TypeAlias = "Mapping[tuple[str, str, int], Record]"  # by (arm, view, seed)
Seeds: TypeAlias = Sequence[int]
T = TypeVar("T")


def values_by_arm(
    records: RecordsByTerm,
    read: Callable[[Record], T | None],
    view: str = "test",
    *,
    exclude: Container[str] = (),
    seeds: Seeds | None = None,
) -> dict[str, list[T]]:
    """Return a value of each record in a view, by arm; arms without a value are absent.

    Args:
        records: Records by arm, view and seed.
        read: Returns the value of a record, or None if it has none.
        view: The view of the records.
        exclude: Arms to leave out.
        seeds: Seeds to include; all if None.
    """
    values: dict[str, list[T]] = {}
    for (arm, record_view, seed), record in records.items():
        included = record_view == view and arm not in exclude and (seeds is None or seed in seeds)
        if included and (value := read(record)) is not None:
            values.setdefault(arm, []).append(value)
    return values


def accuracy(record: Record) -> float:
    """Return the accuracy of a record; NaN if it has no predictions."""
    return float("nan") if record.predictions is None else metrics.metric_value(record.predictions, "accuracy")


def accuracies(records: RecordsByTerm, *views: str) -> dict[str, list[tuple[float, ...]]]:
    """Return one row of accuracies per seed, a column per view, for each arm that has all of the views."""
    first, *others = (values_by_arm(records, accuracy, view) for view in views)
    complete = [arm for arm in first if all(arm in other for other in others)]
    return {arm: list(zip(first[arm], *(other[arm] for other in others), strict=False)) for arm in complete}


def validation_curve(record: Record) -> list[tuple[int, float]]:
    """Return (training step, validation accuracy) pairs."""
    return [(step, score) for step, _, score in record.curve]


def numbered_scalars(record: Record, prefix: str) -> list[tuple[int, float]]:
    """Return (index, value) pairs of the scalars whose names start with a prefix, in their order."""
    return list(enumerate(value for name, value in record.scalars.items() if name.startswith(prefix)))


def mean_scalars(scalars_of_records: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each scalar over the records that have it."""
    values_by_name: dict[str, list[float]] = {}
    for name, value in (item for scalars in scalars_of_records for item in scalars.items()):
        values_by_name.setdefault(name, []).append(value)
    return {name: mean_or_nan(values) for name, values in values_by_name.items()}


def mean_or_nan(values: Sequence[float]) -> float:
    """Return the mean of some numbers; NaN if there are none."""
    return sum(values) / len(values) if values else float("nan")


def accuracy_plot(plugin: str) -> Callable[[Any, Run], None]:
    """Return a plot function for a plugin whose arms differ in accuracy alone."""

    def plot(axes: Any, run: Run) -> None:
        """Draw the test accuracy of each arm: the mean, and a faint point for each seed."""
        by_arm = accuracies(plugin_records(run, plugin), "test")
        points = {arm: [(position, *row) for row in rows] for position, (arm, rows) in enumerate(by_arm.items())}
        plotting.draw_points(axes, points)
        axes.set_xticks(range(len(by_arm)), [plotting.arm_label(arm) for arm in by_arm], rotation=20, ha="right", fontsize=7)
        axes.set(ylabel="test accuracy", xlim=(-0.5, len(by_arm) - 0.5))

    return plot
