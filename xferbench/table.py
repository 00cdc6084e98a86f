"""What a matrix was measured to be: one flat table of records, and what was read out of it; and its JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from xferbench.record import SCHEMA, Finding, plain

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

COLUMNS = (
    *("task", "target", "backbone", "train_size", "recipe", "chosen", "seed", "accuracy", "shifted", "source"),
    *("source_before", "trainable", "stored", "multiply_adds", "seconds", "diverged", "error"),
)
NUMBERS = COLUMNS[7:-1]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Table:
    """A finished matrix.

    Attributes:
        suite: as it was asked, with the names of its ``tasks``, its ``recipes`` in words and the one they are held ``against``.
        rows: of task, recipe and seed, with :data:`COLUMNS`: ``accuracy`` is the suite's metric on the target's test images,
            ``shifted`` on those of the shifted set; ``source`` the source head's accuracy after training, ``source_before``
            before it; ``stored`` bytes per task; ``multiply_adds`` of one image; ``seconds`` of training. None is not there.
        skipped: why a recipe does not fit, by task and recipe.
        comparisons: of task and recipe, against one of them. claims: what became of each effect.
        findings: of the plugins that the suite lists, each id with its task before it.
        inputs: data and weights of each task with their digests. command: as it was typed.
    """

    suite: Mapping[str, Any]
    environment: Mapping[str, Any]
    rows: tuple[Mapping[str, Any], ...]
    skipped: Mapping[tuple[str, str], str]
    comparisons: tuple[Mapping[str, Any], ...]
    claims: tuple[Mapping[str, Any], ...]
    findings: tuple[Finding, ...]
    cost: Mapping[str, Any]
    notes: tuple[str, ...]
    inputs: tuple[Mapping[str, Any], ...] = ()
    command: str = ""

    def __repr__(self) -> str:
        """Say what it is; its records are in ``to_frame()``."""
        recipes, tasks = len(self.suite["recipes"]), len(self.suite["tasks"])
        return f"<{self.suite['name']}: {recipes} recipes on {tasks} tasks, {len(self.rows)} rows>"

    def _repr_html_(self) -> str:
        """In a notebook: the mean of each recipe on each task."""
        told: str = self.to_frame().pivot_table("accuracy", "recipe", "task", sort=False).to_html(float_format="{:.4g}".format)
        return told

    @property
    def crashed(self) -> tuple[str, ...]:
        """The recipes with an error, by task, each once."""
        return tuple(dict.fromkeys(f"{row['task']}, {row['recipe']}: {row['error']}" for row in self.rows if row["error"]))

    def to_frame(self) -> pd.DataFrame:
        """The records as a flat table; what is not there is NaN."""
        import pandas as pd

        frame = pd.DataFrame(list(self.rows), columns=list(COLUMNS))
        return frame.astype(dict.fromkeys(NUMBERS, "float64"))


def to_json(table: Table) -> dict[str, Any]:
    """The content of ``results.json``; what is not finite is null."""
    from xferbench import __version__

    told: dict[str, Any] = plain(
        {
            "schema": SCHEMA,
            "xferbench": __version__,
            "suite": table.suite,
            "environment": table.environment,
            "findings": [asdict(one) for one in table.findings],
            "cost": table.cost,
            "notes": table.notes,
            "inputs": table.inputs,
            "command": table.command,
            "matrix": {
                "rows": table.rows,
                "skipped": [{"task": task, "recipe": recipe, "reason": why} for (task, recipe), why in table.skipped.items()],
                "comparisons": table.comparisons,
                "claims": table.claims,
            },
        }
    )
    return told


def of_json(told: Mapping[str, Any]) -> Table:
    """A table of what ``results.json`` holds.

    Raises:
        KeyError, TypeError, ValueError: for what is no such content.
    """
    matrix = told["matrix"]
    return Table(
        suite=dict(told["suite"]),
        environment=dict(told["environment"]),
        rows=tuple({name: row[name] for name in COLUMNS} for row in matrix["rows"]),
        skipped={(one["task"], one["recipe"]): one["reason"] for one in matrix["skipped"]},
        comparisons=tuple(dict(one) for one in matrix["comparisons"]),
        claims=tuple(dict(one) for one in matrix["claims"]),
        findings=tuple(Finding(**one) for one in told["findings"]),
        cost=dict(told["cost"]),
        notes=tuple(told["notes"]),
        inputs=tuple(told.get("inputs") or ()),
        command=str(told.get("command") or ""),
    )
