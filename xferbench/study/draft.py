"""A finding whose sentences are not written yet. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xferbench.core.reason import Reason
    from xferbench.core.run import Estimate, Finding


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A finding with an empty ``reason``, and the reasons that :mod:`xferbench.report.messages` puts into words.

    Attributes:
        finding: the finding.
        reasons: the reasons of the verdict, in the order of their sentences.
        followup: what remains of the failure after the largest failure is repaired.
        remaining: the harm that remains after the remedy, if the remedy is not verified.
    """

    finding: Finding
    reasons: tuple[Reason, ...]
    followup: Reason | None = None
    remaining: Estimate | None = None
