"""A finding before its sentences are written. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xferbench.core.reason import Reason
    from xferbench.core.run import Estimate, Finding


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A finding whose ``reason`` is empty, and what :mod:`xferbench.report.messages` writes there.

    Attributes:
        reasons: of the verdict, in the order in which they are read.
        followup: what is left of the failure after the largest one is repaired.
        remaining: the harm that the remedy leaves, where the remedy is not verified.
    """

    finding: Finding
    reasons: tuple[Reason, ...]
    followup: Reason | None = None
    remaining: Estimate | None = None
