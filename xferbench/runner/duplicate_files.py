"""List the test examples with a copy, with the files or lines of both. Reads the datasets and the cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xferbench.data import leaks

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from xferbench.core.record import Record
    from xferbench.core.run import Duplicate
    from xferbench.study.schedule import Schedule


def list_duplicates(step: Schedule, records: Mapping[str, Record], cache: Path) -> tuple[Duplicate, ...]:
    """Return the copies that the subject's measure ``copies`` of ``data-leakage`` counted; none if it found no copy."""
    for request in step.requests:
        if (request.plugin, request.arm, request.view) == ("data-leakage", "subject", "copies"):
            trial, record = request.trial, records[request.trial.key]
            if record.scalars.get("copies", 0.0) > 0:
                return leaks.list_duplicates(trial.model.base.data.dataset, trial.view.limit, trial.view.reference_data, cache)
            return ()
    return ()
