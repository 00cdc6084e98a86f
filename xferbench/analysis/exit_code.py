"""From findings, and what they are held against, to the exit code of the contract."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xferbench.core.comparison import Comparison
    from xferbench.core.matrix_result import MatrixResult
    from xferbench.core.run import Finding

PASSED, FAILED, USAGE, CRASHED, INCONCLUSIVE, NOTHING, INTERRUPTED = 0, 1, 2, 3, 4, 5, 130
VERDICT_OF_DECISION = {
    "worse": "FAIL",
    "not worse": "PASS",
    "cannot tell": "INCONCLUSIVE",
    "crashed": "ERROR",
    "skipped": "SKIPPED",
}


def exit_code(
    findings: Sequence[Finding],
    *,
    fail_on: str = "fail",
    held: Comparison | None = None,
    matrix: MatrixResult | None = None,
) -> int:
    """The first that holds: 3 a crash, 1 a FAIL, 5 nothing judged, 4 something open (only with ``fail_on`` inconclusive), 0.

    Of a run that is held against an accepted one, what is worse counts in the place of FAIL, and what cannot be told in that
    of INCONCLUSIVE. Of a matrix, a row that was measured without a crash counts as PASS and an open claim as INCONCLUSIVE; a
    claim that does not hold fails nothing.
    """
    verdicts = {finding.verdict for finding in findings}
    if matrix is not None:
        verdicts |= {"PASS" for row in matrix.rows if row["accuracy"] is not None} | {"ERROR" for _ in matrix.crashes}
    if not verdicts - {"SKIPPED", "INFO"}:
        return NOTHING
    if held is not None:
        verdicts = {VERDICT_OF_DECISION[one.decision] for one in held.outcomes}
    if "ERROR" in verdicts:
        return CRASHED
    if "FAIL" in verdicts:
        return FAILED
    if not verdicts & {"PASS", "INCONCLUSIVE"}:
        return NOTHING
    claims = matrix.claims if matrix is not None else ()
    is_open = "INCONCLUSIVE" in verdicts or any(claim["outcome"] in {"inconclusive", "not measured"} for claim in claims)
    return INCONCLUSIVE if fail_on == "inconclusive" and is_open else PASSED
