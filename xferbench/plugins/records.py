"""Records as plugins read them: by arm, view and seed, in what is derived as in a finished run. Pure."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from xferbench.analysis import metrics
from xferbench.report import plotting

if TYPE_CHECKING:
    from xferbench.core.record import Record
    from xferbench.core.run import Run

RecordsByTerm: TypeAlias = "Mapping[tuple[str, str, int], Record]"  # by arm, view and seed
Seeds: TypeAlias = Sequence[int]
T = TypeVar("T")


def plugin_records(run: Run, plugin: str) -> dict[tuple[str, str, int], Record]:
    """A plugin's own records in a run; variants are ``induced:NAME`` and ``beside:NAME``, as where a plugin derives numbers."""
    own = (cell for cell in run.cells if cell.plugin == plugin)
    return {(f"{one.arm}:{one.variant}" if one.variant else one.arm, one.view, one.seed): one.record for one in own}


def values_by_arm(
    answers: RecordsByTerm,
    tell: Callable[[Record], T | None],
    view: str = "test",
    *,
    but: Container[str] = (),
    seeds: Seeds | None = None,
) -> dict[str, list[T]]:
    """What is told of each record in a view, by arm; arms of which nothing is told are absent.

    Args:
        answers: the records.
        tell: of a record what is wanted, None where it has none.
        view: the records' view. but: arms that are left out. seeds: those that count, all if not said.
    """
    found: dict[str, list[T]] = {}
    for (arm, seen, seed), one in answers.items():
        counts = seen == view and arm not in but and (seeds is None or seed in seeds)
        if counts and (told := tell(one)) is not None:
            found.setdefault(arm, []).append(told)
    return found


def accuracy(one: Record) -> float:
    """The accuracy of a record; NaN where it has no predictions."""
    return float("nan") if one.predictions is None else metrics.metric_value(one.predictions, "accuracy")


def accuracies(answers: RecordsByTerm, *views: str) -> dict[str, list[tuple[float, ...]]]:
    """Of each arm that has all of some views, its accuracy in each of them, one row a seed."""
    first, *others = (values_by_arm(answers, accuracy, view) for view in views)
    whole = [arm for arm in first if all(arm in other for other in others)]
    return {arm: list(zip(first[arm], *(other[arm] for other in others), strict=False)) for arm in whole}


def validation_curve(one: Record) -> list[tuple[int, float]]:
    """Validation accuracy by training step."""
    return [(step, score) for step, _, score in one.curve]


def numbered_scalars(one: Record, prefix: str) -> list[tuple[int, float]]:
    """The measured numbers whose names begin alike, in their order."""
    return list(enumerate(value for name, value in one.scalars.items() if name.startswith(prefix)))


def mean_scalars(records: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each measured number over the records that have it."""
    found: dict[str, list[float]] = {}
    for name, value in (item for one in records for item in one.items()):
        found.setdefault(name, []).append(value)
    return {name: mean_or_nan(values) for name, values in found.items()}


def mean_or_nan(values: Sequence[float]) -> float:
    """The mean of some numbers; NaN of none."""
    return sum(values) / len(values) if values else float("nan")


def accuracy_plot(plugin: str) -> Callable[[Any, Run], None]:
    """The picture of a plugin whose arms differ in accuracy alone."""

    def picture(axes: Any, run: Run) -> None:
        """Test accuracy of each arm: the mean, and a faint point a seed."""
        told = accuracies(plugin_records(run, plugin), "test")
        plotting.draw_points(axes, {arm: [(place, *row) for row in rows] for place, (arm, rows) in enumerate(told.items())})
        axes.set_xticks(range(len(told)), [plotting.arm_label(arm) for arm in told], rotation=20, ha="right", fontsize=7)
        axes.set(ylabel="test accuracy", xlim=(-0.5, len(told) - 0.5))

    return picture
