"""The result of a suite with [matrix], as a part of its run: a flat table of rows, comparisons and claims. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

COLUMNS = (
    *("task", "target", "backbone", "train_size", "recipe", "chosen", "seed", "accuracy", "shifted", "source"),
    *("source_before", "trainable", "stored", "multiply_adds", "seconds", "diverged", "error"),
)
NUMERIC_COLUMNS = COLUMNS[7:-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixResult:
    """The part of a run that only a suite with [matrix] has.

    Attributes:
        rows: one row for each task, recipe and seed, with :data:`COLUMNS`. ``accuracy`` is the suite's metric on the target's
            test images, ``shifted`` the metric on those of the shifted set. ``source`` is the source head's accuracy after
            training, ``source_before`` before it. ``stored`` counts bytes per task, ``multiply_adds`` is for one image,
            ``seconds`` is the training time. A missing value is None.
        skipped: the reason why a recipe does not fit a task, by task and recipe.
        comparisons: each recipe of a task compared with the reference recipe.
        claims: each claim with its estimate and outcome.
        inputs: data and weights of each task with their digests.
        command: the command line as the user typed it.
    """

    rows: tuple[Mapping[str, Any], ...]
    skipped: Mapping[tuple[str, str], str]
    comparisons: tuple[Mapping[str, Any], ...]
    claims: tuple[Mapping[str, Any], ...]
    inputs: tuple[Mapping[str, Any], ...] = ()
    command: str = ""

    @property
    def crashes(self) -> tuple[str, ...]:
        """The recipes with an error, by task, each once."""
        return tuple(dict.fromkeys(f"{row['task']}, {row['recipe']}: {row['error']}" for row in self.rows if row["error"]))

    def to_frame(self) -> pd.DataFrame:
        """Return the rows as a data frame. A missing value is NaN."""
        import pandas as pd

        frame = pd.DataFrame(list(self.rows), columns=list(COLUMNS))
        return frame.astype(dict.fromkeys(NUMERIC_COLUMNS, "float64"))


def matrix_to_json(matrix: MatrixResult) -> dict[str, Any]:
    """Return the content of ``matrix`` in ``results.json``."""
    skipped = [{"task": task, "recipe": recipe, "reason": reason} for (task, recipe), reason in matrix.skipped.items()]
    return {
        "rows": matrix.rows,
        "skipped": skipped,
        "comparisons": matrix.comparisons,
        "claims": matrix.claims,
        "inputs": matrix.inputs,
        "command": matrix.command,
    }


def matrix_from_json(payload: Mapping[str, Any]) -> MatrixResult:
    """Return the result that :func:`matrix_to_json` wrote.

    Raises:
        KeyError, TypeError, ValueError: if the payload has another content.
    """
    return MatrixResult(
        rows=tuple({name: row[name] for name in COLUMNS} for row in payload["rows"]),
        skipped={(entry["task"], entry["recipe"]): entry["reason"] for entry in payload["skipped"]},
        comparisons=tuple(dict(entry) for entry in payload["comparisons"]),
        claims=tuple(dict(entry) for entry in payload["claims"]),
        inputs=tuple(dict(entry) for entry in payload["inputs"]),
        command=str(payload["command"]),
    )
