"""From findings, and what they are held against, to the exit code of the contract."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xferbench.core.comparison import Comparison
    from xferbench.record import Finding
    from xferbench.table import Table

PASSED, FAILED, USAGE, CRASHED, INCONCLUSIVE, NOTHING, INTERRUPTED = 0, 1, 2, 3, 4, 5, 130
VERDICT = {"worse": "FAIL", "not worse": "PASS", "cannot tell": "INCONCLUSIVE", "crashed": "ERROR", "skipped": "SKIPPED"}


def exit_code(findings: Sequence[Finding], *, fail_on: str = "fail", held: Comparison | None = None) -> int:
    """The first that holds: 3 a crash, 1 a FAIL, 5 nothing judged, 4 something open (only with ``fail_on`` inconclusive), 0.

    Of a run that is held against an accepted one, what is worse counts in the place of FAIL, and what cannot be told in that
    of INCONCLUSIVE.
    """
    verdicts = {finding.verdict for finding in findings}
    if not verdicts - {"SKIPPED", "INFO"}:
        return NOTHING
    if held is not None:
        verdicts = {VERDICT[one.decision] for one in held.outcomes}
    if "ERROR" in verdicts:
        return CRASHED
    if "FAIL" in verdicts:
        return FAILED
    if not verdicts & {"PASS", "INCONCLUSIVE"}:
        return NOTHING
    return INCONCLUSIVE if fail_on == "inconclusive" and "INCONCLUSIVE" in verdicts else PASSED


def of_table(table: Table, *, fail_on: str = "fail") -> int:
    """Of a matrix, likewise; what was measured without a crash is enough, and a claim that is not so fails nothing."""
    verdicts = {finding.verdict for finding in table.findings}
    if table.crashed or "ERROR" in verdicts:
        return CRASHED
    if "FAIL" in verdicts:
        return FAILED
    if not any(row["accuracy"] is not None for row in table.rows) and not verdicts - {"SKIPPED", "INFO"}:
        return NOTHING
    open_ = "INCONCLUSIVE" in verdicts or any(one["outcome"] in {"inconclusive", "not measured"} for one in table.claims)
    return INCONCLUSIVE if fail_on == "inconclusive" and open_ else PASSED
