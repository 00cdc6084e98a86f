"""From findings to the exit code of the contract."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xferbench.record import Finding

PASSED, FAILED, USAGE, CRASHED, INCONCLUSIVE, NOTHING, INTERRUPTED = 0, 1, 2, 3, 4, 5, 130


def exit_code(findings: Sequence[Finding], *, fail_on: str = "fail") -> int:
    """The first that holds: 3 a crash, 1 a FAIL, 5 nothing judged, 4 something open (only with ``fail_on`` inconclusive), 0."""
    verdicts = {finding.verdict for finding in findings}
    if "ERROR" in verdicts:
        return CRASHED
    if "FAIL" in verdicts:
        return FAILED
    if not verdicts & {"PASS", "INCONCLUSIVE"}:
        return NOTHING
    return INCONCLUSIVE if fail_on == "inconclusive" and "INCONCLUSIVE" in verdicts else PASSED
