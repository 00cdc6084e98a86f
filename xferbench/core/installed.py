"""Entry points of installed distributions. Reads their metadata.

A folder ``*.dist-info`` or ``*.egg-info`` in the current folder installs nothing: the current folder is often somebody else's.
"""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint, distributions

from xferbench.core.import_path import without_current_folder


def entry_points(*, group: str) -> list[EntryPoint]:
    """Return the entry points of a group; of several copies of a distribution, the first on Python's path counts."""
    by_distribution: dict[str, list[EntryPoint]] = {}
    for distribution in distributions(path=without_current_folder(sys.path)):
        if entries := list(distribution.entry_points.select(group=group)):
            by_distribution.setdefault(distribution.name.lower().replace("-", "_"), entries)
    return [entry for entries in by_distribution.values() for entry in entries]
